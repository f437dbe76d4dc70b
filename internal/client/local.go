package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/local"
	"varve/internal/wire"
)

const (
	// maxGrants bounds the chunk files that are open of one chunk server.
	maxGrants = 1024
	// maxAsks bounds the asks that wait to be sent to one.
	maxAsks = 64
	// askAgain is the pause after which a chunk that was refused is asked for again.
	askAgain = 5 * time.Second
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

// localCounts are of one client.
type localCounts struct{ reads, bytes, changing, lapsed, revoked, damaged, failed atomic.Uint64 }

// LocalStats is what a client has read by itself from chunk servers on its host, around the network.
type LocalStats struct {
	Links  int    // chunk servers that let it
	Chunks int    // whose files are open
	Reads  uint64 // since Dial
	Bytes  uint64
	// Reads that were begun so and had to go over the network: because the blocks were being changed, the server had lost its lease or did
	// not run, the grant or the session was over, the checksum did not match, or the disk failed or was too slow.
	Changing, Lapsed, Revoked, Damaged, Failed uint64
}

// LocalStats returns the counters.
func (c *Client) LocalStats() LocalStats {
	n := &c.localReads
	st := LocalStats{
		Reads: n.reads.Load(), Bytes: n.bytes.Load(), Changing: n.changing.Load(), Lapsed: n.lapsed.Load(), Revoked: n.revoked.Load(),
		Damaged: n.damaged.Load(), Failed: n.failed.Load(),
	}
	p := &c.sess.Load().servers
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, srv := range p.all {
		if l := srv.bypass.Load(); l != nil {
			st.Links++
			l.mu.RLock()
			for _, g := range l.grants {
				if g.Grant != nil {
					st.Chunks++
				}
			}
			l.mu.RUnlock()
		}
	}
	return st
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
		if fserr.Of(err) != fserr.Unavailable {
			srv.s.c.log.Warn("reading over the network from a server on this host", "cs", srv.id, "err", err)
		}
		return
	}
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
			g := &grant{epoch: p.Epoch, notBefore: time.Now().Add(askAgain).UnixNano()}
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

// localOp is one read by a grant. It has memory of its own, so that a disk that does not answer holds up nobody.
type localOp struct {
	op    local.Op
	buf   []byte
	n     int   // what the ring has read
	err   error // or why not
	lost  bool  // the kernel may write to buf for ever
	done  chan error
	timer *time.Timer
}

// errFetched says on localOp.done that the disk has answered, and that the read is still to be finished.
var errFetched = errors.New("fetched")

var localOps = sync.Pool{New: func() any {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return &localOp{done: make(chan error, 1), timer: t}
}}

func (op *localOp) free() {
	if !op.lost {
		wire.Recycle(op.buf)
	}
	op.buf, op.err, op.lost = nil, nil, false
	localOps.Put(op)
}

// outcome returns the outcome of a read that came on done.
func (op *localOp) outcome(err error) error {
	if err == errFetched {
		return op.op.Finish(op.n, op.err)
	}
	return err
}

// readLocal fills p, the part of a chunk that pc says and whole has in whole blocks, from the file of a replica on this host. It
// reports false if that cannot be done now. An error says that the replica is of no use to this read over the network either.
//
// Preconditions: as for readFrom. Like that it is done under inode.layoutMu, which a change of the replica set waits for.
func (in *inode) readLocal(ctx context.Context, loc *location, r *replica, whole, pc chunk.Piece, p []byte) (bool, error) {
	srv := in.s.servers.server(r)
	l := srv.bypass.Load()
	if l == nil {
		srv.seek()
		return false, nil
	}
	if l.stuck.Load() > 0 {
		return false, nil
	}
	g := l.find(loc.chunk, loc.epoch)
	if g == nil {
		return false, nil
	}
	op := localOps.Get().(*localOp)
	op.buf = wire.Buffer(int(whole.Length))
	if err := g.Begin(&op.op, op.buf, whole.Offset/chunk.BlockSize); err != nil {
		op.free()
		return l.judge(err, loc.chunk, g, len(p)), nil
	}
	srv.inFlight.Add(1)
	defer srv.inFlight.Add(-1)
	in.s.c.disk.read(op)
	op.timer.Reset(in.s.c.o.ReadTimeout)
	var err error
	select {
	case err = <-op.done:
		op.timer.Stop()
	case <-op.timer.C:
		l.abandon(op)
		in.s.c.localReads.failed.Add(1)
		return false, fmt.Errorf("read the file of %v: %w", srv.id, fserr.Timeout)
	case <-ctx.Done():
		l.abandon(op)
		return false, ended(ctx)
	}
	if err = op.outcome(err); err == nil {
		copy(p, op.buf[pc.Offset-whole.Offset:])
	}
	op.free()
	return l.judge(err, loc.chunk, g, len(p)), nil
}

// abandon leaves a read to end by itself, which nobody waits for, as nobody can end it. Until then the bypass is not used.
func (l *bypass) abandon(op *localOp) {
	op.timer.Stop()
	l.stuck.Add(1)
	go func() {
		_ = op.outcome(<-op.done) // it comes too late
		l.stuck.Add(-1)
	}()
}

// judge counts a read and reports whether it is good.
func (l *bypass) judge(err error, c id.ChunkID, g *grant, n int) bool {
	k := &l.srv.s.c.localReads
	switch {
	case err == nil:
		k.reads.Add(1)
		k.bytes.Add(uint64(n))
		return true
	case errors.Is(err, local.ErrChanging):
		k.changing.Add(1)
	case errors.Is(err, local.ErrLapsed):
		k.lapsed.Add(1)
	case errors.Is(err, local.ErrRevoked), errors.Is(err, os.ErrClosed):
		k.revoked.Add(1)
		l.forget(c, g, 0)
	case errors.Is(err, local.ErrPlace):
		k.revoked.Add(1)
		l.close()
	case errors.Is(err, fserr.BadChecksum):
		k.damaged.Add(1) // the server finds it too, and says so
	default:
		k.failed.Add(1)
		l.forget(c, g, askAgain)
	}
	return false
}
