package ebpf

import (
	"net"
	"net/netip"
	"regexp"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// marked has sockets that f makes send with a DSCP.
func marked(dscp int) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, dscp<<2) // the test sees if that failed
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, dscp<<2)
		})
	}
}

// sendMarked sends n bytes from a to a server in b on a socket with a DSCP.
func sendMarked(t *testing.T, a, b *space, addr string, n, dscp int) {
	t.Helper()
	var l net.Listener
	var err error
	b.do(func() { l, err = net.Listen("tcp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan int, 1)
	go func() {
		total := 0
		defer func() { got <- total }()
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		for buf := make([]byte, 1<<16); ; {
			k, err := c.Read(buf)
			total += k
			if err != nil {
				return
			}
		}
	}()
	var c net.Conn
	a.do(func() { c, err = (&net.Dialer{Control: marked(dscp)}).Dial("tcp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(make([]byte, n)); err != nil {
		t.Error(err)
	}
	c.Close()
	if total := <-got; total != n {
		t.Errorf("%d bytes arrived of %d", total, n)
	}
}

// TestMarksAndPeers: several classes on one port, told apart by the DSCP of the socket, and counted by peer, both ways of hooking in.
func TestMarksAndPeers(t *testing.T) {
	for name, noTCX := range map[string]bool{"tcx": false, "clsact": true} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			o := Options{Ports: map[uint16]Class{2510: 1}, Marks: map[uint8]Class{48: 2, 8: 3}, NoTCX: noTCX}
			out, in := attach(t, a, "v0", o), attach(t, b, "v1", o)
			const mib = 1 << 20
			sendMarked(t, a, b, "10.99.0.2:2510", mib, 0)
			sendMarked(t, a, b, "10.99.0.2:2510", 2*mib, 48)
			sendMarked(t, a, b, "[fd99::2]:2510", 3*mib, 8)
			sendMarked(t, a, b, "10.99.0.2:2600", mib, 48) // not a port of ours
			var there, here map[PeerKey]Count
			alike := func() bool {
				var err error
				if there, err = out.Peers(); err != nil {
					t.Fatal(err)
				}
				if here, err = in.Peers(); err != nil {
					t.Fatal(err)
				}
				for key, n := range there {
					for other, got := range here {
						if key.Direction != other.Direction && key.Class == other.Class && key.Peer.Is4() == other.Peer.Is4() && n != got {
							return false
						}
					}
				}
				return true
			}
			for end := time.Now().Add(20 * time.Second); !alike() && time.Now().Before(end); { // the last acknowledgements may be on their way between the two
				time.Sleep(10 * time.Millisecond)
			}
			at, from := netip.MustParseAddr("10.99.0.2"), netip.MustParseAddr("10.99.0.1")
			at6, from6 := netip.MustParseAddr("fd99::2"), netip.MustParseAddr("fd99::1")
			for _, want := range []struct {
				class    Class
				to, from netip.Addr
				sent     uint64
			}{{1, at, from, mib}, {2, at, from, 2 * mib}, {3, at6, from6, 3 * mib}} {
				sent := there[PeerKey{want.to, Key{want.class, Egress}}]
				if sent.Bytes < want.sent || sent.Bytes > want.sent*5/4+64<<10 {
					t.Errorf("class %d to %v: %+v for a payload of %d", want.class, want.to, sent, want.sent)
				}
				if got := here[PeerKey{want.from, Key{want.class, Ingress}}]; got != sent {
					t.Errorf("class %d from %v: %+v, sent were %+v", want.class, want.from, got, sent)
				}
			}
			for key := range there {
				if key.Class == 0 || key.Peer != at && key.Peer != at6 {
					t.Errorf("counted %+v", key)
				}
			}
		})
	}
}

// TestWritesDSCP: what is sent gets the DSCP of its class, with a checksum that the receiver accepts.
func TestWritesDSCP(t *testing.T) {
	a, b := pair(t)
	attach(t, a, "v0", Options{Ports: map[uint16]Class{2510: 1, 2511: 2}, DSCP: map[Class]uint8{1: 10, 2: 46}})
	in := attach(t, b, "v1", Options{Ports: map[uint16]Class{2510: 9, 2511: 9}, Marks: map[uint8]Class{10: 1, 46: 2, 7: 3}})
	const mib = 1 << 20
	for _, addr := range []string{"10.99.0.2:2510", "[fd99::2]:2510"} {
		sendMarked(t, a, b, addr, mib, 0)
		sendMarked(t, a, b, addr, mib, 7)
	}
	send(t, a, b, "10.99.0.2:2511", mib)
	n, err := in.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for class, payload := range map[Class]uint64{1: 4 * mib, 2: mib} {
		if got := n[Key{class, Ingress}].Bytes; got < payload || got > payload*5/4+64<<10 {
			t.Errorf("class %d: %d bytes with its DSCP, want %d and headers", class, got, payload)
		}
	}
	if got := n[Key{3, Ingress}]; got != (Count{}) {
		t.Errorf("%+v kept the socket's DSCP", got)
	}
}

// TestFilterIsTakenOverAfterACrash: a clsact filter that a process left is replaced, not joined.
func TestFilterIsTakenOverAfterACrash(t *testing.T) {
	a, b := pair(t)
	o := Options{Ports: map[uint16]Class{2510: 1}, NoTCX: true}
	var left *Classifier
	var err error
	a.do(func() { left, err = Attach("v0", o) })
	if err != nil {
		t.Fatal(err)
	}
	left.hooks = nil // as if it had been killed: only the descriptors are closed
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}
	c := attach(t, a, "v0", o)
	send(t, a, b, "10.99.0.2:2510", 1<<20)
	n, err := c.Counters()
	if err != nil || n[Key{1, Egress}].Bytes < 1<<20 {
		t.Errorf("%v, %v", n, err)
	}
	for _, way := range []string{"ingress", "egress"} {
		if filters := regexp.MustCompile(`handle 0x1`).FindAllString(a.run(t, "tc filter show dev v0 "+way), -1); len(filters) != 1 {
			t.Errorf("%d filters on the way %s", len(filters), way)
		}
	}
	a.do(func() { err = c.Close() })
	if err != nil {
		t.Fatal(err)
	}
	for _, way := range []string{"ingress", "egress"} {
		if out := a.run(t, "tc filter show dev v0 "+way); out != "" {
			t.Errorf("%s: %q after Close", way, out)
		}
	}
}
