package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"varve/perf"
)

// RunOptions are those of a load on several hosts.
type RunOptions struct {
	Load    perf.Options // of each host, whose Share is set here; Rate is that of all hosts together
	Hosts   []Host
	Version string // of this release
	Secret  []byte // of agents that listen
	// Progress, unless it is nil, is told every second what all hosts together did.
	Progress func(perf.Progress)
	// Silence is how long an agent may say nothing; default Silence.
	Silence time.Duration
}

const (
	connectTime = 30 * time.Second       // for a connection and the hello
	pings       = 32                     // for the offset of a clock
	startDelay  = 500 * time.Millisecond // in which the agents make their rings and look at the processes of their hosts
	tellDelay   = 3 * time.Second        // after which a second is taken to be told though an agent has not told it
	endGrace    = 20 * time.Second       // for the results after Ctrl-C
)

// Run runs the load on all hosts. An error means that it did not begin: some host could not be reached, is of another release, or cannot do the
// load; the others are told, and nothing is left behind.
func Run(ctx context.Context, o RunOptions) (*perf.Result, error) {
	if len(o.Hosts) == 0 || len(o.Hosts) > perf.MaxHosts {
		return nil, fmt.Errorf("%d hosts: want 1 to %d", len(o.Hosts), perf.MaxHosts)
	}
	if o.Silence == 0 {
		o.Silence = Silence
	}
	r := &run{o: o, base: time.Now(), events: make(chan event, 1024), over: make(chan struct{})}
	var wg sync.WaitGroup
	errs := make([]error, len(o.Hosts))
	r.remotes = make([]*remote, len(o.Hosts))
	for i, h := range o.Hosts {
		wg.Go(func() {
			if r.remotes[i], errs[i] = r.connect(ctx, h); errs[i] != nil {
				errs[i] = fmt.Errorf("host %s: %w", h.Name, errs[i])
			}
		})
	}
	wg.Wait()
	defer r.close()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for i, m := range r.remotes {
		r.readers.Go(func() { r.read(m) })
		load := o.Load
		load.Share = perf.Share{Host: i, Hosts: len(r.remotes)}
		load.Steady = perf.Steady{} // that of all together counts
		if err := m.c.send(&message{Prepare: &load}); err != nil {
			return nil, fmt.Errorf("host %s: %w", m.h.Name, err)
		}
	}
	if err := r.prepare(ctx); err != nil {
		return nil, err
	}
	return r.measure(ctx)
}

// run is one that is under way. It belongs to the goroutine of Run, but for events.
type run struct {
	o       RunOptions
	base    time.Time // of this host's clock
	remotes []*remote
	events  chan event
	over    chan struct{} // closed when nobody takes events any more
	readers sync.WaitGroup
}

// event is a message of a remote, or the end of its connection.
type event struct {
	from *remote
	m    *message
	err  error
}

// remote is an agent.
type remote struct {
	h      Host
	c      *conn
	host   string // as it calls itself
	offset time.Duration
	rtt    time.Duration
	wall   time.Duration

	heard  time.Time
	ready  bool
	live   []*perf.Sample // as they came; of seconds
	final  []*perf.Sample
	result *result
	lost   string
}

func (m *remote) over() bool { return m.result != nil || m.lost != "" }

// connect reaches an agent, compares releases and measures its clock.
func (r *run) connect(ctx context.Context, h Host) (*remote, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	var rwc io.ReadWriteCloser
	var err error
	if h.Addr != "" {
		rwc, err = Dial(ctx, h.Addr, r.o.Secret)
	} else {
		rwc, err = command(h.Command)
	}
	if err != nil {
		return nil, err
	}
	m := &remote{h: h, c: newConn(rwc)}
	type greeted struct{ err error }
	done := make(chan greeted, 1)
	go func() { done <- greeted{r.greet(m)} }()
	select {
	case g := <-done:
		err = g.err
	case <-ctx.Done():
		err = fmt.Errorf("no hello within %v", connectTime)
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = ctx.Err()
		}
	}
	if err != nil {
		err = errors.Join(because(err, rwc), m.c.close())
		return nil, err
	}
	m.heard = time.Now()
	return m, nil
}

// because adds what a program wrote before its connection ended.
func because(err error, rwc io.ReadWriteCloser) error {
	p, ok := rwc.(*process)
	if !ok {
		return err
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("its agent ended")
		p.Close() // waits for the last words
	}
	if last := p.errs.last(); last != "" {
		return fmt.Errorf("%w: %s: %s", err, strings.Join(p.cmd.Args, " "), last)
	}
	return fmt.Errorf("%w: %s", err, strings.Join(p.cmd.Args, " "))
}

func (r *run) greet(m *remote) error {
	x, err := m.c.receiveHello()
	if err != nil {
		return err
	}
	me := hello{Protocol: Protocol, Version: r.o.Version}
	if err := me.differs(*x.Hello); err != nil {
		return err
	}
	m.host = x.Hello.Host
	if err := m.c.send(&message{Hello: &me}); err != nil {
		return err
	}
	for n := 1; n <= pings; n++ {
		sent := time.Now()
		if err := m.c.send(&message{Ping: n}); err != nil {
			return err
		}
		for {
			x, err := m.c.receive()
			if err != nil {
				return err
			}
			if x.Pong == nil || x.Pong.N != n {
				continue
			}
			rtt := time.Since(sent)
			if n == 1 || rtt < m.rtt {
				m.rtt = rtt
				m.offset = x.Pong.At - (sent.Sub(r.base) + rtt/2)
				m.wall = x.Pong.Wall.Sub(sent.Round(0).Add(rtt / 2))
			}
			break
		}
	}
	return nil
}

// read hands on what a remote says, until its connection ends.
func (r *run) read(m *remote) {
	for {
		x, err := m.c.receive()
		if err != nil {
			err = because(err, m.c.rwc)
		}
		select {
		case r.events <- event{m, x, err}:
		case <-r.over:
			return
		}
		if err != nil {
			return
		}
	}
}

// close ends all connections, which ends what the agents do.
func (r *run) close() {
	close(r.over)
	var wg sync.WaitGroup
	for _, m := range r.remotes {
		if m != nil {
			wg.Go(func() { m.c.drain(100 * time.Millisecond); m.c.close() })
		}
	}
	wg.Wait()
	r.readers.Wait()
}

// tick is done every second: it lets the agents know that this host lives, and finds those that do not.
func (r *run) tick() {
	for _, m := range r.remotes {
		if m.over() {
			continue
		}
		err := m.c.send(&message{Alive: true})
		if since := time.Since(m.heard); err == nil && since > r.o.Silence {
			err = fmt.Errorf("it has been silent for %v", since.Round(time.Second))
		}
		if err != nil {
			r.lose(m, err)
		}
	}
}

func (r *run) lose(m *remote, err error) {
	if !m.over() {
		m.lost = err.Error()
	}
}

// prepare waits until all agents are ready.
func (r *run) prepare(ctx context.Context) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		waits := slices.IndexFunc(r.remotes, func(m *remote) bool { return !m.ready })
		if waits < 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
			r.tick()
		case e := <-r.events:
			e.from.heard = time.Now()
			switch {
			case e.err != nil:
				return fmt.Errorf("host %s: %w", e.from.h.Name, e.err)
			case e.m.Error != "":
				return fmt.Errorf("host %s: %s", e.from.h.Name, e.m.Error)
			case e.m.Ready:
				e.from.ready = true
			}
		}
		for _, m := range r.remotes {
			if m.lost != "" {
				return fmt.Errorf("host %s: %s", m.h.Name, m.lost)
			}
		}
	}
}

// measure has the agents begin, and gathers what they measure until each has ended or is lost.
func (r *run) measure(ctx context.Context) (*perf.Result, error) {
	delay := startDelay
	for _, m := range r.remotes {
		delay = max(delay, startDelay+2*m.rtt)
	}
	begin := time.Now().Add(delay)
	for _, m := range r.remotes {
		if err := m.c.send(&message{Start: begin.Sub(r.base) + m.offset}); err != nil {
			r.lose(m, err)
		}
	}
	load := r.o.Load
	load.Share.Hosts = len(r.remotes)
	g := perf.NewGather(load)
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	second := 0
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	ended, deadline := ctx.Done(), (<-chan time.Time)(nil)
	for slices.ContainsFunc(r.remotes, func(m *remote) bool { return !m.over() }) {
		select {
		case <-ended:
			ended = nil
			r.stop(stopCancel)
			timer := time.NewTimer(endGrace)
			defer timer.Stop()
			deadline = timer.C
		case <-deadline:
			for _, m := range r.remotes {
				r.lose(m, fmt.Errorf("no result within %v of the end", endGrace))
			}
		case <-ticker.C:
			r.tick()
		case <-look.C:
			x := r.second(second, time.Since(begin) > time.Duration(second+1)*time.Second+tellDelay)
			if x == nil {
				continue
			}
			second++
			if r.o.Progress != nil {
				r.o.Progress(x.Progress())
			}
			if g.Settled(x.Second, x.Work()) {
				r.stop(stopEnough)
			}
		case e := <-r.events:
			e.from.take(e, r)
		}
	}
	return r.result(g, begin), nil
}

func (m *remote) take(e event, r *run) {
	m.heard = time.Now()
	switch {
	case e.err != nil:
		r.lose(m, e.err)
	case m.over():
	case e.m.Error != "":
		r.lose(m, errors.New(e.m.Error))
	case e.m.Second != nil:
		m.live = append(m.live, e.m.Second)
	case e.m.Final != nil:
		m.final = append(m.final, e.m.Final)
	case e.m.Result != nil && e.m.Result.Result != nil:
		m.result, m.live = e.m.Result, nil
	}
}

func (r *run) stop(how string) {
	for _, m := range r.remotes {
		if !m.over() {
			if err := m.c.send(&message{Stop: how}); err != nil {
				r.lose(m, err)
			}
		}
	}
}

// second adds up what the agents told of a second. It is nil until all that go on have told it, or late.
func (r *run) second(n int, late bool) *perf.Sample {
	sum := &perf.Sample{Second: n}
	told := false
	for _, m := range r.remotes {
		if m.over() {
			continue
		}
		i := len(m.live) - 1 // they come in order, and the newest is wanted
		for i >= 0 && m.live[i].Second > n {
			i--
		}
		switch {
		case i >= 0 && m.live[i].Second == n:
			sum.Add(m.live[i])
			told = true
		case !late:
			return nil
		}
	}
	if !told && !late {
		return nil
	}
	return sum
}

// result puts together what all have measured.
func (r *run) result(g *perf.Gather, begin time.Time) *perf.Result {
	load := r.o.Load
	load.Share = perf.Share{Hosts: len(r.remotes)}
	var longest time.Duration
	hosts := make([]perf.HostResult, len(r.remotes))
	for i, m := range r.remotes {
		own := perf.NewGather(load)
		samples := m.final
		if m.result == nil && len(m.live) > 0 {
			samples = m.live
		}
		for _, x := range samples {
			g.Add(x)
			own.Add(x)
		}
		h := perf.HostResult{Name: m.h.Name, Host: m.host, Lost: m.lost, ClockError: m.rtt / 2, Wall: m.wall}
		if m.result != nil {
			h.Result, h.Late = m.result.Result, m.result.Late
			longest = max(longest, h.Result.Elapsed+r.o.Load.Ramp)
		} else {
			told := 0
			for _, x := range samples {
				told = max(told, x.Second+1)
			}
			elapsed := time.Duration(told) * time.Second
			h.Result = own.Result(begin, elapsed)
			if len(samples) > 0 {
				h.Result.Errors = samples[len(samples)-1].Failures
			}
			h.Result.Series = nil
			longest = max(longest, elapsed)
		}
		hosts[i] = h
	}
	res := g.Result(begin, longest)
	res.Options.Engine = hosts[0].Result.Options.Engine
	for _, h := range hosts {
		res.AddHost(h)
	}
	return res
}
