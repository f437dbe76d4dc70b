package cs

import (
	"context"
	"net"
	"testing"
	"time"

	"varve/internal/pki"
	"varve/internal/records"
	"varve/internal/secure"
	"varve/internal/secure/securetest"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// hasNoted is whether a server has heard what is to be with data, and is done with all that follows from it.
func (s *testServer) hasNoted(what uint32) func() bool {
	return func() bool { return s.encrypt.Load() == what && s.whoami().DataTLS == (what == encryptOn) }
}

// TestDataTLSBeforeTheLeader: a server that has not heard from the leader yet does not know that data is to be encrypted. What came to it before it heard so does
// not go on in the clear; and the next process knows from the start.
func TestDataTLSBeforeTheLeader(t *testing.T) {
	if !records.Fast() {
		t.Skip("this machine has no instructions for AES")
	}
	ca := securetest.New(t, testCluster)
	f := newFakeLeaderOf(t, ca)
	s := newDiskServer(t, f, nil)
	n := &keeps{Network: secure.New(secure.Options{Credentials: ca.Node(t, "n1"), Logger: quiet()})}
	lane := uint32(0)
	// connect is a client's connection, and whether what goes over it is encrypted.
	connect := func() (*wire.Conn, bool) {
		t.Helper()
		lane++
		if err := s.auth.Load().trust.Learn(ca.State(1, []pki.CapabilityKey{f.signer.Key()})); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		hello := &msg.Hello{Cluster: testCluster[:], Role: msg.Hello_CLIENT, Session: 9, Lane: lane, Capability: token(f.signer, 9, "n1", pki.Read|pki.Write, time.Hour)}
		c, _, err := wire.Dial(ctx, s.Addr(), hello, nil, wire.Options{Class: wire.ClassGuest, Network: n})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_, sealed := n.last.(*records.Stream)
		return c, sealed
	}
	again := func() {
		t.Helper()
		s.shutdown(t)
		f.set(func() { f.silent = true })
		s.start(t)
	}
	first, sealed := connect()
	if sealed {
		t.Fatal("data is encrypted though nobody wants it")
	}
	f.set(func() { f.dataTLS = true })
	wait(t, "the server to hear of it", s.hasNoted(encryptOn))
	if c, sealed := connect(); !sealed {
		t.Error("data of a connection that was made since is not encrypted")
	} else {
		c.Close()
	}
	if first.Err() != nil {
		t.Errorf("a connection from before has ended: %v", first.Err())
	}

	again()
	if _, sealed := connect(); !sealed {
		t.Error("after a restart data is not encrypted before the leader was heard again")
	}
	f.set(func() { f.silent, f.dataTLS = false, false })
	wait(t, "the server to hear that it is off", s.hasNoted(encryptOff))

	again()
	c, sealed := connect()
	if sealed {
		t.Error("data is encrypted though that is off")
	}
	f.set(func() { f.silent, f.dataTLS = false, true }) // set while the server was down, as far as it can tell
	select {
	case <-c.Done():
	case <-time.After(testTimeout):
		t.Fatal("a connection from before the leader was heard goes on in the clear")
	}
	if _, sealed := connect(); !sealed {
		t.Error("data is not encrypted when it came back")
	}
	if s.whoami().DataTLS != true {
		t.Error("it is not noted")
	}
}

// TestDataTLSLateHello: who finished his handshake before data was to be encrypted, and says hello after, comes again.
func TestDataTLSLateHello(t *testing.T) {
	if !records.Fast() {
		t.Skip("this machine has no instructions for AES")
	}
	ca := securetest.New(t, testCluster)
	f := newFakeLeaderOf(t, ca)
	s := newTestServer(t, f)
	n := secure.New(secure.Options{Credentials: ca.Credentials(t, pki.RoleAdmin, "n1"), Logger: quiet()})
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	dial := func() (early func() error) {
		t.Helper()
		nc, err := n.Dial(ctx, s.Addr(), wire.ClassGuest)
		if err != nil {
			t.Fatal(err)
		}
		return func() error {
			kept := &ready{Network: n, nc: nc}
			c, _, err := wire.Dial(ctx, s.Addr(), &msg.Hello{Cluster: testCluster[:], Role: msg.Hello_ADMIN}, nil, wire.Options{Class: wire.ClassGuest, Network: kept})
			if err == nil {
				c.Close()
			}
			return err
		}
	}
	if err := dial()(); err != nil {
		t.Fatal(err)
	}
	hello := dial()
	f.set(func() { f.dataTLS = true })
	wait(t, "the server to hear of it", s.hasNoted(encryptOn))
	if err := hello(); err == nil {
		t.Error("a connection that was made before goes on in the clear")
	}
	if err := dial()(); err != nil {
		t.Errorf("the next one: %v", err)
	}
}

// ready is a network that has connected already.
type ready struct {
	wire.Network
	nc net.Conn
}

// Dial implements wire.Network.
func (r *ready) Dial(context.Context, string, wire.Class) (net.Conn, error) { return r.nc, nil }
