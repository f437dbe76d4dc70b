package nbd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// replies reads what the server sends. It belongs to one goroutine.
type replies struct {
	n    *Conn
	r    *bufio.Reader
	head [StructuredSize]byte
	body []byte // of errors
}

// next reads one simple reply or one chunk. An error ends the connection; io.EOF, alone, is its end between two replies.
func (r *replies) next() error {
	if _, err := io.ReadFull(r.r, r.head[:4]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%w: the server hung up within the first 4 bytes of a reply", ErrClosed)
		}
		return err
	}
	switch magic := be.Uint32(r.head[:]); magic {
	case SimpleMagic:
		return r.simple()
	case StructuredMagic:
		if r.n.Export.Structured {
			return r.chunk()
		}
		return fmt.Errorf("%w: a structured reply, though simple ones were agreed on", ErrProtocol)
	default:
		return fmt.Errorf("%w: a reply begins with %#x, want %#x or %#x", ErrProtocol, magic, SimpleMagic, StructuredMagic)
	}
}

// full reads all of p, which belongs to a reply.
func (r *replies) full(p []byte, what string) error {
	if got, err := io.ReadFull(r.r, p); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: the server hung up within %s: %d of %d bytes came", ErrClosed, what, got, len(p))
	} else if err != nil {
		return err
	}
	return nil
}

func (r *replies) simple() error {
	if err := r.full(r.head[4:SimpleSize], "the head of a reply"); err != nil {
		return err
	}
	code, cookie := Errno(be.Uint32(r.head[4:])), be.Uint64(r.head[8:])
	k, err := r.n.take(cookie, false)
	if err != nil {
		return err
	}
	switch {
	case code != 0:
		k.failed = code
	case k.command == CmdRead && r.n.Export.Structured:
		return fmt.Errorf("%w: a simple reply to a read, though structured ones were agreed on", ErrProtocol)
	case k.command == CmdRead:
		if err := r.full(k.p, "the data of a read"); err != nil {
			return err
		}
	}
	return r.end(k, cookie)
}

// end gives a request its outcome.
func (r *replies) end(k *call, cookie uint64) error {
	if _, err := r.n.take(cookie, true); err != nil {
		return err
	}
	k.ended <- k.failed
	return nil
}

func (r *replies) chunk() error {
	if err := r.full(r.head[4:], "the head of a chunk"); err != nil {
		return err
	}
	flags, is, cookie, size := be.Uint16(r.head[4:]), Chunk(be.Uint16(r.head[6:])), be.Uint64(r.head[8:]), be.Uint32(r.head[16:])
	k, err := r.n.take(cookie, false)
	if err != nil {
		return err
	}
	if k.chunks++; k.chunks > maxChunks {
		return fmt.Errorf("%w: more than %d chunks in reply to one %s", ErrProtocol, maxChunks, k.command)
	}
	done := flags&ReplyDone != 0
	switch {
	case is == ChunkNone:
		if size != 0 || !done {
			err = fmt.Errorf("%w: an empty chunk of %d bytes, last: %v; want 0 bytes and the last", ErrProtocol, size, done)
		}
	case is == ChunkData:
		err = r.data(k, size)
	case is == ChunkHole:
		err = r.hole(k, size)
	case is&chunkError != 0:
		err = r.failure(k, is, size)
	default:
		err = fmt.Errorf("%w: a chunk of type %d in reply to a %s", ErrProtocol, uint16(is), k.command)
	}
	if err != nil || !done {
		return err
	}
	if k.command == CmdRead && k.failed == nil && k.bytes != len(k.p) {
		return fmt.Errorf("%w: a read of %d bytes at %d was answered with %d", ErrProtocol, len(k.p), k.offset, k.bytes)
	}
	return r.end(k, cookie)
}

// part returns where a chunk belongs, and notes that it came.
func (k *call) part(offset, length uint64) ([]byte, error) {
	end := k.offset + uint64(len(k.p))
	if k.command != CmdRead || length == 0 || offset < k.offset || offset >= end || length > end-offset {
		return nil, fmt.Errorf("%w: a chunk with %d bytes at %d in reply to a %s of %d at %d", ErrProtocol, length, offset, k.command, len(k.p), k.offset)
	}
	s := span{offset, offset + length}
	if n := len(k.covered); n > 0 && k.covered[n-1].to == s.from { // in order, as servers mostly send
		k.covered[n-1].to = s.to
	} else {
		k.covered = append(k.covered, s)
	}
	if k.bytes += int(length); k.bytes > len(k.p) || len(k.covered) > maxSpans || k.overlap() {
		return nil, fmt.Errorf("%w: the chunk with %d bytes at %d of a read came twice, overlaps with another, or is one of too many out of order", ErrProtocol, length, offset)
	}
	return k.p[offset-k.offset:][:length], nil
}

// overlap reports whether the newest of the spans meets another.
func (k *call) overlap() bool {
	last := k.covered[len(k.covered)-1]
	for _, s := range k.covered[:len(k.covered)-1] {
		if s.from < last.to && last.from < s.to {
			return true
		}
	}
	return false
}

func (r *replies) data(k *call, size uint32) error {
	if size <= 8 {
		return fmt.Errorf("%w: a chunk of data of %d bytes, want more than 8", ErrProtocol, size)
	}
	if err := r.full(r.head[:8], "a chunk of data"); err != nil {
		return err
	}
	p, err := k.part(be.Uint64(r.head[:]), uint64(size-8))
	if err != nil {
		return err
	}
	return r.full(p, "a chunk of data")
}

func (r *replies) hole(k *call, size uint32) error {
	if size != 12 {
		return fmt.Errorf("%w: a chunk of a hole of %d bytes, want 12", ErrProtocol, size)
	}
	if err := r.full(r.head[:12], "a chunk of a hole"); err != nil {
		return err
	}
	p, err := k.part(be.Uint64(r.head[:]), uint64(be.Uint32(r.head[8:])))
	clear(p)
	return err
}

// failure reads an error, of a kind that is known or not.
func (r *replies) failure(k *call, is Chunk, size uint32) error {
	if size < 6 || size > 6+MaxName+8 {
		return fmt.Errorf("%w: an error of %d bytes in reply to a %s, want 6 to %d", ErrProtocol, size, k.command, 6+MaxName+8)
	}
	if cap(r.body) < int(size) {
		r.body = make([]byte, size)
	}
	p := r.body[:size]
	if err := r.full(p, "an error"); err != nil {
		return err
	}
	code, length := Errno(be.Uint32(p)), int(be.Uint16(p[4:]))
	rest := len(p) - 6 - length
	if code == 0 || rest < 0 || is == ChunkError && rest != 0 || is == ChunkErrorOffset && rest != 8 {
		return fmt.Errorf("%w: an error of %d bytes with the number %d and a message of %d", ErrProtocol, size, code, length)
	}
	failed := error(code)
	if length > 0 {
		failed = fmt.Errorf("%w (%q)", code, p[6:6+length])
	}
	if is == ChunkErrorOffset {
		failed = fmt.Errorf("%w at %d", failed, be.Uint64(p[6+length:]))
	}
	if k.failed == nil {
		k.failed = failed
	}
	return nil
}
