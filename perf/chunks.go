package perf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const (
	// maxChunks bounds the chunks of a job.
	maxChunks = 256
	// chunkEpoch is the epoch of chunks that belong to no file: nothing ever raises it.
	chunkEpoch = id.Epoch(1)
	// callTimeout bounds what is not measured: dialling, making and removing chunks, laying out, reading back.
	callTimeout = 30 * time.Second
)

// chunks are what one job works on at a chunk server, and the connection to it. They belong to no file and go with the connection.
type chunks struct {
	conn  *wire.Conn
	ids   []id.ChunkID
	dirty []atomic.Bool // written since the last flush
}

// makeChunks connects to a chunk server as an administrator and has it make the chunks of a job.
func makeChunks(ctx context.Context, addr string, job int, o *Options) (*chunks, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := dialChunkServer(ctx, addr, o.Cluster)
	if err != nil {
		return nil, err
	}
	c := &chunks{conn: conn, ids: make([]id.ChunkID, (o.Size+chunk.Size-1)/chunk.Size)}
	c.dirty = make([]atomic.Bool, len(c.ids))
	first := rand.Uint64() // other runs have others
	for i := range c.ids {
		c.ids[i] = id.Scratch(first + uint64(i))
		m := &msg.ChunkCreate{Chunk: uint64(c.ids[i]), Epoch: uint64(chunkEpoch)}
		code, err := conn.CallMessage(ctx, wire.ChunkCreate, wire.ClassGuest, m, nil)
		if err == nil {
			err = code.Err()
		}
		if errors.Is(err, fserr.Protocol) {
			err = fmt.Errorf("%w; is it a chunk server, and of this release?", err)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("make chunk %d of job %d: %w", i+1, job, err), conn.Close())
		}
	}
	return c, nil
}

// dialChunkServer connects to a chunk server of the cluster that known names, "": of whichever it is.
func dialChunkServer(ctx context.Context, addr, known string) (*wire.Conn, error) {
	hello := &msg.Hello{Role: msg.Hello_ADMIN}
	wo := wire.Options{Class: wire.ClassGuest}
	if known == "" {
		conn, reply, err := wire.Dial(ctx, addr, hello, nil, wo) // asks what cluster the server belongs to
		if err != nil {
			return nil, fmt.Errorf("%w; if its cluster is secured, name it with -c", err)
		}
		conn.Close()
		hello.Cluster = reply.Cluster
	} else {
		w, err := parseWhere(known)
		if err != nil {
			return nil, err
		}
		hello.Cluster = w.cluster[:]
		if wo.Network, err = w.network(); err != nil {
			return nil, err
		}
	}
	conn, _, err := wire.Dial(ctx, addr, hello, nil, wo)
	return conn, err
}

// remove has the server remove the chunks and ends the connection. A server that is gone needs no telling.
func (c *chunks) remove() error {
	defer c.conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	m := new(msg.ChunkDelete)
	for _, k := range c.ids {
		m.Chunks = append(m.Chunks, uint64(k))
	}
	code, err := c.conn.CallMessage(ctx, wire.ChunkDelete, wire.ClassGuest, m, nil)
	if errors.Is(err, wire.ErrClosed) {
		return nil
	}
	if err == nil {
		err = code.Err()
	}
	return err
}

// wireBuffers are the memory of one request, kept for the next.
type wireBuffers struct {
	req  wire.DataRequest
	body []byte
}

var buffers = sync.Pool{New: func() any { return new(wireBuffers) }}

// start sends a request for [off, off+n) of the job's range, which must lie in one chunk. p is what a write writes.
func (c *chunks) start(kind opKind, p []byte, off int64, n int, done chan *wire.Call) *wire.Call {
	b := buffers.Get().(*wireBuffers)
	defer buffers.Put(b)
	at := chunk.First(off, n)
	sums := b.req.Sums[:0]
	b.req = wire.DataRequest{Chunk: c.ids[at.Index], Offset: at.Offset, Length: uint32(n)}
	f := wire.Frame{Type: wire.Read, Class: wire.ClassGuest, Epoch: chunkEpoch}
	if kind == opWrite {
		f.Type, f.Data = wire.Write, p
		b.req.Sums = chunk.AppendSums(sums, at.Offset, p)
	}
	b.body = b.req.Append(b.body[:0])
	f.Body = b.body
	call := c.conn.Start(&f, done)
	if b.req.Sums == nil {
		b.req.Sums = sums
	}
	return call
}

// startFlush sends a Flush for each chunk that was written since the last one, and returns how many it sent. done must have
// room for one for each chunk.
func (c *chunks) startFlush(done chan *wire.Call, tag int) int {
	n := 0
	for i := range c.ids {
		if !c.dirty[i].Swap(false) {
			continue
		}
		r := wire.DataRequest{Chunk: c.ids[i]}
		c.conn.Start(&wire.Frame{Type: wire.Flush, Class: wire.ClassGuest, Epoch: chunkEpoch, Body: r.Append(nil)}, done).Tag = tag
		n++
	}
	return n
}

// result returns what came of a call that has ended. Of a read it verifies the data, of a write it notes what a flush has to cover. The
// caller releases the frame.
func (c *chunks) result(kind opKind, off int64, n int, call *wire.Call) error {
	switch {
	case call.Err != nil:
		return call.Err
	case call.Reply.Code != fserr.OK:
		return call.Reply.Code
	case kind == opWrite:
		c.dirty[off/chunk.Size].Store(true)
	case kind == opRead:
		f := call.Reply
		if len(f.Data) != n || len(f.Body) != n/chunk.BlockSize*4 {
			return io.ErrUnexpectedEOF
		}
		b := buffers.Get().(*wireBuffers)
		defer buffers.Put(b)
		b.req.Sums = wire.DecodeSums(b.req.Sums[:0], f.Body)
		if i := chunk.VerifySums(b.req.Sums, uint32(off%chunk.Size), f.Data); i >= 0 {
			return fmt.Errorf("block %d of the answer: %w", i, fserr.BadChecksum)
		}
	}
	return nil
}

// transfer reads or writes all of p at off of the job's range.
func (c *chunks) transfer(kind opKind, p []byte, off int64) error {
	done := make(chan *wire.Call, 1)
	for len(p) > 0 {
		n := min(len(p), wire.MaxData, int(chunk.Size-off%chunk.Size))
		call, err := c.await(c.start(kind, p[:n], off, n, done), done)
		if err == nil {
			err = c.result(kind, off, n, call)
		}
		if err == nil && kind == opRead {
			copy(p, call.Reply.Data)
		}
		call.Reply.Release()
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// await waits for one call of done.
func (c *chunks) await(call *wire.Call, done chan *wire.Call) (*wire.Call, error) {
	late := time.NewTimer(callTimeout)
	defer late.Stop()
	select {
	case call = <-done:
		return call, nil
	case <-late.C:
		if !c.conn.Abandon(call) {
			return <-done, nil
		}
		return call, fmt.Errorf("no answer within %v: %w", callTimeout, fserr.Timeout)
	}
}

// sync flushes what was written.
func (c *chunks) sync() error {
	done := make(chan *wire.Call, len(c.ids))
	late := time.NewTimer(callTimeout)
	defer late.Stop()
	var first error
	for range c.startFlush(done, 0) {
		select {
		case call := <-done:
			err := c.result(opSync, 0, 0, call)
			call.Reply.Release()
			if first == nil {
				first = err
			}
		case <-late.C:
			return fmt.Errorf("no answer to a flush within %v: %w", callTimeout, fserr.Timeout)
		}
	}
	return first
}
