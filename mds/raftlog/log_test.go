package raftlog

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"varve/internal/disk"
	"varve/internal/id"
)

var testCluster = id.Cluster{1, 2, 3}

func testOptions(fs disk.FS, dir string) Options {
	return Options{FS: fs, Dir: dir, Cluster: testCluster, SegmentBytes: 4096}
}

func open(t testing.TB, o Options) *Log {
	t.Helper()
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func entry(index, term uint64, n int) *raft.Log {
	data := bytes.Repeat([]byte{byte(index), byte(term)}, n)
	return &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: data[:n], AppendedAt: time.Unix(0, int64(index))}
}

func same(a, b *raft.Log) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Type == b.Type && bytes.Equal(a.Data, b.Data) &&
		bytes.Equal(a.Extensions, b.Extensions) && a.AppendedAt.Equal(b.AppendedAt)
}

// holds fails the test unless the log has exactly the entries.
func holds(t *testing.T, l *Log, want []*raft.Log) {
	t.Helper()
	if msg := compare(l, want); msg != "" {
		t.Fatal(msg)
	}
}

func compare(l *Log, want []*raft.Log) string {
	first, _ := l.FirstIndex()
	last, _ := l.LastIndex()
	if len(want) == 0 {
		if first != 0 || last != 0 {
			return fmt.Sprintf("log has %d to %d, want none", first, last)
		}
		return ""
	}
	if first != want[0].Index || last != want[len(want)-1].Index {
		return fmt.Sprintf("log has %d to %d, want %d to %d", first, last, want[0].Index, want[len(want)-1].Index)
	}
	for _, w := range want {
		var got raft.Log
		if err := l.GetLog(w.Index, &got); err != nil {
			return err.Error()
		}
		if !same(&got, w) {
			return fmt.Sprintf("entry %+v, want %+v", got, *w)
		}
	}
	var e raft.Log
	if l.GetLog(first-1, &e) != raft.ErrLogNotFound || l.GetLog(last+1, &e) != raft.ErrLogNotFound {
		return "entries beyond the ends"
	}
	return ""
}

// TestReopen stores, removes and reads entries, before and after the log was opened again.
func TestReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "raft")
	o := testOptions(disk.OS{}, dir)
	l := open(t, o)
	var want []*raft.Log
	again := func() {
		t.Helper()
		holds(t, l, want)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = open(t, o)
		holds(t, l, want)
	}
	store := func(from, to, term uint64, n int) {
		t.Helper()
		var batch []*raft.Log
		for i := from; i <= to; i++ {
			batch = append(batch, entry(i, term, n))
		}
		if err := l.StoreLogs(batch); err != nil {
			t.Fatal(err)
		}
		want = append(want, batch...)
	}
	remove := func(lo, hi uint64) {
		t.Helper()
		if err := l.DeleteRange(lo, hi); err != nil {
			t.Fatal(err)
		}
		want = slices.DeleteFunc(slices.Clone(want), func(e *raft.Log) bool { return e.Index >= lo && e.Index <= hi })
	}
	again()
	store(1, 3, 1, 10)
	again()
	store(4, 40, 1, 500) // several segments
	again()
	remove(30, 40)
	again()
	store(30, 35, 2, 0)
	again()
	remove(1, 20)
	again()
	store(36, 36, 2, 20000) // larger than a segment
	store(37, 37, 2, 1)
	again()
	remove(21, 37)
	again()
	store(100, 101, 3, 7) // any index in an empty log
	again()
	want = nil
	store(200, 201, 4, 7) // beyond the end: behind a snapshot
	again()
	remove(201, 201)
	store(201, 201, 5, 9)
	again()
	if err := l.StoreLogs([]*raft.Log{entry(201, 6, 1)}); err == nil {
		t.Error("stored an entry that is there")
	}
	if err := l.StoreLogs([]*raft.Log{entry(202, 6, 1), entry(204, 6, 1)}); err == nil {
		t.Error("stored entries with a gap between them")
	}
	store(202, 210, 6, 1)
	if err := l.DeleteRange(203, 204); err == nil {
		t.Error("deleted in the middle")
	}
	again()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) > 3 {
		t.Errorf("files left: %q, %v", files, err)
	}
}

// TestReadsFromDisk reads entries that are no longer in memory.
func TestReadsFromDisk(t *testing.T) {
	o := testOptions(disk.OS{}, t.TempDir())
	o.SegmentBytes = 4 << 20
	l := open(t, o)
	var want []*raft.Log
	for i := uint64(1); i <= 200; i++ {
		e := entry(i, 1, 100<<10)
		if err := l.StoreLog(e); err != nil {
			t.Fatal(err)
		}
		want = append(want, e)
	}
	if l.recent.get(1) != nil || l.recent.get(200) == nil || l.recent.bytes > 2*recentBytes {
		t.Fatalf("in memory: from %d, %d bytes", l.recent.first, l.recent.bytes)
	}
	holds(t, l, want)
}

// TestCrash does random operations, loses power in the middle, and compares with what may be left: everything that was acknowledged,
// and nothing that was never stored.
func TestCrash(t *testing.T) {
	for seed := range int64(150) {
		if err := crashRun(seed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func crashRun(seed int64) error {
	rng := rand.New(rand.NewSource(seed))
	d := new(disk.Faulty)
	lazy := false
	o := testOptions(d, "/raft")
	o.Lazy = func([]*raft.Log) bool { return lazy }
	var acked []*raft.Log // on stable media for sure
	term := uint64(0)
	for range 6 {
		l, err := Open(o)
		if err != nil {
			return fmt.Errorf("open: %w", err)
		}
		term++
		// The log holds what was acknowledged, and may hold more, which was stored but not acknowledged.
		first, _ := l.FirstIndex()
		last, _ := l.LastIndex()
		var have []*raft.Log
		for i := first; i <= last && i > 0; i++ {
			e := new(raft.Log)
			if err := l.GetLog(i, e); err != nil {
				return err
			}
			if !bytes.Equal(e.Data, entry(i, e.Term, len(e.Data)).Data) {
				return fmt.Errorf("entry %d has other data than was stored", i)
			}
			have = append(have, e)
		}
		for _, e := range acked {
			if e.Index < first { // dropping from the front may have got further than was acknowledged
				continue
			}
			if e.Index > last || !same(have[e.Index-first], e) {
				return fmt.Errorf("acknowledged entry %d of term %d is lost; log has %d to %d", e.Index, e.Term, first, last)
			}
		}
		if len(acked) > 0 && first > acked[len(acked)-1].Index+1 {
			return fmt.Errorf("log begins at %d, acknowledged up to %d", first, acked[len(acked)-1].Index)
		}
		acked = have
		d.Inject(nil)
		boom := rng.Intn(30)
		dice := rand.New(rand.NewSource(rng.Int63()))
		var mu sync.Mutex // the log's own goroutines work on the disk, too
		d.Inject(func(disk.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if boom--; boom < 0 && dice.Intn(4) == 0 {
				return disk.ErrPowerOff
			}
			return nil
		})
		acked = crashOps(l, rng, acked, term, &lazy)
		d.PowerOff()
		_ = l.Close()
		d.Inject(nil)
		d.Crash(rng)
	}
	return nil
}

// crashOps works on the log until something fails or it is enough, and returns what is acknowledged.
func crashOps(l *Log, rng *rand.Rand, acked []*raft.Log, term uint64, lazy *bool) []*raft.Log {
	stored := slices.Clone(acked)
	for range rng.Intn(40) {
		next := uint64(1)
		if n := len(stored); n > 0 {
			next = stored[n-1].Index + 1
		}
		switch k := rng.Intn(10); {
		case k < 7:
			var batch []*raft.Log
			for i := range uint64(1 + rng.Intn(5)) {
				batch = append(batch, entry(next+i, term, rng.Intn(900)))
			}
			*lazy = rng.Intn(2) == 0
			if l.StoreLogs(batch) != nil {
				return acked
			}
			stored = append(stored, batch...)
			if !*lazy || l.Stable(next+uint64(len(batch))-1) == nil {
				acked = slices.Clone(stored)
			}
		case k == 7 && len(stored) > 0: // what is cut need not be there any more, nor be gone, until that has returned
			at := rng.Intn(len(stored))
			acked = slices.Clone(acked[:min(at, len(acked))])
			if l.DeleteRange(stored[at].Index, stored[len(stored)-1].Index) != nil {
				return acked
			}
			stored = stored[:at]
			if l.AllStable() != nil {
				return acked
			}
			acked = slices.Clone(stored)
			if at == 0 {
				return acked
			}
		case k == 8 && len(stored) > 1:
			at := rng.Intn(len(stored) - 1)
			if l.DeleteRange(stored[0].Index, stored[at].Index) != nil {
				return acked
			}
			stored = slices.Clone(stored[at+1:])
			acked = acked[min(at+1, len(acked)):]
		}
	}
	return acked
}

// TestDamage flips bits of what was on stable media.
func TestDamage(t *testing.T) {
	for off := int64(0); off < 1500; off += 13 {
		d := new(disk.Faulty)
		o := testOptions(d, "/raft")
		l := open(t, o)
		for i := uint64(1); i <= 20; i++ {
			if err := l.StoreLog(entry(i, 1, 30)); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := d.Flip(filepath.Join("/raft", segmentName(1)), off); err != nil {
			t.Fatal(err)
		}
		l, err := Open(o)
		if err == nil {
			last, _ := l.LastIndex()
			_ = l.Close()
			t.Fatalf("bit at %d flipped: opened with entries up to %d", off, last)
		}
		if !errors.Is(err, ErrCorrupt) {
			t.Fatalf("bit at %d flipped: %v", off, err)
		}
	}
}

// TestFullDisk fills the disk: batches are refused as a whole, and the log goes on when there is room.
func TestFullDisk(t *testing.T) {
	d := new(disk.Faulty)
	failed := false
	o := testOptions(d, "/raft")
	o.Failed = func(error) { failed = true }
	l := open(t, o)
	if err := l.StoreLog(entry(1, 1, 3000)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond) // a spare segment may be under way
	d.SetCapacity(d.Used())
	var want []*raft.Log
	want = append(want, entry(1, 1, 3000))
	for i := uint64(2); ; i += 2 {
		err := l.StoreLogs([]*raft.Log{entry(i, 1, 400), entry(i+1, 1, 400)})
		if err == nil {
			want = append(want, entry(i, 1, 400), entry(i+1, 1, 400))
			continue
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		break
	}
	if failed {
		t.Fatal("the log is at its end")
	}
	holds(t, l, want)
	d.SetCapacity(0)
	next := want[len(want)-1].Index + 1
	if err := l.StoreLogs([]*raft.Log{entry(next, 1, 400), entry(next+1, 1, 400)}); err != nil {
		t.Fatal(err)
	}
	want = append(want, entry(next, 1, 400), entry(next+1, 1, 400))
	holds(t, l, want)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	holds(t, open(t, o), want)
}

// TestSyncFails has the log end, once and for all, when a sync fails.
func TestSyncFails(t *testing.T) {
	for _, lazy := range []bool{false, true} {
		d := new(disk.Faulty)
		told := make(chan error, 2)
		o := testOptions(d, "/raft")
		o.Lazy = func([]*raft.Log) bool { return lazy }
		o.Failed = func(err error) { told <- err }
		l := open(t, o)
		d.Inject(func(op disk.Op) error {
			if op.Kind == disk.OpSync {
				return syscall.EIO
			}
			return nil
		})
		if err := l.StoreLog(entry(1, 1, 3)); (err == nil) != lazy {
			t.Fatalf("lazy %v: %v", lazy, err)
		}
		if err := l.Stable(1); !errors.Is(err, syscall.EIO) {
			t.Fatalf("lazy %v: %v", lazy, err)
		}
		d.Inject(nil)
		if err := <-told; !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		if err := l.StoreLog(entry(2, 1, 3)); !errors.Is(err, syscall.EIO) {
			t.Fatalf("stored after a failed sync: %v", err)
		}
	}
}

// TestAtOnce has readers, a writer and a compaction at once.
func TestAtOnce(t *testing.T) {
	o := testOptions(disk.OS{}, t.TempDir())
	o.Lazy = func(logs []*raft.Log) bool { return logs[0].Index%3 == 0 }
	l := open(t, o)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				first, _ := l.FirstIndex()
				last, _ := l.LastIndex()
				var e raft.Log
				for i := first; i <= last && i > 0; i++ {
					switch err := l.GetLog(i, &e); {
					case err == raft.ErrLogNotFound:
					case err != nil:
						t.Error(err)
						return
					case e.Index != i:
						t.Errorf("entry %d, want %d", e.Index, i)
						return
					}
				}
				if err := l.Stable(last); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := uint64(1); i <= 600; i++ {
		if err := l.StoreLog(entry(i, 1, int(i%300))); err != nil {
			t.Fatal(err)
		}
		if i%50 == 0 {
			if err := l.DeleteRange(1, i-20); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(stop)
	wg.Wait()
}

// FuzzDecode gives a segment's content any bytes: no panic, and what is decoded encodes to the same.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add(appendRecord(nil, 0, 0, entry(1, 1, 20)))
	f.Add(appendRecord(appendRecord(nil, kindCut, 64, &raft.Log{Index: 3}), 5, 0, entry(4, 1, 3)))
	f.Fuzz(func(t *testing.T, body []byte) {
		b := append(make([]byte, headerSize), body...)
		end, err := scan(b, func(off int64, size int, r *record) error {
			if got := appendRecord(nil, r.kind, r.stable, &r.log); !bytes.Equal(got, b[off:off+int64(size)]) {
				t.Fatalf("record at %d encodes to %x, was %x", off, got, b[off:off+int64(size)])
			}
			return nil
		})
		if end < headerSize || end > int64(len(b)) || err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("ends at %d of %d: %v", end, len(b), err)
		}
		stableBehind(b, end)
	})
}
