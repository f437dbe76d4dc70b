package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// tryRead reads as a ring would. ok is false if the read could not begin.
func tryRead(s *Store, op *ReadOp, c id.ChunkID, e id.Epoch, off uint32, dst []byte, sums []uint32) (ok bool, err error) {
	if !s.TryRead(op, c, e, off, uint32(len(dst)), sums) {
		return false, nil
	}
	if op.From < op.To {
		n, err := unix.Pread(op.FD, dst[op.From:op.To], op.Offset)
		if err != nil || n != int(op.To-op.From) {
			op.Abort()
			return true, fmt.Errorf("pread: %d bytes, %v", n, err)
		}
	}
	return true, op.Finish(dst)
}

func tryWrite(s *Store, op *WriteOp, c id.ChunkID, e id.Epoch, off uint32, p []byte, sums []uint32) (ok bool, err error) {
	if !s.TryWrite(op, c, e, off, p, sums) {
		return false, nil
	}
	n, err := unix.Pwrite(op.FD, p, op.Offset)
	return true, op.Finish(n, err)
}

func tryFlush(s *Store, op *FlushOp, c id.ChunkID, e id.Epoch) (ok bool, err error) {
	begun, ok := s.TryFlush(op, c, e)
	if begun {
		err = op.Finish(unix.Fdatasync(op.FD))
	}
	return ok, err
}

// TestTryModel mixes operations of both kinds from several goroutines, each with blocks of its own, with changes of epoch, settling,
// eviction and restarts, and compares with a model.
func TestTryModel(t *testing.T) {
	const (
		chunks, workers, rounds = 4, 6, 3
		steps                   = 150
		own                     = 64 // blocks of a worker in each of two extents
	)
	o := testOptions(disk.OS{}, t.TempDir())
	o.MaxOpen, o.MaxActive = 3, 2
	model := make([][]byte, chunks)
	var tried, begun [3]int
	var count sync.Mutex
	for i := range model {
		model[i] = make([]byte, 8<<20)
	}
	epoch := id.Epoch(1)
	for round := range rounds {
		s := mustOpen(t, o)
		for c := range id.ChunkID(chunks) {
			must(t, s.Create(c+1, epoch))
		}
		var wg sync.WaitGroup
		for w := range uint32(workers) {
			wg.Go(func() {
				rng := rand.New(rand.NewSource(int64(round*100 + int(w))))
				var rop ReadOp
				var wop WriteOp
				var fop FlushOp
				var n, ok [3]int
				buf, sums := disk.AlignedBuffer(own*chunk.BlockSize), make([]uint32, own)
				for i := range steps {
					ci := rng.Intn(chunks)
					c := id.ChunkID(ci + 1)
					if i%8 != 0 {
						ci, c = int(w)%2, id.ChunkID(w%2+1) // mostly what stays open
					}
					first, blocks := uint32(rng.Intn(own)), uint32(0)
					blocks = uint32(rng.Intn(int(own-first))) + 1
					off := uint32(rng.Intn(2))*chunk.ExtentSize + (w*own+first)*chunk.BlockSize
					p, sm := buf[:blocks*chunk.BlockSize], sums[:blocks]
					was := model[ci][off : off+uint32(len(p))]
					var began bool
					var err error
					kind := rng.Intn(10)
					switch {
					case kind < 4:
						began, err = tryRead(s, &rop, c, epoch, off, p, sm)
						if !began {
							err = s.Read(c, epoch, off, uint32(len(p)), p, sm)
						}
						if err == nil && !bytes.Equal(p, was) {
							t.Errorf("chunk %v: %d blocks at %d differ from the model, try %t", c, blocks, off, began)
						}
						if err == nil && chunk.VerifySums(sm, off, p) >= 0 {
							t.Errorf("chunk %v: checksums do not match the data", c)
						}
						n[0]++
						if began {
							ok[0]++
						}
					case kind < 7:
						rng.Read(p)
						if rng.Intn(4) == 0 {
							clear(p[:chunk.BlockSize])
						}
						sm = chunk.AppendSums(sums[:0], off, p)
						began, err = tryWrite(s, &wop, c, epoch, off, p, sm)
						if !began {
							err = write(s, c, epoch, off, p)
						}
						copy(was, p)
						n[1]++
						if began {
							ok[1]++
						}
					case kind == 7:
						err = s.Punch(c, epoch, off+100, off+uint32(len(p)))
						clear(was[100:])
					case kind == 8:
						began, err = tryFlush(s, &fop, c, epoch)
						if !began {
							err = s.Flush(c, epoch)
						}
						n[2]++
						if began {
							ok[2]++
						}
					default:
						if w == 0 {
							_, err = s.Settle(2)
						} else {
							err = write(s, c, epoch, off+5, p[:300])
							copy(was[5:], p[:300])
						}
					}
					if err != nil {
						t.Errorf("worker %d, step %d, kind %d: %v", w, i, kind, err)
						return
					}
				}
				count.Lock()
				for i := range n {
					tried[i] += n[i]
					begun[i] += ok[i]
				}
				count.Unlock()
			})
		}
		wg.Wait()
		epoch++
		for c := range id.ChunkID(chunks) {
			must(t, s.Adopt(c+1, epoch))
		}
		must(t, s.Close())
	}
	s := mustOpen(t, o)
	for i, want := range model {
		for off := uint32(0); off < uint32(len(want)); off += 1 << 20 {
			got, err := read(s, id.ChunkID(i+1), epoch, off, 1<<20)
			must(t, err)
			if !bytes.Equal(got, want[off:off+1<<20]) {
				t.Fatalf("chunk %d at %d differs after a restart", i+1, off)
			}
		}
	}
	must(t, s.Close())
	t.Logf("reads, writes, flushes: %v, of these begun by Try: %v", tried, begun)
	if begun[0] == 0 || begun[1] == 0 || begun[2] == 0 {
		t.Errorf("Try never began anything of a kind: %v of %v", begun, tried)
	}
}

// tryStore is a store with one chunk of one MiB of data that is active.
func tryStore(t testing.TB) (*Store, []byte) {
	s := mustOpen(t, testOptions(disk.OS{}, t.TempDir()))
	must(t, s.Create(1, 1))
	p := disk.AlignedBuffer(1 << 20)
	rand.New(rand.NewSource(1)).Read(p)
	must(t, write(s, 1, 1, 0, p))
	return s, p
}

// waits reports whether f is still not done after a moment, and returns what waits for it.
func waits(t *testing.T, what string, f func() error) (end func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		t.Fatalf("%s did not wait for the operation under way: %v", what, err)
	case <-time.After(50 * time.Millisecond):
	}
	return func() {
		t.Helper()
		select {
		case err := <-done:
			must(t, err)
		case <-time.After(time.Minute):
			t.Fatalf("%s still waits after the operation has ended", what)
		}
	}
}

func TestTryHolds(t *testing.T) {
	s, p := tryStore(t)
	var r, r2 ReadOp
	var w WriteOp
	sums, sums2 := make([]uint32, 4), make([]uint32, 4)
	if !s.TryRead(&r, 1, 1, 0, 4*chunk.BlockSize, sums) || !s.TryRead(&r2, 1, 1, 0, 4*chunk.BlockSize, sums2) {
		t.Fatal("two reads of the same blocks do not begin")
	}
	r2.Abort()
	q := p[4<<10 : 8<<10]
	qs := chunk.AppendSums(nil, 4096, q)
	if s.TryWrite(&w, 1, 1, 4096, q, qs) {
		t.Fatal("a write begins while its block is being read")
	}
	// A writer that waits, and behind it a reader that must not overtake it.
	end := waits(t, "Write", func() error { return s.Write(1, 1, 4096, q, qs) })
	if s.TryRead(&r2, 1, 1, 4096, chunk.BlockSize, sums2[:1]) {
		t.Fatal("a read overtakes a write that waits")
	}
	r.Abort()
	end()

	if !s.TryWrite(&w, 1, 1, 4096, q, qs) {
		t.Fatal("a write does not begin")
	}
	if s.TryRead(&r, 1, 1, 0, 4*chunk.BlockSize, sums) {
		t.Fatal("a read begins while a block is being written")
	}
	end = waits(t, "Read", func() error { return s.Read(1, 1, 4096, 4096, disk.AlignedBuffer(4096), make([]uint32, 1)) })
	adopted := waits(t, "Adopt", func() error { return s.Adopt(1, 2) })
	if s.TryRead(&r, 1, 1, 1<<19, chunk.BlockSize, sums[:1]) {
		t.Fatal("an operation begins while the epoch waits to change")
	}
	w.Abort()
	end()
	adopted()
	if s.TryRead(&r, 1, 1, 0, chunk.BlockSize, sums[:1]) {
		t.Fatal("a stale read begins")
	}
	if s.TryRead(&r, 2, 1, 0, chunk.BlockSize, sums[:1]) {
		t.Fatal("a read of a missing chunk begins")
	}
	if !s.TryRead(&r, 1, 2, 0, chunk.BlockSize, sums[:1]) {
		t.Fatal("a read at the new epoch does not begin")
	}
	closed := waits(t, "Close", s.Close)
	if s.TryRead(&r2, 1, 2, 0, chunk.BlockSize, sums2[:1]) {
		t.Fatal("an operation begins while the store is being closed")
	}
	r.Abort()
	closed()
	if s.TryRead(&r, 1, 2, 0, chunk.BlockSize, sums[:1]) {
		t.Fatal("an operation begins on a closed store")
	}
}

func TestTryFlushShares(t *testing.T) {
	s, p := tryStore(t)
	var f, f2 FlushOp
	if begun, ok := s.TryFlush(&f, 1, 1); !begun || !ok {
		t.Fatal("a flush of unsynced data does not begin")
	}
	if begun, ok := s.TryFlush(&f2, 1, 1); begun || ok {
		t.Fatal("a second flush begins beside the first")
	}
	end := waits(t, "Flush", func() error { return s.Flush(1, 1) })
	must(t, f.Finish(unix.Fdatasync(f.FD)))
	end()
	if begun, ok := s.TryFlush(&f, 1, 1); begun || !ok {
		t.Fatal("a flush with nothing to sync is not done at once")
	}
	// A write that ends while a sync is under way is not covered by it.
	must(t, write(s, 1, 1, 0, p[:4096]))
	if begun, _ := s.TryFlush(&f, 1, 1); !begun {
		t.Fatal("flush does not begin")
	}
	must(t, write(s, 1, 1, 8192, p[:4096]))
	must(t, f.Finish(nil))
	if begun, _ := s.TryFlush(&f, 1, 1); !begun {
		t.Fatal("a flush takes a write for synced that came after the sync began")
	}
	f.Abort()
	if begun, _ := s.TryFlush(&f, 1, 1); !begun {
		t.Fatal("a flush takes an aborted one for done")
	}
	must(t, f.Finish(syscall.ECANCELED))
	if begun, ok := s.TryFlush(&f, 1, 1); begun || !ok {
		t.Fatal("a cancelled sync was not done again")
	}
	must(t, write(s, 1, 1, 0, p[:4096]))
	if begun, _ := s.TryFlush(&f, 1, 1); !begun {
		t.Fatal("flush does not begin")
	}
	wantCode(t, f.Finish(syscall.EIO), fserr.IO)
	wantCode(t, s.Flush(1, 1), fserr.IO)
	if s.Close() == nil {
		t.Error("Close of a failed store succeeds")
	}
}

func TestTryWriteFails(t *testing.T) {
	s, p := tryStore(t)
	var w WriteOp
	q := disk.AlignedBuffer(8 << 10)
	copy(q, p[100:])
	sums := chunk.AppendSums(nil, 0, q)
	begin := func(off uint32) {
		t.Helper()
		if !s.TryWrite(&w, 1, 1, off, q, sums) {
			t.Fatal("write does not begin")
		}
	}
	same := func(off uint32, want []byte) {
		t.Helper()
		got, err := read(s, 1, 1, off, uint32(len(want)))
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Fatal("other bytes")
		}
	}
	for _, err := range []error{nil, syscall.EINTR, syscall.EAGAIN, syscall.ECANCELED} {
		begin(0)
		must(t, w.Finish(512, err)) // the rest is written by Finish
		same(0, q)
		must(t, write(s, 1, 1, 0, p[:8<<10]))
	}
	// The disk is full after the first of two blocks: each block is the old or the new one.
	begin(0)
	if _, err := unix.Pwrite(w.FD, q[:4096], w.Offset); err != nil {
		t.Fatal(err)
	}
	wantCode(t, w.Finish(0, syscall.ENOSPC), fserr.NoSpace)
	same(0, append(bytes.Clone(q[:4096]), p[4096:8192]...))
	begin(0)
	wantCode(t, w.Finish(0, syscall.EIO), fserr.IO)
	if s.TryWrite(&w, 1, 1, 0, q, sums) {
		t.Fatal("a store that failed takes a write")
	}
	wantCode(t, s.Write(1, 1, 0, q, sums), fserr.IO)
	if s.Close() == nil {
		t.Error("Close of a failed store succeeds")
	}
}

// TestTryRefuses has what Try leaves to the blocking methods.
func TestTryRefuses(t *testing.T) {
	s, p := tryStore(t)
	var r ReadOp
	var w WriteOp
	q := p[:4096]
	sums := chunk.AppendSums(nil, 0, q)
	for name, off := range map[string]uint32{"unaligned": 512, "an extent that is not active": 12 << 20, "past the end": chunk.Size} {
		if s.TryWrite(&w, 1, 1, off, q, sums) {
			t.Errorf("%s: write begins", name)
		}
	}
	if s.TryWrite(&w, 1, 1, 0, q, []uint32{sums[0] + 1}) {
		t.Error("a write with a wrong checksum begins")
	}
	if s.TryRead(&r, 1, 1, chunk.Size-4096, 8192, make([]uint32, 2)) || s.TryRead(&r, 1, 1, 1, 4096, make([]uint32, 1)) {
		t.Error("a read out of bounds begins")
	}
	// What does not match is read again.
	if !s.TryRead(&r, 1, 1, 0, 4096, make([]uint32, 1)) {
		t.Fatal("read does not begin")
	}
	other := disk.AlignedBuffer(4096)
	copy(other, p[4096:8192])
	must(t, r.Finish(other))
	if !bytes.Equal(other, q) {
		t.Error("a block that did not match was not read again")
	}
	// Bad on the disk.
	must(t, s.Create(2, 1))
	must(t, write(s, 2, 1, 0, p[:8<<10]))
	flip(t, s.o, 2, 0, 17)
	if !s.TryRead(&r, 2, 1, 0, 4096, make([]uint32, 1)) {
		t.Fatal("read does not begin")
	}
	if _, err := unix.Pread(r.FD, other, r.Offset); err != nil {
		t.Fatal(err)
	}
	wantCode(t, r.Finish(other), fserr.BadChecksum)
	if s.TryRead(&r, 2, 1, 4096, 4096, make([]uint32, 1)) || s.TryWrite(&w, 2, 1, 0, q, sums) {
		t.Error("an operation on a chunk with a bad block begins")
	}
	// Holes are cleared, around data and in between.
	must(t, s.Punch(1, 1, 4096, 8192))
	got, hs := disk.AlignedBuffer(4*4096), make([]uint32, 4)
	copy(got, p[1000:])
	if ok, err := tryRead(s, &r, 1, 1, 0, got, hs); !ok || err != nil {
		t.Fatal(ok, err)
	}
	want := bytes.Clone(p[:4*4096])
	clear(want[4096:8192])
	if !bytes.Equal(got, want) || hs[1] != chunk.Hole {
		t.Error("hole in the middle of a read")
	}
	copy(got, p)
	if !s.TryRead(&r, 1, 1, 16<<20, 4*4096, hs) || r.From != r.To {
		t.Fatal("read of a hole does not begin, or wants I/O")
	}
	must(t, r.Finish(got))
	if !chunk.IsZero(got) {
		t.Error("a hole does not read as zeros")
	}
	must(t, s.Close())
	// The faulty disk must see every operation.
	f := mustOpen(t, testOptions(new(disk.Faulty), "/d"))
	must(t, f.Create(1, 1))
	must(t, write(f, 1, 1, 0, p))
	if f.TryRead(&r, 1, 1, 0, 4096, hs[:1]) || f.TryWrite(&w, 1, 1, 0, q, sums) {
		t.Error("an operation begins past the faulty disk")
	}
	must(t, f.Close())
}

// TestTryJoining has writes to a joining replica noted as fresh, so that a repair leaves them alone.
func TestTryJoining(t *testing.T) {
	s, p := tryStore(t)
	must(t, s.Join(1, 2))
	var w WriteOp
	q := disk.AlignedBuffer(4096)
	copy(q, p[77:])
	if ok, err := tryWrite(s, &w, 1, 2, 4096, q, chunk.AppendSums(nil, 4096, q)); !ok || err != nil {
		t.Fatal(ok, err)
	}
	var r ReadOp
	if s.TryRead(&r, 1, 2, 0, 4096, make([]uint32, 1)) {
		t.Error("a joining replica is read")
	}
	src := p[1<<19 : 1<<19+3*4096]
	n, err := s.RepairWrite(1, 2, 0, src, chunk.AppendSums(nil, 0, src))
	must(t, err)
	if n != 2 {
		t.Errorf("repair wrote %d blocks of 3 of which one is fresh", n)
	}
	must(t, s.Promote(1, 2))
	got, err := read(s, 1, 2, 4096, 4096)
	must(t, err)
	if !bytes.Equal(got, q) {
		t.Error("the repair replaced a fresh block")
	}
	must(t, s.Close())
}

func TestTryAllocs(t *testing.T) {
	s, p := tryStore(t)
	defer s.Close()
	var r ReadOp
	var w WriteOp
	var f FlushOp
	buf, sums := disk.AlignedBuffer(16<<10), make([]uint32, 4)
	copy(buf, p)
	fresh := chunk.AppendSums(nil, 0, buf)
	for name, op := range map[string]func() (bool, error){
		"read":  func() (bool, error) { return tryRead(s, &r, 1, 1, 0, buf, sums) },
		"write": func() (bool, error) { return tryWrite(s, &w, 1, 1, 0, buf, fresh) },
		"flush": func() (bool, error) { return tryFlush(s, &f, 1, 1) },
	} {
		n := testing.AllocsPerRun(200, func() {
			if ok, err := op(); !ok || err != nil {
				t.Fatal(ok, err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkTry(b *testing.B) {
	s := benchStore(b)
	buf, sums := disk.AlignedBuffer(4096), make([]uint32, 1)
	sum := chunk.AppendSums(nil, 0, buf)
	var r ReadOp
	var w WriteOp
	// Everything but the I/O and its checksum.
	b.Run("op=read", func(b *testing.B) {
		b.ReportAllocs()
		for off := uint32(0); b.Loop(); off = (off + 4096*37) % chunk.Size {
			if !s.TryRead(&r, 1, 1, off, 4096, sums) {
				b.Fatal("read does not begin")
			}
			r.Abort()
		}
	})
	must(b, write(s, 1, 1, 0, buf))
	b.Run("op=write", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if !s.TryWrite(&w, 1, 1, 0, buf, sum) {
				b.Fatal("write does not begin")
			}
			if err := w.Finish(len(buf), nil); err != nil && !errors.Is(err, fserr.NoSpace) {
				b.Fatal(err)
			}
		}
	})
}

// TestTryFlushAfterAFailedOne: a flush that comes as another one of the chunk fails does not sync once more, since the disk would say that all is well.
func TestTryFlushAfterAFailedOne(t *testing.T) {
	s := mustOpen(t, testOptions(disk.OS{}, t.TempDir()))
	defer s.Close()
	must(t, s.Create(1, 1))
	p := make([]byte, chunk.BlockSize)
	must(t, s.Write(1, 1, 0, p, chunk.AppendSums(nil, 0, p)))
	e := s.find(1)
	im := e.img
	im.flushMu.Lock() // as who ends the other flush has it
	type outcome struct{ begun, ok bool }
	got := make(chan outcome, 1)
	flush := func() {
		var op FlushOp
		begun, ok := s.TryFlush(&op, 1, 1)
		if begun {
			op.Abort()
		}
		got <- outcome{begun, ok}
	}
	go flush()
	for end := time.Now().Add(time.Minute); e.gate.TryLock(); time.Sleep(time.Millisecond) { // until it has looked whether the disk is in order
		e.gate.Unlock()
		select {
		case <-got: // the look at the gate was in its way
			go flush()
		default:
		}
		if time.Now().After(end) {
			t.Fatal("nobody flushes")
		}
	}
	_ = s.fail("sync", 1, errors.New("lost"))
	im.flushMu.Unlock()
	if x := <-got; x.begun || x.ok {
		t.Errorf("begun %t, done %t, want it left to Flush, which fails", x.begun, x.ok)
	}
	if err := s.Flush(1, 1); err == nil {
		t.Error("flushed on a disk that has failed")
	}
}
