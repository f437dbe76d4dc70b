package ebpf

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

func protect(t *testing.T, s *space, dev string, ports []uint16, members ...string) *Guard {
	t.Helper()
	var g *Guard
	var err error
	s.do(func() { g, err = Protect(dev, ports, prefixes(members...)) })
	if errors.Is(err, ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.do(func() { g.Close() }) })
	return g
}

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(list))
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// reaches reports whether a connects to a server in b within a time: who is dropped hears nothing.
func reaches(t *testing.T, a, b *space, addr string, within time.Duration) bool {
	t.Helper()
	var l net.Listener
	var err error
	b.do(func() { l, err = net.Listen("tcp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var c net.Conn
	a.do(func() { c, err = (&net.Dialer{Timeout: within}).Dial("tcp", addr) })
	if err != nil {
		return false
	}
	c.Close()
	return true
}

func TestGuard(t *testing.T) {
	a, b := pair(t)
	g := protect(t, b, "v1", []uint16{2510}, "10.99.0.7/32", "192.168.0.0/16")
	check := func(addr string, want bool) {
		t.Helper()
		within := 700 * time.Millisecond
		if want { // however busy the machine is
			within = 30 * time.Second
		}
		if got := reaches(t, a, b, addr, within); got != want {
			t.Errorf("%s is reached: %v, want %v (%s)", addr, got, want, g.How())
		}
	}
	check("10.99.0.2:2510", false)
	check("[fd99::2]:2510", false)
	check("10.99.0.2:2600", true) // not a guarded port
	all, by, err := g.Dropped()
	for range 20 { // a neighbour may have to be found before the first segment leaves
		if err != nil || by[netip.MustParseAddr("10.99.0.1")].Packets > 0 && by[netip.MustParseAddr("fd99::1")].Packets > 0 {
			break
		}
		check("10.99.0.2:2510", false)
		check("[fd99::2]:2510", false)
		all, by, err = g.Dropped()
	}
	if err != nil {
		t.Fatal(err)
	}
	four, six := by[netip.MustParseAddr("10.99.0.1")], by[netip.MustParseAddr("fd99::1")]
	if four.Packets == 0 || six.Packets == 0 || all.Packets != four.Packets+six.Packets || all.Bytes != four.Bytes+six.Bytes || len(by) != 2 {
		t.Errorf("dropped %+v, by sender %v", all, by)
	}
	set := func(members ...string) {
		t.Helper()
		if err := g.SetMembers(prefixes(members...)); err != nil {
			t.Fatal(err)
		}
	}
	set("10.99.0.0/24")
	check("10.99.0.2:2510", true)
	check("[fd99::2]:2510", false)
	set("10.99.0.1/32", "fd99::/64")
	check("10.99.0.2:2510", true)
	check("[fd99::2]:2510", true)
	set()
	check("10.99.0.2:2510", false)
	b.do(func() { err = g.Close() })
	if err != nil {
		t.Fatal(err)
	}
	check("10.99.0.2:2510", true)
	if err := g.SetMembers(nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("members of a closed guard: %v", err)
	}
	if _, _, err := g.Dropped(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("counters of a closed guard: %v", err)
	}
}

// TestGuardFrames hands the program single frames.
func TestGuardFrames(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: no BPF programs")
	}
	g := &Guard{members: map[netip.Prefix]bool{}}
	if err := loadGuardObjects(&g.objs, nil); err != nil {
		t.Skip(err)
	}
	defer g.Close()
	if err := g.objs.Guarded.Put(uint16(2510), uint32(1)); err != nil {
		t.Fatal(err)
	}
	if err := g.SetMembers(prefixes("10.0.0.0/8", "fd00::/16")); err != nil {
		t.Fatal(err)
	}
	ports := func(dst uint16) []byte { return []byte{0x30, 0x39, byte(dst >> 8), byte(dst), 0, 0, 0, 0} }
	four := func(src [4]byte, proto byte, frag uint16, options int, rest []byte) []byte {
		p := make([]byte, 20+options)
		p[0], p[6], p[7], p[9] = 0x40|byte(5+options/4), byte(frag>>8), byte(frag), proto
		copy(p[12:], src[:])
		return append(p, rest...)
	}
	six := func(src string, next byte, rest []byte) []byte {
		p := make([]byte, 40)
		p[0], p[6] = 0x60, next
		a := netip.MustParseAddr(src).As16()
		copy(p[8:], a[:])
		return append(p, rest...)
	}
	frame := func(tags []uint16, ether uint16, p []byte) []byte {
		b := make([]byte, 12)
		for _, tag := range tags {
			b = append(b, byte(tag>>8), byte(tag), 0, 7)
		}
		b = append(append(b, byte(ether>>8), byte(ether)), p...)
		for len(b) < 64 {
			b = append(b, 0)
		}
		return b
	}
	stranger, member := [4]byte{192, 168, 1, 1}, [4]byte{10, 1, 2, 3}
	for name, c := range map[string]struct {
		frame []byte
		drop  bool
	}{
		"stranger":                 {frame(nil, 0x800, four(stranger, 6, 0, 0, ports(2510))), true},
		"stranger, other port":     {frame(nil, 0x800, four(stranger, 6, 0, 0, ports(22))), false},
		"member":                   {frame(nil, 0x800, four(member, 6, 0, 0, ports(2510))), false},
		"with options":             {frame(nil, 0x800, four(stranger, 6, 0, 40, ports(2510))), true},
		"UDP":                      {frame(nil, 0x800, four(stranger, 17, 0, 0, ports(2510))), false},
		"first fragment":           {frame(nil, 0x800, four(stranger, 6, 0x2000, 0, ports(2510))), true},
		"later fragment":           {frame(nil, 0x800, four(stranger, 6, 0x2010, 0, ports(2510))), false},
		"not fragmented, DF":       {frame(nil, 0x800, four(stranger, 6, 0x4000, 0, ports(2510))), true},
		"VLAN":                     {frame([]uint16{0x8100}, 0x800, four(stranger, 6, 0, 0, ports(2510))), true},
		"VLAN, member":             {frame([]uint16{0x8100}, 0x800, four(member, 6, 0, 0, ports(2510))), false},
		"provider's VLAN":          {frame([]uint16{0x88a8}, 0x86dd, six("fe80::1", 6, ports(2510))), true},
		"two tags":                 {frame([]uint16{0x88a8, 0x8100}, 0x800, four(stranger, 6, 0, 0, ports(2510))), false},
		"IPv6":                     {frame(nil, 0x86dd, six("2001:db8::1", 6, ports(2510))), true},
		"IPv6, member":             {frame(nil, 0x86dd, six("fd00::1", 6, ports(2510))), false},
		"IPv6 behind an extension": {frame(nil, 0x86dd, six("2001:db8::1", 0, ports(2510))), false},
		"ARP":                      {frame(nil, 0x806, make([]byte, 28)), false},
		"cut off":                  {append(make([]byte, 12), 8, 0), false},
	} {
		got, err := g.objs.GuardMembers.Run(&ebpf.RunOptions{Data: c.frame})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if (got == 1) != c.drop {
			t.Errorf("%s: verdict %d, dropped is to be %v", name, got, c.drop)
		}
	}
}

func TestGuardRefuses(t *testing.T) {
	if _, err := Protect("varve-none", nil, nil); err == nil {
		t.Error("an interface that is not there")
	}
	if _, err := Protect("lo", make([]uint16, MaxPorts+1), nil); err == nil {
		t.Error("too many ports")
	}
}
