package cs

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// load has connections authenticated if the cluster of a directory is secured.
func (o *Options) load(dir string, must bool, cluster id.Cluster) (err error) {
	if o.Credentials == nil && o.opening == nil && !must {
		o.opening = secure.OpeningOf(dir, cluster, o.Logger)
	}
	if o.opening != nil {
		o.opening.Look()
		o.Network = secure.Of(secure.Options{Under: o.Network, Opening: o.opening, DataTLS: o.DataTLS, Logger: o.Logger})
		return nil
	}
	if o.Credentials == nil {
		if o.Credentials, err = secure.Load(dir, must); err != nil {
			return fmt.Errorf("credentials of the chunk server in %s: %w", o.Dir, err)
		}
	}
	o.Network = secure.Of(secure.Options{Under: o.Network, Credentials: o.Credentials, DataTLS: o.DataTLS, Logger: o.Logger})
	return nil
}

// secure is load for the server whose identity this is. It reports whether that is to be noted anew.
func (d *identity) secure(o *Options) (changed bool, err error) {
	dir := cmp.Or(o.ClusterDir, d.ClusterDir)
	if err := o.load(dir, d.Secured, d.cluster()); err != nil {
		return false, err
	}
	if err := secure.CheckCluster(o.Credentials, d.cluster()); err != nil {
		return false, err
	}
	if n, ok := o.Network.(*secure.Network); ok {
		n.RequireDataTLS(d.DataTLS) // before it listens
	}
	secured := o.Credentials != nil || d.Secured
	changed = dir != d.ClusterDir || secured != d.Secured
	d.ClusterDir, d.Secured = dir, secured
	return changed, nil
}

// openTrust reads what the server knew of who may speak, and follows it from then on.
func (s *Server) openTrust() error {
	creds := s.o.creds()
	if creds == nil {
		return nil
	}
	trust, err := pki.OpenTrust(creds)
	if err != nil {
		return err
	}
	trust.Notify(func(revoked func(serial string) bool) {
		// Those that this server made to others too, and those that are not greeted yet.
		if n, ok := s.o.Network.(*secure.Network); ok {
			n.EndIf(func(i pki.Identity) bool { return revoked(i.Serial) })
		}
		// Connections on reactors, which the network does not know any more.
		s.wire.CloseIf(func(c *wire.Conn) bool {
			who, ok := c.Peer()
			return ok && revoked(who.Serial)
		})
	})
	s.finder.trust = func() *pki.Trust {
		if a := s.enforces(); a != nil {
			return a.trust
		}
		return nil
	}
	ctx, cancel := context.WithCancel(s.ctx)
	if old := s.auth.Swap(&auth{trust, pki.NewKeeper(trust, s.askTrust, s.log), ctx, cancel}); old != nil {
		old.cancel()
	}
	return nil
}

// auth is what a server knows of who may speak, of which its credentials are.
type auth struct {
	trust  *pki.Trust
	keeper *pki.Keeper
	ctx    context.Context // of the keeper
	cancel context.CancelFunc
}

// creds returns those that the server shows, nil if it has none.
func (o *Options) creds() *pki.Credentials {
	if o.opening != nil {
		return o.opening.Credentials()
	}
	return o.Credentials
}

// enforces returns what the server knows of who may speak, nil if that does not count: the cluster has no security, or not for everybody yet.
func (s *Server) enforces() *auth {
	if s.o.opening.Stage() != secure.Closed {
		return nil
	}
	return s.auth.Load()
}

// lacksTrust reports whether the server is to serve members only, and does not know yet who they are.
func (s *Server) lacksTrust() bool {
	return s.o.opening != nil && s.o.opening.Stage() == secure.Closed && s.auth.Load() == nil
}

// keepAuth keeps the server's certificate valid, and looks for one if it may come.
func (s *Server) keepAuth() {
	keep := func() {
		if a := s.auth.Load(); a != nil {
			s.work.Go(func() { a.keeper.Run(a.ctx) })
		}
	}
	keep()
	if s.o.opening == nil {
		return
	}
	s.o.opening.Watch(s.ctx, func(*pki.Credentials) {
		for err := s.openTrust(); err != nil; err = s.openTrust() { // until then nobody is served if certificates alone count
			s.log.Warn("who may speak is not known", "err", err)
			select {
			case <-time.After(joinAgainEach):
			case <-s.ctx.Done():
				return
			}
		}
		keep()
		if s.o.opening.Stage() == secure.Closed {
			s.shutPlain()
		}
	})
}

// shutPlain has requests come from who has shown who he is only, from now on.
func (s *Server) shutPlain() {
	s.updateIdentity(func(d *identity) { d.Secured = true })
	s.wire.CloseIf(func(*wire.Conn) bool { return true }) // they come back, with a capability
	s.locals.endAll()
}

// joinAgainEach is how often a server that has a certificate tries to show it to the leader.
const joinAgainEach = 5 * time.Second

// obeyOpening does what the leader says of a cluster that is being secured. It reports whether the leader should be connected to anew, with a certificate.
func (s *Server) obeyOpening(c *wire.Conn, since int64, reply *msg.HeartbeatReply) (again bool) {
	op := s.o.opening
	_, authentic := c.Peer()
	switch stage, changed := op.Told(reply.Trust > 0, reply.Opening, authentic); {
	case changed && stage == secure.Closed:
		s.shutPlain()
	case changed:
		if a := s.auth.Swap(nil); a != nil {
			a.cancel()
		}
	}
	return op != nil && op.Stage() == secure.Both && reply.Opening && !authentic && bootTime()-since > joinAgainEach.Nanoseconds()
}

// askTrust is a pki.Asker.
func (s *Server) askTrust(ctx context.Context, known uint64, csr []byte) (*pki.Statement, [][]byte, error) {
	c := s.leading.Load()
	if c == nil {
		return nil, nil, fmt.Errorf("no leader: %w", fserr.Unavailable)
	}
	return wire.AskTrust(ctx, c, known, csr)
}

// obeySettings does what the leader says of security.
func (s *Server) obeySettings(now, sent int64, dataTLS bool, trust uint64) {
	s.capabilities.told(now, sent)
	s.obeyDataTLS(dataTLS)
	if a := s.auth.Load(); a != nil && trust > 0 {
		a.keeper.Told(trust)
	}
}
