package wire

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/wire/msg"
)

// freePorts returns n ports of an address that nobody has.
func freePorts(t *testing.T, addr string, n int) (out []uint16) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", addr+":0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out = append(out, netip.MustParseAddrPort(l.Addr().String()).Port())
	}
	return out
}

// TestSpread: connections leave from the ports that Spread chooses; one that is taken, by a listener or by a connection to the same peer, is
// passed over; and when there is none left the kernel chooses.
func TestSpread(t *testing.T) {
	local := netip.MustParseAddr("127.0.0.5")
	ports := freePorts(t, local.String(), 4)
	taken, err := net.Listen("tcp", netip.AddrPortFrom(local, ports[0]).String())
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var mu sync.Mutex
	given := 0
	var ways []int
	network := TCP{Spread: func(class Class, way int, from netip.Addr, remote netip.AddrPort) netip.AddrPort {
		mu.Lock()
		defer mu.Unlock()
		ways = append(ways, way)
		if class != ClassGuest || from.IsValid() || remote.String() != l.Addr().String() {
			t.Errorf("asked for class %d from %v to %v", class, from, remote)
		}
		given++
		return netip.AddrPortFrom(local, ports[given%len(ports)])
	}}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var got []uint16
	var last netip.AddrPort
	for i := range 4 {
		conn, err := network.Dial(withWay(ctx, i+1), l.Addr().String(), ClassGuest)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		from := netip.MustParseAddrPort(conn.LocalAddr().String())
		got, last = append(got, from.Port()), from
		if i < 3 && from.Addr() != local {
			t.Errorf("connection %d came from %v", i, from)
		}
	}
	for _, p := range ports[1:] {
		if !slices.Contains(got, p) {
			t.Errorf("came from %v, never from %d", got, p)
		}
	}
	if last.Addr() == local && slices.Contains(ports, last.Port()) {
		t.Errorf("the fourth came from %v, which is taken", last)
	}
	if !slices.Contains(ways, 1) || !slices.Contains(ways, 4) {
		t.Errorf("asked for the ways %v", ways)
	}
}

// TestConnected: the hook is called before the server hears the hello, and its error ends the attempt.
func TestConnected(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	greeted := make(chan struct{})
	s := &Server{Accept: func(*Conn, *msg.Hello) (Handler, *msg.HelloReply, fserr.Code) {
		close(greeted)
		return nil, &msg.HelloReply{}, fserr.OK
	}}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	defer func() {
		l.Close()
		s.Close()
		<-done
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	why := errors.New("changed my mind")
	_, _, err = Dial(ctx, l.Addr().String(), &msg.Hello{}, nil, Options{Connected: func() error { return why }})
	if !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
	c, _, err := Dial(ctx, l.Addr().String(), &msg.Hello{}, nil, Options{Connected: func() error {
		select {
		case <-greeted:
			t.Error("greeted before")
		case <-time.After(20 * time.Millisecond):
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	<-greeted
	sign, ok := c.Sign()
	if !ok || sign.Remote.String() != l.Addr().String() || sign.MSS < 500 || sign.Waiting != 0 || sign.Silent(time.Hour) {
		t.Errorf("sign %+v, %t", sign, ok)
	}
}
