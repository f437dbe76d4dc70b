package fuse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/capture"
	"varve/internal/fserr"
	"varve/internal/hot"
	"varve/internal/id"
)

const (
	// maxDataInFlight bounds the memory that requests under way hold, in bytes.
	maxDataInFlight = 512 << 20
	// slowAfter is when an operation is worth a line in the log.
	slowAfter = 10 * time.Second
	// exitPatience is how long the close(2) of a process that is ending may take: nobody sees its outcome, and nobody can interrupt it.
	exitPatience = 3 * time.Second
	// watchEvery is how often slow operations and killed callers are looked for.
	watchEvery = time.Second
	// drainTime is how long an ending session waits for requests under way, whose contexts are canceled,
	// and for handles that the kernel never released.
	drainTime = 5 * time.Second
	// initTime is how long Mount waits for the kernel to say INIT.
	initTime = 10 * time.Second
)

// errUnmounted is how a transport says that the mount ended in an orderly way.
var errUnmounted = errors.New("unmounted")

// transport brings requests to a Session and takes notifications away.
type transport interface {
	replier
	// run calls accept for each request until the mount is gone (errUnmounted), close was called
	// (errUnmounted too) or it fails. It returns when no accept is under way any more.
	run(accept func(*request)) error
	notify(code int32, body ...[]byte) error
	// close ends run, and by it the connection if the mount is still there.
	close()
	// free gives back what close could not, as requests might still be under way. It is called last.
	free()
}

// Session is one mount. Its methods may be called at once.
type Session struct {
	opts    Options
	backend Backend
	keeper  Keeper   // the backend, if it is one
	host    hot.Host // the backend, if it is one
	log     *slog.Logger
	via     transport
	early   early
	loops   []*loop // whose threads begin requests; these are set before the first comes

	transport Transport // as in ConnInfo
	why       string
	threads   int

	nodes    nodes
	files    files
	owners   owners
	flights  flights
	budget   budget
	notes    notes
	kernel   kernel
	counters counters
	capture  atomic.Pointer[capture.Buffers] // of what is answered, while somebody captures it; see capture.go
	captures *net.UnixListener               // nil: nobody can ask
	serving  sync.WaitGroup
	handing  handing // for another process

	conn          atomic.Pointer[ConnInfo]
	ready         chan struct{} // closed when the kernel said INIT
	readyOnce     sync.Once
	initErr       error // why INIT was refused; set before ready is closed
	toldSaturated atomic.Int64
	toldFailed    atomic.Int64
	failedUntold  atomic.Int64

	ended chan struct{} // closed when everything is over; err is set before
	err   error
	mount mountID
}

var _ Notifier = (*Session)(nil)

// ConnInfo is what was agreed on with the kernel.
type ConnInfo struct {
	Minor         int    // of the protocol, which is 7.Minor
	Flags         uint64 // FUSE_* flags of INIT in effect
	MaxWrite      int    // bytes
	MaxBackground int
	Transport     Transport // in use: Dev, Uring or Readers
	Why           string    // it is that one, for people
	Threads       int       // loops, or with Readers goroutines
}

// newSession makes a session that serves nothing yet.
func newSession(opts Options, backend Backend) *Session {
	s := &Session{
		opts: opts, backend: backend, log: opts.Logger.With("mount", opts.MountPoint),
		ready: make(chan struct{}), ended: make(chan struct{}),
	}
	s.nodes.init()
	s.files.init()
	s.owners.init()
	s.flights.init()
	s.budget.init(opts.MaxRequests, maxDataInFlight)
	s.notes.init()
	s.keeper, _ = backend.(Keeper)
	s.host, _ = backend.(hot.Host)
	if b, ok := backend.(NotifierSetter); ok {
		b.SetNotifier(s)
	}
	return s
}

// Conn returns what was agreed on with the kernel.
func (s *Session) Conn() ConnInfo {
	if c := s.conn.Load(); c != nil {
		return *c
	}
	return ConnInfo{}
}

// Open returns the number of open files and of inodes that the kernel refers to.
func (s *Session) Open() (files, inodes int) { return s.files.size(), s.nodes.size() }

// Wait returns when the mount is gone and all handles are released: nil if it was unmounted, by whomever.
func (s *Session) Wait() error {
	<-s.ended
	return s.err
}

// Done returns a channel that is closed when Wait would return.
func (s *Session) Done() <-chan struct{} { return s.ended }

// run serves until the mount is gone, then cleans up. It is the only place that closes ended.
func (s *Session) run() {
	stop := make(chan struct{})
	var helpers sync.WaitGroup
	helpers.Go(func() { s.watch(stop) })
	helpers.Go(func() { s.sendNotes(stop) })
	helpers.Go(func() { s.serveCaptures(stop) })

	err := s.via.run(s.accept)
	if errors.Is(err, errUnmounted) {
		err = nil
	}
	s.readyOnce.Do(func() {
		s.initErr = errors.Join(err, fmt.Errorf("the mount ended before it began: %w", fserr.Unavailable))
		close(s.ready)
	})
	s.budget.close()
	for _, f := range s.flights.all() {
		if f.op != opRelease { // the kernel does not wait for the last releases before it ends the connection
			f.cancel()
		}
	}
	s.cancelHot()
	close(stop)
	s.drain(&helpers)
	s.releaseAll()
	s.via.close()
	s.via.free()
	s.err = err
	close(s.ended)
}

// drain waits for the requests under way and for the helpers, but not for ever: an unmount must not hang
// because a Backend does.
func (s *Session) drain(helpers *sync.WaitGroup) {
	late := time.NewTimer(drainTime)
	defer late.Stop()
	idle := make(chan struct{})
	go func() {
		s.serving.Wait()
		helpers.Wait()
		for end := time.Now().Add(drainTime); len(s.hotUnderWay()) > 0 && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		close(idle)
	}()
	select {
	case <-idle:
	case <-late.C:
		left := s.flights.all()
		s.log.Warn("requests did not end after the mount was gone", "requests", len(left)+len(s.hotUnderWay()), "waited", drainTime)
		for _, f := range left {
			f.cancel()
		}
	}
}

// releaseAll releases what the kernel did not: it sends releases in the background and drops those that it
// has not sent when the connection ends.
func (s *Session) releaseAll() {
	left := s.files.takeAll()
	if len(left) == 0 {
		return
	}
	s.log.Info("releasing files that the kernel had not released when the connection ended", "files", len(left))
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	var all sync.WaitGroup
	for _, f := range left {
		all.Go(func() {
			s.unlockOwners(ctx, f)
			if err := f.handle.Release(ctx); err != nil {
				s.log.Warn("release failed", "inode", f.ino, "cause", err)
			}
		})
	}
	released := make(chan struct{})
	go func() { all.Wait(); close(released) }()
	select {
	case <-released:
	case <-ctx.Done():
		s.log.Warn("releases did not end in time", "files", len(left), "waited", drainTime)
	}
}

// watch looks for operations that take long, which it reports once each, and for interrupted ones whose
// caller is being killed: the kernel announces only the first signal.
func (s *Session) watch(stop <-chan struct{}) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		for _, f := range s.flights.all() {
			s.slow(f, time.Since(f.started))
			f.mu.Lock()
			interrupted := f.interrupted && f.err == nil
			f.mu.Unlock()
			lost := s.unannounced(f.started)
			if (interrupted || lost) && beingKilled(f.pid) || lost && f.op == opSetlkw && signaled(f.pid) ||
				f.op == opFlush && time.Since(f.started) > exitPatience && exiting(f.pid) {
				f.cancel()
			}
		}
		s.watchHot()
		s.early.expire()
	}
}

// unannounced says that a request may have been interrupted without an INTERRUPT. Linux (6.14 to 6.18 at least) does not send one to a
// ring's mount if the signal came between the sending of the request and its arrival here; so all that take long are looked at.
func (s *Session) unannounced(began time.Time) bool {
	return s.transport == Uring && time.Since(began) > watchEvery
}

// slow reports f if it has taken long and was not reported. A wait for a lock may take as long as it likes.
func (s *Session) slow(f *flight, took time.Duration) {
	if took < slowAfter || f.op == opSetlkw {
		return
	}
	f.mu.Lock()
	reported := f.reported
	f.reported = true
	f.mu.Unlock()
	if !reported {
		s.slowNow(f.op, f.ino, f.pid, took)
	}
}

func (s *Session) slowNow(op opcode, ino id.Ino, pid uint32, took time.Duration) {
	s.log.Warn("operation is slow", "op", op.String(), "inode", ino, "took", took.Round(time.Millisecond), "pid", pid)
}

// slowDone says how long an operation took in the end that was reported as slow, or would have been.
func (s *Session) slowDone(r *request, took time.Duration) {
	if r.op != opSetlkw {
		s.log.Warn("slow operation ended", "op", r.op.String(), "inode", r.ino, "took", took.Round(time.Millisecond), "pid", r.pid)
	}
}

func inoOf(v uint64) id.Ino { return id.Ino(v) }
