package bond

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"varve/ebpf"
	"varve/internal/wire"
)

// blindLanes is how many connections a peer gets for each slave where they take slaves by chance.
const blindLanes = 3

type pathKey struct {
	local, remote netip.Addr // local may be invalid: what the kernel chooses
}

// path is the way to a peer: from which address, and over which bond.
type path struct {
	local netip.Addr
	bond  string // empty: none
	until time.Time
}

// way is a path over a bond as that is now.
type way struct {
	path
	usable, all int
	policy      ebpf.Policy
	steered     bool
}

// toward returns the way to a peer, from an address if that is valid. It reports false if there is no bond on it.
func (b *Bonds) toward(local, remote netip.Addr) (way, bool) {
	if b == nil || !b.any.Load() {
		return way{}, false
	}
	key := pathKey{local.Unmap(), remote.Unmap()}
	now := time.Now()
	b.mu.Lock()
	p, known := b.paths[key]
	b.mu.Unlock()
	if !known || now.After(p.until) {
		p = b.find(key)
		p.until = now.Add(pathFor)
		b.mu.Lock()
		if len(b.paths) >= maxPaths {
			clear(b.paths)
		}
		b.paths[key] = p
		b.mu.Unlock()
	}
	if p.bond == "" {
		return way{}, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.bonds[p.bond]
	if s == nil {
		return way{}, false
	}
	return way{path: p, usable: s.usable, all: len(s.Slaves), policy: s.Policy, steered: s.Steered() && !b.o.Unsteered}, s.HasPolicy
}

// find asks the kernel for the way.
func (b *Bonds) find(key pathKey) path {
	local, index := b.route(key)
	if !local.IsValid() || local == key.remote {
		return path{}
	}
	name := ""
	if b.nl != nil {
		if l, err := b.nl.LinkByIndex(index); err == nil {
			name = b.under(l)
		}
	} else if i, err := net.InterfaceByIndex(index); err == nil {
		name = underSys(i.Name)
	}
	if !b.isBond(name) {
		name = ""
	}
	return path{local: local, bond: name}
}

// route returns the address that connections to the peer leave from, and the interface.
func (b *Bonds) route(key pathKey) (netip.Addr, int) {
	if b.nl != nil {
		o := &netlink.RouteGetOptions{}
		if key.local.IsValid() {
			o.SrcAddr = key.local.AsSlice()
		}
		routes, err := b.nl.RouteGetWithOptions(key.remote.AsSlice(), o)
		if err == nil && len(routes) > 0 {
			local := key.local
			if src, ok := netip.AddrFromSlice(routes[0].Src); ok && !local.IsValid() {
				local = src.Unmap()
			}
			return local, routes[0].LinkIndex
		}
	}
	d := net.Dialer{}
	if key.local.IsValid() {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(key.local, 0))
	}
	c, err := d.Dial("udp", netip.AddrPortFrom(key.remote, 9).String()) // which sends nothing
	if err != nil {
		return netip.Addr{}, 0
	}
	defer c.Close()
	local := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	all, err := net.Interfaces()
	if err != nil {
		return netip.Addr{}, 0
	}
	for _, i := range all {
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == local {
					return local, i.Index
				}
			}
		}
	}
	return netip.Addr{}, 0
}

func (b *Bonds) isBond(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return name != "" && b.bonds[name] != nil
}

// maxUnder bounds how many interfaces lie on one another.
const maxUnder = 4

// under returns the bond that carries what an interface sends: itself, what a VLAN is on, or what a bridge leads out by.
func (b *Bonds) under(l netlink.Link) string {
	for range maxUnder {
		a := l.Attrs()
		if b.isBond(a.Name) {
			return a.Name
		}
		var next netlink.Link
		var err error
		switch {
		case l.Type() == "bridge":
			next = b.portOf(a.Index)
		case a.ParentIndex != 0 && l.Type() != "veth":
			next, err = b.nl.LinkByIndex(a.ParentIndex)
		}
		if err != nil || next == nil {
			return ""
		}
		l = next
	}
	return ""
}

// portOf returns the port of a bridge that is a bond, or lies on one.
func (b *Bonds) portOf(bridge int) netlink.Link {
	links, err := b.nl.LinkList()
	if err != nil {
		return nil
	}
	for _, l := range links {
		if a := l.Attrs(); a.MasterIndex == bridge && (b.isBond(a.Name) || l.Type() == "vlan") {
			return l
		}
	}
	return nil
}

// underSys is under without netlink.
func underSys(name string) string {
	const sys = "/sys/class/net"
	for range maxUnder {
		if _, err := os.Stat(filepath.Join(sys, name, "bonding")); err == nil {
			return name
		}
		lower, _ := filepath.Glob(filepath.Join(sys, name, "lower_*"))
		next := ""
		for _, l := range lower {
			next = strings.TrimPrefix(filepath.Base(l), "lower_")
			if _, err := os.Stat(filepath.Join(sys, next, "bonding")); err == nil {
				return next
			}
		}
		if next == "" {
			return ""
		}
		name = next
	}
	return ""
}

// Lanes returns how many connections a peer (IP:PORT) should have so that they use all slaves: a multiple of the slaves, and at least 1; 1 where there is no bond
// that spreads connections.
func (b *Bonds) Lanes(addr string) int {
	remote, err := netip.ParseAddrPort(addr)
	if err != nil {
		return 1
	}
	w, ok := b.toward(netip.Addr{}, remote.Addr())
	switch {
	case !ok || !w.policy.UsesPorts() || w.all == 0:
		return 1
	case w.steered:
		return w.all
	}
	return blindLanes * w.all
}

// Spread is a wire.SpreadFunc.
func (b *Bonds) Spread(_ wire.Class, number int, local netip.Addr, remote netip.AddrPort) netip.AddrPort {
	w, ok := b.toward(local, remote.Addr())
	if !ok || !w.steered || w.usable == 0 {
		return netip.AddrPort{}
	}
	n := number - 1
	if number == 0 {
		n = int(b.turn.Add(1))
	}
	return b.choose(w, remote, b.slaveOf(w, remote.Addr(), n), n)
}

// chosenFor is the number of slaves that ports are chosen for, if it can be: the other end may have more than this.
const chosenFor = 4

// choose returns a port from which a connection takes slave k, and another one each time.
func (b *Bonds) choose(w way, remote netip.AddrPort, k, n int) netip.AddrPort {
	pair := pairOf(netip.AddrPortFrom(w.local, 0), remote)
	port, ok := pair.Choose(k, w.usable, n, max(w.all, chosenFor), b.ports.from(b.next.Load()))
	if !ok {
		return netip.AddrPort{}
	}
	b.next.Store(b.ports.after(port))
	return netip.AddrPortFrom(w.local, port)
}

// slaveOf returns the slave that connection n to a peer should take.
func (b *Bonds) slaveOf(w way, remote netip.Addr, n int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	var alive []int
	for k := range w.usable {
		if s := b.dead[wayKey{w.bond, remote.Unmap(), k}]; s == nil || !s.dead {
			alive = append(alive, k)
		}
	}
	k := n % w.usable
	if len(alive) == 0 || len(alive) == w.usable || slices.Contains(alive, k) {
		return k
	}
	return alive[n/w.usable%len(alive)]
}

func pairOf(local, remote netip.AddrPort) ebpf.Pair {
	return ebpf.Flow{
		Src: netip.AddrPortFrom(local.Addr().Unmap(), local.Port()), Dst: netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port()),
	}.Pair()
}
