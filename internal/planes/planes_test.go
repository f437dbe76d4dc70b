package planes

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"varve/internal/wire"
)

var host = []Interface{
	{Name: "lo", Addrs: addrs("127.0.0.1", "::1")},
	{Name: "eth0", Addrs: addrs("fe80::1", "fd00::5", "10.0.0.5")},
	{Name: "eth1", Addrs: addrs("10.1.0.5")},
	{Name: "bare"},
}

func addrs(all ...string) (out []netip.Addr) {
	for _, a := range all {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestParse(t *testing.T) {
	for _, c := range []struct{ text, want, fault string }{
		{"", "", ""},
		{"none", "", ""},
		{"repair=eth1,client=10.0.0.5:2600", "client=10.0.0.5:2600,repair=eth1", ""},
		{"guest=eth0", "", `plane "guest" is unknown: want one of client, replication, repair, heartbeat`},
		{"client", "", "plane client: want client=IP"},
		{"client=", "", "plane client: want client=IP"},
		{"client=eth0,client=eth1", "", `plane client is given twice, "eth0" and "eth1"`},
		{"guest=eth0,client=", "", "plane client: want"},
		{strings.Repeat("x", 2000), "", "limit"},
	} {
		s, err := Parse(c.text)
		if c.fault == "" && (err != nil || s.String() != c.want) || c.fault != "" && (err == nil || !strings.Contains(err.Error(), c.fault)) {
			t.Errorf("%.40q: %q, %v; want %q, %q", c.text, s, err, c.want, c.fault)
		}
		if again, err := Parse(s.String()); err != nil || c.fault == "" && again != s {
			t.Errorf("%.40q: %q reads as %v, %v", c.text, s, again, err)
		}
	}
}

func TestResolve(t *testing.T) {
	for _, c := range []struct {
		text, base string
		want       []string // client, replication, repair, heartbeat
		fault      string
	}{
		{"", "10.0.0.5:2511", []string{"10.0.0.5:2511", "10.0.0.5:2511", "10.0.0.5:2511", "10.0.0.5:2511"}, ""},
		{"replication=eth1,repair=10.1.0.5:2600", "10.0.0.5:2511", []string{"10.0.0.5:2511", "10.1.0.5:2511", "10.1.0.5:2600", "10.0.0.5:2511"}, ""},
		{"client=eth0", "10.1.0.5:0", []string{"10.0.0.5:0", "10.1.0.5:0", "10.1.0.5:0", "10.1.0.5:0"}, ""},
		{"client=eth0", "[fd00::9]:1", []string{"[fd00::5]:1", "[fd00::9]:1", "[fd00::9]:1", "[fd00::9]:1"}, ""},
		{"repair=127.0.0.7", "127.0.0.1:2511", []string{"127.0.0.1:2511", "127.0.0.1:2511", "127.0.0.7:2511", "127.0.0.1:2511"}, ""},
		{"repair=10.9.9.9", "10.0.0.5:2511", nil, "plane repair: address 10.9.9.9 is not one of this host, which has 127.0.0.1 (lo), ::1 (lo), fd00::5 (eth0), 10.0.0.5 (eth0), 10.1.0.5 (eth1)"},
		{"repair=eth7", "10.0.0.5:2511", nil, `"eth7" is neither an IP address nor an interface of this host, which has lo, eth0, eth1, bare`},
		{"repair=bare", "10.0.0.5:2511", nil, "interface bare has no address"},
		{"repair=fd00::5", "10.0.0.5:2511", nil, "all addresses of a server are to be IPv4, or all IPv6"},
		{"repair=eth7,client=10.9.9.9", "10.0.0.5:2511", nil, "plane client: address"},
		{"repair=eth1", "host:2511", nil, "want IP:PORT where there are planes"},
	} {
		s, err := Parse(c.text)
		if err != nil {
			t.Fatal(err)
		}
		p, err := s.Resolve(c.base, host)
		if c.fault != "" {
			if err == nil || !strings.Contains(err.Error(), c.fault) {
				t.Errorf("%q at %s: %v, want %q", c.text, c.base, err, c.fault)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q at %s: %v", c.text, c.base, err)
			continue
		}
		for pl, want := range c.want {
			if got := p.Addr(Plane(pl)); got != want {
				t.Errorf("%q at %s: %v is at %s, want %s", c.text, c.base, Plane(pl), got, want)
			}
		}
	}
}

// TestBind: each class leaves by its plane, and what is on this host, or of the other family, in any way.
func TestBind(t *testing.T) {
	s, err := Parse("replication=eth1,heartbeat=10.0.0.5")
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Resolve("10.0.0.5:2511", host)
	if err != nil {
		t.Fatal(err)
	}
	p.local = func() map[netip.Addr]bool { return map[netip.Addr]bool{netip.MustParseAddr("10.1.0.5"): true} }
	for _, c := range []struct {
		class          wire.Class
		remote         string
		local, through string
	}{
		{wire.ClassReplication, "10.1.0.6:2511", "10.1.0.5:0", "eth1"},
		{wire.ClassHeartbeat, "10.7.0.6:2511", "10.0.0.5:0", ""},
		{wire.ClassMeta, "10.7.0.6:2511", "10.0.0.5:0", ""},
		{wire.ClassRepair, "10.1.0.6:2511", "", ""},
		{wire.ClassGuest, "10.1.0.6:2511", "", ""},
		{wire.ClassReplication, "10.1.0.5:2511", "", ""},
		{wire.ClassReplication, "127.0.0.1:2511", "", ""},
		{wire.ClassReplication, "[fd00::6]:2511", "", ""},
	} {
		local, through := p.Bind(c.class, netip.MustParseAddrPort(c.remote))
		want := netip.AddrPort{}
		if c.local != "" {
			want = netip.MustParseAddrPort(c.local)
		}
		if local != want || through != c.through {
			t.Errorf("class %d to %s: from %v through %q, want %v, %q", c.class, c.remote, local, through, want, c.through)
		}
	}
}

func TestBook(t *testing.T) {
	b := NewBook("10.0.0.5:1", map[Plane]string{Replication: "10.1.0.5:1", Repair: "10.1.0.5:1", Client: "10.0.0.5:1"})
	if want := Book("10.0.0.5:1 replication=10.1.0.5:1 repair=10.1.0.5:1"); b != want {
		t.Fatalf("%q, want %q", b, want)
	}
	if b.Addr(Client) != "10.0.0.5:1" || b.Addr(Replication) != "10.1.0.5:1" || b.Addr(Heartbeat) != "10.0.0.5:1" || b.Single() {
		t.Errorf("%q: %s %s %s", b, b.Addr(Client), b.Addr(Replication), b.Addr(Heartbeat))
	}
	if got := b.Addrs(); !slices.Equal(got, []string{"10.0.0.5:1", "10.1.0.5:1"}) {
		t.Errorf("addresses %v", got)
	}
	if one := Book("10.0.0.5:1"); one.Addr(Repair) != "10.0.0.5:1" || !one.Single() || Book("").Addr(Client) != "" {
		t.Errorf("a book of one address: %q", one.Addr(Repair))
	}
	for text, good := range map[Book]bool{
		b: true, "10.0.0.5:1": true, "": false, " 10.0.0.5:1": false, "10.0.0.5": false, "10.0.0.5:1  repair=10.0.0.6:1": false,
		"10.0.0.5:1 guest=10.0.0.6:1": false, "10.0.0.5:1 repair": false, "10.0.0.5:1 repair=": false, Book("10.0.0.5:1 repair=" + strings.Repeat("1", 600) + ":1"): false,
	} {
		if err := text.Check(); (err == nil) != good {
			t.Errorf("%.60q: %v", text, err)
		}
	}
}

// TestListen: several addresses are one listener, which ends as one. They are addresses of loopback that nobody else uses, who could take the port.
func TestListen(t *testing.T) {
	l, bound, err := Listen(t.Context(), wire.TCP{}, []string{"127.37.0.1:0", "127.37.0.2:0", "127.37.0.3:0"})
	if err != nil {
		t.Fatal(err)
	}
	if l.Addr().String() != bound[0] || len(bound) != 3 {
		t.Errorf("at %v, bound %v", l.Addr(), bound)
	}
	for _, at := range bound {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		d, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if d.LocalAddr().String() != at {
			t.Errorf("accepted at %v, want %s", d.LocalAddr(), at)
		}
		d.Close()
	}
	ended := make(chan error)
	go func() {
		_, err := l.Accept()
		ended <- err
	}()
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	if _, _, err := Listen(context.Background(), wire.TCP{}, []string{bound[0], "192.0.2.1:0"}); err == nil {
		t.Error("listens on an address that is not there")
	}
	again, err := net.Listen("tcp", bound[0]) // what had begun was undone
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}
