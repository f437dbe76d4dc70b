package cs

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// TestRebuildUnderWrites joins one replica to another again and again while clients write to both, and compares.
func TestRebuildUnderWrites(t *testing.T) {
	f := newFakeLeader(t)
	src, dst := newTestServer(t, f), newTestServer(t, f)
	const k = id.ChunkID(7)
	f.create(k, 1, src)
	const writers, blocks = 3, 96
	for round := range 12 {
		t.Run(fmt.Sprintf("round=%d", round), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(round), 3))
			epoch := id.Epoch(2*round + 2)
			before := dial(t, src, 100)
			for range 20 { // what the target misses
				before.want(before.write(k, epoch-1, rng.Uint32N(blocks)*block*8, pattern(rng.Uint64(), 1+rng.IntN(4*block))), fserr.OK, "write to the source")
			}
			// One that no writer below ever makes good.
			before.want(before.write(k, epoch-1, (writers*blocks*8+uint32(round))*block, pattern(rng.Uint64(), block)), fserr.OK, "write to the source")
			if round%3 == 2 {
				code, _, _ := before.do(wire.Punch, epoch-1, wire.DataRequest{Chunk: k, Offset: rng.Uint32N(blocks) * block, Length: 20 * block}, nil)
				before.want(code, fserr.OK, "punch")
			}
			f.must(dst.ID(), wire.ChunkJoin, &msg.ChunkJoin{Chunk: uint64(k), Epoch: uint64(epoch)})
			f.must(src.ID(), wire.ChunkAdopt, &msg.ChunkAdopt{Chunk: uint64(k), Epoch: uint64(epoch)})
			stop := make(chan struct{})
			var work sync.WaitGroup
			for w := range writers {
				a, b := dial(t, src, id.SessionID(200+w)), dial(t, dst, id.SessionID(200+w))
				wr := rand.New(rand.NewPCG(uint64(round), uint64(10+w)))
				work.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						// Each writer has blocks of its own, as clients lock theirs.
						first := (wr.Uint32N(blocks)*writers + uint32(w)) * 8 * block
						p := pattern(wr.Uint64(), 1+wr.IntN(7*block))
						off := first + wr.Uint32N(block)
						var both sync.WaitGroup
						both.Go(func() { a.want2(a.write(k, epoch, off, p)) })
						both.Go(func() { b.want2(b.write(k, epoch, off, p)) })
						both.Wait()
					}
				})
			}
			reply := new(msg.ChunkRebuildReply)
			code := f.ask(dst.ID(), wire.ChunkRebuild, &msg.ChunkRebuild{
				Chunk: uint64(k), Epoch: uint64(epoch), Source: uint32(src.ID()), SourceAddr: src.Addr(),
			}, reply)
			close(stop)
			work.Wait()
			if code != fserr.OK {
				t.Fatalf("rebuild: %v", code)
			}
			if reply.BytesCopied == 0 {
				t.Error("nothing was copied")
			}
			f.must(dst.ID(), wire.ChunkPromote, &msg.ChunkPromote{Chunk: uint64(k), Epoch: uint64(epoch)})
			sameTables(t, k, src, dst)
			verify := new(msg.ChunkVerifyReply)
			c := dial(t, dst, 300)
			if code, err := c.c.CallMessage(t.Context(), wire.ChunkVerify, wire.ClassScrub, &msg.ChunkVerify{Chunk: uint64(k)}, verify); err != nil || code != fserr.OK || verify.Bad != 0 {
				t.Errorf("verify: %+v, %v, %v", verify, code, err)
			}
		})
	}
}

// want2 is want for goroutines of a test.
func (c *client) want2(code fserr.Code) {
	if code != fserr.OK {
		c.t.Errorf("write: %v", code)
	}
}

func sameTables(t *testing.T, k id.ChunkID, a, b *testServer) {
	t.Helper()
	x, ex, _, err := a.store.Table(k)
	if err != nil {
		t.Fatal(err)
	}
	y, ey, _, err := b.store.Table(k)
	if err != nil {
		t.Fatal(err)
	}
	if ex != ey || !slices.Equal(x, y) {
		for i := range x {
			if x[i] != y[i] {
				t.Fatalf("epochs %v and %v, block %d: %08x and %08x", ex, ey, i, x[i], y[i])
			}
		}
		t.Fatalf("epochs %v and %v", ex, ey)
	}
}

func TestRebuildRefused(t *testing.T) {
	f := newFakeLeader(t)
	src, dst := newTestServer(t, f), newTestServer(t, f)
	waitPeers(t, dst, src)
	rebuild := func(k id.ChunkID, e id.Epoch) fserr.Code {
		return f.ask(dst.ID(), wire.ChunkRebuild, &msg.ChunkRebuild{Chunk: uint64(k), Epoch: uint64(e), Source: uint32(src.ID())}, nil)
	}
	c := dial(t, src, 5)
	f.create(7, 1, src)
	c.want(rebuild(7, 2), fserr.NotReady, "source at a lower epoch")
	f.must(src.ID(), wire.ChunkAdopt, &msg.ChunkAdopt{Chunk: 7, Epoch: 2})
	c.want(rebuild(7, 2), fserr.NoChunk, "target without the chunk")
	f.must(dst.ID(), wire.ChunkJoin, &msg.ChunkJoin{Chunk: 7, Epoch: 2})
	f.must(src.ID(), wire.ChunkAdopt, &msg.ChunkAdopt{Chunk: 7, Epoch: 3})
	c.want(rebuild(7, 2), fserr.StaleEpoch, "source at a higher epoch")
	c.want(rebuild(8, 2), fserr.NoChunk, "source without the chunk")
	// The source dies in the middle: the rebuild fails, the replica goes on joining.
	f.must(dst.ID(), wire.ChunkJoin, &msg.ChunkJoin{Chunk: 7, Epoch: 3})
	c.want(c.write(7, 3, 0, pattern(1, block)), fserr.OK, "write")
	src.crash()
	code := rebuild(7, 3)
	c.want(code, fserr.Unavailable, "source is dead")
	f.must(dst.ID(), wire.ChunkPromote, &msg.ChunkPromote{Chunk: 7, Epoch: 3})
}
