package journal

import (
	"math"
	"math/rand"
	"path/filepath"
	"slices"
	"testing"

	"varve/internal/disk"
	"varve/internal/id"
)

// layered makes a journal of 600 records with a checkpoint every 50, right before each of which a segment ends. Every other segment but
// the last is sealed.
func layered(t *testing.T, o Options) *Journal {
	t.Helper()
	j := mustOpen(t, o)
	for i := id.Index(1); i <= 600; i += 50 {
		mustAppend(t, j, records(i, i+49))
		j.Cut()
		ok(t, j.WriteCheckpoint(j.Last(), writeState(160)))
	}
	mustAppend(t, j, records(601, 620))
	for i, s := range j.segments[:len(j.segments)-1] {
		if i%2 == 0 {
			ok(t, j.seal(s, nil))
		}
	}
	return j
}

func checkpointsOf(t *testing.T, j *Journal) []id.Index {
	t.Helper()
	points, err := j.Checkpoints()
	ok(t, err)
	var all []id.Index
	for _, p := range points {
		all = append(all, p.Index)
	}
	return all
}

// diskUse adds up a journal's files.
func diskUse(t *testing.T, o Options) (n int64) {
	t.Helper()
	entries, err := o.FS.ReadDir(o.Dir)
	ok(t, err)
	for _, e := range entries {
		info, err := o.FS.Stat(filepath.Join(o.Dir, e.Name()))
		ok(t, err)
		n += info.Size()
	}
	return n
}

func TestRetain(t *testing.T) {
	const all = math.MaxUint64
	every := []id.Index{50, 100, 150, 200, 250, 300, 350, 400, 450, 500, 550, 600}
	for _, tt := range []struct {
		name   string
		r      Retention
		damage id.Index // a checkpoint
		first  id.Index // the oldest record left
		points []id.Index
		cause  string
		held   bool
	}{
		{name: "nothing", r: Retention{Raft: all}, first: 1, points: every},
		{name: "age", r: Retention{Raft: all, Before: 270_000}, first: 251, points: every[4:], cause: "age"},
		{name: "age, all", r: Retention{Raft: all, Before: 1e9}, first: 601, points: every[11:], cause: "age"},
		{name: "age, held by raft", r: Retention{Raft: 120 * 3, Before: 1e9}, first: 101, points: every[1:], cause: "age", held: true},
		{name: "raft without snapshot", r: Retention{Before: 1e9}, first: 1, points: every, held: true},
		{name: "bytes, plenty", r: Retention{Raft: all, Bytes: 1 << 20}, first: 1, points: every},
		{name: "bytes, all", r: Retention{Raft: all, Bytes: 1}, first: 601, points: every[11:], cause: "bytes", held: true},
		{name: "damaged", r: Retention{Raft: all, Before: 270_000}, damage: 250, first: 301, points: every[5:], cause: "age"},
		{name: "thin", r: Retention{Raft: all, Every: 120}, first: 1, points: []id.Index{50, 150, 250, 350, 450, 550, 600}},
		{name: "thin, close", r: Retention{Raft: all, Every: 10}, first: 1, points: every},
		{name: "thin, wide", r: Retention{Raft: all, Every: 5000}, first: 1, points: []id.Index{50, 550, 600}},
		{name: "thin, bytes", r: Retention{Raft: all, Every: 5000, Bytes: 1 << 20}, first: 1, points: []id.Index{50, 550, 600}},
		{name: "both", r: Retention{Raft: all, Every: 120, Before: 270_000}, first: 251, points: []id.Index{250, 350, 450, 550, 600}, cause: "age"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := new(disk.Faulty) // on which a sync costs nothing
			o := testOptions("journal")
			o.FS = d
			j := layered(t, o)
			defer j.Close()
			if tt.damage > 0 {
				ok(t, d.Flip(filepath.Join(o.Dir, checkpointName(tt.damage)), headerSize+7))
			}
			before, was := diskUse(t, o), j.First()
			got, err := j.Retain(tt.r)
			ok(t, err)
			if j.First() != tt.first || !slices.Equal(checkpointsOf(t, j), tt.points) {
				t.Errorf("want first %d and checkpoints %v, got %d and %v", tt.first, tt.points, j.First(), checkpointsOf(t, j))
			}
			if got.From != was || got.To != tt.first || got.Cause != tt.cause || (got.Held != "") != tt.held {
				t.Errorf("report: want %d to %d, cause %q, held %v, got %+v", was, tt.first, tt.cause, tt.held, got)
			}
			if left := diskUse(t, o); got.Left != left || got.Bytes != before-left {
				t.Errorf("report: want %d bytes dropped and %d left, got %+v", before-left, left, got)
			}
			wantAll(t, j, tt.first, 620)
			again, err := j.Retain(tt.r)
			ok(t, err)
			if again.Segments != 0 || again.Checkpoints != 0 {
				t.Errorf("again: dropped more: %+v", again)
			}
		})
	}
}

// TestRetainBytesFits tries every limit: it is kept to if an anchor allows it, and no more is dropped than must be.
func TestRetainBytesFits(t *testing.T) {
	o := testOptions("journal")
	o.FS = new(disk.Faulty)
	j := layered(t, o)
	defer j.Close()
	for limit := diskUse(t, o); j.First() < 601; limit -= 500 {
		before := j.First()
		d, err := j.Retain(Retention{Raft: math.MaxUint64, Bytes: limit})
		ok(t, err)
		if use := diskUse(t, o); use > limit || use != d.Left || d.Held != "" {
			t.Fatalf("limit %d: left %d: %+v", limit, use, d)
		}
		if first := j.First(); first != before && first != before+50 {
			t.Fatalf("limit %d: first went from %d to %d", limit, before, first)
		}
	}
}

// TestRetainWithoutAnchor checks that nothing is dropped where no segment begins right after a checkpoint.
func TestRetainWithoutAnchor(t *testing.T) {
	j := mustOpen(t, testOptions(t.TempDir()))
	defer j.Close()
	mustAppend(t, j, records(1, 99))
	ok(t, j.WriteCheckpoint(j.Last(), writeState(16)))
	mustAppend(t, j, records(100, 300))
	d, err := j.Retain(Retention{Raft: math.MaxUint64, Bytes: 1000})
	ok(t, err)
	if j.First() != 1 || d.Held == "" || d.Segments != 0 {
		t.Fatalf("first %d, %+v", j.First(), d)
	}
}

// TestRetainInterrupted loses power at every operation of dropping.
func TestRetainInterrupted(t *testing.T) {
	for n, done := 0, false; !done; n++ {
		if n > 500 {
			t.Fatal("dropping does not end")
		}
		d := new(disk.Faulty)
		o := testOptions("journal")
		o.FS = d
		j := layered(t, o)
		ok(t, j.Sync())
		ops := 0
		d.Inject(func(op disk.Op) error {
			if op.Kind == disk.OpRead || op.Kind == disk.OpOpen {
				return nil
			}
			if ops++; ops > n {
				return disk.ErrPowerOff
			}
			return nil
		})
		r := Retention{Raft: math.MaxUint64, Before: 420_000, Every: 120}
		_, err := j.Retain(r)
		done = err == nil
		d.Crash(rand.New(rand.NewSource(int64(n))))
		j = mustOpen(t, o)
		if first := j.First(); first > 401 {
			t.Fatalf("operation %d: first is %d", n, first)
		}
		wantAll(t, j, j.First(), 620)
		_, err = j.Retain(r)
		ok(t, err)
		points := checkpointsOf(t, j)
		if j.First() != 401 || points[0] != 400 {
			t.Fatalf("operation %d: after dropping again: first %d, checkpoints %v", n, j.First(), points)
		}
		ok(t, j.Close())
		_, err = Verify(o, nil)
		ok(t, err)
	}
}

// TestRetainKeepsTheEndOfAHole thins out checkpoints around a hole, behind which nothing can be replayed without the one that ends it.
func TestRetainKeepsTheEndOfAHole(t *testing.T) {
	j := mustOpen(t, testOptions(t.TempDir()))
	defer j.Close()
	for i := id.Index(1); i <= 100; i += 50 {
		mustAppend(t, j, records(i, i+49))
		j.Cut()
		ok(t, j.WriteCheckpoint(j.Last(), writeState(160)))
	}
	at := Position{Index: 130, Raft: 390, Chain: [16]byte{1}, Time: 130_000}
	ok(t, j.WriteCheckpoint(at, writeState(160)))
	ok(t, j.Reset(at))
	for i := id.Index(131); i <= 400; i += 50 {
		mustAppend(t, j, records(i, i+49))
		j.Cut()
		ok(t, j.WriteCheckpoint(j.Last(), writeState(160)))
	}
	_, err := j.Retain(Retention{Raft: math.MaxUint64, Every: 5000})
	ok(t, err)
	if got, want := checkpointsOf(t, j), []id.Index{50, 130, 380, 430}; !slices.Equal(got, want) {
		t.Fatalf("want checkpoints %v, got %v", want, got)
	}
}

// TestReaderOfDropped reads on in a segment that is dropped, and is told where it ends.
func TestReaderOfDropped(t *testing.T) {
	o := testOptions(t.TempDir())
	j := layered(t, o)
	defer j.Close()
	r, err := j.Reader(3)
	ok(t, err)
	defer r.Close()
	_, err = j.Retain(Retention{Raft: math.MaxUint64, Before: 420_000})
	ok(t, err)
	rec, err := r.Next()
	ok(t, err)
	wantRecord(t, rec, record(3))
}
