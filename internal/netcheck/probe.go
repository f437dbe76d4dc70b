package netcheck

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const (
	tokenLen  = 16
	answerLen = tokenLen + 4 // and the length that arrived
	maxMTU    = 65535
	// overhead4 and overhead6 are the IP and UDP headers of a datagram.
	overhead4, overhead6 = 28, 48
	// firstFor is how long datagrams are sent until one is answered: who answers may be busy.
	firstFor = time.Second
)

// openProbe answers datagrams for a moment, until the connection that asked for it ends.
func (m *Member) openProbe(c *wire.Conn, role msg.Hello_Role) (wire.Message, fserr.Code) {
	if role != msg.Hello_ADMIN && role != msg.Hello_CHUNK_SERVER && role != msg.Hello_METADATA_SERVER {
		return nil, fserr.Perm
	}
	local, err := netip.ParseAddrPort(c.LocalAddr())
	if err != nil {
		return nil, fserr.NotSupported
	}
	select {
	case m.probes <- struct{}{}:
	default:
		return nil, fserr.Busy
	}
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local.Addr(), 0)))
	if err != nil {
		<-m.probes
		return nil, fserr.Unavailable
	}
	token := make([]byte, tokenLen)
	_, _ = rand.Read(token) // never fails
	ctx, cancel := context.WithTimeout(c.Context(), probeFor)
	context.AfterFunc(ctx, func() { u.Close() })
	go func() {
		defer func() { cancel(); <-m.probes }()
		echoProbes(u, token)
	}()
	return &msg.NetProbeReply{Port: uint32(u.LocalAddr().(*net.UDPAddr).Port), Token: token}, fserr.OK
}

// echoProbes says of each datagram with the token how long it was, to who sent it.
func echoProbes(u *net.UDPConn, token []byte) {
	b := make([]byte, maxMTU+1)
	out := slices.Clone(token)
	out = append(out, 0, 0, 0, 0)
	for {
		n, from, err := u.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < answerLen || subtle.ConstantTimeCompare(b[:tokenLen], token) == 0 {
			continue // errors are of datagrams that were answered to nobody
		}
		binary.LittleEndian.PutUint32(out[tokenLen:], uint32(n))
		_, _ = u.WriteToUDPAddrPort(out, from)
	}
}

// path is what was found out of a path's MTU.
type path struct {
	mtu   int
	local int  // of the interface that it begins at
	told  bool // that something is too large, by the kernel or somebody on the way
}

// sizes are MTUs that are met with.
var sizes = []int{576, 1280, 1400, 1450, 1492, 1500, 1600, 4000, 8000, 8900, 9000, 16000}

// probePath finds out which datagrams reach the port. It takes a few seconds at most; it fails if none does.
func probePath(ctx context.Context, local netip.Addr, to netip.AddrPort, token []byte, rtt time.Duration) (path, error) {
	u, err := dialProbe(ctx, local, to)
	if err != nil {
		return path{}, err
	}
	defer u.Close()
	defer context.AfterFunc(ctx, func() { u.Close() })()
	over := overhead4
	if to.Addr().Unmap().Is6() {
		over = overhead6
	}
	p := prober{u: u, token: token, over: over, sent: map[int]bool{}, wait: min(max(4*rtt, 40*time.Millisecond), 300*time.Millisecond)}
	top := maxMTU
	i := interfaceOf(local.String())
	if i.mtu > 0 {
		top = min(int(i.mtu), maxMTU)
	}
	first := slices.DeleteFunc(slices.Clone(sizes), func(n int) bool { return n >= top })
	first = append(first, top)
	for begun := time.Now(); p.most == 0 && time.Since(begun) < firstFor && ctx.Err() == nil; {
		p.send(first)
	}
	if p.most == 0 {
		return path{}, errors.New("no datagram came through")
	}
	above := func(list []int) int { // the smallest that is larger than what came through
		return list[slices.IndexFunc(list, func(n int) bool { return n > p.most })]
	}
	for try := 0; p.most < top && try < 3 && ctx.Err() == nil; try++ {
		high := above(first)
		for high-p.most > 1 && ctx.Err() == nil {
			before, some := p.most, between(p.most, high)
			if p.send(some); p.most == before {
				p.send([]int{some[0], some[0]}) // it may only have been lost
			}
			switch {
			case p.most == before:
				high = some[0]
			case p.most < some[len(some)-1]:
				high = above(some)
			}
		}
		if p.send([]int{high, high}); p.most < high {
			break
		}
	}
	return path{mtu: p.most, local: top, told: p.told}, ctx.Err()
}

// between returns up to 15 sizes between two, evenly spaced, in order.
func between(low, high int) (out []int) {
	const parts = 16
	step := max((high-low)/parts, 1)
	for n := low + step; n < high && len(out) < parts-1; n += step {
		out = append(out, n)
	}
	return out
}

func dialProbe(ctx context.Context, local netip.Addr, to netip.AddrPort) (*net.UDPConn, error) {
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0)), Control: func(_, _ string, rc syscall.RawConn) error {
		var err error
		cerr := rc.Control(func(fd uintptr) {
			// DF on all, whatever the kernel has heard of the path.
			if to.Addr().Unmap().Is4() {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
			} else {
				err = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE),
					unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1))
			}
		})
		return errors.Join(cerr, err)
	}}
	c, err := d.DialContext(ctx, "udp", to.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// prober sends datagrams of several sizes.
type prober struct {
	u     *net.UDPConn
	token []byte
	over  int
	wait  time.Duration
	sent  map[int]bool // sizes, headers included
	most  int          // the largest that came through, headers included
	told  bool
}

// send sends datagrams of these sizes, headers included, and takes answers until all are there or it has waited.
func (p *prober) send(sizes []int) {
	b := make([]byte, maxMTU)
	copy(b, p.token)
	for _, n := range sizes {
		p.sent[n] = true
		if _, err := p.u.Write(b[:n-p.over]); err != nil {
			p.told = p.told || errors.Is(err, unix.EMSGSIZE)
		}
	}
	if p.u.SetReadDeadline(time.Now().Add(p.wait)) != nil {
		return
	}
	in := make([]byte, answerLen)
	for got := 0; got < len(sizes); {
		n, err := p.u.Read(in)
		if errors.Is(err, unix.EMSGSIZE) {
			p.told = true
			continue
		}
		if errors.Is(err, unix.ECONNREFUSED) { // the other has closed it; what was answered before counts
			return
		}
		if err != nil {
			return
		}
		if n != answerLen || subtle.ConstantTimeCompare(in[:tokenLen], p.token) == 0 {
			continue
		}
		size := int(binary.LittleEndian.Uint32(in[tokenLen:])) + p.over
		if p.sent[size] { // nobody says that more arrived than was sent; what is late counts too
			p.most = max(p.most, size)
		}
		if slices.Contains(sizes, size) {
			got++
		}
	}
}

// pathMTU finds the MTU of the path of a connection.
func pathMTU(ctx context.Context, c *wire.Conn, class wire.Class, rtt time.Duration) (path, error) {
	local, err1 := netip.ParseAddrPort(c.LocalAddr())
	remote, err2 := netip.ParseAddrPort(c.RemoteAddr())
	if err := errors.Join(err1, err2); err != nil {
		return path{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, probeFor)
	defer cancel()
	reply := new(msg.NetProbeReply)
	code, err := c.CallMessage(ctx, wire.NetProbe, class, &msg.NetProbe{}, reply)
	if err == nil {
		err = code.Err()
	}
	if err != nil {
		return path{}, fmt.Errorf("the other opens no port: %w", err)
	}
	if reply.Port == 0 || reply.Port > 65535 || len(reply.Token) != tokenLen {
		return path{}, fmt.Errorf("port %d with a token of %d bytes: %w", reply.Port, len(reply.Token), fserr.Protocol)
	}
	return probePath(ctx, local.Addr(), netip.AddrPortFrom(remote.Addr(), uint16(reply.Port)), reply.Token, rtt)
}
