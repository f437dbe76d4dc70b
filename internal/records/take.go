package records

import (
	"fmt"
	"net"
	"syscall"

	"varve/iouring/reactor"
)

// Taken is a connection that was taken from goroutines, for a loop.
type Taken struct {
	// FD is a descriptor of its own, which Adopt takes, or the caller closes.
	FD int

	pair   Pair // zero: the connection is not in records
	plain  []byte
	raw    []byte
	forged func()
}

// Take takes over a connection: a Stream, or one whose socket is used as it is. The caller closes nc afterwards, which does not end the connection, and must not
// use it otherwise.
func Take(nc net.Conn) (*Taken, error) {
	below := nc
	s, isStream := nc.(*Stream)
	if isStream {
		below = s.Conn
	}
	sc, ok := below.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("connection of type %T has no descriptor", below)
	}
	fd, err := reactor.Descriptor(sc)
	if err != nil {
		return nil, err
	}
	t := &Taken{FD: fd}
	if !isStream {
		return t, nil
	}
	p, plain, raw, err := s.detach()
	if err != nil {
		_ = syscall.Close(fd)
		return nil, err
	}
	t.pair, t.plain, t.raw, t.forged = p, append([]byte(nil), plain...), append([]byte(nil), raw...), s.forged
	return t, nil
}

// Adopt makes the connection one of the loop, as reactor.Loop.Adopt does. read is what was read of it before and is to be given to the handler first. The
// handler's callbacks get no reactor.Conn: what they call are methods of the returned Conn. It must be called once at most, on the loop's thread.
func (t *Taken) Adopt(l *reactor.Loop, h reactor.Handler, read []byte) (Conn, error) {
	if t.pair.in == nil {
		c, err := l.Adopt(t.FD, h)
		if err != nil {
			return nil, err
		}
		if len(read) > 0 {
			c.Unread(read)
		}
		return c, nil
	}
	d := &sealed{h: h, in: t.pair.in, out: t.pair.out, forged: t.forged}
	d.sending.Done = d.left
	c, err := l.Adopt(t.FD, d)
	if err != nil {
		return nil, err
	}
	d.raw = c
	d.plain = append(append([]byte(nil), read...), t.plain...)
	d.store = d.plain[:0]
	d.kick()
	if len(t.raw) > 0 {
		c.Unread(t.raw)
	}
	t.pair, t.plain, t.raw = Pair{}, nil, nil
	return d, nil
}

// hasSocket reports whether Take finds a socket.
func hasSocket(nc net.Conn) bool {
	_, ok := nc.(syscall.Conn)
	return ok
}
