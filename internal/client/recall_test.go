package client

import (
	"bytes"
	"testing"

	"varve/internal/fserr"
	"varve/internal/wire/msg"
)

// That a server is silent is no damage: a read under a shared-write lease, which asks one replica only, failed with an I/O error.
func TestSilenceIsNoDamage(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	write(t, f, fill(4096, 1), 0)
	loc, _ := f.in.lookup(0)
	srv := f.in.s.servers.server(&loc.replicas[0])
	for n := range srv.lanes {
		if conn := srv.lanes[n].conn.Load(); conn != nil {
			conn.Close()
			<-conn.Done()
		}
	}
	w.setSilent(1)
	eventually(t, "the client to know", srv.silent)
	if _, err := srv.conn(0); fserr.Of(err) != fserr.Unavailable {
		t.Errorf("no connection to a silent server: %v, want %v", err, fserr.Unavailable)
	}
	w.setSilent()
	if got := read(t, f, 0, 4096); len(got) != 4096 {
		t.Errorf("%d bytes when it is heard from again", len(got))
	}
}

// A recall of an earlier lease, whose answer a mount had not taken yet, does not make it ask again for the one that it was granted since: two mounts
// that opened a file at the same moment took it from each other thousands of times, and neither could use it.
func TestRecallOfAnEarlierLease(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	in := f.in
	if err := f.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	in = in.s.pin(in.ino)
	defer in.s.unpin(in)
	in.mu.Lock()
	before, lease := in.recalls, in.lease
	in.mu.Unlock()
	in.recall(t.Context(), &msg.Callback{Kind: msg.Callback_LEASE, Ino: uint64(in.ino), Lease: lease, Mode: msg.Mode_SHARED_WRITE}, new(msg.CallbackReply))
	grant := func(lease uint64) *File {
		return in.grant(&msg.MetaReply{Result: &msg.MetaReply_Open{Open: &msg.OpenReply{Lease: lease, Mode: msg.Mode_SHARED_WRITE, Layout: new(msg.LayoutReply)}}},
			before, msg.Want_WANT_WRITE, in.layoutGeneration(), true)
	}
	if grant(lease) != nil {
		t.Error("a lease that was recalled was taken")
	}
	again := grant(lease + 1)
	if again == nil {
		t.Fatal("a lease that was granted after a recall of an earlier one was not taken")
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.lease != lease+1 || in.want != msg.Want_WANT_WRITE {
		t.Errorf("lease %d for %v, want %d for writing", in.lease, in.want, lease+1)
	}
}

// A recall is answered before the metadata server has heard the answer, and an append that comes in between must not go to where the file ended for it
// before: what was written alone would be lost. That servers come and go in between changes nothing; that another cut the file does.
func TestAppendRightAfterARecall(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	in := f.in
	add := func(p []byte, want int64) {
		t.Helper()
		if _, end, err := f.WriteAt(t.Context(), p, 0, true); err != nil || end != want {
			t.Fatalf("append: ends at %d, %v, want %d", end, err, want)
		}
	}
	one, two := fill(6870, 1), fill(3000, 2)
	add(one, 6870)
	cb := &msg.Callback{Kind: msg.Callback_LEASE, Ino: uint64(in.ino), Lease: in.lease, Mode: msg.Mode_SHARED_WRITE}
	reply := new(msg.CallbackReply)
	if err := in.recall(t.Context(), cb, reply); err != nil || reply.Size != 6870 {
		t.Fatal(reply, err)
	}
	in.recalled(reply) // sent, and on its way
	in.mu.Lock()
	in.forgetSizeLocked(false)
	in.mu.Unlock()
	add(two, 9870)
	if got := read(t, f, 0, 9870); !bytes.Equal(got, append(one, two...)) {
		t.Error("what was appended is not what is read")
	}
	in.mu.Lock()
	in.answered = 9870
	in.forgetSizeLocked(true)
	in.mu.Unlock()
	w.mu.Lock()
	w.inodes[uint64(in.ino)].attr.Size = 10
	w.mu.Unlock()
	add(two, 3010)
}

// A truncate right after a recall cuts what was written alone: the metadata server, which has not heard the answer yet, is told of the size first, and is
// not told of it again.
func TestTruncateRightAfterARecall(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	in := f.in
	write(t, f, fill(6870, 1), 0)
	cb := &msg.Callback{Kind: msg.Callback_LEASE, Ino: uint64(in.ino), Lease: in.lease, Mode: msg.Mode_SHARED_WRITE}
	reply := new(msg.CallbackReply)
	if err := in.recall(t.Context(), cb, reply); err != nil || reply.Size != 6870 {
		t.Fatal(reply, err)
	}
	in.recalled(reply)
	told := func() uint64 {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.inodes[uint64(in.ino)].attr.Size
	}
	if n := told(); n != 0 {
		t.Fatalf("size %d before the answer has come", n)
	}
	if err := f.Fsync(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if n := told(); n != 6870 {
		t.Errorf("size %d after an fsync, want 6870", n)
	}
	in.mu.Lock()
	in.answered = 6870 // as if that had not been
	in.mu.Unlock()
	if err := f.Truncate(t.Context(), 5000); err != nil {
		t.Fatal(err)
	}
	if n := told(); n != 5000 {
		t.Errorf("size %d after the truncate, want 5000", n)
	}
	again := new(msg.CallbackReply)
	if err := in.recall(t.Context(), cb, again); err != nil || again.HasAttr {
		t.Errorf("answered again: %v, %v", again, err)
	}
}
