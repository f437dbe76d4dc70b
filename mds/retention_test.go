package mds

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/journal"
	"varve/mds/event"
	"varve/mds/settings"
	"varve/mds/state"
)

// journalBytes is what the files of a server's journal take up.
func journalBytes(t *testing.T, s *Server) int64 {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.o.Dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	var n int64
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		n += info.Size()
	}
	return n
}

// replayAll replays a server's journal from before its oldest record, and returns where that was and the digest at the end. Behind a
// hole it goes on from the checkpoint that was installed.
func replayAll(t *testing.T, j *journal.Journal, to id.Index) (from id.Index, digest [32]byte) {
	t.Helper()
	st := state.New()
	load := func(index id.Index) {
		err := j.ReadCheckpoint(index, func(at journal.Position, r io.Reader) (err error) {
			if at.Index != index {
				t.Fatalf("records go on after %d, the checkpoint before them is at %d", index, at.Index)
			}
			st, err = state.Read(r)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	first := j.First()
	if first > 1 {
		load(first - 1)
	}
	r, err := j.Reader(first)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for st.Index() < to {
		rec, err := r.Next()
		var gap *journal.GapError
		if errors.As(err, &gap) {
			load(gap.Next - 1)
			continue
		}
		if err != nil {
			t.Fatalf("after record %d of %d: %v", st.Index(), to, err)
		}
		ev := new(event.Event)
		if err := ev.UnmarshalVT(rec.Payload); err != nil {
			t.Fatal(err)
		}
		st.Apply(ev)
	}
	return first, st.Digest()
}

// TestRetentionByBytes gives the journals of three servers little room, and makes events many times that.
func TestRetentionByBytes(t *testing.T) {
	const limit = 64 << 10
	c := newCluster(t, 3, func(o *Options) {
		o.SegmentBytes, o.SnapshotEntries, o.SnapshotInterval = 8<<10, 32, 20*time.Millisecond
		o.RetentionInterval, o.CheckpointEvents, o.SessionLease = 20*time.Millisecond, 200, time.Minute
	})
	k := newClient(c)
	// Below what an administrator may ask for, so that the test is short.
	c.eventually("the limit to be set", func() bool {
		return c.lead().propose(&event.Event{Body: &event.Event_ConfigSet{ConfigSet: &event.ConfigSet{
			Key: settings.JournalBytes, Value: fmt.Sprint(limit)}}}, "test") == nil
	})
	name := strings.Repeat("a-rather-long-name-", 8)
	peak := make([]int64, 3)
	// One file that is made and removed again, so that the state and with it a checkpoint stays small.
	for range 600 {
		k.create(name, false)
		k.must(k.change(&msg.Remove{Parent: 1, Name: []byte(name)}))
		for i, s := range c.servers {
			n := journalBytes(t, s)
			// Between two looks it may grow by what the events are, and Raft keeps two snapshots' worth: a disk that is busy has time to do it.
			for peak[i] = max(peak[i], n); n > 4*limit; n = journalBytes(t, s) {
				c.eventually("old events to be dropped", func() bool { return journalBytes(t, s) < n })
			}
		}
	}
	for i, s := range c.servers {
		c.eventually("the journal to be within its limit", func() bool { return journalBytes(t, s) <= limit })
		if s.journal.First() == 1 {
			t.Errorf("server %d: nothing was dropped", i)
		}
		t.Logf("server %d: first record %d of %d, at most %d bytes", i, s.journal.First(), s.journal.Last().Index, peak[i])
	}
	for i := range c.servers { // what Raft needs at the start is there
		c.kill(i)
	}
	for i := range c.servers {
		c.start(i)
	}
	k.create("after", false)
	index := c.leader().fsm.index()
	c.eventually("all to have applied it", func() bool {
		return !slices.ContainsFunc(c.servers, func(s *Server) bool { return s.journal.Last().Index < index })
	})
	var digests [3][32]byte
	for i := range c.servers { // stopped, since a server that runs may drop what is being read
		c.kill(i)
		dir := filepath.Join(c.dirs[i], "journal")
		rep, err := journal.Verify(journal.Options{Dir: dir}, nil)
		if err != nil {
			t.Fatal(err)
		}
		j, err := journal.Open(journal.Options{Dir: dir, ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		first, got := replayAll(t, j, index)
		digests[i] = got
		points, err := j.Checkpoints()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range points { // every checkpoint is what replay from the oldest record gives
			_, want := replayAll(t, j, p.Index)
			err := j.ReadCheckpoint(p.Index, func(_ journal.Position, r io.Reader) error {
				st, err := state.Read(r)
				if err == nil && st.Digest() != want {
					t.Errorf("server %d: checkpoint at %d has another digest than replay from %d", i, p.Index, first)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
		t.Logf("server %d: replayed %d to %d, %x; %+v", i, first, index, got[:4], rep)
		j.Close()
	}
	if digests[0] != digests[1] || digests[0] != digests[2] {
		t.Errorf("digests at %d: %x", index, digests)
	}
}

// TestRetentionByAge sets ages through an administrator's request.
func TestRetentionByAge(t *testing.T) {
	c := newCluster(t, 1, func(o *Options) {
		o.SegmentBytes, o.SnapshotEntries, o.SnapshotInterval = 4<<10, 8, 20*time.Millisecond
		o.RetentionInterval, o.SessionLease = 20*time.Millisecond, time.Minute
	})
	k := newClient(c)
	for i := range 100 {
		k.create(fmt.Sprint("f", i), false)
	}
	if code, detail := c.adminAsk(wire.SetConfig, &msg.SetConfig{Key: settings.JournalAge, Value: "1h"}); code != fserr.OK {
		t.Fatal(code, detail)
	}
	s := c.leader()
	for i := range 50 {
		k.create(fmt.Sprint("g", i), false)
	}
	time.Sleep(10 * s.o.RetentionInterval) // nothing is expected to happen
	if first := s.journal.First(); first != 1 {
		t.Fatalf("dropped up to %d what is not an hour old", first)
	}
	if code, detail := c.adminAsk(wire.SetConfig, &msg.SetConfig{Key: settings.JournalAge, Value: "1ms"}); code != fserr.OK {
		t.Fatal(code, detail)
	}
	n := 0
	c.eventually("old events to be dropped", func() bool {
		n++
		k.create(fmt.Sprint("h", n), false)
		return s.journal.First() > 100
	})
	c.kill(0)
	j, err := journal.Open(journal.Options{Dir: filepath.Join(c.dirs[0], "journal"), ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	replayAll(t, j, j.Last().Index)
}

func TestNeededFrom(t *testing.T) {
	if got := neededFrom(nil); got != 0 {
		t.Errorf("no snapshot: want 0, got %d", got)
	}
	if got := neededFrom([]*raft.SnapshotMeta{{Index: 90}, {Index: 40}}); got != 40 {
		t.Errorf("want 40, got %d", got)
	}
}

// TestJournalTailIsClosedFromRaft cuts the journal of a stopped server, as loss of power does, and checks that its gap is closed from
// Raft's log, with the same records as before.
func TestJournalTailIsClosedFromRaft(t *testing.T) {
	for _, tt := range []struct {
		servers int
		cuts    []int64 // within the last record, several, all of the segment
	}{{1, []int64{1, 700, 1 << 20}}, {3, []int64{100}}} {
		t.Run(fmt.Sprintf("servers=%d", tt.servers), func(t *testing.T) {
			c := newCluster(t, tt.servers, func(o *Options) { o.SegmentBytes, o.SessionLease = 4<<10, time.Minute })
			k := newClient(c)
			for i := range 100 {
				k.create(fmt.Sprint("f", i), false)
			}
			c.sameEverywhere()
			for _, cut := range tt.cuts {
				i := c.leaderIndex()
				want := journals(t, c.servers[i], 1)
				last := c.servers[i].journal.Last()
				c.kill(i)
				paths, err := filepath.Glob(filepath.Join(c.dirs[i], "journal", "*.seg"))
				if err != nil || len(paths) == 0 {
					t.Fatal(paths, err)
				}
				path := slices.Max(paths)
				info, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				const header = 96
				if err := os.Truncate(path, max(header, info.Size()-cut)); err != nil {
					t.Fatal(err)
				}
				c.start(i)
				c.eventually("the gap to be closed", func() bool { return c.servers[i].journal.Last().Index >= last.Index })
				if got := journals(t, c.servers[i], 1); !bytes.HasPrefix(got, want) {
					t.Fatalf("cut by %d: the journal had %d bytes of text, has %d that differ", cut, len(want), len(got))
				}
				k.create(fmt.Sprint("after", cut), false)
				c.eventually("all to have applied it", func() bool {
					index := c.leader().fsm.index()
					return !slices.ContainsFunc(c.servers, func(s *Server) bool { return s.journal.Last().Index < index })
				})
				c.sameEverywhere()
			}
		})
	}
}

// TestCheckpointPiecesAreNotMixed reads two checkpoints in pieces of one size at once.
func TestCheckpointPiecesAreNotMixed(t *testing.T) {
	dir := t.TempDir()
	j, err := journal.Open(journal.Options{Dir: dir, Cluster: id.Cluster{1}})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	content := func(i byte) []byte { return bytes.Repeat([]byte{i}, 5000) }
	for i := byte(1); i <= 6; i++ {
		if err := j.Append([]journal.Record{{Index: id.Index(i), Payload: []byte("x")}}); err != nil {
			t.Fatal(err)
		}
		if err := j.WriteCheckpoint(j.Last(), func(w io.Writer) error { _, err := w.Write(content(i)); return err }); err != nil {
			t.Fatal(err)
		}
	}
	p := new(checkpointPieces)
	defer p.close()
	type reader struct {
		req  msg.JournalRead
		got  []byte
		done bool
	}
	var readers []*reader
	for i := range 12 { // more than are kept open, two of each
		readers = append(readers, &reader{req: msg.JournalRead{Checkpoint: true, CheckpointAt: uint64(i/2 + 1)}})
	}
	for n := 0; n < 1000 && slices.ContainsFunc(readers, func(r *reader) bool { return !r.done }); n++ {
		r := readers[(n*7)%len(readers)]
		if r.done {
			r = readers[slices.IndexFunc(readers, func(r *reader) bool { return !r.done })]
		}
		reply := new(msg.JournalReadReply)
		b, err := p.read(j, &r.req, 700, reply)
		if err != nil {
			t.Fatal(err)
		}
		r.got = append(r.got, b...)
		r.req.From, r.req.CheckpointAt, r.done = reply.Next, reply.Checkpoint, !reply.More
	}
	for i, r := range readers {
		if !r.done || !bytes.Equal(r.got, content(byte(i/2+1))) {
			t.Errorf("reader %d of checkpoint %d: got %d bytes that differ", i, i/2+1, len(r.got))
		}
	}
	// The checkpoint that a reader is at is dropped and closed: it is told, and gets no other.
	if _, err := j.Retain(journal.Retention{Every: 100}); err != nil {
		t.Fatal(err)
	}
	points, err := j.Checkpoints()
	if err != nil {
		t.Fatal(err)
	}
	if len(points) != 3 {
		t.Fatalf("want the first and two newest checkpoints, got %+v", points)
	}
	req := &msg.JournalRead{Checkpoint: true, From: 700, CheckpointAt: 3}
	if _, err := p.read(j, req, 700, new(msg.JournalReadReply)); !errors.Is(err, journal.ErrNotFound) {
		t.Errorf("a piece of a checkpoint that was dropped: want ErrNotFound, got %v", err)
	}
	// A damaged one is not begun with.
	path := filepath.Join(dir, fmt.Sprintf("%020d.ckpt", 6))
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[3000] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	reply := new(msg.JournalReadReply)
	if _, err := new(checkpointPieces).read(j, &msg.JournalRead{Checkpoint: true}, 700, reply); err != nil || reply.Checkpoint != 5 {
		t.Errorf("want the checkpoint before the damaged one, got %d, %v", reply.Checkpoint, err)
	}
}
