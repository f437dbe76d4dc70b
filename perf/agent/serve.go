package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"varve/perf"
)

// ServeOptions are those of an agent.
type ServeOptions struct {
	Version string // of this release; the asking host must have the same
	// Allow returns why a load must not be run, nil if it may; if it is nil, all may.
	Allow func(perf.Options) error
	// Silence is how long the asking host may say nothing; default Silence.
	Silence time.Duration
}

// Serve answers on one connection, to which it gives loads one after the other, until the connection ends or ctx does. A load that is under way
// then ends at once.
func Serve(ctx context.Context, rwc io.ReadWriteCloser, o ServeOptions) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if o.Silence == 0 {
		o.Silence = Silence
	}
	host, _ := os.Hostname()
	me := hello{Protocol: Protocol, Version: o.Version, Host: host}
	s := &server{o: o, c: newConn(rwc), base: time.Now(), orders: make(chan *message, 16)}
	if err := s.c.send(&message{Agent: Protocol, Hello: &me}); err != nil {
		return err
	}
	heard := make(chan struct{}, 1)
	read := make(chan error, 1)
	go func() { read <- s.read(ctx, heard, cancel) }()
	watch := make(chan struct{})
	go func() { defer close(watch); s.watch(ctx, heard, cancel) }()
	err := s.serve(ctx, me)
	cancel(err)
	s.c.drain(time.Second)
	err = errors.Join(err, s.c.close())
	<-watch
	<-read
	if errors.Is(err, errHungUp) || errors.Is(context.Cause(ctx), errHungUp) {
		return nil
	}
	return err
}

// errHungUp is the end of a connection in order.
var errHungUp = errors.New("the asking host has hung up")

type server struct {
	o      ServeOptions
	c      *conn
	base   time.Time // of the agent's clock
	orders chan *message
}

// read takes messages, answers to pings at once, and hands on the others.
func (s *server) read(ctx context.Context, heard chan<- struct{}, cancel context.CancelCauseFunc) error {
	for {
		m, err := s.c.receive()
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) {
				err = errHungUp
			}
			cancel(err)
			return err
		}
		if m.Ping > 0 {
			now := time.Now()
			_ = s.c.send(&message{Pong: &pong{N: m.Ping, At: now.Sub(s.base), Wall: now.Round(0)}}) // else watch notices
		}
		select {
		case heard <- struct{}{}:
		default:
		}
		if m.Ping > 0 || m.Alive {
			continue
		}
		select {
		case s.orders <- m:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watch says every second that the agent lives, and ends it when the asking host does not.
func (s *server) watch(ctx context.Context, heard <-chan struct{}, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-heard:
			last = time.Now()
		case <-tick.C:
			if since := time.Since(last); since > s.o.Silence {
				cancel(fmt.Errorf("nothing was heard of the asking host for %v", since.Round(time.Second)))
				s.c.rwc.Close() // read may wait in it
				return
			}
			if err := s.c.send(&message{Alive: true}); err != nil {
				cancel(err)
				s.c.rwc.Close()
				return
			}
		}
	}
}

func (s *server) order(ctx context.Context) (*message, error) {
	select {
	case m := <-s.orders:
		return m, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (s *server) serve(ctx context.Context, me hello) error {
	m, err := s.order(ctx)
	if err != nil {
		return err
	}
	if m.Hello == nil {
		return errors.New("the asking host says no hello")
	}
	if err := me.differs(*m.Hello); err != nil {
		return err // the asking host finds the same
	}
	for {
		m, err := s.order(ctx)
		switch {
		case err != nil:
			return err
		case m.Prepare != nil:
			if err := s.run(ctx, *m.Prepare); err != nil {
				return err
			}
		}
	}
}

// run makes a load ready, waits for its start and runs it. An error is one of the connection.
func (s *server) run(ctx context.Context, o perf.Options) error {
	runCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	enough := make(chan struct{})
	load, err := s.open(runCtx, o)
	if err != nil {
		return s.c.send(&message{Error: err.Error()})
	}
	if err := s.c.send(&message{Ready: true}); err != nil {
		return errors.Join(err, load.Close())
	}
	m, err := s.order(ctx)
	if err != nil {
		return errors.Join(err, load.Close())
	}
	if m.Start == 0 { // the run was called off
		return load.Close()
	}
	start := s.base.Add(m.Start)
	done := make(chan *perf.Result, 1)
	go func() {
		done <- load.Run(runCtx, perf.Hooks{Start: start, Enough: enough, Second: func(x *perf.Sample) {
			if err := s.c.send(&message{Second: x}); err != nil {
				cancel() // for nobody
			}
		}})
	}()
	for {
		select {
		case res := <-done:
			return s.report(res, max(res.Started.Sub(start.Round(0)), 0))
		case m := <-s.orders:
			switch m.Stop {
			case stopCancel:
				cancel()
			case stopEnough:
				select {
				case <-enough:
				default:
					close(enough)
				}
			}
		}
	}
}

func (s *server) open(ctx context.Context, o perf.Options) (*perf.Load, error) {
	if s.o.Allow != nil {
		if err := s.o.Allow(o); err != nil {
			return nil, err
		}
	}
	return perf.Open(ctx, o)
}

// report sends what a load measured. It may be more than the queue holds.
func (s *server) report(res *perf.Result, late time.Duration) error {
	patient := func(m *message) error {
		for end := time.Now().Add(s.o.Silence); ; {
			err := s.c.send(m)
			if !errors.Is(err, errSlow) || time.Now().After(end) {
				return err
			}
			time.Sleep(time.Millisecond)
		}
	}
	for x := range res.Samples() {
		if err := patient(&message{Final: x}); err != nil {
			return err
		}
	}
	short := *res
	short.Series = nil // it is made of the samples
	return patient(&message{Result: &result{&short, late}})
}
