package crash

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// Where things are in a chunk file (cs/store/format.go).
const (
	fileHeaders = 2 * 4096
	fileTable   = 64 << 10
	fileData    = 1 << 20
)

const (
	rotChunks = 8
	rotBlocks = 256 // written of each chunk, from the start of each of its first extents
	rotAreas  = 2   // extents of each chunk
)

// rotArea is a range of blocks with one content for each.
type rotArea struct {
	mu     sync.Mutex // held by whoever reads or writes or flips
	chunk  id.ChunkID
	first  uint32 // block
	seqs   [rotBlocks]uint64
	rotten [rotBlocks]bool
}

// rot is a server of which the disk rots.
type rot struct {
	t                            *testing.T
	dir                          string
	areas                        []*rotArea
	seq                          atomic.Uint64
	flips, reported, reads, good atomic.Int64
	healed                       atomic.Int64
}

// fillBlock makes p block b as write seq makes it.
func fillBlock(p []byte, k id.ChunkID, b uint32, seq uint64) {
	for i := range sectorsPerBlock {
		fillSector(p[i*sectorSize:], k, uint64(b)*sectorsPerBlock+uint64(i), seq)
	}
}

// TestBitRot flips bits of chunk files, under the load of clients, in the middle of data that was written long ago or just now, and, while the
// server is down, in headers and tables. Every block that is read is right, or reported as bad.
func TestBitRot(t *testing.T) {
	needProcesses(t)
	duration := 3 * time.Second
	if text := os.Getenv("VARVE_SOAK"); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	x := &rot{t: t, dir: filepath.Join(t.TempDir(), "cs")}
	l := newLeader(t)
	makeServer(t, l, x.dir, "")
	config := serverConfig{Dir: x.dir, SettleAfter: 50 * time.Millisecond, SettleEvery: 20 * time.Millisecond, MaxOpen: 6, MaxActive: 4}
	l.forget()
	p := startServer(t, config)
	addr, _ := l.waitServing(t, p)
	for k := id.ChunkID(1); k <= rotChunks; k++ {
		l.must(t, wire.ChunkCreate, &msg.ChunkCreate{Chunk: uint64(k), Epoch: 1})
		for e := range uint32(rotAreas) {
			x.areas = append(x.areas, &rotArea{chunk: k, first: e * chunk.ExtentSize / chunk.BlockSize})
		}
	}
	if f, err := openDirect(x.pathOf(1)); err != nil {
		t.Skipf("no direct I/O here, so what is on the disk cannot be changed past the cache: %v", err)
	} else {
		f.Close()
	}
	fill := dial(t, addr, 1)
	for _, a := range x.areas {
		for b := range uint32(rotBlocks) {
			if err := x.write(fill, a, b); err != nil {
				t.Fatal(err)
			}
		}
	}
	x.load(addr, duration)

	c := dial(t, addr, 2)
	x.once(c)
	x.readAll(c) // what nobody has read yet
	c.conn.Close()
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 3))
	for range 3 {
		if t.Failed() {
			return
		}
		p.stop(t)
		flipped := x.flipMeta(rng)
		l.forget()
		p = startServer(t, config)
		addr, _ = l.waitServing(t, p)
		c := dial(t, addr, 2)
		bad := x.readLost(c)
		c.conn.Close()
		t.Logf("%d bits of headers and tables flipped while the server was down: %d of %d blocks are reported", flipped, bad, len(x.areas)*rotBlocks)
	}
	t.Logf("%d bits of data flipped under load: %d of %d reads reported one, %d were right; %d blocks were written anew; no wrong byte",
		x.flips.Load(), x.reported.Load(), x.reads.Load(), x.good.Load(), x.healed.Load())
	if x.reported.Load() == 0 || x.good.Load() == 0 || x.healed.Load() == 0 {
		t.Error("too little was tried")
	}
}

// load reads, writes and flips.
func (x *rot) load(addr string, d time.Duration) {
	end := time.Now().Add(d)
	var work sync.WaitGroup
	for w := range 4 {
		c, rng := dial(x.t, addr, uint32(10+w)), rand.New(rand.NewPCG(uint64(w), uint64(d)))
		work.Go(func() {
			defer c.conn.Close()
			for time.Now().Before(end) && !x.t.Failed() {
				a, b := x.areas[rng.IntN(len(x.areas))], rng.Uint32N(rotBlocks)
				a.mu.Lock()
				var err error
				switch n := rng.IntN(10); {
				case n < 2:
					err = x.write(c, a, b)
				case n < 3:
					err = x.writePart(c, a, b)
				default:
					err = x.read(c, a, b, 1+rng.Uint32N(min(8, rotBlocks-b)))
				}
				a.mu.Unlock()
				if err != nil {
					x.t.Error(err)
				}
			}
		})
	}
	work.Go(func() {
		rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 2))
		for time.Now().Before(end) && !x.t.Failed() {
			a, b := x.areas[rng.IntN(len(x.areas))], rng.Uint32N(rotBlocks)
			a.mu.Lock() // a client's write in between would be lost by more than rot
			if !a.rotten[b] {
				if err := flip(x.pathOf(a.chunk), fileData+int64(a.first+b)*chunk.BlockSize, rng); err != nil {
					x.t.Error(err)
				}
				a.rotten[b] = true
				x.flips.Add(1)
			}
			a.mu.Unlock()
			time.Sleep(2 * time.Millisecond)
		}
	})
	work.Wait()
}

func (x *rot) pathOf(k id.ChunkID) string {
	return filepath.Join(x.dir, "chunks", fmt.Sprintf("%02x", uint8(k)), k.String()+".chk")
}

func openDirect(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
}

// flip inverts one bit of a page of a file, on the disk.
func flip(path string, at int64, rng *rand.Rand) error {
	f, err := openDirect(path)
	if err != nil {
		return err
	}
	defer f.Close()
	p := disk.AlignedBuffer(4096)
	if _, err := f.ReadAt(p, at); err != nil {
		return err
	}
	p[rng.IntN(len(p))] ^= 1 << rng.IntN(8)
	_, err = f.WriteAt(p, at)
	return err
}

// write writes a whole block, which makes a rotten one good.
func (x *rot) write(c *client, a *rotArea, b uint32) error {
	p, seq := make([]byte, chunk.BlockSize), x.seq.Add(1)
	fillBlock(p, a.chunk, a.first+b, seq)
	if err := c.write(a.chunk, 1, (a.first+b)*chunk.BlockSize, p); err != nil {
		return err
	}
	if a.rotten[b] {
		x.healed.Add(1)
	}
	a.seqs[b], a.rotten[b] = seq, false
	return nil
}

// writePart writes a sector again as it is: a rotten block must not be merged with.
func (x *rot) writePart(c *client, a *rotArea, b uint32) error {
	p := make([]byte, chunk.BlockSize)
	fillBlock(p, a.chunk, a.first+b, a.seqs[b])
	err := c.write(a.chunk, 1, (a.first+b)*chunk.BlockSize+sectorSize, p[sectorSize:2*sectorSize])
	switch {
	case a.rotten[b] && err == nil:
		return fmt.Errorf("block %d of chunk %v rots, and a part of it was written", a.first+b, a.chunk)
	case a.rotten[b] && errors.Is(err, fserr.IO):
		x.reported.Add(1)
		return nil
	}
	return err
}

// read reads n blocks from b on.
func (x *rot) read(c *client, a *rotArea, b, n uint32) error {
	x.reads.Add(1)
	bad := false
	for i := b; i < b+n; i++ {
		bad = bad || a.rotten[i]
	}
	got, err := c.read(a.chunk, 1, (a.first+b)*chunk.BlockSize, n*chunk.BlockSize)
	if bad {
		if !errors.Is(err, fserr.IO) {
			return fmt.Errorf("%d blocks from block %d of chunk %v on, of which some rot: %v", n, a.first+b, a.chunk, err)
		}
		x.reported.Add(1)
		return nil
	}
	if err != nil {
		return fmt.Errorf("no block rots: %w", err)
	}
	want := make([]byte, len(got))
	for i := range n {
		fillBlock(want[i*chunk.BlockSize:], a.chunk, a.first+b+i, a.seqs[b+i])
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%d blocks from block %d of chunk %v on hold other bytes than were written", n, a.first+b, a.chunk)
	}
	x.good.Add(1)
	return nil
}

// once has a block rot, reads it, writes it anew and reads it again, so that each of these is tried however little a slow machine lets the load do.
func (x *rot) once(c *client) {
	a, rng := x.areas[0], rand.New(rand.NewPCG(1, 4))
	if !a.rotten[0] {
		if err := flip(x.pathOf(a.chunk), fileData+int64(a.first)*chunk.BlockSize, rng); err != nil {
			x.t.Fatal(err)
		}
		a.rotten[0] = true
		x.flips.Add(1)
	}
	if err := errors.Join(x.read(c, a, 0, 1), x.write(c, a, 0), x.read(c, a, 0, 1)); err != nil {
		x.t.Error(err)
	}
}

func (x *rot) readAll(c *client) {
	for _, a := range x.areas {
		for b := range uint32(rotBlocks) {
			if err := x.read(c, a, b, 1); err != nil {
				x.t.Error(err)
				return
			}
		}
	}
}

// flipMeta flips bits in table pages of some chunks and in a header of others.
func (x *rot) flipMeta(rng *rand.Rand) (n int) {
	for k := id.ChunkID(1); k <= rotChunks; k++ {
		var at []int64
		switch k % 4 {
		case 0: // a slot of the header
			at = append(at, int64(rng.IntN(2))*4096)
		case 1: // some pages of the table
			for range 1 + rng.IntN(3) {
				at = append(at, fileHeaders+int64(rng.IntN(rotAreas))*4096)
			}
		case 2:
			at = append(at, fileHeaders+int64(rng.IntN(fileTable/4096))*4096, int64(rng.IntN(2))*4096)
		}
		for _, off := range at {
			if err := flip(x.pathOf(k), off, rng); err != nil {
				x.t.Fatal(err)
			}
			n++
		}
	}
	return n
}

// readLost reads everything when headers and tables rot as well: an error or what was written, and nothing else.
func (x *rot) readLost(c *client) (bad int) {
	for _, a := range x.areas {
		for b := range uint32(rotBlocks) {
			got, err := c.read(a.chunk, 1, (a.first+b)*chunk.BlockSize, chunk.BlockSize)
			if err != nil {
				if !errors.Is(err, fserr.IO) && !errors.Is(err, fserr.NotReady) {
					x.t.Error(err)
				}
				bad++
				continue
			}
			want := make([]byte, chunk.BlockSize)
			fillBlock(want, a.chunk, a.first+b, a.seqs[b])
			if !bytes.Equal(got, want) {
				x.t.Errorf("block %d of chunk %v holds other bytes than were written", a.first+b, a.chunk)
			}
		}
	}
	return bad
}
