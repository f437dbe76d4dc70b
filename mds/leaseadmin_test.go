package mds

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/event"
)

// admin asks the leader as an administrator, until one has decided.
func (c *testCluster) admin(typ wire.Type, req, reply wire.Message) (code fserr.Code) {
	c.t.Helper()
	c.eventually("an answer to an administrator", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		conn, _, err := wire.Dial(ctx, c.leader().Addr(), &msg.Hello{Cluster: c.cluster[:], Role: msg.Hello_ADMIN}, nil, wire.Options{})
		if err != nil {
			return false
		}
		defer conn.Close()
		code, err = conn.CallMessage(ctx, typ, wire.ClassMeta, req, reply)
		return err == nil && code != fserr.NotLeader && code != fserr.Unavailable
	})
	return code
}

// closed returns the event that closed the session, and the reason.
func (c *testCluster) closed(session id.SessionID) (kind event.SessionClose_Kind, reason string) {
	c.t.Helper()
	r, err := c.leader().journal.Reader(1)
	if err != nil {
		c.t.Fatal(err)
	}
	defer r.Close()
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return kind, reason
		}
		ev := new(event.Event)
		if err == nil {
			err = ev.UnmarshalVT(rec.Payload)
		}
		if err != nil {
			c.t.Fatal(err)
		}
		if x := ev.GetSessionClose(); x != nil && id.SessionID(x.Id) == session {
			kind, reason = x.Kind, ev.Cause.GetReason()
		}
	}
}

func keeps(want msg.Want) func(*msg.Callback) *msg.CallbackReply {
	return func(*msg.Callback) *msg.CallbackReply { return &msg.CallbackReply{Keep: want} }
}

func (k *testClient) answer(fn func(*msg.Callback) *msg.CallbackReply) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fn = fn
}

func (k *testChunks) refuses(session id.SessionID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fenced[uint64(session)]
}

func TestFenceByHand(t *testing.T) {
	c := newCluster(t, 3, patient)
	cs := []*testChunks{newChunks(c), newChunks(c), newChunks(c)}
	a := newClient(c)
	ino := a.create("f", true).Attr.Ino
	l := c.lead()
	first := new(msg.FenceSessionReply)
	if code := c.admin(wire.FenceSession, &msg.FenceSession{Session: uint64(a.session), Reason: "it hangs"}, first); code != fserr.OK {
		t.Fatal(code)
	}
	for i, s := range cs {
		if !s.refuses(a.session) {
			t.Errorf("chunk server %d does not refuse the fenced session", i)
		}
	}
	if first.Index == 0 && c.lead() == l || len(first.Silent) != 0 { // the next leader does not know the event
		t.Errorf("answer %v", first)
	}
	kind, reason := c.closed(a.session)
	if kind != event.SessionClose_FENCED || !strings.Contains(reason, "fenced by hand: it hangs") || !strings.Contains(reason, "last renewed") ||
		!strings.Contains(reason, "with mds") {
		t.Errorf("event of kind %v, reason %q", kind, reason)
	}
	if _, code := a.do(a.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_READ})); code != fserr.NoSession {
		t.Errorf("request of the fenced session: %v", code)
	}
	again := new(msg.FenceSessionReply)
	if code := c.admin(wire.FenceSession, &msg.FenceSession{Session: uint64(a.session)}, again); code != fserr.OK || again.Index != first.Index && c.lead() == l {
		t.Errorf("the second time: %v, event %d, not %d", code, again.Index, first.Index)
	}
	if code := c.admin(wire.FenceSession, &msg.FenceSession{Session: 12345}, nil); code != fserr.NotExist {
		t.Errorf("fence of an unknown session: %v", code)
	}
	c.kill(c.leaderIndex()) // the next leader knows it too
	if code := c.admin(wire.FenceSession, &msg.FenceSession{Session: uint64(a.session)}, new(msg.FenceSessionReply)); code != fserr.OK {
		t.Errorf("with the next leader: %v", code)
	}
}

// A chunk server that does not answer is waited for until it must have stopped by itself.
func TestFenceOfASilentChunkServer(t *testing.T) {
	c := newCluster(t, 1, nil)
	cs := []*testChunks{newChunks(c), newChunks(c)}
	a := newClient(c)
	cs[1].halt()
	l := c.lead()
	l.mu.Lock()
	heard := l.servers[cs[1].id].heard
	l.mu.Unlock()
	reply := new(msg.FenceSessionReply)
	if code := c.admin(wire.FenceSession, &msg.FenceSession{Session: uint64(a.session)}, reply); code != fserr.OK {
		t.Fatal(code)
	}
	cs[1].mu.Lock()
	silent := uint32(cs[1].id)
	cs[1].mu.Unlock()
	if !slices.Equal(reply.Silent, []uint32{silent}) {
		t.Errorf("silent: %v, want cs%d", reply.Silent, silent)
	}
	if left := heard + l.s.o.ServerLease - bootNow(); left > 0 {
		t.Errorf("the answer came %v before its lease was over", left)
	}
	if !cs[0].refuses(a.session) {
		t.Error("the other one does not refuse the session")
	}
	cs[1].run()
	c.eventually("it to be told when it is back", func() bool { return cs[1].refuses(a.session) })
}

func TestExpiryTellsItsCause(t *testing.T) {
	c := newCluster(t, 1, nil)
	a := newClient(c)
	time.Sleep(300 * time.Millisecond) // a renewal
	a.close()
	c.eventually("the session to expire", func() bool {
		kind, _ := c.closed(a.session)
		return kind == event.SessionClose_EXPIRED
	})
	if _, reason := c.closed(a.session); !strings.Contains(reason, "last renewed") || !strings.Contains(reason, "with mds1, leader of term ") {
		t.Errorf("reason %q", reason)
	}
}

func TestLeaseTake(t *testing.T) {
	c := newCluster(t, 1, patient)
	cs := newChunks(c)
	a, b := newClient(c), newClient(c)
	made := a.create("f", true).Attr
	take := func(force bool, wait time.Duration) *msg.LeaseTakeReply {
		t.Helper()
		r := new(msg.LeaseTakeReply)
		req := &msg.LeaseTake{Ino: made.Ino, Force: force, WaitMs: uint32(wait.Milliseconds()), Reason: "moving the guest"}
		if code := c.admin(wire.LeaseTake, req, r); code != fserr.OK {
			t.Fatal(code)
		}
		return r
	}
	show := func() *msg.LeaseShowReply {
		t.Helper()
		r := new(msg.LeaseShowReply)
		if code := c.admin(wire.LeaseShow, &msg.LeaseShow{Ino: made.Ino}, r); code != fserr.OK {
			t.Fatal(code)
		}
		return r
	}
	is := func(got []uint64, want ...id.SessionID) bool {
		return slices.EqualFunc(got, want, func(g uint64, w id.SessionID) bool { return g == uint64(w) })
	}

	// Open there: refused, and it may cache again.
	a.answer(keeps(msg.Want_WANT_WRITE))
	if r := take(false, 20*time.Second); !is(r.Refused, a.session) || len(r.Released)+len(r.Fenced) > 0 {
		t.Errorf("of a file that is open: %v", r)
	}
	c.eventually("the holder to be told that it has it to itself", func() bool { return a.calls(msg.Callback_UPGRADE) > 0 })
	h := show().Holders
	if len(h) != 1 || h[0].Session != uint64(a.session) || h[0].Mode != msg.Mode_EXCLUSIVE_WRITE || string(h[0].Path) != "/f" || !h[0].Connected {
		t.Fatalf("holders %v", h)
	}

	// It does not answer: refused without force.
	a.answer(func(cb *msg.Callback) *msg.CallbackReply {
		if cb.Kind == msg.Callback_LEASE {
			return nil
		}
		return &msg.CallbackReply{}
	})
	if r := take(false, 100*time.Millisecond); !is(r.Refused, a.session) {
		t.Errorf("of a holder that does not answer: %v", r)
	}

	// The same while somebody else waits for the holder; its wish is granted when the holder is gone.
	waits := newClient(c)
	opened := make(chan fserr.Code, 1)
	go func() {
		_, code := waits.do(waits.change(&msg.Open{Ino: made.Ino, Want: msg.Want_WANT_READ}))
		opened <- code
	}()
	c.eventually("the holder to be called back for another", func() bool { return a.calls(msg.Callback_LEASE) >= 3 })

	// With force it is fenced, and what it had open is nobody's.
	if r := take(true, 300*time.Millisecond); !slices.Contains(r.Fenced, uint64(a.session)) || len(r.Refused) > 0 {
		t.Errorf("by force: %v", r)
	}
	if !cs.refuses(a.session) {
		t.Error("the chunk server does not refuse the old holder")
	}
	if _, reason := c.closed(a.session); !strings.Contains(reason, "taken by force: moving the guest") {
		t.Errorf("reason %q", reason)
	}
	if code := <-opened; code != fserr.OK {
		t.Errorf("open by who waited: %v", code)
	}
	waits.answer(keeps(msg.Want_WANT_NONE))
	if r := take(false, 20*time.Second); !is(r.Released, waits.session) {
		t.Errorf("afterwards: %v", r)
	}

	// Kept after the last close: given up.
	b.must(b.change(&msg.Open{Ino: made.Ino, Want: msg.Want_WANT_WRITE}))
	b.answer(func(*msg.Callback) *msg.CallbackReply { return &msg.CallbackReply{HasAttr: true, Size: 777} })
	if r := take(true, 20*time.Second); !is(r.Released, b.session) || len(r.Fenced)+len(r.Refused) > 0 {
		t.Errorf("of an idle lease: %v", r)
	}
	if r := b.must(b.read(&msg.GetAttr{Ino: made.Ino})); r.Attr.Size != 777 {
		t.Errorf("size %d: what the holder wrote back is lost", r.Attr.Size)
	}
	if code := c.admin(wire.LeaseTake, &msg.LeaseTake{Ino: 1}, nil); code != fserr.Invalid {
		t.Errorf("of a directory: %v", code)
	}
	if code := c.admin(wire.LeaseTake, &msg.LeaseTake{Ino: 999}, nil); code != fserr.NotExist {
		t.Errorf("of nothing: %v", code)
	}
}

func TestLeaseShowAll(t *testing.T) {
	c := newCluster(t, 1, patient)
	a := newClient(c)
	dir := a.must(a.change(&msg.Create{Parent: 1, Name: []byte("d"), Type: msg.FileType_DIRECTORY, Perm: 0o755})).Attr.Ino
	f := a.must(a.change(&msg.Create{Parent: dir, Name: []byte("f"), Type: msg.FileType_REGULAR, Perm: 0o644, Open: true})).Attr.Ino
	g := a.create("g", true).Attr.Ino
	a.must(a.change(&msg.Remove{Parent: 1, Name: []byte("g")}))
	r := new(msg.LeaseShowReply)
	if code := c.admin(wire.LeaseShow, &msg.LeaseShow{}, r); code != fserr.OK {
		t.Fatal(code)
	}
	got := map[uint64]string{}
	for _, h := range r.Holders {
		got[h.Ino] = string(h.Path)
		if h.Host != "h" || h.Session != uint64(a.session) {
			t.Errorf("holder %v", h)
		}
	}
	if len(got) != 2 || got[f] != "/d/f" || got[g] != "" {
		t.Errorf("holders %v", got)
	}
}
