package client

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

func TestWriteGoesToAllReplicas(t *testing.T) {
	w := newWorld(t, 1, 3, 3, 2)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	want := fill(3<<20+123, 1)
	at := int64(chunk.Size - 1<<20 - 77) // crosses into the second chunk, unaligned
	write(t, f, want, at)
	if got := read(t, f, at, len(want)+5000); !bytes.Equal(got, want) {
		t.Fatalf("read %d bytes, want %d equal ones (short at the end of the file)", len(got), len(want))
	}
	if got := read(t, f, at-4096, 4096); !chunk.IsZero(got) || len(got) != 4096 {
		t.Fatal("the hole before the data does not read as zeros")
	}
	if got := read(t, f, at+int64(len(want)), 10); len(got) != 0 {
		t.Fatalf("read %d bytes past the end", len(got))
	}
	for i := range uint32(2) {
		a := w.cs[1].content(f.Ino(), i, chunk.Size)
		for s := id.ServerID(2); s <= 3; s++ {
			if !bytes.Equal(a, w.cs[s].content(f.Ino(), i, chunk.Size)) {
				t.Fatalf("chunk %d differs on %v", i, s)
			}
		}
	}
	attr, err := c.GetAttr(t.Context(), f.Ino())
	if err != nil || int64(attr.Size) != at+int64(len(want)) {
		t.Fatalf("attributes %v, %v", attr, err)
	}
}

func TestReplicaLostIsDropped(t *testing.T) {
	w := newWorld(t, 1, 3, 3, 2)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	write(t, f, fill(8192, 1), 0)
	w.cs[2].stop()
	want := fill(8192, 2)
	write(t, f, want, 0)
	if r := w.replicas(f.Ino(), 0); slices.Contains(r, 2) || len(r) != 2 {
		t.Fatalf("replicas %v", r)
	}
	if !bytes.Equal(read(t, f, 0, 8192), want) {
		t.Fatal("content differs")
	}
	if n := w.count("drop"); n != 1 {
		t.Fatalf("%d drops", n)
	}
}

func TestTooFewWaitsAndLosesNothing(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 2)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	write(t, f, fill(4096, 1), 0)
	w.cs[1].stop()
	done := make(chan error, 1)
	want := fill(4096, 2)
	go func() {
		_, _, err := f.WriteAt(context.Background(), want, 0, false)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("write ended with %v while a replica that is needed was away", err)
	case <-time.After(200 * time.Millisecond):
	}
	w.cs[1].start()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for s := id.ServerID(1); s <= 2; s++ {
		if !bytes.Equal(w.cs[s].content(f.Ino(), 0, 4096), want) {
			t.Fatalf("%v differs", s)
		}
	}
}

func TestBrokenConnectionIsMadeAgain(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	write(t, f, fill(4096, 1), 0)
	w.cs[1].stop()
	w.cs[1].start()
	write(t, f, fill(4096, 2), 0)
	if n := w.count("drop"); n != 0 {
		t.Fatalf("%d drops", n)
	}
}

func TestSlowReplicaIsDropped(t *testing.T) {
	t.Parallel() // it waits more than it works
	w := newWorld(t, 1, 3, 3, 2)
	c := w.dial(t, func(o *Options) { o.WriteTimeout = 5 * time.Second }) // less may pass on a busy machine without anybody's fault
	f := create(t, c, "a")
	stop := make(chan struct{})
	defer close(stop)
	w.cs[3].set(func() {
		w.cs[3].before = func(t wire.Type, _ *wire.DataRequest) fserr.Code {
			if t == wire.Write {
				<-stop
			}
			return fserr.OK
		}
	})
	write(t, f, fill(4096, 1), 0)
	if r := w.replicas(f.Ino(), 0); slices.Contains(r, 3) {
		t.Fatalf("replicas %v", r)
	}
}

func TestStaleEpochLearnsTheLayout(t *testing.T) {
	w := newWorld(t, 1, 3, 2, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	write(t, f, fill(4096, 1), 0)
	// The planner joins server 3 behind the client's back.
	w.mu.Lock()
	ch := w.inodes[uint64(f.Ino())].chunks[0]
	ch.Epoch++
	ch.Replicas = append(ch.Replicas, &msg.Replica{Server: 3, Joining: true, Addr: w.cs[3].addr})
	w.mu.Unlock()
	w.cs[3].create(id.ChunkID(ch.Id), 2)
	w.cs[1].set(func() { w.cs[1].chunks[id.ChunkID(ch.Id)].epoch = 2 })
	want := fill(4096, 2)
	write(t, f, want, 0)
	for s := id.ServerID(1); s <= 3; s++ {
		if !bytes.Equal(w.cs[s].content(f.Ino(), 0, 4096), want) {
			t.Fatalf("%v differs", s)
		}
	}
	if err := f.Fsync(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if n := w.flushCounts()[3]; n != 1 {
		t.Fatalf("the joining replica was flushed %d times", n)
	}
	w.cs[3].set(func() { w.cs[3].reads = 0 })
	read(t, f, 0, 4096)
	if w.cs[3].readCount() != 0 {
		t.Fatal("a joining replica was read")
	}
}

func TestReadFailsOver(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	want := fill(10000, 1)
	write(t, f, want, 100)
	for s := id.ServerID(1); s <= 2; s++ {
		w.cs[s].set(func() { w.cs[s].damage = true })
		for range 4 {
			if !bytes.Equal(read(t, f, 100, len(want)), want) {
				t.Fatalf("damage on %v came through", s)
			}
		}
		w.cs[s].set(func() { w.cs[s].damage = false })
	}
	w.cs[1].stop()
	if !bytes.Equal(read(t, f, 100, len(want)), want) {
		t.Fatal("content differs")
	}
	w.cs[2].set(func() { w.cs[2].damage = true })
	w.cs[1].start()
	w.cs[1].set(func() { w.cs[1].damage = true })
	if _, err := f.ReadAt(t.Context(), make([]byte, 10), 200); fserr.Of(err) != fserr.IO {
		t.Fatalf("read of damage everywhere: %v", err)
	}
}

func TestNoSpace(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 2)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	old := fill(8192, 1)
	write(t, f, old, 0)
	full := func(t wire.Type, _ *wire.DataRequest) fserr.Code {
		if t == wire.Write {
			return fserr.NoSpace
		}
		return fserr.OK
	}
	w.cs[2].set(func() { w.cs[2].before = full })
	if _, _, err := f.WriteAt(t.Context(), fill(4096, 2), 2048, false); fserr.Of(err) != fserr.NoSpace {
		t.Fatalf("write to one full server: %v", err)
	}
	for s := id.ServerID(1); s <= 2; s++ {
		if !bytes.Equal(w.cs[s].content(f.Ino(), 0, 8192), old) {
			t.Fatalf("%v was changed", s)
		}
	}
	// What was a hole is one again, and takes no room where there was some.
	if _, _, err := f.WriteAt(t.Context(), fill(12288, 2), 6144, false); fserr.Of(err) != fserr.NoSpace {
		t.Fatalf("write to one full server: %v", err)
	}
	for s := id.ServerID(1); s <= 2; s++ {
		if got := w.cs[s].content(f.Ino(), 0, 20480); !bytes.Equal(got[:8192], old) || !chunk.IsZero(got[8192:]) {
			t.Fatalf("%v was changed", s)
		}
		w.cs[s].set(func() {
			for c, ch := range w.cs[s].chunks {
				if len(ch.blocks) != 2 {
					t.Errorf("chunk %v on %v has %d blocks, want 2", c, s, len(ch.blocks))
				}
			}
		})
	}
	w.cs[1].set(func() { w.cs[1].before = full })
	if _, _, err := f.WriteAt(t.Context(), fill(4096, 2), 0, false); fserr.Of(err) != fserr.NoSpace {
		t.Fatalf("write to full servers: %v", err)
	}
}

func TestNotReadyIsRetried(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	var n atomic.Int32
	w.cs[1].set(func() {
		w.cs[1].before = func(wire.Type, *wire.DataRequest) fserr.Code {
			if n.Add(1) <= 2 {
				return fserr.NotReady
			}
			return fserr.OK
		}
	})
	write(t, f, fill(4096, 1), 0)
	w.cs[1].set(func() {
		w.cs[1].before = func(wire.Type, *wire.DataRequest) fserr.Code { return fserr.BadChecksum }
	})
	write(t, f, fill(4096, 2), 0) // dropped in the end
	if r := w.replicas(f.Ino(), 0); slices.Contains(r, 1) {
		t.Fatalf("replicas %v", r)
	}
}

func TestFsync(t *testing.T) {
	w := newWorld(t, 1, 3, 3, 1)
	c := w.dial(t, func(o *Options) { o.FlushEvery = time.Hour })
	f := create(t, c, "a")
	g := open(t, c, f, true)
	write(t, g, fill(4096, 1), 0)
	write(t, g, fill(4096, 1), chunk.Size)
	w.cs[3].set(func() {
		w.cs[3].before = func(t wire.Type, _ *wire.DataRequest) fserr.Code {
			if t == wire.Flush {
				return fserr.IO
			}
			return fserr.OK
		}
	})
	if err := f.Fsync(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	for s := id.ServerID(1); s <= 2; s++ {
		w.cs[s].set(func() {
			for c, ch := range w.cs[s].chunks {
				if ch.dirty {
					t.Errorf("chunk %v on %v was not flushed", c, s)
				}
			}
		})
	}
	if r := w.replicas(f.Ino(), 1); slices.Contains(r, 3) {
		t.Fatalf("replicas %v", r)
	}
	if size := w.inode(uint64(f.Ino())).attr.Size; size != chunk.Size+4096 {
		t.Fatalf("size at the metadata server %d", size)
	}
	flushes, reports := w.flushCounts(), w.count("flushattr")
	for range 3 {
		if err := f.Fsync(t.Context(), false); err != nil {
			t.Fatal(err)
		}
	}
	if w.flushCounts() != flushes || w.count("flushattr") != reports {
		t.Fatal("fsync with nothing to do asked somebody")
	}
}

func TestInterruptedWriteSettles(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 2)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	write(t, f, fill(4096, 1), 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.cs[2].set(func() {
		w.cs[2].before = func(t wire.Type, _ *wire.DataRequest) fserr.Code {
			if t == wire.Write {
				cancel()
				return fserr.IO
			}
			return fserr.OK
		}
	})
	want := fill(4096, 2)
	buf := slices.Clone(want)
	_, _, err := f.WriteAt(ctx, buf, 0, false)
	if fserr.Of(err) != fserr.Interrupted {
		t.Fatalf("write with a replica that fails and is needed: %v", err)
	}
	clear(buf) // the caller has it back
	w.cs[2].set(func() { w.cs[2].before = nil })
	if !bytes.Equal(read(t, f, 0, 4096), want) { // waits for the blocks
		t.Fatal("content differs")
	}
	for s := id.ServerID(1); s <= 2; s++ {
		if !bytes.Equal(w.cs[s].content(f.Ino(), 0, 4096), want) {
			t.Fatalf("%v differs", s)
		}
	}
}

func TestCloseWithUnequalReplicasLeavesTheSessionToExpire(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 2)
	c := w.dial(t, func(o *Options) { o.CloseTimeout = 300 * time.Millisecond })
	f := create(t, c, "a")
	write(t, f, fill(4096, 1), 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.cs[2].set(func() {
		w.cs[2].before = func(t wire.Type, _ *wire.DataRequest) fserr.Code {
			if t == wire.Write {
				cancel()
				return fserr.IO
			}
			return fserr.OK
		}
	})
	if _, _, err := f.WriteAt(ctx, fill(4096, 2), 0, false); fserr.Of(err) != fserr.Interrupted {
		t.Fatalf("write with a replica that fails and is needed: %v", err)
	}
	if err := c.Close(); err == nil {
		t.Error("a session with unequal replicas was closed cleanly")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sessions[uint64(f.in.s.id)] == nil {
		t.Error("the session is gone, so nobody settles the replicas")
	}
}

// A layout asked for before a drop, and answered after it, must not bring the dropped replica back.
func TestDropOutlivesOlderLayouts(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	write(t, f, fill(4096, 1), 0)
	loc, _ := f.in.lookup(0)
	var late *msg.LayoutReply
	var gen uint64
	w.setBefore(func(req *msg.MetaRequest) (fserr.Code, bool) {
		if req.GetDropReplica() != nil {
			f.in.forgetLayout() // by another operation, which asks for it again
			gen = f.in.layoutGeneration()
			in := w.inode(uint64(f.Ino()))
			w.mu.Lock()
			defer w.mu.Unlock()
			late = w.layout(in, 0, 1)
		}
		return fserr.OK, false
	})
	if ok, err := f.in.drop(t.Context(), loc, 2, "test"); !ok || err != nil {
		t.Fatalf("drop: %t, %v", ok, err)
	}
	f.in.learnLayout(late, gen)
	if now, _ := f.in.lookup(0); now != nil && now.has(2) {
		t.Error("the dropped replica is back")
	}
}

func TestTruncate(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	want := fill(20000, 1)
	write(t, f, want, 0)
	write(t, f, want, chunk.Size)
	set := func(n uint64) {
		t.Helper()
		attr, err := c.SetAttr(t.Context(), nil, &msg.SetAttr{Ino: uint64(f.Ino()), Size: &n})
		if err != nil || attr.Size != n {
			t.Fatalf("truncate to %d: %v, %v", n, attr, err)
		}
	}
	set(5000)
	set(30000)
	got := read(t, f, 0, 40000)
	if len(got) != 30000 || !bytes.Equal(got[:5000], want[:5000]) || !chunk.IsZero(got[5000:]) {
		t.Fatal("what was cut off came back")
	}
	if w.count("punchdone") != 1 {
		t.Fatalf("%d punches reported", w.count("punchdone"))
	}
	write(t, f, want[:10], 50000)
	if got := read(t, f, 0, 60000); len(got) != 50010 || !chunk.IsZero(got[5000:50000]) {
		t.Fatal("the gap does not read as zeros")
	}
	g, err := c.Open(t.Context(), nil, f.Ino(), true, true)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, g, 0, 10); len(got) != 0 {
		t.Fatalf("%d bytes after O_TRUNC", len(got))
	}
}

func TestFailedWriteLeavesNothingPastTheEnd(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	write(t, f, fill(100, 1), 0)
	// The second piece finds no space: the first stays behind, past the end, if the write crosses pieces.
	var n atomic.Int32
	w.cs[1].set(func() {
		w.cs[1].before = func(t wire.Type, r *wire.DataRequest) fserr.Code {
			if t == wire.Write && n.Add(1) == 1 {
				s := w.cs[1]
				s.mu.Lock()
				s.chunks[r.Chunk].put(r.Offset, fill(int(r.Length), 9))
				s.mu.Unlock()
				return fserr.NoSpace
			}
			return fserr.OK
		}
	})
	if _, _, err := f.WriteAt(t.Context(), fill(4096, 2), 4096, false); fserr.Of(err) != fserr.NoSpace {
		t.Fatal(err)
	}
	write(t, f, fill(10, 3), 16384)
	if got := read(t, f, 0, 20000); len(got) != 16394 || !chunk.IsZero(got[100:16384]) {
		t.Fatal("what a failed write left can be read")
	}
}

func TestPunchAndSeek(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	want := fill(1<<20, 1)
	write(t, f, want, 0)
	write(t, f, want, 2*chunk.Size)
	ctx := t.Context()
	if err := f.Fallocate(ctx, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 8192); err != nil {
		t.Fatal(err)
	}
	if err := f.Fallocate(ctx, unix.FALLOC_FL_ZERO_RANGE, 3*chunk.Size, 100); err != nil {
		t.Fatal(err)
	}
	clear(want[4096:12288])
	if !bytes.Equal(read(t, f, 0, len(want)), want) {
		t.Fatal("content differs")
	}
	for _, tt := range []struct {
		off    int64
		whence int
		want   int64
		code   fserr.Code
	}{
		{0, unix.SEEK_DATA, 0, 0}, {0, unix.SEEK_HOLE, 4096, 0}, {5000, unix.SEEK_DATA, 12288, 0}, {5000, unix.SEEK_HOLE, 5000, 0},
		{12288, unix.SEEK_HOLE, 1 << 20, 0}, {1 << 20, unix.SEEK_DATA, 2 * chunk.Size, 0},
		{2 * chunk.Size, unix.SEEK_HOLE, 2*chunk.Size + 1<<20, 0}, {2*chunk.Size + 1<<20, unix.SEEK_DATA, 0, fserr.NoDevice},
		{3*chunk.Size + 100, unix.SEEK_HOLE, 0, fserr.NoDevice}, {3*chunk.Size + 99, unix.SEEK_HOLE, 3*chunk.Size + 99, 0},
	} {
		got, err := f.Seek(ctx, tt.off, tt.whence)
		if fserr.Of(err) != tt.code || got != tt.want {
			t.Errorf("seek %d from %d: %d, %v, want %d, %v", tt.whence, tt.off, got, err, tt.want, tt.code)
		}
	}
	for mode, code := range map[uint32]fserr.Code{0: 0, unix.FALLOC_FL_KEEP_SIZE: 0, unix.FALLOC_FL_PUNCH_HOLE: fserr.NotSupported, unix.FALLOC_FL_COLLAPSE_RANGE: fserr.NotSupported} {
		if err := f.Fallocate(ctx, mode, 0, 5*chunk.Size); fserr.Of(err) != code {
			t.Errorf("fallocate mode %#x: %v", mode, err)
		}
	}
	if attr, err := c.GetAttr(ctx, f.Ino()); err != nil || attr.Size != 5*chunk.Size {
		t.Fatalf("size %v, %v", attr, err)
	}
}

func TestConcurrentWritesOfOneBlockLeaveReplicasEqual(t *testing.T) {
	w := newWorld(t, 1, 3, 3, 2)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for k := range 30 {
				if _, _, err := f.WriteAt(context.Background(), fill(3000, byte(i*31+k)), int64(i*500), false); err != nil {
					t.Error(err)
				}
				if i == 3 && k == 10 {
					w.cs[3].stop()
				}
				if _, err := f.ReadAt(context.Background(), make([]byte, 5000), 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if !bytes.Equal(w.cs[1].content(f.Ino(), 0, 8192), w.cs[2].content(f.Ino(), 0, 8192)) {
		t.Fatal("replicas differ")
	}
}

func TestSplit(t *testing.T) {
	for _, tt := range []struct{ off, n, limit int64 }{
		{0, 1, 1 << 20}, {5, 3 << 20, 1 << 20}, {chunk.Size - 1, 2, 1 << 20}, {chunk.Size - 1<<20 - 3, 4 << 20, 1 << 20}, {7, 3 * chunk.Size, chunk.Size},
	} {
		at := tt.off
		for _, p := range split(nil, tt.off, tt.n, tt.limit) {
			if p.Length == 0 || int64(p.Length) > tt.limit || int64(p.Index)*chunk.Size+int64(p.Offset) != at || int64(p.Offset)+int64(p.Length) > chunk.Size {
				t.Fatalf("%+v: piece %+v at %d", tt, p, at)
			}
			at += int64(p.Length)
			if at != tt.off+tt.n && at%chunk.BlockSize != 0 {
				t.Fatalf("%+v: piece %+v ends inside a block", tt, p)
			}
		}
		if at != tt.off+tt.n {
			t.Fatalf("%+v: pieces end at %d", tt, at)
		}
	}
}

func TestRangeLock(t *testing.T) {
	var l rangeLock
	ctx := t.Context()
	r1, _ := l.lock(ctx, 0, 10, false)
	r2, _ := l.lock(ctx, 5, 6, false)
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := l.lock(short, 6, 7, true); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a write was let in beside reads: %v", err)
	}
	w, _ := l.lock(ctx, 11, 12, true)
	l.unlock(r1)
	l.unlock(r2)
	l.unlock(w)
	var inside [8]atomic.Int32
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				first := int64((g + i) % 7)
				h, err := l.lock(ctx, first, first+1, true)
				if err != nil {
					t.Error(err)
					return
				}
				if inside[first].Add(1) != 1 || inside[first+1].Add(1) != 1 {
					t.Error("two writes in one block")
				}
				inside[first].Add(-1)
				inside[first+1].Add(-1)
				l.unlock(h)
			}
		})
	}
	wg.Wait()
	if len(l.all) != 0 {
		t.Fatalf("%d left", len(l.all))
	}
}
