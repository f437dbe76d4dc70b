package wire

import (
	"hash/crc32"
	"net"
	"runtime"
	"sync"
	"time"
)

const (
	// maxQueued bounds the bytes of small frames that wait for somebody else's write; beyond it their senders wait.
	maxQueued = 256 << 10
	// maxSmall bounds the body of a frame that is copied into the queue, smallData its data: copying a block costs a twentieth of a
	// system call.
	maxSmall  = 32 << 10
	smallData = 8 << 10
	// keepWriteBuffer bounds what a connection keeps of its write buffers, in bytes.
	keepWriteBuffer = 64 << 10
)

// sender writes frames to a connection. Small ones go into a queue. Whoever finds it unattended writes all that is in it,
// until it is empty, so that under load one system call carries many frames.
//
// Lock order: wmu, mu.
type sender struct {
	nc      net.Conn
	timeout time.Duration

	wmu      sync.Mutex // held while writing
	deadline time.Time  // of writes, as it was set
	spare    []byte
	parts    [3][]byte   // of a frame with data
	bufs     net.Buffers // parts as they are written

	mu       sync.Mutex
	queue    []byte
	attended bool // somebody writes the queue, or is about to
}

// write sends f, whose size was checked. If others wrote it, their error ends the connection.
func (c *Conn) write(f *Frame, reqID uint64, answer bool) error {
	h := header{
		typ: f.Type, class: f.Class, answer: answer, id: reqID, epoch: f.Epoch, code: f.Code,
		bodyLen: uint32(len(f.Body)), dataLen: uint32(len(f.Data)), bodyCRC: crc32.Checksum(f.Body, castagnoli), key: c.keys.Send,
	}
	if c.link != nil { // only handlers write then, which began after it was set
		return writeLink(c.link, &h, f.Body, f.Data)
	}
	if len(f.Data) > smallData || len(f.Body) > maxSmall {
		return c.out.writeNow(&h, f.Body, f.Data)
	}
	return c.out.enqueue(&h, f.Body, f.Data)
}

func (s *sender) enqueue(h *header, body, data []byte) error {
	most := maxQueued
	if len(data) > 0 {
		most = keepWriteBuffer - headerSize - len(body) - len(data)
	}
	s.mu.Lock()
	if len(s.queue) > most {
		s.mu.Unlock()
		return s.writeNow(h, body, data)
	}
	s.queue = append(appendFrame(s.queue, h, body), data...)
	if s.attended {
		s.mu.Unlock()
		return nil
	}
	s.attended = true
	s.mu.Unlock()
	runtime.Gosched() // others that were woken together with us have frames, too
	return s.flush()
}

// appendFrame appends a header and a body.
func appendFrame(b []byte, h *header, body []byte) []byte {
	at := len(b)
	b = append(b, emptyHeader[:]...)
	h.encode(b[at:])
	return append(b, body...)
}

var emptyHeader [headerSize]byte

// flush writes the queue until it is empty.
func (s *sender) flush() error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	for {
		s.mu.Lock()
		b := s.queue
		if len(b) == 0 {
			s.attended = false
			s.mu.Unlock()
			return nil
		}
		s.queue, s.spare = s.spare[:0], nil
		s.mu.Unlock()
		err := s.setDeadline()
		if err == nil {
			_, err = s.nc.Write(b)
		}
		s.keep(b)
		if err != nil {
			return err // the queue stays attended: the connection is at its end
		}
	}
}

// keep makes b the buffer of the next queue but one.
func (s *sender) keep(b []byte) {
	s.spare = nil
	if cap(b) <= keepWriteBuffer {
		s.spare = b[:0]
	}
}

// writeNow writes a frame with what is queued before it, without copying its data.
func (s *sender) writeNow(h *header, body, data []byte) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.mu.Lock()
	b := s.queue
	s.queue, s.spare = s.spare[:0], nil // else two would write into one buffer if this fails before keep
	s.mu.Unlock()
	if err := s.setDeadline(); err != nil {
		return err
	}
	if len(body) <= maxSmall {
		b = appendFrame(b, h, body)
		s.bufs = append(s.parts[:0], b)
	} else {
		b = appendFrame(b, h, nil)
		s.bufs = append(s.parts[:0], b, body)
	}
	if len(data) > 0 {
		s.bufs = append(s.bufs, data)
	}
	_, err := s.bufs.WriteTo(s.nc)
	s.bufs, s.parts = nil, [3][]byte{}
	s.keep(b)
	return err
}

// setDeadline gives the write the time-out, give or take a quarter: setting one costs as much as a small write's copying.
func (s *sender) setDeadline() error {
	now := time.Now()
	if s.deadline.Sub(now) >= s.timeout*3/4 {
		return nil
	}
	s.deadline = now.Add(s.timeout)
	return s.nc.SetWriteDeadline(s.deadline)
}
