package fuse

import (
	"sync/atomic"
	"syscall"
	"time"
)

// OpStat counts the operations of one kind since the mount.
type OpStat struct {
	Op      string        // the kernel's name, such as READ
	Count   uint64        // answered
	Errors  uint64        // of these, with an errno
	Bytes   uint64        // read or written
	Elapsed time.Duration // sum, from the arrival of each request to its answer
}

// counters are by opcode; unknown opcodes count as number 0.
type counters [opLimit]struct {
	count, errors, bytes, nanos atomic.Uint64
}

func (c *counters) count(r *request, took time.Duration, e syscall.Errno, n int) {
	op := r.op
	if op >= opLimit {
		op = 0
	}
	k := &c[op]
	k.count.Add(1)
	k.nanos.Add(uint64(took))
	switch {
	case e != 0:
		k.errors.Add(1)
	case op == opRead:
		k.bytes.Add(uint64(n))
	case op == opWrite:
		k.bytes.Add(uint64(len(r.rest)))
	}
}

// Stats returns the kinds of operations that have occurred, by opcode.
func (s *Session) Stats() []OpStat {
	var out []OpStat
	for op := range s.counters {
		st := OpStat{Op: opcode(op).String()}
		s.counters.addTo(&st, op)
		for _, l := range s.loops {
			l.counters.addTo(&st, op)
		}
		if st.Count > 0 {
			out = append(out, st)
		}
	}
	return out
}

func (c *counters) addTo(st *OpStat, op int) {
	k := &c[op]
	st.Count += k.count.Load()
	st.Errors += k.errors.Load()
	st.Bytes += k.bytes.Load()
	st.Elapsed += time.Duration(k.nanos.Load())
}
