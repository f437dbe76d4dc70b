package state

import (
	"testing"

	"varve/internal/wire/msg"
)

// TestApplyAllocates bounds what the events that come most often allocate: the records that they replace, and little else.
func TestApplyAllocates(t *testing.T) {
	s := play(t, New(), evInit(), evServer(1), evSession(1), evCreate(1, 2, "f", msg.FileType_REGULAR), evAlloc(2, 0, 1, 1))
	size := cause(evSize(2, 1<<20), 1, 0, 0)
	lease, release := evLease(1, 2, msg.Want_WANT_WRITE), evLease(1, 2, msg.Want_WANT_NONE)
	for _, x := range []struct {
		name string
		most float64
		fn   func()
	}{
		{"size", 1.5, func() { // the inode, and now and then room for outcomes
			size.Cause.Seq++
			size.Cause.Acked = max(size.Cause.Seq, 5) - 5
			*size.GetSetAttr().Size++
			s.Apply(size)
		}},
		{"lease and release", 4, func() { s.Apply(lease); s.Apply(release) }},
	} {
		if n := testing.AllocsPerRun(1000, x.fn); n > x.most {
			t.Errorf("%s: %v allocations, at most %v", x.name, n, x.most)
		}
	}
}
