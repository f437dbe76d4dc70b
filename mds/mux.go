package mds

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/wire"
)

// Raft connections begin with raftMagic, or appendMagic, the cluster's UUID and, if there is a cluster key, a proof that they have it, which is answered with another; all others
// with wire.Preface.
const raftMagic = "VRFT"

const muxTimeout = 5 * time.Second // for a connection's first bytes

// mux gives each connection of one port to Raft or to the frame server by its first four bytes.
type mux struct {
	l       net.Listener
	cluster id.Cluster
	keys    *keyHolder // nil: the cluster has no security
	log     *slog.Logger
	raft    *chanListener
	appends *chanListener
	wire    *chanListener
	slots   chan struct{}
	wg      sync.WaitGroup
	refused pki.Refusals

	mu      sync.Mutex
	peeking map[net.Conn]struct{}
	closed  bool
}

func newMux(l net.Listener, cluster id.Cluster, log *slog.Logger) *mux {
	return &mux{
		l: l, cluster: cluster, log: log, slots: make(chan struct{}, maxMuxPeeking),
		raft: newChanListener(l.Addr()), appends: newChanListener(l.Addr()), wire: newChanListener(l.Addr()), peeking: make(map[net.Conn]struct{}),
	}
}

// run accepts until close.
func (m *mux) run() error {
	for {
		m.slots <- struct{}{}
		c, err := m.l.Accept()
		if err != nil {
			<-m.slots
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if wire.Passes(err) {
				m.log.Warn("accept failed, going on", "err", err)
				time.Sleep(50 * time.Millisecond)
				continue
			}
			return err
		}
		if !m.track(c) {
			<-m.slots
			c.Close()
			continue
		}
		go m.sort(c)
	}
}

func (m *mux) track(c net.Conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.peeking[c] = struct{}{}
	m.wg.Add(1)
	return true
}

func (m *mux) sort(c net.Conn) {
	defer m.wg.Done()
	defer func() { <-m.slots }()
	to, wrapped, err := m.peek(c)
	m.mu.Lock()
	delete(m.peeking, c)
	m.mu.Unlock()
	if err != nil {
		if !errors.Is(err, io.EOF) {
			level := slog.LevelDebug
			if errors.Is(err, fserr.Denied) {
				level = slog.LevelWarn
			}
			m.refused.Log(m.log, level, "connection refused", c.RemoteAddr().String(), "err", err)
		}
		c.Close()
		return
	}
	to.give(wrapped)
}

var errPreface = errors.New("unknown protocol or another cluster")

func (m *mux) peek(c net.Conn) (*chanListener, net.Conn, error) {
	if err := c.SetDeadline(time.Now().Add(muxTimeout)); err != nil {
		return nil, nil, err
	}
	var first [4]byte
	if _, err := io.ReadFull(c, first[:]); err != nil {
		return nil, nil, err
	}
	if first == wire.Preface() {
		return m.wire, &peekedConn{Conn: c, head: first[:]}, c.SetDeadline(time.Time{})
	}
	if who, ok := wire.PeerOf(c); ok && who.Role != pki.RoleNode {
		return nil, nil, fmt.Errorf("%v wants to speak as a metadata server: %w", who, fserr.Denied)
	}
	to, class := m.raft, wire.ClassHeartbeat
	switch string(first[:]) {
	case raftMagic:
	case appendMagic:
		to, class = m.appends, wire.ClassMeta
	default:
		return nil, nil, errPreface
	}
	var cluster id.Cluster
	if _, err := io.ReadFull(c, cluster[:]); err != nil {
		return nil, nil, err
	}
	if cluster != m.cluster {
		return nil, nil, errPreface
	}
	if err := readProof(m.keys.of(c), c, proofRaft); err != nil {
		return nil, nil, err
	}
	own, err := proof(m.keys.of(c), c, proofServes)
	if err == nil && own != nil {
		_, err = c.Write(own)
	}
	if err != nil {
		return nil, nil, err
	}
	wire.Mark(c, class)
	return to, c, c.SetDeadline(time.Time{})
}

// close ends the listener and what hangs on it.
func (m *mux) close() {
	m.l.Close()
	m.mu.Lock()
	m.closed = true
	for c := range m.peeking {
		c.Close()
	}
	m.mu.Unlock()
	m.raft.Close()
	m.appends.Close()
	m.wire.Close()
	m.wg.Wait()
}

// peekedConn gives back the bytes that were read from it before its owner was known.
type peekedConn struct {
	net.Conn
	head []byte
}

// NetConn lets the socket be marked, and its peer be known; what was peeked at is not to be read around.
func (p *peekedConn) NetConn() net.Conn { return p.Conn }

func (p *peekedConn) Read(b []byte) (int, error) {
	if len(p.head) > 0 {
		n := copy(b, p.head)
		p.head = p.head[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// chanListener is a listener whose connections come from the mux.
type chanListener struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newChanListener(addr net.Addr) *chanListener {
	return &chanListener{addr: addr, conns: make(chan net.Conn, maxMuxBacklog), done: make(chan struct{})}
}

func (l *chanListener) give(c net.Conn) {
	select {
	case <-l.done:
		c.Close()
		return
	default:
	}
	select {
	case l.conns <- c:
		select {
		case <-l.done: // Close may have looked before it was there
			l.drain()
		default:
		}
	case <-l.done:
		c.Close()
	}
}

// Accept implements net.Listener.
func (l *chanListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *chanListener) Close() error {
	l.once.Do(func() { close(l.done) })
	l.drain()
	return nil
}

func (l *chanListener) drain() {
	for {
		select {
		case c := <-l.conns:
			c.Close()
		default:
			return
		}
	}
}

// Addr implements net.Listener.
func (l *chanListener) Addr() net.Addr { return l.addr }
