package records

import (
	"errors"
	"io"
	"net"
	"sync"
)

// errTaken is that a Stream was given to a loop.
var errTaken = errors.New("connection was given to a loop")

const (
	// firstBuffer is what a Stream reads into before large records come, in bytes, and wholeBuffer afterwards.
	firstBuffer = 4 << 10
	wholeBuffer = overhead + MaxContent
	// streamPiece is how much of one Write is sealed at once, in bytes.
	streamPiece = 2 * MaxContent
)

// Stream is a net.Conn over another one, in records. It is no syscall.Conn: its socket is not to be read or written around it.
type Stream struct {
	net.Conn
	forged func()

	rmu   sync.Mutex
	in    *Opener
	buf   []byte // received records
	have  []byte // of these, what was not looked at
	plain []byte // content that was not read; lies before have in buf
	err   error  // of all later reads

	wmu  sync.Mutex
	out  *Sealer
	werr error // of all later writes
}

// NewStream returns the stream of a connection on which both ends speak records from now on. forged, unless nil, is called once if a record is wrong, whoever reads
// the connection then.
func NewStream(nc net.Conn, p Pair, forged func()) *Stream {
	return &Stream{Conn: nc, forged: forged, in: p.in, out: p.out}
}

// NetConn returns the connection below, to be marked or asked.
func (s *Stream) NetConn() net.Conn { return s.Conn }

// OnSocket reports whether Take works: the connection below has a socket.
func (s *Stream) OnSocket() bool { return hasSocket(s.Conn) }

// Read implements net.Conn.
func (s *Stream) Read(b []byte) (int, error) {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	if len(b) == 0 {
		return 0, nil
	}
	if len(s.plain) == 0 {
		n, err := s.record(b)
		if n > 0 || err != nil {
			return n, err
		}
	}
	n := copy(b, s.plain)
	s.plain = s.plain[n:]
	return n, nil
}

// record reads a record, into b if its content fits, else into plain.
func (s *Stream) record(b []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	if err := s.fetch(headerSize); err != nil {
		return 0, err
	}
	n := contentOf(s.have)
	if n == 0 {
		return 0, s.fail(ErrForged)
	}
	if err := s.fetch(n + overhead); err != nil {
		return 0, err
	}
	rec := s.have[:n+overhead]
	to := b
	if n > len(b) {
		to = rec[headerSize : headerSize+n]
	}
	if err := s.in.Open(to, rec); err != nil {
		return 0, s.fail(err)
	}
	s.have = s.have[len(rec):]
	if n > len(b) {
		s.plain = to
		return 0, nil
	}
	return n, nil
}

// fail ends reading for good.
func (s *Stream) fail(err error) error {
	s.err = err
	if errors.Is(err, ErrForged) && s.forged != nil {
		s.forged()
	}
	return err
}

// fetch has at least n bytes in have. A time-out leaves what came for the next call.
func (s *Stream) fetch(n int) error {
	if len(s.have) >= n {
		return nil
	}
	if len(s.have) == 0 || n > cap(s.have) { // cap counts from where have begins
		buf := s.buf
		switch {
		case n > firstBuffer && len(buf) < wholeBuffer:
			buf = make([]byte, wholeBuffer)
		case len(buf) == 0:
			buf = make([]byte, firstBuffer)
		}
		s.have = buf[:copy(buf, s.have)]
		s.buf = buf
	}
	for len(s.have) < n {
		k, err := s.Conn.Read(s.have[len(s.have):cap(s.have)])
		s.have = s.have[:len(s.have)+k]
		if len(s.have) >= n {
			return nil
		}
		if err != nil {
			if err == io.EOF && len(s.have) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// Write implements net.Conn. After an error nothing more can be written: the other end could not tell what is missing.
func (s *Stream) Write(b []byte) (int, error) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if s.werr != nil {
		return 0, s.werr
	}
	buf := takeBuffer()
	defer buf.free()
	wrote := 0
	for len(b) > 0 {
		n := min(len(b), streamPiece)
		sealed, err := s.out.Seal(buf.b[:0], b[:n])
		if err == nil {
			_, err = s.Conn.Write(sealed)
		}
		if err != nil {
			s.werr = err
			return wrote, err
		}
		wrote += n
		b = b[n:]
	}
	return wrote, nil
}

// detach ends the stream, and returns what it was made of and what came and was not looked at. plain is content that was not read.
func (s *Stream) detach() (p Pair, plain, raw []byte, err error) {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if s.err != nil {
		return p, nil, nil, s.err
	}
	if s.werr != nil {
		return p, nil, nil, s.werr
	}
	p, plain, raw = Pair{s.out, s.in}, s.plain, s.have
	s.out, s.in, s.plain, s.have = nil, nil, nil, nil
	s.err, s.werr = errTaken, errTaken
	return p, plain, raw, nil
}

// buffer is pooled memory for records on their way.
type buffer struct{ b []byte }

// bufferSize takes a streamPiece in two records, and small ones beside it.
const bufferSize = streamPiece + 4<<10

var buffers = sync.Pool{New: func() any { return &buffer{make([]byte, bufferSize)} }}

func takeBuffer() *buffer { return buffers.Get().(*buffer) }

func (b *buffer) free() { buffers.Put(b) }
