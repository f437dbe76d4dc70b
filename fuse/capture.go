package fuse

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/capture"
	"varve/internal/fserr"
)

// maxCaptors bounds the connections of those who want to capture; one captures at a time.
const maxCaptors = 4

// captureKinds says what an operation is in a capture.
var captureKinds = [opLimit]capture.Kind{
	opLookup: capture.Lookup, opGetattr: capture.Getattr, opStatx: capture.Getattr, opSetattr: capture.Setattr, opReadlink: capture.Readlink,
	opSymlink: capture.Symlink, opMknod: capture.Mknod, opMkdir: capture.Mkdir, opUnlink: capture.Unlink, opRmdir: capture.Rmdir,
	opRename: capture.Rename, opRename2: capture.Rename, opLink: capture.Link, opOpen: capture.Open, opCreate: capture.Create,
	opRead: capture.Read, opWrite: capture.Write, opStatfs: capture.Statfs, opRelease: capture.Release, opFsync: capture.Fsync,
	opFlush: capture.Flush, opSyncfs: capture.Syncfs, opFallocate: capture.Fallocate, opLseek: capture.Seek, opSetxattr: capture.Xattr,
	opGetxattr: capture.Xattr, opListxattr: capture.Xattr, opRemovexattr: capture.Xattr, opAccess: capture.Access,
	opOpendir: capture.Opendir, opReaddir: capture.Readdir, opReaddirplus: capture.Readdir, opReleasedir: capture.Releasedir,
	opGetlk: capture.Lock, opSetlk: capture.Lock, opSetlkw: capture.Lock,
}

// captured adds a request that was answered, and not yet freed, to a capture. FORGET, INTERRUPT and the like, which the kernel sends on its
// own, are no operations.
func captured(c *capture.Buffers, r *request, took time.Duration, e syscall.Errno, n int) {
	if r.began.IsZero() || r.op >= opLimit {
		return
	}
	begin := r.began.Sub(c.Began())
	if begin < 0 {
		return // it began before the capture
	}
	x := capture.Record{
		Kind: captureKinds[r.op], Errno: e, PID: r.pid, Begin: begin, Took: max(took, 0), Inode: uint64(r.ino),
	}
	number := func(at int) int64 { return int64(min(r.u64(at), 1<<62-1)) } // the kernel's limits are lower
	switch r.op {
	case opRead, opReaddir, opReaddirplus:
		x.Offset, x.Size, x.Done = number(8), int64(r.u32(16)), uint32(n)
		if r.op == opRead {
			x.Handle = r.u64(0)
		} else {
			x.Offset = 0 // a cookie
		}
	case opWrite:
		x.Handle, x.Offset, x.Size = r.u64(0), number(8), int64(r.u32(16))
		if e == 0 && len(r.body) >= 4 {
			x.Done = le.Uint32(r.body)
		}
	case opFsync:
		x.Handle, x.Arg = r.u64(0), r.u32(8)
	case opFlush, opRelease:
		x.Handle = r.u64(0)
	case opFallocate:
		x.Handle, x.Offset, x.Size, x.Arg = r.u64(0), number(8), number(16), r.u32(24)
	case opLseek:
		x.Handle, x.Offset, x.Arg = r.u64(0), number(8), r.u32(16)
	case opOpen:
		x.Arg = r.u32(0)
		if e == 0 && len(r.body) >= openOutSize {
			x.Handle = le.Uint64(r.body)
		}
	case opCreate:
		x.Arg = r.u32(0)
		if e == 0 && len(r.body) >= entryOutSize+openOutSize {
			x.Inode, x.Handle = le.Uint64(r.body), le.Uint64(r.body[entryOutSize:])
		}
	case opSetattr:
		if r.u32(0)&fattrSize != 0 {
			x.Kind, x.Offset = capture.Truncate, number(16)
			if r.u32(0)&fattrFH != 0 {
				x.Handle = r.u64(8)
			}
		}
	}
	c.Add(r.unique>>1, &x)
}

// listenCaptures opens the socket by which a capture is asked for. Without it the mount works as well.
func (s *Session) listenCaptures() {
	l, err := Listen(func() (*net.UnixListener, error) { return capture.Listen(s.mount.conn) })
	if err != nil {
		s.log.Warn("operations of this mount cannot be captured", "cause", err)
		return
	}
	s.captures = l
}

// nameTime is how long Listen waits for a name.
const nameTime = 2 * time.Second

// Listen calls listen for a name that has the number of a new mount in it, again while another has that name: the kernel gives the number of a mount that has ended to
// the next one, which may be there before the process of the other has let go of the name.
func Listen(listen func() (*net.UnixListener, error)) (*net.UnixListener, error) {
	for end := time.Now().Add(nameTime); ; time.Sleep(10 * time.Millisecond) {
		if l, err := listen(); !errors.Is(err, unix.EADDRINUSE) || time.Now().After(end) {
			return l, err
		}
	}
}

// serveCaptures serves those who want to capture the mount until stop is closed.
func (s *Session) serveCaptures(stop <-chan struct{}) {
	if s.captures == nil {
		return
	}
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { <-stop; _ = s.captures.Close() })
	room := make(chan struct{}, maxCaptors)
	for {
		nc, err := s.captures.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no descriptors, for one
			s.log.Warn("cannot accept who wants to capture", "cause", err)
			select {
			case <-stop:
			case <-time.After(watchEvery):
			}
			continue
		}
		select {
		case room <- struct{}{}:
		default:
			_ = nc.Close()
			continue
		}
		all.Go(func() {
			defer func() { <-room }()
			if err := s.serveCapture(nc, stop); err != nil {
				s.log.Warn("capture ended", "cause", err)
			}
		})
	}
}

func (s *Session) serveCapture(nc *net.UnixConn, stop <-chan struct{}) error {
	begin := func(b *capture.Buffers) error {
		if !s.capture.CompareAndSwap(nil, b) {
			return fmt.Errorf("somebody else captures this mount: %w", fserr.Busy)
		}
		return nil
	}
	return capture.Serve(nc, stop, begin, s.endCapture)
}

// settleTime is how long the end of a capture waits for operations under way, but for waits for locks.
const settleTime = time.Second

// endCapture ends a capture once the operations that are under way have ended, or have not for a while: the caller of one may have had the answer
// before its record is added.
func (s *Session) endCapture() {
	under := slices.DeleteFunc(s.flights.all(), func(f *flight) bool { return f.op == opSetlkw })
	hot := s.hotUnderWay()
	for limit := time.Now().Add(settleTime); len(under)+len(hot) > 0 && time.Now().Before(limit); time.Sleep(time.Millisecond) {
		now, hotNow := s.flights.all(), s.hotUnderWay()
		under = slices.DeleteFunc(under, func(f *flight) bool { return !slices.Contains(now, f) })
		hot = slices.DeleteFunc(hot, func(h hotRequest) bool { return !slices.Contains(hotNow, h) })
	}
	s.capture.Store(nil)
}
