package vhost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/block"
)

// Options of a server.
type Options struct {
	Image    block.Image
	ReadOnly bool
	Loops    []*block.Loop
	Listener *net.UnixListener // Start takes it over
	Logger   *slog.Logger      // default: slog.Default()

	Queues    int    // most that the guest may use; default 1
	BlockSize int    // 512 or 4096: what the guest takes for the size of a sector; default 512
	Serial    string // 20 bytes at most, for the guest
	// Patience is how long a front end waits for the one before it to go; default 2 s. When that has gone, it waits for as long as its requests take to end.
	Patience time.Duration
}

const (
	openTimeout    = 30 * time.Second
	releaseTimeout = 30 * time.Second
)

// Server serves an image until Shutdown.
type Server struct {
	o     Options
	log   *slog.Logger
	loops []*loop
	ctx   context.Context // of opens
	stop  context.CancelFunc
	wg    sync.WaitGroup

	// lost says that flushing the image has failed since all copies of what was written are gone, and the guest is still to be told.
	lost atomic.Bool
	// gaveUp says that what waits for the cluster is given up, since this process is to end. Where that is marked in memory which outlives the process the guest is
	// told nothing: it is done again by the next one, as after a kill.
	gaveUp atomic.Bool

	mu      sync.Mutex
	closing bool
	now     *front      // who is served, or was and is being ended; nil: nobody
	disk    *block.Disk // its; nil: not open
	taken   taken
	err     error
}

// front is a front end that is served.
type front struct {
	conn *net.UnixConn
	gone chan struct{} // closed when it has gone
	done chan struct{} // closed when nothing of it is left
}

// loop is a thread with the queues that wait for its memory.
type loop struct {
	*block.Loop
	waiting []*queue
	feeding bool
}

// Start begins to serve.
func Start(o Options) (*Server, error) {
	if o.Queues == 0 {
		o.Queues = 1
	}
	if o.BlockSize == 0 {
		o.BlockSize = sector
	}
	if o.Patience == 0 {
		o.Patience = 2 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Queues < 1 || o.Queues > maxQueues || o.BlockSize != sector && o.BlockSize != physicalBlock || len(o.Serial) > blkID || len(o.Loops) == 0 {
		return nil, errors.Join(fmt.Errorf("%d queues, blocks of %d bytes, a serial number of %d, %d threads: want 1 to %d, 512 or 4096, at most %d, at least one",
			o.Queues, o.BlockSize, len(o.Serial), len(o.Loops), maxQueues, blkID), o.Listener.Close())
	}
	s := &Server{o: o, log: o.Logger}
	for _, l := range o.Loops {
		s.loops = append(s.loops, &loop{Loop: l})
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.wg.Go(s.accept)
	return s, nil
}

// accept serves one front end after the other.
func (s *Server) accept() {
	for {
		c, err := s.o.Listener.AcceptUnix()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			s.log.Warn("accept failed, going on", "err", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		f := &front{conn: c, gone: make(chan struct{}), done: make(chan struct{})}
		if !s.take(f) {
			c.Close()
			continue
		}
		s.wg.Go(func() { s.serve(f) })
	}
}

// take makes f the front end that is served, once the one before has gone and nothing of it is left. It returns false if that one stays.
func (s *Server) take(f *front) bool {
	s.mu.Lock()
	before := s.now
	s.mu.Unlock()
	if before != nil {
		select {
		case <-before.gone:
		case <-time.After(s.o.Patience):
			s.log.Warn("a front end is hung up on: another one is served")
			return false
		}
		<-before.done
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.now = f
	return true
}

// serve serves a front end.
func (s *Server) serve(f *front) {
	defer close(f.done)
	err := s.attend(f)
	f.conn.Close()
	s.mu.Lock()
	s.now = nil
	s.mu.Unlock()
	switch {
	case err == nil || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed):
		s.log.Info("the front end has gone")
	default:
		s.log.Warn("the front end has gone", "cause", err)
	}
}

func (s *Server) attend(f *front) error {
	gone := sync.OnceFunc(func() { close(f.gone) })
	defer gone()
	ctx, cancel := context.WithTimeout(s.ctx, openTimeout)
	d, err := newDevice(ctx, s, channel{c: f.conn})
	cancel()
	if err != nil {
		return fmt.Errorf("look at the image: %w", err)
	}
	s.log.Info("a front end is served", "bytes", d.size, "queues", len(d.queues))
	err = d.serve()
	gone()
	cerr := d.close()
	if cerr != nil {
		s.log.Warn("the image was not given back in order; what the guest had flushed is safe", "err", cerr)
	}
	s.mu.Lock()
	s.err = cerr
	s.mu.Unlock()
	return err
}

// using notes the disk that is in use; nil: none.
func (s *Server) using(d *block.Disk) {
	s.mu.Lock()
	s.disk = d
	s.mu.Unlock()
}

// Shutdown takes nothing more, lets what is under way end, flushes and gives the image back. When ctx ends, what waits for the cluster is given up.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	f := s.now
	s.mu.Unlock()
	s.o.Listener.Close()
	if f != nil {
		f.conn.CloseRead() // the device ends as if the front end had gone; then the front end is hung up on
	}
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = fmt.Errorf("requests under way are given up: %w", ctx.Err())
		s.gaveUp.Store(true)
		s.stop()
		s.mu.Lock()
		if s.disk != nil {
			s.disk.Cancel()
		}
		s.mu.Unlock()
		select {
		case <-done:
		case <-time.After(lastTimeout): // what is still under way keeps its memory
			return err
		}
	}
	s.stop()
	return errors.Join(err, s.err)
}

// lastTimeout bounds the wait for requests that were given up.
const lastTimeout = 5 * time.Second

// do runs f on the thread and waits for it.
func (l *loop) do(f func()) {
	done := make(chan struct{})
	if l.Do(func() { f(); close(done) }) {
		<-done
	}
}

// feed gives memory that has become free to those who wait, in turn.
func (l *loop) feed() {
	if l.feeding {
		return
	}
	l.feeding = true
	defer func() { l.feeding = false }()
	for len(l.waiting) > 0 {
		q := l.waiting[0]
		r := q.waiting
		p := l.Get(r.n)
		if p == nil {
			return
		}
		l.Put(p) // transfer takes it
		l.waiting = slices.Delete(l.waiting, 0, 1)
		q.waiting = nil
		r.transfer()
		q.serve()
	}
}
