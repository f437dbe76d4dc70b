package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"varve/cs/repl"
	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
)

var testCluster = id.Cluster{1, 2, 3}

// testOptions settles only when told to, and then at once.
func testOptions(fsys disk.FS, dir string) Options {
	return Options{FS: fsys, Dir: dir, Cluster: testCluster, MaxOpen: 8, MaxActive: 4, Stages: 1, SettleAfter: 1, SettleEvery: -1, ScrubRate: -1, CountAfter: -1}
}

func mustOpen(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t testing.TB, err error, want fserr.Code) {
	t.Helper()
	if fserr.Of(err) != want {
		t.Fatalf("got %v, want %v", err, want)
	}
}

func write(s *Store, c id.ChunkID, e id.Epoch, off uint32, p []byte) error {
	return s.Write(c, e, off, p, chunk.AppendSums(nil, off, p))
}

func read(s *Store, c id.ChunkID, e id.Epoch, off, n uint32) ([]byte, error) {
	dst, sums := disk.AlignedBuffer(int(n)), make([]uint32, n/chunk.BlockSize)
	err := s.Read(c, e, off, n, dst, sums)
	if err == nil {
		if i := chunk.VerifySums(sums, off, dst); i >= 0 {
			err = fmt.Errorf("block %d does not match the checksum that came with it", i)
		}
	}
	return dst, err
}

func random(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	rng.Read(b)
	return b
}

// onBoth runs a test on a real directory and on the faulty disk.
func onBoth(t *testing.T, test func(t *testing.T, o Options)) {
	t.Run("fs=os", func(t *testing.T) { test(t, testOptions(disk.OS{}, t.TempDir())) })
	t.Run("fs=faulty", func(t *testing.T) { test(t, testOptions(new(disk.Faulty), "/d")) })
	if suite() {
		onJournal(t, test)
	}
}

func TestModel(t *testing.T) { onBoth(t, model) }

func model(t *testing.T, o Options) {
	seed := int64(1)
	rng := rand.New(rand.NewSource(seed))
	s := mustOpen(t, o)
	const chunks, span = 6, 12 << 20 // three extents
	model := map[id.ChunkID][]byte{}
	for c := id.ChunkID(1); c <= chunks; c++ {
		must(t, s.Create(c, 1))
		model[c] = make([]byte, span)
	}
	for i := range 1000 {
		c := id.ChunkID(rng.Intn(chunks) + 1)
		off := uint32(rng.Intn(3))*chunk.ExtentSize + uint32(rng.Intn(64<<10))
		n := uint32(rng.Intn(20000) + 1)
		if rng.Intn(3) == 0 {
			off, n = off&^4095, (n+4095)&^4095
		}
		if rng.Intn(100) == 0 {
			n = uint32(rng.Intn(2<<20) + 1)
		}
		switch rng.Intn(12) {
		case 0, 1, 2, 3:
			p := random(rng, int(n))
			must(t, write(s, c, 1, off, p))
			copy(model[c][off:], p)
		case 4:
			must(t, s.Punch(c, 1, off, off+n))
			clear(model[c][off : off+n])
		case 5:
			must(t, s.Flush(c, 1))
		case 6:
			_, err := s.Settle(2)
			must(t, err)
		case 7:
			if rng.Intn(20) == 0 {
				must(t, s.Close())
				s = mustOpen(t, o)
				if n := s.active.Load(); n != 0 {
					t.Fatalf("%d chunks are active after a clean stop", n)
				}
			}
		default:
			off, n = off&^4095, (n+4095)&^4095
			got, err := read(s, c, 1, off, n)
			must(t, err)
			if !bytes.Equal(got, model[c][off:off+n]) {
				t.Fatalf("seed %d, step %d: chunk %v [%d, +%d) differs from the model", seed, i, c, off, n)
			}
		}
	}
	for c, want := range model {
		got, err := read(s, c, 1, 0, span)
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Fatalf("chunk %v differs from the model", c)
		}
	}
	must(t, s.Close())
	r, err := Check(t.Context(), o, CheckOptions{})
	must(t, err)
	if r.Count != 0 || r.Chunks != chunks {
		t.Fatalf("check: %+v", r)
	}
}

// crashModel is what a block may hold after a crash: each sector is as in one of the versions.
type crashModel map[id.ChunkID]map[uint32][][]byte

func (m crashModel) last(c id.ChunkID, b uint32) []byte {
	if v := m[c][b]; len(v) > 0 {
		return v[len(v)-1]
	}
	return make([]byte, chunk.BlockSize)
}

func (m crashModel) write(c id.ChunkID, off uint32, p []byte) {
	for len(p) > 0 {
		b, in := off/chunk.BlockSize, off%chunk.BlockSize
		v := bytes.Clone(m.last(c, b))
		n := copy(v[in:], p)
		if m[c][b] == nil {
			m[c][b] = [][]byte{make([]byte, chunk.BlockSize)}
		}
		m[c][b] = append(m[c][b], v)
		p, off = p[n:], off+uint32(n)
	}
}

func (m crashModel) flush(c id.ChunkID) {
	for b, v := range m[c] {
		m[c][b] = v[len(v)-1:]
	}
}

func (m crashModel) allows(c id.ChunkID, b uint32, got []byte) bool {
	for i := 0; i < chunk.BlockSize; i += 512 {
		ok := false
		for _, v := range m[c][b] {
			ok = ok || bytes.Equal(v[i:i+512], got[i:i+512])
		}
		if !ok {
			return false
		}
	}
	return true
}

func TestCrash(t *testing.T) {
	seeds := int64(32)
	if testing.Short() {
		seeds = 8
	}
	for seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { t.Parallel(); crash(t, seed, new(disk.Faulty)) })
	}
}

func crash(t *testing.T, seed int64, d crashDisk) {
	rng := rand.New(rand.NewSource(seed))
	o := testOptions(d, "/d")
	o.MaxOpen, o.MaxActive = 3, 2
	model, epochs := crashModel{}, map[id.ChunkID]id.Epoch{}
	s := mustOpen(t, o)
	for c := id.ChunkID(1); c <= 4; c++ {
		must(t, s.Create(c, 1))
		model[c], epochs[c] = map[uint32][][]byte{}, 1
	}
	for round := range 6 {
		var left atomic.Int64 // counted by the destager as well
		left.Store(int64(rng.Intn(250) + 10))
		d.Inject(func(disk.Op) error {
			if left.Add(-1) < 0 {
				return disk.ErrPowerOff
			}
			return nil
		})
		for step := 0; left.Load() > 0 && step < 300; step++ {
			crashStep(t, s, rng, model, epochs)
		}
		d.PowerOff()
		s.Close()
		if rng.Intn(4) == 0 {
			d.Kill()
		} else {
			d.Crash(rng)
		}
		s = mustOpen(t, o)
		infos, more := s.List(0, 100)
		if len(infos) != 4 || more {
			t.Fatalf("seed %d, round %d: %d chunks left", seed, round, len(infos))
		}
		for _, in := range infos {
			if in.State != repl.Serving && in.State != repl.Unclean || in.Epoch < epochs[in.ID] {
				t.Fatalf("seed %d, round %d: %+v, want epoch at least %v", seed, round, in, epochs[in.ID])
			}
			epochs[in.ID] = in.Epoch
			if rng.Intn(2) == 0 {
				must(t, s.Close()) // an unclean chunk that nobody accepted stays unclean
				s = mustOpen(t, o)
				if again, _ := s.List(in.ID-1, 1); again[0] != in {
					t.Fatalf("seed %d, round %d: %+v became %+v", seed, round, in, again[0])
				}
			}
			must(t, s.Accept(in.ID))
			for b := range model[in.ID] {
				got, err := read(s, in.ID, in.Epoch, b*chunk.BlockSize, chunk.BlockSize)
				if err != nil {
					t.Fatalf("seed %d, round %d: %v", seed, round, err)
				}
				if !model.allows(in.ID, b, got) {
					t.Fatalf("seed %d, round %d: chunk %v block %d holds what was never written or lost what was flushed", seed, round, in.ID, b)
				}
				model[in.ID][b] = [][]byte{got}
			}
		}
		// What Kill left is in the cache only.
		for c := range model {
			must(t, s.Flush(c, epochs[c]))
		}
		if round == 5 {
			for _, in := range infos {
				_, bad, _, err := s.Verify(in.ID)
				must(t, err)
				if bad != 0 {
					t.Fatalf("seed %d, round %d: chunk %v has %d bad blocks", seed, round, in.ID, bad)
				}
			}
		}
	}
}

func crashStep(t *testing.T, s *Store, rng *rand.Rand, model crashModel, epochs map[id.ChunkID]id.Epoch) {
	c := id.ChunkID(rng.Intn(4) + 1)
	off := uint32(rng.Intn(3))*chunk.ExtentSize + uint32(rng.Intn(8*chunk.BlockSize))
	n := uint32(rng.Intn(3*chunk.BlockSize) + 1)
	switch rng.Intn(10) {
	case 0, 1, 2, 3:
		p := random(rng, int(n))
		model.write(c, off, p)
		_ = write(s, c, epochs[c], off, p)
	case 4:
		model.write(c, off, make([]byte, n))
		_ = s.Punch(c, epochs[c], off, off+n)
	case 5, 6:
		if s.Flush(c, epochs[c]) == nil {
			model.flush(c)
		}
	case 7:
		_, _ = s.Settle(rng.Intn(3) + 1)
	case 8:
		if rng.Intn(4) == 0 && s.Adopt(c, epochs[c]+1) == nil {
			epochs[c]++
		}
	case 9:
		b := off / chunk.BlockSize
		got, err := read(s, c, epochs[c], b*chunk.BlockSize, chunk.BlockSize)
		if err == nil && !bytes.Equal(got, model.last(c, b)) {
			t.Fatalf("chunk %v block %d differs before the crash", c, b)
		}
		if fserr.Of(err) == fserr.BadChecksum {
			t.Fatal(err)
		}
	}
}

func TestKilled(t *testing.T) {
	d := new(disk.Faulty)
	o := testOptions(d, "/d")
	s := mustOpen(t, o)
	must(t, s.Create(7, 1))
	must(t, s.Create(8, 1))
	p := random(rand.New(rand.NewSource(1)), 3*chunk.BlockSize)
	must(t, write(s, 7, 1, 4096, p))
	d.Kill()
	s = mustOpen(t, o)
	infos, _ := s.List(0, 10)
	if len(infos) != 2 || infos[0].State != repl.Unclean || infos[1].State != repl.Serving {
		t.Fatalf("%+v", infos)
	}
	_, err := read(s, 7, 1, 4096, 4096)
	wantCode(t, err, fserr.NotReady)
	must(t, s.Accept(7))
	got, err := read(s, 7, 1, 4096, 3*chunk.BlockSize)
	must(t, err)
	if !bytes.Equal(got, p) {
		t.Fatal("a write that only the process was lost after is gone")
	}
	must(t, s.Close())
}

func TestOutcomes(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		s := mustOpen(t, o)
		p := make([]byte, 4096)
		p[0] = 1
		sums := chunk.AppendSums(nil, 0, p)
		must(t, s.Create(1, 5))
		must(t, s.Create(1, 5))
		wantCode(t, s.Create(1, 6), fserr.Exist)
		wantCode(t, s.Write(2, 5, 0, p, sums), fserr.NoChunk)
		wantCode(t, s.Write(1, 4, 0, p, sums), fserr.StaleEpoch)
		wantCode(t, s.Write(1, 5, 0, nil, nil), fserr.Invalid)
		wantCode(t, s.Write(1, 5, chunk.Size-4095, p, chunk.AppendSums(nil, chunk.Size-4095, p)), fserr.Invalid)
		wantCode(t, s.Write(1, 5, 0, p, []uint32{sums[0] + 1}), fserr.BadChecksum)
		wantCode(t, s.Write(1, 5, 0, p, nil), fserr.Invalid)
		wantCode(t, s.Punch(1, 5, 4096, 4096), fserr.Invalid)
		wantCode(t, s.Punch(1, 5, 0, chunk.Size+1), fserr.Invalid)
		wantCode(t, s.Read(1, 5, 512, 4096, p, sums), fserr.Invalid)
		wantCode(t, s.Read(1, 5, chunk.Size, 4096, p, sums), fserr.Invalid)
		must(t, s.Write(1, 6, chunk.Size-4096, p, sums))
		wantCode(t, s.Flush(1, 5), fserr.StaleEpoch)
		if _, e, st, err := s.Table(1); e != 6 || st != repl.Serving || err != nil {
			t.Fatal(e, st, err)
		}
		if at, ok, err := s.Seek(1, 6, 100, false); at != chunk.Size-4096 || !ok || err != nil {
			t.Fatal(at, ok, err)
		}
		if at, ok, err := s.Seek(1, 6, 100, true); at != 100 || !ok || err != nil {
			t.Fatal(at, ok, err)
		}
		if _, ok, err := s.Seek(1, 6, chunk.Size-5, true); ok || err != nil {
			t.Fatal(ok, err)
		}
		must(t, s.Delete(1))
		must(t, s.Delete(1))
		wantCode(t, s.Flush(1, 6), fserr.NoChunk)
		if s.Count() != 0 {
			t.Fatal(s.Count())
		}
		if _, err := Open(o); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Fatalf("second open: %v", err)
		}
		must(t, s.Close())
		wantCode(t, s.Flush(1, 6), fserr.Unavailable)
		o.Cluster[0]++
		_, err := Open(o)
		wantCode(t, err, fserr.WrongCluster)
	})
}

func TestOptionsReportEveryFault(t *testing.T) {
	_, err := Open(Options{MaxOpen: 1, MaxActive: 2, SettleAfter: -1})
	for _, want := range []string{"directory", "cluster", "MaxActive", "SettleAfter"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: want it to name %s", err, want)
		}
	}
}

func TestBitFlip(t *testing.T) {
	d := new(disk.Faulty)
	o := testOptions(d, "/d")
	s := mustOpen(t, o)
	must(t, s.Create(0x12, 1))
	must(t, write(s, 0x12, 1, 0, bytes.Repeat([]byte{7}, 3*chunk.BlockSize)))
	must(t, d.Flip("/d/chunks/12/0000000000000012.chk", dataOffset+chunk.BlockSize+17))
	_, err := read(s, 0x12, 1, 0, chunk.BlockSize)
	must(t, err)
	_, err = read(s, 0x12, 1, 0, 3*chunk.BlockSize)
	wantCode(t, err, fserr.BadChecksum)
	if !strings.Contains(err.Error(), "block 1: checksum want") {
		t.Fatal(err)
	}
	wantCode(t, write(s, 0x12, 1, chunk.BlockSize+1, []byte{1}), fserr.BadChecksum)
	blocks, bad, _, err := s.Verify(0x12)
	if blocks != 3 || bad != 1 || err != nil {
		t.Fatal(blocks, bad, err)
	}
	must(t, s.Close())
	if r, err := Check(t.Context(), o, CheckOptions{}); r.Count != 1 || err != nil {
		t.Fatalf("%+v %v", r, err)
	}
	s = mustOpen(t, o)
	must(t, write(s, 0x12, 1, chunk.BlockSize, make([]byte, chunk.BlockSize)))
	_, err = read(s, 0x12, 1, 0, 3*chunk.BlockSize)
	must(t, err)
	must(t, s.Close())
}

// A table page of zeros says that there are only holes; the header knows better.
func TestLostTablePage(t *testing.T) {
	d := new(disk.Faulty)
	o := testOptions(d, "/d")
	s := mustOpen(t, o)
	must(t, s.Create(3, 1))
	p := bytes.Repeat([]byte{7}, chunk.BlockSize)
	must(t, write(s, 3, 1, 0, p))
	must(t, s.Close())
	f, err := d.Open("/d/chunks/03/0000000000000003.chk", disk.ReadWrite)
	must(t, err)
	_, err = f.WriteAt(make([]byte, 512), tableOffset)
	must(t, err)
	s = mustOpen(t, o)
	_, err = read(s, 3, 1, 0, chunk.BlockSize)
	wantCode(t, err, fserr.BadChecksum)
	got, err := read(s, 3, 1, chunk.BlockSize, chunk.BlockSize)
	if err != nil || !chunk.IsZero(got) {
		t.Fatal(err)
	}
	must(t, s.Close())
}

func TestLostHeaderIsRebuilt(t *testing.T) {
	d := new(disk.Faulty)
	o := testOptions(d, "/d")
	s := mustOpen(t, o)
	must(t, s.Create(3, 4))
	must(t, s.Close())
	for _, off := range []int64{40, slotSize + 40} {
		must(t, d.Flip("/d/chunks/03/0000000000000003.chk", off))
	}
	must(t, d.Remove("/d/index")) // which would still tell of it
	s = mustOpen(t, o)
	if infos, _ := s.List(0, 1); infos[0] != (Info{3, 0, repl.Lost}) {
		t.Fatal(infos)
	}
	wantCode(t, write(s, 3, 4, 0, make([]byte, 512)), fserr.NotReady)
	must(t, s.Join(3, 5))
	must(t, write(s, 3, 5, 0, make([]byte, 512)))
	must(t, s.Promote(3, 5))
	must(t, s.Close())
}

func TestLostActivityLog(t *testing.T) {
	d := new(disk.Faulty)
	o := testOptions(d, "/d")
	s := mustOpen(t, o)
	must(t, s.Create(3, 4))
	must(t, s.Close())
	must(t, d.Flip("/d/active.log", 40))
	must(t, d.Flip("/d/active.log", regionSize+40))
	s = mustOpen(t, o)
	if infos, _ := s.List(0, 1); infos[0] != (Info{3, 4, repl.Unclean}) {
		t.Fatal(infos)
	}
	must(t, s.Accept(3))
	must(t, s.Close())
}

func TestFullDisk(t *testing.T) {
	d := new(disk.Faulty)
	o := testOptions(d, "/d")
	o.Reserve = -1
	s := mustOpen(t, o)
	must(t, s.Create(1, 1))
	a := random(rand.New(rand.NewSource(1)), 16*chunk.BlockSize)
	must(t, write(s, 1, 1, 0, a))
	d.SetCapacity(d.Used() + 4*chunk.BlockSize)
	b := random(rand.New(rand.NewSource(2)), 16*chunk.BlockSize)
	// Half of it lies over what is there, four blocks of the rest would fit: none of it is done.
	used := d.Used()
	err := write(s, 1, 1, 8*chunk.BlockSize, b)
	wantCode(t, err, fserr.NoSpace)
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	got, err := read(s, 1, 1, 0, 32*chunk.BlockSize)
	must(t, err)
	if !bytes.Equal(got, append(bytes.Clone(a), make([]byte, 16*chunk.BlockSize)...)) {
		t.Fatal("a write that found no room has changed blocks")
	}
	if d.Used() != used {
		t.Fatalf("a write that found no room has taken %d bytes", d.Used()-used)
	}
	wantCode(t, s.Create(2, 1), fserr.NoSpace)
	must(t, write(s, 1, 1, 0, b)) // in place
	must(t, s.Punch(1, 1, 8*chunk.BlockSize, 16*chunk.BlockSize))
	must(t, write(s, 1, 1, 100*chunk.BlockSize, a[:chunk.BlockSize]))
	must(t, s.Close())
	d.SetCapacity(0)
	if r, err := Check(t.Context(), o, CheckOptions{}); err != nil || r.Count != 0 {
		t.Fatalf("%+v %v", r, err)
	}
}

// A chunk server that filled its disk to the last byte took the metadata server beside it along.
func TestReserveStaysFree(t *testing.T) {
	const reserve = 4 << 20
	d := new(disk.Faulty)
	o := testOptions(d, "/d")
	o.Reserve = reserve
	s := mustOpen(t, o)
	must(t, s.Create(1, 1))
	d.SetCapacity(16 << 20)
	b := random(rand.New(rand.NewSource(1)), 128<<10)
	var off uint32
	var err error
	for err == nil {
		err = write(s, 1, 1, off, b)
		off += uint32(len(b))
	}
	wantCode(t, err, fserr.NoSpace)
	if sp, _ := d.Space("/d"); sp.Free < reserve || sp.Free > reserve+2*maxRoom {
		t.Fatalf("%d bytes are free, want about %d", sp.Free, reserve)
	}
	if _, free, err := s.Space(); err != nil || free > 2*maxRoom {
		t.Fatalf("the store says that %d bytes are free, %v", free, err)
	}
	wantCode(t, write(s, 1, 1, off, b), fserr.NoSpace)
	must(t, write(s, 1, 1, 0, b)) // in place
	must(t, s.Punch(1, 1, 0, 4<<20))
	must(t, write(s, 1, 1, off, b))
	must(t, s.Flush(1, 1))
	must(t, s.Close())
}

func TestFailureTakesOutOfService(t *testing.T) {
	for _, kind := range []disk.OpKind{disk.OpSync, disk.OpWrite, disk.OpPunch} {
		t.Run(string(kind), func(t *testing.T) {
			d := new(disk.Faulty)
			s := mustOpen(t, testOptions(d, "/d"))
			must(t, s.Create(1, 1))
			must(t, write(s, 1, 1, 0, make([]byte, 4096)))
			syncs := 0
			d.Inject(func(op disk.Op) error {
				if op.Kind != kind || op.Path == "/d/label" {
					return nil
				}
				syncs++
				return syscall.EIO
			})
			err := errors.Join(write(s, 1, 1, 4096, make([]byte, 4096)), s.Punch(1, 1, 0, 4096), s.Flush(1, 1))
			wantCode(t, err, fserr.IO)
			if syncs != 1 {
				t.Fatalf("tried %d times", syncs)
			}
			wantCode(t, s.Flush(1, 1), fserr.IO)
			_, err = read(s, 1, 1, 0, 4096)
			wantCode(t, err, fserr.IO)
			wantCode(t, s.Create(2, 1), fserr.IO)
			wantCode(t, s.Close(), fserr.IO)
		})
	}
}

func TestRebuild(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		for seed := range int64(4) {
			rebuild(t, o, seed, id.ChunkID(seed*10+1))
		}
	})
}

// rebuild copies a chunk to a joining one while a client writes to both, in an order that rng makes:
// the fetch of a block may come before or after the write to the source.
func rebuild(t *testing.T, o Options, seed int64, src id.ChunkID) {
	rng := rand.New(rand.NewSource(seed))
	s := mustOpen(t, o)
	defer s.Close()
	dst := src + 1
	must(t, s.Create(src, 1))
	const blocks = 64
	must(t, write(s, src, 1, 0, random(rng, blocks*chunk.BlockSize)))
	if seed%2 == 0 { // an old copy that missed writes, else none
		must(t, s.Create(dst, 1))
		must(t, write(s, dst, 1, 0, random(rng, blocks*chunk.BlockSize)))
	}
	must(t, s.Punch(src, 1, 10*chunk.BlockSize, 20*chunk.BlockSize))
	must(t, s.Join(dst, 2))
	must(t, s.Join(dst, 2))
	must(t, s.Adopt(src, 2))
	_, err := read(s, dst, 2, 0, 4096)
	wantCode(t, err, fserr.NotReady)
	wantCode(t, s.Promote(dst, 3), fserr.NotReady)
	theirs, _, _, err := s.Table(src)
	must(t, err)
	client := func() {
		off, p := uint32(rng.Intn(blocks*chunk.BlockSize)), random(rng, rng.Intn(9000)+1)
		must(t, write(s, dst, 2, off, p))
		must(t, write(s, src, 2, off, p))
	}
	for range 10 {
		client()
	}
	for b := range uint32(blocks) {
		mine, _, _, err := s.Table(dst)
		must(t, err)
		if mine[b] == theirs[b] {
			continue
		}
		data, sums := make([]byte, chunk.BlockSize), make([]uint32, 1)
		must(t, s.Read(src, 2, b*chunk.BlockSize, chunk.BlockSize, data, sums))
		if rng.Intn(2) == 0 {
			client()
		}
		if sums[0] == chunk.Hole && rng.Intn(2) == 0 {
			data = nil
		}
		_, err = s.RepairWrite(dst, 2, b, data, sums)
		must(t, err)
	}
	for range 5 {
		client()
	}
	must(t, s.Flush(dst, 2))
	must(t, s.Promote(dst, 2))
	must(t, s.Promote(dst, 2))
	a, err := read(s, src, 2, 0, 2*blocks*chunk.BlockSize)
	must(t, err)
	b, err := read(s, dst, 2, 0, 2*blocks*chunk.BlockSize)
	must(t, err)
	if !bytes.Equal(a, b) {
		t.Fatalf("seed %d: replicas differ after the rebuild", seed)
	}
	_, _, da, err := s.Verify(src)
	must(t, err)
	if _, _, db, err := s.Verify(dst); err != nil || da != db {
		t.Fatalf("digests differ: %x %x %v", da, db, err)
	}
	_, err = s.RepairWrite(dst, 2, 0, make([]byte, 4096), []uint32{chunk.Hole})
	wantCode(t, err, fserr.StaleEpoch)
}

func TestFreshIsLeftAlone(t *testing.T) {
	s := mustOpen(t, testOptions(new(disk.Faulty), "/d"))
	must(t, s.Join(1, 1))
	mine, theirs := bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 3*4096)
	must(t, write(s, 1, 1, 4096, mine))
	n, err := s.RepairWrite(1, 1, 0, theirs, chunk.AppendSums(nil, 0, theirs))
	if n != 2 || err != nil {
		t.Fatal(n, err)
	}
	must(t, s.Promote(1, 1))
	got, err := read(s, 1, 1, 0, 3*4096)
	must(t, err)
	if got[0] != 2 || got[4096] != 1 || got[8192] != 2 {
		t.Fatal(got[0], got[4096], got[8192])
	}
	must(t, s.Close())
}

func TestJoiningForgetsAtRestart(t *testing.T) {
	o := testOptions(new(disk.Faulty), "/d")
	s := mustOpen(t, o)
	must(t, s.Join(1, 3))
	must(t, s.Close())
	s = mustOpen(t, o)
	if infos, _ := s.List(0, 9); len(infos) != 1 || infos[0] != (Info{1, 3, repl.Lost}) {
		t.Fatal(infos)
	}
	wantCode(t, write(s, 1, 3, 0, make([]byte, 1)), fserr.NotReady)
	wantCode(t, s.Join(1, 3), fserr.StaleEpoch)
	wantCode(t, s.Accept(1), fserr.NotReady)
	must(t, s.Join(1, 4))
	must(t, s.Close())
}

func TestThenHoldsTheBlocks(t *testing.T) {
	s := mustOpen(t, testOptions(disk.OS{}, t.TempDir()))
	must(t, s.Create(1, 1))
	p := bytes.Repeat([]byte{9}, 4096)
	started, finish := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		err := s.WriteThen(1, 1, 0, p, chunk.AppendSums(nil, 0, p), func() error {
			close(started)
			<-finish
			return fserr.ReplicaFailed
		})
		if fserr.Of(err) != fserr.ReplicaFailed {
			t.Error(err)
		}
	})
	<-started
	must(t, write(s, 1, 1, 4096, p)) // another block is not held up
	order := make(chan string, 2)
	wg.Go(func() {
		_, err := read(s, 1, 1, 0, 4096)
		order <- fmt.Sprint("read ", err)
	})
	time.Sleep(20 * time.Millisecond)
	order <- "then"
	close(finish)
	wg.Wait()
	if first := <-order; first != "then" {
		t.Fatalf("%s came before the write was forwarded", first)
	}
	must(t, s.Close())
}

// Writers, readers, settling, changes of epoch and eviction at once.
func TestConcurrent(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		o.SettleEvery = time.Millisecond
		s := mustOpen(t, o)
		const chunks, workers, steps = 12, 8, 150
		for c := id.ChunkID(1); c <= chunks; c++ {
			must(t, s.Create(c, 1))
		}
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				rng := rand.New(rand.NewSource(int64(w)))
				mine := map[[2]uint32][]byte{}
				for range steps {
					c, b := uint32(rng.Intn(chunks)+1), uint32(rng.Intn(40)*workers*7+w)
					key, ch := [2]uint32{c, b}, id.ChunkID(c)
					switch rng.Intn(5) {
					case 0, 1:
						p := random(rng, chunk.BlockSize)
						if err := write(s, ch, 1, b*chunk.BlockSize, p); err != nil {
							t.Error(err)
						}
						mine[key] = p
					case 2:
						if err := s.Flush(ch, 1); err != nil {
							t.Error(err)
						}
					default:
						got, err := read(s, ch, 1, b*chunk.BlockSize, chunk.BlockSize)
						if want := mine[key]; err != nil || want != nil && !bytes.Equal(got, want) || want == nil && !chunk.IsZero(got) {
							t.Errorf("chunk %v block %d: %v", ch, b, err)
						}
					}
				}
			})
		}
		wg.Wait()
		if n := len(s.open); n > o.MaxOpen+workers {
			t.Errorf("%d chunks open, limit %d", n, o.MaxOpen)
		}
		must(t, s.Close())
	})
}

func TestDump(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, testOptions(disk.OS{}, dir))
	must(t, s.Create(1, 7))
	must(t, write(s, 1, 7, 0, []byte("x")))
	must(t, s.Close())
	for path, want := range map[string]string{
		"active.log": "records 2 active chunks 0",
		"chunks/01/0000000000000001.chk": "sequence 2 cluster 01020300-0000-0000-0000-000000000000 chunk 0000000000000001 epoch 7 state serving\n" +
			"extent  0: 1 of 1024 blocks written, table page ok\n",
	} {
		var b strings.Builder
		must(t, Dump(&b, filepath.Join(dir, path)))
		if !strings.Contains(b.String(), want) {
			t.Errorf("%s: got\n%swant %s", path, b.String(), want)
		}
	}
}

func TestAllocs(t *testing.T) {
	s := mustOpen(t, testOptions(disk.OS{}, t.TempDir()))
	defer s.Close()
	must(t, s.Create(1, 1))
	p := disk.AlignedBuffer(64 << 10)
	p[0] = 1
	sums := chunk.AppendSums(nil, 0, p)
	must(t, s.Write(1, 1, 0, p, sums))
	if n := testing.AllocsPerRun(100, func() { must(t, s.Write(1, 1, 0, p, sums)) }); n > 0 {
		t.Errorf("%v allocations a write", n)
	}
	if n := testing.AllocsPerRun(100, func() { must(t, s.Read(1, 1, 0, 64<<10, p, sums)) }); n > 0 {
		t.Errorf("%v allocations a read", n)
	}
}
