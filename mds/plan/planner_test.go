package plan

import (
	"testing"

	"varve/mds/state"
)

// TestNextClasses: the class and the reason follow from how many replicas are left.
func TestNextClasses(t *testing.T) {
	s, views := cluster(4, 1)
	alloc(s, 1, 1)
	alloc(s, 2, 1, 2)
	want := map[int]Action{
		1: {Class: Urgent, Reason: LastReplica},
		2: {Class: Restore, Reason: BelowNorm},
	}
	got := NewPlanner().Next(Input{State: s, Servers: views, Bytes: func(*state.Chunk) uint64 { return 7 }}).Actions
	if len(got) != 2 {
		t.Fatalf("got %+v", got)
	}
	for _, a := range got {
		w := want[int(a.Chunk)]
		if a.Kind != Join || a.Class != w.Class || a.Reason != w.Reason || a.Bytes != 7 {
			t.Errorf("got %+v, want %+v", a, w)
		}
	}
	hold := func(c *state.Chunk) Hold {
		if c.ID == 1 {
			return HoldAll
		}
		return HoldMoves
	}
	if got := NewPlanner().Next(Input{State: s, Servers: views, Hold: hold}).Actions; len(got) != 0 {
		t.Errorf("held back, yet %+v", got)
	}
}
