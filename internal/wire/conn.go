// Package wire is how varve's processes talk: frames over TCP connections on which either side may
// ask and answers come in any order.
//
// Dial and Serve make connections and do the handshake; Conn.Call, Start and CallMessage ask; a Handler
// answers with Conn.Reply or ReplyMessage. An answer with an outcome other than OK is not an error of Call: errors mean
// that it is not known whether the request was carried out (the connection broke, or ctx ended).
//
// All methods of Conn may be called at once. Small frames that are sent at the same time leave in one write, by whoever came first:
// a nil error of Reply means no more than that the frame is on its way. Each request is handled on a goroutine of its own, at most
// Options.InFlight at a time for each connection: beyond that the connection is not read, so a peer that asks too much slows
// itself down. Writes to a peer that does not read for Options.WriteTimeout end the connection.
package wire

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// ErrClosed is what calls on a connection that has ended return, wrapped with the reason.
var ErrClosed = errors.New("connection closed")

// Frame is one message. A received frame's Body and Data are pooled buffers: Release gives them back.
type Frame struct {
	Type  Type
	Class Class
	Epoch id.Epoch
	Code  fserr.Code // of an answer
	Body  []byte
	Data  []byte

	// Grant is what Conn.Admission gave a received request, or nil.
	Grant Grant

	id      uint64
	pooled  bool
	kept    bool   // of requests: serve gives it back to frames
	bodyCRC uint32 // of DecodeHeader
	key     uint32 // of its answer, the same
}

// frames are for requests. Those of answers are their callers'.
var frames = sync.Pool{New: func() any { return new(Frame) }}

// Release gives the buffers of a received frame back. The frame must not be used afterwards.
// It does nothing for frames that were not received, and when called again.
func (f *Frame) Release() {
	if f == nil || !f.pooled {
		return
	}
	body, data, grant := f.Body, f.Data, f.Grant
	f.pooled, f.Body, f.Data, f.Grant = false, nil, nil, nil
	Recycle(body)
	if grant != nil {
		grant.Release(data) // f is the carrier's again, if there is one
	} else {
		Recycle(data)
	}
}

// Admission decides when requests go on, and gives them memory for their data.
type Admission interface {
	// Admit is called by the connection's reader for each request, when its header and body are there, and returns when the request may
	// go on. The connection is not read meanwhile. data is memory for size bytes, nil if size is 0. The request's Release calls Release of
	// the grant, unless that is nil, with data. An error ends the connection; ctx ends with it.
	Admit(ctx context.Context, c *Conn, f *Frame, size int) (grant Grant, data []byte, err error)
}

// Grant is what a request was given.
type Grant interface {
	// Release takes it back, and the memory for the request's data with it.
	Release(data []byte)
}

// Handler answers requests. Serve calls Reply or ReplyMessage exactly once for req before it returns: then the frame and its
// buffers are used for another request, and Quiesce no longer waits for the request. Serve must not wait for a call that it
// makes on c itself, since answers are not read while as many requests as Options.InFlight are under way.
type Handler interface {
	Serve(ctx context.Context, c *Conn, req *Frame)
}

// Options of a connection. The zero value works.
type Options struct {
	InFlight     int           // requests handled at once; default 256
	WriteTimeout time.Duration // a peer that takes nothing for so long is cut off; default 10 s
	Network      Network       // of Dial; default TCP
	Class        Class         // of Dial: what the connection is for
	Way          int           // of Dial: which of several connections to the peer for the same, from 1: they are spread over the links; 0: the only one
	// Connected, if set, is called by Dial between connecting and the hello: what it does then delays the connection, but no longer than it takes to
	// be greeted. An error ends the attempt, and is returned wrapped.
	Connected func() error
	// Greeted, if set, is called by Dial with the answer to the hello, before the peer may ask anything. An error ends the attempt, and is returned wrapped.
	Greeted func(c *Conn, reply *msg.HelloReply) error
}

// Call is a request under way.
type Call struct {
	Reply *Frame // set when done and Err is nil
	Err   error
	Tag   int // the caller's, untouched
	id    uint64
	done  chan *Call
}

// Conn is one connection after its handshake.
type Conn struct {
	nc      net.Conn
	br      *bufio.Reader
	handler Handler
	slots   chan struct{}
	ctx     context.Context // ends with the connection; given to handlers
	cancel  context.CancelFunc
	serving sync.WaitGroup // handlers under way
	readEnd chan struct{}  // closed when the reader has stopped

	out sender

	nextID atomic.Uint64

	mu      sync.Mutex
	pending map[uint64]*Call
	err     error // why it ended
	link    Link  // if it is carried; set before anything is received, and not changed afterwards

	remote, local string // addresses
	keys          Keys

	// Value is the server's own data about the peer, set in the handshake and not changed afterwards.
	Value any
	// Admission, if set in the handshake, is asked about each request. It is shared by connections. Default: all go on at once, with
	// memory from Buffer.
	Admission Admission
	// Carrier, if set in the handshake, moves the connection's bytes. Admission is not asked then. Default: goroutines.
	Carrier Carrier
}

func newConn(nc net.Conn, br *bufio.Reader, o Options) *Conn {
	if o.InFlight == 0 {
		o.InFlight = 256
	}
	if o.WriteTimeout == 0 {
		o.WriteTimeout = 10 * time.Second
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Conn{
		nc: nc, br: br, slots: make(chan struct{}, o.InFlight),
		ctx: ctx, cancel: cancel, readEnd: make(chan struct{}), pending: make(map[uint64]*Call),
		out:    sender{nc: nc, timeout: o.WriteTimeout},
		remote: nc.RemoteAddr().String(), local: nc.LocalAddr().String(), keys: KeysOf(nc),
	}
}

// start begins reading; h answers what comes.
func (c *Conn) start(h Handler) {
	c.handler = h
	go c.readLoop()
}

// RemoteAddr returns the peer's address.
func (c *Conn) RemoteAddr() string { return c.remote }

// LocalAddr returns this side's address.
func (c *Conn) LocalAddr() string { return c.local }

// Context ends with the connection. Handlers get it.
func (c *Conn) Context() context.Context { return c.ctx }

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.ctx.Done() }

// Err returns why the connection ended, or nil while it lives.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection: calls under way fail, handlers' contexts end.
func (c *Conn) Close() error {
	c.fail(ErrClosed)
	return nil
}

// Quiesce closes the connection and waits until every request that came on it has been handled.
func (c *Conn) Quiesce() {
	c.Close()
	<-c.readEnd
	c.serving.Wait()
}

func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	if !errors.Is(err, ErrClosed) {
		err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	c.err = err
	pending, link := c.pending, c.link
	c.pending = nil
	c.mu.Unlock()
	c.cancel()
	if link != nil {
		link.Close()
	} else {
		c.nc.Close()
	}
	for _, call := range pending {
		call.Err = err
		call.done <- call
	}
}

// Start sends req and returns at once; the call is sent to done when it has ended. done must have room for
// every call that uses it. The connection does not touch req's buffers after Start has returned.
func (c *Conn) Start(req *Frame, done chan *Call) *Call {
	call := &Call{done: done, id: c.nextID.Add(1)}
	if err := req.checkSize(); err != nil {
		call.Err = err // the caller's fault: the connection lives on
		done <- call
		return call
	}
	c.mu.Lock()
	if c.err != nil {
		call.Err = c.err
		c.mu.Unlock()
		done <- call
		return call
	}
	c.pending[call.id] = call
	c.mu.Unlock()
	if err := c.write(req, call.id, false); err != nil {
		c.fail(err) // delivers the call, unless the reader already has
	}
	return call
}

// Abandon forgets a call: its answer, if one comes, is dropped. It reports whether the call was still under way; if not, it is
// in its done channel.
func (c *Conn) Abandon(call *Call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending[call.id] != call {
		return false
	}
	delete(c.pending, call.id)
	return true
}

// Call sends req and waits for its answer, which the caller releases.
func (c *Conn) Call(ctx context.Context, req *Frame) (*Frame, error) {
	done := make(chan *Call, 1)
	call := c.Start(req, done)
	select {
	case <-done:
		return call.Reply, call.Err
	case <-ctx.Done():
		if !c.Abandon(call) {
			<-done
			return call.Reply, call.Err
		}
		return nil, fmt.Errorf("waiting for %s to answer request type %d: %w: %w", c.RemoteAddr(), req.Type, fserr.Timeout, ctx.Err())
	}
}

// Message is a control message of package msg.
type Message interface {
	MarshalVT() ([]byte, error)
	UnmarshalVT([]byte) error
}

// CallMessage asks with a control message and decodes the answer into reply, also when the outcome is not OK. reply
// may be nil. Errors are failures of the connection or of ctx; outcomes are in the code.
func (c *Conn) CallMessage(ctx context.Context, t Type, class Class, req, reply Message) (fserr.Code, error) {
	body, err := req.MarshalVT()
	if err != nil {
		return 0, fmt.Errorf("encode request type %d: %w", t, err)
	}
	f, err := c.Call(ctx, &Frame{Type: t, Class: class, Body: body})
	if err != nil {
		return 0, err
	}
	defer f.Release()
	if reply != nil && len(f.Body) > 0 {
		if err := reply.UnmarshalVT(f.Body); err != nil {
			return 0, fmt.Errorf("decode answer to request type %d: %w: %w", t, fserr.Protocol, err)
		}
	}
	return f.Code, nil
}

// Reply answers req. body and data are not touched after it has returned. Errors mean that the connection has ended;
// there is nothing left to do for the request.
func (c *Conn) Reply(req *Frame, code fserr.Code, body, data []byte) error {
	answer := Frame{Type: req.Type, Class: req.Class, Epoch: req.Epoch, Code: code, Body: body, Data: data}
	if err := answer.checkSize(); err != nil {
		answer.Code, answer.Body, answer.Data = fserr.Protocol, nil, nil // the peer must not wait for ever
	}
	err := c.write(&answer, req.id, true)
	if err != nil {
		c.fail(err)
	}
	return err
}

// ReplyMessage answers req with a control message, which may be nil.
func (c *Conn) ReplyMessage(req *Frame, code fserr.Code, m Message) error {
	var body []byte
	if m != nil {
		var err error
		if body, err = m.MarshalVT(); err != nil {
			return c.Reply(req, fserr.Protocol, nil, nil)
		}
	}
	return c.Reply(req, code, body, nil)
}

func (f *Frame) checkSize() error {
	if len(f.Body) > MaxBody || len(f.Data) > MaxData {
		return fmt.Errorf("frame type %d with body of %d and data of %d bytes is over the limit: %w", f.Type, len(f.Body), len(f.Data), fserr.Protocol)
	}
	return nil
}

func (c *Conn) readLoop() {
	defer close(c.readEnd)
	for {
		f, answer, err := readFrame(c, c.br, c.nc, MaxBody, MaxData)
		if err != nil {
			c.fail(err)
			return
		}
		if answer {
			c.deliver(f)
			continue
		}
		if c.handler == nil {
			f.Release()
			c.fail(fmt.Errorf("unexpected request type %d: %w", f.Type, fserr.Protocol))
			return
		}
		select {
		case c.slots <- struct{}{}:
		case <-c.ctx.Done():
			f.Release()
			return
		}
		c.serving.Add(1)
		workers.run(c, f)
	}
}

func (c *Conn) serve(f *Frame) {
	defer c.serving.Done()
	if c.Carrier == nil { // which counts by itself
		defer func() { <-c.slots }()
	}
	kept := f.kept
	defer func() {
		f.Release() // after which f may be the carrier's
		if kept {
			*f = Frame{}
			frames.Put(f)
		}
	}()
	c.handler.Serve(c.ctx, c, f)
}

func (c *Conn) deliver(f *Frame) {
	c.mu.Lock()
	call := c.pending[f.id]
	delete(c.pending, f.id)
	c.mu.Unlock()
	if call == nil {
		f.Release() // abandoned, or a second answer
		return
	}
	call.Reply = f
	call.done <- call
}

// readFrame reads one frame and whether it is an answer. Nothing is allocated for a length over its limit, nor for the data of a
// request before the admission of c, if there is one, let it go on. nc, unless nil, is where br reads from: what follows the header
// must come within frameTimeout.
func readFrame(c *Conn, br *bufio.Reader, nc net.Conn, maxBody, maxData uint32) (*Frame, bool, error) {
	b, err := br.Peek(headerSize)
	if err != nil {
		if len(b) > 0 && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, false, err
	}
	var h header
	if c != nil {
		h.key = c.keys.Receive
	}
	if err := h.decode(b); err != nil {
		return nil, false, err
	}
	if h.bodyLen > maxBody || h.dataLen > maxData {
		return nil, false, fmt.Errorf("frame type %d: body of %d and data of %d bytes, limits %d and %d here: %w", h.typ, h.bodyLen, h.dataLen, maxBody, maxData, fserr.Protocol)
	}
	if _, err := br.Discard(headerSize); err != nil {
		return nil, false, err
	}
	var f *Frame
	if h.answer {
		f = new(Frame)
	} else {
		f = frames.Get().(*Frame)
	}
	*f = Frame{Type: h.typ, Class: h.class, Epoch: h.epoch, Code: h.code, id: h.id, pooled: true, kept: !h.answer}
	f.Body = Buffer(int(h.bodyLen))
	if err := readRest(br, nc, f.Body); err != nil {
		f.Release()
		return nil, false, err
	}
	if got := crc32.Checksum(f.Body, castagnoli); got != h.bodyCRC {
		f.Release()
		return nil, false, fmt.Errorf("frame type %d: body checksum %08x, want %08x: %w", h.typ, got, h.bodyCRC, fserr.Protocol)
	}
	if c != nil && c.Admission != nil && !h.answer {
		if f.Grant, f.Data, err = c.Admission.Admit(c.ctx, c, f, int(h.dataLen)); err != nil {
			f.Release()
			return nil, false, err
		}
	}
	if f.Data == nil {
		f.Data = Buffer(int(h.dataLen))
	}
	if err := readRest(br, nc, f.Data); err != nil {
		f.Release()
		return nil, false, err
	}
	return f, h.answer, nil
}

// frameTimeout bounds how long the rest of a frame may take once its header is there. A peer that sends half a frame and then
// nothing would keep its buffers, and its share of the budget, from others. It is longer than the time after which a sender gives up.
const frameTimeout = 15 * time.Second

// readRest fills b.
func readRest(br *bufio.Reader, nc net.Conn, b []byte) error {
	if nc == nil || br.Buffered() >= len(b) {
		_, err := io.ReadFull(br, b)
		return err
	}
	if err := nc.SetReadDeadline(time.Now().Add(frameTimeout)); err != nil {
		return err
	}
	if _, err := io.ReadFull(br, b); err != nil {
		return fmt.Errorf("rest of a frame: %w", err)
	}
	return nc.SetReadDeadline(time.Time{})
}

// Preface returns the first four bytes that every varve connection starts with.
func Preface() [4]byte {
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], magic)
	return b
}
