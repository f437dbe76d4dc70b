package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand"
	"strings"
	"sync"
	"time"

	"varve/cs"
	"varve/internal/client"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/rwlock"
	"varve/mds"
)

// world is one run: the cluster, its clients, and what is known of what they did. It lives in one bubble of virtual time.
type world struct {
	o     Options
	cfg   config
	x     *template
	net   *network
	start time.Time
	ctx   context.Context // ends with the run
	// loading ends when no more operations are begun; load is who does them.
	loading context.Context
	load    sync.WaitGroup
	apps    []*app // guarded by mu

	metas   []*metaNode
	servers []*serverNode
	ending  sync.WaitGroup // processes that were killed and whose goroutines have not ended

	mu     sync.Mutex
	last   time.Duration // of clock
	model  *model
	values uint64
	grants []grant
	fenced map[uint64]time.Duration // since when a session is known to be fenced
	counts counts
	events []string

	cover cover
}

// counts is what a run did.
type counts struct {
	Writes, Acked, Reads, Flushes, Opens, Failed, Faults int
}

func (c *counts) add(o counts) {
	c.Writes, c.Acked, c.Reads, c.Flushes = c.Writes+o.Writes, c.Acked+o.Acked, c.Reads+o.Reads, c.Flushes+o.Flushes
	c.Opens, c.Failed, c.Faults = c.Opens+o.Opens, c.Failed+o.Failed, c.Faults+o.Faults
}

// grant is a file opened for writing by a session.
type grant struct {
	file    int
	session uint64
	at      time.Duration
}

// clock returns the time since the run began; it is never the same twice, so that what happened at one moment has an order.
func (w *world) clock() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.clockLocked()
}

func (w *world) clockLocked() time.Duration {
	w.last = max(w.last+1, time.Since(w.start))
	return w.last
}

// maxEvents bounds what is kept of a run to be printed when it fails.
const maxEvents = 20000

// note keeps a line of the run's story.
func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.o.Log == nil {
		return
	}
	if len(w.events) < maxEvents {
		w.events = append(w.events, fmt.Sprintf("%12.6f ", time.Since(w.start).Seconds())+fmt.Sprintf(format, args...))
	}
}

func (w *world) fault(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	w.note("FAULT FOUND: %s", s)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.model.faults = append(w.model.faults, s)
}

// lines makes a log's lines notes.
type lines struct{ w *world }

func (l lines) Write(b []byte) (int, error) {
	s := strings.TrimSpace(string(b))
	if _, rest, ok := strings.Cut(s, "level="); ok {
		s = rest
	}
	l.w.note("%s", s)
	return len(b), nil
}

var _ io.Writer = lines{}

func (w *world) logger(who string) *slog.Logger {
	if w.o.Log == nil {
		return slog.New(counted{slog.DiscardHandler, &w.cover})
	}
	return slog.New(counted{slog.NewTextHandler(lines{w}, &slog.HandlerOptions{Level: slog.LevelInfo}), &w.cover}).With("at", who)
}

// process is a server process that can be killed and started: what metadata and chunk servers have in common.
type process struct {
	w    *world
	name string
	ip   string
	d    *disk.Faulty
	dead int // crashes
	boot int // losses of power
	op   chan struct{}
	h    *host
	up   bool
	kill func()
	stop func(context.Context) error
}

func newProcess(w *world, name, ip string, d *disk.Faulty) process {
	return process{w: w, name: name, ip: ip, d: d.Clone(), op: make(chan struct{}, 1)}
}

// crash ends the process at this instant. With power, what was not synced may be lost, and nobody is told; without, its kernel closes its connections.
func (p *process) crash(power bool) {
	p.op <- struct{}{}
	defer func() { <-p.op }()
	if !p.up {
		return
	}
	p.w.note("%s: %s", p.name, map[bool]string{true: "loses power", false: "is killed"}[power])
	p.dead++
	p.up = false
	old := p.d
	p.d = old.Clone()
	old.PowerOff()
	p.w.net.stop(p.h, power)
	if power {
		p.boot++
		p.d.Crash(rand.New(rand.NewSource(int64(mix(mixString(p.w.o.Seed, p.name), uint64(p.dead))))))
	}
	p.w.ending.Go(p.kill)
}

// shutdown ends the process in order.
func (p *process) shutdown() {
	p.op <- struct{}{}
	defer func() { <-p.op }()
	if !p.up {
		return
	}
	p.w.note("%s: is stopped", p.name)
	p.up = false
	ctx, cancel := context.WithTimeout(p.w.ctx, time.Minute)
	defer cancel()
	if err := p.stop(ctx); err != nil {
		p.w.note("%s: did not stop in order: %v", p.name, err)
	}
	p.w.net.stop(p.h, false)
}

type metaNode struct {
	process
	i int
}

type serverNode struct {
	process
	i int
}

func (m *metaNode) start() {
	m.op <- struct{}{}
	defer func() { <-m.op }()
	if m.up || m.w.ctx.Err() != nil {
		return
	}
	m.h = m.w.net.start(m.ip)
	s, err := mds.Open(m.w.x.metaOptions(m.i, m.d, m.h, m.w.logger(m.name)))
	if err != nil {
		m.w.fault("%s does not start: %v", m.name, err)
		return
	}
	m.w.note("%s: runs", m.name)
	m.up, m.kill, m.stop = true, s.Kill, s.Shutdown
	h := m.h
	m.w.ending.Go(func() {
		if err := s.Run(); err != nil {
			m.ended(h, err)
		}
	})
}

func (s *serverNode) start() {
	s.op <- struct{}{}
	defer func() { <-s.op }()
	if s.up || s.w.ctx.Err() != nil {
		return
	}
	s.h = s.w.net.start(s.ip)
	srv, err := cs.Open(s.w.x.serverOptions(s.i, s.boot, s.d, s.h, s.w.logger(s.name)))
	if err != nil {
		s.w.fault("%s does not start: %v", s.name, err)
		return
	}
	s.w.note("%s: runs", s.name)
	s.up, s.kill, s.stop = true, srv.Kill, srv.Shutdown
	h := s.h
	s.w.ending.Go(func() {
		if err := srv.Run(context.Background()); err != nil {
			s.ended(h, err)
		}
	})
}

// ended is told that a process has ended with an error, which only one that was killed may.
func (p *process) ended(h *host, err error) {
	p.w.net.mu.Lock()
	dead := h.dead
	p.w.net.mu.Unlock()
	if !dead {
		p.w.fault("%s ended by itself: %v", p.name, err)
	}
}

// app is one process of a client.
type app struct {
	w    *world
	name string
	ip   string
	h    *host
	c    *client.Client
	// lengths says of each file whether it is known to be as long as at first.
	lengths [maxFiles]struct {
		mu    rwlock.Mutex
		whole bool
	}

	mu   sync.Mutex
	dead bool // killed: nobody hears its answers
}

// newApp starts a client, and waits for its session until ctx ends.
func (w *world) newApp(ctx context.Context, name, ip string) (*app, error) {
	a := &app{w: w, name: name, ip: ip, h: w.net.start(ip)}
	var addrs []string
	for i := range w.metas {
		addrs = append(addrs, metaAddr(i))
	}
	for {
		c, err := client.Dial(ctx, client.Options{
			Cluster: w.x.cluster, Name: "sim", Addrs: addrs, Host: name, Network: a.h, Logger: w.logger(name), NoLocal: true,
			StartTimeout: time.Minute, CloseTimeout: 20 * time.Second,
		})
		if err == nil {
			a.c = c
			w.mu.Lock()
			w.apps = append(w.apps, a)
			w.mu.Unlock()
			w.note("%s: has session %v", name, c.Session())
			return a, nil
		}
		if ctx.Err() != nil || w.ctx.Err() != nil || !errors.Is(err, fserr.Unavailable) && !errors.Is(err, fserr.Timeout) {
			w.net.stop(a.h, false)
			return nil, err
		}
	}
}

// kill ends the process at this instant; power: and nobody is told.
func (a *app) kill(power bool) {
	a.mu.Lock()
	if a.dead {
		a.mu.Unlock()
		return
	}
	a.dead = true
	a.mu.Unlock()
	a.w.note("%s: is killed", a.name)
	a.w.net.stop(a.h, power)
	a.w.ending.Go(func() { _ = a.c.Close() })
}

func (a *app) isDead() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.dead
}

// close ends the process in order.
func (a *app) close() error {
	a.mu.Lock()
	if a.dead {
		a.mu.Unlock()
		return nil
	}
	a.dead = true
	a.mu.Unlock()
	err := a.c.Close()
	a.w.net.stop(a.h, false)
	return err
}
