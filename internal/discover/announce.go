package discover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"varve/internal/id"
)

// Server is what Announce says.
type Server struct {
	Cluster id.Cluster
	Name    string // of the cluster
	Server  string // unique in the cluster, such as mds1
	Addr    string // IP:PORT
	Logger  *slog.Logger

	MDNSPort int // default 5353
}

const (
	// answersPerSecond bounds the answers to single askers; to all there is one a second.
	answersPerSecond = 20
	// answerDelay is the most that an answer to all is delayed, so that not everybody speaks at once (RFC 6762 section 6).
	answerDelay = 100 * time.Millisecond
)

// Announce answers multicast questions for the server until ctx ends, on the link that has its address and on no other. It takes no name from
// anybody: names are made of the cluster's UUID and the server's number.
func Announce(ctx context.Context, s Server) error {
	at, err := netip.ParseAddrPort(s.Addr)
	if err != nil {
		return fmt.Errorf("announce %s: %w", s.Addr, err)
	}
	l, err := linkOf(at.Addr())
	if err != nil {
		return err
	}
	a, err := newAdvert(s.Name, s.Cluster.String(), s.Server, at)
	if err != nil {
		return fmt.Errorf("announce %s: %w", s.Addr, err)
	}
	port := s.MDNSPort
	if port == 0 {
		port = mdnsPort
	}
	socks, err := openAnswerer(ctx, l, port)
	if err != nil {
		return fmt.Errorf("announce %s on %s: %w", s.Addr, l.name, err)
	}
	log := s.Logger
	if log == nil {
		log = slog.Default()
	}
	r := &responder{advert: a, link: l, port: port, socks: socks, all: make(chan struct{}, 1), one: make(chan answerTo, answersPerSecond)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		socks.receive(r.take)
	}()
	log.Info("announcing this server by multicast", "addr", s.Addr, "interface", l.name)
	err = r.run(ctx, ended)
	socks.close()
	<-ended
	return err
}

// linkOf returns the link that an address of this host is on.
func linkOf(ip netip.Addr) (*link, error) {
	all, err := links()
	if err != nil {
		return nil, err
	}
	ip = ip.Unmap().WithZone("")
	for i := range all {
		if slices.ContainsFunc(all[i].nets, func(n netip.Prefix) bool { return n.Addr() == ip }) {
			return &all[i], nil
		}
	}
	return nil, fmt.Errorf("no interface that is up and has multicast has the address %s", ip)
}

// openAnswerer opens sockets on the port of multicast DNS, beside whoever else has it, and joins the groups on one link.
func openAnswerer(ctx context.Context, l *link, port int) (*pair, error) {
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var err error
		cerr := rc.Control(func(fd uintptr) {
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
		})
		return errors.Join(cerr, err)
	}}
	s := new(pair)
	i := &net.Interface{Index: l.index, Name: l.name}
	var faults []error
	if l.family(true) {
		c, err := lc.ListenPacket(ctx, "udp4", fmt.Sprintf("0.0.0.0:%d", port))
		if err == nil {
			var p *ipv4.PacketConn
			if p, err = open4(c); err == nil {
				err = p.JoinGroup(i, &net.UDPAddr{IP: group4.AsSlice()})
			}
			if err == nil {
				s.v4 = p
			} else {
				c.Close()
			}
		}
		faults = append(faults, err)
	}
	if l.family(false) {
		c, err := lc.ListenPacket(ctx, "udp6", fmt.Sprintf("[::]:%d", port))
		if err == nil {
			var p *ipv6.PacketConn
			if p, err = open6(c); err == nil {
				err = p.JoinGroup(i, &net.UDPAddr{IP: group6.AsSlice()})
			}
			if err == nil {
				s.v6 = p
			} else {
				c.Close()
			}
		}
		faults = append(faults, err)
	}
	if s.v4 == nil && s.v6 == nil {
		return nil, errors.Join(faults...)
	}
	return s, nil
}

// responder answers questions on one link.
type responder struct {
	advert *advert
	link   *link
	port   int
	socks  *pair
	all    chan struct{} // an answer to all is wanted
	one    chan answerTo
}

type answerTo struct {
	to netip.AddrPort
	b  []byte
}

// take looks at one packet. It never waits: what is too much is not answered.
func (r *responder) take(p packet) {
	if p.link != r.link.index || !r.link.has(p.from.Addr()) {
		return
	}
	onPort := int(p.from.Port()) == r.port
	a, ok, err := r.advert.answer(p.data, onPort)
	if err != nil || !ok {
		return
	}
	if a.alone {
		select {
		case r.one <- answerTo{p.from, a.packet}:
		default:
		}
		return
	}
	select {
	case r.all <- struct{}{}:
	default:
	}
}

// run sends what there is to say: at the beginning, in answers, and at the end that the server is gone.
func (r *responder) run(ctx context.Context, ended <-chan struct{}) error {
	say := func(seconds uint32) error {
		b, err := r.advert.announcement(seconds)
		if err == nil {
			err = r.socks.multicast(r.link, r.port, b)
		}
		return err
	}
	if err := say(timeToLive); err != nil {
		return fmt.Errorf("announce on %s: %w", r.link.name, err)
	}
	said := time.Now()
	repeat := time.NewTimer(time.Second) // a packet may be lost
	defer repeat.Stop()
	refill := time.NewTicker(time.Second)
	defer refill.Stop()
	left := answersPerSecond
	for {
		one := r.one
		if left == 0 {
			one = nil
		}
		all := r.all
		if time.Since(said) < time.Second {
			all = nil
		}
		select {
		case <-ctx.Done():
			_ = say(0)
			return nil
		case <-ended:
			return fmt.Errorf("announce on %s: the socket failed", r.link.name)
		case <-refill.C:
			left = answersPerSecond
		case <-repeat.C:
			_ = say(timeToLive) // the interface may be down for a moment
			said = time.Now()
		case <-all:
			select {
			case <-time.After(rand.N(answerDelay)):
			case <-ctx.Done():
				continue
			}
			_ = say(timeToLive)
			said = time.Now()
		case a := <-one:
			left--
			r.tell(a)
		}
	}
}

// tell sends an answer to one asker, who may be gone.
func (r *responder) tell(a answerTo) {
	to := net.UDPAddrFromAddrPort(a.to)
	if a.to.Addr().Unmap().Is4() {
		if r.socks.v4 != nil {
			_, _ = r.socks.v4.WriteTo(a.b, &ipv4.ControlMessage{IfIndex: r.link.index}, to)
		}
	} else if r.socks.v6 != nil {
		_, _ = r.socks.v6.WriteTo(a.b, &ipv6.ControlMessage{IfIndex: r.link.index}, to)
	}
}
