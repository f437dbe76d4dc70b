package planes

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"varve/internal/wire"
)

// Planes is a Spec that was found on the host.
type Planes struct {
	base  netip.AddrPort
	given [count]bool
	at    [count]place
	local func() map[netip.Addr]bool // the host's own addresses
}

// Resolve finds the planes on the host. base is the address of what has none of its own, IP:PORT; it may be the zero value for who does not listen.
// It reports every fault at once.
func (s Spec) Resolve(base string, host []Interface) (*Planes, error) {
	p := &Planes{local: func() map[netip.Addr]bool { return nil }}
	var faults []error
	if base != "" {
		ap, err := netip.ParseAddrPort(base)
		if err != nil && !s.IsZero() {
			return nil, fmt.Errorf("address %q: want IP:PORT where there are planes: %w", base, err)
		}
		p.base = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	want4 := !p.base.Addr().Is6()
	for i, at := range s.by {
		if at == "" {
			continue
		}
		found, err := locate(host, at, want4)
		if err != nil {
			faults = append(faults, fmt.Errorf("plane %s: %w", Plane(i), err))
			continue
		}
		if found.port == 0 {
			found.port = p.base.Port()
		}
		p.given[i], p.at[i] = true, found
		if b := p.base.Addr(); b.IsValid() && b.Is4() != found.addr.Is4() {
			faults = append(faults, fmt.Errorf("plane %s is at %v, and the server at %v: all addresses of a server are to be IPv4, or all IPv6", Plane(i), found.addr, b))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	if !s.IsZero() {
		p.local = hostAddrs
	}
	return p, nil
}

func hostAddrs() map[netip.Addr]bool {
	m := map[netip.Addr]bool{}
	host, err := Host()
	if err != nil {
		return m
	}
	for _, i := range host {
		for _, a := range i.Addrs {
			m[a] = true
		}
	}
	return m
}

// IsZero reports whether nothing was given: all traffic by one address.
func (p *Planes) IsZero() bool { return p == nil || p.given == [count]bool{} }

// Addr is where a plane is reached on this host; its port is 0 for any.
func (p *Planes) Addr(pl Plane) string {
	if p.given[pl] {
		return netip.AddrPortFrom(p.at[pl].addr, p.at[pl].port).String()
	}
	return p.base.String()
}

// Listen returns the addresses on which a server is to listen that is reached by some planes, the first plane's first, each once.
func (p *Planes) Listen(by ...Plane) []string {
	var out []string
	for _, pl := range by {
		if a := p.Addr(pl); !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// Bind is a wire.BindFunc: connections of a class leave from the address of its plane, and through its interface where a person named one. Who is on this host,
// or has no address of that family, is reached in any way.
func (p *Planes) Bind(class wire.Class, remote netip.AddrPort) (netip.AddrPort, string) {
	pl := Of(class)
	to := remote.Addr().Unmap()
	if !p.given[pl] || p.at[pl].addr.Is4() != to.Is4() {
		return netip.AddrPort{}, ""
	}
	at := p.at[pl]
	if to.IsLoopback() || p.local()[to] {
		if at.addr.IsLoopback() {
			return netip.AddrPortFrom(at.addr, 0), ""
		}
		return netip.AddrPort{}, ""
	}
	return netip.AddrPortFrom(at.addr, 0), at.device
}

// Book is the addresses of a server as others are told: its own, and after spaces PLANE=ADDR for planes that have another.
type Book string

// MaxBook bounds a Book's text.
const MaxBook = 512

// NewBook makes the book of a server at main with the addresses of planes.
func NewBook(main string, by map[Plane]string) Book {
	b := main
	for pl := range count {
		if a := by[pl]; a != "" && a != main {
			b += " " + names[pl] + "=" + a
		}
	}
	return Book(b)
}

// Addr returns where a plane is reached.
func (b Book) Addr(pl Plane) string {
	words := strings.Fields(string(b))
	if len(words) == 0 {
		return ""
	}
	for _, w := range words[1:] {
		if a, ok := strings.CutPrefix(w, names[pl]+"="); ok {
			return a
		}
	}
	return words[0]
}

// Addrs returns every address in it, each once.
func (b Book) Addrs() []string {
	var out []string
	for i, w := range strings.Fields(string(b)) {
		if i > 0 {
			_, w, _ = strings.Cut(w, "=")
		}
		if !slices.Contains(out, w) {
			out = append(out, w)
		}
	}
	return out
}

// Single reports whether all planes have one address.
func (b Book) Single() bool { return !strings.Contains(string(b), " ") }

// Check refuses what is no book.
func (b Book) Check() error {
	words := strings.Fields(string(b))
	if len(words) == 0 || len(b) > MaxBook || strings.Join(words, " ") != string(b) {
		return fmt.Errorf("addresses %q: want IP:PORT and PLANE=IP:PORT with single spaces, up to %d characters", string(b), MaxBook)
	}
	for i, w := range words {
		if i > 0 {
			name, at, ok := strings.Cut(w, "=")
			if !ok || !slices.Contains(names[:], name) {
				return fmt.Errorf("addresses %q: %q is no plane", string(b), w)
			}
			w = at
		}
		if _, _, err := net.SplitHostPort(w); err != nil {
			return fmt.Errorf("addresses %q: %w", string(b), err)
		}
	}
	return nil
}
