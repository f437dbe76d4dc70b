package nbd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// ErrClosed is wrapped by errors of requests whose connection has ended.
var ErrClosed = errors.New("NBD connection has ended")

const (
	// maxCalls bounds the requests under way on one connection.
	maxCalls = 1 << 16
	// maxChunks bounds the chunks of one reply.
	maxChunks = 1 << 16
	// maxSpans bounds the parts of a read that came out of order.
	maxSpans  = 1 << 10
	readAhead = 64 << 10
)

// Conn is a connection in the transmission phase. Its methods may be called at once.
type Conn struct {
	Export Export

	conn net.Conn
	done chan struct{} // closed when the reader has ended

	sendMu sync.Mutex // one request on the wire at a time
	head   []byte
	parts  net.Buffers

	mu    sync.Mutex // guards what follows
	calls map[uint64]*call
	next  uint64 // cookie
	err   error  // why the connection has ended
}

// call is a request under way. The reader owns it from when it is in the table until it is taken out.
type call struct {
	command Command
	p       []byte // what a read fills
	offset  uint64
	covered []span // of p, by chunks
	bytes   int    // sum of them
	chunks  int
	failed  error
	ended   chan error
}

type span struct{ from, to uint64 }

var calls = sync.Pool{New: func() any { return &call{ended: make(chan error, 1)} }}

func newConn(c net.Conn, e Export) *Conn {
	n := &Conn{Export: e, conn: c, done: make(chan struct{}), calls: map[uint64]*call{}, head: make([]byte, 0, RequestSize)}
	go n.readReplies()
	return n
}

// Do sends a request and waits for its reply. p is what a read fills and a write writes; other commands have a length instead.
func (n *Conn) Do(command Command, flags uint16, offset uint64, p []byte, length uint32) error {
	if p != nil {
		length = uint32(len(p))
	}
	k := calls.Get().(*call)
	defer calls.Put(k)
	*k = call{command: command, offset: offset, covered: k.covered[:0], ended: k.ended}
	if command == CmdRead {
		k.p = p
	}
	r := Request{Flags: flags, Command: command, Offset: offset, Length: length}
	cookie, err := n.enter(k)
	if err != nil {
		return err
	}
	r.Cookie = cookie
	if command == CmdRead {
		p = nil
	}
	if err := n.send(&r, p); err != nil {
		n.fail(fmt.Errorf("%w: %s: %w", ErrClosed, command, err)) // the reader tells
	}
	err = <-k.ended
	k.p = nil
	return err
}

// enter puts a request into the table of those under way and returns its cookie.
func (n *Conn) enter(k *call) (uint64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err != nil {
		return 0, n.err
	}
	if len(n.calls) >= maxCalls {
		return 0, fmt.Errorf("%d requests are under way", maxCalls)
	}
	n.next++
	n.calls[n.next] = k
	return n.next, nil
}

func (n *Conn) send(r *Request, p []byte) error {
	n.sendMu.Lock()
	defer n.sendMu.Unlock()
	n.head = r.Append(n.head[:0])
	if len(p) == 0 {
		_, err := n.conn.Write(n.head)
		return err
	}
	parts := append(n.parts[:0], n.head, p)
	n.parts = parts // WriteTo takes parts away from its own copy
	_, err := parts.WriteTo(n.conn)
	clear(n.parts[:2])
	return err
}

// fail ends the connection and everything under way, the first time with err.
func (n *Conn) fail(err error) {
	n.mu.Lock()
	if n.err == nil {
		n.err = err
	}
	n.mu.Unlock()
	n.conn.Close() // wakes the reader, which ends what is under way
}

// Err returns why the connection has ended, nil while it has not.
func (n *Conn) Err() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

// Close tells the server that the client goes, and ends the connection. Requests under way end with ErrClosed.
func (n *Conn) Close() error {
	n.mu.Lock()
	ended := n.err != nil
	if !ended {
		n.err = ErrClosed
	}
	n.mu.Unlock()
	if !ended {
		if n.sendMu.TryLock() { // else somebody is stuck in there, and closing ends that
			_ = n.conn.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = n.conn.Write((&Request{Command: CmdDisconnect}).Append(nil)) // a courtesy
			n.sendMu.Unlock()
		}
	}
	err := n.conn.Close()
	<-n.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// readReplies works until the connection ends.
func (n *Conn) readReplies() {
	defer close(n.done)
	r := &replies{n: n, r: bufio.NewReaderSize(n.conn, readAhead)}
	err := error(nil)
	for err == nil {
		err = r.next()
	}
	switch {
	case errors.Is(err, ErrProtocol) || errors.Is(err, ErrClosed):
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("%w: the server hung up", ErrClosed)
	default:
		err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	n.fail(err)
	n.mu.Lock()
	err = n.err
	all := n.calls
	n.calls = nil // nothing is added once err is set
	n.mu.Unlock()
	for _, k := range all {
		k.ended <- err
	}
}

// take returns a request under way, and ends it if last.
func (n *Conn) take(cookie uint64, last bool) (*call, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := n.calls[cookie]
	if k == nil {
		return nil, fmt.Errorf("%w: a reply to request %#x, which is not under way", ErrProtocol, cookie)
	}
	if last {
		delete(n.calls, cookie)
	}
	return k, nil
}

// MultiConn reports whether further connections to the export see, and flush, what this one does.
func (n *Conn) MultiConn() bool { return n.Export.Flags&CanMultiConn != 0 }
