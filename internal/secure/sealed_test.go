package secure

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"varve/internal/pki"
	"varve/internal/records"
	"varve/internal/secure/securetest"
	"varve/internal/wire"
)

// TestSealedKinds: what encrypted data connections are between ends that know records and ends that do not: a version from before, or a machine without
// the instructions.
func TestSealedKinds(t *testing.T) {
	if !records.Fast() {
		t.Skip("this machine has no instructions for AES")
	}
	ca := securetest.New(t, cluster)
	for _, c := range []struct {
		name                 string
		oldClient, oldServer bool
		client, server       bool // want data encrypted
		want                 string
	}{
		{"nobody wants it", false, false, false, false, "plain"},
		{"the client wants it", false, false, true, false, "sealed"},
		{"the server wants it", false, false, false, true, "sealed"},
		{"both want it", false, false, true, true, "sealed"},
		{"an old client wants it", true, false, true, false, "tls"},
		{"a client wants it of an old server", false, true, true, false, "tls"},
		{"an old server wants it", false, true, false, true, "tls"},
		{"a server wants it of an old client", true, false, false, true, "tls"},
		{"old, and nobody wants it", false, true, false, false, "plain"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := New(Options{Credentials: ca.Node(t, "server"), Logger: quiet(), unsealed: c.oldServer})
			server.RequireDataTLS(c.server)
			addr, conns := serve(t, server, "127.0.0.1:0")
			client := New(Options{Credentials: ca.Node(t, "client"), DataTLS: c.client, unsealed: c.oldClient})
			a := dial(t, client, addr, wire.ClassGuest)
			b := await(t, conns)
			for who, conn := range map[string]net.Conn{"node/server": a, "node/client": b} {
				got := "tls"
				if _, is := conn.(*records.Stream); is {
					got = "sealed"
				} else if _, is := conn.(syscall.Conn); is {
					got = "plain"
				}
				if got != c.want || wire.OnSocket(conn) != (got != "tls") {
					t.Errorf("the connection is %s, and on its socket is %v; want %s", got, wire.OnSocket(conn), c.want)
				}
				if p, ok := wire.PeerOf(conn); !ok || p.String() != who {
					t.Errorf("peer is %v %v, want %s", p, ok, who)
				}
				if k := wire.KeysOf(conn); (k != wire.Keys{}) != (got == "plain") {
					t.Errorf("%s: keys %v", got, k)
				}
			}
			echo(t, a, b, 200_000)
		})
	}
}

// sealedEnds returns both ends of a sealed connection.
func sealedEnds(t *testing.T, client *Network, addr string, conns chan net.Conn) (a, b *records.Stream) {
	t.Helper()
	x, y := dial(t, client, addr, wire.ClassGuest), await(t, conns)
	a, isA := x.(*records.Stream)
	b, isB := y.(*records.Stream)
	if !isA || !isB {
		t.Fatalf("connection of %T and %T", x, y)
	}
	return a, b
}

// lines is a log.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestSealedForged: what was seen on one connection is nothing on another one, nor in the other direction, nor a second time; who sends it ends the connection, and
// that is counted and logged, not for ever.
func TestSealedForged(t *testing.T) {
	if !records.Fast() {
		t.Skip("this machine has no instructions for AES")
	}
	ca := securetest.New(t, cluster)
	log := new(lines)
	server := New(Options{Credentials: ca.Node(t, "server"), DataTLS: true, Logger: slog.New(slog.NewTextHandler(log, nil))})
	addr, conns := serve(t, server, "127.0.0.1:0")
	client := New(Options{Credentials: ca.Node(t, "client"), Logger: quiet()})

	// What goes over one connection, seen from outside.
	a, b := sealedEnds(t, client, addr, conns)
	if _, err := a.Write([]byte("VRV1 something secret")); err != nil {
		t.Fatal(err)
	}
	seen := make([]byte, 4+21+16)
	if _, err := io.ReadFull(b.NetConn(), seen); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(seen, []byte("secret")) {
		t.Errorf("%q is to be seen", seen)
	}
	want := uint64(0)
	for name, do := range map[string]func(a, b *records.Stream){
		"of another connection": func(a, _ *records.Stream) { _, _ = a.NetConn().Write(seen) },
		"plain":                 func(a, _ *records.Stream) { _, _ = a.NetConn().Write(make([]byte, 48)) },
		"repeated": func(a, b *records.Stream) {
			_, _ = a.Write([]byte("VRV1"))
			own := make([]byte, 24)
			_, _ = io.ReadFull(b.NetConn(), own)
			_, _ = a.NetConn().Write(append(own, own...))
			if _, err := io.ReadFull(b, make([]byte, 4)); err != nil {
				t.Errorf("the first one: %v", err)
			}
		},
		"of the other direction": func(a, b *records.Stream) {
			_, _ = b.Write([]byte("VRV1"))
			own := make([]byte, 24)
			_, _ = io.ReadFull(a.NetConn(), own)
			_, _ = a.NetConn().Write(own)
		},
	} {
		a, b := sealedEnds(t, client, addr, conns)
		do(a, b)
		want++
		if n, err := b.Read(make([]byte, 100)); n != 0 || err != records.ErrForged || server.Forged() != want {
			t.Errorf("%s: %d bytes, %v, counted %d times, want %d", name, n, err, server.Forged(), want)
		}
	}
	if n := strings.Count(log.String(), "not what the peer sealed"); n != 1 || !strings.Contains(log.String(), "node=client") {
		t.Errorf("the log has %d lines of it:\n%s", n, log)
	}
	if client.Forged() != 0 {
		t.Error("the client has seen something wrong")
	}
	if bound := server.WithBind(nil).(*Network); bound.Forged() != want {
		t.Errorf("bound, it has counted %d, want %d", bound.Forged(), want)
	}
}

// TestSealedRefused: who connects to a server that refuses its certificate hears so, on a connection that is to be sealed as on others.
func TestSealedRefused(t *testing.T) {
	if !records.Fast() {
		t.Skip("this machine has no instructions for AES")
	}
	ca := securetest.New(t, cluster)
	sc := ca.Node(t, "server")
	sc.CheckPeers(func(i pki.Identity) error { return pki.RevokedError(i) })
	addr, _ := serve(t, New(Options{Credentials: sc, DataTLS: true, Logger: quiet()}), "127.0.0.1:0")
	c, err := New(Options{Credentials: ca.Node(t, "revoked"), Logger: quiet()}).Dial(t.Context(), addr, wire.ClassGuest)
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		_, _ = c.Write([]byte("VRV1"))
		_, err = c.Read(make([]byte, 1))
	}
	if err == nil || errors.Is(err, records.ErrForged) || !strings.Contains(err.Error(), "refused") && !strings.Contains(err.Error(), "reset") && !strings.Contains(err.Error(), "broken pipe") {
		t.Errorf("%v", err)
	}
}

// TestSealedRevoked: connections in records of a peer that is refused from now on end, those of others go on.
func TestSealedRevoked(t *testing.T) {
	if !records.Fast() {
		t.Skip("this machine has no instructions for AES")
	}
	ca := securetest.New(t, cluster)
	server := New(Options{Credentials: ca.Node(t, "server"), DataTLS: true, Logger: quiet()})
	addr, conns := serve(t, server, "127.0.0.1:0")
	g, gs := sealedEnds(t, New(Options{Credentials: ca.Node(t, "good"), Logger: quiet()}), addr, conns)
	b, bs := sealedEnds(t, New(Options{Credentials: ca.Node(t, "bad"), Logger: quiet()}), addr, conns)
	if ended := server.EndIf(func(i pki.Identity) bool { return i.Node == "bad" }); len(ended) != 1 || ended[0].Node != "bad" {
		t.Fatalf("ended %v", ended)
	}
	for _, c := range []net.Conn{b, bs} {
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("a refused peer's connection: %v", err)
		}
	}
	echo(t, g, gs, 1000)
	for _, c := range []net.Conn{g, gs, b, bs} {
		c.Close()
	}
	server.live.mu.Lock()
	defer server.live.mu.Unlock()
	if left := len(server.live.conns); left != 0 {
		t.Errorf("%d connections are remembered that are closed", left)
	}
}
