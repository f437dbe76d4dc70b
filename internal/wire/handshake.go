package wire

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
	"varve/internal/pki"
	"varve/internal/wire/msg"
)

const (
	handshakeTimeout = 5 * time.Second
	// userTimeout bounds how long the kernel keeps a connection whose peer acknowledges nothing.
	userTimeout = 10 * time.Second
	readBuffer  = 64 << 10
)

func setUserTimeout(_, _ string, rc syscall.RawConn) error {
	var err error
	cerr := rc.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
	})
	return errors.Join(cerr, err)
}

// Network makes the connections of one process.
type Network interface {
	// Dial connects to an address, for traffic of a class: heartbeats and metadata are control connections, the others carry data.
	Dial(ctx context.Context, addr string, class Class) (net.Conn, error)
	// Listen listens on one.
	Listen(ctx context.Context, addr string) (net.Listener, error)
}

// TCP is the Network that is used if none is given. Multipath TCP is off, since it hides the socket from eBPF.
type TCP struct {
	// Bind, if set, chooses where a connection leaves this host: from which address and port, and through which interface. A zero address or
	// port, or no name, leaves that to the kernel. It is called for each attempt, with what the name that is dialled stands for, and must not block.
	Bind BindFunc
	// Spread, if set, chooses the ports that Bind leaves open.
	Spread SpreadFunc
}

// BindFunc chooses where a connection leaves, see TCP.
type BindFunc = func(class Class, remote netip.AddrPort) (local netip.AddrPort, device string)

// Binder is a Network whose connections can be told where to leave. One that wraps another hands it on.
type Binder interface {
	Network
	// WithBind returns the Network with bind for the addresses from which it dials.
	WithBind(bind BindFunc) Network
}

// Bound returns the network with bind, or as it is if it dials from nowhere in particular.
func Bound(n Network, bind BindFunc) Network {
	if b, ok := n.(Binder); ok {
		return b.WithBind(bind)
	}
	return n
}

var _ Binder = TCP{}

// WithBind implements Binder. What chose before does not any more; ports that bind leaves open are Spread's, as before.
func (n TCP) WithBind(bind BindFunc) Network {
	n.Bind = bind
	return n
}

// Dial implements Network.
func (n TCP) Dial(ctx context.Context, addr string, class Class) (net.Conn, error) {
	if n.Spread != nil {
		return n.dialSpread(ctx, addr, class)
	}
	return n.dial(ctx, addr, class, nil)
}

// dial connects. If bound is not nil, it says whether the port was Spread's.
func (n TCP) dial(ctx context.Context, addr string, class Class, bound *atomic.Bool) (net.Conn, error) {
	prepare := func(network, remote string, rc syscall.RawConn) error {
		mark(rc, class) // from the first packet on
		return setUserTimeout(network, remote, rc)
	}
	d := net.Dialer{Timeout: handshakeTimeout, Control: prepare}
	if n.Bind != nil || n.Spread != nil {
		d.Control = func(network, remote string, rc syscall.RawConn) error {
			if err := prepare(network, remote, rc); err != nil {
				return err
			}
			to, err := netip.ParseAddrPort(remote)
			if err != nil {
				return fmt.Errorf("dial %s: %w", remote, err)
			}
			var from netip.AddrPort
			var device string
			if n.Bind != nil {
				from, device = n.Bind(class, to)
			}
			if n.Spread != nil && from.Port() == 0 {
				done, err := n.spread(rc, class, wayOf(ctx), from, to, device)
				if bound != nil {
					bound.Store(done)
				}
				if done || err != nil {
					return err
				}
			}
			return bindTo(rc, to, from, device)
		}
	}
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, "tcp", addr)
}

// Listen implements Network.
func (TCP) Listen(ctx context.Context, addr string) (net.Listener, error) {
	lc := net.ListenConfig{Control: setUserTimeout}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("listen on %s: the port is taken; stop the other process or choose another with -a: %w", addr, err)
		}
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}

// Listen listens on a TCP address.
func Listen(ctx context.Context, addr string) (net.Listener, error) { return TCP{}.Listen(ctx, addr) }

// Dial connects to addr and says hello. h answers what the peer asks and may be nil. Errors wrap the
// fserr.Code that the peer refused with, or fserr.Unavailable.
func Dial(ctx context.Context, addr string, hello *msg.Hello, h Handler, o Options) (*Conn, *msg.HelloReply, error) {
	var network Network = TCP{}
	if o.Network != nil {
		network = o.Network
	}
	nc, err := connect(ctx, network, addr, o)
	if err != nil {
		return nil, nil, err
	}
	c := newConn(nc, bufio.NewReaderSize(nc, readBuffer), o)
	reply, err := c.sayHello(ctx, hello)
	if err == nil && o.Greeted != nil {
		err = o.Greeted(c, reply)
	}
	if err != nil {
		c.Close()
		return nil, nil, fmt.Errorf("handshake with %s: %w", addr, err)
	}
	c.start(h)
	return c, reply, nil
}

func (c *Conn) sayHello(ctx context.Context, hello *msg.Hello) (*msg.HelloReply, error) {
	body, err := hello.MarshalVT()
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(2 * handshakeTimeout) // the peer may have to quiesce an older connection
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	stop := context.AfterFunc(ctx, func() { c.nc.Close() })
	defer stop()
	if err := c.nc.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	if err := c.write(&Frame{Type: Hello, Body: body}, 0, false); err != nil {
		return nil, fmt.Errorf("%w: %w", fserr.Unavailable, err)
	}
	if err := lookForAlert(c.br); err != nil {
		return nil, err
	}
	f, answer, err := readFrame(c, c.br, nil, maxHello, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", fserr.Unavailable, err)
	}
	defer f.Release()
	if !answer || f.Type != Hello {
		return nil, fmt.Errorf("answer of type %d to hello: %w", f.Type, fserr.Protocol)
	}
	if f.Code != fserr.OK {
		return nil, f.Code
	}
	reply := new(msg.HelloReply)
	if err := reply.UnmarshalVT(f.Body); err != nil {
		return nil, fmt.Errorf("%w: %w", fserr.Protocol, err)
	}
	return reply, c.nc.SetReadDeadline(time.Time{})
}

// Acceptor decides about a connection by its hello. It returns what will answer its requests, or an
// outcome other than OK to refuse it. It may set c.Value, c.Admission and c.Carrier. It may block (to quiesce an older connection).
type Acceptor func(c *Conn, hello *msg.Hello) (Handler, *msg.HelloReply, fserr.Code)

// Server accepts connections on a listener.
type Server struct {
	Accept Acceptor
	// Started, if set, is called once the hello was answered: from then on the server may ask on the connection, which
	// in Accept would overtake the answer. It must not block.
	Started func(*Conn)
	Options Options
	Logger  *slog.Logger // default slog.Default()
	// MaxConns bounds the connections, handshakes included. Default: 8,192.
	MaxConns int

	refused pki.Refusals

	mu     sync.Mutex
	conns  map[*Conn]struct{}
	closed bool
	wg     sync.WaitGroup
}

// maxConns is the default of Server.MaxConns.
const maxConns = 8192

// Serve accepts connections until l is closed. Garbage on a connection ends that connection only.
func (s *Server) Serve(l net.Listener) error {
	if s.Logger == nil {
		s.Logger = slog.Default()
	}
	for {
		nc, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if Passes(err) {
				s.Logger.Warn("accept failed, going on", "err", err)
				time.Sleep(50 * time.Millisecond)
				continue
			}
			return err
		}
		c := newConn(nc, bufio.NewReaderSize(nc, readBuffer), s.Options)
		if !s.add(c) {
			c.Close()
			continue
		}
		go s.handshake(c)
	}
}

func (s *Server) add(c *Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.conns) >= cmp.Or(s.MaxConns, maxConns) {
		return false
	}
	if s.conns == nil {
		s.conns = make(map[*Conn]struct{})
	}
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	return true
}

func (s *Server) handshake(c *Conn) {
	defer s.wg.Done()
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	h, err := s.greet(c)
	if err == nil && c.Carrier != nil {
		err = c.carry(h)
	}
	if err != nil {
		level := slog.LevelWarn
		if err == io.EOF {
			level = slog.LevelDebug // connected and left without a word, as port checks do
		}
		s.refused.Log(s.Logger, level, "connection refused", c.RemoteAddr(), "err", err)
		c.Close()
		close(c.readEnd) // nothing was ever read for a handler: Quiesce need not wait
		return
	}
	if c.Carrier == nil {
		c.start(h)
	}
	if s.Started != nil {
		s.Started(c)
	}
	<-c.Done()
	<-c.readEnd
	c.serving.Wait()
}

func (s *Server) greet(c *Conn) (Handler, error) {
	if err := c.nc.SetReadDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, err
	}
	f, answer, err := readFrame(c, c.br, nil, maxHello, 0)
	if err != nil {
		return nil, err
	}
	defer f.Release()
	if answer || f.Type != Hello {
		return nil, fmt.Errorf("first frame has type %d, want hello: %w", f.Type, fserr.Protocol)
	}
	hello := new(msg.Hello)
	if err := hello.UnmarshalVT(f.Body); err != nil {
		return nil, fmt.Errorf("hello: %w: %w", fserr.Protocol, err)
	}
	if err := c.nc.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	h, reply, code := s.Accept(c, hello)
	if code != fserr.OK {
		_ = c.ReplyMessage(f, code, reply)
		return nil, fmt.Errorf("hello of a %s: %w", hello.Role, code)
	}
	return h, c.ReplyMessage(f, fserr.OK, reply)
}

// Close ends all connections and waits for their handlers. Close the listener first.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}
