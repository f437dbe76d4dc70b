package sim

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"varve/internal/wire"
)

// end is one side of a connection. Its fields are guarded by network.mu.
type end struct {
	n             *network
	h             *host
	ip            string
	local, remote string
	peer          *end
	out           *pipe // to the peer

	cond     sync.Cond
	buf      []byte // arrived and not read
	eof      bool
	err      error // why it ended
	deadline time.Time
	alarm    *time.Timer
}

var _ net.Conn = (*end)(nil)

func newEnd(h *host, _ string) *end {
	e := &end{n: h.n, h: h, ip: h.ip}
	e.cond.L = &h.n.mu
	return e
}

// pipe is one direction of a connection: what was written and has not arrived. It delivers frames, one after the other.
type pipe struct {
	from   *end
	asked  map[uint64]uint64 // requests that were not answered: what their frames said
	said   map[uint64]uint64 // how often the same was said
	key    uint64
	frames uint64
	last   time.Time // when the youngest segment arrives
	queue  []segment
	held   []segment   // what its process wrote while it stood still
	timer  *time.Timer // delivers the first of queue
	part   []byte      // of a frame that is not complete
	plain  bool        // not frames: as it comes
	begun  bool
}

// segment is a frame, or an end.
type segment struct {
	data     []byte
	at, sent time.Time
	fin, rst bool
	after    bool // the connection breaks when it has arrived
}

func newPipe(from *end, key uint64) *pipe { return &pipe{from: from, key: key} }

// Read implements net.Conn.
func (e *end) Read(p []byte) (int, error) {
	e.n.mu.Lock()
	defer e.n.mu.Unlock()
	for {
		switch {
		case e.err != nil && e.h.dead:
			return 0, e.err
		case e.n.still[e.ip] > 0 && e.err == nil:
		case len(e.buf) > 0:
			n := copy(p, e.buf)
			e.buf = e.buf[n:]
			if len(e.buf) == 0 {
				e.buf = nil
			}
			return n, nil
		case e.err != nil:
			return 0, e.err
		case e.eof:
			return 0, io.EOF
		case !e.deadline.IsZero() && !time.Now().Before(e.deadline):
			return 0, os.ErrDeadlineExceeded
		}
		e.cond.Wait()
	}
}

// Write implements net.Conn. It never waits.
func (e *end) Write(p []byte) (int, error) {
	e.n.mu.Lock()
	defer e.n.mu.Unlock()
	if e.err != nil {
		return 0, e.err
	}
	e.out.write(p)
	return len(p), nil
}

// Close implements net.Conn.
func (e *end) Close() error {
	e.n.mu.Lock()
	defer e.n.mu.Unlock()
	e.closeLocked()
	return nil
}

func (e *end) closeLocked() {
	if e.err != nil {
		return
	}
	e.failLocked(net.ErrClosed)
	if !e.h.dead {
		e.out.sendLocked(segment{fin: true})
	}
}

// failLocked ends this side.
func (e *end) failLocked(err error) {
	if e.err != nil {
		return
	}
	e.err = err
	delete(e.h.ends, e)
	if e.alarm != nil {
		e.alarm.Stop()
	}
	e.cond.Broadcast()
}

// goneLocked is called when the other side is gone without a word: this one finds out when nothing is acknowledged.
func (e *end) goneLocked() {
	if e.err == nil {
		time.AfterFunc(keepAlive, func() {
			e.n.mu.Lock()
			defer e.n.mu.Unlock()
			e.failLocked(syscall.ETIMEDOUT)
		})
	}
}

// LocalAddr implements net.Conn.
func (e *end) LocalAddr() net.Addr { return address(e.local) }

// RemoteAddr implements net.Conn.
func (e *end) RemoteAddr() net.Addr { return address(e.remote) }

// SetDeadline implements net.Conn.
func (e *end) SetDeadline(t time.Time) error { return e.SetReadDeadline(t) }

// SetReadDeadline implements net.Conn.
func (e *end) SetReadDeadline(t time.Time) error {
	e.n.mu.Lock()
	defer e.n.mu.Unlock()
	if e.err != nil {
		return e.err
	}
	e.deadline = t
	if e.alarm != nil {
		e.alarm.Stop()
		e.alarm = nil
	}
	if !t.IsZero() {
		e.alarm = time.AfterFunc(time.Until(t), func() {
			e.n.mu.Lock()
			defer e.n.mu.Unlock()
			e.cond.Broadcast()
		})
	}
	return nil
}

// SetWriteDeadline implements net.Conn. Writes do not wait.
func (e *end) SetWriteDeadline(time.Time) error { return nil }

const frameMagic = uint32('V') | uint32('R')<<8 | uint32('V')<<16 | uint32('1')<<24

// write cuts what is written into frames.
func (p *pipe) write(b []byte) {
	if !p.begun {
		p.begun = true
		p.plain = p.from.peer.out.plain || len(b) >= 4 && binary.LittleEndian.Uint32(b) != frameMagic
	}
	if p.plain {
		p.sendLocked(segment{data: append([]byte(nil), b...)})
		return
	}
	p.part = append(p.part, b...)
	for len(p.part) >= wire.HeaderSize {
		size := wire.HeaderSize + int(binary.LittleEndian.Uint32(p.part[28:])) + int(binary.LittleEndian.Uint32(p.part[32:]))
		if len(p.part) < size {
			return
		}
		frame := p.part[:size:size]
		p.part = p.part[size:]
		p.from.n.observe(frame)
		if m := p.from.n.meddle; m != nil {
			var answer []byte
			if frame, answer = m(p.from.ip, p.from.peer.ip, frame); answer != nil {
				p.from.peer.out.sendLocked(segment{data: answer})
			}
		}
		if frame != nil {
			p.sendLocked(segment{data: frame})
		}
	}
	if len(p.part) == 0 {
		p.part = nil
	}
}

// sendLocked puts a segment on its way.
func (p *pipe) sendLocked(s segment) {
	n := p.from.n
	if n.still[p.from.ip] > 0 && !s.rst {
		p.held = append(p.held, s)
		return
	}
	p.frames++
	h := mix(p.key, p.nature(s.data))
	d := n.latency(p.from.ip, h)
	if len(s.data) > 0 && !n.calm {
		one := func(of uint64, salt uint64) bool { return of > 0 && mix(h, salt)%of == 0 }
		switch {
		case one(n.rules.lost, 1):
			n.stats.broken++
			n.log("net: %s > %s: %s lost, connection breaks", p.from.local, p.from.remote, describe(s.data))
			s = segment{rst: true}
		case one(n.rules.reply, 2):
			n.stats.broken++
			n.log("net: %s > %s: connection breaks after %s", p.from.local, p.from.remote, describe(s.data))
			s.after = true
		case one(n.rules.late, 3):
			n.stats.late++
			d += time.Duration(mix(h, 4) % uint64(n.rules.lateBy))
			n.log("net: %s > %s: %s late by %v", p.from.local, p.from.remote, describe(s.data), d)
		}
	}
	s.sent = time.Now()
	s.at = s.sent.Add(d)
	if !s.at.After(p.last) {
		s.at = p.last.Add(1)
	}
	p.last = s.at
	p.queue = append(p.queue, s)
	if len(p.queue) == 1 {
		p.armLocked()
	}
}

// armLocked sets the timer for the first segment.
func (p *pipe) armLocked() {
	if len(p.queue) == 0 {
		return
	}
	d := time.Until(p.queue[0].at)
	if p.timer == nil {
		p.timer = time.AfterFunc(d, p.deliver)
	} else {
		p.timer.Reset(d)
	}
}

// dropLocked forgets what has not arrived.
func (p *pipe) dropLocked() {
	p.queue, p.part, p.held = nil, nil, nil
	if p.timer != nil {
		p.timer.Stop()
	}
}

// deliver is called when the first segment arrives, or might if its way were open.
func (p *pipe) deliver() {
	n := p.from.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(p.queue) == 0 {
		return
	}
	s, to := p.queue[0], p.from.peer
	now := time.Now()
	if now.Before(s.at) {
		p.armLocked()
		return
	}
	if n.isCut(p.from.ip, to.ip) || n.isCut(to.ip, p.from.ip) || to.h.dead && n.silent(to.ip) {
		// Not acknowledged: tried again until the kernel gives up.
		if left := s.sent.Add(userTimeout).Sub(now); left > 0 {
			p.timer.Reset(left)
			return
		}
		p.dropLocked()
		p.from.failLocked(syscall.ETIMEDOUT)
		to.goneLocked()
		return
	}
	p.queue = p.queue[1:]
	if to.err != nil { // closed or dead: its kernel says so
		p.dropLocked()
		p.from.failLocked(syscall.ECONNRESET)
		return
	}
	if n.telling {
		n.log("net: %s > %s: %s", p.from.local, p.from.remote, describe(s.data))
	}
	if n.cover != nil {
		n.cover.answered(s.data)
	}
	n.stats.frames++
	n.stats.trace = mix(n.stats.trace, uint64(now.UnixNano()), p.key, uint64(len(s.data)))
	switch {
	case s.rst:
		to.failLocked(syscall.ECONNRESET)
		p.from.failLocked(syscall.ECONNRESET)
		p.dropLocked()
		return
	case s.fin:
		to.eof = true
	default:
		if len(to.buf) == 0 {
			to.buf = s.data
		} else {
			to.buf = append(to.buf, s.data...)
		}
		if s.after {
			p.from.failLocked(syscall.ECONNRESET)
			p.dropLocked()
			to.out.sendLocked(segment{rst: true}) // what it answers before is lost at the closed side
			time.AfterFunc(time.Duration(mix(p.key, p.frames, 9)%uint64(time.Second)), func() {
				n.mu.Lock()
				defer n.mu.Unlock()
				to.failLocked(syscall.ECONNRESET)
			})
		}
	}
	to.cond.Broadcast()
	p.armLocked()
}

// silent reports whether a host is without power.
func (n *network) silent(ip string) bool {
	h, present := n.hosts[ip]
	return present && h == nil
}

// nature is a hash of what a frame says and how often that was said before on its connection, but for what is random in it. So what happens to a
// frame does not depend on which of two goroutines that run at the same moment was faster.
func (p *pipe) nature(b []byte) uint64 {
	if len(b) < wire.HeaderSize || p.plain {
		return p.frames
	}
	le := binary.LittleEndian
	body := b[wire.HeaderSize : wire.HeaderSize+int(le.Uint32(b[28:]))]
	t, id := wire.Type(le.Uint16(b[4:])), le.Uint64(b[8:])
	h := mix(uint64(t), uint64(b[7]))
	switch ask := p.from.peer.out; {
	case b[7] != 0: // an answer is like its request
		h = mix(h, ask.asked[id])
		delete(ask.asked, id)
	default:
		if t != wire.Hello && t != wire.OpenSession && t != wire.RegisterServer { // in which there are UUIDs
			h = mixString(h, string(body))
		}
		if p.asked == nil {
			p.asked = make(map[uint64]uint64)
		}
		p.asked[id] = h
	}
	if p.said == nil {
		p.said = make(map[uint64]uint64)
	}
	p.said[h]++
	return mix(h, p.said[h])
}

// observe counts ordered writes that are sent again.
func (n *network) observe(b []byte) {
	le := binary.LittleEndian
	if wire.Type(le.Uint16(b[4:])) != wire.Write || b[7] != 0 || len(b) < wire.HeaderSize+64 {
		return
	}
	body := b[wire.HeaderSize : wire.HeaderSize+int(le.Uint32(b[28:]))]
	if wire.DataFlags(le.Uint32(body[24:]))&wire.Ordered == 0 {
		return
	}
	h := mixString(mixString(0, string(body[:24])), string(body[64:]))
	if n.writes[h] {
		n.stats.repeated++
	}
	if n.writes == nil {
		n.writes = make(map[uint64]bool)
	}
	n.writes[h] = true
}
