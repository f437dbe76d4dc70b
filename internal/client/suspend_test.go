package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"runtime"
	"testing"
	"time"

	"varve/internal/bond"
	"varve/internal/fserr"
	"varve/internal/wire/msg"
)

// handOver suspends a client and returns another one that goes on, as another process would.
func handOver(t *testing.T, w *world, c *Client) *Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	x, err := c.Suspend(ctx)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	var y Suspended
	if err := json.Unmarshal(b, &y); err != nil {
		t.Fatal(err)
	}
	return w.dial(t, func(o *Options) { o.Resume, o.FlushEvery = &y, time.Hour })
}

func restoreFile(t *testing.T, c *Client, f *File) *File {
	t.Helper()
	g, err := c.RestoreFile(f.Ino(), f.write, f.Save())
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func same(t *testing.T, f *File, off int64, want []byte) {
	t.Helper()
	if got := read(t, f, off, len(want)); !bytes.Equal(got, want) {
		t.Errorf("read of %d at %d answers something else, %d bytes", len(want), off, len(got))
	}
}

// TestSuspend: another client goes on with the session: with files that are open, their sizes, what is not flushed, and what nobody was told of yet.
func TestSuspend(t *testing.T) {
	w := newWorld(t, 1, 3, 3, 1)
	c := w.dial(t, func(o *Options) { o.FlushEvery = time.Hour })
	f, idle := create(t, c, "a"), create(t, c, "idle")
	r := open(t, c, f, false)
	write(t, f, fill(8192, 1), 0)
	if err := idle.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	session := c.Session()
	d := handOver(t, w, c)
	g, h := restoreFile(t, d, f), restoreFile(t, d, r)
	d.Restored()
	if d.Session() != session {
		t.Errorf("session %d, want %d", d.Session(), session)
	}
	if in := g.in; in.writers != 1 || in.readers != 1 || in.refs != 2 || in.mode != msg.Mode_EXCLUSIVE_WRITE || in.size != 8192 || len(in.unflushed) != 1 {
		t.Errorf("restored: %d writers, %d readers, %d users, mode %v, size %d, %d chunks not flushed", in.writers, in.readers, in.refs, in.mode, in.size, len(in.unflushed))
	}
	if d.sess.Load().idle.Len() != 1 {
		t.Errorf("%d leases of files that are not open, want 1", d.sess.Load().idle.Len())
	}
	same(t, h, 0, fill(8192, 1))
	write(t, g, fill(4096, 2), 8192)
	same(t, h, 8192, fill(4096, 2))
	powerLoss(w, g, 0) // of what was written through the other client too
	if err := g.Fsync(t.Context(), true); !errors.Is(err, fserr.IO) {
		t.Errorf("flush after a loss of power: %v", err)
	}
	e := handOver(t, w, d)
	g, h = restoreFile(t, e, g), restoreFile(t, e, h)
	e.Restored()
	if err := g.Fsync(t.Context(), true); err != nil {
		t.Errorf("a handle was told twice: %v", err)
	}
	if err := h.Fsync(t.Context(), true); !errors.Is(err, fserr.IO) {
		t.Errorf("a handle that was not told: %v", err)
	}
	k := create(t, e, "later") // with a sequence number of its own
	write(t, k, fill(4096, 3), 0)
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

// TestSuspendContinue: a client that was suspended for nothing goes on.
func TestSuspendContinue(t *testing.T) {
	w := newWorld(t, 1, 3, 3, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	write(t, f, fill(4096, 1), 0)
	for range 3 {
		if _, err := c.Suspend(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Suspend(t.Context()); err == nil {
			t.Fatal("suspended twice")
		}
		c.Continue()
		c.Continue() // of no effect
		write(t, create(t, c, time.Now().String()), fill(4096, 2), 0)
		write(t, f, fill(4096, 1), 0)
	}
	same(t, f, 0, fill(4096, 1))
}

// TestSuspendRecall: a recall that comes while files are being restored finds them open.
func TestSuspendRecall(t *testing.T) {
	w := newWorld(t, 1, 3, 3, 1)
	c, other := w.dial(t, nil), w.dial(t, nil)
	f := create(t, c, "a")
	write(t, f, fill(4096, 1), 0)
	d := handOver(t, w, c)
	opened := make(chan error, 1)
	go func() {
		g, err := other.Open(t.Context(), nil, f.Ino(), true, false)
		if err == nil {
			err = g.Release(t.Context())
		}
		opened <- err
	}()
	time.Sleep(50 * time.Millisecond) // the recall is under way
	g := restoreFile(t, d, f)
	d.Restored()
	select {
	case err := <-opened:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the recall was not answered")
	}
	write(t, g, fill(4096, 2), 0)
	same(t, g, 0, fill(4096, 2))
}

// TestSuspendLost: files of a session that was lost before stay dead, and those of one that is lost meanwhile are.
func TestSuspendLost(t *testing.T) {
	w := newWorld(t, 1, 3, 3, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	w.expire(uint64(c.Session()))
	if _, _, err := f.WriteAt(t.Context(), fill(4096, 2), 0, false); fserr.Of(err) != fserr.Stale {
		t.Fatalf("write under a lost session: %v", err)
	}
	g := open(t, c, f, true)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	x, err := c.Suspend(ctx)
	if err != nil {
		t.Fatal(err)
	}
	w.expire(uint64(x.Session))
	d := w.dial(t, func(o *Options) { o.Resume = x })
	dead, lost := restoreFile(t, d, f), restoreFile(t, d, g)
	d.Restored()
	for _, f := range []*File{dead, lost} {
		if _, _, err := f.WriteAt(ctx, fill(4096, 2), 0, false); fserr.Of(err) != fserr.Stale {
			t.Errorf("write under a lost session: %v", err)
		}
		_ = f.Release(ctx) // it may say that it is dead
	}
	write(t, open(t, d, f, true), fill(4096, 2), 0)
}

// TestSuspendTruncate: a client does not go on elsewhere with a punch that it owes: who goes on would not know of it. Here its caller has given up, and no server can
// be asked for it.
func TestSuspendTruncate(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, func(o *Options) { o.FlushEvery = time.Hour })
	f := create(t, c, "a")
	want := fill(8192, 1)
	write(t, f, want, 0)
	w.cs[1].stop()
	short, cancel := context.WithTimeout(t.Context(), time.Second) // for the metadata server
	defer cancel()
	if err := f.Truncate(short, 100); fserr.Of(err) != fserr.Timeout {
		t.Fatal(err)
	}
	eventually(t, "the metadata server to have cut the file", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.inodes[uint64(f.Ino())].attr.Size == 100
	})
	soon, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer stop()
	if _, err := c.Suspend(soon); err == nil {
		t.Fatal("a client was suspended that owes a punch")
	}
	w.cs[1].start()
	d := handOver(t, w, c)
	if w.count("punchdone") != 1 {
		t.Errorf("%d punches are done", w.count("punchdone"))
	}
	g := restoreFile(t, d, f)
	d.Restored()
	if err := g.Truncate(t.Context(), 8192); err != nil {
		t.Fatal(err)
	}
	same(t, g, 0, append(want[:100:100], make([]byte, 8092)...))
}

// TestSuspendedBonds: who goes on looks after the connections of bonds as the one before did.
func TestSuspendedBonds(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	b := bond.Watch(bond.Options{Logger: quiet()})
	t.Cleanup(b.Close)
	keepers := func() int {
		p := make([]byte, 4<<20)
		return bytes.Count(p[:runtime.Stack(p, true)], []byte(".(*Client).keepSpread("))
	}
	c := w.dial(t, func(o *Options) { o.Bonds = b })
	eventually(t, "one who looks after connections", func() bool { return keepers() == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	x, err := c.Suspend(ctx)
	if err != nil {
		t.Fatal(err)
	}
	d := w.dial(t, func(o *Options) { o.Resume, o.Bonds = x, b })
	d.Restored()
	eventually(t, "one for each client", func() bool { return keepers() == 2 })
}

// TestSuspendedCheck: what Suspend never returns is refused.
func TestSuspendedCheck(t *testing.T) {
	good := func() *Suspended {
		return &Suspended{Session: 1, Lease: time.Second, RenewEvery: time.Second, Inodes: []SuspendedInode{{Ino: 2, Want: msg.Want_WANT_READ, Mode: msg.Mode_SHARED_READ}}}
	}
	if err := good().check(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(x *Suspended){
		"no session":      func(x *Suspended) { x.Session = 0 },
		"no lease":        func(x *Suspended) { x.Lease = 0 },
		"no renewal":      func(x *Suspended) { x.RenewEvery = -1 },
		"no inode":        func(x *Suspended) { x.Inodes[0].Ino = 0 },
		"twice":           func(x *Suspended) { x.Inodes = append(x.Inodes, x.Inodes[0]) },
		"negative size":   func(x *Suspended) { x.Inodes[0].Size = -1 },
		"unknown mode":    func(x *Suspended) { x.Inodes[0].Mode = 77 },
		"unknown want":    func(x *Suspended) { x.Inodes[0].Want = 77 },
		"more told of":    func(x *Suspended) { x.Inodes[0].Told = 1 },
		"more failed":     func(x *Suspended) { x.Inodes[0].BehindTold = 1 },
		"negative extent": func(x *Suspended) { x.Inodes[0].Written = -1 },
	} {
		x := good()
		spoil(x)
		if err := x.check(); !errors.Is(err, fserr.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, func(o *Options) {
		x := good()
		x.Deadline = bootTime() + int64(time.Hour)
		o.Resume = x
	})
	if _, err := c.RestoreFile(2, true, []byte(`{}`)); !errors.Is(err, fserr.Invalid) {
		t.Errorf("a file that is open for writing with a lease for reading: %v", err)
	}
	if _, err := c.RestoreFile(2, false, []byte(`{"losses":`)); err == nil {
		t.Error("garbage was taken for an open file")
	}
}
