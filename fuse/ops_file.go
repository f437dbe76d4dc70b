package fuse

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/invariant"
)

// putOpen writes struct fuse_open_out to b.
func putOpen(b []byte, fh uint64) {
	clear(b[:openOutSize])
	le.PutUint64(b, fh)
	le.PutUint32(b[8:], fopenDirectIO|fopenParallelDirectWrites)
}

// fileOf returns the open file whose number is at the start of the arguments.
func (s *Session) fileOf(r *request) (*file, error) {
	if f := s.files.get(r.u64(0)); f != nil && f.ino == r.ino {
		return f, nil
	}
	return nil, fserr.BadHandle
}

func (s *Session) open(r *request) (int, error) {
	flags := r.u32(0)
	trunc := flags&unix.O_TRUNC != 0
	write := flags&unix.O_ACCMODE != unix.O_RDONLY || trunc
	if write && s.opts.ReadOnly {
		return 0, fserr.ReadOnly
	}
	h, err := s.backend.Open(r.flight, r.cred(), r.ino, write, trunc)
	if err != nil {
		return 0, err
	}
	fh := s.files.add(&file{handle: h, ino: r.ino, write: write})
	r.lost = func() { s.releaseLost(fh) }
	if r.u32(4)&openKillSuidgid != 0 {
		if err := s.killPriv(r); err != nil {
			s.releaseLost(fh)
			return 0, err
		}
	}
	putOpen(r.room(openOutSize), fh)
	return openOutSize, nil
}

func (s *Session) read(r *request) (int, error) {
	f, err := s.fileOf(r)
	if err != nil {
		return 0, err
	}
	off, size := r.u64(8), r.u32(16)
	if size > maxWrite {
		return 0, fserr.Invalid
	}
	if off >= chunk.MaxFileSize {
		return 0, nil
	}
	n, err := f.handle.ReadAt(r.flight, r.room(int(size)), int64(off))
	if n < 0 || n > int(size) {
		invariant.Failf("inode %d: read of %d bytes answered %d", r.ino, size, n)
	}
	return n, err
}

// write answers with struct fuse_write_out. An interrupted write that has written something says how much.
func (s *Session) write(r *request) (int, error) {
	f, err := s.fileOf(r)
	if err != nil {
		return 0, err
	}
	off, err := r.position(8)
	if err != nil {
		return 0, err
	}
	size, flags := r.u32(16), r.u32(20)
	if uint64(size) != uint64(len(r.rest)) || size > maxWrite {
		return 0, fserr.Invalid
	}
	if off+int64(size) > chunk.MaxFileSize {
		return 0, fserr.FileTooBig
	}
	if flags&writeKillSuidgid != 0 {
		if err := s.killPriv(r); err != nil {
			return 0, err
		}
	}
	appendMode := r.u32(32)&unix.O_APPEND != 0 && flags&writeCache == 0
	if f.behind != nil && r.buffered() && f.behind.WriteBehind(r.rest, off) {
		le.PutUint32(r.zeroed(8), size)
		return 8, nil
	}
	n, _, err := f.handle.WriteAt(r.flight, r.rest, off, appendMode)
	if n < 0 || n > len(r.rest) {
		invariant.Failf("inode %d: write of %d bytes answered %d", r.ino, size, n)
	}
	if err != nil && (n == 0 || !errors.Is(err, context.Canceled)) {
		return 0, err
	}
	le.PutUint32(r.zeroed(8), uint32(n))
	return 8, nil
}

// buffered says of a WRITE that whoever waits for it was promised nothing about where its bytes are when it returns. What comes of a mapped page
// (writeCache) was kept back once already.
func (r *request) buffered() bool {
	const synchronous = unix.O_DIRECT | unix.O_SYNC | unix.O_DSYNC | unix.O_APPEND
	return r.u32(32)&synchronous == 0 && r.u32(20)&writeCache == 0
}

// flush is sent for each close(2) of a descriptor; it also gives the fcntl locks of the closing process back,
// once its data is where the next holder will see it.
func (s *Session) flush(r *request) (int, error) {
	f, err := s.fileOf(r)
	if err != nil {
		return 0, err
	}
	err = f.handle.Flush(r.flight)
	return 0, errors.Join(err, s.unlockOwner(r.flight, r.ino, r.u64(16)))
}

// release is sent once, when the last descriptor and mapping of an open file are gone. Its answer is seen
// by nobody, so that failures are logged here.
func (s *Session) release(r *request) (int, error) {
	f := s.files.take(r.u64(0))
	if f == nil {
		return 0, fserr.BadHandle
	}
	if r.u32(12)&releaseFlockUnlock != 0 {
		if err := s.unlockFlock(r.flight, f.ino, r.u64(16)); err != nil {
			s.log.Warn("unlock at release failed", "inode", f.ino, "cause", err)
		}
	}
	s.unlockOwners(r.flight, f)
	err := f.handle.Release(r.flight)
	if err != nil {
		s.log.Warn("release failed", "inode", f.ino, "cause", err)
	}
	return 0, err
}

func (s *Session) fsync(r *request) (int, error) {
	f, err := s.fileOf(r)
	if err != nil {
		return 0, err
	}
	return 0, f.handle.Fsync(r.flight, r.u32(8)&fsyncDataOnly != 0)
}

// syncfs is syncfs(2) and what sync(2) does for the mount.
func (s *Session) syncfs(r *request) (int, error) {
	var failed []error
	for _, f := range s.files.all() {
		if !f.write {
			continue
		}
		if err := f.handle.Fsync(r.flight, false); err != nil && fserr.Of(err) != fserr.BadHandle { // closed since
			failed = append(failed, err)
		}
	}
	return 0, errors.Join(failed...)
}

func (s *Session) fallocate(r *request) (int, error) {
	f, err := s.fileOf(r)
	if err != nil {
		return 0, err
	}
	off, err := r.position(8)
	if err != nil {
		return 0, err
	}
	length, err := r.position(16)
	if err != nil || off+length > chunk.MaxFileSize {
		return 0, fserr.FileTooBig
	}
	return 0, f.handle.Fallocate(r.flight, r.u32(24), off, length)
}

func (s *Session) lseek(r *request) (int, error) {
	f, err := s.fileOf(r)
	if err != nil {
		return 0, err
	}
	off, whence := r.u64(8), r.u32(16)
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, fserr.Invalid
	}
	if off > chunk.MaxFileSize {
		return 0, fserr.NoDevice
	}
	at, err := f.handle.Seek(r.flight, int64(off), int(whence))
	if err != nil {
		return 0, err
	}
	le.PutUint64(r.room(8), uint64(at))
	return 8, nil
}
