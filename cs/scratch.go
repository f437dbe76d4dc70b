package cs

import (
	"fmt"
	"sync"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// maxScratch bounds the scratch chunks of a server.
const maxScratch = 1024

// scratch are the chunks that belong to no file (id.ChunkID.IsScratch): what a load generator works on. Administrators make,
// change and remove them; the leader never hears of them; they are removed with the connection that made them, and what a
// crash left of them at the next start.
type scratch struct {
	mu     sync.Mutex
	owners map[id.ChunkID]*wire.Conn
}

// claim makes c the owner of a chunk that is about to be made. The first claim of a connection says so.
func (t *scratch) claim(k id.ChunkID, c *wire.Conn) (first bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	first = true
	for have, owner := range t.owners {
		switch {
		case have == k:
			return false, fmt.Errorf("scratch chunk %v: %w", k, fserr.Exist)
		case owner == c:
			first = false
		}
	}
	if len(t.owners) >= maxScratch {
		return false, fmt.Errorf("there are %d scratch chunks: %w", maxScratch, fserr.NoSpace)
	}
	if t.owners == nil {
		t.owners = make(map[id.ChunkID]*wire.Conn)
	}
	t.owners[k] = c
	return first, nil
}

// of returns the chunks of a connection.
func (t *scratch) of(c *wire.Conn) (all []id.ChunkID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, owner := range t.owners {
		if owner == c {
			all = append(all, k)
		}
	}
	return all
}

func (t *scratch) release(k id.ChunkID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.owners, k)
}

// serveScratch answers ChunkCreate and ChunkDelete of administrators, which may name scratch chunks only.
func (s *Server) serveScratch(c *wire.Conn, p peer, req *wire.Frame) {
	switch {
	case p.role != msg.Hello_ADMIN:
		_ = c.Reply(req, fserr.Protocol, nil, nil)
	case req.Type == wire.ChunkCreate:
		answer(s, c, req, new(msg.ChunkCreate), each(func(m *msg.ChunkCreate) error { return s.createScratch(c, m) }))
	default:
		answer(s, c, req, new(msg.ChunkDelete), each(s.deleteScratch))
	}
}

// createScratch makes a chunk that lives as long as c at most.
func (s *Server) createScratch(c *wire.Conn, m *msg.ChunkCreate) error {
	k := id.ChunkID(m.Chunk)
	if !k.IsScratch() {
		return fserr.Protocol
	}
	if s.closing.Load() || !s.lease.enter() {
		return fserr.Unavailable
	}
	defer s.lease.leave()
	first, err := s.scratch.claim(k, c)
	if err != nil {
		return err
	}
	if first {
		s.work.Go(func() {
			<-c.Done()
			c.Quiesce()
			s.sweep(c)
		})
	}
	if err := s.store.Create(k, id.Epoch(m.Epoch)); err != nil {
		s.scratch.release(k)
		return err
	}
	return nil
}

// sweep removes the chunks of a connection that has ended. A store that is closed meanwhile has them removed at its next start.
func (s *Server) sweep(c *wire.Conn) {
	for _, k := range s.scratch.of(c) {
		if err := s.store.Delete(k); err != nil && !s.closing.Load() {
			s.log.Warn("scratch chunk not removed, it will be at the next start", "chunk", k, "err", err)
		}
		s.scratch.release(k)
	}
}

// deleteScratch removes chunks before their connection ends.
func (s *Server) deleteScratch(m *msg.ChunkDelete) error {
	for _, n := range m.Chunks {
		if !id.ChunkID(n).IsScratch() {
			return fserr.Protocol
		}
	}
	return eachChunk(m.Chunks, func(k id.ChunkID) error {
		err := s.store.Delete(k)
		if err == nil {
			s.scratch.release(k)
		}
		return err
	})
}

// sweepAll removes what an earlier process left of scratch chunks.
func (s *Server) sweepAll() error {
	for {
		infos, _ := s.store.List(id.Scratch(0)-1, maxScratch)
		for _, i := range infos {
			if err := s.store.Delete(i.ID); err != nil {
				return fmt.Errorf("remove scratch chunk %v of an earlier process: %w", i.ID, err)
			}
		}
		if len(infos) == 0 {
			return nil
		}
	}
}
