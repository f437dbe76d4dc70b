package secure

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/pki"
	"varve/internal/wire"
)

// listener hands out connections whose handshake has succeeded.
type listener struct {
	l     net.Listener
	n     *Network
	ready chan net.Conn
	done  chan struct{}
	once  sync.Once
	wg    sync.WaitGroup

	mu               sync.Mutex
	strangers, known *crowd // handshakes under way
	joiners          *crowd
	fault            error // why nothing more comes
	closed           bool
}

func newListener(l net.Listener, n *Network) *listener {
	return &listener{l: l, n: n, ready: make(chan net.Conn), done: make(chan struct{}),
		strangers: newCrowd(maxStrangers, maxStrangersFromOne), known: newCrowd(maxKnown, maxKnownFromOne), joiners: newCrowd(maxJoiners, maxJoinersFromOne)}
}

var _ net.Listener = (*listener)(nil)

// run accepts until the listener is closed. It never waits for anybody.
func (s *listener) run() {
	defer s.wg.Done()
	for {
		nc, err := s.l.Accept()
		if err != nil {
			if wire.Passes(err) {
				s.n.o.Logger.Warn("accept failed, going on", "err", err)
				time.Sleep(50 * time.Millisecond)
				continue
			}
			s.mu.Lock()
			s.fault = err
			s.mu.Unlock()
			s.once.Do(func() { close(s.done) })
			return
		}
		if o := s.n.o.Opening; o != nil && o.Stage() == Plain {
			s.servePlain(o, nc)
		} else if g, into := s.admit(nc); g != nil {
			go s.handshake(g, into)
		}
	}
}

// admit notes a connection, giving up others if there are too many. It returns nil if the connection is the one that is given up.
func (s *listener) admit(nc net.Conn) (g *guest, into *crowd) {
	g = &guest{nc: nc, from: sourceOf(nc.RemoteAddr()), since: time.Now()}
	known, ok := s.n.met.try(g.from)
	s.mu.Lock()
	defer s.mu.Unlock()
	into = s.strangers
	if known {
		into = s.known
	}
	if !s.closed && ok && into.enter(g) {
		s.wg.Add(1)
		return g, into
	}
	if !s.closed {
		s.n.refused.Log(s.n.o.Logger, slog.LevelWarn, "connection refused: too many from this address, or in all, that have not said who they are", nc.RemoteAddr().String())
	}
	reset(nc)
	return nil, nil
}

// reset closes a connection without leaving anything of it with the kernel.
func reset(nc net.Conn) {
	if l, ok := nc.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0) // else it is closed in order
	}
	nc.Close()
}

func (s *listener) forget(g *guest, from *crowd) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from.leave(g)
}

func (s *listener) handshake(p *guest, in *crowd) {
	defer s.wg.Done()
	if o := s.n.o.Opening; o.Stage() == Both {
		first, nc, err := firstByte(p.nc)
		if err != nil {
			p.nc.Close()
			s.forget(p, in)
			return
		}
		if p.nc = nc; first != recordHandshake {
			s.forget(p, in)
			s.n.met.met(p.from, true)
			s.handOver(o, nc)
			return
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	c, join, err := s.n.server(ctx, p.nc)
	cancel()
	if err != nil {
		sayTLS(p.nc, err)
		s.n.sayRefused(p.nc, err)
		p.nc.Close()
		s.forget(p, in)
		return
	}
	s.forget(p, in)
	if join != nil {
		s.join(p, join)
		return
	}
	s.n.met.met(p.from, true)
	select {
	case s.ready <- c:
	case <-s.done:
		c.Close()
	}
}

// servePlain hands out a connection as it is. It does not wait.
func (s *listener) servePlain(o *Opening, nc net.Conn) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		nc.Close()
		return
	}
	s.wg.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.wg.Done()
		s.handOver(o, nc)
	}()
}

// handOver hands out a connection without TLS, if such ones count.
func (s *listener) handOver(o *Opening, nc net.Conn) {
	c := o.take(nc)
	if c == nil {
		nc.Close()
		return
	}
	select {
	case s.ready <- c:
	case <-s.done:
		c.Close()
	}
}

// sayRefused logs why somebody was not let in.
func (n *Network) sayRefused(nc net.Conn, err error) {
	peer, level := nc.RemoteAddr().String(), slog.LevelWarn
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) {
		level = slog.LevelDebug
	}
	n.refused.Log(n.o.Logger, level, "connection refused", peer, "err", err)
}

// join hands a machine without a certificate to who may give it one. That it connected costs it what a refused handshake does.
func (s *listener) join(g *guest, tc *tls.Conn) {
	nc := g.nc
	g.since = time.Now()
	s.mu.Lock()
	ok := !s.closed && s.joiners.enter(g)
	s.mu.Unlock()
	if !ok {
		s.n.refused.Log(s.n.o.Logger, slog.LevelWarn, "connection refused: too many machines that want to join at once", nc.RemoteAddr().String())
		reset(nc)
		return
	}
	defer s.forget(g, s.joiners)
	tc.NetConn().(*recordConn).admit = func() { s.forget(g, s.joiners) }
	ctx, cancel := context.WithTimeout(context.Background(), joinTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	go func() {
		select {
		case <-s.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	if j := s.n.join.Load(); j != nil {
		(*j).ServeJoin(ctx, tc)
	}
	nc.Close()
}

// server does the handshake of who was connected to. join is set for a machine that wants a certificate.
func (n *Network) server(ctx context.Context, nc net.Conn) (c net.Conn, join *tls.Conn, err error) {
	rc := &recordConn{Conn: nc, left: maxHandshakeBytes}
	joins := false
	creds := n.Credentials()
	if creds == nil {
		return nil, nil, errNotSecured
	}
	conf := harden(creds.ServerConfig(), nil)
	conf.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		protos := n.protosOf(hello)
		own := harden(creds.ServerConfig(), protos)
		if protos[0] == ProtoJoin {
			if n.join.Load() == nil {
				return nil, errors.New("machines join at metadata servers, not here")
			}
			joins = true
			own.ClientAuth, own.VerifyConnection = tls.NoClientCert, nil
		}
		return own, nil
	}
	tc := tls.Server(rc, conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		linger(nc, err)
		return nil, nil, err
	}
	if joins {
		rc.free()
		return nil, tc, nc.SetDeadline(time.Now().Add(joinTimeout))
	}
	st := tc.ConnectionState()
	peer, err := pki.PeerIdentity(st)
	if err != nil {
		return nil, nil, err
	}
	c, err = n.finish(creds, tc, rc, peer, st, false)
	return c, nil, err
}

// sayTLS tells who speaks varve's protocol without TLS that it needs a certificate: by the alert that TLS has for it, which package wire knows.
func sayTLS(nc net.Conn, err error) {
	if !errors.Is(err, errPlain) || nc.SetWriteDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	if _, err := nc.Write(wire.NeedsCertificate()); err == nil {
		linger(nc, errRefused)
	}
}

// lingerTime bounds how long a refused peer may take to read why.
const lingerTime = 250 * time.Millisecond

// linger lets the alert arrive: what was sent to us and not read would have the kernel reset the connection, and the alert with it.
func linger(nc net.Conn, err error) {
	if !errors.Is(err, errRefused) {
		return
	}
	if w, ok := nc.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil && nc.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		_, _ = io.CopyN(io.Discard, nc, maxHandshakeBytes)
	}
}

// Accept implements net.Listener.
func (s *listener) Accept() (net.Conn, error) {
	select {
	case c := <-s.ready:
		return c, nil
	case <-s.done:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault != nil && !s.closed {
		return nil, s.fault
	}
	return nil, net.ErrClosed
}

// Close implements net.Listener: it ends the handshakes under way too, and waits for them.
func (s *listener) Close() error {
	s.mu.Lock()
	s.closed = true
	s.strangers.closeAll()
	s.known.closeAll()
	s.joiners.closeAll()
	s.mu.Unlock()
	err := s.l.Close()
	s.once.Do(func() { close(s.done) })
	s.wg.Wait()
	return err
}

// Addr implements net.Listener.
func (s *listener) Addr() net.Addr { return s.l.Addr() }
