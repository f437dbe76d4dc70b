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

	mu      sync.Mutex
	closing bool
	busy    bool
	conn    *net.UnixConn // of the front end that is served
	disk    *block.Disk
	err     error
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
		s.mu.Lock()
		if s.busy || s.closing {
			s.mu.Unlock()
			s.log.Warn("a front end is hung up on: another one is served")
			c.Close()
			continue
		}
		s.busy, s.conn = true, c
		s.mu.Unlock()
		s.wg.Go(func() { s.serve(c) })
	}
}

// serve serves a front end.
func (s *Server) serve(c *net.UnixConn) {
	err := s.attend(c)
	c.Close()
	s.mu.Lock()
	s.busy, s.conn, s.disk = false, nil, nil
	s.mu.Unlock()
	switch {
	case err == nil || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed):
		s.log.Info("the front end has gone")
	default:
		s.log.Warn("the front end has gone", "cause", err)
	}
}

func (s *Server) attend(c *net.UnixConn) error {
	ctx, cancel := context.WithTimeout(s.ctx, openTimeout)
	d, err := newDevice(ctx, s, channel{c: c})
	cancel()
	if err != nil {
		return fmt.Errorf("open the image: %w", err)
	}
	s.mu.Lock()
	s.disk = d.disk
	s.mu.Unlock()
	s.log.Info("a front end is served", "bytes", d.size, "queues", len(d.queues))
	err = d.serve()
	cerr := d.close()
	if cerr != nil {
		s.log.Warn("the image was not given back in order; what the guest had flushed is safe", "err", cerr)
	}
	s.mu.Lock()
	s.err = cerr
	s.mu.Unlock()
	return err
}

// Shutdown takes nothing more, lets what is under way end, flushes and gives the image back. When ctx ends, what waits for the cluster is given up.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	c := s.conn
	s.mu.Unlock()
	s.o.Listener.Close()
	if c != nil {
		c.CloseRead() // the device ends as if the front end had gone; then the front end is hung up on
	}
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = fmt.Errorf("requests under way are given up: %w", ctx.Err())
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
