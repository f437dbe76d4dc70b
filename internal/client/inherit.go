package client

import (
	"context"

	"varve/internal/chunk"
)

// Inherit has the next Fsync of f also cover what was written to the same file through old and not flushed, old being of this client too,
// and its session lost. Who goes on behind f was told that these writes are done, and may flush only now. What was written then is on the replicas
// that the cluster kept when the session ended; were they to lose power before the flush, it fails as it would have for old.
func (f *File) Inherit(old *File) {
	in, was := f.in, old.in
	if in == was || in.ino != was.ino {
		return
	}
	was.mu.Lock()
	due := make(map[uint32]unflushed, len(was.unflushed))
	for index, u := range was.unflushed {
		due[index] = u
	}
	losses := was.losses - old.losses
	was.mu.Unlock()
	in.mu.Lock()
	defer in.mu.Unlock()
	for index, u := range due {
		in.noteUnflushedLocked(index, u)
	}
	if losses > 0 {
		in.losses++ // that old was not told of
	}
}

// Adopt has the next Fsync of f cover all of the file, whoever wrote it: another client that died before it flushed, of which the one that goes on behind f
// now knows nothing. A loss of power of every replica is told of if it comes after this call.
func (f *File) Adopt(ctx context.Context) error {
	ctx, cancel := f.in.s.c.limit(ctx)
	defer cancel()
	in := f.in
	size, err := in.sizeFor(ctx, chunk.MaxFileSize)
	if err != nil {
		return err
	}
	for index := uint32(0); int64(index)*chunk.Size < size; {
		loc, known := in.lookup(index)
		if !known {
			if err := in.fetch(ctx, index); err != nil {
				return err
			}
			continue
		}
		if loc != nil {
			in.mu.Lock()
			in.noteUnflushedLocked(index, unflushed{loc.chunk, loc.epoch})
			in.mu.Unlock()
		}
		index++
	}
	return nil
}
