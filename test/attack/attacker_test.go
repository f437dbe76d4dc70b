package attack

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/test/netns"
)

// patience is how long the attacker waits for an answer. It is longer than what a server gives somebody who has not said who he is.
const patience = 40 * time.Second

// attacker is a machine in the network of the cluster, with many addresses.
type attacker struct {
	t      *testing.T
	c      *cluster
	s      *netns.Space
	addrs  []string
	next   atomic.Uint32
	joined string // directory of a node that joined while others tried to
}

const attackerAddrs = 200

func newAttacker(t *testing.T, c *cluster, n int) *attacker {
	t.Helper()
	a := &attacker{t: t, c: c, s: netns.New(t, n), addrs: []string{}}
	for i := range attackerAddrs {
		addr := fmt.Sprintf("10.88.%d.%d", n, 10+i)
		a.addrs = append(a.addrs, addr)
		a.s.IP(t, "addr add "+addr+"/24 dev e")
	}
	return a
}

// net is the attacker's network, with an address of its own.
type from struct {
	s    *netns.Space
	addr string
}

var _ wire.Network = from{}

// Dial implements wire.Network.
func (f from) Dial(ctx context.Context, addr string, _ wire.Class) (c net.Conn, err error) {
	f.s.Do(func() {
		c, err = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(f.addr)}, Timeout: 30 * time.Second}).DialContext(ctx, "tcp", addr)
	})
	return c, err
}

// Listen implements wire.Network.
func (f from) Listen(context.Context, string) (net.Listener, error) {
	return nil, errors.ErrUnsupported
}

// elsewhere is the network from an address that the attacker has not used yet.
func (a *attacker) elsewhere() from {
	return from{a.s, a.addrs[int(a.next.Add(1))%len(a.addrs)]}
}

func (a *attacker) dial(addr string) (net.Conn, error) {
	c, err := a.elsewhere().Dial(context.Background(), addr, wire.ClassMeta)
	if err == nil {
		err = c.SetDeadline(time.Now().Add(patience))
	}
	return c, err
}

// network is one with certificates of the attacker's, which believes what the server shows.
func (a *attacker) network(cert tls.Certificate, dataTLS bool) (*secure.Network, error) {
	cas, err := pki.ParseBundle(a.c.secrets.Authority.Bundle())
	if err != nil {
		return nil, err
	}
	return secure.New(secure.Options{Credentials: pki.NewCredentials(cert, pki.Pool(cas), a.c.uuid), Under: a.elsewhere(), DataTLS: dataTLS}), nil
}

// greet says hello with certificates.
func (a *attacker) greet(cert tls.Certificate, addr string, class wire.Class, hello *msg.Hello) (*wire.Conn, error) {
	n, err := a.network(cert, false)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return inTime(func() (*wire.Conn, error) {
		c, _, err := wire.Dial(ctx, addr, hello, nil, wire.Options{Network: n, Class: class})
		return c, err
	})
}

// inTime connects again where that took too long, which is no answer of the server's: a busy machine does both sides' work.
func inTime[C any](dial func() (C, error)) (c C, err error) {
	for range 4 {
		c, err = dial()
		if ne, is := errors.AsType[net.Error](err); !errors.Is(err, context.DeadlineExceeded) && !(is && ne.Timeout()) {
			return c, err
		}
	}
	return c, err
}

const stays = "the connection stays"

// ends reads what the server answers to what was sent, and says what is wrong with it: anything but alerts, or a connection that stays.
func ends(c net.Conn, alerts int) error {
	b, err := io.ReadAll(io.LimitReader(c, 1<<16))
	for range alerts {
		if len(b) >= 7 && b[0] == 21 && b[1] == 3 && b[3] == 0 && b[4] == 2 {
			b = b[7:]
		}
	}
	if ne, is := errors.AsType[net.Error](err); is && ne.Timeout() {
		if len(b) == 0 {
			return errors.New(stays)
		}
		return fmt.Errorf("%d bytes came, and "+stays, len(b))
	}
	if len(b) > 0 {
		return fmt.Errorf("it answered %d bytes: %.40q", len(b), b)
	}
	return nil
}

// mute reads from a connection that has done its half of a handshake, and says what is wrong: anything but an error.
func mute(c net.Conn, hello []byte) error {
	_, _ = c.Write(hello) // it may be closed already
	var b [1]byte
	n, err := c.Read(b[:])
	if n > 0 {
		return errors.New("it answered to who it does not know")
	}
	if ne, is := errors.AsType[net.Error](err); is && ne.Timeout() {
		return errors.New("the connection stays")
	}
	return nil
}
