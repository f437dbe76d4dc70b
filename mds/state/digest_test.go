package state

import (
	"bytes"
	"testing"

	"varve/internal/wire/msg"
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
