package wire

import (
	"crypto/tls"
	"fmt"
	"net"
	"syscall"

	"varve/internal/pki"
)

// PeerOf returns who is at the other end of a connection, as its network's handshake proved it. It reports false where nothing did. c may wrap the
// network's connection if it has NetConn.
func PeerOf(c net.Conn) (pki.Identity, bool) {
	for c != nil {
		if p, ok := c.(interface{ Peer() pki.Identity }); ok {
			return p.Peer(), true
		}
		c = under(c)
	}
	return pki.Identity{}, false
}

// Peer is PeerOf for the connection's own.
func (c *Conn) Peer() (pki.Identity, bool) { return PeerOf(c.nc) }

// exportSize is how much keying material ExportOf returns, in bytes.
const exportSize = 32

// ExportOf returns keying material that only the two ends of a connection know, for a label, as RFC 9266 has it. Errors say that nothing has encrypted it.
func ExportOf(c net.Conn, label string) ([]byte, error) {
	for x := c; x != nil; x = under(x) {
		if e, ok := x.(interface {
			Export(label string) ([]byte, error)
		}); ok {
			return e.Export(label)
		}
		if e, ok := x.(interface{ ConnectionState() tls.ConnectionState }); ok {
			st := e.ConnectionState()
			return st.ExportKeyingMaterial(label, nil, exportSize)
		}
	}
	return nil, fmt.Errorf("connection of type %T is not encrypted", c)
}

// Export is ExportOf for the connection's own.
func (c *Conn) Export(label string) ([]byte, error) { return ExportOf(c.nc, label) }

// OnSocket reports whether a connection's bytes can be moved by who has its socket: they are frames as they are, or the connection says that
// it can be taken over.
func OnSocket(c net.Conn) bool {
	if o, ok := c.(interface{ OnSocket() bool }); ok {
		return o.OnSocket()
	}
	_, ok := c.(syscall.Conn)
	return ok
}

// OnSocket is OnSocket for the connection's own: a Carrier may have it.
func (c *Conn) OnSocket() bool { return OnSocket(c.nc) }

// under returns what a connection wraps, nil if it does not say.
func under(c net.Conn) net.Conn {
	if w, ok := c.(interface{ NetConn() net.Conn }); ok {
		return w.NetConn()
	}
	return nil
}

// CloseIf ends the connections that f says so of.
func (s *Server) CloseIf(f func(*Conn) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if f(c) {
			c.Close()
		}
	}
}

// Keys are secrets of a connection whose frames go over a socket as they are, one for each direction: they are mixed into the checksums of headers. So a
// frame of another connection, or of somebody who sends into this one without seeing it, is not taken for one, and ends the connection. Zero: it has none.
type Keys struct{ Send, Receive uint32 }

// KeysOf returns those of a connection that its network made.
func KeysOf(c net.Conn) (k Keys) {
	for c != nil {
		if x, ok := c.(interface {
			FrameKeys() (send, receive uint32)
		}); ok {
			k.Send, k.Receive = x.FrameKeys()
			return k
		}
		c = under(c)
	}
	return k
}

// Keys returns those of the connection.
func (c *Conn) Keys() Keys { return c.keys }
