package bond

import (
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"varve/ebpf"
)

const (
	// DefaultDir is where the bonding driver has a file for each bond.
	DefaultDir = "/proc/net/bonding"

	slowLook  = time.Second            // between looks at the bonds where nothing happens
	fastLook  = 50 * time.Millisecond  // and after the kernel said that a link has changed: the driver looks at its slaves now and then only
	fastFor   = 2 * time.Second        // for so long
	noBonds   = 5 * time.Second        // between looks for bonds on a host that has none
	maxBonds  = 64                     // others are not looked at
	maxWarned = 1000                   // warnings that are remembered; after that there are none
	maxPaths  = 8192                   // to peers, that are remembered
	pathFor   = 10 * time.Second       // routes change
	quietEdge = 200 * time.Millisecond // a peer that is silent for so long has its slave tried
)

// Options of a watch. The zero value works.
type Options struct {
	// Dir holds a file for each bond, as the kernel writes it. Default: DefaultDir.
	Dir string
	// Logger takes what is wrong with bonds, once each. Default: slog.Default().
	Logger *slog.Logger
	// Unsteered leaves all ports to the kernel, so that connections take slaves by chance.
	Unsteered bool
}

// Bonds are the bonds of a host, or of a network namespace.
type Bonds struct {
	o      Options
	nl     *netlink.Handle // nil: the kernel cannot be asked; sysfs is
	events chan netlink.LinkUpdate
	over   chan struct{} // ends the events
	stop   chan struct{}
	done   sync.WaitGroup
	ports  ports
	next   atomic.Uint32 // the source port to begin with
	turn   atomic.Uint32 // of connections that are the only ones to their peer
	any    atomic.Bool   // there are bonds

	mu      sync.Mutex
	bonds   map[string]*seen
	paths   map[pathKey]path
	dead    map[wayKey]*suspect
	heard   map[wayKey]time.Time // of a peer
	peers   map[netip.Addr]mtuSeen
	waiters map[chan struct{}]struct{}
	warned  map[string]bool
}

// seen is a bond as it was found last.
type seen struct {
	*ebpf.Bond
	usable int
	mtus   map[string]int // of the slaves
	count  counting
}

// Watch begins to watch the bonds of the network namespace of the calling thread, which may be none.
func Watch(o Options) *Bonds {
	if o.Dir == "" {
		o.Dir = DefaultDir
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	b := &Bonds{
		o: o, stop: make(chan struct{}), ports: readPorts(),
		bonds: map[string]*seen{}, paths: map[pathKey]path{}, dead: map[wayKey]*suspect{}, heard: map[wayKey]time.Time{}, peers: map[netip.Addr]mtuSeen{},
		waiters: map[chan struct{}]struct{}{}, warned: map[string]bool{},
	}
	b.next.Store(rand.Uint32())   // processes of one host begin at different ports
	b.nl, _ = netlink.NewHandle() // stays in this thread's namespace; without it there is sysfs
	b.look()
	if b.any.Load() {
		b.subscribe()
	}
	b.done.Go(b.watch)
	return b
}

// Close ends the watch.
func (b *Bonds) Close() {
	if b == nil {
		return
	}
	b.mu.Lock() // no probe begins from now on
	close(b.stop)
	b.mu.Unlock()
	b.done.Wait()
	if b.nl != nil {
		b.nl.Close()
	}
}

// subscribe has the kernel tell when a link changes. Without that the looks find it, later.
func (b *Bonds) subscribe() {
	events, over := make(chan netlink.LinkUpdate, 64), make(chan struct{})
	if netlink.LinkSubscribe(events, over) == nil {
		b.events, b.over = events, over
	}
}

func (b *Bonds) watch() {
	defer func() {
		if b.over != nil {
			close(b.over)
			for range b.events { //nolint:revive // until its sender has ended
			}
		}
	}()
	timer := time.NewTimer(slowLook)
	defer timer.Stop()
	counted := time.Now()
	var fast time.Time // until when
	for {
		if fast.IsZero() && !b.any.Load() {
			timer.Reset(noBonds)
		} else if time.Now().Before(fast) {
			timer.Reset(fastLook)
		} else {
			timer.Reset(slowLook)
		}
		select {
		case <-b.stop:
			return
		case _, ok := <-b.events:
			if !ok {
				b.events, b.over = nil, nil // the kernel could not keep up, or we not
				continue
			}
			fast = time.Now().Add(fastFor)
		case <-timer.C:
		}
		b.look()
		if b.any.Load() && b.events == nil {
			b.subscribe()
		}
		if b.any.Load() && time.Since(counted) >= slowLook {
			counted = time.Now()
			b.verify(counted)
		}
	}
}

// look reads what the driver says of each bond, and wakes who waits if another slave carries what one carried before.
func (b *Bonds) look() {
	files, err := os.ReadDir(b.o.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		b.warn("the bonds of this host cannot be read", "err", err)
	}
	found := map[string]*ebpf.Bond{}
	for _, f := range files {
		if len(found) == maxBonds || f.Name()[0] == '.' {
			continue
		}
		file, err := os.Open(filepath.Join(b.o.Dir, f.Name()))
		if err != nil {
			continue // it is gone
		}
		bond, err := ebpf.ParseBond(file)
		file.Close()
		if err != nil {
			b.warn("a bond cannot be read", "bond", f.Name(), "err", err)
			continue
		}
		found[f.Name()] = bond
	}
	b.any.Store(len(found) > 0)
	b.mu.Lock()
	changed := len(found) != len(b.bonds)
	for name, bond := range found {
		old := b.bonds[name]
		if old == nil {
			old = &seen{}
			b.bonds[name] = old
		}
		if old.Bond == nil || old.Mode != bond.Mode || old.Policy != bond.Policy || !reflect.DeepEqual(names(old.Usable()), names(bond.Usable())) ||
			len(old.Slaves) != len(bond.Slaves) {
			changed = true
			if old.Bond != nil {
				b.o.Logger.Info("bond changed", "bond", name, "usable", names(bond.Usable()), "before", names(old.Usable()))
			}
		}
		old.Bond, old.usable = bond, len(bond.Usable())
	}
	for name := range b.bonds {
		if found[name] == nil {
			delete(b.bonds, name)
		}
	}
	if changed {
		clear(b.paths)
		clear(b.heard)
		clear(b.dead) // what was dead may be what the driver has found now, and numbers mean others
	}
	b.mu.Unlock()
	if changed {
		b.wake()
		for _, w := range b.Warnings() {
			b.warn(w)
		}
	}
}

func names(slaves []ebpf.Slave) []string {
	out := make([]string, 0, len(slaves))
	for _, s := range slaves {
		out = append(out, s.Name)
	}
	return out
}

// warn logs what was not logged before.
func (b *Bonds) warn(what string, args ...any) {
	key := what
	for i := 0; i+1 < len(args); i += 2 {
		if s, ok := args[i+1].(string); ok {
			key += " " + s
		}
	}
	b.mu.Lock()
	known := b.warned[key] || len(b.warned) >= maxWarned
	if !known {
		b.warned[key] = true
	}
	b.mu.Unlock()
	if !known {
		b.o.Logger.Warn(what, args...)
	}
}

// Changed returns a channel that gets something when Judge may judge otherwise, and what ends that.
func (b *Bonds) Changed() (<-chan struct{}, func()) {
	if b == nil {
		return nil, func() {}
	}
	c := make(chan struct{}, 1)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiters[c] = struct{}{}
	return c, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.waiters, c)
	}
}

func (b *Bonds) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.waiters {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// Any reports whether the host has bonds.
func (b *Bonds) Any() bool { return b != nil && b.any.Load() }
