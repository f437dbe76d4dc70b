package perf

import (
	"time"

	"varve/internal/wire"
)

// wireWorker drives one job through one connection, up to QD operations at once.
func (l *load) wireWorker(j *job, r *recorder) {
	w := &wireWorker{l: l, j: j, r: r, slots: make([]wireSlot, l.o.QD)}
	// Each operation is one request, but for a flush, which is one a chunk.
	w.done = make(chan *wire.Call, l.o.QD*max(1, len(j.file.chunks.ids)))
	for i := range w.slots {
		w.slots[i].p = make([]byte, l.o.BlockSize)
		j.ready(w.slots[i].p, i)
		w.free = append(w.free, i)
	}
	l.begin()
	w.loop()
}

// wireWorker belongs to one goroutine.
type wireWorker struct {
	l       *load
	j       *job
	r       *recorder
	slots   []wireSlot
	free    []int // slots without an operation
	pending int   // calls under way
	done    chan *wire.Call
	ahead   op // given out by the job, not due yet, if waiting
	waiting bool
}

// wireSlot is an operation under way.
type wireSlot struct {
	x    outcome
	p    []byte // what a write writes
	left int    // calls that have not ended
}

// loop works until nothing is left to start and all that was started has ended.
func (w *wireWorker) loop() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	more := true
	for {
		for more && len(w.free) > 0 {
			if more = w.startNext(); w.waiting {
				timer.Reset(w.ahead.due - w.l.now())
				break
			}
		}
		if w.pending == 0 && !w.waiting {
			return
		}
		var due <-chan time.Time
		var ended <-chan struct{}
		if w.waiting {
			due, ended = timer.C, w.l.ctx.Done()
		}
		select {
		case call := <-w.done:
			w.drain(call)
		case <-due:
		case <-ended:
		}
	}
}

// drain takes call and those that have ended by now.
func (w *wireWorker) drain(call *wire.Call) {
	ended := w.l.now() // of them all: what follows for one is not charged to the others
	for {
		w.completed(call, ended)
		select {
		case call = <-w.done:
		default:
			return
		}
	}
}

// startNext starts the job's next operation, if it is due. It returns false if there is none.
func (w *wireWorker) startNext() bool {
	o, ok := w.ahead, w.waiting
	w.waiting = false
	if !ok {
		if w.l.over() {
			return false
		}
		if o, ok = w.j.next(); !ok {
			return false
		}
	}
	if o.due > w.l.now() {
		if w.l.over() {
			w.j.done(o, errTime)
			return false
		}
		w.ahead, w.waiting = o, true
		return true
	}
	n := w.free[len(w.free)-1]
	w.free = w.free[:len(w.free)-1]
	s, c := &w.slots[n], w.j.file.chunks
	w.j.prepare(o, s.p)
	s.x = outcome{op: o, slot: n, started: w.l.now()}
	w.r.flights[n].begin(o, s.x.started)
	if o.kind == opSync {
		s.left = c.startFlush(w.done, n)
	} else {
		c.start(o.kind, s.p, o.block*w.l.o.BlockSize, len(s.p), w.done).Tag = n
		s.left = 1
	}
	if w.pending += s.left; s.left == 0 { // nothing to flush
		w.finish(n, w.l.now(), nil)
	}
	return true
}

// completed takes the end of a call.
func (w *wireWorker) completed(call *wire.Call, ended time.Duration) {
	defer call.Reply.Release()
	w.pending--
	n := call.Tag
	s := &w.slots[n]
	if err := w.j.file.chunks.result(s.x.op.kind, s.x.op.block*w.l.o.BlockSize, len(s.p), call); s.x.err == nil {
		s.x.err = err
	}
	if s.left--; s.left > 0 {
		return
	}
	p := s.p
	if s.x.op.kind == opRead && s.x.err == nil {
		p = call.Reply.Data
	}
	w.finish(n, ended, p)
}

// finish records the operation of a slot and frees the slot.
func (w *wireWorker) finish(n int, ended time.Duration, p []byte) {
	s := &w.slots[n]
	s.x.ended = ended
	w.l.finish(w.j, w.r, s.x, p)
	w.free = append(w.free, n)
}
