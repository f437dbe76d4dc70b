package secure

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"varve/internal/pki"
	"varve/internal/secure/securetest"
	"varve/internal/wire"
)

// TestRevokedConnectionsEnd: connections of a peer that is refused from now on end on both sides, those of others go on, and no new one is made.
func TestRevokedConnectionsEnd(t *testing.T) {
	ca := securetest.New(t, cluster)
	server := New(Options{Credentials: ca.Node(t, "server"), Logger: quiet()})
	addr, conns := serve(t, server, "127.0.0.1:0")
	good := New(Options{Credentials: ca.Node(t, "good"), Logger: quiet()})
	bad := New(Options{Credentials: ca.Node(t, "bad"), Logger: quiet()})
	for _, class := range []wire.Class{wire.ClassMeta, wire.ClassGuest} {
		g := dial(t, good, addr, class)
		gs := await(t, conns)
		b := dial(t, bad, addr, class)
		bs := await(t, conns)
		refused := func(i pki.Identity) bool { return i.Node == "bad" }
		server.o.Credentials.CheckPeers(func(i pki.Identity) error {
			if refused(i) {
				return pki.RevokedError(i)
			}
			return nil
		})
		if ended := server.EndIf(refused); len(ended) != 1 || ended[0].Node != "bad" {
			t.Fatalf("class %d: ended %v", class, ended)
		}
		for _, c := range []interface {
			Read([]byte) (int, error)
			SetReadDeadline(time.Time) error
		}{b, bs} {
			if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, errTimeout(err)) {
				t.Errorf("class %d: a refused peer's connection goes on: %v", class, err)
			}
		}
		echo(t, g, gs, 1000)
		if c, err := bad.Dial(t.Context(), addr, wire.ClassMeta); err == nil { // a client of TLS 1.3 hears of it with its first read
			_ = c.SetReadDeadline(time.Now().Add(patience))
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, errTimeout(err)) {
				t.Errorf("a refused peer connects again: %v", err)
			}
			c.Close()
		}
		g.Close()
		gs.Close()
		b.Close()
		bs.Close()
		server.o.Credentials.CheckPeers(nil)
	}
	for _, n := range []*Network{server, good, bad} {
		n.live.mu.Lock()
		if left := len(n.live.conns); left != 0 {
			t.Errorf("%d connections are remembered that are closed", left)
		}
		n.live.mu.Unlock()
	}
}

// TestRevokedConnectionsOfOtherWays: those that were dialled by a Network bound to another address, or with another way to it, are known to all.
func TestRevokedConnectionsOfOtherWays(t *testing.T) {
	ca := securetest.New(t, cluster)
	addr, conns := serve(t, New(Options{Credentials: ca.Node(t, "server"), Logger: quiet()}), "127.0.0.1:0")
	first := New(Options{Credentials: ca.Node(t, "client"), Logger: quiet()})
	bound := wire.Bound(first, func(wire.Class, netip.AddrPort) (netip.AddrPort, string) { return netip.AddrPort{}, "" }).(*Network)
	for from, by := range map[*Network]*Network{first: bound, bound: first} {
		c := dial(t, from, addr, wire.ClassMeta)
		await(t, conns)
		if ended := by.EndIf(func(i pki.Identity) bool { return i.Node == "server" }); len(ended) != 1 {
			t.Fatalf("ended %v", ended)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, errTimeout(err)) {
			t.Errorf("the connection goes on: %v", err)
		}
		c.Close()
	}
}

// errTimeout returns err if it is that of a deadline, else one that it is not.
func errTimeout(err error) error {
	var t interface{ Timeout() bool }
	if errors.As(err, &t) && t.Timeout() {
		return err
	}
	return errors.New("none")
}
