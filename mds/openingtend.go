package mds

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/state"
)

// tendOpening does, while the server runs, what follows from the stage of the cluster's security.
func (g *guard) tendOpening() {
	if g.s.o.opening == nil && g.s.keys.key.Load() != nil && g.openedAt() == 0 {
		g.keepOwn()
		return
	}
	var keeping *pki.Keeper
	stop := func() {}
	for sleep(g.s.ctx, tendOpeningEach) {
		g.tendOnce()
		if k := g.keeping(); k != keeping {
			stop()
			keeping = k
			var ctx context.Context
			ctx, stop = context.WithCancel(g.s.ctx)
			if k != nil {
				k.Every = ownEvery
				g.s.spawn(func() { k.Run(ctx) })
			}
		}
	}
	stop()
}

func (g *guard) tendOnce() {
	s, op := g.s, g.s.o.opening
	var v *state.Security
	var stage string
	s.fsm.view(func(st *state.State) { v, stage = st.Security(), st.Config(securityStage) })
	over := v != nil && stage == stageOff
	secured, opening := v != nil && !over, v != nil && stage == stageOpen
	if over && op != nil {
		g.giveUp()
	}
	if s.keys.key.Load() == nil {
		if opening {
			s.leaveToKeyed()
		}
		g.wantKey(secured)
	} else if g.openedAt() != 0 {
		g.checkKey()
	}
	if op == nil || s.keys.key.Load() == nil || over {
		return
	}
	if secured && g.openedAt() != 0 && v.Changed > g.openedAt() {
		if _, err := g.open(v); err != nil { // it is of an attempt that came to nothing
			s.log.Warn("the cluster key of this server is not the cluster's, and is dropped", "err", err)
			g.dropKey()
			return
		}
	}
	if l := s.lead.Load(); l != nil && opening && op.Stage() == secure.Plain {
		if node, err := HostNode(); err == nil {
			ctx, cancel := context.WithTimeout(s.ctx, openingTimeout)
			if err := g.issueHost(ctx, l, node); err != nil {
				s.log.Warn("no credentials for this host", "err", err)
			}
			cancel()
		}
	}
	op.Look()
	if creds := op.Credentials(); creds != nil && !g.adopted() {
		if err := g.adopt(creds); err != nil && time.Since(g.hinted) > hintEach {
			g.hinted = time.Now()
			s.log.Warn("credentials not taken", "dir", op.Dir(), "err", err)
		}
	}
	if secured && !opening {
		op.Close()
	}
	if op.Stage() == secure.Closed {
		if err := g.note(func(d *identity) { d.Secured = true }); err != nil {
			s.log.Warn("that the server is secured is not noted", "err", err)
		}
	}
}

// adopted reports whether the server follows who may speak.
func (g *guard) adopted() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.trust != nil
}

func (g *guard) openedAt() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.noted.Opening
}

// giveUp goes back to a server without security, if the log says so of the security that the server has something of.
func (g *guard) giveUp() {
	if l := g.s.lead.Load(); l != nil { // which may be about to begin anew
		ctx, cancel := context.WithTimeout(g.s.ctx, openingTimeout)
		defer cancel()
		release, err := l.latchSecurityAll(ctx)
		if err != nil {
			return
		}
		defer release()
	}
	g.letGo()
}

// letGo forgets what this server, and its host, have of a security that was given up, if the log says so. What is of a later one stays, however far this server's state
// has come. It reports whether that is done. Precondition: a leader holds the latch of security.
func (g *guard) letGo() bool {
	var v *state.Security
	g.s.fsm.view(func(st *state.State) {
		if st.Config(securityStage) == stageOff {
			v = st.Security()
		}
	})
	if v == nil {
		return true
	}
	op := g.s.o.opening
	if dir := op.Dir(); dir != "" && secure.IsOpening(dir) && (signed(dir, pki.RoleNode, []byte(v.Bundle)) || signed(dir, pki.RoleAdmin, []byte(v.Bundle))) {
		op.GiveUp()
		g.forget()
	}
	return g.s.keys.key.Load() == nil || v.Changed <= g.openedAt() || g.dropKey()
}

// dropKey forgets the cluster key. Without it the server has no use for its credentials, and speaks plain to who has some.
func (g *guard) dropKey() bool {
	if err := g.note(func(d *identity) { d.Key, d.Opening = false, 0 }); err != nil {
		g.s.log.Warn("that the server has no cluster key is not noted", "err", err)
		return false
	}
	if err := g.s.o.FS.Remove(filepath.Join(g.s.o.Dir, keyFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		g.s.log.Warn("the cluster key of a security that was given up stays", "err", err)
		return false
	}
	g.s.keys.key.Store(nil)
	g.s.o.opening.Rest()
	g.forget()
	return true
}

// forget ends what the server's credentials were needed for: nobody is to be known by a certificate of a security that was given up.
func (g *guard) forget() {
	g.mu.Lock()
	g.keeper, g.trust, g.secrets, g.statement = nil, nil, nil, nil
	g.mu.Unlock()
	if n, ok := g.s.o.Network.(*secure.Network); ok {
		n.EndIf(func(pki.Identity) bool { return true })
	}
}

// leaveToKeyed hands leadership over to a server that has the cluster key: without it nobody can join.
func (s *Server) leaveToKeyed() {
	l := s.lead.Load()
	if l == nil {
		return
	}
	for _, m := range s.raftMembers() {
		if p, _ := s.peers.get(string(m.Address)); m.Suffrage == raft.Voter && m.ID != s.raftID && p.ok && p.keyed && p.disk == diskOK {
			if err := s.handOver(s.ctx, m.ID); err != nil {
				s.log.Warn("this server has no cluster key yet, and leadership was not handed over to one that has", "to", m.ID, "err", err)
			}
			return
		}
	}
}

// wantKey asks the leader for the cluster key, which it gives to an administrator of this host.
func (g *guard) wantKey(secured bool) {
	s := g.s
	dir := cmp.Or(s.o.ClusterDir, s.identity.ClusterDir)
	ready := dir != "" && pki.Has(dir, pki.RoleNode) && pki.Has(dir, pki.RoleAdmin)
	var err error
	switch {
	case ready:
		if err = g.takeKey(dir); err == nil {
			return
		}
	case secured:
		err = errors.New("the cluster is being secured")
	case s.lead.Load() != nil || s.leaderAddr() != "" || dir == "" || time.Since(g.probed) < probeEach:
		return
	default:
		g.probed = time.Now()
		if err = g.askAnybody(); !errors.Is(err, wire.ErrNeedsCertificate) {
			return
		}
	}
	if time.Since(g.hinted) > hintEach {
		g.hinted = time.Now()
		s.log.Warn(fmt.Sprintf("this metadata server has no cluster key, and is shut out of a secured cluster without; run on this host: varve -c %[1]s auth-node, and varve -c %[1]s auth-node --role admin",
			cmp.Or(dir, s.identity.Name)), "err", err)
	}
}

// checkKey asks for the cluster key where no leader is heard of: the one that is here may be of a security that was given up while this server was off, and others refuse
// who has that and a certificate of the next one.
func (g *guard) checkKey() {
	s := g.s
	dir := cmp.Or(s.o.ClusterDir, s.identity.ClusterDir)
	if s.lead.Load() != nil || s.leaderAddr() != "" || dir == "" || time.Since(g.probed) < probeEach || !pki.Has(dir, pki.RoleAdmin) {
		return
	}
	g.probed = time.Now()
	if err := g.takeKey(dir); err != nil {
		s.log.Debug("the cluster key was not compared with others'", "err", err)
	}
}

// askAnybody finds out why no other server is heard of.
func (g *guard) askAnybody() (err error) {
	for _, addr := range g.s.others() {
		ctx, cancel := context.WithTimeout(g.s.ctx, openingTimeout)
		c, _, derr := wire.Dial(ctx, addr, g.s.peerHello(), nil, wire.Options{Class: wire.ClassMeta, Network: g.s.o.Network})
		cancel()
		if derr == nil {
			c.Close()
			return nil
		}
		err = derr
	}
	return err
}

// takeKey asks one server after another for the key.
func (g *guard) takeKey(dir string) error {
	s := g.s
	creds, err := pki.LoadCredentials(dir, pki.RoleAdmin)
	if err == nil {
		err = secure.CheckCluster(creds, s.identity.cluster())
	}
	if err != nil {
		return err
	}
	under := s.o.Network
	if n, ok := under.(*secure.Network); ok {
		under = n.Under()
	}
	network := secure.New(secure.Options{Under: under, Credentials: creds, Logger: s.log})
	cluster := s.identity.cluster()
	err = errors.New("no other metadata server is known")
	for _, addr := range s.others() {
		var reply *msg.TrustReply
		if reply, err = askKey(s.ctx, network, creds, addr, cluster); err != nil {
			continue
		}
		key := pki.ClusterKey(reply.ClusterKey)
		if own := s.keys.key.Load(); own != nil && *own == key {
			return nil
		}
		if err := errors.Join(writeKey(s.o.FS, s.o.Dir, key), g.keepKey(reply.Version-1)); err != nil {
			return err
		}
		s.keys.key.Store(&key)
		s.log.Info("got the cluster key", "from", addr)
		return nil
	}
	return err
}

// askKey asks a server for the cluster key, which has to show that it is a metadata server: a node at its address could give another one.
func askKey(ctx context.Context, network wire.Network, creds *pki.Credentials, addr string, cluster id.Cluster) (*msg.TrustReply, error) {
	ctx, cancel := context.WithTimeout(ctx, openingTimeout)
	defer cancel()
	trust, err := pki.OpenTrust(creds.Apart())
	if err != nil {
		return nil, err
	}
	hello := &msg.Hello{Cluster: cluster[:], Role: msg.Hello_ADMIN, Version: version}
	c, _, err := wire.DialMeta(ctx, addr, hello, nil, trust, wire.Options{Class: wire.ClassMeta, Network: network})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	reply := new(msg.TrustReply)
	code, err := c.CallMessage(ctx, wire.Trust, wire.ClassMeta, &msg.Trust{Known: math.MaxUint64, Key: true}, reply)
	switch {
	case err != nil:
	case code != fserr.OK:
		err = fmt.Errorf("%s: %s: %w", addr, reply.Detail, code)
	case len(reply.ClusterKey) != len(pki.ClusterKey{}) || reply.Version == 0:
		err = fmt.Errorf("%s: a cluster key of %d bytes: %w", addr, len(reply.ClusterKey), fserr.Protocol)
	}
	return reply, err
}
