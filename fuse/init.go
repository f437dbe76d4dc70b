package fuse

import (
	"fmt"
	"syscall"

	"varve/internal/fserr"
)

// init answers INIT: struct fuse_init_in to struct fuse_init_out. It runs in the goroutine of a reader, and
// the kernel sends nothing else before it has the answer.
func (s *Session) init(r *request) (int, error) {
	major, minor := r.u32(0), r.u32(4)
	offered := uint64(r.u32(12))
	if offered&initExt != 0 && len(r.rest) >= 4 {
		offered |= uint64(le.Uint32(r.rest)) << 32
	}
	b := r.zeroed(initOutSize)
	le.PutUint32(b, protoMajor)
	le.PutUint32(b[4:], min(minor, protoMinor))
	if major > protoMajor {
		return initOutSize, nil // the kernel answers with an INIT of our major version
	}
	if err := checkVersion(major, minor, offered); err != nil {
		s.readyOnce.Do(func() { s.initErr = err; close(s.ready) })
		return 0, syscall.EPROTO
	}
	wanted := initWanted
	if s.transport == Uring {
		wanted |= initOverIOUring
	}
	flags := offered & wanted
	background := s.opts.MaxBackground
	le.PutUint32(b[8:], r.u32(8)) // read-ahead, as offered
	le.PutUint32(b[12:], uint32(flags))
	le.PutUint16(b[16:], uint16(background))
	le.PutUint16(b[18:], uint16(max(background*3/4, 1))) // congestion threshold
	le.PutUint32(b[20:], maxWrite)
	le.PutUint32(b[24:], 1) // granularity of times, in nanoseconds
	le.PutUint16(b[28:], maxPages)
	le.PutUint32(b[32:], uint32(flags>>32))
	s.conn.Store(&ConnInfo{
		Minor: int(min(minor, protoMinor)), Flags: flags, MaxWrite: maxWrite, MaxBackground: background,
		Transport: s.transport, Why: s.why, Threads: s.threads,
	})
	return initOutSize, nil
}

// initAnswered lets Mount return: not before the kernel has the answer, since until then it may change its mind about FUSE over io_uring.
func (s *Session) initAnswered() {
	if s.conn.Load() != nil {
		s.readyOnce.Do(func() { close(s.ready) })
	}
}

// checkVersion refuses kernels that cannot do what the rest of the package relies on.
func checkVersion(major, minor uint32, offered uint64) error {
	if major < protoMajor || minor < protoMinMinor {
		return fmt.Errorf("kernel speaks FUSE %d.%d, want at least %d.%d: %w", major, minor, protoMajor, protoMinMinor, fserr.NotSupported)
	}
	if need := initBigWrites | initMaxPages; offered&need != need {
		return fmt.Errorf("kernel offers FUSE flags %#x, want %#x among them: %w", offered, need, fserr.NotSupported)
	}
	return nil
}
