package state

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"

	"google.golang.org/protobuf/proto"
)

// TestSumFollowsTheState: the sum is the same however the state came about, and another for any other state.
func TestSumFollowsTheState(t *testing.T) {
	s := sample(t)
	var b bytes.Buffer
	if err := s.Write(&b); err != nil {
		t.Fatal(err)
	}
	r, err := Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	c := s.Clone()
	if s.Sum() != r.Sum() || s.Sum() != c.Sum() || s.Sum() != sample(t).Sum() {
		t.Errorf("sums: %x, read %x, cloned %x", s.Sum(), r.Sum(), c.Sum())
	}
	before := s.Sum()
	ev := evCreate(1, 50, "x", msg.FileType_REGULAR)
	play(t, s, ev)
	play(t, r, ev)
	if s.Sum() == before || s.Sum() != r.Sum() {
		t.Errorf("after an event: %x and %x, before %x", s.Sum(), r.Sum(), before)
	}
	if c.Sum() != before || c.Recount() != before {
		t.Errorf("the clone changed: %x, counted %x, before %x", c.Sum(), c.Recount(), before)
	}
}

// TestRecountFindsCorruption: what changed behind Apply's back is found by counting, and by the next change of the record.
func TestRecountFindsCorruption(t *testing.T) {
	s, good := sample(t), sample(t)
	n, _ := s.Inode(3)
	n.Size ^= 1 << 40
	if s.Sum() != good.Sum() || s.Recount() == good.Recount() {
		t.Errorf("sums %x and %x, counted %x", s.Sum(), good.Sum(), s.Recount())
	}
	for _, s := range []*State{s, good} {
		s.Apply(evPolicy(3, 4, 0))
	}
	if s.Sum() == good.Sum() {
		t.Error("the sum does not show a changed record after its next change")
	}
}

// TestDifferences: of equal states there are none, of others each record that differs.
func TestDifferences(t *testing.T) {
	a, b := sample(t), sample(t)
	if d, ok := FirstDifference(a, b); ok {
		t.Errorf("equal states: %v", d)
	}
	play(t, b, evCreate(1, 50, "x", msg.FileType_REGULAR), evSize(3, 80<<20), evConfig("color", ""), evConfig("taste", "sour"))
	var got []string
	for d := range Differences(a, b) {
		got = append(got, d.Kind+" "+d.Key)
		if d.A == d.B {
			t.Errorf("no difference: %v", d)
		}
	}
	want := []string{"cluster c", "setting color", "setting taste", "inode " + id.Root.String(), "inode " + id.Ino(3).String(),
		"inode " + id.Ino(50).String(), "dentry cookie 54 in " + id.Root.String()}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	// A record that was changed behind Apply's back, in every kind of record that there is.
	c := sample(t)
	n, _ := c.Inode(3)
	n.Mtime++
	if d, ok := FirstDifference(c, sample(t)); !ok || d.Kind != "inode" || !strings.Contains(d.String(), "mtime") {
		t.Errorf("a changed inode: %v", d)
	}
	first := 0
	for range Differences(New(), sample(t)) {
		if first++; first == 3 {
			break // may end early
		}
	}
}

// TestSumIsCheap: to ask for it allocates nothing.
func TestSumIsCheap(t *testing.T) {
	s := sample(t)
	if n := testing.AllocsPerRun(100, func() { s.Sum() }); n != 0 {
		t.Errorf("Sum allocates %v times", n)
	}
}

// TestSuspend: a state whose digest was not kept for a while has the same one when it is again, and so have its clones, taken at any time.
func TestSuspend(t *testing.T) {
	kept, s := New(), New()
	m := newMixer(300)
	var clones []*State
	var want []Sum
	step := func(ev *event.Event) {
		for _, x := range []*State{kept, s} {
			x.Apply(proto.Clone(ev).(*event.Event))
		}
	}
	for _, ev := range m.start() {
		step(ev)
	}
	for i := range 4000 {
		switch i % 1000 {
		case 100, 600:
			s.Suspend()
		case 500, 900:
			s.Resume()
			s.Resume()
		case 50, 300, 550, 950:
			clones, want = append(clones, s.Clone()), append(want, kept.Sum())
		}
		step(m.one())
		if i%97 == 0 && (s.Sum() != kept.Sum() || s.Recount() != s.Sum()) {
			t.Fatalf("after %d events: %x, counted %x, want %x", i, s.Sum(), s.Recount(), kept.Sum())
		}
	}
	for i, c := range clones {
		c.Resume()
		if c.Sum() != want[i] || c.Recount() != want[i] {
			t.Errorf("clone %d: %x, counted %x, want %x", i, c.Sum(), c.Recount(), want[i])
		}
	}
	s.Resume()
	if faults := s.Check(); faults != nil || s.Sum() != kept.Sum() {
		t.Errorf("%v; %x, want %x", faults, s.Sum(), kept.Sum())
	}
}
