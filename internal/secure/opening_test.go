package secure

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/wire"
)

// openDir is a cluster directory with credentials of a cluster that is being secured.
func openDir(t *testing.T, a *pki.Authority) string {
	t.Helper()
	dir := t.TempDir()
	key, csr, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := pki.ReadCSR(csr)
	if err != nil {
		t.Fatal(err)
	}
	chain, _, err := a.IssueNow(pub, pki.Identity{Role: pki.RoleNode, Node: "n"}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(MarkOpening(dir), pki.WriteBundle(dir, a.Bundle()), pki.WriteCredentials(dir, pki.EncodeChain(chain), key)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func openAuthority(t *testing.T) *pki.Authority {
	t.Helper()
	a, err := pki.NewAuthority(id.Cluster{1}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestOpeningDenied: an answer to a question from before the cluster was being secured does not take the credentials away that were found meanwhile; another one does.
func TestOpeningDenied(t *testing.T) {
	dir := openDir(t, openAuthority(t))
	o := NewOpening(dir, id.Cluster{1}, quiet())
	there := func() bool { return pki.Secured(dir) && pki.Has(dir, pki.RoleNode) && IsOpening(dir) }
	if o.Look() == nil || o.Stage() != Both {
		t.Fatal("credentials were not found")
	}
	if stage, changed := o.Told(false, false, false); changed || stage != Both || !there() {
		t.Errorf("after a late answer: stage %v, credentials are there: %v", o.Stage(), there())
	}
	o.Told(true, true, true)
	if _, changed := o.Told(false, false, false); changed || !there() {
		t.Error("answers that are not one after another")
	}
	if stage, changed := o.Told(false, false, false); !changed || stage != Plain || there() || o.Credentials() != nil {
		t.Errorf("given up: stage %v, credentials are there: %v", o.Stage(), there())
	}
	if _, err := os.Stat(filepath.Join(dir, pki.BundleFile+asidePath)); err != nil {
		t.Error(err)
	}
}

// TestOpeningRests: who speaks plain for a while finds its credentials again, and they are left alone.
func TestOpeningRests(t *testing.T) {
	o := NewOpening(openDir(t, openAuthority(t)), id.Cluster{1}, quiet())
	for range 2 {
		if o.Look() == nil || o.Stage() != Both {
			t.Fatal("credentials were not found")
		}
		if !o.Rest() || o.Stage() != Plain || o.Credentials() != nil {
			t.Error("it does not rest")
		}
	}
	o.Look()
	o.Close()
	if o.Rest() || o.Stage() != Closed {
		t.Error("a secured process went back to plain connections")
	}
	if _, changed := o.GiveUp(); changed || o.Stage() != Closed || !pki.Secured(o.Dir()) {
		t.Error("a secured process gave up its credentials")
	}
}

// TestOpeningEndsPlain: when only certificates count, connections without them end, also those that this process made: whoever is at the other end, who may have taken
// somebody's place meanwhile, is not spoken to any more.
func TestOpeningEndsPlain(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peers := make(chan net.Conn, 8)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(peers)
				return
			}
			peers <- c
		}
	}()
	defer func() {
		l.Close()
		for c := range peers {
			c.Close()
		}
	}()
	o := NewOpening(openDir(t, openAuthority(t)), id.Cluster{1}, quiet())
	n := New(Options{Opening: o, Logger: quiet()})
	c := dial(t, n, l.Addr().String(), wire.ClassGuest) // plain, as in a cluster without security
	if _, ok := wire.PeerOf(c); ok {
		t.Fatal("there is a certificate")
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	o.Look()
	o.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection is still there: %v", err)
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("something is still sent to who has shown no certificate")
	}
	if n := len(o.plain.conns); n != 1 { // until its owner closes it
		t.Errorf("%d connections", n)
	}
	c.Close()
	if n := len(o.plain.conns); n != 0 {
		t.Errorf("%d connections are kept", n)
	}
	if o.take(c) != nil {
		t.Error("a connection without a certificate is taken in")
	}
}
