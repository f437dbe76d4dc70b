package ebpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// MaxNetworks bounds the networks of a Guard.
const MaxNetworks = 16384

// Guard drops, on one interface, TCP segments to some ports that do not come from its members, before the kernel spends anything on them. It takes load
// and noise from servers that authenticate whoever connects; it is no authentication. It ends with the process.
type Guard struct {
	mu      sync.Mutex
	objs    guardObjects
	hook    link.Link
	how     string
	members map[netip.Prefix]bool
	closed  bool
}

// Protect puts a guard on the interface, looked up in the network namespace of the calling thread: only members reach the ports. Errors wrap
// ErrNotSupported where kernel or privilege are missing.
func Protect(ifname string, ports []uint16, members []netip.Prefix) (*Guard, error) {
	if len(ports) > MaxPorts {
		return nil, fmt.Errorf("guard of %s: %d ports: at most %d", ifname, len(ports), MaxPorts)
	}
	dev, err := net.InterfaceByName(ifname)
	if err != nil {
		return nil, fmt.Errorf("guard of %s: %w", ifname, err)
	}
	g := &Guard{members: map[netip.Prefix]bool{}}
	if err := g.begin(dev.Index, ports, members); err != nil {
		return nil, errors.Join(fmt.Errorf("guard of %s: %w", ifname, typed(err)), g.Close())
	}
	return g, nil
}

func (g *Guard) begin(ifindex int, ports []uint16, members []netip.Prefix) error {
	if err := loadGuardObjects(&g.objs, nil); err != nil {
		return err
	}
	for _, p := range ports {
		if err := g.objs.Guarded.Put(p, uint32(1)); err != nil {
			return fmt.Errorf("port %d: %w", p, err)
		}
	}
	if err := g.SetMembers(members); err != nil { // before anything is dropped
		return err
	}
	var errs error
	for _, way := range []struct {
		flags link.XDPAttachFlags
		name  string
	}{{link.XDPDriverMode, "driver"}, {link.XDPGenericMode, "generic"}} {
		l, err := link.AttachXDP(link.XDPOptions{Program: g.objs.GuardMembers, Interface: ifindex, Flags: way.flags})
		if err == nil {
			g.hook, g.how = l, way.name
			return nil
		}
		errs = errors.Join(errs, fmt.Errorf("%s: %w", way.name, err))
	}
	return errs
}

// How tells where frames are dropped: by the driver ("driver"), or by the kernel in its place ("generic").
func (g *Guard) How() string { return g.how }

// SetMembers says whose segments pass from now on: those of the networks. Nobody who is in both the old list and the new one is dropped in between.
func (g *Guard) SetMembers(members []netip.Prefix) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed:
		return fmt.Errorf("members: %w", net.ErrClosed)
	case len(members) > MaxNetworks:
		return fmt.Errorf("%d networks of members: at most %d", len(members), MaxNetworks)
	}
	want := map[netip.Prefix]bool{}
	for _, m := range members {
		if !m.IsValid() {
			return fmt.Errorf("a network of members is not valid: %v", m)
		}
		want[m.Masked()] = true
	}
	for m := range want {
		if g.members[m] {
			continue
		}
		if err := g.objs.Members.Put(network(m), uint32(1)); err != nil {
			return fmt.Errorf("member %v: %w", m, err)
		}
		g.members[m] = true
	}
	for m := range g.members {
		if want[m] {
			continue
		}
		if err := g.objs.Members.Delete(network(m)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("former member %v: %w", m, err)
		}
		delete(g.members, m)
	}
	return nil
}

// network is a prefix as the program looks addresses up.
func network(p netip.Prefix) guardNetwork {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return guardNetwork{Bits: uint32(bits), Addr: p.Addr().As16()}
}

// Dropped returns how much was dropped since Protect, in all and by sender. Of very many senders only the latest are counted apart.
func (g *Guard) Dropped() (all Count, by map[netip.Addr]Count, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return Count{}, nil, fmt.Errorf("dropped frames: %w", net.ErrClosed)
	}
	var perCPU []guardCount
	add := func() (n Count) {
		for _, c := range perCPU {
			n.Packets += c.Packets
			n.Bytes += c.Bytes
		}
		return n
	}
	if err := g.objs.Total.Lookup(uint32(0), &perCPU); err != nil {
		return Count{}, nil, fmt.Errorf("dropped frames: %w", err)
	}
	all = add()
	by = map[netip.Addr]Count{}
	var who guardSender
	each := g.objs.Dropped.Iterate()
	for each.Next(&who, &perCPU) {
		by[netip.AddrFrom16(who.Addr).Unmap()] = add()
	}
	if err := each.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return Count{}, nil, fmt.Errorf("dropped frames by sender: %w", err)
	}
	return all, by, nil
}

// Close takes the guard off the interface. The second call does nothing.
func (g *Guard) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	var err error
	if g.hook != nil {
		err = g.hook.Close()
	}
	return errors.Join(err, g.objs.Close())
}
