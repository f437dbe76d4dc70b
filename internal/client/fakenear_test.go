package client

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/local"
)

// fakeNear is the side of a fakeCS that serves readers of its own host: it keeps files beside the blocks in memory.
type fakeNear struct {
	cs   *fakeCS
	dir  string
	l    *net.UnixListener
	skew int64 // of the clock in the welcome

	// Guarded by the fakeCS's mu.
	board *local.Board
	slots map[id.ChunkID]*local.Slot
	conns []*local.Conn
	asks  int
}

// serveNear makes a fakeCS serve readers of its host until the test ends.
func serveNear(t *testing.T, s *fakeCS) *fakeNear {
	t.Helper()
	b, err := local.NewBoard(8)
	if err != nil {
		t.Fatal(err)
	}
	n := &fakeNear{cs: s, dir: t.TempDir(), board: b, slots: map[id.ChunkID]*local.Slot{}}
	n.count()
	s.set(func() { s.near = n })
	n.start(t)
	t.Cleanup(n.stop)
	return n
}

// count lets the board count for ever.
func (n *fakeNear) count() { n.board.Extend(1 << 60) }

func (n *fakeNear) start(t *testing.T) {
	t.Helper()
	l, err := local.Listen(testCluster, n.cs.id, n.cs.addr)
	if err != nil {
		t.Fatal(err)
	}
	n.l = l
	go func() {
		for {
			nc, err := l.AcceptUnix()
			if err != nil {
				return
			}
			if c, err := local.NewConn(nc); err == nil {
				n.cs.set(func() { n.conns = append(n.conns, c) })
				go n.serve(c)
			}
		}
	}()
}

// stop is the end of the server's process as far as its host can tell.
func (n *fakeNear) stop() {
	n.l.Close()
	n.cs.set(func() {
		for _, c := range n.conns {
			c.Close()
		}
		n.conns = nil
	})
}

func (n *fakeNear) serve(c *local.Conn) {
	defer c.Close()
	var p local.Packet
	if _, err := c.Receive(&p); err != nil || p.Kind != local.Hello {
		return
	}
	session := p.Session
	var board *local.Board
	n.cs.set(func() { board = n.board })
	place, stamp, err := board.Enter(session)
	reply := local.Packet{Kind: local.Welcome, Code: fserr.Of(err), Place: place, Stamp: stamp, Time: local.Clock() + n.skew}
	if c.Send(&reply, board.Descriptor()) != nil {
		return
	}
	defer board.Leave(place, stamp)
	for {
		if _, err := c.Receive(&p); err != nil {
			return
		}
		reply := local.Packet{Kind: local.Granted, Chunk: p.Chunk, Epoch: p.Epoch}
		f := n.grant(session, &p, &reply)
		fd := -1
		if f != nil {
			fd = int(f.Fd())
		}
		err := c.Send(&reply, fd)
		if f != nil {
			f.Close()
		}
		if err != nil {
			return
		}
	}
}

func (n *fakeNear) grant(session id.SessionID, p, reply *local.Packet) *os.File {
	s := n.cs
	s.mu.Lock()
	defer s.mu.Unlock()
	n.asks++
	ch, code := s.chunk(p.Chunk, session, p.Epoch)
	if code != fserr.OK {
		reply.Code = code
		return nil
	}
	slot := n.slots[p.Chunk]
	if slot == nil || !slot.Live() {
		sums := make([]uint32, chunk.Blocks)
		for b, data := range ch.blocks {
			n.put(p.Chunk, b, data)
			sums[b] = chunk.Sum(data)
		}
		var err error
		if slot, err = n.board.Take(sums, func(func(first, end uint32)) {}); err != nil {
			reply.Code = fserr.Of(err)
			return nil
		}
		n.slots[p.Chunk] = slot
	}
	n.put(p.Chunk, 0, nil)
	f, err := os.Open(n.path(p.Chunk))
	if err != nil {
		s.w.t.Error(err)
		reply.Code = fserr.IO
		return nil
	}
	reply.Place, reply.Stamp = slot.Slot()
	return f
}

func (n *fakeNear) path(c id.ChunkID) string { return filepath.Join(n.dir, c.String()) }

// put writes a block of a chunk's file, nothing with nil.
func (n *fakeNear) put(c id.ChunkID, block uint32, data []byte) {
	f, err := os.OpenFile(n.path(c), os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		defer f.Close()
		_, err = f.WriteAt(data, int64(block)*chunk.BlockSize)
	}
	if err != nil {
		n.cs.w.t.Error(err)
	}
}

func (n *fakeNear) begin(c id.ChunkID, first, count uint32) {
	if s := n.slots[c]; s != nil {
		s.Begin(first, first+count)
	}
}

func (n *fakeNear) end(c id.ChunkID, ch *fakeChunk, first, count uint32) {
	s := n.slots[c]
	if s == nil {
		return
	}
	sums := make([]uint32, count)
	for i := range sums {
		if data := ch.blocks[first+uint32(i)]; data != nil {
			n.put(c, first+uint32(i), data)
			sums[i] = chunk.Sum(data)
		}
	}
	s.End(first, sums)
}

// revoke ends the slots of all chunks, and tells nobody or everybody.
func (n *fakeNear) revoke(tell bool) {
	n.cs.set(func() {
		for c, s := range n.slots {
			_, stamp := s.Slot()
			s.Revoke()
			delete(n.slots, c)
			for _, conn := range n.conns {
				if tell {
					conn.Send(&local.Packet{Kind: local.Revoked, Stamp: stamp}, -1)
				}
			}
		}
	})
}

// damage flips a bit of every chunk file.
func (n *fakeNear) damage() {
	n.cs.set(func() {
		for c := range n.slots {
			b, err := os.ReadFile(n.path(c))
			if err != nil {
				n.cs.w.t.Error(err)
				continue
			}
			b = slices.Clone(b)
			b[100] ^= 1
			if err := os.WriteFile(n.path(c), b, 0o600); err != nil {
				n.cs.w.t.Error(err)
			}
		}
	})
}
