package nbdserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/block"
	"varve/internal/nbd"
	"varve/iouring/reactor"
)

// Export is an image and its names.
type Export struct {
	Name        string // as clients list it; a / before it is of no account
	Description string
	Image       block.Image
	ReadOnly    bool
}

// Options of a server.
type Options struct {
	Exports   []Export // the first is the default
	Loops     []*block.Loop
	Listeners []net.Listener // stream sockets; Start takes them over
	Secured   []net.Listener // those where clients must begin TLS; Start takes them over
	TLS       *tls.Config    // for Secured: the server's certificate, and which clients are let in
	Logger    *slog.Logger   // default: slog.Default()

	Connections int           // at once; default 256
	Negotiation time.Duration // how long it may take; default 20 s
	Payload     time.Duration // how long the data of a write may take; default block.IdleTimeout
}

const (
	// maxRequests bounds the requests under way on one connection.
	maxRequests = 256
	// openTimeout bounds how long a client waits for an image to be opened.
	openTimeout = 30 * time.Second
	// releaseTimeout bounds the flush and the end of an open that nobody uses any more.
	releaseTimeout = 30 * time.Second
	// lastTimeout bounds the wait for requests that were given up.
	lastTimeout = 5 * time.Second
	// keepAlive is how many seconds a client may be silent before it is asked whether it lives, and between two such questions; it is gone after keepAlives.
	keepAlive, keepAlives = 15, 5
	// maxOptions bounds what a client may ask for before the transmission.
	maxOptions = 256
)

// Server serves exports until Shutdown.
type Server struct {
	o       Options
	log     *slog.Logger
	loops   []*loop
	exports []*export
	front   *front

	ctx     context.Context // of opens; ends with Shutdown's context
	cancel  context.CancelFunc
	wg      sync.WaitGroup // goroutines that open and release
	next    atomic.Uint32  // loop
	conns   atomic.Int64
	gone    chan struct{} // one token when conns has become 0
	closing atomic.Bool
}

// loop is what a thread has of the server. All of it is used on that thread alone.
type loop struct {
	*block.Loop
	s       *Server
	conns   map[*conn]struct{}
	free    *request
	waiting []*conn // for memory, in the order in which they came
	feeding bool
	listens []*reactor.Listener
	closing bool
}

// Start begins to serve. After an error nothing of the options was taken over, but for the listeners, which are closed.
func Start(o Options) (*Server, error) {
	if o.Connections == 0 {
		o.Connections = 256
	}
	if o.Negotiation == 0 {
		o.Negotiation = 20 * time.Second
	}
	if o.Payload == 0 {
		o.Payload = block.IdleTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	s := &Server{o: o, log: o.Logger, gone: make(chan struct{}, 1)}
	s.front = &front{s: s, conf: o.TLS, open: map[net.Conn]bool{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	err := s.check()
	if err == nil {
		for _, l := range o.Loops {
			s.loops = append(s.loops, &loop{Loop: l, s: s, conns: map[*conn]struct{}{}})
		}
		for _, l := range o.Listeners {
			err = errors.Join(err, s.listen(l))
		}
	}
	for _, l := range o.Listeners {
		_ = l.Close() // the loop has a descriptor of its own
	}
	if err != nil {
		for _, l := range o.Secured {
			_ = l.Close()
		}
		s.cancel()
		if len(s.loops) > 0 {
			s.loops[0].do(s.loops[0].stopListening)
		}
		return nil, err
	}
	for _, l := range o.Secured {
		s.front.wg.Add(1)
		go s.front.accept(l)
	}
	return s, nil
}

func (s *Server) check() error {
	var faults []error
	names := map[string]bool{}
	for i := range s.o.Exports {
		e := &s.o.Exports[i]
		name := strings.TrimPrefix(e.Name, "/")
		if len(name) > nbd.MaxName || len(e.Description) > nbd.MaxName {
			faults = append(faults, fmt.Errorf("export %.40q...: name or description of more than %d bytes", name, nbd.MaxName))
		}
		if names[name] {
			faults = append(faults, fmt.Errorf("two exports are named %q", name))
		}
		names[name] = true
		s.exports = append(s.exports, &export{s: s, name: name, description: e.Description, image: e.Image, readOnly: e.ReadOnly})
	}
	sockets := len(s.o.Listeners) + len(s.o.Secured)
	if len(s.exports) == 0 || len(s.o.Loops) == 0 || sockets == 0 {
		faults = append(faults, fmt.Errorf("%d exports, %d threads, %d sockets: want at least one of each", len(s.exports), len(s.o.Loops), sockets))
	}
	if len(s.o.Secured) > 0 && s.o.TLS == nil {
		faults = append(faults, errors.New("sockets for TLS, and no certificate"))
	}
	return errors.Join(faults...)
}

// sweep ends the connections to an export whose clients have hung up, also those that are not read and would not learn of it yet.
func (s *Server) sweep(e *export) {
	for _, l := range s.loops {
		l.do(func() {
			for d := range l.conns {
				if d.open != nil && d.open.e == e && !d.c.Closed() && d.gone() {
					d.close(errGone)
				}
			}
		})
	}
}

// find returns the export of a name; the empty one is that of the first.
func (s *Server) find(name string) *export {
	if name == "" {
		return s.exports[0]
	}
	for _, e := range s.exports {
		if e.name == strings.TrimPrefix(name, "/") {
			return e
		}
	}
	return nil
}

// listen has the first thread accept on a socket; connections go to all in turn.
func (s *Server) listen(l net.Listener) error {
	sc, ok := l.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%s: no socket of this system", l.Addr())
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	fd, err := reactor.Descriptor(sc)
	if err != nil {
		return fmt.Errorf("%s: %w", l.Addr(), err)
	}
	first := s.loops[0]
	first.do(func() {
		var n *reactor.Listener
		if n, err = first.Listen(fd, func(fd int) { s.arrived(arrival{fd: fd}) }); err == nil {
			first.listens = append(first.listens, n)
		}
	})
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", l.Addr(), err), unix.Close(fd))
	}
	return nil
}

// do runs f on the thread and waits for it.
func (l *loop) do(f func()) {
	done := make(chan struct{})
	if l.Do(func() { f(); close(done) }) {
		<-done
	}
}

func (l *loop) stopListening() {
	for _, n := range l.listens {
		n.Close()
	}
	l.listens = nil
}

// arrival is a new connection.
type arrival struct {
	fd      int
	greeted bool // its handshake flags were taken
	zeroes  bool // with greeted: it wants what follows the answer to OptExportName
}

// arrived gives a new connection to a thread.
func (s *Server) arrived(a arrival) {
	fd := a.fd
	if s.closing.Load() {
		_ = unix.Close(fd)
		return
	}
	if n := s.conns.Add(1); n > int64(s.o.Connections) {
		s.log.Warn("a connection is refused: there are as many as there may be", "connections", s.o.Connections)
		s.left()
		_ = unix.Close(fd)
		return
	}
	tune(fd)
	l := s.loops[int(s.next.Add(1))%len(s.loops)]
	if !l.Do(func() { l.adopt(a) }) {
		s.left()
		_ = unix.Close(fd)
	}
}

// tune has a TCP connection send at once, and end when the host of its client is gone without a word: it would hold its image, and its place, for ever. On a UNIX
// socket, which has no need of it, all of this fails.
func tune(fd int) {
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAlive)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepAlive)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAlives)
}

// left counts a connection that has gone.
func (s *Server) left() {
	if s.conns.Add(-1) == 0 {
		select {
		case s.gone <- struct{}{}:
		default:
		}
	}
}

// Connections returns how many there are.
func (s *Server) Connections() int { return int(s.conns.Load()) }

// Shutdown accepts and reads nothing more, answers what is under way, closes the connections, flushes and gives the images back. When ctx ends, what
// is still under way is given up; an error says so, and the loops may then not end.
func (s *Server) Shutdown(ctx context.Context) error {
	s.closing.Store(true)
	for _, l := range s.o.Secured {
		_ = l.Close()
	}
	s.front.close(false)
	s.loops[0].do(s.loops[0].stopListening)
	for _, l := range s.loops {
		l.do(func() {
			l.closing = true
			for c := range l.conns {
				c.wind()
			}
		})
	}
	var err error
	done, late := ctx.Done(), (<-chan time.Time)(nil)
	for s.conns.Load() > 0 {
		select {
		case <-s.gone:
		case <-late:
			return err // what is still under way keeps its memory
		case <-done:
			done, late = nil, time.After(lastTimeout)
			err = fmt.Errorf("requests of %d connections are given up: %w", s.conns.Load(), ctx.Err())
			for _, l := range s.loops { // first: a client that is hung up on comes again, one that is told of an error believes it
				l.do(func() {
					for c := range l.conns {
						c.close(err)
					}
				})
			}
			for _, e := range s.exports {
				e.cut()
			}
		}
	}
	s.wg.Wait()
	s.front.end()
	s.cancel()
	for _, e := range s.exports {
		err = errors.Join(err, e.failed())
	}
	return err
}
