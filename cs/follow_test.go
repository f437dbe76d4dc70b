package cs

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

func (f *fakeLeader) report(server id.ServerID) []*msg.ChunkInfo {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reports[uint32(server)]
}

func (f *fakeLeader) reportsOf(server id.ServerID) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reported[uint32(server)]
}

func TestInit(t *testing.T) {
	f := newFakeLeader(t)
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	d := new(disk.Faulty)
	o := testOptions(f)
	o.FS = d

	answered := func(o Options) (n id.ServerID, err error) { // whatever a busy machine makes of it at first
		for {
			if n, err = Init(ctx, o); !errors.Is(err, fserr.Unavailable) || ctx.Err() != nil {
				return n, err
			}
		}
	}
	other := o
	other.Name = "sea"
	if _, err := answered(other); !errors.Is(err, fserr.WrongCluster) {
		t.Errorf("cluster of another name: %v", err)
	}
	other = o
	other.Cluster = id.Cluster{9}
	if _, err := answered(other); !errors.Is(err, fserr.WrongCluster) {
		t.Errorf("cluster of another uuid: %v", err)
	}
	// An attempt that finds no leader leaves an identity that the next one takes up.
	f.set(func() { f.silent, f.refused = true, make(chan struct{}, 1) })
	short, stop := context.WithCancel(ctx)
	go func() { <-f.refused; stop() }()
	for short.Err() == nil {
		if _, err := Init(short, o); !errors.Is(err, fserr.Unavailable) {
			t.Fatalf("no leader: %v", err)
		}
	}
	half, err := readIdentity(d, o.Dir)
	if err != nil || half.Server != 0 {
		t.Fatalf("identity after an attempt that failed: %+v, %v", half, err)
	}
	if _, err := Open(o); !errors.Is(err, fserr.NotReady) {
		t.Errorf("open of a server without an id: %v", err)
	}
	f.set(func() { f.silent = false })
	n, err := Init(ctx, o)
	if err != nil || n != 1 {
		t.Fatalf("init: %v, %v", n, err)
	}
	whole, err := readIdentity(d, o.Dir)
	if err != nil || whole.UUID != half.UUID || whole.Name != "lake" || whole.cluster() != testCluster {
		t.Errorf("identity: %+v, %v", whole, err)
	}
	if _, err := Init(ctx, o); !errors.Is(err, fserr.Exist) {
		t.Errorf("init again: %v", err)
	}
	if _, err := Init(ctx, other); !errors.Is(err, fserr.WrongCluster) {
		t.Errorf("init of another cluster's directory: %v", err)
	}
	if _, err := Open(other); !errors.Is(err, fserr.WrongCluster) {
		t.Errorf("open of another cluster's directory: %v", err)
	}

	o.Dir = "/full"
	if err := d.MkdirAll("/full/data"); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(ctx, o); !errors.Is(err, fserr.NotEmpty) {
		t.Errorf("init of a directory with other data: %v", err)
	}
	if _, err := Open(o); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open of a directory without identity: %v", err)
	}
	_, err = Init(ctx, Options{Addr: "0.0.0.0:1", Tier: 9, Memory: 5, Rebuilds: -1})
	for _, want := range []string{"no directory", "0.0.0.0", "tier 9", "memory of 5 bytes", "Rebuilds -1", "no metadata servers"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("options: %q is missing in %v", want, err)
		}
	}
}

func TestDoubleStartAndShutdown(t *testing.T) {
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	f.create(7, 1, s)
	if _, err := Open(s.o); err == nil {
		t.Fatal("a directory was opened twice")
	}
	c := dial(t, s, 5)
	c.want(c.write(7, 1, 0, pattern(1, block)), fserr.OK, "write")
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-s.run; err != nil {
		t.Errorf("run: %v", err)
	}
	s.disk.Kill()
	s.start(t)
	s.waitServing(t)
	if r := f.report(s.ID()); len(r) != 1 || r[0].Id != 7 || r[0].Epoch != 1 || r[0].Unclean || r[0].Joining {
		t.Errorf("report after an orderly end: %+v", r)
	}
	c = dial(t, s, 5)
	code, _ := c.read(7, 1, 0, block)
	c.want(code, fserr.OK, "read after a restart")
}

func TestUncleanRestart(t *testing.T) {
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	f.create(7, 1, s)
	f.create(8, 1, s)
	f.create(9, 1, s)
	c := dial(t, s, 5)
	p := pattern(1, block)
	c.want(c.write(7, 1, 0, p), fserr.OK, "write")
	c.want(c.write(9, 1, 0, p), fserr.OK, "write")
	s.crash()
	s.start(t)
	s.waitServing(t)
	r := f.report(s.ID())
	unclean := map[uint64]bool{}
	for _, i := range r {
		unclean[i.Id] = i.Unclean
	}
	if len(r) != 3 || !unclean[7] || unclean[8] || !unclean[9] {
		t.Errorf("report after a crash: %+v", r)
	}
	c = dial(t, s, 5)
	code, _ := c.read(7, 1, 0, block)
	c.want(code, fserr.NotReady, "read of an unclean chunk")
	f.must(s.ID(), wire.ChunkAccept, &msg.ChunkAccept{Chunks: []uint64{9}})
	f.must(s.ID(), wire.ChunkDelete, &msg.ChunkDelete{Chunks: []uint64{8}})
	code, _ = c.read(8, 1, 0, block)
	c.want(code, fserr.NoChunk, "read of a removed chunk")
	code, got := c.read(9, 1, 0, block)
	c.want(code, fserr.OK, "read of an accepted chunk")
	if !slices.Equal(got, p) {
		t.Error("an accepted chunk has other bytes")
	}
	f.must(s.ID(), wire.ChunkAccept, &msg.ChunkAccept{Chunks: []uint64{7}})
	code, _ = c.read(7, 1, 0, block)
	c.want(code, fserr.OK, "read after accept")
	f.must(s.ID(), wire.ChunkAdopt, &msg.ChunkAdopt{Chunk: 7, Epoch: 5})
	code, _ = c.read(7, 1, 0, block)
	c.want(code, fserr.StaleEpoch, "read after adopt")
	f.must(s.ID(), wire.ChunkPunch, &msg.ChunkPunch{Chunk: 7, Epoch: 5, From: 10, To: 20})
	f.must(s.ID(), wire.ChunkDelete, &msg.ChunkDelete{Chunks: []uint64{7, 9, 77}})
	if n := s.store.Count(); n != 0 {
		t.Errorf("%d chunks after all were deleted", n)
	}
}

func TestLeaseRunsOut(t *testing.T) {
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	f.create(7, 1, s)
	c := dial(t, s, 5)
	p := pattern(1, block)
	c.want(c.write(7, 1, 0, p), fserr.OK, "write")

	// A write that is under way when the lease ends is waited for before the lease begins again.
	g := s.hang.hang()
	wrote := make(chan fserr.Code, 1)
	go func() { wrote <- c.write(7, 1, block, p) }()
	<-g.arrived
	s.endLease(t, f)
	c.want(c.write(7, 1, 0, p), fserr.Unavailable, "write without a lease")
	code, _ := c.read(7, 1, 0, block)
	c.want(code, fserr.Unavailable, "read without a lease")
	reports := f.reportsOf(s.ID())
	f.set(func() { f.silent = false })
	time.Sleep(100 * time.Millisecond)
	if s.lease.held() {
		t.Error("the lease began again with a request of the old one under way")
	}
	s.hang.release()
	c.want(<-wrote, fserr.OK, "write that was under way")
	s.waitServing(t)
	wait(t, "a report", func() bool { return f.reportsOf(s.ID()) > reports })
	c.want(c.write(7, 1, 0, p), fserr.OK, "write with a lease again")
}

func TestLeaderChange(t *testing.T) {
	f1, f2 := newFakeLeader(t), newFakeLeader(t)
	f1.set(func() { f1.follows = f2.addr() })
	d := new(disk.Faulty)
	s := &testServer{o: testOptions(f1), disk: d, hang: &hangFS{FS: d}} // it knows only the follower
	s.o.FS = s.hang
	mustInit(t, s.o)
	s.start(t)
	defer func() { s.Kill(); d.Kill() }()
	s.waitServing(t)
	f2.create(7, 1, s)
	c := dial(t, s, 5)
	p := pattern(1, block)
	c.want(c.write(7, 1, 0, p), fserr.OK, "write")

	// f2 dies and f1 leads; nothing is refused meanwhile.
	s.finder.learn([]string{f1.addr()})
	f2.stop()
	for range 50 {
		c.want(c.write(7, 1, 0, p), fserr.OK, "write without a leader")
		time.Sleep(time.Millisecond)
	}
	f1.set(func() { f1.follows = "" })
	wait(t, "the new leader to have a report", func() bool { return f1.reportsOf(s.ID()) > 0 })
	if r := f1.report(s.ID()); len(r) != 1 || r[0].Id != 7 {
		t.Errorf("report to the new leader: %+v", r)
	}
	c.want(c.write(7, 1, 0, p), fserr.OK, "write")
	wait(t, "the list of members to be kept", func() bool { return slices.Equal(s.whoami().Metas, []string{f1.addr()}) })
}

func TestReportPages(t *testing.T) {
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	for i := range 40 {
		f.create(id.ChunkID(i+1), 1, s)
	}
	pages := 0
	f.set(func() {
		f.answer = func(m *msg.ChunkReport) *msg.ChunkReportReply {
			pages++
			return &msg.ChunkReportReply{}
		}
	})
	before := f.reportsOf(s.ID())
	f.set(func() { f.conns[uint32(s.ID())].Close() })
	wait(t, "a report", func() bool { return f.reportsOf(s.ID()) > before })
	if n := len(f.report(s.ID())); n != 40 || pages != 1 {
		t.Errorf("%d chunks reported in %d pages", n, pages)
	}
}
