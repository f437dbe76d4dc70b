package cs

import (
	"strings"
	"testing"

	"varve/internal/fserr"
	"varve/internal/planes"
	"varve/internal/wire"
)

// TestPlanes: a server listens where its planes are, tells the leader, keeps that in its identity, and forwards by its plane.
func TestPlanes(t *testing.T) {
	f := newFakeLeader(t)
	a := newDiskServer(t, f, func(o *Options) { o.Net = "replication=127.0.0.2,repair=127.0.0.3" })
	book := a.Book()
	f.mu.Lock()
	told := f.addrs[uint32(a.ID())]
	f.mu.Unlock()
	if told != string(book) || !strings.HasPrefix(book.Addr(planes.Replication), "127.0.0.2:") || !strings.HasPrefix(book.Addr(planes.Repair), "127.0.0.3:") {
		t.Fatalf("the leader was told %q, want %q with both planes", told, book)
	}
	if book.Addr(planes.Client) != a.Addr() || !strings.HasPrefix(a.Addr(), "127.0.0.1:") {
		t.Errorf("clients reach it at %s, %s", book.Addr(planes.Client), a.Addr())
	}
	for _, addr := range book.Addrs() {
		conn, err := wire.TCP{}.Dial(t.Context(), addr, wire.ClassGuest)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	b := newDiskServer(t, f, nil)
	f.create(7, 1, a, b)
	c := dial(t, b, 6)
	wait(t, "the address for replication", func() bool {
		b.peers.mu.Lock()
		defer b.peers.mu.Unlock()
		return b.peers.addrs[a.ID()] == peerAddr{replication: book.Addr(planes.Replication), repair: book.Addr(planes.Repair)}
	})
	code, _ := c.ordered(7, 1, 0, pattern(1, block), a.ID())
	c.want(code, fserr.OK, "forwarded write")

	a.shutdown(t)
	a.o.Net = ""
	a.start(t)
	if got := a.Book(); !strings.HasPrefix(got.Addr(planes.Replication), "127.0.0.2:") {
		t.Errorf("started again it is at %q", got)
	}
	a.shutdown(t)
	a.o.Net = "none"
	a.start(t)
	if got := a.Book(); !got.Single() {
		t.Errorf("without planes it is at %q", got)
	}
	bad := testOptions(f)
	bad.Dir, bad.Net = t.TempDir(), "repair=192.0.2.77"
	if _, err := Init(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "is not one of this host, which has 127.0.0.1") {
		t.Errorf("an address of another host: %v", err)
	}
}
