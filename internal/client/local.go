package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/local"
)

const (
	// maxGrants bounds the chunk files that are open of one chunk server.
	maxGrants = 1024
	// maxAsks bounds the asks that wait to be sent to one.
	maxAsks = 64
	// askAgain is the pause after which a chunk that was refused is asked for again.
	askAgain = 5 * time.Second
	// askLater is the pause if the server's store does not pass files on at all.
	askLater = time.Minute
	// dialAgain is the pause after which a server without a socket here is tried again: one whose address is of this host, or another.
	dialAgain      = time.Second
	dialAgainAfar  = time.Minute
	handshakeLimit = 2 * time.Second
)

// bypass is the way around the network to one chunk server on this host. A read never waits for it: what it cannot do at once is
// read in the ordinary way, and asked for meanwhile.
type bypass struct {
	srv  *server
	conn *local.Conn
	seat local.Seat
	asks chan wish
	done chan struct{} // closed when it is over
	end  sync.Once

	stuck atomic.Int32 // reads given up that the disk has not answered yet

	mu     sync.RWMutex
	grants map[id.ChunkID]*grant
}

type wish struct {
	chunk id.ChunkID
	epoch id.Epoch
}

// grant is what is known of a chunk: its file, or that it was asked for and when it may be asked for again. Immutable but for used.
type grant struct {
	epoch id.Epoch
	*local.Grant
	notBefore int64       // ns of time.Now
	used      atomic.Bool // since room was last made
}

// seek starts looking for the server's socket on this host, unless that was done a moment ago.
func (srv *server) seek() {
	if srv.s.c.o.NoLocal {
		return
	}
	now := time.Now().UnixNano()
	next := srv.seekAt.Load()
	pause := dialAgain
	if !srv.near.Load() {
		pause = dialAgainAfar
	}
	if now < next || !srv.seekAt.CompareAndSwap(next, now+int64(pause)) || !srv.seeking.CompareAndSwap(false, true) {
		return
	}
	if !srv.s.c.background(srv.dialLocal) {
		srv.seeking.Store(false)
	}
}

// dialLocal makes a bypass, and ends when it is over.
func (srv *server) dialLocal() {
	defer srv.seeking.Store(false)
	l, err := srv.newBypass()
	if err != nil {
		if fserr.Of(err) != fserr.Unavailable { // it will say the same again
			srv.seekAt.Store(time.Now().Add(dialAgainAfar).UnixNano())
			if !srv.refused.Swap(true) {
				srv.s.c.log.Warn("reading over the network from a server on this host", "cs", srv.id, "err", err)
			}
		}
		return
	}
	srv.refused.Store(false)
	srv.bypass.Store(l)
	srv.local.Store(true)
	srv.s.c.log.Info("reading from a server on this host without the network", "cs", srv.id)
	stop := context.AfterFunc(srv.s.ctx, l.close)
	defer stop()
	srv.s.c.background(l.sendAsks)
	l.receive()
	l.close()
	srv.bypass.CompareAndSwap(l, nil)
	srv.local.Store(srv.near.Load())
	l.drop()
}

func (srv *server) newBypass() (*bypass, error) {
	addr := srv.addr.Load()
	if addr == nil {
		return nil, fserr.Unavailable
	}
	s := srv.s
	conn, err := local.Dial(s.c.o.Cluster, srv.id, *addr)
	if err != nil {
		return nil, err
	}
	if s.token() != nil { // shown over the network first: on this host there is no certificate to go with it
		if _, err := srv.conn(0); err != nil {
			return nil, errors.Join(fmt.Errorf("%w: %w", fserr.Unavailable, err), conn.Close())
		}
	}
	seat, err := sitDown(conn, s, srv.id)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &bypass{srv: srv, conn: conn, seat: seat, asks: make(chan wish, maxAsks), done: make(chan struct{}), grants: make(map[id.ChunkID]*grant)}, nil
}

// sitDown says hello and maps the board. The server's clock must be ours: its reading lies between two of ours.
func sitDown(conn *local.Conn, s *session, server id.ServerID) (seat local.Seat, err error) {
	before := local.Clock()
	hello := local.Packet{Kind: local.Hello, Cluster: s.c.o.Cluster, Server: server, Session: s.id}
	if err := errors.Join(conn.Deadline(time.Now().Add(handshakeLimit)), conn.Send(&hello, -1)); err != nil {
		return seat, err
	}
	var p local.Packet
	board, err := conn.Receive(&p)
	if err != nil {
		return seat, err
	}
	after := local.Clock()
	if board == nil || p.Kind != local.Welcome || p.Code != fserr.OK {
		if board != nil {
			board.Close()
		}
		if p.Code == fserr.OK {
			p.Code = fserr.Protocol
		}
		return seat, p.Code
	}
	seat = local.Seat{Place: p.Place, Stamp: p.Stamp}
	if seat.View, err = local.Map(board); err != nil {
		return seat, err
	}
	if p.Time < before || p.Time > after {
		return seat, fmt.Errorf("boot-time clock of the server reads %d, ours %d to %d: %w", p.Time, before, after, fserr.NotSupported)
	}
	return seat, errors.Join(seat.Check(0), conn.Deadline(time.Time{}))
}

// close ends the bypass. What reads with its grants goes on.
func (l *bypass) close() {
	l.end.Do(func() {
		close(l.done)
		l.conn.Close()
	})
}

// drop closes all files.
func (l *bypass) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c, g := range l.grants {
		g.close()
		delete(l.grants, c)
	}
}

func (g *grant) close() {
	if g.Grant != nil {
		g.Grant.Close()
	}
}

// sendAsks sends asks until the bypass is over.
func (l *bypass) sendAsks() {
	for {
		select {
		case <-l.done:
			return
		case a := <-l.asks:
			if l.conn.Send(&local.Packet{Kind: local.Ask, Chunk: a.chunk, Epoch: a.epoch}, -1) != nil {
				l.close()
				return
			}
		}
	}
}

// receive takes what the server sends until the bypass is over.
func (l *bypass) receive() {
	for {
		var p local.Packet
		f, err := l.conn.Receive(&p)
		if err != nil {
			return
		}
		if f != nil && (p.Kind != local.Granted || p.Code != fserr.OK) {
			f.Close()
		}
		switch p.Kind {
		case local.Granted:
			pause := askAgain
			if p.Code == fserr.NotSupported {
				pause = askLater
			}
			g := &grant{epoch: p.Epoch, notBefore: time.Now().Add(pause).UnixNano()}
			if p.Code == fserr.OK && f != nil {
				if g.Grant, err = local.NewGrant(l.seat, p.Place, p.Stamp, f, p.Time); err != nil {
					g.Grant = nil // it is over already
					if errors.Is(err, local.ErrRevoked) {
						g.notBefore = 0
					}
				}
			}
			l.keep(p.Chunk, g)
		case local.Revoked:
			l.over(p.Stamp)
		default:
			return
		}
	}
}

// keep notes the answer to an ask, in place of what is known of the chunk.
func (l *bypass) keep(c id.ChunkID, g *grant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if old := l.grants[c]; old != nil {
		if old.epoch > g.epoch { // it was asked for again meanwhile, at a later epoch
			g.close()
			return
		}
		old.close()
	}
	l.grants[c] = g
}

// over forgets a grant that the server has ended.
func (l *bypass) over(stamp uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c, g := range l.grants {
		if g.Grant != nil && g.Stamp() == stamp {
			g.close()
			delete(l.grants, c)
			return
		}
	}
}

// forget forgets a grant that turned out to be of no use; it may be asked for again after a pause.
func (l *bypass) forget(c id.ChunkID, g *grant, pause time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.grants[c] != g {
		return
	}
	g.close()
	if delete(l.grants, c); pause > 0 {
		l.grants[c] = &grant{epoch: g.epoch, notBefore: time.Now().Add(pause).UnixNano()}
	}
}

// find returns the grant of a chunk, or nil, and asks for it.
func (l *bypass) find(c id.ChunkID, e id.Epoch) *grant {
	l.mu.RLock()
	g := l.grants[c]
	l.mu.RUnlock()
	if g != nil && g.epoch == e {
		if g.Grant != nil {
			if !g.used.Load() {
				g.used.Store(true)
			}
			return g
		}
		if time.Now().UnixNano() < g.notBefore {
			return nil
		}
	}
	if g != nil && g.epoch > e {
		return nil
	}
	l.ask(c, e)
	return nil
}

// ask asks for a chunk, unless somebody was faster or too much is asked for.
func (l *bypass) ask(c id.ChunkID, e id.Epoch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if g := l.grants[c]; g != nil {
		if g.epoch > e || g.epoch == e && (g.Grant != nil || time.Now().UnixNano() < g.notBefore) {
			return
		}
		g.close()
	}
	l.makeRoom()
	select {
	case l.asks <- wish{c, e}:
		l.grants[c] = &grant{epoch: e, notBefore: time.Now().Add(askAgain).UnixNano()}
	default:
		delete(l.grants, c)
	}
}

// makeRoom closes a file that was not read lately if there are too many.
func (l *bypass) makeRoom() {
	for range 2 {
		if len(l.grants) < maxGrants {
			return
		}
		for c, g := range l.grants { // in no order
			if !g.used.Swap(false) {
				g.close()
				delete(l.grants, c)
				break
			}
		}
	}
}
