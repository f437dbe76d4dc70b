package secure

import (
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"varve/internal/pki"
)

// live are the connections of a Network whose handshake succeeded, either way, until they are closed.
type live struct {
	mu    sync.Mutex
	conns map[*entry]struct{}
}

// entry is one of them.
type entry struct {
	of   *live
	peer pki.Identity
	sock net.Conn
}

func (l *live) add(peer pki.Identity, sock net.Conn) *entry {
	e := &entry{l, peer, sock}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil {
		l.conns = make(map[*entry]struct{})
	}
	l.conns[e] = struct{}{}
	return e
}

// gone says that the connection is closed. It may be called again.
func (e *entry) gone() {
	if e == nil {
		return
	}
	e.of.mu.Lock()
	delete(e.of.conns, e)
	e.of.mu.Unlock()
}

// end ends a connection as if the peer had: whoever has it finds out and closes it, so that its descriptor is not used for something else while
// a reactor reads from it.
func (e *entry) end() {
	sc, ok := e.sock.(syscall.Conn)
	if !ok {
		e.sock.Close()
		return
	}
	rc, err := sc.SyscallConn()
	if err == nil {
		err = rc.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	}
	if err != nil {
		e.gone() // it is closed
	}
}

// EndIf ends the connections whose peers refused says so of, and returns who they were. Sockets that a reactor has taken over are not known any more: who did that
// ends them after EndIf, so that none is missed that is being handed over.
func (n *Network) EndIf(refused func(pki.Identity) bool) []pki.Identity {
	n.live.mu.Lock()
	var ended []*entry
	for e := range n.live.conns {
		if refused(e.peer) {
			ended = append(ended, e)
		}
	}
	n.live.mu.Unlock()
	peers := make([]pki.Identity, 0, len(ended))
	for _, e := range ended {
		e.end()
		peers = append(peers, e.peer)
	}
	return peers
}
