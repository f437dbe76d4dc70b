package ssd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"varve/internal/disk"
)

// crashFile is what a file may hold after a crash. Every sector of 512 bytes says which life, page and version of the page it is of.
type crashFile struct {
	name   string
	handle disk.File
	alive  bool // the name is there as far as this process knows
	sure   bool // the name's present state is on stable media
	old    []*crashLife
	*crashLife
}

// crashLife is one life of a file: for each page the version that was synced, that of the newest write that returned, that of the newest
// write that began, and the versions that are holes.
type crashLife struct {
	number                 uint64
	synced, returned, last []uint64
	holes                  []map[uint64]bool
}

const crashPages = 96

func newCrashLife(n uint64) *crashLife {
	l := &crashLife{n, make([]uint64, crashPages), make([]uint64, crashPages), make([]uint64, crashPages), make([]map[uint64]bool, crashPages)}
	for i := range l.holes {
		l.holes[i] = map[uint64]bool{0: true}
	}
	return l
}

// stamp fills a sector.
func stamp(b []byte, life, page, version uint64) {
	for i := 0; i < len(b); i += 32 {
		binary.LittleEndian.PutUint64(b[i:], life)
		binary.LittleEndian.PutUint64(b[i+8:], page)
		binary.LittleEndian.PutUint64(b[i+16:], version)
		binary.LittleEndian.PutUint64(b[i+24:], uint64(i))
	}
}

// check compares a page with what it may be. With kept the process was killed and what returned is there.
func (l *crashLife) check(page int, b []byte, kept bool) error {
	least := l.synced[page]
	if kept {
		least = l.returned[page]
	}
	want := make([]byte, 512)
sectors:
	for s := 0; s < len(b); s += 512 {
		got := b[s : s+512]
		for v := least; v <= l.last[page]; v++ {
			clear(want)
			if !l.holes[page][v] {
				stamp(want, l.number, uint64(page), v)
			}
			if string(want) == string(got) {
				continue sectors
			}
		}
		return fmt.Errorf("page %d sector %d: life %d page %d version %d, want life %d version %d to %d (synced %d, returned %d)", page, s/512,
			binary.LittleEndian.Uint64(got), binary.LittleEndian.Uint64(got[8:]), binary.LittleEndian.Uint64(got[16:]), l.number, least, l.last[page],
			l.synced[page], l.returned[page])
	}
	return nil
}

// settle takes what is there after a crash as the new beginning, since the next crash must not lose it once it was synced.
func (l *crashLife) settle(handle disk.File) error {
	// Every page is written anew, so that the next round has whole pages of a known version.
	b := make([]byte, pageSize)
	for p := range crashPages {
		l.last[p]++
		for s := 0; s < pageSize; s += 512 {
			stamp(b[s:s+512], l.number, uint64(p), l.last[p])
		}
		if _, err := handle.WriteAt(b, int64(p)*pageSize); err != nil {
			return err
		}
		l.returned[p] = l.last[p]
	}
	if err := handle.Sync(); err != nil {
		return err
	}
	copy(l.synced, l.last)
	return nil
}

// TestCrash loses power on both disks, each of which tears and forgets what was not synced in its own way, or kills the process, at
// every kind of operation, and looks at every sector afterwards: nothing that was synced is lost, nothing older comes back.
func TestCrash(t *testing.T) {
	seed := testSeed()
	rng := rand.New(rand.NewSource(seed))
	rounds := 25
	if os.Getenv("VARVE_E2E") != "" {
		rounds = 300
	}
	fast, slow := new(disk.Faulty), new(disk.Faulty)
	b := newBench(t, fast, slow, "/fast", "/slow", minRingBlocks)
	b.o.BypassAfter = 64 << 10
	must(t, b.fs.Close())
	b.open()
	var files []*crashFile
	lives := uint64(0)
	for i := range 4 {
		files = append(files, &crashFile{name: filepath.Join("/slow", fmt.Sprintf("%d.chk", i)), sure: true})
	}
	for round := range rounds {
		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("seed %d, round %d: %s", seed, round, fmt.Sprintf(format, args...))
		}
		fatal := func(err error) bool { // power is off, or the test has found something
			if err != nil && !strings.Contains(err.Error(), disk.ErrPowerOff.Error()) { // a failed journal's error wraps no cause
				fail("%v", err)
			}
			return err != nil
		}
		var left atomic.Int64
		left.Store(int64(rng.Intn(1500)))
		off := func(disk.Op) error {
			if left.Add(-1) < 0 {
				return disk.ErrPowerOff
			}
			return nil
		}
		fast.Inject(off)
		slow.Inject(off)
		for range 600 {
			if crashStep(rng, b, files[rng.Intn(len(files))], &lives, fatal) {
				break
			}
		}
		kept := rng.Intn(4) == 0
		gone := error(disk.ErrPowerOff)
		b.fs.ring.failed.CompareAndSwap(nil, &gone) // as the process is
		fast.PowerOff()
		slow.PowerOff()
		close(b.fs.stop)
		b.fs.work.Wait()
		if kept {
			fast.Kill()
			slow.Kill()
		} else {
			fast.Crash(rng)
			slow.Crash(rng)
		}
		b.open()
		for _, f := range files {
			crashCheck(b, f, kept, fail)
		}
	}
	must(t, b.fs.Close())
}

// crashStep does one operation on a file. It returns true when power is off.
func crashStep(rng *rand.Rand, b *bench, f *crashFile, lives *uint64, fatal func(error) bool) bool {
	if !f.alive {
		h, err := b.fs.Open(f.name, disk.ReadWrite|disk.Create)
		*lives++
		if f.crashLife != nil {
			f.old = append(f.old, f.crashLife)
		}
		f.crashLife, f.sure = newCrashLife(*lives), false
		if err != nil {
			return fatal(err)
		}
		f.handle, f.alive = h, true
		if err := h.Truncate(crashPages * pageSize); err != nil {
			return fatal(err)
		}
		if err := h.Sync(); err != nil {
			return fatal(err)
		}
	}
	first := rng.Intn(crashPages)
	n := min(rng.Intn(6)+1, crashPages-first)
	if rng.Intn(8) == 0 {
		n = crashPages - first
	}
	switch op := rng.Intn(100); {
	case op < 60:
		p := make([]byte, n*pageSize)
		for i := range n {
			f.last[first+i]++
			for s := 0; s < pageSize; s += 512 {
				stamp(p[i*pageSize+s:i*pageSize+s+512], f.number, uint64(first+i), f.last[first+i])
			}
		}
		if _, err := f.handle.WriteAt(p, int64(first)*pageSize); err != nil {
			return fatal(err)
		}
		copy(f.returned[first:first+n], f.last[first:])
	case op < 66:
		for i := range n {
			f.last[first+i]++
			f.holes[first+i][f.last[first+i]] = true
		}
		if err := f.handle.PunchHole(int64(first)*pageSize, int64(n)*pageSize); err != nil {
			return fatal(err)
		}
		copy(f.returned[first:first+n], f.last[first:])
	case op < 85:
		if err := f.handle.Sync(); err != nil {
			return fatal(err)
		}
		copy(f.synced, f.returned)
	case op < 88:
		f.sure = false
		f.alive = false
		if err := b.fs.Remove(f.name); err != nil {
			return fatal(err)
		}
		_ = f.handle.Close()
	case op < 92:
		if err := b.fs.SyncDir("/slow"); err != nil {
			return fatal(err)
		}
		f.sure, f.old = true, nil
	case op < 94: // an empty file takes its place
		*lives++
		h, err := b.fs.Open(f.name+".new", disk.ReadWrite|disk.Create)
		if err == nil {
			err = h.Truncate(0) // a crash may have taken back an earlier rename
			if err == nil {
				err = h.Truncate(crashPages * pageSize)
			}
			if err == nil {
				err = h.Sync()
			}
			err = errors.Join(err, h.Close())
		}
		if err != nil {
			return fatal(err)
		}
		f.old = append(f.old, f.crashLife)
		f.crashLife, f.sure = newCrashLife(*lives), false
		_ = f.handle.Close()
		if err := b.fs.Rename(f.name+".new", f.name); err != nil {
			return fatal(err)
		}
		if f.handle, err = b.fs.Open(f.name, disk.ReadWrite); err != nil {
			return fatal(err)
		}
	default:
		b.fs.active.Store(0) // idle: destage at once
		b.fs.wakeDestager()
	}
	return false
}

// crashCheck looks at a file after a crash and begins anew with it.
func crashCheck(b *bench, f *crashFile, kept bool, fail func(string, ...any)) {
	h, err := b.fs.Open(f.name, disk.ReadWrite)
	if errors.Is(err, fs.ErrNotExist) {
		if f.alive && f.sure {
			fail("%s is not there", f.name)
		}
		f.alive, f.sure, f.old, f.crashLife = false, false, nil, nil
		// What was removed must stay so from now on.
		if err := b.fs.SyncDir("/slow"); err != nil {
			fail("%v", err)
		}
		return
	}
	if err != nil {
		fail("%v", err)
	}
	buf := make([]byte, crashPages*pageSize)
	if size, err := h.Size(); err != nil || size < crashPages*pageSize {
		if f.crashLife != nil && f.synced[0] > 0 && f.sure || err != nil {
			fail("%s is %d bytes long: %v", f.name, size, err)
		}
		if err := h.Truncate(crashPages * pageSize); err != nil {
			fail("%v", err)
		}
	}
	if _, err := h.ReadAt(buf, 0); err != nil {
		fail("%s: %v", f.name, err)
	}
	candidates := f.old
	if f.crashLife != nil {
		candidates = append(candidates, f.crashLife)
	}
	var faults []error
	found := false
	for _, l := range candidates {
		err := error(nil)
		for p := range crashPages {
			if err = l.check(p, buf[p*pageSize:(p+1)*pageSize], kept && l == f.crashLife); err != nil {
				break
			}
		}
		if err == nil {
			f.crashLife, found = l, true
			break
		}
		faults = append(faults, err)
	}
	if !found {
		fail("%s (alive %t, sure %t, killed %t): %v", f.name, f.alive, f.sure, kept, errors.Join(faults...))
	}
	f.handle, f.alive, f.sure, f.old = h, true, true, nil
	if err := f.settle(h); err != nil {
		fail("%v", err)
	}
	if err := b.fs.SyncDir("/slow"); err != nil {
		fail("%v", err)
	}
}
