package client

import (
	"errors"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// powerLoss makes the replicas of a chunk what they are after all of them lost power and one was accepted.
func powerLoss(w *world, f *File, index uint32) {
	w.mu.Lock()
	ch := w.inodes[uint64(f.Ino())].chunks[index]
	ch.Epoch++
	ch.Lost = ch.Epoch
	c, e := id.ChunkID(ch.Id), id.Epoch(ch.Epoch)
	w.mu.Unlock()
	for _, s := range w.cs {
		s.set(func() {
			if k := s.chunks[c]; k != nil {
				k.epoch = e
			}
		})
	}
}

// TestFsyncTellsOfLostWrites: what was written before a loss of power of every replica and not flushed makes the next fsync of each
// handle fail, once; what was flushed, or written since, does not.
func TestFsyncTellsOfLostWrites(t *testing.T) {
	w := newWorld(t, 1, 3, 3, 1)
	c := w.dial(t, func(o *Options) { o.FlushEvery = time.Hour })
	f := create(t, c, "a")
	g := open(t, c, f, true)
	sync := func(h *File, lost bool) {
		t.Helper()
		if err := h.Fsync(t.Context(), true); errors.Is(err, fserr.IO) != lost || !lost && err != nil {
			t.Fatalf("fsync: %v, want a loss %t", err, lost)
		}
	}
	write(t, f, fill(4096, 1), 0)
	write(t, f, fill(4096, 1), chunk.Size)
	sync(f, false)
	powerLoss(w, f, 0) // all was flushed
	sync(f, false)
	write(t, f, fill(4096, 2), 0) // since the loss
	sync(f, false)

	write(t, f, fill(4096, 3), 4096)
	powerLoss(w, f, 0)
	write(t, f, fill(4096, 4), 8192) // does not make it good
	write(t, f, fill(4096, 4), chunk.Size)
	sync(f, true)
	sync(f, false)
	sync(g, true)
	sync(g, false)
	h := open(t, c, f, true) // others were told
	sync(h, false)

	write(t, f, fill(4096, 5), chunk.Size)
	powerLoss(w, f, 0) // of another chunk
	sync(f, false)
	powerLoss(w, f, 1)
	write(t, f, fill(4096, 6), chunk.Size)
	sync(f, false)
	write(t, f, fill(4096, 6), chunk.Size)
	powerLoss(w, f, 1)
	// Whoever opens after a loss that nobody was told of is told.
	if err := f.in.fsync(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	i := open(t, c, f, true)
	sync(i, true)
	sync(i, false)
	sync(f, true)
}

func TestUnflushedOfAnotherChunkIsForgotten(t *testing.T) {
	in := &inode{unflushed: map[uint32]unflushed{}}
	for _, s := range []struct{ note, want unflushed }{
		{unflushed{5, 3}, unflushed{5, 3}},
		{unflushed{5, 4}, unflushed{5, 3}},
		{unflushed{5, 2}, unflushed{5, 2}},
		{unflushed{7, 1}, unflushed{7, 1}}, // the file was cut, and has grown again
		{unflushed{5, 1}, unflushed{7, 1}}, // a flush of the old one that failed
	} {
		in.noteUnflushedLocked(0, s.note)
		if in.unflushed[0] != s.want {
			t.Errorf("after %v: %v, want %v", s.note, in.unflushed[0], s.want)
		}
	}
}
