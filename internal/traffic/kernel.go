package traffic

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"varve/ebpf"
	"varve/internal/planes"
)

// retryEvery is how often what failed is tried again.
const retryEvery = 10 * time.Second

// kernel is what is done on this host's interfaces. One goroutine uses it.
type kernel struct {
	cgroup  string
	on      map[string]*device
	watch   *ebpf.Watcher
	watched []uint16

	watchFault error
	watchTried time.Time
	last       plan

	seen   hostView // of the interfaces, as of then
	seenAt time.Time
	bonds  map[string][]string // slaves, as of then
}

// seeEvery is how often the interfaces are looked at.
const seeEvery = 2 * time.Second

// device is what is on an interface.
type device struct {
	index      int
	classifier *ebpf.Classifier
	shaper     *ebpf.Shaper
	guard      *ebpf.Guard
	have       ifPlan                // as it was done
	ports      map[uint16]ebpf.Class // as the classifier has them
	faults     [3]error              // of queues, classifier, guard
	tried      time.Time             // when there was a fault
}

func newKernel(cgroup string) *kernel { return &kernel{cgroup: cgroup, on: map[string]*device{}} }

// view is the host as it is now.
func (k *kernel) view() (hostView, error) {
	now := time.Now()
	if now.Sub(k.seenAt) >= seeEvery {
		all, err := planes.Host()
		if err != nil {
			return hostView{}, err
		}
		k.seen, k.seenAt, k.bonds = hostView{interfaces: all, speed: speed, slaves: k.slaves}, now, map[string][]string{}
	}
	k.seen.now = now
	return k.seen, nil
}

func (k *kernel) slaves(name string) []string {
	s, known := k.bonds[name]
	if !known {
		s, _ = ebpf.Slaves(name) // one that is gone has none
		k.bonds[name] = s
	}
	return s
}

func speed(name string) uint64 {
	b, err := os.ReadFile(filepath.Join("/sys/class/net", name, "speed"))
	if err != nil {
		return 0
	}
	mbit, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || mbit <= 0 {
		return 0
	}
	return uint64(mbit) * 1_000_000
}

// clean takes off every interface what an owner that died has left.
func (k *kernel) clean() (left map[string]ebpf.Left, err error) { return Clean() }

// Clean takes off every interface of this host what a process that died has left there: queues, and filters where there is no TCX.
func Clean() (left map[string]ebpf.Left, err error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	left = map[string]ebpf.Left{}
	for _, i := range all {
		one, cerr := ebpf.Clean(i.Name)
		if one != (ebpf.Left{}) {
			left[i.Name] = one
		}
		err = errors.Join(err, cerr)
	}
	return left, err
}

// apply has the interfaces be as planned. Faults are in the snapshot, and tried again later.
func (k *kernel) apply(p plan) {
	k.last = p
	for name, d := range k.on {
		dev, err := net.InterfaceByName(name)
		if _, wanted := p.interfaces[name]; !wanted || err != nil || dev.Index != d.index {
			_ = d.close() // the interface may be gone
			delete(k.on, name)
		}
	}
	for name, want := range p.interfaces {
		d := k.on[name]
		if d == nil {
			dev, err := net.InterfaceByName(name)
			if err != nil {
				continue
			}
			d = &device{index: dev.Index}
			k.on[name] = d
		}
		d.apply(name, want, p.ports)
	}
	k.applyWatch(p)
}

func (k *kernel) applyWatch(p plan) {
	ports := slices.Sorted(maps.Keys(p.ports))
	switch {
	case !p.watch:
		if k.watch != nil {
			_ = k.watch.Close()
		}
		k.watch, k.watchFault = nil, nil
	case k.watch == nil && (k.watchFault == nil || time.Since(k.watchTried) > retryEvery):
		k.watchTried = time.Now()
		if k.watch, k.watchFault = ebpf.Watch(k.cgroup, ports); k.watchFault != nil {
			k.watch = nil
		}
		k.watched = ports
	case k.watch != nil && !slices.Equal(ports, k.watched):
		if k.watchFault = k.watch.SetPorts(ports); k.watchFault == nil {
			k.watched = ports
		}
	}
}

func (d *device) apply(name string, want ifPlan, ports map[uint16]ebpf.Class) {
	if errors.Join(d.faults[:]...) != nil {
		if time.Since(d.tried) < retryEvery && reflect.DeepEqual(want, d.have) && maps.Equal(ports, d.ports) {
			return
		}
		d.have.link = 0 // so that the queues are made again
	}
	d.tried = time.Now()
	shaped := d.applyShape(name, want)
	d.applyClassifier(name, want, ports, shaped)
	d.applyGuard(name, want)
	d.have = want
}

// applyShape reports whether the queues are others now.
func (d *device) applyShape(name string, want ifPlan) bool {
	if d.shaper != nil && want.link == d.have.link && slices.Equal(want.shares, d.have.shares) || d.shaper == nil && want.link == 0 {
		if want.link == 0 {
			d.faults[0] = nil
		}
		return false
	}
	if d.shaper != nil {
		_ = d.shaper.Close() // Shape takes the place of what is left
		d.shaper = nil
	}
	if d.faults[0] = nil; want.link > 0 {
		if d.shaper, d.faults[0] = ebpf.Shape(name, want.link, want.shares); d.faults[0] != nil {
			d.shaper = nil
		}
	}
	return true
}

func (d *device) applyClassifier(name string, want ifPlan, ports map[uint16]ebpf.Class, shaped bool) {
	o := ebpf.Options{Ports: ports, Marks: marks()}
	if d.shaper != nil {
		o.Priority = d.shaper.Priorities()
	}
	switch {
	case !want.classify && d.classifier != nil:
		d.faults[1] = d.classifier.Close()
		d.classifier = nil
	case want.classify && d.classifier == nil:
		if d.classifier, d.faults[1] = ebpf.Attach(name, o); d.faults[1] != nil {
			d.classifier = nil
		}
		d.ports = ports
	case want.classify && (shaped || d.faults[1] != nil || !maps.Equal(ports, d.ports)):
		if d.faults[1] = d.classifier.Set(o); d.faults[1] == nil {
			d.ports = ports
		}
	}
}

func (d *device) applyGuard(name string, want ifPlan) {
	same := slices.Equal(want.guarded, d.have.guarded) && slices.Equal(want.allowed, d.have.allowed) && d.faults[2] == nil
	switch {
	case len(want.guarded) == 0:
		if d.guard != nil {
			d.faults[2] = d.guard.Close()
		}
		d.guard = nil
	case d.guard == nil:
		if d.guard, d.faults[2] = ebpf.Protect(name, want.guarded, want.allowed); d.faults[2] != nil {
			d.guard = nil
		}
	case !same: // members before ports: nobody is dropped who is to pass
		d.faults[2] = d.guard.SetMembers(want.allowed)
		if d.faults[2] == nil {
			d.faults[2] = d.guard.SetPorts(want.guarded)
		}
	}
}

func (d *device) close() error {
	var errs []error
	if d.guard != nil {
		errs = append(errs, d.guard.Close())
	}
	if d.classifier != nil {
		errs = append(errs, d.classifier.Close())
	}
	if d.shaper != nil {
		errs = append(errs, d.shaper.Close())
	}
	return errors.Join(errs...)
}

// close takes everything off.
func (k *kernel) close() error {
	var errs []error
	for _, d := range k.on {
		errs = append(errs, d.close())
	}
	if k.watch != nil {
		errs = append(errs, k.watch.Close())
	}
	k.on, k.watch = map[string]*device{}, nil
	return errors.Join(errs...)
}

// word says whether something is done on the interfaces that are to have it, and why not.
func word(off string, want, have int, fault error) string {
	switch {
	case off != "":
		return "off: " + off
	case have == 0 && fault != nil:
		return "off: " + fault.Error()
	case have < want && fault != nil:
		return fmt.Sprintf("on, but on %d of %d interfaces: %v", have, want, fault)
	case have == 0:
		return "off: its interfaces are gone"
	}
	return "on"
}

// look fills in a snapshot.
func (k *kernel) look(s *Snapshot) {
	var want, have [3]int // queues, classifier, guard
	var faults [3]error
	strangers := map[netip.Addr]ebpf.Count{}
	for _, name := range slices.Sorted(maps.Keys(k.on)) {
		d := k.on[name]
		i := Interface{Name: name}
		for n, wanted := range []bool{d.have.link > 0, d.have.classify, len(d.have.guarded) > 0} {
			if wanted {
				want[n]++
			}
			faults[n] = cmp.Or(faults[n], d.faults[n])
		}
		if err := errors.Join(d.faults[:]...); err != nil {
			i.Fault = err.Error()
		}
		if d.classifier != nil {
			have[1]++
			i.How = "clsact"
			if d.classifier.TCX() {
				i.How = "tcx"
			}
			i.Counts, i.ByPeer = counts(d.classifier)
		}
		if d.shaper != nil {
			have[0]++
			i.LinkBit = d.have.link
			bytes, drops, err := d.shaper.Sent()
			if err != nil {
				i.Fault = err.Error()
			}
			for c := firstOurs; int(c) < len(ClassNames); c++ {
				i.Queues = append(i.Queues, Queue{className(c), bytes[c], drops[c]})
			}
		}
		if d.guard != nil {
			have[2]++
			i.Guard = d.guard.How()
			all, by, err := d.guard.Dropped()
			if err != nil {
				i.Fault = err.Error()
			}
			s.Dropped.Packets += all.Packets
			s.Dropped.Bytes += all.Bytes
			for a, n := range by {
				was := strangers[a]
				strangers[a] = ebpf.Count{Packets: was.Packets + n.Packets, Bytes: was.Bytes + n.Bytes}
			}
		}
		s.Interfaces = append(s.Interfaces, i)
	}
	for a, n := range strangers {
		s.Strangers = append(s.Strangers, Stranger{a.String(), Traffic(n)})
	}
	slices.SortFunc(s.Strangers, func(a, b Stranger) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), strings.Compare(a.Addr, b.Addr))
	})
	s.Strangers = s.Strangers[:min(len(s.Strangers), maxStrangers)]
	s.Shape = word(k.last.shapeOff, want[0], have[0], faults[0])
	s.Classify = word(k.last.classifyOff, want[1], have[1], faults[1])
	s.Guard = word(k.last.guardOff, want[2], have[2], faults[2])
	k.lookWatch(s)
}

// maxStrangers bounds those that are told apart in a snapshot.
const maxStrangers = 100

func (k *kernel) lookWatch(s *Snapshot) {
	switch {
	case !k.last.watch:
		s.Watch = "off: frames are not told apart: " + k.last.classifyOff
		return
	case k.watch == nil && k.watchFault != nil:
		s.Watch = "off: " + k.watchFault.Error()
		return
	}
	s.Watch = "on"
	peers, err := k.watch.Peers()
	if err != nil {
		s.Watch = "off: " + err.Error()
		return
	}
	for a, h := range peers {
		s.Peers = append(s.Peers, Peer{a.String(), h.Connections, h.Last.Microseconds(), h.Mean.Microseconds(), h.Min.Microseconds(), h.Retransmits})
	}
	slices.SortFunc(s.Peers, func(a, b Peer) int { return strings.Compare(a.Addr, b.Addr) })
}

func counts(c *ebpf.Classifier) (all, byPeer []Count) {
	if m, err := c.Counters(); err == nil {
		for key, n := range m {
			all = append(all, Count{Class: className(key.Class), Out: key.Direction == ebpf.Egress, Traffic: Traffic(n)})
		}
	}
	if m, err := c.Peers(); err == nil {
		for key, n := range m {
			byPeer = append(byPeer, Count{Peer: key.Peer.String(), Class: className(key.Class), Out: key.Direction == ebpf.Egress, Traffic: Traffic(n)})
		}
	}
	sortCounts(all)
	sortCounts(byPeer)
	return all, byPeer
}
