package client

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// shared makes a file that two mounts have open for writing.
func shared(t *testing.T, w *world, tune func(*Options)) (a, b *File) {
	t.Helper()
	a = create(t, w.dial(t, tune), "a")
	write(t, a, fill(8192, 1), 0)
	b = open(t, w.dial(t, tune), a, true)
	eventually(t, "the lease to be shared", func() bool { m, _ := a.in.state(); return m == msg.Mode_SHARED_WRITE })
	return a, b
}

// patient has a replica that is not ready waited for, on however busy a machine.
func patient(o *Options) { o.Patience = time.Minute }

// TestNamedChanges: a change under a shared-write lease keeps its name however often it is sent, and servers are told which are over.
func TestNamedChanges(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	a, _ := shared(t, w, patient)
	var mu sync.Mutex
	var seen []wire.DataRequest
	refuse := 2
	w.cs[1].set(func() {
		w.cs[1].before = func(typ wire.Type, r *wire.DataRequest) fserr.Code {
			mu.Lock()
			defer mu.Unlock()
			if typ != wire.Write && typ != wire.Punch && typ != wire.Read {
				return fserr.OK
			}
			seen = append(seen, *r)
			if typ == wire.Write && refuse > 0 {
				refuse--
				return fserr.NotReady
			}
			return fserr.OK
		}
	})
	write(t, a, fill(100, 2), 0)
	if err := a.Fallocate(context.Background(), 3, 4096, 4096); err != nil {
		t.Fatal(err)
	}
	read(t, a, 0, 100)
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != 5 {
		t.Fatalf("%d requests at the first replica, want a write three times, a punch and a read", len(seen))
	}
	for i, r := range seen {
		want := wire.DataRequest{Seq: 1, Low: 1}
		switch i {
		case 3:
			want = wire.DataRequest{Seq: 2, Low: 2}
		case 4:
			want = wire.DataRequest{}
		}
		if r.Flags != wire.Ordered || r.Forward != [4]id.ServerID{2} || r.Seq != want.Seq || r.Low != want.Low || r.Recent != 0 {
			t.Errorf("request %d: %+v", i, r)
		}
	}
}

func TestOrdinals(t *testing.T) {
	var n ordinals
	tell := func(seq uint64, c id.ChunkID) wire.DataRequest {
		r := wire.DataRequest{Chunk: c}
		n.tell(&r, seq)
		return wire.DataRequest{Seq: r.Seq, Low: r.Low, Recent: r.Recent}
	}
	check := func(seq uint64, c id.ChunkID, low uint64, recent uint32) {
		t.Helper()
		if r := tell(seq, c); r.Seq != seq || r.Low != low || r.Recent != recent {
			t.Errorf("change %d of chunk %v: %+v, want low %d, recent %d", seq, c, r, low, recent)
		}
	}
	a, b, c := n.take(7), n.take(8), n.take(8)
	check(a, 7, a, 0)
	check(c, 8, a, uint32(c-b))
	n.end(b)
	check(c, 8, a, 0)
	check(c, 7, a, uint32(c-a)) // its chunk was cut off and made anew
	n.end(a)
	check(c, 7, c, 0)
	n.end(c)
	if len(n.under) != 0 {
		t.Errorf("%d are remembered when all are over", len(n.under))
	}
}

// TestOrderedChangeStaysOrdered: a change that was sent under a shared-write lease and is not over goes on through the first replica when the lease
// is exclusive again: what the first one may still have under way at others, only that ends.
func TestOrderedChangeStaysOrdered(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	a, b := shared(t, w, patient)
	var mu sync.Mutex
	var flags []wire.DataFlags
	held := true
	w.cs[1].set(func() {
		w.cs[1].before = func(typ wire.Type, r *wire.DataRequest) fserr.Code {
			mu.Lock()
			defer mu.Unlock()
			if typ != wire.Write {
				return fserr.OK
			}
			flags = append(flags, r.Flags)
			if held {
				return fserr.NotReady
			}
			return fserr.OK
		}
	})
	done := make(chan error, 1)
	go func() {
		_, _, err := a.WriteAt(context.Background(), fill(100, 2), 0, false)
		done <- err
	}()
	eventually(t, "the write to be sent", func() bool { mu.Lock(); defer mu.Unlock(); return len(flags) > 0 })
	if err := b.Release(context.Background()); err != nil {
		t.Fatal(err)
	}
	w.expire(uint64(b.in.s.id))
	session := uint64(a.in.s.id)
	w.call(session, &msg.Callback{Kind: msg.Callback_UPGRADE, Ino: uint64(a.Ino()), Lease: w.inode(uint64(a.Ino())).leases[session], Mode: msg.Mode_EXCLUSIVE_WRITE})
	eventually(t, "the lease to be exclusive", func() bool { m, _ := a.in.state(); return m == msg.Mode_EXCLUSIVE_WRITE })
	mu.Lock()
	held = false
	mu.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if slices.Contains(flags, 0) {
		t.Errorf("sent with flags %v: it went another way", flags)
	}
}

// TestRecallWaitsForDoubt: while some replicas may have a write and others not, the lease is not shared: who reads would see what may be gone again.
func TestRecallWaitsForDoubt(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 2) // nobody may be dropped
	a := create(t, w.dial(t, nil), "a")
	write(t, a, fill(8192, 1), 0)
	var mu sync.Mutex
	held, tries := true, 0
	w.cs[2].set(func() {
		w.cs[2].before = func(typ wire.Type, r *wire.DataRequest) fserr.Code {
			mu.Lock()
			defer mu.Unlock()
			if typ == wire.Write && held {
				tries++
				return fserr.NotReady
			}
			return fserr.OK
		}
	})
	done := make(chan error, 1)
	go func() {
		_, _, err := a.WriteAt(context.Background(), fill(100, 2), 0, false)
		done <- err
	}()
	eventually(t, "the write to be tried twice", func() bool { mu.Lock(); defer mu.Unlock(); return tries > 1 })
	opened := make(chan *File, 1)
	other := w.dial(t, nil)
	go func() {
		b, err := other.Open(context.Background(), nil, a.Ino(), true, false)
		if err != nil {
			t.Error(err)
		}
		opened <- b
	}()
	select {
	case <-opened:
		t.Error("the file was opened by another mount while a write of the first was in doubt")
	case <-time.After(300 * time.Millisecond):
	}
	mu.Lock()
	held = false
	mu.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b := <-opened
	if got := read(t, b, 0, 100); !bytes.Equal(got, fill(100, 2)) {
		t.Error("the other mount reads something else")
	}
}

// TestReadDropsWhatLacks: a reader, too, has a replica dropped that keeps the first one from showing what it has.
func TestReadDropsWhatLacks(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	_, b := shared(t, w, nil)
	w.cs[1].set(func() {
		w.cs[1].lacks = func(r *wire.DataRequest) (id.ServerID, fserr.Code) {
			if slices.Contains(r.Forward[:], 2) {
				return 2, fserr.Unavailable
			}
			return 0, fserr.OK
		}
	})
	if got := read(t, b, 0, 100); !bytes.Equal(got, fill(100, 1)) {
		t.Error("other bytes")
	}
	if n := w.count("drop"); n != 1 {
		t.Errorf("%d replicas dropped", n)
	}
}
