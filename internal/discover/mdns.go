package discover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

var (
	group4 = netip.MustParseAddr("224.0.0.251")
	group6 = netip.MustParseAddr("ff02::fb")
)

// link is an interface on which multicast is spoken.
type link struct {
	index int
	name  string
	nets  []netip.Prefix
}

// maxLinks bounds the interfaces that are asked on.
const maxLinks = 64

// links returns the interfaces that are up, have multicast and are not the host's own.
func links() ([]link, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var out []link
	for _, i := range all {
		if i.Flags&(net.FlagUp|net.FlagMulticast) != net.FlagUp|net.FlagMulticast || i.Flags&net.FlagLoopback != 0 || len(out) == maxLinks {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it went away
		}
		l := link{index: i.Index, name: i.Name}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok {
					ones, bits := n.Mask.Size()
					if ip = ip.Unmap(); bits == ip.BitLen() {
						l.nets = append(l.nets, netip.PrefixFrom(ip, ones))
					}
				}
			}
		}
		if len(l.nets) > 0 {
			out = append(out, l)
		}
	}
	return out, nil
}

// has reports whether an address is on the link: multicast does not leave it, and what comes from elsewhere is no answer and no question
// (RFC 6762 section 11).
func (l *link) has(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	return ip.Is6() && ip.IsLinkLocalUnicast() || slices.ContainsFunc(l.nets, func(n netip.Prefix) bool { return n.Contains(ip) })
}

func (l *link) family(is4 bool) bool {
	return slices.ContainsFunc(l.nets, func(n netip.Prefix) bool { return n.Addr().Is4() == is4 })
}

// packet is one that came in.
type packet struct {
	data []byte
	from netip.AddrPort
	link int // index of the interface
}

// pair is a socket for each address family, or for one.
type pair struct {
	v4 *ipv4.PacketConn
	v6 *ipv6.PacketConn
}

// hops is the time to live of multicast DNS.
const hops = 255

// open4 and open6 make a socket one of multicast DNS.
func open4(c net.PacketConn) (*ipv4.PacketConn, error) {
	p := ipv4.NewPacketConn(c)
	return p, errors.Join(p.SetControlMessage(ipv4.FlagInterface, true), p.SetMulticastTTL(hops), p.SetTTL(hops), p.SetMulticastLoopback(true))
}

func open6(c net.PacketConn) (*ipv6.PacketConn, error) {
	p := ipv6.NewPacketConn(c)
	return p, errors.Join(p.SetControlMessage(ipv6.FlagInterface, true), p.SetMulticastHopLimit(hops), p.SetHopLimit(hops), p.SetMulticastLoopback(true))
}

func (s *pair) close() {
	if s.v4 != nil {
		s.v4.Close()
	}
	if s.v6 != nil {
		s.v6.Close()
	}
}

// receive passes what comes on the sockets to f, one at a time, until they are closed.
func (s *pair) receive(f func(packet)) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	loop := func(read func(b []byte) (int, int, net.Addr, error)) {
		wg.Go(func() {
			b := make([]byte, maxPacket+1)
			for faults := 0; faults < maxFaults; {
				n, link, from, err := read(b)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err != nil { // what ICMP tells of a packet that was sent
					faults++
					time.Sleep(faultPause)
					continue
				}
				faults = 0
				if u, ok := from.(*net.UDPAddr); ok {
					mu.Lock()
					f(packet{b[:n], u.AddrPort(), link})
					mu.Unlock()
				}
			}
		})
	}
	if s.v4 != nil {
		loop(func(b []byte) (int, int, net.Addr, error) {
			n, cm, from, err := s.v4.ReadFrom(b)
			if cm == nil {
				return n, 0, from, err
			}
			return n, cm.IfIndex, from, err
		})
	}
	if s.v6 != nil {
		loop(func(b []byte) (int, int, net.Addr, error) {
			n, cm, from, err := s.v6.ReadFrom(b)
			if cm == nil {
				return n, 0, from, err
			}
			return n, cm.IfIndex, from, err
		})
	}
	wg.Wait()
}

// A socket that fails so often in a row is given up.
const (
	maxFaults  = 100
	faultPause = 10 * time.Millisecond
)

// multicast sends a packet to all on a link. It reports whether it was sent at all.
func (s *pair) multicast(l *link, port int, b []byte) (err error) {
	sent := false
	if s.v4 != nil && l.family(true) {
		_, e := s.v4.WriteTo(b, &ipv4.ControlMessage{IfIndex: l.index}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(group4, uint16(port))))
		sent, err = e == nil, e
	}
	if s.v6 != nil && l.family(false) {
		_, e := s.v6.WriteTo(b, &ipv6.ControlMessage{IfIndex: l.index}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(group6.WithZone(l.name), uint16(port))))
		sent, err = sent || e == nil, cmp.Or(err, e)
	}
	if sent {
		return nil
	}
	return cmp.Or(err, errors.New("no address of a family that can be used"))
}

// askAgain is when a question is sent, from the beginning on.
var askAgain = []time.Duration{0, 200 * time.Millisecond, 600 * time.Millisecond}

// byMDNS asks on every link who offers the service. It asks from a port of its own, so that it is answered there and is in nobody's way.
func (o *Options) byMDNS(ctx context.Context) ([]Found, []string, error) {
	all, err := links()
	if err != nil {
		return nil, nil, err
	}
	if len(all) == 0 {
		return nil, nil, errors.New("no interface with multicast is up")
	}
	s, err := openAsker(ctx)
	if err != nil {
		return nil, nil, err
	}
	port := cmp.Or(o.MDNSPort, mdnsPort)
	c := collector{o: o, port: uint16(port), links: all, got: make(chan struct{}, 1)}
	var wg sync.WaitGroup
	wg.Go(func() { s.receive(c.take) })
	defer wg.Wait()
	defer s.close()
	ask := question()
	var faults []string
	begun := time.Now()
	end := time.NewTimer(mdnsWait)
	defer end.Stop()
	again := time.NewTimer(0)
	defer again.Stop()
	var over <-chan time.Time // a while after the first answer
	for next := 0; ; {
		select {
		case <-again.C:
			faults = faults[:0]
			for i := range all {
				if err := s.multicast(&all[i], port, ask); err != nil {
					faults = append(faults, fmt.Sprintf("%s: %v", all[i].name, err))
				}
			}
			if next++; next < len(askAgain) {
				again.Reset(askAgain[next] - time.Since(begun))
			}
			continue
		case <-c.got:
			if over == nil && !o.All {
				over = time.After(mdnsMore)
			}
			continue
		case <-over:
		case <-end.C:
		case <-ctx.Done():
		}
		break
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	notes := append(c.notes(), faults...)
	if len(c.found) > 0 {
		return c.found, notes, nil
	}
	if len(faults) == len(all) {
		return nil, nil, fmt.Errorf("no question could be sent: %s", strings.Join(faults, ", "))
	}
	return nil, notes, fmt.Errorf("nobody of the cluster answered on %s in %v (servers announce themselves if the setting net.mdns is on)",
		strings.Join(names(all), ", "), time.Since(begun).Round(100*time.Millisecond))
}

func names(all []link) (out []string) {
	for _, l := range all {
		if out = append(out, l.name); len(out) == shown && len(all) > shown+1 {
			return append(out, fmt.Sprintf("and %d more", len(all)-shown))
		}
	}
	return out
}

// openAsker opens sockets on a port of their own. One address family is enough.
func openAsker(ctx context.Context) (*pair, error) {
	s := new(pair)
	var lc net.ListenConfig
	var faults []error
	if c, err := lc.ListenPacket(ctx, "udp4", "0.0.0.0:0"); err != nil {
		faults = append(faults, err)
	} else if s.v4, err = open4(c); err != nil {
		faults = append(faults, err, c.Close())
		s.v4 = nil
	}
	if c, err := lc.ListenPacket(ctx, "udp6", "[::]:0"); err != nil {
		faults = append(faults, err)
	} else if s.v6, err = open6(c); err != nil {
		faults = append(faults, err, c.Close())
		s.v6 = nil
	}
	if s.v4 == nil && s.v6 == nil {
		return nil, fmt.Errorf("no socket for multicast: %w", errors.Join(faults...))
	}
	return s, nil
}

// collector takes answers. Packets come one at a time.
type collector struct {
	o     *Options
	port  uint16
	links []link
	got   chan struct{} // told of an answer that counts

	mu       sync.Mutex
	found    []Found
	packets  int
	bad      int // malformed
	offLink  int
	strange  int    // of other clusters
	stranger string // one of them
	over     int
}

// maxPackets is how many are looked at in one search.
const maxPackets = 1024

func (c *collector) take(p packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.packets++; c.packets > maxPackets {
		c.over++
		return
	}
	i := slices.IndexFunc(c.links, func(l link) bool { return l.index == p.link })
	if i < 0 || !c.links[i].has(p.from.Addr()) || p.from.Port() != c.port {
		c.offLink++
		return
	}
	list, err := parseAnswer(p.data)
	if err != nil {
		c.bad++
		return
	}
	for _, s := range list {
		err := c.o.matches(s.cluster, s.uuid)
		if err == nil && s.cluster == "" && s.uuid == "" {
			err = errors.New("says of no cluster that it is of it")
		}
		if err != nil {
			c.strange++
			c.stranger = err.Error()
			continue
		}
		for _, ip := range s.ips {
			if ip = ip.Unmap(); ip.Is6() && ip.IsLinkLocalUnicast() {
				ip = ip.WithZone(c.links[i].name)
			}
			if ip.IsMulticast() || ip.IsUnspecified() || ip.IsLoopback() {
				c.bad++
				continue
			}
			if len(c.found) == MaxServers {
				c.over++
				continue
			}
			c.found = addFound(c.found, Found{Addr: netip.AddrPortFrom(ip, s.port).String(), From: p.from.Addr().String() + " on " + c.links[i].name})
		}
	}
	if len(c.found) > 0 {
		select {
		case c.got <- struct{}{}:
		default:
		}
	}
}

// notes says what was refused.
func (c *collector) notes() (out []string) {
	note := func(n int, format string, args ...any) {
		if n > 0 {
			out = append(out, fmt.Sprintf("%d ", n)+fmt.Sprintf(format, args...))
		}
	}
	note(c.strange, "of another cluster refused (%s)", c.stranger)
	note(c.bad, "malformed refused")
	note(c.offLink, "from beyond the link refused")
	note(c.over, "too many refused")
	return out
}
