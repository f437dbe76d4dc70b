package cs

import (
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// TestStaleReturn: a replica that was away while a guest wrote 4 KiB here and there copies what was changed, and next to nothing else, while the
// guest goes on. VARVE_STALE has it write for so long to an image of 10 GiB instead of for a moment to one of 64 MiB.
func TestStaleReturn(t *testing.T) {
	chunks, away := uint64(1), 300*time.Millisecond
	if v := os.Getenv("VARVE_STALE"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			t.Fatal(err)
		}
		chunks, away = 160, d
	}
	f := newFakeLeader(t)
	server := newTestServer
	if chunks > 1 {
		server = func(t testing.TB, f *fakeLeader) *testServer { return newDiskServer(t, f, nil) } // a simulated disk is memory
	}
	src, dst := server(t, f), server(t, f)
	rng := rand.New(rand.NewPCG(1, 7))
	c, d := dial(t, src, 100), dial(t, dst, 100)
	for k := id.ChunkID(1); k <= id.ChunkID(chunks); k++ {
		f.create(k, 1, src)
		f.create(k, 1, dst)
		for i := range uint32(8) { // that both have
			p := pattern(uint64(k)<<8|uint64(i), 64*block)
			off := i * (chunk.Size / 8)
			c.want(c.write(k, 1, off, p), fserr.OK, "write to the source")
			d.want(d.write(k, 1, off, p), fserr.OK, "write to the target")
		}
	}
	type place struct {
		chunk id.ChunkID
		block uint32
	}
	changed := map[place]bool{}
	writes := 0
	for end := time.Now().Add(away); time.Now().Before(end) || writes < 500; writes++ {
		at := place{1 + id.ChunkID(rng.Uint64N(chunks)), rng.Uint32N(chunk.Blocks)}
		c.want(c.write(at.chunk, 2, at.block*block, pattern(rng.Uint64(), block)), fserr.OK, "write that the target misses")
		changed[at] = true
	}
	var copied uint64
	for k := id.ChunkID(1); k <= id.ChunkID(chunks); k++ {
		const epoch = 3
		f.must(dst.ID(), wire.ChunkJoin, &msg.ChunkJoin{Chunk: uint64(k), Epoch: epoch})
		f.must(src.ID(), wire.ChunkAdopt, &msg.ChunkAdopt{Chunk: uint64(k), Epoch: epoch})
		stop := make(chan struct{})
		var guest sync.WaitGroup
		guest.Go(func() {
			wr := rand.New(rand.NewPCG(uint64(k), 9))
			for {
				select {
				case <-stop:
					return
				default:
				}
				off, p := wr.Uint32N(chunk.Blocks)*block, pattern(wr.Uint64(), block)
				var both sync.WaitGroup
				both.Go(func() { c.want2(c.write(k, epoch, off, p)) })
				both.Go(func() { d.want2(d.write(k, epoch, off, p)) })
				both.Wait()
			}
		})
		reply := new(msg.ChunkRebuildReply)
		code := f.ask(dst.ID(), wire.ChunkRebuild, &msg.ChunkRebuild{
			Chunk: uint64(k), Epoch: epoch, Source: uint32(src.ID()), SourceAddr: src.Addr()}, reply)
		close(stop)
		guest.Wait()
		if code != fserr.OK {
			t.Fatalf("rebuild: %v", code)
		}
		copied += reply.BytesCopied
		f.must(dst.ID(), wire.ChunkPromote, &msg.ChunkPromote{Chunk: uint64(k), Epoch: epoch})
		sameTables(t, k, src, dst)
	}
	ratio := float64(copied) / float64(len(changed)*block)
	t.Logf("%d writes of 4 KiB to an image of %d MiB changed %d KiB; %d KiB were copied: %.3f times as much",
		writes, chunks*64, len(changed)*block>>10, copied>>10, ratio)
	if ratio > 1.2 {
		t.Errorf("copied %.3f times of what was changed, want 1.2 at most", ratio)
	}
	if got := dst.Stats().RebuildBytes; got != copied {
		t.Errorf("the server counts %d bytes rebuilt, copied were %d", got, copied)
	}
}
