package wire

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestBind: a connection leaves from where Bind says, and Bind is asked with the class and the address that a name stands for.
func TestBind(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := netip.MustParseAddrPort(l.Addr().String())
	free, err := net.Listen("tcp", "127.0.0.4:0") // a port that nobody else has at that address
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(free.Addr().String()).Port()
	free.Close()
	for _, c := range []struct {
		name   string
		local  string
		device string
	}{
		{"the kernel chooses", "", ""},
		{"address", "127.0.0.3:0", ""},
		{"address and port", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.4"), port).String(), ""},
		{"interface", "", "lo"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var asked []netip.AddrPort
			var local netip.AddrPort
			if c.local != "" {
				local = netip.MustParseAddrPort(c.local)
			}
			network := TCP{Bind: func(class Class, remote netip.AddrPort) (netip.AddrPort, string) {
				if class != ClassRepair {
					t.Errorf("asked for class %d", class)
				}
				asked = append(asked, remote)
				return local, c.device
			}}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			conn, err := network.Dial(ctx, l.Addr().String(), ClassRepair)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			peer, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			from := netip.MustParseAddrPort(peer.RemoteAddr().String())
			if len(asked) != 1 || asked[0] != at {
				t.Errorf("asked for %v, want %v", asked, at)
			}
			if local.IsValid() && (from.Addr() != local.Addr() || local.Port() != 0 && from.Port() != local.Port()) {
				t.Errorf("came from %v, want %v", from, local)
			}
		})
	}
}

// TestBindRefused: what cannot be is an error that says what and where.
func TestBindRefused(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, c := range []struct {
		local, device string
		want          error
		says          string
	}{
		{"192.0.2.1:0", "", unix.EADDRNOTAVAIL, "192.0.2.1"},
		{"[::1]:0", "", nil, "IPv6"},
		{"", "nosuchif", unix.ENODEV, "nosuchif"},
	} {
		var local netip.AddrPort
		if c.local != "" {
			local = netip.MustParseAddrPort(c.local)
		}
		network := TCP{Bind: func(Class, netip.AddrPort) (netip.AddrPort, string) { return local, c.device }}
		conn, err := network.Dial(t.Context(), l.Addr().String(), ClassGuest)
		if err == nil {
			conn.Close()
			t.Fatalf("from %q through %q: connected", c.local, c.device)
		}
		if c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("from %q through %q: %v, want %v and %q", c.local, c.device, err, c.want, c.says)
		}
	}
}

// TestBound: a network that can be told where to leave is, another is left as it is, and connections carry the mark of their class from the first packet on.
func TestBound(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n := Bound(TCP{}, func(Class, netip.AddrPort) (netip.AddrPort, string) {
		return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.5"), 0), ""
	})
	conn, err := n.Dial(t.Context(), l.Addr().String(), ClassRepair)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if from := netip.MustParseAddrPort(conn.LocalAddr().String()).Addr(); from.String() != "127.0.0.5" {
		t.Errorf("left from %v", from)
	}
	rc, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var tos int
	if cerr := rc.Control(func(fd uintptr) { tos, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	if uint8(tos>>2) != ClassRepair.DSCP() {
		t.Errorf("type of service %#x, want DSCP %d", tos, ClassRepair.DSCP())
	}
	type plain struct{ Network }
	if got, is := Bound(plain{TCP{}}, nil).(plain); !is {
		t.Errorf("a network that cannot be told was made into %T", got)
	}
}
