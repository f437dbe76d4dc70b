package wire

import (
	"fmt"
	"hash/crc32"
	"net"

	"varve/internal/fserr"
	"varve/internal/id"
)

// HeaderSize is the length of a frame's header.
const HeaderSize = headerSize

// Carrier moves the bytes of connections in place of the goroutine that reads each, and of the writes of those who answer. It begins after the
// handshake.
type Carrier interface {
	// Carry takes c over; Start of the link begins. nc is its socket, which the carrier closes when it has what it needs of it, and read is
	// what came after the hello already. On an error nothing has changed.
	Carry(c *Conn, nc net.Conn, read []byte) (Link, error)
}

// Link is one connection of a carrier. Write and Close may be called at once by anybody.
type Link interface {
	// Start begins to receive. When the connection has ended, and nothing of it will be handled that is not yet, the carrier calls
	// Conn.Ended, once, also if Start could not do anything.
	Start()
	// Write sends a frame, and does not touch its parts after it has returned.
	Write(head, body, data []byte) error
	// Close ends the connection. It does not wait.
	Close()
}

// carry hands the socket to the carrier.
func (c *Conn) carry(h Handler) error {
	c.handler = h
	read, err := c.br.Peek(c.br.Buffered())
	if err != nil {
		return err
	}
	link, err := c.Carrier.Carry(c, c.nc, read)
	if err != nil {
		return fmt.Errorf("hand over a connection: %w", err)
	}
	c.br = nil
	c.mu.Lock()
	c.link = link
	ended := c.err != nil
	c.mu.Unlock()
	link.Start()
	if ended { // before there was a link to close
		link.Close()
	}
	return nil
}

// Ended is called by the carrier when nothing more comes of the connection. err says why.
func (c *Conn) Ended(err error) {
	c.fail(err)
	close(c.readEnd)
}

// Begin and End enclose a request that the carrier handles itself. Begin must not be called after Ended.
func (c *Conn) Begin() { c.serving.Add(1) }

// End ends what Begin began.
func (c *Conn) End() { c.serving.Done() }

// Handle has the connection's handler answer a request, on a goroutine, and returns at once. f is released when it has: its Grant, which the
// carrier sets, is told. It must not be called after Ended.
func (c *Conn) Handle(f *Frame) {
	f.pooled = true
	c.serving.Add(1)
	workers.run(c, f)
}

// InFlight is the number of requests that may be handled at once.
func (c *Conn) InFlight() int { return cap(c.slots) }

// DecodeHeader makes f the frame whose header begins b, on a connection with these keys, but for its body and data, whose lengths it returns. Errors wrap
// fserr.Protocol: the connection is to be ended. Answers are an error too, since a carrier's connections do not ask.
func (f *Frame) DecodeHeader(b []byte, keys Keys) (body, data int, err error) {
	h := header{key: keys.Receive}
	if err := h.decode(b[:headerSize]); err != nil {
		return 0, 0, err
	}
	if h.answer {
		return 0, 0, fmt.Errorf("answer of type %d to no request: %w", h.typ, fserr.Protocol)
	}
	*f = Frame{Type: h.typ, Class: h.class, Epoch: h.epoch, Code: h.code, id: h.id, bodyCRC: h.bodyCRC, key: keys.Send}
	return int(h.bodyLen), int(h.dataLen), nil
}

// AppendRequest appends the header and body of a request with data bytes of data, which is to follow, for who writes frames without a Conn. key is
// Keys.Send of the connection.
func AppendRequest(b []byte, t Type, class Class, epoch id.Epoch, reqID uint64, body []byte, data int, key uint32) []byte {
	h := header{
		typ: t, class: class, id: reqID, epoch: epoch,
		bodyLen: uint32(len(body)), dataLen: uint32(data), bodyCRC: crc32.Checksum(body, castagnoli), key: key,
	}
	return appendFrame(b, &h, body)
}

// CheckBody verifies the body of a frame that DecodeHeader made.
func (f *Frame) CheckBody(body []byte) error {
	if got := crc32.Checksum(body, castagnoli); got != f.bodyCRC {
		return fmt.Errorf("frame type %d: body checksum %08x, want %08x: %w", f.Type, got, f.bodyCRC, fserr.Protocol)
	}
	return nil
}

// AppendAnswer appends the header and body of an answer to f, with checksums as its body and data bytes of data that are to be sent
// after it.
func (f *Frame) AppendAnswer(b []byte, code fserr.Code, sums []uint32, data int) []byte {
	at := len(b)
	b = append(b, emptyHeader[:]...)
	b = AppendSums(b, sums)
	body := b[at+headerSize:]
	h := header{
		typ: f.Type, class: f.Class, answer: true, id: f.id, epoch: f.Epoch, code: code,
		bodyLen: uint32(len(body)), dataLen: uint32(data), bodyCRC: crc32.Checksum(body, castagnoli), key: f.key,
	}
	h.encode(b[at : at+headerSize])
	return b
}

// writeLink sends a frame by the carrier.
func writeLink(l Link, h *header, body, data []byte) error {
	var head [headerSize]byte
	h.encode(head[:])
	return l.Write(head[:], body, data)
}
