package client

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/test/ports"
)

// fakeCS is a chunk server in memory.
type fakeCS struct {
	w    *world
	id   id.ServerID
	addr string
	l    net.Listener
	srv  *wire.Server

	mu      sync.Mutex
	chunks  map[id.ChunkID]*fakeChunk
	fenced  []uint64
	conns   map[[2]uint64]*wire.Conn
	before  func(t wire.Type, req *wire.DataRequest) fserr.Code   // an outcome other than OK is answered at once
	lacks   func(req *wire.DataRequest) (id.ServerID, fserr.Code) // of an ordered read: another replica that does not take what it lacks
	damage  bool                                                  // reads give damaged bytes
	null    bool                                                  // writes are not stored
	near    *fakeNear                                             // serves readers of this host; nil for none
	shown   map[uint64]string                                     // by session: its capability
	writes  int
	reads   int
	flushes int
	ordered int
	durable int    // of the writes
	takes   uint32 // of flags; set before clients come
}

type fakeChunk struct {
	epoch  id.Epoch
	blocks map[uint32][]byte
	dirty  bool
}

func (s *fakeCS) start() {
	addr := s.addr
	if addr == "" {
		addr = ports.HoldAt(s.w.t, s.w.host)
	}
	s.l = s.w.seal.wrap(s.w.listen(s.id.String(), addr))
	s.mu.Lock()
	if s.addr == "" {
		s.addr = s.l.Addr().String()
	}
	s.conns = map[[2]uint64]*wire.Conn{}
	s.mu.Unlock()
	s.srv = &wire.Server{Logger: quiet(), Accept: func(c *wire.Conn, h *msg.Hello) (wire.Handler, *msg.HelloReply, fserr.Code) {
		s.mu.Lock()
		if slices.Contains(s.fenced, h.Session) {
			s.mu.Unlock()
			return nil, nil, fserr.Fenced
		}
		if s.show(h.Session, h.Capability) != fserr.OK {
			s.mu.Unlock()
			return nil, nil, fserr.NoCapability
		}
		c.Value = h.Session
		key := [2]uint64{h.Session, uint64(h.Lane)}
		old := s.conns[key]
		s.conns[key] = c
		s.mu.Unlock()
		if old != nil {
			old.Quiesce()
		}
		return s, &msg.HelloReply{Server: uint32(s.id), Takes: s.takes}, fserr.OK
	}}
	srv, l := s.srv, s.l
	go srv.Serve(l)
}

func (s *fakeCS) stop() {
	s.l.Close()
	s.srv.Close()
}

func (s *fakeCS) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *fakeCS) create(c id.ChunkID, e id.Epoch) {
	s.set(func() { s.chunks[c] = &fakeChunk{epoch: e, blocks: map[uint32][]byte{}} })
}

func (s *fakeCS) Serve(ctx context.Context, c *wire.Conn, f *wire.Frame) {
	if f.Type == wire.ChunkSeek {
		s.seek(c, f)
		return
	}
	if f.Type == wire.ShowCapability {
		m := new(msg.ShowCapability)
		code := fserr.Protocol
		if m.UnmarshalVT(f.Body) == nil {
			s.mu.Lock()
			code = s.show(c.Value.(uint64), m.Capability)
			s.mu.Unlock()
		}
		c.Reply(f, code, nil, nil)
		return
	}
	req := new(wire.DataRequest)
	if req.Decode(f.Body) != nil {
		c.Reply(f, fserr.Protocol, nil, nil)
		return
	}
	s.mu.Lock()
	before := s.before
	proven := s.shown[uint64(req.Session)] == s.w.tokens.taken()
	s.mu.Unlock()
	if !proven {
		c.Reply(f, fserr.NoCapability, nil, nil)
		return
	}
	if before != nil {
		if code := before(f.Type, req); code != fserr.OK {
			c.Reply(f, code, nil, nil)
			return
		}
	}
	if f.Type == wire.Read {
		s.mu.Lock()
		lacks := s.lacks
		s.mu.Unlock()
		if lacks != nil && req.Flags&wire.Ordered != 0 {
			if server, why := lacks(req); server != 0 {
				c.Reply(f, fserr.ReplicaFailed, wire.AppendReplicaFailed(nil, server, why), nil)
				return
			}
		}
		body, data, code := s.read(req, f.Epoch)
		c.Reply(f, code, body, data)
		return
	}
	code := s.do(f.Type, req, f.Epoch, f.Data)
	if code == fserr.OK && req.Flags&wire.Ordered != 0 {
		s.set(func() { s.ordered++ })
		for _, to := range req.Forward {
			if to == 0 {
				break
			}
			o := s.w.cs[to]
			o.mu.Lock()
			ob := o.before
			o.mu.Unlock()
			why := fserr.OK
			if ob != nil {
				why = ob(f.Type, req)
			}
			if why == fserr.OK {
				why = o.do(f.Type, req, f.Epoch, f.Data)
			}
			if why != fserr.OK {
				c.Reply(f, fserr.ReplicaFailed, wire.AppendReplicaFailed(nil, to, why), nil)
				return
			}
		}
	}
	c.Reply(f, code, nil, nil)
}

// chunk finds a chunk and compares epochs, with mu held.
func (s *fakeCS) chunk(c id.ChunkID, session id.SessionID, e id.Epoch) (*fakeChunk, fserr.Code) {
	ch := s.chunks[c]
	switch {
	case slices.Contains(s.fenced, uint64(session)):
		return nil, fserr.Fenced
	case ch == nil:
		return nil, fserr.NoChunk
	case e < ch.epoch:
		return nil, fserr.StaleEpoch
	}
	ch.epoch = e
	return ch, fserr.OK
}

func (s *fakeCS) do(t wire.Type, req *wire.DataRequest, e id.Epoch, data []byte) fserr.Code {
	s.mu.Lock()
	defer s.mu.Unlock()
	ch, code := s.chunk(req.Chunk, req.Session, e)
	if code != fserr.OK {
		return code
	}
	if s.null && t == wire.Write {
		return fserr.OK
	}
	if s.near != nil && t != wire.Flush {
		first, n := chunk.Span(req.Offset, req.Length)
		s.near.begin(req.Chunk, first, n)
		defer s.near.end(req.Chunk, ch, first, n)
	}
	switch t {
	case wire.Flush:
		s.flushes++
		ch.dirty = false
	case wire.Write:
		if req.Flags&wire.Durable&^wire.DataFlags(s.takes) != 0 {
			return fserr.Protocol
		}
		if len(data) != int(req.Length) || chunk.VerifySums(req.Sums, req.Offset, data) >= 0 {
			return fserr.BadChecksum
		}
		s.writes++
		ch.put(req.Offset, data)
		if req.Flags&wire.Durable != 0 {
			s.durable++
			ch.dirty = false
		}
	case wire.Punch:
		for off, left := req.Offset, req.Length; left > 0; {
			n := min(left, chunk.BlockSize-off%chunk.BlockSize)
			if b := off / chunk.BlockSize; n == chunk.BlockSize {
				delete(ch.blocks, b)
			} else if ch.blocks[b] != nil {
				clear(ch.blocks[b][off%chunk.BlockSize:][:n])
			}
			off, left = off+n, left-n
		}
	}
	return fserr.OK
}

func (ch *fakeChunk) put(off uint32, data []byte) {
	ch.dirty = true
	for len(data) > 0 {
		b, in := off/chunk.BlockSize, off%chunk.BlockSize
		if ch.blocks[b] == nil {
			ch.blocks[b] = make([]byte, chunk.BlockSize)
		}
		n := copy(ch.blocks[b][in:], data)
		data = data[n:]
		off += uint32(n)
	}
}

func (s *fakeCS) read(req *wire.DataRequest, e id.Epoch) (body, data []byte, code fserr.Code) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ch, code := s.chunk(req.Chunk, req.Session, e)
	if code != fserr.OK {
		return nil, nil, code
	}
	if !chunk.Aligned(req.Offset, req.Length) {
		return nil, nil, fserr.Invalid
	}
	s.reads++
	var sums []uint32
	for b := req.Offset / chunk.BlockSize; b < (req.Offset+req.Length)/chunk.BlockSize; b++ {
		if p := ch.blocks[b]; p != nil {
			data = append(data, p...)
			sums = append(sums, chunk.Sum(p))
		} else {
			data = append(data, make([]byte, chunk.BlockSize)...)
			sums = append(sums, chunk.Hole)
		}
	}
	if s.damage {
		data[0] ^= 0xff
	}
	return wire.AppendSums(nil, sums), data, fserr.OK
}

func (s *fakeCS) seek(c *wire.Conn, f *wire.Frame) {
	req := new(msg.ChunkSeek)
	req.UnmarshalVT(f.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	ch := s.chunks[id.ChunkID(req.Chunk)]
	if ch == nil {
		c.Reply(f, fserr.NoChunk, nil, nil)
		return
	}
	for b := req.Offset / chunk.BlockSize; b < chunk.Blocks; b++ {
		if (ch.blocks[b] == nil) == req.Hole {
			c.ReplyMessage(f, fserr.OK, &msg.ChunkSeekReply{Offset: max(req.Offset, b*chunk.BlockSize), Found: true})
			return
		}
	}
	c.ReplyMessage(f, fserr.OK, &msg.ChunkSeekReply{})
}

// content returns all bytes of the chunk that the world knows under index of ino, as this server has them.
func (s *fakeCS) content(ino id.Ino, index uint32, n int) []byte {
	var ch *msg.Chunk
	if in := s.w.inode(uint64(ino)); in != nil {
		s.w.mu.Lock()
		ch = in.chunks[index]
		s.w.mu.Unlock()
	}
	if ch == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := make([]byte, n)
	for i := range n / chunk.BlockSize {
		copy(b[i*chunk.BlockSize:], s.chunks[id.ChunkID(ch.Id)].blocks[uint32(i)])
	}
	return b
}

// replicas returns the servers of a chunk.
func (w *world) replicas(ino id.Ino, index uint32) (all []id.ServerID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.inodes[uint64(ino)].chunks[index].Replicas {
		all = append(all, id.ServerID(r.Server))
	}
	return all
}

func (w *world) dial(t *testing.T, change func(*Options)) *Client {
	t.Helper()
	o := Options{Cluster: testCluster, Name: "test", Logger: quiet(), Patience: 300 * time.Millisecond, FlushEvery: 50 * time.Millisecond,
		// A busy machine is not to be taken for a server that fails.
		DialTimeout: 20 * time.Second, ReadTimeout: 20 * time.Second, WriteTimeout: 20 * time.Second, StartTimeout: time.Minute}
	for _, m := range w.servers {
		o.Addrs = append(o.Addrs, m.addr)
	}
	if w.seal != nil {
		o.Network = w.seal
	}
	if change != nil {
		change(&o)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := Dial(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func create(t *testing.T, c *Client, name string) *File {
	t.Helper()
	_, f, err := c.Create(t.Context(), nil, &msg.Create{Parent: 1, Name: []byte(name), Type: msg.FileType_REGULAR, Open: true, Exclusive: true})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func open(t *testing.T, c *Client, f *File, write bool) *File {
	t.Helper()
	g, err := c.Open(t.Context(), nil, f.Ino(), write, false)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func write(t *testing.T, f *File, p []byte, off int64) {
	t.Helper()
	if n, _, err := f.WriteAt(t.Context(), p, off, false); err != nil || n != len(p) {
		t.Fatalf("write of %d at %d: %d, %v", len(p), off, n, err)
	}
}

func read(t *testing.T, f *File, off int64, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	got, err := f.ReadAt(t.Context(), p, off)
	if err != nil {
		t.Fatalf("read of %d at %d: %v", n, off, err)
	}
	return p[:got]
}

func fill(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7) ^ byte(i>>8) ^ seed | 1
	}
	return p
}
