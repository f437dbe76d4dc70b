package planes

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"varve/internal/wire"
)

// Plane is a kind of traffic that may have an address, or an interface, of its own.
type Plane uint8

// The planes.
const (
	Client      Plane = iota // reads, writes and metadata of clients
	Replication              // what a chunk server forwards to another
	Repair                   // rebuilds, moves and what the scrub mends
	Heartbeat                // chunk servers with metadata servers, and these with one another
	count
)

var names = [count]string{"client", "replication", "repair", "heartbeat"}

func (p Plane) String() string { return names[p] }

// Of returns the plane of a class of traffic between servers.
func Of(c wire.Class) Plane {
	switch c {
	case wire.ClassHeartbeat, wire.ClassMeta:
		return Heartbeat
	case wire.ClassGuest:
		return Client
	case wire.ClassReplication:
		return Replication
	}
	return Repair
}

// Spec says for some planes IP, IP:PORT or the name of an interface. The zero value says nothing: all traffic by one address.
type Spec struct{ by [count]string }

// maxSpec bounds a Spec's text.
const maxSpec = 1024

// Parse reads PLANE=ADDR|INTERFACE,... "" and "none" say nothing.
func Parse(text string) (Spec, error) {
	var s Spec
	if text == "" || text == "none" {
		return s, nil
	}
	if len(text) > maxSpec {
		return s, fmt.Errorf("planes of %d characters, limit %d", len(text), maxSpec)
	}
	var faults []error
	for _, word := range strings.Split(text, ",") {
		name, at, ok := strings.Cut(word, "=")
		i := slices.Index(names[:], name)
		switch {
		case i < 0:
			faults = append(faults, fmt.Errorf("plane %q is unknown: want one of %s", name, strings.Join(names[:], ", ")))
		case !ok || at == "":
			faults = append(faults, fmt.Errorf("plane %s: want %s=IP, %s=IP:PORT or %s=INTERFACE", name, name, name, name))
		case s.by[i] != "":
			faults = append(faults, fmt.Errorf("plane %s is given twice, %q and %q", name, s.by[i], at))
		default:
			s.by[i] = at
		}
	}
	return s, errors.Join(faults...)
}

// String is what Parse reads.
func (s Spec) String() string {
	var out []string
	for i, at := range s.by {
		if at != "" {
			out = append(out, names[i]+"="+at)
		}
	}
	return strings.Join(out, ",")
}

// IsZero reports whether it says nothing.
func (s Spec) IsZero() bool { return s == Spec{} }

// All returns a Spec that has every plane at one address or interface.
func All(at string) Spec {
	var s Spec
	for i := range s.by {
		s.by[i] = at
	}
	return s
}

// Interface is one of the host's, with its addresses.
type Interface struct {
	Name  string
	Up    bool
	Addrs []netip.Addr
}

// Host returns the interfaces of this host, in the network namespace of the process.
func Host() ([]Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)        // of all at once: a host of guests has hundreds of interfaces
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // something changed meanwhile: who looks again sees it
		return nil, fmt.Errorf("list addresses of network interfaces: %w", err)
	}
	by := make(map[int][]netip.Addr, len(all))
	for _, a := range addrs {
		if a.IPNet == nil {
			continue
		}
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			by[a.LinkIndex] = append(by[a.LinkIndex], ip.Unmap())
		}
	}
	out := make([]Interface, 0, len(all))
	for _, i := range all {
		out = append(out, Interface{Name: i.Name, Up: i.Flags&net.FlagUp != 0, Addrs: by[i.Index]})
	}
	return out, nil
}

// has lists what the interfaces have, for people.
func has(host []Interface) string {
	var out []string
	for _, i := range host {
		for _, a := range i.Addrs {
			if !a.IsLinkLocalUnicast() {
				out = append(out, fmt.Sprintf("%v (%s)", a, i.Name))
			}
		}
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}

// owner returns the interface that has the address.
func owner(host []Interface, a netip.Addr) (Interface, bool) {
	for _, i := range host {
		if slices.Contains(i.Addrs, a) {
			return i, true
		}
	}
	return Interface{}, false
}

// place is where a plane is on this host.
type place struct {
	addr   netip.Addr
	port   uint16
	device string // the interface, if a person named it
}

// locate finds what a person gave among the interfaces. want4 says of which family it is to be, where an interface has both.
func locate(host []Interface, at string, want4 bool) (place, error) {
	var p place
	if ap, err := netip.ParseAddrPort(at); err == nil {
		p.addr, p.port = ap.Addr().Unmap(), ap.Port()
	} else if a, err := netip.ParseAddr(strings.Trim(at, "[]")); err == nil {
		p.addr = a.Unmap()
	}
	if p.addr.IsValid() {
		if _, ok := owner(host, p.addr); !ok && !p.addr.IsLoopback() { // all of 127.0.0.0/8 is here
			return p, fmt.Errorf("address %v is not one of this host, which has %s", p.addr, has(host))
		}
		return p, nil
	}
	i := slices.IndexFunc(host, func(i Interface) bool { return i.Name == at })
	if i < 0 {
		var all []string
		for _, i := range host {
			all = append(all, i.Name)
		}
		return p, fmt.Errorf("%q is neither an IP address nor an interface of this host, which has %s", at, strings.Join(all, ", "))
	}
	p.device = at
	for _, a := range host[i].Addrs {
		if !a.IsLinkLocalUnicast() && (!p.addr.IsValid() || a.Is4() == want4 && p.addr.Is4() != want4) {
			p.addr = a
		}
	}
	if !p.addr.IsValid() {
		return p, fmt.Errorf("interface %s has no address", at)
	}
	return p, nil
}
