package client

import (
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/fserr"
	"varve/iouring"
)

const (
	ringEntries  = 256
	ringInFlight = 4096
	ringHandOver = 4 // reads that gather before the disk gets them
	// alone is how long reads must have come one at a time before the next is done without the ring.
	alone = 10 * time.Millisecond
)

// localDisk reads chunk files for a client. Reads that come one at a time are done by a system call of a goroutine; where there
// are more, by a thread with a ring, since each system call that waits for a disk keeps a share of the Go scheduler from the others.
type localDisk struct {
	log    *slog.Logger
	start  sync.Once
	busyAt atomic.Int64                  // when two reads were last under way at once, ns of time.Now
	under  atomic.Int32                  // reads under way
	hang   atomic.Pointer[chan struct{}] // tests: reads wait for it, as for a disk that does not answer

	mu       sync.Mutex
	ring     bool // a thread takes what is in queue
	sleeping bool // it waits, so that it must be woken
	closed   bool
	queue    []*localOp
	waker    *iouring.Waker
	ended    chan struct{}
}

// read has op done; its outcome comes on op.done.
func (d *localDisk) read(op *localOp) {
	if d.under.Add(1) > 1 {
		d.busyAt.Store(time.Now().UnixNano())
	}
	if fd, dst, _ := op.place(); fd >= 0 && len(dst) > 0 && time.Now().UnixNano()-d.busyAt.Load() < int64(alone) {
		d.start.Do(d.begin)
		if d.enqueue(op) {
			return
		}
	}
	go func() {
		if c := d.hang.Load(); c != nil {
			<-*c
		}
		err := op.do()
		d.under.Add(-1)
		op.done <- err
	}()
}

// enqueue hands op to the ring, if there is one.
func (d *localDisk) enqueue(op *localOp) bool {
	d.mu.Lock()
	if !d.ring || d.closed {
		d.mu.Unlock()
		return false
	}
	d.queue = append(d.queue, op)
	wake := d.sleeping
	d.sleeping = false
	d.mu.Unlock()
	if wake {
		if err := d.waker.Wake(); err != nil {
			d.log.Warn("thread of local reads not woken", "err", err) // it looks by itself within ringNap
		}
	}
	return true
}

// ringNap is the longest that the ring's thread waits without looking into the queue.
const ringNap = time.Second

// begin starts the ring's thread.
func (d *localDisk) begin() {
	ready := make(chan error)
	d.ended = make(chan struct{})
	go d.run(ready)
	if err := <-ready; err != nil {
		d.log.Info("local reads do without io_uring", "cause", err)
	}
}

// run owns the ring.
func (d *localDisk) run(ready chan<- error) {
	defer close(d.ended)
	runtime.LockOSThread() // for good: the thread ends with the ring
	r, err := iouring.New(iouring.Options{Entries: ringEntries, InFlight: ringInFlight, HandOver: ringHandOver})
	if err != nil {
		ready <- err
		return
	}
	waker, err := r.NewWaker(0)
	if err == nil {
		d.mu.Lock()
		d.waker, d.ring = waker, true
		d.mu.Unlock()
	}
	ready <- err
	var left []*localOp
	if err == nil {
		left, err = d.serve(r)
	}
	d.mu.Lock()
	d.ring = false
	left = append(left, d.queue...)
	d.queue = nil
	d.mu.Unlock()
	// The kernel may fill the buffers of what is under way until the ring is closed.
	cerr := r.Close()
	for _, op := range left {
		op.lost = cerr != nil
		d.finish(op, 0, fserr.Unavailable)
	}
	if err != nil || cerr != nil {
		d.log.Warn("ring of local reads ended, going on without", "err", err, "close", cerr)
	}
}

// serve does reads until the disk is closed and none is left, or the ring fails: then it returns those that are left.
func (d *localDisk) serve(r *iouring.Ring) (left []*localOp, err error) {
	var batch []*localOp
	var done []iouring.Completion
	under := make([]*localOp, 0, ringEntries) // by the number that a completion carries
	var free []uint64
	for {
		d.mu.Lock()
		batch, d.queue = append(batch, d.queue...), d.queue[:0]
		d.sleeping = len(batch) == 0
		closed := d.closed && len(batch) == 0
		d.mu.Unlock()
		if closed && r.Pending() == 0 {
			return nil, nil
		}
		i := 0
		for ; i < len(batch); i++ {
			op := batch[i]
			n := uint64(len(under))
			if len(free) > 0 {
				n = free[len(free)-1]
			}
			fd, dst, off := op.place()
			if _, err := r.Read(iouring.FD(fd), dst, off, n); err == iouring.ErrFull {
				break
			} else if err != nil {
				d.finish(op, 0, fmt.Errorf("queue a read: %w", err))
				continue
			}
			if len(free) > 0 {
				free = free[:len(free)-1]
				under[n] = op
			} else {
				under = append(under, op)
			}
		}
		full := i < len(batch)
		sleep := i == 0
		batch = batch[:copy(batch, batch[i:])]
		wait := 0
		if full || sleep {
			wait = 1
		}
		if err := r.SubmitWait(wait, ringNap); err != nil {
			for _, op := range under {
				if op != nil {
					batch = append(batch, op)
				}
			}
			return batch, err
		}
		done = r.Reap(done[:0], ringEntries)
		for k := range done {
			c := &done[k]
			if c.Flags&iouring.Woken != 0 {
				continue
			}
			op := under[c.Data]
			under[c.Data] = nil
			free = append(free, c.Data)
			d.finish(op, c.N, c.Err)
		}
	}
}

// finish gives the outcome of the disk to whoever waits, who looks whether it counts.
func (d *localDisk) finish(op *localOp, n int, err error) {
	d.under.Add(-1)
	op.n, op.err = n, err
	op.done <- errFetched
}

// close ends the ring's thread when the reads that it has are done, which nobody waits for if the disk does not answer.
func (d *localDisk) close() {
	d.mu.Lock()
	d.closed = true
	waker := d.waker
	d.mu.Unlock()
	if waker != nil {
		_ = waker.Wake() // it looks by itself within ringNap
	}
}
