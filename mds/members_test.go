package mds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/journal"
	"varve/test/ports"
)

// join adds a server and returns its place. It runs.
func (c *testCluster) join() int {
	c.t.Helper()
	i := c.make()
	c.start(i)
	return i
}

// make adds a server that does not run yet.
func (c *testCluster) make() int {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	i := len(c.dirs)
	c.dirs = append(c.dirs, filepath.Join(filepath.Dir(c.dirs[0]), fmt.Sprint("mds", i+1)))
	c.addrs = append(c.addrs, ports.Hold(c.t))
	c.mu.Lock()
	c.servers = append(c.servers, nil)
	c.mu.Unlock()
	o := c.options(i)
	o.Addr = c.addrs[i]
	if _, err := Join(ctx, o, c.addrs[:i]); err != nil {
		c.t.Fatal(err)
	}
	return i
}

func (c *testCluster) voters(n int) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("%d voters", n), func() bool {
		l := c.leading()
		return l != nil && l.otherVoters() == n-1 && len(l.raftMembers()) == n
	})
}

// adminAsk asks the leader until one has decided, as the command line does.
func (c *testCluster) adminAsk(t wire.Type, req wire.Message) (fserr.Code, string) {
	c.t.Helper()
	var code fserr.Code
	detail := new(msg.AdminReply)
	c.eventually("an answer to an administrator", func() bool {
		s := c.leading()
		if s == nil {
			return false
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		conn, _, err := wire.Dial(ctx, s.Addr(), &msg.Hello{Role: msg.Hello_ADMIN}, nil, wire.Options{})
		if err != nil {
			return false
		}
		defer conn.Close()
		detail = new(msg.AdminReply)
		code, err = conn.CallMessage(ctx, t, wire.ClassMeta, req, detail)
		return err == nil && code != fserr.NotLeader && code != fserr.Unavailable
	})
	return code, detail.Detail
}

func (c *testCluster) serverID(i int) uint32 {
	c.t.Helper()
	r, err := ReadResident(c.dirs[i])
	if err != nil {
		c.t.Fatal(err)
	}
	return uint32(r.Server)
}

// remove removes a server. The leader may be too busy to hear the others in time, and then refuses.
func (c *testCluster) remove(i int) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("server %d to be removed", i), func() bool {
		code, detail := c.adminAsk(wire.RemoveMeta, &msg.RemoveMeta{Server: c.serverID(i)})
		if code != fserr.OK && code != fserr.Busy {
			c.t.Fatalf("remove server %d: %v (%s)", i, code, detail)
		}
		return code == fserr.OK
	})
}

// retired waits until the server has stopped itself, and checks that it does not start again.
func (c *testCluster) retired(i int) {
	c.t.Helper()
	ended := make(chan error, 1)
	s := c.servers[i]
	go func() { ended <- s.Run() }()
	select {
	case err := <-ended:
		if !errors.Is(err, ErrStopped) || !errors.Is(err, fserr.Retired) {
			c.t.Errorf("removed server %d ended with %v", i, err)
		}
	case <-time.After(time.Minute):
		c.t.Fatalf("removed server %d goes on", i)
	}
	c.set(i, nil)
	if _, err := Open(c.options(i)); !errors.Is(err, ErrStopped) || !strings.Contains(err.Error(), "removed from cluster test") {
		c.t.Errorf("the directory of removed server %d opens: %v", i, err)
	}
}

// load creates files until stop is called, which returns how many. Each must succeed once; one that was refused for want of room is tried again, since a leader
// that has none may not have heard yet who has.
func load(k *testClient, prefix string) (stop func() int) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	n := 0
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			select {
			case <-done:
				return
			default:
			}
			r, code := k.do(k.change(&msg.Create{Parent: 1, Name: fmt.Appendf(nil, "%s%d", prefix, n), Type: msg.FileType_REGULAR, Exclusive: true}))
			switch code {
			case fserr.OK:
				n++
			case fserr.NoSpace:
			default:
				k.c.t.Errorf("file %d: %v (%s)", n, code, r.Detail)
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	return func() int { close(done); wg.Wait(); return n }
}

func TestMembersGrowAndShrink(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(o *Options) { o.SessionLease = 20 * time.Second; o.ServerTimeout = 3 * time.Second })
	k := newClient(c)
	stop := load(k, "f")
	c.join()
	c.join()
	c.voters(3)
	c.join()
	c.join()
	c.voters(5)
	c.remove(0) // whoever made the cluster
	c.retired(0)
	c.voters(4)
	gone := c.leaderIndex()
	c.remove(gone)
	c.retired(gone)
	c.voters(3)
	var left []int
	for i, s := range c.servers {
		if s != nil {
			left = append(left, i)
		}
	}
	c.kill(left[0]) // removed while it is dead
	c.remove(left[0])
	c.voters(2)
	c.start(left[0])
	c.retired(left[0])
	c.remove(left[1])
	c.retired(left[1])
	c.voters(1)
	n := stop()
	if st := c.leader().status(); st.Inodes != uint64(n)+1 {
		t.Errorf("%d inodes, with the root, after %d files were made", st.Inodes, n)
	}
	t.Logf("%d files made meanwhile", n)
	code, detail := c.adminAsk(wire.RemoveMeta, &msg.RemoveMeta{Server: c.serverID(left[2])})
	if code != fserr.Busy || !strings.Contains(detail, "last metadata server") || !strings.Contains(detail, "make-mds") {
		t.Errorf("removing the last: %v %q", code, detail)
	}
	i := c.join() // its id is new
	if got := c.serverID(i); got != 6 {
		t.Errorf("the server that joins after all gets id %d, want 6", got)
	}
	c.voters(2)
}

func TestRemoveIsRefusedAndRepeated(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(o *Options) { o.SessionLease = 20 * time.Second })
	lead := c.leaderIndex()
	a, b := (lead+1)%3, (lead+2)%3
	code, detail := c.adminAsk(wire.RemoveMeta, &msg.RemoveMeta{Server: 99})
	if code != fserr.NotExist || !strings.Contains(detail, "mds99") {
		t.Errorf("removing nobody: %v %q", code, detail)
	}
	if code, detail = c.adminAsk(wire.TransferLeader, &msg.TransferLeader{Server: 99}); code != fserr.NotExist {
		t.Errorf("leadership to nobody: %v %q", code, detail)
	}
	c.eventually("leadership to go where it is sent", func() bool { // and back, since the rest counts on who leads
		code, detail = c.adminAsk(wire.TransferLeader, &msg.TransferLeader{Server: c.serverID(a)})
		return code == fserr.OK && c.leaderIndex() == a
	})
	c.eventually("leadership to come back", func() bool {
		code, detail = c.adminAsk(wire.TransferLeader, &msg.TransferLeader{Server: c.serverID(lead)})
		return code == fserr.OK && c.leaderIndex() == lead
	})
	c.kill(a)
	// Of the two that would be left one is dead.
	for _, i := range []int{b, lead} {
		if code, detail = c.adminAsk(wire.RemoveMeta, &msg.RemoveMeta{Server: c.serverID(i)}); code != fserr.Busy || !strings.Contains(detail, "majority") {
			t.Errorf("removing server %d: %v %q", i, code, detail)
		}
	}
	// Several ask at once, and again.
	var wg sync.WaitGroup
	for range 3 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var code fserr.Code
			var detail string
			for end := time.Now().Add(time.Minute); time.Now().Before(end); {
				if code, detail = c.adminAsk(wire.RemoveMeta, &msg.RemoveMeta{Server: c.serverID(a)}); code != fserr.Busy { // see remove
					break
				}
			}
			if code != fserr.OK {
				t.Errorf("remove a dead server: %v %q", code, detail)
			}
		}()
	}
	wg.Wait()
	c.voters(2)
	c.remove(a)
	// A learner that never ran.
	i := c.make()
	c.remove(i)
	c.voters(2)
	// A join that broke off before Raft knew of it, and one whose address is used again.
	c.make()
	o := c.options(len(c.dirs) - 1)
	o.Addr = c.addrs[len(c.addrs)-1]
	o.Dir = filepath.Join(filepath.Dir(c.dirs[0]), "again")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := Join(ctx, o, c.addrs[:3]); err != nil {
		t.Errorf("join at the address of a learner that never came: %v", err)
	}
	if !c.leader().isRetired(id.MetaID(c.serverID(len(c.dirs) - 1))) {
		t.Error("the learner whose address was taken is not retired")
	}
	o.Addr, o.Dir = c.addrs[lead], filepath.Join(filepath.Dir(c.dirs[0]), "taken")
	if _, err := Join(ctx, o, c.addrs[:3]); !errors.Is(err, fserr.Exist) || !strings.Contains(err.Error(), "rm-mds") {
		t.Errorf("join at the address of a voter: %v", err)
	}
}

func TestRemovalThatBrokeOffIsFinished(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(o *Options) { o.SessionLease = 20 * time.Second })
	gone := (c.leaderIndex() + 1) % 3
	server := c.servers[gone].identity.server()
	// The leader dies after Raft's change.
	var lead int
	c.eventually("a leader to change Raft's members", func() bool {
		lead = c.leaderIndex()
		return lead != gone && c.servers[lead].raft.RemoveServer(raftID(server), 0, memberTimeout).Error() == nil
	})
	c.kill(lead)
	c.start(lead)
	c.retired(gone)
	if !c.leader().isRetired(server) {
		t.Error("the id is not retired")
	}
}

func TestServerMoves(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			c := newCluster(t, n, func(o *Options) { o.SessionLease = 20 * time.Second })
			k := newClient(c)
			k.create("a", false)
			for i := range n { // one after the other, the leader too
				c.kill(i)
				c.addrs[i] = ports.Hold(t)
				o := c.options(i)
				o.Addr = c.addrs[i]
				s, err := Open(o)
				if err != nil {
					t.Fatal(err)
				}
				c.set(i, s)
				c.eventually("the new address to be known", func() bool {
					for _, m := range c.leader().raftMembers() {
						if m.ID == s.raftID {
							return string(m.Address) == c.addrs[i]
						}
					}
					return false
				})
				k.create(fmt.Sprint("b", i), false)
			}
			for i := range n { // without -a they stay there
				c.kill(i)
				c.start(i)
				c.leader()
			}
			k.create("c", false)
			c.voters(n)
			c.sameEverywhere()
		})
	}
}

func TestRebuild(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(o *Options) {
		o.SnapshotEntries, o.SnapshotInterval, o.SessionLease = 4, 50*time.Millisecond, 20*time.Second
	})
	k := newClient(c)
	for i := range 40 {
		k.create(fmt.Sprint("f", i), false)
	}
	bad := (c.leaderIndex() + 1) % 3
	old := c.serverID(bad)
	c.kill(bad)
	if err := writeMarker(c.options(bad).withDefaults().FS, c.dirs[bad], marker{Kind: markDiverged, Reason: "test", Index: 7}); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(c.options(bad)); !errors.Is(err, ErrStopped) || !strings.Contains(err.Error(), "--rebuild") {
		t.Errorf("a server that diverged starts: %v", err)
	}
	c.remove(bad)
	for range 2 { // as if it broke off
		aside, err := SetAside(c.options(bad))
		if err != nil || aside != filepath.Join(c.dirs[bad], fmt.Sprint("old-mds", old)) {
			t.Fatalf("set aside in %q: %v", aside, err)
		}
		r, err := ReadResident(c.dirs[bad])
		if err != nil || !r.Aside || uint32(r.Server) != old {
			t.Errorf("resident %+v %v", r, err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	o := c.options(bad)
	o.Addr = c.addrs[bad]
	if _, err := Join(ctx, o, c.addrs); err != nil {
		t.Fatal(err)
	}
	c.start(bad)
	c.voters(3)
	if got := c.serverID(bad); got != 4 {
		t.Errorf("the rebuilt server has id %d, want 4", got)
	}
	k.create("more", false)
	c.sameEverywhere()
}

func TestNewLeaderHasNotHeard(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(o *Options) { o.ServerTimeout, o.SessionLease = time.Minute, 20*time.Second })
	one, two := newChunks(c), newChunks(c)
	k := newClient(c)
	ino := k.create("f", true).Attr.Ino
	two.halt() // comes back when there is a new leader
	c.kill(c.leaderIndex())
	var st *msg.StatusReply
	c.eventually("the first chunk server", func() bool {
		st = c.leader().status()
		return len(st.Servers) == 2 && (st.Servers[0].State == "live" || st.Servers[1].State == "live")
	})
	for _, x := range st.Servers {
		if x.Server == uint32(two.id) && x.State != stateUnheard {
			t.Errorf("chunk server that was not heard is %q", x.State)
		}
	}
	if st.LeadingMs <= 0 {
		t.Error("it does not say since when it leads")
	}
	// A chunk that is made now waits for the second server.
	type answer struct {
		r    *msg.MetaReply
		code fserr.Code
	}
	done := make(chan answer, 1)
	go func() {
		r, code := k.do(k.change(&msg.AllocChunk{Ino: ino, First: 0, Count: 1}))
		done <- answer{r, code}
	}()
	time.Sleep(300 * time.Millisecond)
	two.run()
	a := <-done
	if a.code != fserr.OK {
		t.Fatalf("alloc: %v %s", a.code, a.r.Detail)
	}
	if got := len(a.r.GetLayout().Chunks[0].Replicas); got != 2 {
		t.Errorf("the chunk begins with %d replicas, want 2", got)
	}
	one.halt()
}

func TestConfigIsChecked(t *testing.T) {
	c := newCluster(t, 1, nil)
	for _, tc := range []struct {
		key, value string
		code       fserr.Code
		want       string
	}{
		{"replicas", "2:1", fserr.OK, ""}, {"replicas", "2:1", fserr.OK, ""}, {"replicas", "7:1", fserr.Invalid, "NORM:MIN"},
		{"colour", "blue", fserr.Invalid, "not known"}, {"repair.grace", "10m", fserr.OK, ""}, {"repair.grace", "", fserr.OK, ""},
	} {
		if code, detail := c.adminAsk(wire.SetConfig, &msg.SetConfig{Key: tc.key, Value: tc.value}); code != tc.code || !strings.Contains(detail, tc.want) {
			t.Errorf("%s=%s: %v %q, want %v %q", tc.key, tc.value, code, detail, tc.code, tc.want)
		}
	}
	r, err := c.lead().getConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range r.Settings {
		if s.Key == "replicas" && (s.Value != "2:1" || s.Unset != "3:2") || s.Key == "repair.grace" && s.Value != "" || s.Help == "" {
			t.Errorf("setting %v", s)
		}
	}
	// The same value again is no event.
	before := c.leader().fsm.index()
	c.adminAsk(wire.SetConfig, &msg.SetConfig{Key: "replicas", Value: "2:1"})
	if after := c.leader().fsm.index(); after != before {
		t.Errorf("setting what holds made %d events", after-before)
	}
}

// TestLaggingServerCatchesUpFromCheckpoint stops a follower until the leader's log does not reach back to it, and starts it under load. It says
// what its journal lacks, and has the same state.
func TestLaggingServerCatchesUpFromCheckpoint(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(o *Options) {
		o.SnapshotEntries, o.SnapshotInterval, o.SessionLease = 16, 50*time.Millisecond, 20*time.Second
	})
	k := newClient(c)
	k.create("before", false)
	away := (c.leaderIndex() + 1) % 3
	c.eventually("the follower to have it", func() bool { return c.servers[away].fsm.index() >= c.leader().fsm.index() })
	gone := c.servers[away]
	c.kill(away)
	last, at := gone.journal.Last().Index, gone.fsm.raft
	stop := load(k, "f")
	c.eventually("logs that begin later, whoever is to lead", func() bool {
		for i, s := range c.servers {
			if i == away {
				continue
			}
			if first, err := s.raftLog.FirstIndex(); err != nil || first <= at+16 {
				return false
			}
		}
		return true
	})
	c.start(away)
	want := c.leader().fsm.index()
	c.eventually("the server to catch up", func() bool { return c.servers[away].fsm.index() >= want })
	t.Logf("%d files were made meanwhile", stop())
	j := c.servers[away].journal
	r, err := j.Reader(j.First())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var gap *journal.GapError
	prev, gaps := j.First()-1, 0
	for {
		rec, err := r.Next()
		if errors.As(err, &gap) {
			if gap.Last != prev || gap.Next <= gap.Last+1 || gap.Last < last {
				t.Errorf("gap from %d to %d behind record %d; it had %d", gap.Last, gap.Next, prev, last)
			}
			prev, gaps = gap.Next-1, gaps+1
			continue
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if rec.Index != prev+1 {
			t.Fatalf("record %d behind %d, and no word of a gap", rec.Index, prev)
		}
		prev = rec.Index
	}
	if gaps == 0 {
		t.Error("the journal has no gap: nothing was installed")
	}
	if p, err := j.Checkpoints(); err != nil || len(p) == 0 || p[len(p)-1].Index < gap.Last {
		t.Errorf("no checkpoint behind the gap: %v %v", p, err)
	}
	d1, err1 := c.leader().stateDigest(t.Context(), &msg.StateDigest{AtLeast: uint64(want)})
	d2, err2 := c.servers[away].stateDigest(t.Context(), &msg.StateDigest{AtLeast: d1.GetIndex()})
	if err1 != nil || err2 != nil || d1.Index == d2.Index && string(d1.Digest) != string(d2.Digest) {
		t.Errorf("digests differ: %v %v, %v %v", d1, err1, d2, err2)
	}
}
