package fuse

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

const devicePath = "/dev/fuse"

// ioctlClone is FUSE_DEV_IOC_CLONE: make a descriptor of /dev/fuse another one of the same connection.
const ioctlClone = 0x8004e500

// device is /dev/fuse, and the transport over it without reactors. Each reader has a descriptor of its own, which the kernel calls
// a clone; an answer goes to the descriptor its request was read from. Descriptors are non-blocking. Those that goroutines read
// wait in the runtime's poller, so that a reader that waits holds no thread and the goroutine that it has
// started for a request runs at once. They are registered with the poller only after mount(2): before, the
// kernel answers poll(2) with an error and does not wake up anybody later. Those that loops read are not registered: the poller would be woken in vain.
type device struct {
	log     *slog.Logger
	readers []*descriptor
	closing atomic.Bool
}

var _ transport = (*device)(nil)

// descriptor is one open /dev/fuse.
type descriptor struct {
	file *os.File
	raw  syscall.RawConn
}

// How a descriptor waits: in the runtime's poller, or elsewhere.
const polled, unpolled = true, false

func newDescriptor(fd int, polled bool) (*descriptor, error) {
	// Package os asks for the mode to find out whether the poller is to have it.
	err := unix.SetNonblock(fd, polled)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("%s: non-blocking mode: %w", devicePath, err)
	}
	f := os.NewFile(uintptr(fd), devicePath)
	if !polled {
		if err := unix.SetNonblock(fd, true); err != nil {
			f.Close()
			return nil, fmt.Errorf("%s: non-blocking mode: %w", devicePath, err)
		}
	}
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &descriptor{file: f, raw: raw}, nil
}

// newDevice takes over fd, which is mounted, and makes clones of it so that there are readers descriptors.
func newDevice(fd, readers int, polled bool, log *slog.Logger) (*device, error) {
	first, err := newDescriptor(fd, polled)
	if err != nil {
		return nil, err
	}
	d := &device{log: log, readers: []*descriptor{first}}
	for len(d.readers) < readers {
		clone, err := cloneDescriptor(fd, polled)
		if err != nil {
			log.Warn("cannot clone the descriptor; going on with fewer readers", "readers", len(d.readers), "cause", err)
			break
		}
		d.readers = append(d.readers, clone)
	}
	return d, nil
}

func cloneDescriptor(fd int, polled bool) (*descriptor, error) {
	clone, err := unix.Open(devicePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlSetPointerInt(clone, ioctlClone, fd); err != nil {
		unix.Close(clone)
		return nil, err
	}
	return newDescriptor(clone, polled)
}

// close makes run return, and aborts the connection if the mount is still there.
func (d *device) close() {
	d.closing.Store(true)
	for _, r := range d.readers {
		_ = r.file.Close() // nothing is buffered; the second close of one says so, which does no harm
	}
}

// free implements transport: close has done it all.
func (d *device) free() {}

// run reads with all descriptors until the mount is gone.
func (d *device) run(accept func(*request)) error {
	errs := make([]error, len(d.readers))
	var all sync.WaitGroup
	for i, desc := range d.readers {
		all.Go(func() { errs[i] = d.readLoop(desc, accept) })
	}
	all.Wait()
	for _, err := range errs {
		if !errors.Is(err, errUnmounted) {
			return err
		}
	}
	return errUnmounted
}

// readLoop reads requests into a buffer of its own. The buffer goes along with a request that has much data;
// others are copied, so that a request that blocks holds no more memory than it needs.
func (d *device) readLoop(desc *descriptor, accept func(*request)) error {
	buf := getBuffer(maxWrite)
	defer func() { buf.put() }()
	var n int
	var readErr error
	read := func(fd uintptr) bool {
		n, readErr = unix.Read(int(fd), buf.mem[readStart:])
		return readErr != unix.EAGAIN
	}
	for {
		err := desc.raw.Read(read)
		if err == nil {
			err = readErr
		} else if !d.closing.Load() {
			// The poller gives up on a descriptor that has an error pending: ask the descriptor itself.
			if e := desc.raw.Control(func(fd uintptr) { read(fd) }); e == nil && readErr != unix.EAGAIN {
				err = readErr
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT): // ENOENT: the request was taken back
			continue
		case d.closing.Load(), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ECONNABORTED), errors.Is(err, os.ErrClosed):
			return errUnmounted
		default:
			return fmt.Errorf("read %s: %w", devicePath, err)
		}
		if r := d.request(desc, &buf, n); r != nil {
			accept(r)
		}
	}
}

// readStart is where a message is read to, so that the data of a WRITE starts at a page.
const readStart = dataStart - inHeaderSize - 40

// request makes a request of the n bytes that were read into buf, which is another one afterwards if the request has much data. Nil: they make no
// sense, which was answered.
func (d *device) request(desc *descriptor, buf **buffer, n int) *request {
	const keep = 16 << 10 // requests up to this length are copied, which costs less than a page fault
	r := newRequest()
	r.via, r.source = d, desc
	message := (*buf).mem[readStart : readStart+n : readStart+n]
	switch {
	case n <= smallRequest:
		message = r.small[:copy(r.small[:], message)]
	case n <= keep:
		r.in = getBuffer(n)
		message = r.in.mem[readStart : readStart+copy(r.in.mem[readStart:], message)]
	default:
		r.in = *buf
		*buf = getBuffer(maxWrite)
	}
	var args []byte
	var err error
	r.header, args, err = parseHeader(message)
	if err == nil {
		r.fixed, r.rest, err = split(r.op, args)
	}
	if err == nil {
		return r
	}
	d.log.Error("request refused", "cause", err)
	if r.unique != 0 {
		_ = d.send(r, syscall.EIO, 0) // it made no sense, so its answer may make none
	}
	r.free()
	return nil
}

// room gives n bytes after the place of the out header; data starts at a page if there is much of it.
func (d *device) room(r *request, n int) []byte {
	if outHeaderSize+n <= smallAnswer {
		r.frame = r.answer[:outHeaderSize+n]
	} else {
		if r.out != nil { // of an attempt to begin it on the loop
			r.out.put()
		}
		r.out = getBuffer(n)
		r.frame = r.out.mem[dataStart-outHeaderSize : dataStart+n]
	}
	return r.frame[outHeaderSize:]
}

// send writes header and body, which are next to each other, with one write(2).
func (d *device) send(r *request, e syscall.Errno, n int) error {
	if e != 0 || r.frame == nil {
		r.frame, n = r.answer[:outHeaderSize], 0
	}
	r.frame = r.frame[:outHeaderSize+n]
	putOutHeader(r.frame, -int32(e), r.unique)
	if err := r.source.raw.Control(r.write); err != nil {
		return err
	}
	return r.result
}

// writeFrame runs while the descriptor is kept open.
func (r *request) writeFrame(fd uintptr) {
	for {
		_, err := unix.Write(int(fd), r.frame)
		if err != unix.EINTR && err != unix.EAGAIN {
			r.result = err
			return
		}
	}
}

// notify writes one notification. It may block; see the package documentation.
func (d *device) notify(code int32, body ...[]byte) error {
	frame := make([]byte, outHeaderSize)
	for _, b := range body {
		frame = append(frame, b...)
	}
	putOutHeader(frame, code, 0)
	var written error
	err := d.readers[0].raw.Control(func(fd uintptr) { _, written = unix.Write(int(fd), frame) })
	return errors.Join(err, written)
}

func putOutHeader(frame []byte, e int32, unique uint64) {
	le.PutUint32(frame, uint32(len(frame)))
	le.PutUint32(frame[4:], uint32(e))
	le.PutUint64(frame[8:], unique)
}
