package cs

import (
	"bytes"
	"math/rand"
	"sync"
	"testing"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

func (c *client) writeDurable(k id.ChunkID, e id.Epoch, off uint32, p []byte) fserr.Code {
	c.t.Helper()
	r := writeRequest(k, off, p)
	r.Flags = wire.Durable
	code, _, _ := c.do(wire.Write, e, r, p)
	return code
}

// TestDurableWrite: a durable write, and what was written to the chunk before it, is there after a loss of power without any flush.
func TestDurableWrite(t *testing.T) {
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	f.create(7, 1, s)
	for seed := range int64(6) {
		c := dial(t, s, 5)
		before, p := pattern(uint64(seed), 2*block), pattern(uint64(100+seed), block/2)
		c.want(c.write(7, 1, 0, before), fserr.OK, "write")
		c.want(c.writeDurable(7, 1, 40*block+512, p), fserr.OK, "durable write")
		s.disk.PowerOff()
		s.Kill()
		s.disk.Crash(rand.New(rand.NewSource(seed)))
		s.start(t)
		s.waitServing(t)
		f.must(s.ID(), wire.ChunkAccept, &msg.ChunkAccept{Chunks: []uint64{7}})
		c = dial(t, s, 5)
		code, got := c.read(7, 1, 40*block, block)
		c.want(code, fserr.OK, "read")
		if !bytes.Equal(got[512:][:len(p)], p) {
			t.Fatalf("seed %d: a durable write is gone", seed)
		}
		if _, got = c.read(7, 1, 0, 2*block); !bytes.Equal(got, before) {
			t.Fatalf("seed %d: what was written before it is gone", seed)
		}
	}
}

// TestDurableWritesOnDisk has clients write durably to one chunk while others flush it, on a real disk. Each write is synced, by itself or with another.
func TestDurableWritesOnDisk(t *testing.T) {
	f := newFakeLeader(t)
	s := newDiskServer(t, f, nil)
	f.create(7, 1, s)
	const clients, writes = 3, 40
	conns := make([]*client, clients+1)
	for i := range conns {
		conns[i] = dial(t, s, id.SessionID(10+i))
	}
	conns[0].want(conns[0].writeDurable(7, 1, 0, pattern(1, block)), fserr.OK, "durable write")
	if st := s.Stats(); st.Writes != 1 || st.Flushes != 1 {
		t.Errorf("%d writes and %d flushes, want one of each", st.Writes, st.Flushes)
	}
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			for n := range writes {
				size := block
				if n%4 == 3 {
					size = block / 2 // merged with what is there, by a goroutine
				}
				conns[i].want(conns[i].writeDurable(7, 1, uint32(i*writes+n)*block, pattern(uint64(i*writes+n), size)), fserr.OK, "durable write")
			}
		})
	}
	all.Go(func() {
		for range writes {
			code, _, _ := conns[clients].do(wire.Flush, 1, wire.DataRequest{Chunk: 7}, nil)
			conns[clients].want(code, fserr.OK, "flush")
		}
	})
	all.Wait()
	for n := range clients * writes {
		code, got := conns[0].read(7, 1, uint32(n)*block, block)
		conns[0].want(code, fserr.OK, "read")
		size := block
		if n%writes%4 == 3 {
			size = block / 2
		}
		if !bytes.Equal(got[:size], pattern(uint64(n), size)) {
			t.Fatalf("block %d differs", n)
		}
	}
	conns[0].want(conns[0].writeDurable(9, 1, 0, pattern(1, block)), fserr.NoChunk, "durable write to no chunk")
	for what, r := range map[string]wire.DataRequest{
		"punch": {Chunk: 7, Length: block, Flags: wire.Durable}, "ordered": {Chunk: 7, Length: block, Flags: wire.Durable | wire.Ordered},
		"with a name": {Chunk: 7, Length: block, Flags: wire.Durable, Seq: 1, Low: 1},
	} {
		code, _, _ := conns[0].do(wire.Punch, 1, r, nil)
		conns[0].want(code, fserr.Protocol, "%s", what)
	}
}
