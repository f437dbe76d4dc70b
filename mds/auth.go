package mds

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/mds/decide"
	"varve/mds/event"
	"varve/mds/settings"
	"varve/mds/state"
)

const (
	// certsForgotten is how long after its end a certificate is remembered, and maxForgotten how many go with one event.
	certsForgotten = 7 * 24 * time.Hour
	maxForgotten   = 256
	// maxRenewed bounds the valid certificates of one node in one role that it gets without the password: nobody uses up the room of all, or fills the log.
	maxRenewed = 64
	// tendSecurityEvery is how often a leader looks whether a generation of the authority can be let go.
	tendSecurityEvery = 10 * time.Second
	// supersededAfter is how long after a node's certificate of a newer generation those of older ones do not count any more. All processes of a
	// node that run have found the newer one by then.
	supersededAfter = 10 * time.Minute
)

// guard is what a server knows and does about who may speak.
type guard struct {
	s *Server

	mu        sync.Mutex
	trust     *pki.Trust // of the server's own connections; nil: it has no credentials
	keeper    *pki.Keeper
	noted     identity  // as it is on disk
	hinted    time.Time // when it was last said what the server lacks; of tendOpening, as probed: when it was looked why nobody answers
	probed    time.Time
	secrets   *pki.Secrets // of version
	version   uint64
	statement *pki.Statement
}

// newGuard brings up what the server's credentials need. It serves joining nodes from then on.
func newGuard(s *Server) (*guard, error) {
	g := &guard{s: s, noted: *s.identity}
	creds := s.creds()
	if creds == nil {
		if s.keys.key.Load() != nil && s.o.opening == nil {
			return nil, fmt.Errorf("%s is of a cluster with security, and this node has no credentials; get them with: varve -c %s auth-node", s.o.Dir, s.identity.Name)
		}
		return g, nil
	}
	return g, g.adopt(creds)
}

// adopt brings up what credentials need. It serves joining nodes from then on.
func (g *guard) adopt(creds *pki.Credentials) error {
	trust, err := pki.OpenTrust(creds)
	if err != nil {
		return err
	}
	trust.Notify(g.endRevoked)
	g.mu.Lock()
	g.trust, g.keeper = trust, pki.NewKeeper(trust, g.ask, g.s.log)
	g.mu.Unlock()
	if n, ok := g.s.o.Network.(*secure.Network); ok {
		n.HandleJoin(pki.NewJoiner(g, g.s.log))
	}
	return nil
}

// keeping returns who keeps the server's own certificate valid, nil if nobody can.
func (g *guard) keeping() *pki.Keeper {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.s.keys.key.Load() == nil {
		return nil
	}
	return g.keeper
}

// open returns the secrets of a state that has some.
func (g *guard) open(v *state.Security) (*pki.Secrets, error) {
	key := g.s.keys.key.Load()
	if key == nil {
		return nil, fmt.Errorf("this server has no %s, which a server gets when it joins; make it anew with make-mds --rebuild: %w", keyFile, fserr.NotSupported)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.secrets != nil && g.version == v.Version {
		return g.secrets, nil
	}
	s, err := pki.Unseal([]byte(v.Sealed), *key, g.s.identity.cluster(), v.Version)
	if err != nil {
		return nil, fmt.Errorf("%w; has %s of %s been exchanged? Copy it from another metadata server", err, keyFile, g.s.o.Dir)
	}
	g.secrets, g.version = s, v.Version
	return s, nil
}

// security returns what the state says of who may speak, and the secrets; nil if the cluster has no security.
func (g *guard) security() (*state.Security, *pki.Secrets, error) {
	var v *state.Security
	g.s.fsm.view(func(st *state.State) { v, _ = inForce(st) })
	if v == nil {
		return nil, nil, nil
	}
	s, err := g.open(v)
	return v, s, err
}

// said returns the newest statement of who may speak, nil if there is none, and whether at that moment the cluster was being secured.
func (g *guard) said() (_ *pki.Statement, opening bool, _ error) {
	var v *state.Security
	var revoked []string
	now := g.s.o.Wall().UnixNano()
	g.mu.Lock()
	known := g.statement
	g.mu.Unlock()
	g.s.fsm.view(func(st *state.State) {
		if v, opening = inForce(st); v == nil || known != nil && known.Version == v.Changed {
			return
		}
		st.Certs(func(c *state.Cert) bool {
			if c.Revoked != 0 && c.Until > now-int64(pki.Skew) {
				revoked = append(revoked, c.Serial)
			}
			return true
		})
	})
	if v == nil {
		return nil, false, nil
	}
	secrets, err := g.open(v)
	if err != nil {
		return nil, false, err
	}
	if known != nil && known.Version == v.Changed {
		return known, opening, nil
	}
	s := secrets.Authority.State(v.Changed, secrets.CapabilityKeys(), revoked)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.statement == nil || g.statement.Version < s.Version {
		g.statement = s
	}
	return s, opening, nil
}

// version of the newest statement, 0 if the cluster has no security.
func (s *Server) trustVersion() (n uint64) {
	s.fsm.view(func(st *state.State) {
		if v, _ := inForce(st); v != nil {
			n = v.Changed
		}
	})
	return n
}

// Signer returns who signs capabilities now, nil if the cluster has no security or the server cannot open its secrets.
func (g *guard) Signer() *pki.Signer {
	if g.s.keys.key.Load() == nil {
		return nil
	}
	_, secrets, err := g.security()
	if err != nil || secrets == nil {
		return nil
	}
	return secrets.Signer()
}

var _ pki.JoinHost = (*guard)(nil)

// JoinSecrets implements pki.JoinHost.
func (g *guard) JoinSecrets() (*pki.Secrets, string) {
	if g.s.lead.Load() == nil {
		return nil, g.s.leaderAddr()
	}
	_, secrets, err := g.security()
	if err != nil {
		g.s.log.Warn("no node can join here", "err", err)
	}
	return secrets, ""
}

// JoinOpening implements pki.JoinHost.
func (g *guard) JoinOpening() bool { return g.s.opening() }

// JoinCluster implements pki.JoinHost.
func (g *guard) JoinCluster() (id.Cluster, string) { return g.s.Cluster() }

// Issue implements pki.JoinHost.
func (g *guard) Issue(ctx context.Context, pub ed25519.PublicKey, who pki.Identity, reason string) ([][]byte, error) {
	l := g.s.lead.Load()
	if l == nil {
		return nil, fserr.NotLeader
	}
	ctx, cancel := context.WithTimeout(ctx, g.s.o.RequestTimeout)
	defer cancel()
	return l.issue(ctx, pub, who, reason)
}

// latchSecurityAll keeps every other change of who may speak back until release.
func (l *leadership) latchSecurityAll(ctx context.Context) (release func(), _ error) {
	latch := []decide.Latch{{Kind: latchSecurity, Exclusive: true}}
	if err := l.latches.acquire(ctx, latch); err != nil {
		return nil, err
	}
	return func() { l.latches.release(latch) }, nil
}

// issue gives a certificate, and returns when that is in the log. The same key gets the same certificate again, as long as the same generation signs. who.Serial is
// that of the certificate that is shown for it, "" for who knows the password.
func (l *leadership) issue(ctx context.Context, pub ed25519.PublicKey, who pki.Identity, reason string) ([][]byte, error) {
	release, err := l.latchSecurityAll(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	v, secrets, err := l.s.guard.security()
	if err != nil {
		return nil, err
	}
	if v == nil {
		return nil, fmt.Errorf("the cluster has no security: %w: %w", pki.ErrRefused, fserr.NotSupported)
	}
	now := l.s.o.Wall()
	var ttl time.Duration
	l.s.fsm.view(func(st *state.State) { ttl, _ = settings.Age(st.Config(settings.CertLifetime)) })
	chain, issued, err := secrets.Authority.Issue(pub, who, now, now.Add(lifetime(ttl)))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", pki.ErrRefused, err)
	}
	ev := certIssue(issued, now, secrets.Authority.Generation())
	b := ev.GetCertIssue()
	var old, shown *state.Cert
	full, valid := false, 0
	l.s.fsm.view(func(st *state.State) {
		old, _ = st.Cert(b.Serial)
		shown, _ = st.Cert(who.Serial)
		st.Certs(func(c *state.Cert) bool {
			if c.Until < now.Add(-certsForgotten).UnixNano() && c.Serial != b.Serial && len(b.Forgotten) < maxForgotten {
				b.Forgotten = append(b.Forgotten, c.Serial)
			}
			if c.Node == b.Node && c.Role == b.Role && c.Revoked == 0 && c.Until > now.UnixNano() {
				valid++
			}
			return true
		})
		full = old == nil && st.CertCount()-len(b.Forgotten) >= state.MaxCerts
	})
	switch {
	case shown != nil && shown.Revoked != 0: // while this request was under way
		return nil, fmt.Errorf("the certificate that is shown was revoked: %w: %w", pki.ErrRefused, fserr.Access)
	case old != nil && old.Revoked != 0:
		return nil, fmt.Errorf("the certificate of this key was revoked; make a new key with auth-node --force: %w: %w", pki.ErrRefused, fserr.Access)
	case old != nil && (old.Node != b.Node || old.Role != b.Role):
		return nil, fmt.Errorf("this key has a certificate of %s as %s: %w: %w", old.Node, pki.Role(old.Role), pki.ErrRefused, fserr.Exist)
	case old != nil && old.Authority == b.Authority && old.Until > now.UnixNano():
		chain, _, err = secrets.Authority.Issue(pub, who, time.Unix(0, old.From), time.Unix(0, old.Until))
		return chain, err
	case who.Serial != "" && valid >= maxRenewed:
		return nil, fmt.Errorf("%s has %d valid certificates as %s; revoke those that it does not use (list-nodes), or join anew with auth-node --force: %w: %w",
			who.Node, valid, who.Role, pki.ErrRefused, fserr.NoSpace)
	case full:
		return nil, fmt.Errorf("%d certificates are valid, which is the limit: %w: %w", state.MaxCerts, pki.ErrRefused, fserr.NoSpace)
	}
	if err := l.propose(ev, reason); err != nil {
		return nil, err
	}
	return chain, nil
}

// changeSecurity replaces the secrets by what change makes of a copy of them.
func (l *leadership) changeSecurity(ctx context.Context, reason string, change func(*pki.Secrets) error) error {
	release, err := l.latchSecurityAll(ctx)
	if err != nil {
		return err
	}
	defer release()
	v, _, err := l.s.guard.security()
	if err != nil {
		return err
	}
	if v == nil {
		return fmt.Errorf("the cluster has no security: %w", fserr.NotSupported)
	}
	key := l.s.keys.key.Load()
	if key == nil {
		return fmt.Errorf("this server has no cluster key: %w", fserr.Unavailable)
	}
	secrets, err := pki.Unseal([]byte(v.Sealed), *key, l.s.identity.cluster(), v.Version) // a copy
	if err != nil {
		return err
	}
	if err := change(secrets); err != nil {
		if errors.Is(err, errUnchanged) {
			return nil
		}
		if errors.Is(err, fserr.Busy) {
			return err
		}
		return fmt.Errorf("%w: %w", err, fserr.Invalid)
	}
	set, err := securitySet(secrets, *key, v.Version+1)
	if err != nil {
		return err
	}
	if err := l.propose(&event.Event{Body: &event.Event_SecuritySet{SecuritySet: set}}, reason); err != nil {
		return err
	}
	l.s.log.Info("security changed", "version", set.Version, "cause", reason)
	return nil
}

var errUnchanged = errors.New("nothing to change")

// nodeRole is what certificates supersede one another by.
type nodeRole struct {
	node string
	role uint32
}

// tendSecurity ends sessions that a revocation has left, and lets go of generations of the authority of which no certificate is in use any more: each has been revoked, is over, or its node has one
// of a newer generation.
func (l *leadership) tendSecurity() {
	l.endOrphans()
	now := l.s.o.Wall().UnixNano()
	var v *state.Security
	oldest := uint32(0)
	l.s.fsm.view(func(st *state.State) {
		if v, _ = inForce(st); v == nil || v.Oldest == v.Authority {
			return
		}
		oldest = v.Authority
		newest := make(map[nodeRole]uint32)
		st.Certs(func(c *state.Cert) bool {
			if k := (nodeRole{c.Node, c.Role}); c.Revoked == 0 && c.From < now-int64(supersededAfter) {
				newest[k] = max(newest[k], c.Authority)
			}
			return true
		})
		st.Certs(func(c *state.Cert) bool {
			if c.Revoked == 0 && c.Until > now-int64(pki.Skew) && c.Authority >= newest[nodeRole{c.Node, c.Role}] {
				oldest = min(oldest, c.Authority)
			}
			return true
		})
	})
	if v == nil || oldest <= v.Oldest {
		return
	}
	err := l.changeSecurity(l.ctx, fmt.Sprintf("no certificate of the authority's generations below %d is in use any more", oldest), func(s *pki.Secrets) error {
		if !s.Authority.Retire(oldest) {
			return errUnchanged
		}
		return nil
	})
	if err != nil && l.ctx.Err() == nil {
		l.s.log.Debug("generation of the authority not retired", "err", err)
	}
}

// watch has the server itself know at once what the log says of who may speak.
func (g *guard) watch() {
	for {
		if err := g.learn(); err != nil {
			g.s.log.Log(g.s.ctx, slog.LevelWarn, "who may speak is not known anew", "err", err)
		}
		select {
		case <-g.s.fsm.security:
		case <-g.s.ctx.Done():
			return
		}
	}
}

func (g *guard) learn() error {
	g.mu.Lock()
	trust := g.trust
	g.mu.Unlock()
	if trust == nil || trust.Version() >= g.s.trustVersion() {
		return nil
	}
	s, _, err := g.said()
	if err != nil || s == nil {
		return err
	}
	return trust.Learn(s)
}
