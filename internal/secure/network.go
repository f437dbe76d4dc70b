package secure

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"varve/internal/fserr"
	"varve/internal/pki"
	"varve/internal/records"
	"varve/internal/wire"
)

// Protocols of a connection, as ALPN names them.
const (
	ProtoControl = "varve-control"
	ProtoData    = "varve-data"
	ProtoSealed  = "varve-data-sealed"
	ProtoDataTLS = "varve-data-tls"
	ProtoJoin    = pki.ALPNJoin
)

const (
	// handshakeTimeout bounds a handshake, on either side.
	handshakeTimeout = 5 * time.Second
	// maxHandshakeBytes bounds what a peer may send in its handshake.
	maxHandshakeBytes = 48 << 10
	// maxJoiners bounds the connections of machines without a certificate at once, maxJoinersFromOne those of one source, and joinTimeout each of them.
	maxJoiners        = 32
	maxJoinersFromOne = 8
	joinTimeout       = 30 * time.Second
)

// Options of a Network. Credentials are needed; the zero value of the rest works.
type Options struct {
	Credentials *pki.Credentials
	// Under makes the sockets. Default: wire.TCP.
	Under wire.Network
	// DataTLS has data encrypted on the connections that this process makes, whatever the other end prefers.
	DataTLS bool
	// Opening, if set, is the process' way into security; Credentials are not needed then.
	Opening *Opening
	// Join, if set, is handed the connections of machines without a certificate.
	Join pki.JoinServer
	// Logger is told who was refused, and why. Default: slog.Default().
	Logger *slog.Logger

	unsealed bool // tests: as a version of varve, or a machine, that does not know ProtoSealed
}

// Network is a wire.Network whose connections are authenticated.
type Network struct {
	o       Options
	dataTLS atomic.Bool // of connections that others make
	join    atomic.Pointer[pki.JoinServer]
	live    *live // with who dials by other ways (WithBind)
	met     *acquaintances
	refused *pki.Refusals
	forged  *atomic.Uint64
}

var _ wire.Binder = (*Network)(nil)

// New returns the network of one process.
func New(o Options) *Network {
	if o.Under == nil {
		o.Under = wire.TCP{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	n := &Network{o: o, live: new(live), met: newAcquaintances(), refused: new(pki.Refusals), forged: new(atomic.Uint64)}
	n.dataTLS.Store(o.DataTLS)
	n.HandleJoin(o.Join)
	return n
}

// HandleJoin exchanges Options.Join.
func (n *Network) HandleJoin(j pki.JoinServer) {
	if j == nil {
		n.join.Store(nil)
		return
	}
	n.join.Store(&j)
}

// RequireDataTLS says whether connections for data that others make from now on are encrypted.
func (n *Network) RequireDataTLS(on bool) { n.dataTLS.Store(on || n.o.DataTLS) }

// WithBind implements wire.Binder.
func (n *Network) WithBind(bind wire.BindFunc) wire.Network {
	o := n.o
	o.Under = wire.Bound(o.Under, bind)
	bound := New(o)
	bound.dataTLS.Store(n.dataTLS.Load())
	bound.join.Store(n.join.Load())
	bound.live, bound.met, bound.refused, bound.forged = n.live, n.met, n.refused, n.forged
	return bound
}

// Credentials returns who this process is, nil while it is no one.
func (n *Network) Credentials() *pki.Credentials {
	if n.o.Opening != nil {
		return n.o.Opening.Credentials()
	}
	return n.o.Credentials
}

// Opening returns the process' way into security, nil if it is not on one.
func (n *Network) Opening() *Opening { return n.o.Opening }

// Under returns the network that makes the sockets.
func (n *Network) Under() wire.Network { return n.o.Under }

// Dial implements wire.Network.
func (n *Network) Dial(ctx context.Context, addr string, class wire.Class) (net.Conn, error) {
	if n.o.Opening != nil && n.o.Opening.Stage() != Closed {
		return n.dialOpen(ctx, addr, class)
	}
	return n.dialTLS(ctx, addr, class)
}

func (n *Network) dialTLS(ctx context.Context, addr string, class wire.Class) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	nc, err := n.o.Under.Dial(ctx, addr, class)
	if err != nil {
		if n.o.Opening != nil {
			err = fmt.Errorf("%w: %w", errNotReached, err)
		}
		return nil, err
	}
	protos := []string{ProtoControl}
	if class > wire.ClassMeta {
		protos = n.dataProtos(n.o.DataTLS) // which, the other end says
	}
	c, err := n.client(ctx, nc, protos)
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("%s: %w", addr, err)
	}
	n.met.met(sourceOf(nc.RemoteAddr()), false)
	return c, nil
}

// client does the handshake of who connects.
func (n *Network) client(ctx context.Context, nc net.Conn, protos []string) (net.Conn, error) {
	creds := n.Credentials()
	if creds == nil {
		return nil, errNotSecured
	}
	conf := harden(creds.ClientConfig(), protos)
	rc := &recordConn{Conn: nc, left: maxHandshakeBytes}
	tc := tls.Client(rc, conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, explain(err)
	}
	st := tc.ConnectionState()
	peer, err := pki.PeerIdentity(st)
	if err != nil {
		return nil, err
	}
	return n.finish(creds, tc, rc, peer, st, true)
}

// harden makes a configuration of package pki that of one connection.
func harden(c *tls.Config, protos []string) *tls.Config {
	c = c.Clone()
	c.MinVersion, c.MaxVersion = tls.VersionTLS13, tls.VersionTLS13
	c.SessionTicketsDisabled, c.ClientSessionCache = true, nil
	c.DynamicRecordSizingDisabled = true // whole records from the first on: frames are waited for in full
	c.CurvePreferences = []tls.CurveID{tls.X25519}
	c.NextProtos = protos
	if verify := c.VerifyConnection; verify != nil {
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			if !slices.Contains(protos, cs.NegotiatedProtocol) { // an end that names none is not asked by crypto/tls
				return fmt.Errorf("%w: the peer speaks %.40q, want one of %q", errRefused, cs.NegotiatedProtocol, protos)
			}
			cs.NegotiatedProtocol = pki.ALPN
			if err := verify(cs); err != nil {
				return fmt.Errorf("%w: %w", errRefused, err)
			}
			return nil
		}
	}
	return c
}

// errNotSecured says that the process has no credentials, or none any more.
var errNotSecured = errors.New("this process has no credentials")

// errRefused says that it is who the peer is that was not good enough.
var errRefused = errors.New("peer refused")

// explain says what a failed handshake means for who connected.
func explain(err error) error {
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "remote error" {
		return refused(err)
	}
	return fmt.Errorf("TLS handshake: %w", err)
}

func refused(err error) error {
	return fmt.Errorf("this node's certificate was refused (%w): it has expired, was revoked, or is of another cluster; its log says which: %w", err, fserr.WrongCluster)
}

// finish makes a connection of a handshake that has ended.
func (n *Network) finish(creds *pki.Credentials, tc *tls.Conn, rc *recordConn, peer pki.Identity, st tls.ConnectionState, client bool) (net.Conn, error) {
	if err := rc.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	e := n.live.add(peer, rc.Conn)
	if err := creds.Refusal(peer); err != nil { // revoked between its handshake and this
		e.gone()
		return nil, err
	}
	p := plain{peer: peer, entry: e}
	if client {
		p.first = &firstRead{tc: tc, rc: rc}
	}
	switch st.NegotiatedProtocol {
	case ProtoData:
		key, err := st.ExportKeyingMaterial("EXPORTER-varve-frames", nil, 8)
		if err != nil {
			e.gone()
			return nil, err
		}
		p.keys = frameKeys(key, client)
		return p.on(rc.Conn), nil
	case ProtoSealed:
		pair, err := sealedPair(st, client)
		if err != nil {
			e.gone()
			return nil, err
		}
		return records.NewStream(p.on(rc.Conn), pair, func() { n.sayForged(rc.Conn, peer) }), nil
	}
	rc.free()
	return &tlsConn{Conn: tc, peer: peer, entry: e}, nil
}

// protosOf returns what a listener offers to who connects with hello.
func (n *Network) protosOf(hello *tls.ClientHelloInfo) []string {
	if slices.Equal(hello.SupportedProtos, []string{ProtoJoin}) {
		return hello.SupportedProtos
	}
	return append([]string{ProtoControl}, n.dataProtos(n.dataTLS.Load())...)
}

// Listen implements wire.Network.
func (n *Network) Listen(ctx context.Context, addr string) (net.Listener, error) {
	l, err := n.o.Under.Listen(ctx, addr)
	if err != nil {
		return nil, err
	}
	return n.Wrap(l), nil
}

// Wrap returns a listener of authenticated connections that come to l.
func (n *Network) Wrap(l net.Listener) net.Listener {
	s := newListener(l, n)
	s.wg.Add(1)
	go s.run()
	return s
}
