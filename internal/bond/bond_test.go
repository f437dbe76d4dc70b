package bond

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/internal/wire"
)

// write writes what the driver would say of a bond, at once, as a read of /proc sees it.
func write(t *testing.T, dir, name, policy string, slaves ...string) {
	t.Helper()
	var s strings.Builder
	fmt.Fprintf(&s, "Ethernet Channel Bonding Driver: v6.12\n\nBonding Mode: load balancing (xor)\nTransmit Hash Policy: %s (1)\nMII Status: up\nMII Polling Interval (ms): 100\n", policy)
	for i, status := range slaves {
		fmt.Fprintf(&s, "\nSlave Interface: eth%d\nMII Status: %s\nSpeed: 10000 Mbps\nDuplex: full\n", i, status)
	}
	next := filepath.Join(dir, "."+name)
	if err := os.WriteFile(next, []byte(s.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func watch(t *testing.T, dir string) *Bonds {
	t.Helper()
	b := Watch(Options{Dir: dir, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	t.Cleanup(b.Close)
	return b
}

// peer listens at another address of the loopback interface, which the tests call a bond.
func peer(t *testing.T) (net.Listener, netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
		}
	}()
	return l, netip.MustParseAddrPort(l.Addr().String())
}

// TestSpread: connections one after the other take the slaves in turn, both ways; when a slave fails those that are right for what is left stay, and
// others are to be moved; and a host without a bond leaves ports to the kernel.
func TestSpread(t *testing.T) {
	dir := t.TempDir()
	_, to := peer(t)
	none := watch(t, dir)
	if at := none.Spread(wire.ClassGuest, 1, netip.Addr{}, to); at.IsValid() || none.Lanes(to.String()) != 1 || none.Any() {
		t.Errorf("a host without bonds: from %v, %d lanes", at, none.Lanes(to.String()))
	}
	write(t, dir, "lo", "layer3+4", "up", "up", "up")
	b := watch(t, dir)
	if w, ok := b.toward(netip.Addr{}, to.Addr()); !ok {
		t.Skipf("no way to 127.0.0.2 over the loopback interface: %+v", w)
	}
	if n := b.Lanes(to.String()); n != 3 {
		t.Errorf("%d lanes, want 3", n)
	}
	network := wire.TCP{Spread: b.Spread}
	var conns []net.Conn
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for way := 1; way <= 6; way++ {
		var c net.Conn
		var err error
		for range maxProbes { // a port may be somebody's
			d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(b.Spread(wire.ClassGuest, way, netip.Addr{}, to)), Control: reuse}
			if c, err = d.DialContext(ctx, "tcp", to.String()); err == nil {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	sign := func(i int) *wire.Sign {
		return &wire.Sign{Local: netip.MustParseAddrPort(conns[i].LocalAddr().String()), Remote: to}
	}
	for i := range conns {
		if !pairOf(sign(i).Local, to).On(sign(i).Local.Port(), i%3, 3) || b.Judge(i+1, sign(i)) != Stay {
			t.Errorf("connection %d from %v is on another slave", i, sign(i).Local)
		}
		if b.Judge(i+2, sign(i)) != Move {
			t.Errorf("connection %d as the next one: not to be moved", i)
		}
	}
	c, err := network.Dial(ctx, to.String(), wire.ClassMeta) // alone
	if err != nil {
		t.Fatal(err)
	}
	c.Close()

	changed, end := b.Changed()
	defer end()
	write(t, dir, "lo", "layer3+4", "up", "down", "up")
	select {
	case <-changed:
	case <-time.After(20 * time.Second):
		t.Fatal("a slave that failed was not noticed")
	}
	for i := range conns { // chosen to be right for two as well
		if got := b.Judge(i+1, sign(i)); got != Stay {
			t.Errorf("connection %d with two slaves left: verdict %d", i, got)
		}
	}
	warnings := strings.Join(b.Warnings(), "\n")
	if !strings.Contains(warnings, "lo: slave eth1 is down") {
		t.Errorf("warnings: %s", warnings)
	}
	if lines := strings.Join(b.Lines(), "\n"); !strings.Contains(lines, "lo: balance-xor, hash layer3+4, 2 of 3 slaves usable, connections are spread by their ports") {
		t.Errorf("lines: %s", lines)
	}
}

// TestUnsteered: with a hash that does not look at ports, or at a number that nobody chooses, ports are the kernel's, and it is said what to set.
func TestUnsteered(t *testing.T) {
	for _, c := range []struct {
		policy, says string
		lanes        int
	}{
		{"layer2", "set xmit_hash_policy=layer3+4", 1},
		{"layer2+3", "set xmit_hash_policy=layer3+4", 1},
		{"encap3+4", "set xmit_hash_policy=layer3+4", 2 * blindLanes},
	} {
		dir := t.TempDir()
		_, to := peer(t)
		write(t, dir, "lo", c.policy, "up", "up")
		b := watch(t, dir)
		if at := b.Spread(wire.ClassGuest, 1, netip.Addr{}, to); at.IsValid() {
			t.Errorf("%s: from %v", c.policy, at)
		}
		if _, ok := b.toward(netip.Addr{}, to.Addr()); ok && b.Lanes(to.String()) != c.lanes {
			t.Errorf("%s: %d lanes, want %d", c.policy, b.Lanes(to.String()), c.lanes)
		}
		if w := strings.Join(b.Warnings(), "\n"); !strings.Contains(w, c.says) {
			t.Errorf("%s: warnings %s", c.policy, w)
		}
	}
}

// TestSilentPeer: a connection that is silent has its slave tried; a peer that answers there is only slow.
func TestSilentPeer(t *testing.T) {
	dir := t.TempDir()
	_, to := peer(t)
	write(t, dir, "lo", "layer3+4", "up", "up")
	b := watch(t, dir)
	if _, ok := b.toward(netip.Addr{}, to.Addr()); !ok {
		t.Skip("no way to 127.0.0.2 over the loopback interface")
	}
	at := b.Spread(wire.ClassGuest, 1, netip.Addr{}, to)
	quiet := &wire.Sign{Local: at, Remote: to, Waiting: 1, SinceData: time.Second, SinceAck: time.Second}
	if b.Judge(1, quiet) != Stay {
		t.Error("dropped before anything was tried")
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		b.mu.Lock()
		s := b.dead[wayKey{"lo", to.Addr(), 0}]
		tried := s != nil && !s.trying && !s.next.IsZero()
		dead := s != nil && s.dead
		b.mu.Unlock()
		if dead {
			t.Fatal("a slave that answers is dead")
		}
		if tried {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nothing was tried")
		}
	}
	// What is known to be dead is left, and come back to.
	b.mu.Lock()
	b.dead[wayKey{"lo", to.Addr(), 0}] = &suspect{dead: true}
	b.mu.Unlock()
	if b.Judge(1, quiet) != Drop {
		t.Error("what is on a dead slave is not dropped")
	}
	if other := b.Spread(wire.ClassGuest, 1, netip.Addr{}, to); !pairOf(other, to).On(other.Port(), 1, 2) {
		t.Errorf("the next is from %v, on the dead slave", other)
	} else {
		b.mu.Lock()
		clear(b.dead)
		b.mu.Unlock()
		if b.Judge(1, &wire.Sign{Local: other, Remote: to}) != Move {
			t.Error("it is not moved back")
		}
	}
}

func TestPorts(t *testing.T) {
	p := ports{low: 40000, high: 40009}
	p.reserve("22,40001-40003,x,40008-y,40009")
	got := slices.Collect(p.from(p.after(40004)))
	if want := []uint16{40005, 40006, 40007, 40008, 40000, 40004}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if real := readPorts(); real.low == 0 || real.low > real.high {
		t.Errorf("this host: %d to %d", real.low, real.high)
	}
}

// TestUneven: what one slave carries more than its share is said once, after some seconds of it, and again when it comes back; little is no load.
func TestUneven(t *testing.T) {
	var c counting
	look := func(a, b float64) string {
		c.rates = []Rate{{"eth0", a, 0}, {"eth1", b, 0}}
		return c.judge()
	}
	said := 0
	for range 20 {
		if look(9e6, 1e6) != "" {
			said++
		}
	}
	if said != 1 || c.unevenTx < unevenFor {
		t.Errorf("said %d times", said)
	}
	for range 20 {
		if s := look(5e6, 6e6) + look(9e5, 1e3); s != "" {
			t.Errorf("said %q of an even load, or of none", s)
		}
	}
	for range unevenFor {
		if s := look(0, 9e6); s != "" && s != "eth0 0.0 MB/s out, 0.0 in; eth1 9.0 MB/s out, 0.0 in" {
			t.Errorf("said %q", s)
		} else if s != "" {
			said++
		}
	}
	if said != 2 {
		t.Error("not said again")
	}
}

// TestMTU: a peer that takes smaller packets is named, until it does not.
func TestMTU(t *testing.T) {
	b := watch(t, t.TempDir())
	s := &wire.Sign{Remote: netip.MustParseAddrPort("10.0.0.7:2511"), MSS: 1460, OwnMSS: 8960}
	b.noteMTU(s)
	if w := b.Warnings(); len(w) != 1 || !strings.Contains(w[0], "10.0.0.7, or the way there, takes packets of 1500 bytes and this host sends 9000") {
		t.Errorf("warnings %q", w)
	}
	s.MSS = 8960
	b.noteMTU(s)
	if w := b.Warnings(); len(w) != 0 {
		t.Errorf("warnings %q", w)
	}
}

// TestNil: no bonds is a value that works.
func TestNil(t *testing.T) {
	var b *Bonds
	c, end := b.Changed()
	defer end()
	defer b.Close()
	if c != nil || b.Any() || b.Lanes("10.0.0.1:1") != 1 || b.Judge(1, &wire.Sign{}) != Stay || b.Warnings() != nil || b.Lines() != nil {
		t.Error("nil does something")
	}
	if b.Spread(wire.ClassGuest, 1, netip.Addr{}, netip.MustParseAddrPort("10.0.0.1:1")).IsValid() {
		t.Error("nil chooses a port")
	}
}
