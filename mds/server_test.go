package mds

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/journal"
	"varve/test/ports"
)

func TestSingleServerNamespace(t *testing.T) {
	c := newCluster(t, 1, nil)
	k := newClient(c)
	a := k.create("a", false)
	if a.Attr.GetIno() == 0 {
		t.Fatalf("create answered %v", a)
	}
	if _, code := k.do(k.change(&msg.Create{Parent: 1, Name: []byte("a"), Type: msg.FileType_REGULAR, Exclusive: true})); code != fserr.Exist {
		t.Errorf("second exclusive create: %v, want %v", code, fserr.Exist)
	}
	k.must(k.change(&msg.Rename{Parent: 1, Name: []byte("a"), NewParent: 1, NewName: []byte("b")}))
	if _, code := k.do(k.read(&msg.Lookup{Parent: 1, Name: []byte("a")})); code != fserr.NotExist {
		t.Errorf("lookup of the old name: %v, want %v", code, fserr.NotExist)
	}
	if r := k.must(k.read(&msg.Lookup{Parent: 1, Name: []byte("b")})); r.Attr.Ino != a.Attr.Ino {
		t.Errorf("lookup of the new name: inode %d, want %d", r.Attr.Ino, a.Attr.Ino)
	}
	if r := k.must(k.read(&msg.ReadDir{Ino: 1, Max: 10})); len(r.GetReadDir().Entries) != 1 {
		t.Errorf("readdir: %v", r.GetReadDir())
	}
	if st := c.leader().status(); st.Name != "test" || st.Inodes != 2 || len(st.Sessions) != 1 || st.Metas[0].State != "leader" {
		t.Errorf("status: %v", st)
	}
}

func TestRepeatIsAnsweredOnce(t *testing.T) {
	c := newCluster(t, 1, nil)
	k := newClient(c)
	req := k.change(&msg.Create{Parent: 1, Name: []byte("a"), Type: msg.FileType_REGULAR, Exclusive: true})
	type answer struct {
		ino  uint64
		code fserr.Code
	}
	answers := make(chan answer, 8)
	for range cap(answers) {
		go func() {
			r, code := k.do(req)
			answers <- answer{r.Attr.GetIno(), code}
		}()
	}
	first := <-answers
	for range cap(answers) - 1 {
		if a := <-answers; a != first || a.code != fserr.OK {
			t.Errorf("a repeat got %v, the first %v", a, first)
		}
	}
}

func TestLeaderKilledRetryGetsFirstAnswer(t *testing.T) {
	c := newCluster(t, 3, nil)
	k := newClient(c)
	var reqs []*msg.MetaRequest
	var inos []uint64
	for i := range 20 {
		req := k.change(&msg.Create{Parent: 1, Name: fmt.Appendf(nil, "f%d", i), Type: msg.FileType_REGULAR, Exclusive: true})
		reqs = append(reqs, req)
		inos = append(inos, k.must(req).Attr.Ino)
	}
	start := time.Now()
	c.kill(c.leaderIndex())
	for i, req := range reqs {
		if r := k.must(req); r.Attr.Ino != inos[i] {
			t.Errorf("repeat of create %d: inode %d, first %d", i, r.Attr.Ino, inos[i])
		}
	}
	t.Logf("answers again after %v", time.Since(start))
	k.create("after", false)
}

// journals returns all records of a server's journal from an index on.
func journals(t testing.TB, s *Server, from id.Index) []byte {
	t.Helper()
	var all []byte
	for {
		b, next, err := s.journal.ReadRaw(from, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) == 0 {
			return all
		}
		err = journal.DecodeRaw(b, func(r journal.Record) error {
			all = fmt.Appendf(all, "%d %d %d %x\n", r.Index, r.Raft, r.Time, r.Payload)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		from = next
	}
}

// afterGaps returns the index from which the server's journal has all records: on a busy machine it may have been sent a snapshot in between.
func afterGaps(t testing.TB, s *Server) id.Index {
	t.Helper()
	first := max(s.journal.First(), 1)
	for from := first; ; {
		b, next, err := s.journal.ReadRaw(from, 1<<20)
		var gap *journal.GapError
		switch {
		case errors.As(err, &gap):
			first, from = gap.Next, gap.Next
		case err != nil:
			t.Fatal(err)
		case len(b) == 0:
			return first
		default:
			from = next
		}
	}
}

// sameEverywhere compares states and journals of all servers, at an index at which the cluster stands still for a moment.
func (c *testCluster) sameEverywhere() (id.Index, string) {
	c.t.Helper()
	var index id.Index
	var digest string
	var faults []string
	for range 50 {
		index = c.leader().fsm.index()
		digest, faults = c.compareAt(index)
		if c.leader().fsm.index() == index {
			break
		}
	}
	for _, f := range faults {
		c.t.Error(f)
	}
	return index, digest
}

func (c *testCluster) compareAt(index id.Index) (digest string, faults []string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c.mu.Lock()
	servers := append([]*Server(nil), c.servers...)
	c.mu.Unlock()
	first := id.Index(1) // a server that was sent a snapshot has what comes after it
	for _, s := range servers {
		first = max(first, afterGaps(c.t, s))
	}
	var records string
	for i, s := range servers {
		c.eventually("a server to have it in its journal", func() bool { return s.journal.Last().Index >= index }) // which follows the state
		d, err := s.stateDigest(ctx, &msg.StateDigest{AtLeast: uint64(index)})
		if err != nil {
			c.t.Fatal(err)
		}
		j := string(journals(c.t, s, first))
		if i == 0 {
			digest, records = fmt.Sprintf("%x", d.Digest), j
			continue
		}
		if got := fmt.Sprintf("%x", d.Digest); got != digest {
			faults = append(faults, fmt.Sprintf("digest of server %d at %d: %s, of server 0: %s", i, d.Index, got, digest))
		}
		if j != records {
			faults = append(faults, fmt.Sprintf("journal of server %d differs: %d and %d bytes", i, len(j), len(records)))
		}
	}
	return digest, faults
}

func TestRestartAllSameDigest(t *testing.T) {
	for _, snapshots := range []bool{false, true} {
		t.Run(fmt.Sprintf("snapshots=%v", snapshots), func(t *testing.T) {
			c := newCluster(t, 3, func(o *Options) {
				o.SessionLease = time.Minute
				if snapshots {
					o.SnapshotEntries, o.SnapshotInterval = 8, 50*time.Millisecond
				}
			})
			k := newClient(c)
			for i := range 50 {
				k.create(fmt.Sprintf("f%d", i), i%2 == 0)
			}
			if snapshots {
				c.eventually("a checkpoint", func() bool {
					p, err := c.leader().journal.Checkpoints()
					return err == nil && len(p) > 0
				})
			}
			index, digest := c.sameEverywhere()
			for i := range c.servers {
				c.kill(i)
			}
			for i := range c.servers {
				c.start(i)
			}
			again, digestAgain := c.sameEverywhere()
			if again != index || digestAgain != digest {
				t.Errorf("after the restart index %d digest %s, before %d %s", again, digestAgain, index, digest)
			}
			k.create("more", false)
			c.sameEverywhere()
		})
	}
}

func TestSnapshotIsInstalled(t *testing.T) {
	c := newCluster(t, 3, func(o *Options) {
		o.SnapshotEntries, o.SnapshotInterval, o.SessionLease = 4, 50*time.Millisecond, time.Minute
	})
	k := newClient(c)
	away := (c.leaderIndex() + 1) % 3
	c.kill(away)
	for i := range 60 {
		k.create(fmt.Sprintf("f%d", i), false)
	}
	c.eventually("a short raft log", func() bool {
		first, err := c.leader().raftLog.FirstIndex()
		return err == nil && first > 30
	})
	c.start(away)
	want := c.leader().fsm.index()
	c.eventually("the server to catch up", func() bool { return c.servers[away].journal.Last().Index >= want })
	c.eventually("the journals to end at the same record", func() bool {
		return c.servers[away].journal.Last().Index == c.leader().journal.Last().Index
	})
	if got, want := c.servers[away].journal.Last(), c.leader().journal.Last(); got.Index == want.Index && got.Chain != want.Chain {
		t.Errorf("journal ends at %+v, the leader's at %+v", got, want)
	}
}

func TestShutdownHandsOver(t *testing.T) {
	c := newCluster(t, 3, nil)
	k := newClient(c)
	k.create("a", false)
	i := c.leaderIndex()
	start := time.Now()
	if err := c.servers[i].Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	c.set(i, nil)
	c.leader()
	t.Logf("the next leader serves after %v", time.Since(start))
	k.must(k.read(&msg.Lookup{Parent: 1, Name: []byte("a")}))
}

func TestFollowerAndStaleLeaderRefuse(t *testing.T) {
	c := newCluster(t, 3, nil)
	k := newClient(c)
	k.create("a", false)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c.eventually("a follower to name the leader", func() bool {
		l := c.lead()
		follower := c.servers[(c.leaderIndex()+1)%3]
		conn, _, err := wire.Dial(ctx, follower.Addr(), &msg.Hello{Cluster: c.cluster[:], Role: msg.Hello_CLIENT, Session: uint64(k.session)}, nil, wire.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		reply := new(msg.MetaReply)
		code, err := conn.CallMessage(ctx, wire.Meta, wire.ClassMeta, k.read(&msg.Lookup{Parent: 1, Name: []byte("a")}), reply)
		if c.lead() != l || l.s == follower {
			return false // another was elected meanwhile
		}
		if err != nil || code != fserr.NotLeader {
			t.Fatalf("a follower answered %v %v", code, err)
		}
		return reply.Leader == l.s.Addr()
	})
	// A leader that is alone answers no read once its lease is over.
	l := c.lead()
	old := l.s
	i := slices.Index(c.servers, old)
	for j := range c.servers {
		if j != i {
			c.kill(j)
		}
	}
	time.Sleep(old.readLease())
	if l.leased() {
		t.Error("the leader still has its read lease")
	}
	if err := l.confirmRead(ctx); err == nil {
		t.Error("a leader without a majority confirmed a read")
	}
}

func TestGarbageOnThePort(t *testing.T) {
	c := newCluster(t, 1, nil)
	k := newClient(c)
	for _, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", "VRFT", "VRFT0123456789abcdef", "VRV1" + strings.Repeat("\xff", 100), "x", ""} {
		conn, err := net.Dial("tcp", c.addrs[0])
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte(garbage))
		conn.Close()
	}
	k.create("a", false)
}

func TestDirectoryIsRefused(t *testing.T) {
	c := newCluster(t, 1, nil)
	for _, tc := range []struct {
		name, want string
		open       func() error
	}{
		{"in use", "stop the metadata server", func() error { _, err := Open(c.options(0)); return err }},
		{"missing", "make-mds", func() error { _, err := Open(Options{Dir: t.TempDir()}); return err }},
		{"other cluster", "belongs to cluster", func() error { o := c.options(0); o.Name = "other"; _, err := Open(o); return err }},
		{"not empty", "choose an empty", func() error {
			o := c.options(0)
			o.Addr, o.Name = ports.Hold(t), "x"
			_, err := Init(o)
			return err
		}},
		{"all faults at once", "name", func() error {
			_, err := Init(Options{Dir: t.TempDir(), Addr: "nowhere:1:2", Name: "a b", Replicas: "9:9"})
			return err
		}},
	} {
		err := tc.open()
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want one that says %q", tc.name, err, tc.want)
		}
	}
}

func TestJournalIsRead(t *testing.T) {
	c := newCluster(t, 1, func(o *Options) { o.SnapshotEntries, o.SnapshotInterval = 4, 50*time.Millisecond })
	k := newClient(c)
	for i := range 20 {
		k.create(fmt.Sprintf("f%d", i), false)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, hello, err := wire.Dial(ctx, c.addrs[0], &msg.Hello{Role: msg.Hello_ADMIN}, nil, wire.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if hello.Name != "test" || !bytes.Equal(hello.Cluster, c.cluster[:]) {
		t.Errorf("hello: %v", hello)
	}
	ask := func(req *msg.JournalRead) (*msg.JournalReadReply, []byte) {
		body, err := req.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		f, err := conn.Call(ctx, &wire.Frame{Type: wire.JournalRead, Class: wire.ClassMeta, Body: body})
		if err != nil || f.Code != fserr.OK {
			t.Fatalf("journal read: %v %v", f, err)
		}
		defer f.Release()
		r := new(msg.JournalReadReply)
		if err := r.UnmarshalVT(f.Body); err != nil {
			t.Fatal(err)
		}
		return r, bytes.Clone(f.Data)
	}
	n := 0
	for req := (&msg.JournalRead{From: 1, MaxBytes: 500}); ; {
		r, data := ask(req)
		if err := journal.DecodeRaw(data, func(journal.Record) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
		if !r.More {
			if uint64(n) < 20 || uint64(n) > r.Last {
				t.Errorf("read %d records, last is %d", n, r.Last)
			}
			break
		}
		req.From = r.Next
	}
	c.eventually("a checkpoint", func() bool { p, _ := c.leader().journal.Checkpoints(); return len(p) > 0 })
	whole, all := ask(&msg.JournalRead{Checkpoint: true, CheckpointAt: uint64(c.leader().fsm.index())})
	var parts []byte
	for req := (&msg.JournalRead{Checkpoint: true, CheckpointAt: whole.Checkpoint, MaxBytes: 100}); ; {
		r, data := ask(req)
		parts = append(parts, data...)
		if !r.More {
			break
		}
		req.From = r.Next
	}
	if len(all) == 0 || !bytes.Equal(all, parts) {
		t.Errorf("checkpoint of %d bytes, in pieces %d", len(all), len(parts))
	}
}
