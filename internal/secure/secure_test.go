package secure

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/secure/securetest"
	"varve/internal/wire"
)

var cluster = id.Cluster{1, 2, 3}

const patience = 20 * time.Second

// serve listens with a network and hands what comes to a channel.
func serve(t *testing.T, n *Network, addr string) (string, chan net.Conn) {
	t.Helper()
	l, err := n.Listen(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	conns := make(chan net.Conn, 64)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		for {
			select {
			case c := <-conns:
				c.Close()
			default:
				return
			}
		}
	})
	return l.Addr().String(), conns
}

func await(t *testing.T, conns chan net.Conn) net.Conn {
	t.Helper()
	select {
	case c := <-conns:
		t.Cleanup(func() { c.Close() })
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		return c
	case <-time.After(patience):
		t.Fatal("no connection came")
	}
	return nil
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func dial(t *testing.T, n *Network, addr string, class wire.Class) net.Conn {
	t.Helper()
	c, err := n.Dial(t.Context(), addr, class)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// echo sends bytes both ways and compares.
func echo(t *testing.T, a, b net.Conn, size int) {
	t.Helper()
	for _, x := range []struct{ from, to net.Conn }{{a, b}, {b, a}} {
		sent := bytes.Repeat([]byte("VRV1frame"), size/9+1)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := x.from.Write(sent); err != nil {
				t.Error(err)
			}
		})
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(x.to, got); err != nil {
			t.Error(err)
		} else if !bytes.Equal(got, sent) {
			t.Error("other bytes arrived than were sent")
		}
		wg.Wait()
	}
}

// TestKinds: what a class of traffic, and the wish of either end, make of a connection; and both ends know who the other is.
func TestKinds(t *testing.T) {
	ca := securetest.New(t, cluster)
	for _, c := range []struct {
		name           string
		class          wire.Class
		client, server bool // want data encrypted
		plain          bool
	}{
		{"heartbeat", wire.ClassHeartbeat, false, false, false},
		{"meta", wire.ClassMeta, false, false, false},
		{"guest", wire.ClassGuest, false, false, true},
		{"replication", wire.ClassReplication, false, false, true},
		{"repair", wire.ClassRepair, false, false, true},
		{"client wants TLS", wire.ClassGuest, true, false, false},
		{"server wants TLS", wire.ClassGuest, false, true, false},
		{"both want TLS", wire.ClassScrub, true, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := New(Options{Credentials: ca.Node(t, "server"), Logger: quiet()})
			server.RequireDataTLS(c.server)
			addr, conns := serve(t, server, "127.0.0.1:0")
			client := New(Options{Credentials: ca.Credentials(t, pki.RoleReader, "client"), DataTLS: c.client})
			a := dial(t, client, addr, c.class)
			b := await(t, conns)
			for who, conn := range map[string]net.Conn{"node/server": a, "reader/client": b} {
				if p, ok := wire.PeerOf(conn); !ok || p.String() != who || p.Cluster != cluster {
					t.Errorf("peer is %v %v, want %s", p, ok, who)
				}
				_, socket := conn.(syscall.Conn)
				k, keyed := conn.(interface{ FrameKeys() (uint32, uint32) })
				if socket != c.plain || keyed != c.plain {
					t.Errorf("plain is %v, %v, want %v", socket, keyed, c.plain)
				}
				if keyed {
					if s, r := k.FrameKeys(); s == r || s == 0 {
						t.Errorf("keys %08x and %08x", s, r)
					}
				}
			}
			if c.plain {
				s, r := a.(*plainTCP).FrameKeys()
				if s2, r2 := b.(*plainTCP).FrameKeys(); s != r2 || r != s2 {
					t.Errorf("keys of the ends differ: %08x %08x, %08x %08x", s, r, s2, r2)
				}
			}
			echo(t, a, b, 200_000)
		})
	}
}

// held keeps all that is written after the first write until it is let go.
type held struct {
	net.Conn
	wrote int
	kept  []byte
}

func (h *held) Write(b []byte) (int, error) {
	if h.wrote++; h.wrote == 1 {
		return h.Conn.Write(b)
	}
	h.kept = append(h.kept, b...)
	return len(b), nil
}

// TestFirstFrameWithFinished: plain frames that come in one segment with the end of the client's handshake, or in small pieces, are not swallowed.
func TestFirstFrameWithFinished(t *testing.T) {
	ca := securetest.New(t, cluster)
	addr, conns := serve(t, New(Options{Credentials: ca.Node(t, "server"), Logger: quiet()}), "127.0.0.1:0")
	client := ca.Node(t, "client")
	for _, piece := range []int{1 << 20, 700, 13, 1} {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		h := &held{Conn: nc}
		tc := tls.Client(h, harden(client.ClientConfig(), []string{ProtoData}))
		if err := tc.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		if h.wrote < 2 {
			t.Fatal("the client's last flight was not held")
		}
		frame := bytes.Repeat([]byte{23, 3, 3, 0, 1}, 3000) // which looks like TLS records
		all := append(h.kept, frame...)
		for len(all) > 0 {
			n := min(piece, len(all))
			if piece == 1 && len(all) <= len(frame)-64 { // the rest at once
				n = len(all)
			}
			if _, err := nc.Write(all[:n]); err != nil {
				t.Fatal(err)
			}
			all = all[n:]
		}
		b := await(t, conns)
		got := make([]byte, len(frame))
		if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, frame) {
			t.Fatalf("pieces of %d: first frame did not arrive as it was sent: %v", piece, err)
		}
	}
}

// TestServerSpeaksFirst: the same the other way: the client swallows nothing of what a server sends right behind its handshake.
func TestServerSpeaksFirst(t *testing.T) {
	ca := securetest.New(t, cluster)
	addr, conns := serve(t, New(Options{Credentials: ca.Node(t, "server"), Logger: quiet()}), "127.0.0.1:0")
	client := New(Options{Credentials: ca.Node(t, "client")})
	for range 20 {
		a := dial(t, client, addr, wire.ClassGuest)
		b := await(t, conns)
		if _, err := b.Write([]byte("VRV1 hello")); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 10)
		if _, err := io.ReadFull(a, got); err != nil || string(got) != "VRV1 hello" {
			t.Fatalf("read %q, %v", got, err)
		}
	}
}

// TestRefused: who has no certificate of the cluster gets nowhere, is told so, and does not try without; a connection that was refused never reaches Accept.
func TestRefused(t *testing.T) {
	ca := securetest.New(t, cluster)
	other := securetest.New(t, cluster) // the same UUID, another authority
	foreign := securetest.New(t, id.Cluster{9})
	sc := ca.Node(t, "server")
	addr, conns := serve(t, New(Options{Credentials: sc, Logger: quiet()}), "127.0.0.1:0")
	revoked := ca.Node(t, "revoked")
	sc.CheckPeers(func(i pki.Identity) error {
		if i.Node == "revoked" {
			return pki.RevokedError(i)
		}
		return nil
	})
	past := time.Now().Add(-48 * time.Hour)
	for name, creds := range map[string]*pki.Credentials{
		"other authority": other.Node(t, "x"), "other cluster": foreign.Node(t, "x"), "revoked": revoked,
		"expired": ca.From(t, pki.RoleNode, "x", past, time.Hour),
	} {
		for _, class := range []wire.Class{wire.ClassMeta, wire.ClassGuest} {
			n := New(Options{Credentials: creds})
			c, err := n.Dial(t.Context(), addr, class)
			if err == nil { // in TLS 1.3 the client learns of it with the first read
				_ = c.SetDeadline(time.Now().Add(patience))
				_, _ = c.Write([]byte("VRV1")) // may fail already
				var b [64]byte
				_, err = c.Read(b[:])
				c.Close()
			}
			if err == nil {
				t.Errorf("%s, class %d: not refused", name, class)
			}
			if name == "revoked" && !(strings.Contains(err.Error(), "refused") && fserr.Of(err) == fserr.WrongCluster) && !strings.Contains(err.Error(), "bad certificate") {
				t.Errorf("%s, class %d: %v", name, class, err)
			}
		}
	}
	for name, b := range map[string]string{"plain frame": "VRV1" + strings.Repeat("x", 44), "raft": "VRFT0123456789abcdef", "long record": "\x16\x03\x01\xff\xff"} {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = nc.SetDeadline(time.Now().Add(patience))
		_, _ = nc.Write([]byte(b))
		got, _ := io.ReadAll(nc)
		if len(got) > 7 { // an alert at most
			t.Errorf("%s: answered with %d bytes", name, len(got))
		}
		nc.Close()
	}
	// Nobody without a certificate, by whatever protocol.
	for _, proto := range []string{ProtoControl, ProtoData, ProtoSealed, ProtoDataTLS, ProtoJoin, ""} {
		conf := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
		if proto != "" {
			conf.NextProtos = []string{proto}
		}
		tc, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", addr, conf)
		if err == nil {
			_ = tc.SetDeadline(time.Now().Add(patience))
			var b [1]byte
			if _, err = tc.Read(b[:]); err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%q without a certificate: %v", proto, err)
			}
			tc.Close()
		}
	}
	select {
	case c := <-conns:
		p, _ := wire.PeerOf(c)
		t.Errorf("%v was let in", p)
		c.Close()
	default:
	}
	// And those who may come still can.
	a := dial(t, New(Options{Credentials: ca.Node(t, "good")}), addr, wire.ClassGuest)
	echo(t, a, await(t, conns), 100)
}

// TestNoDowngrade: with credentials nobody speaks to a server that has none, or shows those of somebody who is no server.
func TestNoDowngrade(t *testing.T) {
	ca := securetest.New(t, cluster)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer l.Close()
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write(bytes.Repeat([]byte("VRV1"), 12))
			c.Close()
		}
	})
	n := New(Options{Credentials: ca.Node(t, "client")})
	for _, class := range []wire.Class{wire.ClassMeta, wire.ClassGuest} {
		if c, err := n.Dial(t.Context(), l.Addr().String(), class); err == nil {
			c.Close()
			t.Error("spoke with a plain server")
		}
	}
	addr, _ := serve(t, New(Options{Credentials: ca.Credentials(t, pki.RoleReader, "reader"), Logger: quiet()}), "127.0.0.1:0")
	if c, err := n.Dial(t.Context(), addr, wire.ClassMeta); err == nil {
		c.Close()
		t.Error("spoke with a reader as if it were a server")
	}
}

// TestHalfOpenFlood: connections that say nothing, or half of something, keep nobody out, and there are never more of them than there may be.
func TestHalfOpenFlood(t *testing.T) {
	ca := securetest.New(t, cluster)
	n := New(Options{Credentials: ca.Node(t, "server"), Logger: quiet()})
	inner, err := wire.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := n.Wrap(inner).(*listener)
	accepted := make(chan net.Conn, 16)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	const flood = 4 * maxStrangers
	var idle []net.Conn
	defer func() {
		for _, c := range idle {
			c.Close()
		}
	}()
	for i := range flood {
		from := net.IPv4(127, 0, 1, byte(1+i%8)) // a few machines
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: from}, Timeout: patience}).DialContext(t.Context(), "tcp", l.Addr().String())
		if err == nil { // else it was refused: those that it has already may not make room so soon
			idle = append(idle, c)
			if i%2 == 0 {
				_, _ = c.Write([]byte{22, 3, 1, 1, 0, 1})
			}
		}
		if i%100 == 99 {
			l.mu.Lock()
			under, known := len(l.strangers.all), len(l.known.all)
			l.mu.Unlock()
			if under > maxStrangers || known > maxKnown {
				t.Fatalf("%d and %d handshakes under way, limits %d and %d", under, known, maxStrangers, maxKnown)
			}
			client := New(Options{Credentials: ca.Node(t, "client")})
			a := dial(t, client, l.Addr().String(), wire.ClassGuest)
			select {
			case b := <-accepted:
				_ = b.SetDeadline(time.Now().Add(patience))
				echo(t, a, b, 100)
				b.Close()
			case <-time.After(patience):
				t.Fatal("kept out")
			}
		}
	}
	if err := l.Close(); err != nil { // it does not wait for them
		t.Error(err)
	}
	if _, open := <-accepted; open {
		t.Error("a connection came of nothing")
	}
}

// TestTooManyBytes: a handshake that goes on and on is ended.
func TestTooManyBytes(t *testing.T) {
	ca := securetest.New(t, cluster)
	addr, _ := serve(t, New(Options{Credentials: ca.Node(t, "server"), Logger: quiet()}), "127.0.0.1:0")
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(patience))
	record := append([]byte{22, 3, 1, 0x20, 0}, make([]byte, 0x2000)...)
	copy(record[5:], []byte{1, 0, 0xff, 0xff}) // a ClientHello of 65,535 bytes
	sent := 0
	for sent < 1<<20 {
		n, err := nc.Write(record)
		sent += n
		if err != nil {
			break
		}
		copy(record[5:], []byte{0, 0, 0, 0})
	}
	if sent >= 1<<20 {
		// What was taken is in the kernel's buffers; the connection must be over all the same.
		if _, err := io.Copy(io.Discard, nc); errors.Is(err, context.DeadlineExceeded) {
			t.Error("still reading")
		}
	}
}

type joinServer struct{ came chan string }

func (j joinServer) ServeJoin(_ context.Context, c *tls.Conn) {
	var b [4]byte
	_, err := io.ReadFull(c, b[:])
	if err != nil {
		j.came <- err.Error()
		return
	}
	_, _ = c.Write(b[:])
	j.came <- string(b[:])
}

// TestJoin: a machine without a certificate reaches the join server, and nothing else.
func TestJoin(t *testing.T) {
	ca := securetest.New(t, cluster)
	j := joinServer{make(chan string, 1)}
	addr, conns := serve(t, New(Options{Credentials: ca.Node(t, "server"), Logger: quiet(), Join: j}), "127.0.0.1:0")
	tc, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", addr, pki.JoinConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer tc.Close()
	_ = tc.SetDeadline(time.Now().Add(patience))
	if _, err := tc.Write([]byte("VRV1")); err != nil {
		t.Fatal(err)
	}
	var b [4]byte
	if _, err := io.ReadFull(tc, b[:]); err != nil || string(b[:]) != "VRV1" {
		t.Fatalf("%q, %v", b, err)
	}
	if got := <-j.came; got != "VRV1" {
		t.Fatal(got)
	}
	// Offering more than that needs a certificate.
	conf := pki.JoinConfig()
	conf.NextProtos = []string{ProtoJoin, ProtoControl}
	if tc, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", addr, conf); err == nil {
		_ = tc.SetDeadline(time.Now().Add(patience))
		if _, err := tc.Read(b[:]); err == nil {
			t.Error("let in")
		}
		tc.Close()
	}
	if len(conns) > 0 {
		t.Error("a joiner was taken for a member")
	}
}
