package mds

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/settings"
	"varve/mds/state"
)

// servers returns n fake chunk servers by id.
func (c *testCluster) chunkServers(n int) map[uint32]*testChunks {
	out := map[uint32]*testChunks{}
	for range n {
		k := newChunks(c)
		out[uint32(k.id)] = k
	}
	return out
}

// file makes a file with chunks, and returns where they are.
func (k *testClient) file(name string, chunks uint32) (id.Ino, []*msg.Chunk) {
	k.c.t.Helper()
	ino := k.create(name, true).Attr.Ino
	list := k.must(k.change(&msg.AllocChunk{Ino: ino, Count: chunks})).GetLayout().Chunks
	size := uint64(chunks) << 26
	k.must(k.change(&msg.SetAttr{Ino: ino, Size: &size}))
	return id.Ino(ino), list
}

// view looks at the state of whoever leads, until fn is content.
func (c *testCluster) until(what string, fn func(*state.State) bool) {
	c.t.Helper()
	c.eventually(what, func() (ok bool) {
		if s := c.leading(); s != nil {
			s.fsm.view(func(st *state.State) { ok = fn(st) })
		}
		return ok
	})
}

// on counts the chunks of a server.
func on(st *state.State, server uint32) (n int) {
	st.ChunksOf(id.ServerID(server), func(*state.Chunk) bool { n++; return true })
	return n
}

// whole reports whether every chunk has norm replicas in sync, none on a server that is not one of theirs.
func whole(st *state.State, norm int) bool {
	n := st.Counts()
	ok := n.Degraded == 0 && n.Joining == 0
	st.Servers(func(x *state.Server) bool {
		st.ChunksOf(x.ID, func(c *state.Chunk) bool {
			ok = ok && c.InSync() == norm && c.Len() == norm
			return ok
		})
		return ok
	})
	return ok
}

func setModeMsg(mode event.ServerMode_Mode, servers ...uint32) *msg.SetServerMode {
	return &msg.SetServerMode{Servers: servers, Mode: uint32(mode)}
}

// TestDrainAndRemove: a drain goes on under the next leader, ends by an event when nothing is left, and a removal retires the id; neither
// begins where chunks would be left with fewer replicas than they are to have.
func TestDrainAndRemove(t *testing.T) {
	c := newCluster(t, 3, patient)
	cs := c.chunkServers(4)
	a := newClient(c)
	_, chunks := a.file("f", 6)
	victim := chunks[0].Replicas[0].Server
	for _, k := range cs { // so that the drain is still under way when the leader goes
		k.mu.Lock()
		k.refuse[wire.ChunkRebuild] = fserr.Unavailable
		k.mu.Unlock()
	}
	if code, why := c.adminAsk(wire.SetServerMode, setModeMsg(event.ServerMode_DRAINING, victim)); code != fserr.OK {
		t.Fatal(code, why)
	}
	c.until("a replica to be on its way", func(st *state.State) bool { return st.Counts().Joining > 0 })
	c.kill(c.leaderIndex())
	for _, k := range cs {
		k.mu.Lock()
		delete(k.refuse, wire.ChunkRebuild)
		k.mu.Unlock()
	}
	c.until("the drain to end under the next leader", func(st *state.State) bool {
		x, _ := st.Server(id.ServerID(victim))
		return x != nil && x.Mode == event.ServerMode_DRAINED && on(st, victim) == 0 && whole(st, 3)
	})
	c.eventually("all servers to have found the leader", func() bool {
		l := c.lead()
		for s := range cs {
			if !l.isLive(id.ServerID(s)) {
				return false
			}
		}
		return true
	})
	// Nothing new goes there.
	_, chunks = a.file("g", 4)
	for _, k := range chunks {
		for _, r := range k.Replicas {
			if r.Server == victim || len(k.Replicas) != 3 {
				t.Errorf("chunk %d is on %v, cs%d is drained", k.Id, k.Replicas, victim)
			}
		}
	}
	other := victim%4 + 1
	for what, req := range map[wire.Type]wire.Message{wire.RemoveServer: &msg.RemoveServer{Server: other}, wire.SetServerMode: setModeMsg(event.ServerMode_DRAINING, other)} {
		refused := func() (code fserr.Code, why string, all bool) {
			code, why = c.adminAsk(what, req)
			return code, why, strings.Contains(why, "only 2 chunk servers would take data") && strings.Contains(why, "3 replicas")
		}
		code, why, all := refused()
		for end := time.Now().Add(time.Minute); code == fserr.Busy && !all && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			code, why, all = refused() // on a busy machine a server may not have been heard just now, which is told too
		}
		if code != fserr.Busy || !all {
			t.Errorf("type %d: %v, %s", what, code, why)
		}
	}
	if code, why := c.adminAsk(wire.RemoveServer, &msg.RemoveServer{Server: victim}); code != fserr.OK {
		t.Fatal(code, why)
	}
	c.until("the id to be retired", func(st *state.State) bool {
		x, _ := st.Server(id.ServerID(victim))
		return x.Retired
	})
	if r, err := c.lead().removeServer(t.Context(), &msg.RemoveServer{Server: victim}); err != nil || !r.Retired {
		t.Errorf("removed again: %v, %v", r, err)
	}
	for _, req := range []*msg.SetServerMode{setModeMsg(event.ServerMode_ACTIVE, victim), setModeMsg(event.ServerMode_STANDBY, 99), setModeMsg(event.ServerMode_REMOVING, other)} {
		if code, _ := c.adminAsk(wire.SetServerMode, req); code == fserr.OK {
			t.Errorf("%v was done", req)
		}
	}
}

// TestRemoveByForce: a lost server is removed at once, and what it alone had is told; one that lives and has the only replica of something is not.
func TestRemoveByForce(t *testing.T) {
	c := newCluster(t, 1, patient)
	cs := c.chunkServers(3)
	a := newClient(c)
	opened := a.create("single", true)
	ino := opened.Attr.Ino
	a.must(a.change(&msg.SetPolicy{Ino: ino, Policy: &msg.Policy{Norm: 1, Min: 1}}))
	k := a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 1})).GetLayout().Chunks[0]
	a.file("f", 2)
	holder := k.Replicas[0].Server
	code, why := c.adminAsk(wire.RemoveServer, &msg.RemoveServer{Server: holder, Force: true})
	if code != fserr.Busy || !strings.Contains(why, "/single") {
		t.Fatalf("%v, %s", code, why)
	}
	cs[holder].halt()
	c.eventually("the server to be away", func() bool { return !c.lead().isLive(id.ServerID(holder)) })
	code, why = c.adminAsk(wire.RemoveServer, &msg.RemoveServer{Server: holder, Force: true})
	if code != fserr.Busy || !strings.Contains(why, "/single") || !strings.Contains(why, "--lose-data") {
		t.Fatalf("%v, %s", code, why)
	}
	reply, err := c.lead().removeServer(t.Context(), &msg.RemoveServer{Server: holder, Force: true, Lose: true})
	if err != nil || !reply.Retired || reply.Lost != 1 || string(reply.LostPaths[0]) != "/single" {
		t.Fatalf("%+v, %v", reply, err)
	}
	c.until("its replicas to be gone", func(st *state.State) bool {
		x, _ := st.Server(id.ServerID(holder))
		return x.Retired && on(st, holder) == 1
	})
	// What only it had stays known as lost until its file goes; then nothing of the server is left.
	a.must(a.change(&msg.Remove{Parent: 1, Name: []byte("single")}))
	a.must(a.change(&msg.Release{Ino: ino, Lease: opened.GetOpen().Lease}))
	c.until("nothing to be left of it", func(st *state.State) bool {
		return on(st, holder) == 0 && st.GarbageOf(id.ServerID(holder)) == 0 && st.Check() == nil
	})
}

// TestStandbyIsNotLost: a server on standby may be away for longer than any grace, and its chunks stay its own; when it is active again, it is lost
// as any other.
func TestStandbyIsNotLost(t *testing.T) {
	c := newCluster(t, 1, func(o *Options) { patient(o); o.LostGrace = 300 * time.Millisecond })
	cs := c.chunkServers(4)
	a := newClient(c)
	_, chunks := a.file("f", 3)
	victim := chunks[0].Replicas[0].Server
	if code, why := c.adminAsk(wire.SetServerMode, setModeMsg(event.ServerMode_STANDBY, victim)); code != fserr.OK {
		t.Fatal(code, why)
	}
	cs[victim].halt()
	l := c.lead()
	c.eventually("the server to be away", func() bool { return !l.isLive(id.ServerID(victim)) })
	time.Sleep(time.Second)
	l.s.fsm.view(func(st *state.State) {
		if on(st, victim) == 0 || st.Counts().Degraded > 0 {
			t.Errorf("%d chunks left on it, %d degraded", on(st, victim), st.Counts().Degraded)
		}
	})
	if code, why := c.adminAsk(wire.SetServerMode, setModeMsg(event.ServerMode_ACTIVE, victim)); code != fserr.OK {
		t.Fatal(code, why)
	}
	c.until("it to be given up", func(st *state.State) bool { return on(st, victim) == 0 && whole(st, 3) })
}

// TestStandbyEnds: when the time on standby is over the servers are active, by an event, and one that is away by then is lost as any other. Time
// can be prolonged.
func TestStandbyEnds(t *testing.T) {
	c := newCluster(t, 1, func(o *Options) { patient(o); o.LostGrace = 100 * time.Millisecond })
	cs := c.chunkServers(5)
	a := newClient(c)
	_, chunks := a.file("f", 3)
	gone, there := chunks[0].Replicas[0].Server, chunks[0].Replicas[1].Server
	standby := func(long time.Duration) {
		t.Helper()
		req := setModeMsg(event.ServerMode_STANDBY, gone, there)
		req.ForMs = uint64(long.Milliseconds())
		if code, why := c.adminAsk(wire.SetServerMode, req); code != fserr.OK {
			t.Fatal(code, why)
		}
	}
	standby(time.Hour)
	l := c.lead()
	for _, s := range l.s.status().Servers {
		if on := s.Server == gone || s.Server == there; on != (s.Mode == "standby" && s.ModeSince > 0 && s.ModeUntil > s.ModeSince+int64(59*time.Minute)) {
			t.Errorf("cs%d is %q since %d until %d", s.Server, s.Mode, s.ModeSince, s.ModeUntil)
		}
	}
	cs[gone].halt()
	c.eventually("the server to be away", func() bool { return !l.isLive(id.ServerID(gone)) })
	standby(300 * time.Millisecond)
	c.until("both to be active, and the one that is away to be given up", func(st *state.State) bool {
		x, _ := st.Server(id.ServerID(gone))
		y, _ := st.Server(id.ServerID(there))
		return x.Mode == event.ServerMode_ACTIVE && y.Mode == event.ServerMode_ACTIVE && on(st, gone) == 0 && whole(st, 3)
	})
	c.leader().fsm.view(func(st *state.State) {
		if on(st, there) == 0 || st.StandbyUntil(id.ServerID(there)) != 0 || st.ModeSince(id.ServerID(there)) == 0 {
			t.Errorf("the server that is there has %d chunks, standby until %d", on(st, there), st.StandbyUntil(id.ServerID(there)))
		}
	})
	for _, req := range []*msg.SetServerMode{{Servers: []uint32{there}, Mode: uint32(event.ServerMode_DRAINING), ForMs: 1000},
		{Servers: []uint32{there}, Mode: uint32(event.ServerMode_STANDBY), ForMs: 1 << 50}} {
		if code, _ := c.adminAsk(wire.SetServerMode, req); code != fserr.Invalid {
			t.Errorf("%v: %v", req, code)
		}
	}
}

// TestMoreAwayThanThere: when most servers are away nobody is given up, and it is said.
func TestMoreAwayThanThere(t *testing.T) {
	c := newCluster(t, 1, patient) // LostGrace is an hour
	cs := c.chunkServers(5)
	a := newClient(c)
	a.file("f", 3)
	var before int
	c.until("all to be there", func(st *state.State) bool { before = int(st.Index()); return true })
	for s := range uint32(3) {
		cs[s+1].halt()
	}
	l := c.lead()
	for s := range uint32(3) {
		c.eventually("a server to be away", func() bool { return !l.isLive(id.ServerID(s + 1)) })
	}
	if code, why := c.adminAsk(wire.SetConfig, &msg.SetConfig{Key: settings.RepairGrace, Value: "300ms"}); code != fserr.OK {
		t.Fatal(code, why)
	}
	c.eventually("it to be said", func() bool {
		for _, w := range l.s.status().GetRepair().GetWarnings() {
			if strings.Contains(w, "3 of 5 chunk servers are away") {
				return true
			}
		}
		return false
	})
	time.Sleep(500 * time.Millisecond)
	l.s.fsm.view(func(st *state.State) {
		if st.Counts().Degraded > 0 {
			t.Errorf("%d chunks degraded, at index %d after %d", st.Counts().Degraded, st.Index(), before)
		}
	})
}

// TestLastReplica: where one live replica is left, those on servers that are away are given up sooner than the servers.
func TestLastReplica(t *testing.T) {
	c := newCluster(t, 1, patient) // LostGrace is an hour
	if code, why := c.adminAsk(wire.SetConfig, &msg.SetConfig{Key: "repair.grace.last", Value: "100ms"}); code != fserr.OK {
		t.Fatal(code, why)
	}
	cs := c.chunkServers(4)
	a := newClient(c)
	ino := a.create("pair", true).Attr.Ino
	a.must(a.change(&msg.SetPolicy{Ino: ino, Policy: &msg.Policy{Norm: 2, Min: 1}}))
	k := a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 1})).GetLayout().Chunks[0]
	_, three := a.file("three", 2)
	victim := k.Replicas[0].Server
	held := 0
	for _, x := range three {
		for _, r := range x.Replicas {
			if r.Server == victim {
				held++
			}
		}
	}
	cs[victim].halt()
	c.until("the pair to have two replicas on others", func(st *state.State) bool {
		x, ok := st.ChunkByID(id.ChunkID(k.Id))
		_, there := x.Find(id.ServerID(victim))
		return ok && !there && x.InSync() == 2
	})
	c.leader().fsm.view(func(st *state.State) {
		if on(st, victim) != held {
			t.Errorf("%d chunks of three replicas are left on it, there were %d", on(st, victim), held)
		}
	})
}

// TestSlowServer: a server of which others say that it answers late gets no new data, is told to clients, and keeps what it has.
func TestSlowServer(t *testing.T) {
	c := newCluster(t, 1, patient)
	c.chunkServers(4)
	a := newClient(c)
	_, chunks := a.file("f", 3)
	victim := chunks[0].Replicas[0].Server
	l := c.lead()
	report := &msg.LoadReport{}
	for s := range uint32(4) {
		us := uint32(1000)
		if s+1 == victim {
			us = 200_000
		}
		report.Peers = append(report.Peers, &msg.PeerLatency{Server: s + 1, Requests: 100, P90Us: us})
	}
	slow := false
	for range 20 {
		list := l.noteClientLoad(report)
		if slow = len(list) == 1 && list[0] == victim; slow {
			break
		}
		l.look()
	}
	if !slow {
		t.Fatal("nobody is slow")
	}
	var before int
	l.s.fsm.view(func(st *state.State) { before = on(st, victim) })
	_, chunks = a.file("g", 4)
	for _, k := range chunks {
		for _, r := range k.Replicas {
			if r.Server == victim {
				t.Errorf("chunk %d is new on cs%d, which is slow", k.Id, victim)
			}
		}
	}
	st := l.s.status()
	for _, s := range st.Servers {
		if (s.Slow != "") != (s.Server == victim) || s.State != "live" {
			t.Errorf("cs%d is %s, slow: %q", s.Server, s.State, s.Slow)
		}
	}
	l.s.fsm.view(func(st *state.State) {
		if on(st, victim) != before || st.Counts().Degraded != 0 {
			t.Errorf("%d chunks on it, %d before; %d degraded", on(st, victim), before, st.Counts().Degraded)
		}
	})
}

// TestSetTier: what an administrator says of a tier holds, whatever the server says when it comes again.
func TestSetTier(t *testing.T) {
	c := newCluster(t, 1, patient)
	cs := c.chunkServers(1)
	if code, why := c.adminAsk(wire.SetTier, &msg.SetTier{Server: 1, Tier: 2}); code != fserr.OK {
		t.Fatal(code, why)
	}
	if code, _ := c.adminAsk(wire.SetTier, &msg.SetTier{Server: 1, Tier: 4}); code != fserr.Invalid {
		t.Errorf("tier 4: %v", code)
	}
	cs[1].halt()
	cs[1].run()
	c.eventually("it to be there again", cs[1].isReady)
	c.until("its tier", func(st *state.State) bool {
		x, _ := st.Server(1)
		return x.Tier == 2
	})
	if got := fmt.Sprint(c.lead().tierOf(1)); got != "2" {
		t.Errorf("tier %s", got)
	}
}
