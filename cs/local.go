package cs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"sync"
	"time"

	"varve/cs/store"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/local"
	"varve/internal/wire"
)

const (
	// localTerm is how long the board counts without being extended: after so long nobody reads from a server that was stopped or
	// killed, and so long its successor changes nothing.
	localTerm = 500 * time.Millisecond
	// localBeat is the pause between two extensions.
	localBeat = 100 * time.Millisecond
	// localHello bounds the wait for the first packet of a connection.
	localHello = 5 * time.Second
	// maxLocals bounds the connections of local clients.
	maxLocals = local.Places
	// localMark is a file in the server's directory that is there while local readers may believe the board.
	localMark = "local.used"
)

// locals lets clients on this host read chunk files by themselves (package local). What a board says is bound to what would let
// the server itself answer a read: it counts only within the lease, a fenced session loses its place, and a chunk its slot
// before its replica changes (store.Share).
//
// Lock order: Board's locks, then mu, then localConn.mu. The board is not called with mu held.
type locals struct {
	s       *Server
	board   *local.Board // nil: local readers are not served
	quiet   int64        // on the boot-time clock: until then the board of an earlier process may count
	settled chan struct{}
	wake    chan struct{} // somebody has come

	mu       sync.Mutex
	closed   bool
	listener *net.UnixListener
	conns    map[*localConn]struct{}
}

// localConn is one local client.
type localConn struct {
	conn       *local.Conn
	session    id.SessionID
	capability *capability // nil: the cluster is insecure
	kick       chan struct{}

	mu      sync.Mutex
	granted map[uint64]struct{} // stamps that it holds
	over    []uint64            // of these, what it must be told of
}

// newLocals makes the board. The store is not open yet.
func newLocals(o *Options) *locals {
	l := &locals{settled: make(chan struct{}), wake: make(chan struct{}, 1), conns: make(map[*localConn]struct{})}
	if o.LocalChunks < 0 {
		return l
	}
	b, err := local.NewBoard(o.LocalChunks)
	if err != nil {
		o.Logger.Warn("clients on this host will read over the network", "err", err)
		return l
	}
	b.OnRevoke = l.revoked
	l.board = b
	return l
}

func (l *locals) mark() string { return filepath.Join(l.s.o.Dir, localMark) }

// open takes note of what an earlier process has left. Preconditions: the store is open, so that process is gone.
func (l *locals) open(s *Server) error {
	l.s = s
	switch _, err := s.o.FS.Stat(l.mark()); {
	case err == nil:
		l.quiet = local.Clock() + int64(localTerm)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return nil
}

// settle returns when no board of an earlier process counts any more. Nothing may be changed before.
func (l *locals) settle(ctx context.Context) {
	select {
	case <-l.settled:
	case <-ctx.Done():
	}
}

// run serves until the server ends.
func (l *locals) run(ctx context.Context) {
	if l.quiet > 0 {
		select {
		case <-time.After(time.Duration(l.quiet - local.Clock())):
		case <-ctx.Done():
			return
		}
		l.unmark()
	}
	close(l.settled)
	if l.board == nil {
		return
	}
	l.s.work.Go(func() { l.extendForever(ctx) })
	said := false
	for ctx.Err() == nil {
		ln, err := local.Listen(l.s.cluster, l.s.id, l.s.Addr())
		if err == nil && l.listen(ln) {
			err = l.accept(ln)
		}
		if err != nil && !said && ctx.Err() == nil {
			l.s.log.Warn("clients on this host read over the network, trying on", "err", err)
			said = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (l *locals) unmark() {
	if err := l.s.o.FS.Remove(l.mark()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.s.log.Warn("mark of local readers not removed: the next start waits for them", "path", l.mark(), "err", err)
	}
}

// listen makes ln the listener, unless the server has ended.
func (l *locals) listen(ln *net.UnixListener) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		ln.Close()
		return false
	}
	l.listener = ln
	return true
}

func (l *locals) accept(ln *net.UnixListener) error {
	defer ln.Close()
	refused := false
	for {
		nc, err := ln.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		conn, err := local.NewConn(nc)
		if err != nil {
			if !refused { // once: whoever is on the host can have it said
				l.s.log.Warn("local client refused", "err", err)
			}
			refused = true
			continue
		}
		c := &localConn{conn: conn, kick: make(chan struct{}, 1), granted: make(map[uint64]struct{})}
		l.mu.Lock()
		if ok := !l.closed && len(l.conns) < maxLocals; ok {
			l.conns[c] = struct{}{}
			l.s.work.Go(func() { l.serve(c) })
		} else {
			conn.Close()
		}
		l.mu.Unlock()
	}
}

// extendForever lets the board count while there are clients and the server has its lease.
func (l *locals) extendForever(ctx context.Context) {
	tick := time.NewTicker(localBeat)
	defer tick.Stop()
	for {
		var beat <-chan time.Time
		if l.count() > 0 {
			beat = tick.C
		}
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-beat:
			l.extend()
		}
	}
}

// extend is right also if the process is stopped half-way: the clock was read first.
func (l *locals) extend() {
	until := local.Clock() + int64(localTerm)
	l.board.Extend(min(until, l.s.lease.expiry.Load()))
}

func (l *locals) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

// serve answers one client until it goes.
func (l *locals) serve(c *localConn) {
	defer func() {
		c.conn.Close()
		l.s.capabilities.drop(c.capability)
		l.mu.Lock()
		delete(l.conns, c)
		l.mu.Unlock()
	}()
	place, stamp, err := l.greet(c)
	if err != nil {
		l.s.log.Debug("local client not served", "err", err)
		return
	}
	defer l.board.Leave(place, stamp)
	done := make(chan struct{})
	defer close(done)
	l.s.work.Go(func() { c.tell(done) })
	for {
		var p local.Packet
		f, err := c.conn.Receive(&p)
		if f != nil {
			f.Close()
		}
		if err != nil || p.Kind != local.Ask || l.grant(c, &p) != nil {
			return
		}
	}
}

// greet answers a hello and gives the session its place. The place is taken before fences are looked at, so that a fence that
// comes later finds it.
func (l *locals) greet(c *localConn) (place uint32, stamp uint64, err error) {
	s := l.s
	if err := c.conn.Deadline(time.Now().Add(localHello)); err != nil {
		return 0, 0, err
	}
	var p local.Packet
	f, err := c.conn.Receive(&p)
	if f != nil {
		f.Close()
	}
	if err != nil {
		return 0, 0, err
	}
	if err := c.conn.Deadline(time.Time{}); err != nil {
		return 0, 0, err
	}
	reply := local.Packet{Kind: local.Welcome, Server: s.id, Cluster: s.cluster}
	switch {
	case p.Kind != local.Hello || p.Session == 0:
		reply.Code = fserr.Protocol
	case p.Cluster != s.cluster || p.Server != s.id:
		reply.Code = fserr.WrongCluster
	case s.closing.Load() || !s.lease.held() || s.lacksTrust():
		reply.Code = fserr.Unavailable
	case s.enforces() != nil && !c.prove(s, p.Session):
		reply.Code = fserr.NoCapability // it shows one over the network first
	default:
		reply.Code = fserr.Of(l.promise())
	}
	if reply.Code == fserr.OK {
		place, stamp, err = l.board.Enter(p.Session)
		reply.Code, reply.Place, reply.Stamp = fserr.Of(err), place, stamp
	}
	if reply.Code == fserr.OK && s.fences.fences(p.Session) {
		l.board.Leave(place, stamp)
		reply.Code = fserr.Fenced
	}
	if reply.Code != fserr.OK {
		return 0, 0, errors.Join(reply.Code, c.conn.Send(&reply, -1))
	}
	c.session = p.Session
	l.extend()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	reply.Time = local.Clock()
	if err := c.conn.Send(&reply, l.board.Descriptor()); err != nil {
		l.board.Leave(place, stamp)
		return 0, 0, err
	}
	return place, stamp, nil
}

// promise leaves the mark, so that a successor of this process waits until the board cannot count any more. It need not survive the
// machine: neither do the readers.
func (l *locals) promise() error {
	f, err := l.s.o.FS.Open(l.mark(), disk.ReadWrite|disk.Create)
	if err != nil {
		return err
	}
	return f.Close()
}

// grant answers an ask, under the same conditions as a read. An error ends the connection.
func (l *locals) grant(c *localConn, p *local.Packet) error {
	reply := local.Packet{Kind: local.Granted, Chunk: p.Chunk, Epoch: p.Epoch}
	fd := -1
	sh, err := l.share(c, p)
	if err == nil {
		defer sh.File.Close()
		slot, stamp := sh.Slot.Slot()
		c.mu.Lock()
		c.granted[stamp] = struct{}{}
		c.mu.Unlock()
		if !sh.Slot.Live() { // it ended before it was noted; the client sees that on the board
			c.mu.Lock()
			delete(c.granted, stamp)
			c.mu.Unlock()
		}
		reply.Place, reply.Stamp, reply.Time, fd = slot, stamp, sh.Base, sh.File.Descriptor()
	}
	reply.Code = l.s.code(err)
	return c.conn.Send(&reply, fd)
}

func (l *locals) share(c *localConn, p *local.Packet) (sh store.Shared, err error) {
	s := l.s
	if p.Chunk.IsScratch() {
		return sh, fserr.NoChunk
	}
	if s.closing.Load() || !s.lease.enter() {
		return sh, fserr.Unavailable
	}
	defer s.lease.leave()
	if c.capability != nil && c.capability.permit(wire.Read) != fserr.OK {
		return sh, fserr.NoCapability
	}
	if !s.fences.enter(c.session) {
		return sh, fserr.Fenced
	}
	defer s.fences.leave(c.session)
	sh, err = s.store.Share(p.Chunk, p.Epoch)
	if err == nil && s.orders.anyLoose(p.Chunk, p.Epoch) {
		// What a read of the first replica makes equal on all nobody makes equal for who reads by himself.
		sh.File.Close()
		return store.Shared{}, fmt.Errorf("chunk %v: others may not have all of it: %w", p.Chunk, fserr.NotReady)
	}
	return sh, err
}

// revoked has whoever holds a stamp told of its end. It is called with locks of the store held.
func (l *locals) revoked(stamp uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		c.revoked(stamp)
	}
}

func (c *localConn) revoked(stamp uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, has := c.granted[stamp]; !has {
		return
	}
	delete(c.granted, stamp)
	c.over = append(c.over, stamp)
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// tell sends what is over, so that the client closes its descriptors: of a deleted chunk they would keep the space. A client that does not
// read is let go.
func (c *localConn) tell(done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-c.kick:
		}
		c.mu.Lock()
		over := c.over
		c.over = nil
		c.mu.Unlock()
		for _, stamp := range over {
			if c.conn.Send(&local.Packet{Kind: local.Revoked, Stamp: stamp}, -1) != nil {
				c.conn.Close()
				return
			}
		}
	}
}

// fence takes their places from sessions.
func (l *locals) fence(s id.SessionID) {
	if l != nil && l.board != nil {
		l.board.Fence(s)
	}
}

// endAll ends the connections of all clients, who come again.
func (l *locals) endAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		c.conn.Close()
	}
}

// stop ends all that is local. In order: what is on the board ends at once; else it ends with its time, as for a process that was killed.
func (l *locals) stop(orderly bool) {
	if orderly && l.board != nil {
		l.board.Stop()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.listener != nil {
		l.listener.Close()
	}
	for c := range l.conns {
		c.conn.Close()
	}
}
