package client

import (
	"context"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// File is one open of a regular file. Its methods may be called at once; Release is the last. When the session that
// opened it was lost, all of them fail with fserr.Stale.
type File struct {
	in       *inode
	write    bool
	released atomic.Bool
	losses   uint64 // of the inode that it was told of; guarded by inode.mu
	fails    uint64 // as losses, of what was written behind; guarded by behind.mu
}

// Ino returns the inode number.
func (f *File) Ino() id.Ino { return f.in.ino }

// ReadAt fills p from off and answers fewer bytes only at the end of the file.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fserr.Invalid
	}
	if off >= chunk.MaxFileSize {
		return 0, nil
	}
	ctx, cancel := f.in.s.c.limitData(ctx)
	defer cancel()
	if err := f.in.drain(ctx, off, off+int64(len(p))); err != nil {
		return 0, err
	}
	return f.in.read(ctx, p[:min(int64(len(p)), chunk.MaxFileSize-off)], off)
}

// WriteAt writes p at off, or at the end of the file if appendMode, and answers the end of what it wrote.
// n < len(p) only with an error.
func (f *File) WriteAt(ctx context.Context, p []byte, off int64, appendMode bool) (n int, newOff int64, err error) {
	switch {
	case !f.write:
		return 0, 0, fserr.BadHandle
	case off < 0:
		return 0, 0, fserr.Invalid
	case !appendMode && off > chunk.MaxFileSize-int64(len(p)):
		return 0, 0, fserr.FileTooBig
	}
	ctx, cancel := f.in.s.c.limitData(ctx)
	defer cancel()
	if appendMode {
		if err = f.in.drainAll(ctx); err == nil {
			newOff, err = f.in.appendTo(ctx, p)
		}
	} else if err = f.in.drain(ctx, off, off+int64(len(p))); err == nil {
		newOff, err = off+int64(len(p)), f.in.write(ctx, p, off, false)
	}
	if err != nil {
		return 0, 0, err
	}
	return len(p), newOff, nil
}

// Fsync makes what was written to the file, through any handle of this client, durable. With dataOnly the modification
// time may stay behind. It fails with IO, once, if something that was written is gone.
func (f *File) Fsync(ctx context.Context, dataOnly bool) error {
	ctx, cancel := f.in.s.c.limitData(ctx)
	defer cancel()
	return f.fsync(ctx, dataOnly)
}

func (f *File) fsync(ctx context.Context, dataOnly bool) error {
	if err := f.in.fsync(ctx, dataOnly); err != nil {
		return err
	}
	if err := f.failed(); err != nil {
		return err
	}
	return f.lost()
}

// Flush has what was written behind written, and reports size and modification time; it is for close(2) and makes no data durable.
func (f *File) Flush(ctx context.Context) error {
	if f.in.s.ctx.Err() != nil {
		return fserr.Stale
	}
	if !f.write {
		return nil
	}
	ctx, cancel := f.in.s.c.limitData(ctx)
	defer cancel()
	if err := f.in.drainAll(ctx); err != nil {
		return err
	}
	if err := f.in.flushAttr(ctx, false); err != nil {
		return err
	}
	return f.failed()
}

// Fallocate has the mode bits of fallocate(2): 0, KEEP_SIZE, PUNCH_HOLE with KEEP_SIZE, and ZERO_RANGE with or without.
// Space is not reserved.
func (f *File) Fallocate(ctx context.Context, mode uint32, off, n int64) error {
	if !f.write {
		return fserr.BadHandle
	}
	if f.in.s.ctx.Err() != nil {
		return fserr.Stale
	}
	ctx, cancel := f.in.s.c.limitData(ctx)
	defer cancel()
	if err := f.in.drain(ctx, off, chunk.MaxFileSize); err != nil {
		return err
	}
	return f.in.fallocate(ctx, mode, off, n)
}

// Seek finds the next data or hole at or after off; whence is SEEK_DATA or SEEK_HOLE.
func (f *File) Seek(ctx context.Context, off int64, whence int) (int64, error) {
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, fserr.Invalid
	}
	ctx, cancel := f.in.s.c.limitData(ctx)
	defer cancel()
	if err := f.in.drainAll(ctx); err != nil {
		return 0, err
	}
	return f.in.seek(ctx, off, whence == unix.SEEK_HOLE)
}

// Truncate sets the size.
func (f *File) Truncate(ctx context.Context, size int64) error {
	if !f.write {
		return fserr.BadHandle
	}
	return f.in.s.c.truncateOpen(ctx, f, size, false)
}

// Release ends the open. The lease is kept for the next one.
func (f *File) Release(ctx context.Context) error {
	if f.released.Swap(true) {
		return fserr.BadHandle
	}
	ctx, cancel := f.in.s.c.limitData(ctx)
	defer cancel()
	return f.in.closeHandle(ctx, f.write)
}
