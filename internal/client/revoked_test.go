package client

import (
	"context"
	"errors"
	"testing"
	"time"

	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/secure/securetest"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/iouring/reactor"
)

// TestRevokedServer: connections to a chunk server whose certificate is revoked end, those of reactors too, and none is made again. What it held is read and
// written elsewhere.
func TestRevokedServer(t *testing.T) {
	for name, encrypted := range map[string]bool{"plain": false, "encrypted": true} {
		t.Run(name, func(t *testing.T) { revokedServer(t, encrypted) })
	}
}

func revokedServer(t *testing.T, encrypted bool) {
	ca := securetest.New(t, testCluster)
	w := newWorldOf(t, "127.0.0.1", ca, 1, 3, 3, 2)
	c := w.dial(t, func(o *Options) {
		o.Patience, o.Credentials, o.DataTLS = 20*time.Second, ca.Node(t, "client"), encrypted
	})
	f := create(t, c, "a")
	h := sit(t, c, reactor.Auto)
	write(t, f, fill(4096, 1), 0) // on goroutines' lanes, and the layout is known
	h.write(f, fill(4096, 2), 0)
	bad := id.ServerID(1)
	hot, cold := lanesTo(c, bad)
	if len(hot) == 0 || len(cold) == 0 {
		t.Fatalf("%d connections on reactors and %d others", len(hot), len(cold))
	}
	w.mu.Lock()
	serial := w.serials[bad.String()]
	w.mu.Unlock()
	if err := c.auth.Load().keeper.Trust.Learn(ca.State(2, []pki.CapabilityKey{w.signer.Key()}, serial)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the connections to the revoked server to end", func() bool {
		hot, cold := lanesTo(c, bad)
		return len(hot)+len(cold) == 0
	})
	if hot, _ := lanesTo(c, 2); len(hot) == 0 {
		t.Error("those to another server have ended too")
	}
	want := fill(8192, 3)
	write(t, f, want, 0)
	if got := read(t, f, 0, 8192); string(got) != string(want) {
		t.Error("content differs")
	}
	if hot, cold := lanesTo(c, bad); len(hot)+len(cold) != 0 {
		t.Error("the revoked server was connected to again")
	}
	if n := w.count("drop"); n == 0 {
		t.Error("its replica was not dropped")
	}
}

// TestNoMetadataServer: a node that answers where a metadata server was, with a certificate of the cluster, gets no session's trust.
func TestNoMetadataServer(t *testing.T) {
	ca := securetest.New(t, testCluster)
	w := newWorldOf(t, "127.0.0.1", ca, 1, 1, 1, 1)
	real := w.signer
	other, err := pki.NewSigner(testCluster, 1)
	if err != nil {
		t.Fatal(err)
	}
	creds := ca.Node(t, "client")
	trust, err := pki.OpenTrust(creds)
	if err == nil {
		err = trust.Learn(ca.State(1, []pki.CapabilityKey{real.Key()}))
	}
	if err != nil {
		t.Fatal(err)
	}
	for signer, want := range map[*pki.Signer]error{nil: pki.ErrGreeting, other: pki.ErrGreeting, real: nil} {
		w.mu.Lock()
		w.signer = signer
		w.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		c, _, err := wire.DialMeta(ctx, w.servers[0].addr, &msg.Hello{Cluster: testCluster[:], Role: msg.Hello_CLIENT}, nil, trust,
			wire.Options{Class: wire.ClassMeta, Network: secure.New(secure.Options{Credentials: creds, Logger: quiet()})})
		if !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
		if err == nil {
			c.Close()
		}
		cancel()
	}
	w.mu.Lock()
	w.signer = other
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	o := Options{Cluster: testCluster, Name: "test", Logger: quiet(), DialTimeout: time.Second, StartTimeout: time.Second, Addrs: []string{w.servers[0].addr}, Credentials: creds}
	if c, err := Dial(ctx, o); err == nil {
		c.Close()
		t.Error("a client has a session with a node that is no metadata server")
	}
}

// lanesTo returns the connections to a server that live, those of reactors apart.
func lanesTo(c *Client, server id.ServerID) (hot []*hotConn, others []*wire.Conn) {
	p := &c.sess.Load().servers
	p.mu.RLock()
	defer p.mu.RUnlock()
	srv := p.all[server]
	if srv == nil {
		return nil, nil
	}
	for i := range srv.hot {
		if lane := srv.hot[i].Load(); lane != nil {
			if x := lane.cur.Load(); x != nil {
				hot = append(hot, x)
			}
		}
	}
	for i := range srv.lanes {
		if x := srv.lanes[i].conn.Load(); x != nil && x.Err() == nil {
			others = append(others, x)
		}
	}
	return hot, others
}
