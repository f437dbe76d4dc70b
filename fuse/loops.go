package fuse

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"varve/iouring"
	"varve/iouring/reactor"
)

// loops is the transport whose requests arrive on the threads of reactors: each loop has a descriptor of /dev/fuse of its own (a clone), waits
// with everything else until it can be read, and then reads requests and writes answers with plain system calls. Answers of goroutines are written by these.
type loops struct {
	*device // of these descriptors
	s       *Session
	all     []*devLoop
	ring    *uring // nil: there is only /dev/fuse
	reading sync.WaitGroup
	closed  sync.Once
	failure atomic.Pointer[error] // what fail was told
	paused  atomic.Bool           // nothing is read, see handover.go
}

var _ transport = (*loops)(nil)

// devLoop is what reads /dev/fuse on one loop.
type devLoop struct {
	*loop
	t      *loops
	desc   *descriptor
	fd     int
	number int
	poll   reactor.Op
	buf    *buffer
	duty   bool         // it waits for requests, or reads some
	few    int          // how often in a row it found hardly any
	single int          // how often in a row the first loop found one and no more
	join   reactor.Task // begins its duty
	called atomic.Bool  // join is posted
	resume reactor.Task // after a wait for the budget
	held   bool         // until then nothing is read
	still  atomic.Bool  // paused: it reads nothing
	over   bool         // nothing is taken any more
	err    error        // why; errUnmounted in order

	queues  []*ringQueue // of FUSE over io_uring
	pending atomic.Int64 // commands that the kernel has
}

const (
	// readsAtOnce is how many requests a loop reads before it looks after other things.
	readsAtOnce = 64
	// busyReads is how many requests a loop finds at once before another one helps; fewRounds how often in a row a helper finds one at most before it
	// leaves. The kernel wakes those who wait in turn, so two that wait where one would do cost twice the CPU, each being cold.
	busyReads = 8
	fewRounds = 32
	// singleRounds is how often in a row the first loop finds one request before it does not look for a second one at once: that costs a system call,
	// and to wait finds it too. At the end of as many rounds it looks again.
	singleRounds = 16
	// loopEnd bounds how long the end of a session waits for a loop.
	loopEnd = 5 * time.Second
)

// startLoops starts n reactors and has the Backend sit on each.
func (s *Session) startLoops(n int, o reactor.Options) ([]*loop, error) {
	var all []*loop
	for i := range n {
		o.Logger = s.log
		l, err := reactor.Start(o)
		if err != nil {
			s.endLoops(all)
			return nil, fmt.Errorf("start a reactor: %w", err)
		}
		one := &loop{s: s, l: l}
		all = append(all, one)
		if s.host == nil {
			continue
		}
		if one.seat, err = s.host.Sit(l); err != nil {
			s.log.Warn("operations are not begun on a reactor's thread; goroutines do them", "loop", i, "cause", err)
		}
		one.seated = err == nil
	}
	return all, nil
}

// endLoops ends loops whose requests have ended. A Backend or a kernel that does not let go keeps its loop for ever: memory that is in use is never freed.
func (s *Session) endLoops(all []*loop) {
	var each sync.WaitGroup
	ctx, cancel := context.WithTimeout(context.Background(), loopEnd)
	defer cancel()
	for i, l := range all {
		each.Go(func() {
			if l.seated {
				left := make(chan struct{})
				go func() { s.host.Leave(l.seat); close(left) }()
				select {
				case <-left:
				case <-ctx.Done():
					s.log.Warn("operations begun on a reactor did not end; it stays", "loop", i, "waited", loopEnd)
					return
				}
			}
			if err := l.l.Close(ctx); err != nil {
				s.log.Warn("reactor did not end in order", "loop", i, "cause", err)
			}
		})
	}
	each.Wait()
}

// processors deals the processors of the process out to n loops, in turn: whose requests each answers, where the kernel keeps those apart. The loops run where the scheduler
// likes: a loop that is kept off the processor to which the disk reports wakes late for each answer.
func processors(n int) [][]int {
	sets := make([][]int, n)
	var may unix.CPUSet
	if n < 2 || unix.SchedGetaffinity(0, &may) != nil || may.Count() < n {
		return sets
	}
	i := 0
	for cpu := range len(may) * 64 {
		if may.IsSet(cpu) {
			sets[i%n] = append(sets[i%n], cpu)
			i++
		}
	}
	return sets
}

// errNoReactor wraps why a reactor cannot be had: then fd is still the caller's.
var errNoReactor = errors.New("no reactor")

// newLoops takes over fd, which is mounted. With rings for as many processors, it is FUSE over io_uring.
func newLoops(s *Session, fd, rings int) (*loops, error) {
	return loopsWith(s, rings, func(n int) (*device, error) { return newDevice(fd, n, unpolled, s.log) })
}

// loopsWith is newLoops for a device that has that many descriptors, or fewer.
func loopsWith(s *Session, rings int, open func(n int) (*device, error)) (*loops, error) {
	o := reactor.Options{Batch: reactor.EvenBatch}
	if rings > 0 {
		o = reactor.Options{Kind: reactor.Ring, Ring: iouring.Options{SQE128: true}, Operations: ringOps, Batch: reactor.EvenBatch}
	}
	all, err := s.startLoops(s.opts.Loops, o)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoReactor, err)
	}
	d, err := open(len(all))
	if err != nil {
		s.endLoops(all)
		return nil, err
	}
	if n := len(d.readers); n < len(all) {
		s.endLoops(all[n:])
		all = all[:n]
	}
	t := &loops{device: d, s: s}
	for i, l := range all {
		dl := &devLoop{loop: l, t: t, number: i, desc: d.readers[i], buf: getBuffer(maxWrite)}
		dl.poll.Done = dl.ready
		dl.resume.Run, dl.join.Run = dl.goOn, dl.help
		if err := dl.desc.raw.Control(func(fd uintptr) { dl.fd = int(fd) }); err != nil {
			s.endLoops(all)
			d.close()
			return nil, err
		}
		t.all = append(t.all, dl)
	}
	if rings > 0 {
		t.ring = newUring(t, rings)
	}
	s.loops = all
	return t, nil
}

// run serves on all loops until the mount is gone: when it returns each of them has been told to take no more.
func (t *loops) run(func(*request)) error {
	for i, d := range t.all {
		t.reading.Add(1)
		if !d.l.Do(d.start) {
			t.reading.Done()
			d.err = fmt.Errorf("reactor %d has ended: %w", i, errors.Join(d.l.Err(), reactor.ErrClosed))
		}
	}
	stop := make(chan struct{})
	defer close(stop)
	for i, d := range t.all {
		go func() {
			select {
			case <-stop:
			case <-d.l.Done():
				// What it had read is never answered, so the connection must end. Nothing runs on the loop any more.
				err := fmt.Errorf("reactor %d cannot go on: %w", i, d.l.Err())
				t.fail(err)
				d.end(err)
			}
		}()
	}
	t.reading.Wait()
	if err := t.failure.Load(); err != nil {
		return *err
	}
	for _, d := range t.all {
		if d.err != nil && !errors.Is(d.err, errUnmounted) {
			return d.err
		}
	}
	return errUnmounted
}

// fail ends the connection, and run with err.
func (t *loops) fail(err error) {
	if t.failure.CompareAndSwap(nil, &err) {
		t.log.Error("the mount cannot go on", "cause", err)
		go func() {
			if err := abort(t.s.mount.conn); err != nil {
				t.log.Warn("cannot abort the connection", "cause", err)
			}
			t.close()
		}()
	}
}

func (d *devLoop) start() {
	if err := d.l.Watch(d.fd); err != nil {
		d.end(err)
		return
	}
	if d.t.ring != nil && len(d.t.ring.kept) > 0 {
		d.adopt()
	}
	if d.number == 0 {
		d.arm()
	}
}

// arm waits for the next request. Of the loops that do, one is woken for each.
func (d *devLoop) arm() {
	d.duty = true
	d.l.Poll(&d.poll, d.fd, unix.POLLIN|unix.EPOLLEXCLUSIVE)
}

// call has the next loop help.
func (d *devLoop) call() {
	if next := d.number + 1; (d.t.ring == nil || d.t.ring.fell.Load()) && next < len(d.t.all) && d.t.all[next].called.CompareAndSwap(false, true) {
		d.t.all[next].l.Post(&d.t.all[next].join)
	}
}

// help begins to read, as another loop has more than it can do.
func (d *devLoop) help() {
	if d.called.Store(false); d.over || d.t.closing.Load() || d.t.paused.Load() || d.duty {
		return
	}
	d.few = 0
	d.read()
}

// leave tells whether a helper has nothing to do here any more. The first loop stays.
func (d *devLoop) leave(found int) bool {
	if found > 1 || d.number == 0 {
		d.few = 0
		return false
	}
	d.few++
	return d.few >= fewRounds
}

// alone is told how many requests the first loop found before there was none.
func (d *devLoop) alone(found int) {
	if d.single++; found > 1 {
		d.single = 0
	}
}

// soon tells whether to wait for another request after the first one without looking for it.
func (d *devLoop) soon() bool {
	if d.number > 0 || d.single < singleRounds {
		return false
	}
	if d.single++; d.single < 2*singleRounds {
		return true
	}
	d.single = singleRounds - 1
	return false
}

// end says that this loop reads no more. The first one to end has the others end.
func (d *devLoop) end(err error) {
	if d.over {
		return
	}
	d.over, d.err = true, err
	d.t.reading.Done()
	d.t.close()
}

// ready is told that there may be something to read.
func (d *devLoop) ready(_ int, err error) {
	switch {
	case d.t.closing.Load():
		d.shut()
	case d.t.paused.Load():
		d.rest()
	case err != nil:
		d.end(fmt.Errorf("wait for %s: %w", devicePath, err))
	default:
		d.read()
	}
}

func (d *devLoop) read() {
	d.duty = true
	for found := range readsAtOnce {
		if d.t.paused.Load() {
			d.rest()
			return
		}
		n, err := unix.Read(d.fd, d.buf.mem[readStart:])
		switch {
		case err == nil:
			if found == busyReads {
				d.call()
			}
			if !d.take(n) {
				return
			}
			if found == 0 && d.soon() {
				d.arm()
				return
			}
		case err == unix.EAGAIN:
			d.alone(found)
			if d.duty = !d.leave(found); d.duty {
				d.arm()
			}
			return
		case err == unix.EINTR, err == unix.ENOENT: // ENOENT: the request was taken back
		case d.t.closing.Load(), err == unix.ENODEV, err == unix.ECONNABORTED:
			d.end(errUnmounted)
			return
		default:
			d.end(fmt.Errorf("read %s: %w", devicePath, err))
			return
		}
	}
	d.arm()
}

// take deals with a request of n bytes that was read. False: nothing is to be read until the budget has room.
func (d *devLoop) take(n int) bool {
	r := d.t.request(d.desc, &d.buf, n)
	s := d.s
	if r == nil {
		return true
	}
	init := r.op == opInit
	if s.atOnce(r) {
		if c := s.conn.Load(); init && d.t.ring != nil && c != nil {
			if c.Flags&initOverIOUring != 0 {
				d.t.ring.register()
			} else {
				d.t.ring.fallBack(errNotOffered)
			}
		}
		return true
	}
	if s.begin(d.loop, r) {
		return true
	}
	if s.budget.try(r.cost) {
		s.spawn(r)
		return true
	}
	d.held = true
	s.enter()
	go func() {
		defer s.leave()
		if s.budget.take(r.cost, s.saturated) {
			s.spawn(r)
		} else {
			s.refuse(r)
		}
		d.l.Post(&d.resume)
	}()
	return false
}

// goOn reads again after a wait for the budget.
func (d *devLoop) goOn() {
	if d.held = false; !d.over {
		d.ready(0, nil)
	}
}

// shut is close on the loop's thread.
func (d *devLoop) shut() {
	if d.poll.UnderWay() {
		d.l.Cancel(&d.poll) // and once more when it has ended
		return
	}
	if d.t.ring == nil { // commands that are queued still name the descriptor
		d.l.Unwatch(d.fd)
		_ = d.desc.file.Close() // the second time it says so, which does no harm
	}
	d.end(errUnmounted)
}

// close has the loops stop reading, and closes the descriptors when they have. The rings' commands hold the device open, so it is no abort of
// their connection: that is done apart.
func (t *loops) close() {
	t.closed.Do(func() {
		t.closing.Store(true)
		for _, d := range t.all {
			if !d.l.Do(d.shut) && t.ring == nil {
				_ = d.desc.file.Close()
			}
		}
	})
}

// free ends the loops.
func (t *loops) free() {
	if t.ring != nil {
		if err := t.ring.ended(loopEnd); err != nil {
			t.log.Warn("memory and threads of the mount stay", "cause", err, "waited", loopEnd)
			return
		}
	}
	t.s.endLoops(t.s.loops)
	if t.ring != nil {
		t.ring.free()
		for _, d := range t.all {
			_ = d.desc.file.Close()
		}
	}
	for _, d := range t.all {
		d.buf.put()
	}
}
