package cs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/records"
	"varve/internal/secure"
	"varve/internal/secure/securetest"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// sealedServer is a chunk server on a real disk, whose data connections are encrypted.
func sealedServer(t *testing.T) (s *testServer, cut *cutter, revoke func(), dial func(lane uint32) (*client, *records.Stream)) {
	t.Helper()
	if !records.Fast() {
		t.Skip("this machine has no instructions for AES")
	}
	ca := securetest.New(t, testCluster)
	f := newFakeLeaderOf(t, ca)
	signer := f.signer
	s = newDiskServer(t, f, func(o *Options) { o.DataTLS = true })
	keys := []pki.CapabilityKey{signer.Key()}
	if err := s.auth.Load().trust.Learn(ca.State(1, keys)); err != nil {
		t.Fatal(err)
	}
	f.create(7, 1, s)
	capability := token(signer, 9, "n1", pki.Read|pki.Write, time.Hour)
	creds := ca.Node(t, "n1")
	cut = new(cutter)
	n := secure.New(secure.Options{Credentials: creds, Logger: quiet(), Under: cut})
	revoke = func() {
		if err := s.auth.Load().trust.Learn(ca.State(2, keys, creds.Identity().Serial)); err != nil {
			t.Fatal(err)
		}
	}
	return s, cut, revoke, func(lane uint32) (*client, *records.Stream) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		kept := &keeps{Network: n}
		hello := &msg.Hello{Cluster: testCluster[:], Role: msg.Hello_CLIENT, Session: 9, Lane: lane, Capability: capability}
		c, _, err := wire.Dial(ctx, s.Addr(), hello, nil, wire.Options{Class: wire.ClassGuest, Network: kept})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		stream, is := kept.last.(*records.Stream)
		if !is {
			t.Fatalf("the connection is a %T", kept.last)
		}
		return &client{t: t, c: c, session: 9}, stream
	}
}

// keeps is a network that keeps the connection that it made last.
type keeps struct {
	wire.Network
	last net.Conn
}

// Dial implements wire.Network.
func (k *keeps) Dial(ctx context.Context, addr string, class wire.Class) (c net.Conn, err error) {
	c, err = k.Network.Dial(ctx, addr, class)
	k.last = c
	return c, err
}

// cutter makes connections that can be cut after so many bytes.
type cutter struct {
	wire.TCP
	last *cutConn
}

// Dial implements wire.Network.
func (c *cutter) Dial(ctx context.Context, addr string, class wire.Class) (net.Conn, error) {
	nc, err := c.TCP.Dial(ctx, addr, class)
	if err != nil {
		return nil, err
	}
	c.last = &cutConn{Conn: nc}
	return c.last, nil
}

// limit has the last connection end after n more bytes were written.
func (c *cutter) limit(n int) { c.last.left.Store(int64(n) + 1) }

type cutConn struct {
	net.Conn
	left atomic.Int64 // and one; 0: no limit
}

// Write implements net.Conn.
func (c *cutConn) Write(b []byte) (int, error) {
	left := c.left.Load()
	if left == 0 {
		return c.Conn.Write(b)
	}
	n, err := c.Conn.Write(b[:min(len(b), int(left)-1)])
	if err == nil && n < len(b) {
		err = c.Conn.(*net.TCPConn).CloseWrite()
		return n, errors.Join(io.ErrShortWrite, err)
	}
	c.left.Store(left - int64(n))
	return n, err
}

// TestDataSealed: reads and writes of all sizes over encrypted connections, by the reactors where there are any.
func TestDataSealed(t *testing.T) {
	s, _, _, dial := sealedServer(t)
	const clients, part = 3, 300 * block
	var wg sync.WaitGroup
	for i := range clients {
		c, _ := dial(uint32(i))
		wg.Go(func() {
			r := rand.New(rand.NewPCG(5, uint64(i)))
			model, base := make([]byte, part), uint32(i*part)
			for step := range 20 {
				n := []int{block, block, 3*block + 17, 16 * block, 65536 + block, 256 * block}[r.IntN(6)]
				off := r.IntN((part-n)/block) * block
				if r.IntN(2) == 0 {
					p := pattern(uint64(step*clients+i), n)
					c.want(c.write(7, 1, base+uint32(off), p), fserr.OK, "write of %d", n)
					copy(model[off:], p)
					continue
				}
				n = (n + block - 1) / block * block
				code, p := c.read(7, 1, base+uint32(off), uint32(min(n, part-off)))
				c.want(code, fserr.OK, "read of %d", n)
				if !bytes.Equal(p, model[off:][:len(p)]) {
					t.Errorf("client %d, step %d: what was read differs", i, step)
				}
			}
		})
	}
	wg.Wait()
	if s.reactors != nil && s.onDisk(t) == 0 {
		t.Error("the reactors have done nothing by themselves")
	}
	if n := s.Stats().Forged; n != 0 {
		t.Errorf("%d connections had wrong records", n)
	}
}

// TestDataSealedForged: bytes that somebody else sends into an encrypted connection end it, change nothing, and are counted; others go on.
func TestDataSealedForged(t *testing.T) {
	s, _, _, dial := sealedServer(t)
	other, _ := dial(100)
	p := pattern(1, block)
	other.want(other.write(7, 1, 0, p), fserr.OK, "write")
	evil := pattern(2, block)
	frame := requestBytes(wire.Write, 1, id.SessionID(9), writeRequest(7, 0, evil), evil)
	for i, forged := range [][]byte{frame, append([]byte{1, byte(len(frame)), byte(len(frame) >> 8), 0}, append(frame, make([]byte, 16)...)...), make([]byte, 100)} {
		c, stream := dial(uint32(i))
		c.want(c.write(7, 1, 64*block, p), fserr.OK, "write")
		if _, err := stream.NetConn().Write(forged); err != nil {
			t.Fatal(err)
		}
		select {
		case <-c.c.Done():
		case <-time.After(testTimeout):
			t.Fatalf("forgery %d: the connection goes on", i)
		}
		if n := s.Stats().Forged; n != uint64(i+1) {
			t.Errorf("forgery %d: %d were counted", i, n)
		}
	}
	code, got := other.read(7, 1, 0, block)
	other.want(code, fserr.OK, "read")
	if !bytes.Equal(got, p) {
		t.Error("a forged write was done")
	}
	wait(t, "requests of lost connections to end", func() bool { return s.payload.used() == 0 })
}

// TestDataSealedCut: encrypted connections end anywhere in what they send; nothing is left behind.
func TestDataSealedCut(t *testing.T) {
	s, cut, _, dial := sealedServer(t)
	p := pattern(3, 40*block)
	for i, keep := range []int{1, 3, 4, 30, 200, 4 << 10, 70 << 10, 150 << 10} {
		c, stream := dial(uint32(i))
		cut.limit(keep)
		_, _ = stream.Write(requestBytes(wire.Write, 1, id.SessionID(9), writeRequest(7, 0, p), p))
		select {
		case <-c.c.Done():
		case <-time.After(testTimeout):
			t.Fatalf("after %d bytes the connection goes on", keep)
		}
	}
	wait(t, "requests of lost connections to end", func() bool { return s.payload.used() == 0 })
	if n := s.Stats().Forged; n != 0 {
		t.Errorf("%d connections that were cut are taken for forged", n)
	}
}

// TestDataSealedRevoked: the connections of a node whose certificate is revoked end.
func TestDataSealedRevoked(t *testing.T) {
	_, _, revoke, dial := sealedServer(t)
	c, _ := dial(1)
	c.want(c.write(7, 1, 0, pattern(1, block)), fserr.OK, "write")
	revoke()
	select {
	case <-c.c.Done():
	case <-time.After(testTimeout):
		t.Fatal("the connection of a revoked node goes on")
	}
}
