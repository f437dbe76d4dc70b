package secure

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"syscall"

	"varve/internal/pki"
	"varve/internal/wire"
)

// frameKeys makes keys of 8 bytes that only the two ends know.
func frameKeys(b []byte, client bool) wire.Keys {
	k := wire.Keys{Send: binary.LittleEndian.Uint32(b), Receive: binary.LittleEndian.Uint32(b[4:])}
	if !client {
		k.Send, k.Receive = k.Receive, k.Send
	}
	return k
}

// recordConn is the socket under a handshake. It never reads beyond the TLS record that is being read, so that what follows the handshake is still there
// when it is over, nor more than left bytes in all.
type recordConn struct {
	net.Conn
	left   int
	head   [recordHeader]byte
	have   int // bytes of head
	body   int // bytes to come of the record
	over   bool
	admit  func() // see Admitted
	pushed []byte // to be read first, after the handshake
}

const (
	recordHeader  = 5
	maxRecord     = 16384 + 256
	recordAlert   = 21
	recordData    = 23
	recordVersion = 3
)

// errPlain says that the peer speaks without TLS.
var errPlain = errors.New("without TLS, which this cluster asks for")

var errTooMuch = errors.New("handshake of more bytes than it may have")

// free lets everything through from now on: the connection stays TLS.
func (r *recordConn) free() { r.over = true }

// Admitted is called by who serves a machine that joins, when the connection has become one of those that he bounds: it gives room to others that want to
// join, which cannot end it any more.
func (r *recordConn) Admitted() {
	if r.admit != nil {
		r.admit()
	}
}

// Read implements net.Conn.
func (r *recordConn) Read(b []byte) (int, error) {
	switch {
	case len(r.pushed) > 0:
		n := copy(b, r.pushed)
		r.pushed = r.pushed[n:]
		return n, nil
	case r.over:
		return r.Conn.Read(b)
	case len(b) == 0:
		return 0, nil
	case r.left <= 0:
		return 0, errTooMuch
	case r.body > 0:
		n, err := r.Conn.Read(b[:min(len(b), r.body, r.left)])
		r.body -= n
		r.left -= n
		return n, err
	}
	n, err := r.Conn.Read(b[:min(len(b), recordHeader-r.have, r.left)])
	copy(r.head[r.have:], b[:n])
	r.left -= n
	if r.have += n; r.have == recordHeader {
		r.have, r.body = 0, int(binary.BigEndian.Uint16(r.head[3:]))
		if wire.IsPlain(r.head[:]) {
			return n, errPlain
		}
		if r.body > maxRecord {
			return n, fmt.Errorf("TLS record of %d bytes, limit %d", r.body, maxRecord)
		}
	}
	return n, err
}

// tlsConn is a connection that stays encrypted. Its socket is not to be read or written around it, so it is no syscall.Conn.
type tlsConn struct {
	*tls.Conn
	peer  pki.Identity
	entry *entry
}

// Read implements net.Conn. In TLS 1.3 who connected hears with his first read that his certificate was refused.
func (c *tlsConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if op := (*net.OpError)(nil); err != nil && errors.As(err, &op) && op.Op == "remote error" {
		err = refused(err)
	}
	return n, err
}

// Close implements net.Conn.
func (c *tlsConn) Close() error {
	c.entry.gone()
	return c.Conn.Close()
}

// Peer returns who is at the other end.
func (c *tlsConn) Peer() pki.Identity { return c.peer }

// NetConn returns the socket, to be marked.
func (c *tlsConn) NetConn() net.Conn { return c.Conn.NetConn().(*recordConn).Conn }

// plain is what is known of a connection that goes on in plain frames.
type plain struct {
	peer  pki.Identity
	keys  wire.Keys
	first *firstRead // of who connected, until something was read
	entry *entry
}

// Peer returns who is at the other end.
func (p *plain) Peer() pki.Identity { return p.peer }

// FrameKeys returns what is mixed into the frames' headers.
func (p *plain) FrameKeys() (send, receive uint32) { return p.keys.Send, p.keys.Receive }

// on returns the connection on a socket.
func (p plain) on(nc net.Conn) net.Conn {
	if tcp, ok := nc.(*net.TCPConn); ok {
		return &plainTCP{tcp, p}
	}
	return &plainConn{nc, p}
}

// plainTCP is a plain connection on a socket.
type plainTCP struct {
	*net.TCPConn // with writev, and the descriptor for reactors
	plain
}

// Read implements net.Conn.
func (c *plainTCP) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	if c.first != nil {
		return c.look(b, n, err)
	}
	return n, err
}

// Close implements net.Conn.
func (c *plainTCP) Close() error {
	c.entry.gone()
	return c.TCPConn.Close()
}

// plainConn is a plain connection on something else, as tests have it.
type plainConn struct {
	net.Conn
	plain
}

// Read implements net.Conn.
func (c *plainConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.first != nil {
		return c.look(b, n, err)
	}
	return n, err
}

// Close implements net.Conn.
func (c *plainConn) Close() error {
	c.entry.gone()
	return c.Conn.Close()
}

// SyscallConn implements syscall.Conn where there is a socket.
func (c *plainConn) SyscallConn() (syscall.RawConn, error) {
	if sc, ok := c.Conn.(syscall.Conn); ok {
		return sc.SyscallConn()
	}
	return nil, syscall.ENOTSOCK
}

var (
	_ net.Conn     = (*plainTCP)(nil)
	_ syscall.Conn = (*plainTCP)(nil)
	_ syscall.Conn = (*plainConn)(nil)
)

// firstRead looks at what comes first after the handshake of who connected. In TLS 1.3 the other end looks at our certificate after our handshake is
// over, so what comes may be the alert that says that it was refused.
type firstRead struct {
	tc *tls.Conn
	rc *recordConn
}

func (p *plain) look(b []byte, n int, err error) (int, error) {
	f := p.first
	if n == 0 {
		return n, err
	}
	p.first = nil
	if b[0] != recordAlert && b[0] != recordData { // frames begin otherwise
		return n, err
	}
	f.rc.pushed = append([]byte(nil), b[:n]...)
	f.rc.free()
	var one [1]byte
	if _, err = f.tc.Read(one[:]); err == nil {
		err = errors.New("encrypted data on a plain connection")
	}
	return 0, refused(err)
}
