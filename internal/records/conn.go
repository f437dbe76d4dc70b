package records

import (
	"errors"
	"fmt"
	"io"

	"varve/iouring/reactor"
)

// Conn is a connection on a loop, in records or not: reactor.Conn says what the calls do.
type Conn interface {
	Need(n int)
	Fill(p []byte)
	Pause()
	Paused() bool
	Resume()
	Send(s *reactor.Send) error
	SendLimit(bytes int)
	Close(err error)
	Closed() bool
}

var _ Conn = (*reactor.Conn)(nil)

const (
	// smallRecord bounds the records, in bytes, that are opened where the loop received them. Larger ones are received into memory of their own.
	smallRecord = 16<<10 + overhead
	// maxHeld bounds the content that is kept for a handler that consumes none of it, in bytes.
	maxHeld = 64 << 10
	// maxSends bounds the messages that wait, as reactor.Options.Sends does.
	maxSends = 4096
)

// sealed is a Conn in records. Its handler's calls and callbacks are those of a reactor.Conn, which gets what is opened.
type sealed struct {
	raw    *reactor.Conn
	h      reactor.Handler
	in     *Opener
	out    *Sealer
	forged func()

	paused  bool
	feeding bool
	plain   []byte // content that h has not consumed; in store between callbacks
	store   []byte
	need    int    // h wants at least so much; 0: anything
	want    []byte // what Fill has yet to get
	target  []byte // all of it
	filled  bool   // want is empty now, OnFilled is to be called

	big      *buffer // a large record that is being received
	content  int     // its length
	followed bool    // with the header of the one behind it

	sends   []*reactor.Send // that wait, from first on
	first   int
	part    int // of the first: bytes that were sealed
	leaving int // messages from first on that are in sending in full
	sending reactor.Send
	buf     *buffer // its memory
}

var (
	_ Conn          = (*sealed)(nil)
	_ reactor.Layer = (*sealed)(nil)
)

func (d *sealed) Need(n int) { d.need = n }

func (d *sealed) Fill(p []byte) {
	if d.target != nil || len(p) == 0 {
		panic("records: Fill of nothing, or while another is under way")
	}
	d.want, d.target = p, p
	d.kick()
}

func (d *sealed) Pause() {
	d.paused = true
	d.raw.Pause()
}

func (d *sealed) Paused() bool { return d.paused }

func (d *sealed) Resume() {
	d.paused = false
	d.raw.Resume()
	d.kick()
}

func (d *sealed) SendLimit(bytes int) { d.raw.SendLimit(bytes) }

func (d *sealed) Close(err error) { d.raw.Close(err) }

func (d *sealed) Closed() bool { return d.raw.Closed() }

// kick has the loop deliver what is there, unless that is being done.
func (d *sealed) kick() {
	if !d.feeding && (len(d.plain) > 0 || d.filled) {
		d.raw.Turn()
	}
}

// stopped says that nothing may be delivered now.
func (d *sealed) stopped() bool { return d.paused || d.raw.Closed() }

// OnData implements reactor.Handler: it opens the records in p.
func (d *sealed) OnData(c *reactor.Conn, p []byte) int {
	used := 0
	for !d.stopped() && d.big == nil {
		n := d.step(c, p[used:])
		if n == 0 {
			break
		}
		used += n
	}
	d.keep()
	return used
}

// step goes on with what came, and returns how much of it was used.
func (d *sealed) step(c *reactor.Conn, p []byte) int {
	if len(p) < headerSize {
		c.Need(headerSize)
		return 0
	}
	n := contentOf(p)
	whole := n + overhead
	switch {
	case n == 0:
		d.fail(ErrForged)
		return 0
	case len(p) >= whole:
		d.open(p[:whole])
		return whole
	case whole <= smallRecord:
		c.Need(whole)
		return 0
	}
	d.receive(p)
	return headerSize
}

// receive receives a large record, whose header is h.
func (d *sealed) receive(h []byte) {
	if d.big == nil {
		d.big = takeBuffer()
	}
	d.content = contentOf(h)
	copy(d.big.b, h[:headerSize])
	end := d.content + overhead
	if d.followed = len(d.want) > len(d.plain)+d.content; d.followed { // more must come, whose header saves a receive
		end += headerSize
	}
	d.raw.Fill(d.big.b[headerSize:end])
}

// OnFilled implements reactor.Handler: a large record is there.
func (d *sealed) OnFilled(*reactor.Conn, []byte) {
	b, end := d.big, d.content+overhead
	d.open(b.b[:end])
	d.keep()
	if d.followed && !d.raw.Closed() {
		h := [headerSize]byte(b.b[end:])
		if contentOf(h[:]) > 0 {
			d.receive(h[:])
			return
		}
		d.fail(ErrForged)
	}
	d.big = nil
	b.free()
}

// open opens a record, to where its content is wanted if that is known, and delivers it.
func (d *sealed) open(rec []byte) {
	n := len(rec) - overhead
	if d.want != nil && len(d.plain) == 0 && n <= len(d.want) {
		if err := d.in.Open(d.want, rec); err != nil {
			d.fail(err)
			return
		}
		d.want = d.want[n:]
		d.filled = len(d.want) == 0
		d.deliver()
		return
	}
	p := rec[headerSize : headerSize+n]
	if err := d.in.Open(p, rec); err != nil {
		d.fail(err)
		return
	}
	if len(d.plain) == 0 {
		d.plain = p
	} else {
		if len(d.plain)+n > maxHeld+MaxContent {
			d.raw.Close(fmt.Errorf("%d bytes were received and the handler consumes none of them", len(d.plain)+n))
			return
		}
		d.keep()
		d.plain = append(d.plain, p...)
		d.store = d.plain[:0]
	}
	d.deliver()
}

// deliver gives the handler what is there, as far as it takes it.
func (d *sealed) deliver() {
	d.feeding = true
	for !d.stopped() {
		if d.filled {
			b := d.target
			d.target, d.want, d.filled = nil, nil, false
			d.h.OnFilled(nil, b)
			continue
		}
		if len(d.plain) == 0 || d.want == nil && len(d.plain) < d.need {
			break
		}
		if d.want != nil {
			n := copy(d.want, d.plain)
			d.plain, d.want = d.plain[n:], d.want[n:]
			d.filled = len(d.want) == 0
			continue
		}
		d.need = 0
		n := d.h.OnData(nil, d.plain)
		d.plain = d.plain[n:]
		if n == 0 && d.target == nil {
			break
		}
	}
	d.feeding = false
}

// keep has plain be in memory of our own.
func (d *sealed) keep() {
	switch n := len(d.plain); {
	case n == 0:
		d.plain = nil
		if cap(d.store) > maxHeld {
			d.store = nil
		}
	case cap(d.store) < n:
		d.plain = append(make([]byte, 0, max(n, 4<<10)), d.plain...)
		d.store = d.plain[:0]
	default:
		d.plain = append(d.store[:0], d.plain...) // they may overlap: what moves, moves to the front
	}
}

// fail ends the connection.
func (d *sealed) fail(err error) {
	if errors.Is(err, ErrForged) && d.forged != nil && !d.raw.Closed() {
		d.forged()
	}
	d.raw.Close(err)
}

// OnDrain implements reactor.Handler.
func (d *sealed) OnDrain(*reactor.Conn) { d.h.OnDrain(nil) }

// OnClose implements reactor.Handler.
func (d *sealed) OnClose(_ *reactor.Conn, err error) {
	if err == io.EOF && (len(d.plain) > 0 || d.want != nil) {
		err = io.ErrUnexpectedEOF
	}
	if d.big != nil {
		d.big.free()
		d.big = nil
	}
	for d.left(err); len(d.sends) > d.first; {
		d.pop(err)
	}
	d.plain, d.store, d.want = nil, nil, nil
	d.h.OnClose(nil, err)
}

// OnTurn implements reactor.Layer.
func (d *sealed) OnTurn(*reactor.Conn) {
	if len(d.plain) > 0 || d.filled {
		d.deliver()
		d.keep()
	}
	for d.leave() {
	}
}
