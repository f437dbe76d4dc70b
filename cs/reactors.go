package cs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"varve/internal/records"
	"varve/internal/wire"
	"varve/iouring/reactor"
)

// reactors are threads with a ring each, which carry the connections that a server has accepted (wire.Carrier). What the store can
// do without waiting they do themselves (request.go); everything else they hand to the goroutines that serve without reactors, too.
type reactors struct {
	s     *Server
	loops []*dataLoop
	next  atomic.Uint32
}

// dataLoop is one reactor.
type dataLoop struct {
	*reactor.Loop
	s *Server

	tried atomic.Uint64 // requests that the ring was given

	// Of its thread only:
	free  *request
	spare int // in free
}

const (
	// maxReactors bounds the default number of reactors.
	maxReactors = 4
	// maxSpare bounds the requests that a reactor keeps for the next.
	maxSpare = 256
)

var _ wire.Carrier = (*reactors)(nil)

// newReactors starts the threads. If there can be none, reason says why.
func newReactors(s *Server) (r *reactors, reason string) {
	n := s.o.Reactors
	switch {
	case n < 0:
		return nil, "goroutines, as asked for"
	case n == 0:
		n = min(max(runtime.NumCPU()/2, 1), maxReactors)
	}
	r = &reactors{s: s}
	// How much waits to be sent is bounded by the gate, and by the requests that a connection may have under way.
	ro := reactor.Options{Kind: reactor.Ring, Logger: s.log, SendBytes: 1 << 30}
	if s.o.Populate { // registered memory is populated in any case
		ro.Arenas = [][]byte{s.payload.clients.Memory(), s.payload.peers.Memory()}
	}
	for range n {
		l, err := reactor.Start(ro)
		if err != nil {
			return nil, "goroutines: " + errors.Join(err, r.close()).Error()
		}
		r.loops = append(r.loops, &dataLoop{Loop: l, s: s})
		reason = l.Reason()
	}
	return r, fmt.Sprintf("io_uring, %d threads: %s", n, reason)
}

// watch reports a thread that could not go on: what was under way on it never ends.
func (r *reactors) watch(failed chan<- error) {
	if r == nil {
		return
	}
	for _, l := range r.loops {
		go func() {
			<-l.Done()
			if err := l.Err(); err != nil {
				select {
				case failed <- fmt.Errorf("reactor: %w", err):
				default: // something has failed already
				}
			}
		}()
	}
}

// close ends the threads. Preconditions: all connections have ended, with all their requests.
func (r *reactors) close() error {
	if r == nil {
		return nil
	}
	var err error
	for _, l := range r.loops {
		err = errors.Join(err, l.Close(context.Background()))
	}
	return err
}

// Carry implements wire.Carrier.
func (r *reactors) Carry(w *wire.Conn, nc net.Conn, read []byte) (wire.Link, error) {
	taken, err := records.Take(nc)
	if err != nil {
		return nil, err
	}
	nc.Close()
	d := &dataConn{
		s: r.s, w: w, loop: r.loops[r.next.Add(1)%uint32(len(r.loops))],
		peer: w.Value.(peer), keys: w.Keys(), taken: taken, read: append([]byte(nil), read...),
	}
	d.startTask.Run, d.closeTask.Run = d.start, d.shut
	d.late.Fire = d.tooLate
	return d, nil
}

// Start implements wire.Link.
func (d *dataConn) Start() {
	if !d.loop.Post(&d.startTask) {
		unix.Close(d.taken.FD)
		d.w.Ended(reactor.ErrClosed)
	}
}

func (d *dataConn) start() {
	c, err := d.taken.Adopt(d.loop.Loop, d, d.read)
	if err != nil {
		unix.Close(d.taken.FD)
		d.w.Ended(err)
		return
	}
	d.conn, d.taken, d.read = c, nil, nil
}

// Close implements wire.Link.
func (d *dataConn) Close() {
	if !d.closing.Swap(true) {
		d.loop.Post(&d.closeTask)
	}
}

func (d *dataConn) shut() {
	if d.conn != nil {
		d.conn.Close(nil)
	}
}

// message is an answer of a goroutine on its way to the reactor.
type message struct {
	reactor.Send
	d    *dataConn
	buf  []byte
	task reactor.Task
	done chan error // gets the outcome if the goroutine waits
	wait bool
}

var messages sync.Pool

func newMessage() *message {
	if m, ok := messages.Get().(*message); ok {
		return m
	}
	m := &message{done: make(chan error, 1)}
	m.task.Run, m.Done = m.post, m.sent
	return m
}

// keepMessage bounds what is kept of a message's memory, in bytes.
const keepMessage = 64 << 10

// Write implements wire.Link.
func (d *dataConn) Write(head, body, data []byte) error {
	m := newMessage()
	m.d, m.wait = d, len(data) > 0
	m.buf = append(append(m.buf[:0], head...), body...)
	m.Head, m.Body = m.buf, data
	wait := m.wait // m may be another's already after Post
	if !d.loop.Post(&m.task) {
		m.recycle()
		return reactor.ErrClosed
	}
	if !wait {
		return nil
	}
	err := <-m.done
	m.recycle()
	return err
}

func (m *message) post() {
	err := error(reactor.ErrClosed)
	if m.d.conn != nil {
		err = m.d.conn.Send(&m.Send)
	}
	if err != nil {
		m.d.shut() // a peer must not wait for an answer that does not come
		m.sent(err)
	}
}

func (m *message) sent(err error) {
	if m.wait {
		m.done <- err
	} else {
		m.recycle()
	}
}

func (m *message) recycle() {
	m.d, m.Head, m.Body = nil, nil, nil
	if cap(m.buf) <= keepMessage {
		messages.Put(m)
	}
}
