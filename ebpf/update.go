package ebpf

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Set changes what the classifier goes by, while it counts on: ports, marks, priorities and DSCPs are those of o from now on. NoTCX stays. If it fails, part
// of it may be changed; another Set mends that.
func (c *Classifier) Set(o Options) error {
	if err := o.validate(); err != nil {
		return fmt.Errorf("classifier: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fmt.Errorf("classifier: %w", net.ErrClosed)
	}
	return c.put(o)
}

// put writes the options into the maps. Ports that stay are there throughout.
func (c *Classifier) put(o Options) error {
	for class := range uint32(MaxClasses) {
		if err := c.objs.Priorities.Put(class, o.Priority[Class(class)]); err != nil {
			return fmt.Errorf("priority of class %d: %w", class, err)
		}
		mark, ok := o.DSCP[Class(class)]
		value := uint32(0)
		if ok {
			value = uint32(mark) + 1
		}
		if err := c.objs.Dscps.Put(class, value); err != nil {
			return fmt.Errorf("DSCP of class %d: %w", class, err)
		}
	}
	for dscp := range uint32(maxDSCP + 1) {
		class, ok := o.Marks[uint8(dscp)]
		value := uint32(0)
		if ok {
			value = uint32(class) + 1
		}
		if err := c.objs.Marks.Put(dscp, value); err != nil {
			return fmt.Errorf("mark %d: %w", dscp, err)
		}
	}
	ports := map[uint16]uint32{}
	for p, class := range o.Ports {
		ports[p] = uint32(class)
	}
	return putPorts(c.objs.Ports, ports)
}

// putPorts has a map hold these ports and no others.
func putPorts(m *ebpf.Map, want map[uint16]uint32) error {
	var gone []uint16
	var port uint16
	var value uint32
	each := m.Iterate()
	for each.Next(&port, &value) {
		if _, ok := want[port]; !ok {
			gone = append(gone, port)
		}
	}
	if err := each.Err(); err != nil {
		return fmt.Errorf("ports: %w", err)
	}
	for _, p := range gone { // first, so that there is room
		if err := m.Delete(p); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("port %d: %w", p, err)
		}
	}
	for p, v := range want {
		if err := m.Put(p, v); err != nil {
			return fmt.Errorf("port %d: %w", p, err)
		}
	}
	return nil
}

func asPorts(ports []uint16) (map[uint16]uint32, error) {
	if len(ports) > MaxPorts {
		return nil, fmt.Errorf("%d ports: at most %d", len(ports), MaxPorts)
	}
	m := map[uint16]uint32{}
	for _, p := range ports {
		m[p] = 1
	}
	return m, nil
}

// SetPorts says which ports only members reach from now on.
func (g *Guard) SetPorts(ports []uint16) error {
	m, err := asPorts(ports)
	if err != nil {
		return fmt.Errorf("guard: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return fmt.Errorf("guard: %w", net.ErrClosed)
	}
	return putPorts(g.objs.Guarded, m)
}

// SetPorts says the connections of which ports are looked at from now on, of those that are made then.
func (w *Watcher) SetPorts(ports []uint16) error {
	m, err := asPorts(ports)
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return fmt.Errorf("watch: %w", net.ErrClosed)
	}
	return putPorts(w.objs.Watched, m)
}

// TCX reports whether the classifier ends with its process, as it does where the kernel has TCX.
func (c *Classifier) TCX() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !slices.ContainsFunc(c.hooks, func(h io.Closer) bool { _, is := h.(*filter); return is })
}

// Left is what of ours is on an interface, whoever put it there.
type Left struct {
	Queues  bool // Shape's
	Filters int  // of the classifier, where there is no TCX
}

// Clean takes off an interface what a process that died has left there: Shape's queues, and filters. What others made stays.
func Clean(ifname string) (Left, error) {
	var left Left
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return left, fmt.Errorf("clean %s: %w", ifname, typed(err))
	}
	defer h.Close()
	dev, err := h.LinkByName(ifname)
	if err != nil {
		return left, fmt.Errorf("clean %s: %w", ifname, err)
	}
	s := &Shaper{h: h, link: dev}
	ours, err := s.mine()
	if err == nil && ours {
		if err = s.remove(); err == nil {
			left.Queues = true
		}
	}
	if err != nil && !errors.Is(err, ErrForeign) {
		return left, fmt.Errorf("clean %s: queues: %w", ifname, typed(err))
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		all, err := h.FilterList(dev, parent)
		if err != nil {
			continue // there is no clsact queue
		}
		for _, f := range all {
			bpf, ok := f.(*netlink.BpfFilter)
			if !ok || bpf.Priority != filterPriority || bpf.Handle != filterHandle {
				continue
			}
			if err := h.FilterDel(bpf); err != nil && !errors.Is(err, unix.ENOENT) {
				return left, fmt.Errorf("clean %s: filter: %w", ifname, typed(err))
			}
			left.Filters++
		}
	}
	return left, nil
}

// Slaves returns the interfaces that a bond is made of, or none if the interface is no bond.
func Slaves(ifname string) ([]string, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("slaves of %s: %w", ifname, err)
	}
	defer h.Close()
	dev, err := h.LinkByName(ifname)
	if err != nil {
		return nil, fmt.Errorf("slaves of %s: %w", ifname, err)
	}
	if dev.Type() != "bond" {
		return nil, nil
	}
	all, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("slaves of %s: %w", ifname, err)
	}
	var out []string
	for _, l := range all {
		if l.Attrs().MasterIndex == dev.Attrs().Index {
			out = append(out, l.Attrs().Name)
		}
	}
	return out, nil
}

// Cost is how often a program has run, and for how long in all, while MeasureCost was on.
type Cost struct {
	Runs    uint64
	Runtime time.Duration
}

// MeasureCost has the kernel take the time of every BPF program of the host until the closer is closed. That itself costs some tens of nanoseconds a run.
func MeasureCost() (io.Closer, error) {
	c, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return nil, fmt.Errorf("cost of programs: %w", typed(err))
	}
	return c, nil
}

// Cost returns what the classifier has cost in each direction. A run is for one frame, or for a large one that the card cuts.
func (c *Classifier) Cost() (map[Direction]Cost, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, fmt.Errorf("cost: %w", net.ErrClosed)
	}
	out := map[Direction]Cost{}
	for d, p := range map[Direction]*ebpf.Program{Ingress: c.objs.ClassifyIngress, Egress: c.objs.ClassifyEgress} {
		s, err := p.Stats()
		if err != nil {
			return nil, fmt.Errorf("cost: %w", typed(err))
		}
		out[d] = Cost{s.RunCount, s.Runtime}
	}
	return out, nil
}
