package capture

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
)

// What goes over the socket of a mount, little endian. The client says hello (16 bytes: magic, version 1, zero), the mount answers with packets:
// 16 bytes (kind u32, length u32, records dropped so far u64) and the payload. The first is *started* (8 bytes: nanoseconds since 1970) or *refused* (text), then come
// *records*, and *end* when the client has closed its side, or the mount goes away. Both are of one build or of two near ones: a mount refuses
// a version that it does not know.
const (
	helloMagic   = 0x50414376 // "vCAP"
	helloVersion = 1
	helloSize    = 16
	packetSize   = 16

	packetStarted = 1
	packetRefused = 2
	packetRecords = 3
	packetEnd     = 4

	greetTime = 5 * time.Second  // for hello and its answer
	stuckTime = 30 * time.Second // a client that takes nothing for so long is given up
	lastTime  = 2 * time.Second  // to take the last records when the mount goes away
)

// name is the socket of the mount whose device number has this minor: one name for each mount of a kernel, in the abstract namespace of the
// network namespace of the process that serves it.
func name(minor uint32) *net.UnixAddr {
	return &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("@varve/mount/%d", minor)}
}

// Listen listens for those who want to capture a mount.
func Listen(minor uint32) (*net.UnixListener, error) { return net.ListenUnix("unix", name(minor)) }

// checkPeer refuses a peer of another user, unless it is root.
func checkPeer(nc *net.UnixConn) error {
	rc, err := nc.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := rc.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if cerr != nil {
		return fmt.Errorf("credentials of the peer: %w", cerr)
	}
	return permit(cred.Uid, uint32(os.Geteuid()))
}

func permit(peer, own uint32) error {
	if peer != 0 && peer != own {
		return fmt.Errorf("peer has user id %d, want %d or 0: %w", peer, own, fserr.Access)
	}
	return nil
}

// Serve serves one client of a mount until the client has enough, is gone, or stop is closed. begin is called with the Buffers that the mount
// is to add records to, and returns an error if it cannot; end is called when it is to stop that. Serve closes nc.
func Serve(nc *net.UnixConn, stop <-chan struct{}, begin func(*Buffers) error, end func()) error {
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(greetTime))
	var hello [helloSize]byte
	if err := checkPeer(nc); err != nil {
		return err
	}
	if _, err := io.ReadFull(nc, hello[:]); err != nil {
		return fmt.Errorf("hello: %w", err)
	}
	if le.Uint32(hello[:]) != helloMagic || le.Uint32(hello[4:]) != helloVersion {
		return refuse(nc, fmt.Errorf("this mount speaks version %d of the protocol of captures: %w", helloVersion, fserr.Protocol))
	}
	b := NewBuffers()
	if err := begin(b); err != nil {
		return refuse(nc, err)
	}
	var once sync.Once
	done := func() { once.Do(end) }
	defer done()
	if err := send(nc, packetStarted, 0, le.AppendUint64(nil, uint64(b.began.UnixNano()))); err != nil {
		return err
	}
	_ = nc.SetReadDeadline(time.Time{})
	enough := make(chan struct{})
	go func() { // ends with nc at the latest
		defer close(enough)
		_, _ = io.Copy(io.Discard, nc)
	}()
	ended := make(chan struct{})
	defer close(ended)
	hurry := func() { _ = nc.SetWriteDeadline(time.Now().Add(lastTime)) }
	go func() {
		select {
		case <-stop:
			hurry() // a write that is under way
		case <-ended:
		}
	}()
	tick := time.NewTicker(takeEvery)
	defer tick.Stop()
	for last := false; ; {
		select {
		case <-b.wake:
		case <-tick.C:
		case <-enough:
			last = true
		case <-stop:
			last = true
		}
		if last {
			done() // no record is added any more but by who is about to
		}
		_ = nc.SetWriteDeadline(time.Now().Add(stuckTime))
		select {
		case <-stop:
			hurry()
		default:
		}
		dropped, err := b.take(func(records []byte) error { return send(nc, packetRecords, 0, records) })
		if err == nil && last {
			err = send(nc, packetEnd, dropped, nil)
		}
		if last || err != nil {
			return err
		}
	}
}

func refuse(nc *net.UnixConn, err error) error {
	return errors.Join(err, send(nc, packetRefused, 0, []byte(err.Error())))
}

func send(nc *net.UnixConn, kind uint32, dropped uint64, payload []byte) error {
	var h [packetSize]byte
	le.PutUint32(h[:], kind)
	le.PutUint32(h[4:], uint32(len(payload)))
	le.PutUint64(h[8:], dropped)
	_, err := (&net.Buffers{h[:], payload}).WriteTo(nc)
	return err
}

// Stream is the client's side of a capture that is under way.
type Stream struct {
	Started time.Time
	Dropped uint64 // known at the end

	nc      *net.UnixConn
	in      *bufio.Reader
	packet  []byte // records that Next has not returned
	payload []byte
}

// Dial starts a capture of the mount whose device has this minor number. Unavailable if no process answers for it in this network
// namespace, Access if it is another user's.
func Dial(minor uint32) (*Stream, error) {
	nc, err := net.DialUnix("unix", nil, name(minor))
	if err != nil {
		return nil, fmt.Errorf("the process that serves the mount cannot be reached (is it of this release, and in this network namespace?): %w: %w", fserr.Unavailable, err)
	}
	return NewStream(nc)
}

// NewStream takes over a connection to the process that serves a mount.
func NewStream(nc *net.UnixConn) (*Stream, error) {
	s := &Stream{nc: nc, in: bufio.NewReaderSize(nc, 64<<10)}
	if err := s.greet(); err != nil {
		return nil, errors.Join(err, nc.Close())
	}
	return s, nil
}

func (s *Stream) greet() error {
	if err := checkPeer(s.nc); err != nil {
		return err
	}
	_ = s.nc.SetDeadline(time.Now().Add(greetTime))
	var hello [helloSize]byte
	le.PutUint32(hello[:], helloMagic)
	le.PutUint32(hello[4:], helloVersion)
	if _, err := s.nc.Write(hello[:]); err != nil {
		return err
	}
	kind, payload, err := s.receive()
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return fmt.Errorf("the mount hung up: it serves its own user and root only: %w", fserr.Access)
	case err != nil:
		return err
	case kind == packetRefused:
		return fmt.Errorf("the mount refuses: %s", payload)
	case kind != packetStarted || len(payload) != 8:
		return fmt.Errorf("packet of kind %d with %d bytes instead of a start: %w", kind, len(payload), fserr.Protocol)
	}
	s.Started = time.Unix(0, int64(le.Uint64(payload)))
	return s.nc.SetDeadline(time.Time{})
}

func (s *Stream) receive() (kind uint32, payload []byte, err error) {
	var h [packetSize]byte
	if _, err := io.ReadFull(s.in, h[:]); err != nil {
		return 0, nil, err
	}
	kind, n := le.Uint32(h[:]), le.Uint32(h[4:])
	if n > shardBytes {
		return 0, nil, fmt.Errorf("packet of %d bytes, want at most %d: %w", n, shardBytes, fserr.Protocol)
	}
	if cap(s.payload) < int(n) {
		s.payload = make([]byte, n)
	}
	s.payload = s.payload[:n]
	if kind == packetEnd {
		s.Dropped = le.Uint64(h[8:])
	}
	_, err = io.ReadFull(s.in, s.payload)
	return kind, s.payload, err
}

// Next returns the next record; io.EOF when the capture has ended as it should, another error if the mount's process went away.
func (s *Stream) Next() (Record, error) {
	for len(s.packet) < RecordSize {
		kind, payload, err := s.receive()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return Record{}, fmt.Errorf("the process that serves the mount went away: %w", io.ErrUnexpectedEOF)
		case err != nil:
			return Record{}, err
		case kind == packetEnd:
			return Record{}, io.EOF
		case kind != packetRecords || len(payload)%RecordSize != 0:
			return Record{}, fmt.Errorf("packet of kind %d with %d bytes: %w", kind, len(payload), fserr.Protocol)
		}
		s.packet = payload
	}
	r, err := decodeRecord(s.packet)
	s.packet = s.packet[RecordSize:]
	return r, err
}

// ready reports whether Next returns without waiting for the mount, as far as that can be seen.
func (s *Stream) ready() bool { return len(s.packet) >= RecordSize || s.in.Buffered() > 0 }

// Stop asks the mount to end the capture; Next returns what is left.
func (s *Stream) Stop() error { return s.nc.CloseWrite() }

// Close ends the connection.
func (s *Stream) Close() error { return s.nc.Close() }
