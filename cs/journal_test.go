package cs

import (
	"errors"
	"math/rand"
	"slices"
	"strings"
	"testing"

	"varve/cs/ssd"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// newJournalServer is newTestServer with a write journal on a disk of its own.
func newJournalServer(t *testing.T, f *fakeLeader) (*testServer, *disk.Faulty) {
	t.Helper()
	fast := new(disk.Faulty)
	s := &testServer{o: testOptions(f), disk: new(disk.Faulty)}
	s.o.FS, s.o.JournalFS, s.o.Journal, s.o.JournalBytes = s.disk, fast, "/ssd", 16<<20
	mustInit(t, s.o)
	s.o.Journal, s.o.JournalBytes = "", 0 // the server knows
	s.start(t)
	s.waitServing(t)
	t.Cleanup(func() {
		s.Kill()
		fast.Kill()
		s.disk.Kill()
	})
	return s, fast
}

// TestJournal flushes writes into the journal, loses power on both disks, and finds them.
func TestJournal(t *testing.T) {
	f := newFakeLeader(t)
	s, fast := newJournalServer(t, f)
	rng := rand.New(rand.NewSource(1))
	f.create(7, 1, s)
	for i := range 5 {
		c := dial(t, s, 5)
		p, q := pattern(uint64(i), block), pattern(uint64(100+i), block)
		c.want(c.write(7, 1, 0, p), fserr.OK, "write")
		c.want(c.write(7, 1, 40*block, q), fserr.OK, "write")
		code, _, _ := c.do(wire.Flush, 1, wire.DataRequest{Chunk: 7}, nil)
		c.want(code, fserr.OK, "flush")
		if st := s.Stats(); st.Journal == nil || st.Journal.Journaled == 0 || st.Journal.Size == 0 || s.heartbeat().Journal.GetJournaled() == 0 {
			t.Fatalf("statistics of the journal: %+v", st.Journal)
		}
		s.disk.PowerOff()
		fast.PowerOff()
		s.Kill()
		s.disk.Crash(rng)
		fast.Crash(rng)
		s.start(t)
		s.waitServing(t)
		f.must(s.ID(), wire.ChunkAccept, &msg.ChunkAccept{Chunks: []uint64{7}})
		c = dial(t, s, 5)
		for off, want := range map[uint32][]byte{0: p, 40 * block: q} {
			code, got := c.read(7, 1, off, block)
			c.want(code, fserr.OK, "read")
			if !slices.Equal(got, want) {
				t.Fatalf("round %d: other bytes at %d than were flushed", i, off)
			}
		}
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	var dump strings.Builder
	if err := DumpJournal(&dump, s.o); err != nil || !strings.Contains(dump.String(), "generation 6") {
		t.Fatalf("%v: %s", err, dump.String())
	}
	fsys, done, err := OpenDisk(s.o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fsys.Open("/cs/cs.json", disk.ReadWrite); err == nil {
		t.Error("a stopped server's disk can be written to")
	}
	if err := done(); err != nil {
		t.Error(err)
	}
}

// TestLostJournal takes the journal away, exchanges it and puts an older one in its place: the server refuses to start, until it is told
// to give the journal up; then no chunk of it is served before it has joined again.
func TestLostJournal(t *testing.T) {
	f := newFakeLeader(t)
	s, fast := newJournalServer(t, f)
	f.create(7, 1, s)
	c := dial(t, s, 5)
	c.want(c.write(7, 1, 0, pattern(1, block)), fserr.OK, "write")
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused := func(o Options, want error, words string) {
		t.Helper()
		if _, err := Open(o); !errors.Is(err, want) || !strings.Contains(err.Error(), words) {
			t.Fatalf("got %v, want %v and %q", err, want, words)
		}
	}
	o := s.o
	o.LostJournal = true
	refused(o, fserr.Exist, "sound")
	gone := s.o
	gone.JournalFS = new(disk.Faulty)
	refused(gone, ssd.ErrLost, "--lost-journal")

	other := ssd.Options{Fast: gone.JournalFS, Dir: "/ssd", Journal: ssd.UUID{1}, Server: ssd.UUID{2}, Cluster: testCluster, Bytes: ssd.MinBytes}
	if err := ssd.Create(other); err != nil {
		t.Fatal(err)
	}
	refused(gone, ssd.ErrLost, "belongs to another server")
	lost := gone
	lost.LostJournal = true
	refused(lost, fserr.Exist, "journal of another server") // which does not lose it for that

	lost.Journal = "/ssd2"
	s.o = lost
	s.start(t)
	s.waitServing(t)
	if r := f.report(s.ID()); len(r) != 1 || !r[0].Joining {
		t.Fatalf("report after the journal was lost: %+v", r)
	}
	c = dial(t, s, 5)
	code, _ := c.read(7, 1, 0, block)
	c.want(code, fserr.NotReady, "read of a chunk that lost its journal")
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := s.o
	back.Journal, back.LostJournal, back.JournalFS = "/ssd", false, fast
	refused(back, ssd.ErrLost, "given another one")

	s.o.Journal, s.o.JournalFS = NoJournal, new(disk.Faulty)
	s.start(t)
	s.waitServing(t)
	if s.Stats().Journal != nil {
		t.Error("there is a journal after it was given up")
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.o.LostJournal, s.o.Journal = false, ""
	s.start(t)
	s.waitServing(t)
}

// TestFailedJournal has the journal's disk fail: the server tells its leader that it is out of service, and refuses what it can no longer
// promise.
func TestFailedJournal(t *testing.T) {
	f := newFakeLeader(t)
	s, fast := newJournalServer(t, f)
	f.create(7, 1, s)
	c := dial(t, s, 5)
	c.want(c.write(7, 1, 0, pattern(1, block)), fserr.OK, "write")
	bad := errors.New("the SSD is worn out")
	fast.Inject(func(op disk.Op) error {
		if op.Kind == disk.OpWrite || op.Kind == disk.OpSync {
			return bad
		}
		return nil
	})
	code, _, _ := c.do(wire.Flush, 1, wire.DataRequest{Chunk: 7}, nil)
	c.want(code, fserr.IO, "flush with a failed journal")
	c.want(c.write(7, 1, 0, pattern(2, block)), fserr.IO, "write with a failed journal")
	if h := s.heartbeat(); h.State != "failed" {
		t.Errorf("state %q after the journal failed", h.State)
	}
}
