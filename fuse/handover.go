package fuse

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
)

// A mount can go on in another program without the kernel or whoever uses it taking notice of more than a pause: the descriptors of /dev/fuse stay open over execve(2), and what the kernel
// holds (numbers of inodes and of open files) means the same to the next program, which Saved tells it. The order is
//   - Pause: no request is taken any more, and those that were taken are answered. Waits for locks may last for ever, so they are broken off without an answer
//     and begun anew by whoever goes on; a lock that was granted meanwhile is granted again to the same owner;
//   - the Backend comes to rest;
//   - Save;
//   - execve(2), with the descriptors that Saved.Descriptors names, and there Resume; or Continue, if there was a reason why not.
//
// FUSE over io_uring: an entry that waits for a request is the ring's, and goes with it. A request that the kernel gives to it at that moment is lost (Linux 6.18: fuse_uring_send_in_task
// with IO_URING_F_TASK_DEAD). So no entry may be waiting: Pause has a helper process make as many calls as there are such entries, on the processors that these serve,
// which nobody answers yet. An entry that holds a request belongs to no ring; it is known by the request, and its memory by the address, which therefore is
// shared memory at a place where the next program can have it too. What comes meanwhile waits in the kernel, until an entry is given back.

// Restorer is a Backend whose handles can go on in another process.
type Restorer interface {
	SaveHandle(h Handle) ([]byte, error)
	// RestoreHandle returns a handle for what SaveHandle returned of one of that inode, opened like that.
	RestoreHandle(ino id.Ino, write bool, saved []byte) (Handle, error)
}

// Poke has a process make calls of statfs(2) on dir: so many at once on each of these processors, and returns when it was started. It ends by itself when they are answered.
type Poke func(dir string, calls map[int]int) error

// handing is what a Session has for Pause.
type handing struct {
	under atomic.Int64 // goroutines that serve a request, or will
	busy  atomic.Bool  // from Pause to Continue
	since atomic.Int64 // boot time, ns: nothing was taken since
	on    atomic.Bool  // waits for locks are not begun, and not answered when they are broken off
	mu    sync.Mutex
	kept  []*request // those
}

func (s *Session) enter() {
	s.handing.under.Add(1)
	s.serving.Add(1)
}

func (s *Session) leave() {
	s.serving.Done()
	s.handing.under.Add(-1)
}

// keepBack takes a wait for a lock that comes while they are not begun. Then r is not to be answered.
func (s *Session) keepBack(r *request) bool {
	h := &s.handing
	if r.op != opSetlkw || !h.on.Load() {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.on.Load() { // under mu, since Continue takes what is kept
		return false
	}
	h.kept = append(h.kept, r)
	return true
}

// brokenOff is keepBack of one that Pause has broken off.
func (s *Session) brokenOff(r *request, err error) bool {
	if err == nil || r.op != opSetlkw || !s.handing.on.Load() {
		return false
	}
	r.flight.mu.Lock()
	mine := r.flight.err != nil && !r.flight.interrupted
	r.flight.mu.Unlock()
	return mine && s.keepBack(r)
}

// breakOff has no wait for a lock under way, and none begin. A server may take a moment to let go of one, so this comes before everything else stops. One that does not end is
// waited for by restful.
func (s *Session) breakOff(ctx context.Context) {
	s.handing.on.Store(true)
	for end := time.Now().Add(breakTime); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(pausing) {
		if s.cancelWaits() == 0 {
			return
		}
	}
}

func (s *Session) cancelWaits() (n int) {
	for _, f := range s.flights.all() {
		if f.op == opSetlkw {
			f.cancel()
			n++
		}
	}
	return n
}

const (
	pausing   = time.Millisecond // how often Pause looks whether requests have ended
	breakTime = 2 * time.Second  // for waits for locks to end
)

// Pause takes no more requests and returns when all that were taken are answered, or kept back. If they are not when ctx ends, it fails and the Session goes on. Whoever uses the mount waits
// until Continue, or for the next program.
func (s *Session) Pause(ctx context.Context, poke Poke) error {
	t, ok := s.via.(*loops)
	if _, can := s.backend.(Restorer); !ok || !can {
		return fmt.Errorf("a mount whose requests are read by goroutines cannot go on in another process: %w", fserr.NotSupported)
	}
	if !s.handing.busy.CompareAndSwap(false, true) {
		return fmt.Errorf("the mount is paused already: %w", fserr.Busy)
	}
	s.breakOff(ctx)
	s.handing.since.Store(bootTime())
	t.paused.Store(true)
	for _, d := range t.all {
		d.l.Do(d.hold)
	}
	if err := s.restful(ctx, t); err != nil {
		s.Continue()
		return err
	}
	if t.ring != nil && !t.ring.fell.Load() {
		if err := t.ring.fill(ctx, s.mount.dir, poke); err != nil {
			s.Continue()
			return err
		}
	}
	return nil
}

// restful waits until all loops stand still and nothing is served.
func (s *Session) restful(ctx context.Context, t *loops) error {
	for {
		still := true
		for _, d := range t.all {
			still = still && d.still.Load()
		}
		if still {
			s.cancelWaits()
			if s.handing.under.Load() == 0 && len(s.hotUnderWay()) == 0 {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", s.whatLasts(), fserr.Timeout)
		case <-s.ended:
			return fmt.Errorf("the mount has ended: %w", fserr.Unavailable)
		case <-time.After(pausing):
		}
	}
}

// whatLasts says which requests are under way, for people.
func (s *Session) whatLasts() string {
	counts := make(map[string]int)
	for _, f := range s.flights.all() {
		counts[f.op.String()]++
	}
	for _, h := range s.hotUnderWay() {
		counts[h.op.String()]++
	}
	if len(counts) == 0 {
		return "requests are under way"
	}
	var all []string
	for op, n := range counts {
		all = append(all, fmt.Sprintf("%d %s", n, op))
	}
	slices.Sort(all)
	return "requests are under way that do not end: " + strings.Join(all, ", ")
}

// Continue ends a pause: the requests that waited are served.
func (s *Session) Continue() {
	t, ok := s.via.(*loops)
	h := &s.handing
	if !ok || !h.busy.Load() {
		return
	}
	h.mu.Lock()
	h.on.Store(false)
	kept := h.kept
	h.kept = nil
	h.mu.Unlock()
	t.paused.Store(false)
	for _, r := range kept {
		s.again(r)
	}
	for _, d := range t.all {
		d.l.Do(d.wake)
	}
	h.busy.Store(false)
}

// PausedSince is when Pause took the last request, on the boot-time clock.
func (s *Session) PausedSince() time.Duration { return time.Duration(s.handing.since.Load()) }

// again serves a request that was kept back.
func (s *Session) again(r *request) {
	s.enter()
	go func() {
		defer s.leave()
		if s.budget.take(r.cost, s.saturated) {
			s.spawn(r)
		} else {
			s.refuse(r)
		}
	}()
}

// hold has the loop read nothing more.
func (d *devLoop) hold() {
	if d.poll.UnderWay() {
		d.l.Cancel(&d.poll) // ready is told
		return
	}
	d.rest()
}

func (d *devLoop) rest() {
	d.duty = false
	d.still.Store(true)
}

// wake ends what hold began.
func (d *devLoop) wake() {
	d.still.Store(false)
	if d.over {
		return
	}
	for _, q := range d.queues {
		held := q.held
		q.held = nil
		for _, e := range held {
			d.arrived(e)
		}
	}
	if d.number == 0 && !d.held {
		d.ready(0, nil)
	}
}
