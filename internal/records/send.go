package records

import (
	"varve/iouring/reactor"
)

// minPiece is the least of a message's data, in bytes, for which the rest of a buffer is used.
const minPiece = 4 << 10

// Send implements Conn. Messages are sealed when the socket takes them, so what waits takes no memory but its owner's.
func (d *sealed) Send(s *reactor.Send) error {
	switch {
	case d.raw.Closed():
		return reactor.ErrClosed
	case len(d.sends)-d.first >= maxSends:
		return reactor.ErrFull
	}
	if d.first > 0 && len(d.sends) == cap(d.sends) {
		n := copy(d.sends, d.sends[d.first:])
		clear(d.sends[n:])
		d.sends, d.first = d.sends[:n], 0
	}
	d.sends = append(d.sends, s)
	if d.buf == nil {
		d.raw.Turn()
	}
	return nil
}

// leave seals as much of what waits as fits a buffer, and sends it. Heads that follow one another share a record; data begins one of its own, so that the other end can
// open it where it belongs. It reports whether there is more to do at once.
func (d *sealed) leave() bool {
	if d.buf != nil || len(d.sends) == d.first || d.raw.Closed() {
		return false
	}
	d.buf = takeBuffer()
	b := d.buf.b[:0]
	heads := -1 // where in b the record of heads begins that is not sealed yet
	next := d.first
	for next < len(d.sends) {
		s := d.sends[next]
		if d.part < len(s.Head) {
			if heads < 0 {
				if cap(b)-len(b) <= overhead {
					break
				}
				heads = len(b)
				b = b[:heads+headerSize]
			}
			n := min(len(s.Head)-d.part, room(b, heads))
			b = append(b, s.Head[d.part:d.part+n]...)
			if d.part += n; d.part < len(s.Head) {
				break
			}
		}
		rest := s.Body[d.part-len(s.Head):]
		if len(rest) > 0 {
			if b = d.close(b, heads); b == nil {
				return false
			}
			heads = -1
			n := min(len(rest), MaxContent, cap(b)-len(b)-overhead)
			if n <= 0 || n < len(rest) && n < minPiece {
				break
			}
			var err error
			if b, err = d.out.Seal(b, rest[:n]); err != nil {
				d.raw.Close(err)
				return false
			}
			if d.part += n; n < len(rest) {
				continue
			}
		}
		d.part = 0
		next++
		d.leaving++
	}
	if b = d.close(b, heads); b == nil {
		return false
	}
	if len(b) == 0 { // messages without a byte
		d.left(nil)
		return true
	}
	d.sending.Head = b
	if err := d.raw.Send(&d.sending); err != nil {
		d.raw.Close(err)
	}
	return false
}

// room is how much can be appended to b, the last record of which, from at on, is to be closed yet.
func room(b []byte, at int) int {
	return max(0, min(cap(b)-len(b)-tagSize, at+headerSize+MaxContent-len(b)))
}

// close seals the record of heads that begins at, if there is one. It returns nil if that failed, and the connection is closed.
func (d *sealed) close(b []byte, at int) []byte {
	if at < 0 {
		return b
	}
	p := b[at+headerSize:]
	if len(p) == 0 {
		return b[:at]
	}
	b, err := d.out.Seal(b[:at], p)
	if err != nil {
		d.raw.Close(err)
		return nil
	}
	return b
}

// left is called when what was sealed has left, or never will.
func (d *sealed) left(err error) {
	d.sending.Head = nil
	if d.buf != nil {
		d.buf.free()
		d.buf = nil
	}
	for d.leaving > 0 {
		d.leaving--
		d.pop(err)
	}
	if len(d.sends) > d.first && !d.raw.Closed() {
		d.raw.Turn()
	}
}

// pop ends the first message.
func (d *sealed) pop(err error) {
	s := d.sends[d.first]
	d.sends[d.first] = nil
	if d.first++; d.first == len(d.sends) {
		d.sends, d.first = d.sends[:0], 0
	}
	if s.Done != nil {
		s.Done(err)
	}
}
