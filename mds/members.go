package mds

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/planes"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/decide"
	"varve/mds/event"
	"varve/mds/state"
)

const (
	maxMetas       = 9 // metadata servers, learners included
	joinRetry      = 200 * time.Millisecond
	memberTimeout  = 5 * time.Second // one change of Raft's members
	caughtUpEvents = 256             // a learner that lags by no more becomes a voter
)

// Join makes the directory of a further metadata server of the cluster that answers at one of addrs. The leader takes it
// in as a learner, and as a voter once it runs and has caught up.
func Join(ctx context.Context, o Options, addrs []string) (id.Cluster, error) {
	o = o.withDefaults()
	if err := o.validate(true); err != nil {
		return id.Cluster{}, err
	}
	if err := checkFresh(o.FS, o.Dir); err != nil {
		return id.Cluster{}, err
	}
	if len(addrs) == 0 {
		return id.Cluster{}, fmt.Errorf("no address of a metadata server of the cluster given: %w", fserr.Invalid)
	}
	var self identity
	bound := o // not used here: what is known of the members may be their addresses for clients
	if err := self.locate(&bound, o.Addr, o.Net); err != nil {
		return id.Cluster{}, err
	}
	o.Network = secure.Of(secure.Options{Under: o.Network, Credentials: o.Credentials, Logger: o.Logger})
	if o.Credentials != nil && o.Cluster.IsZero() {
		o.Cluster = o.Credentials.Identity().Cluster
	}
	uuid := newUUID()
	var last error
	for next := slices.Clone(addrs); ; {
		if len(next) == 0 {
			if !sleep(ctx, joinRetry) {
				return id.Cluster{}, fmt.Errorf("waiting for a leader at %v to take the server in: %w", addrs, errors.Join(last, ctx.Err()))
			}
			next = slices.Clone(addrs)
		}
		addr := withPort(next[0])
		next = next[1:]
		reply, err := askJoin(ctx, addr, &o, nil, &msg.JoinMeta{Addr: string(self.book()), Uuid: uuid[:]})
		switch {
		case err == nil:
			cluster := id.Cluster(reply.Cluster)
			self.Version, self.Cluster, self.Name, self.Server = identityVersion, cluster.String(), reply.Name, reply.Server
			self.UUID, self.Peers = hex.EncodeToString(uuid[:]), without(reply.Addrs, self.Addr)
			self.ClusterDir, self.Secured = o.ClusterDir, o.Credentials != nil && !secure.IsOpening(o.ClusterDir)
			if len(reply.ClusterKey) > 0 && !self.Secured { // see identity.Opening
				told, kerr := askKey(ctx, o.Network, o.Credentials, addr, cluster)
				if kerr != nil {
					last = kerr
					continue
				}
				self.Opening = max(told.Version-1, 1)
			}
			if err := self.takeKey(&o, reply.ClusterKey); err != nil {
				return id.Cluster{}, err
			}
			return cluster, writeIdentity(o.FS, o.Dir, &self)
		case errors.Is(err, fserr.NotLeader):
			if reply != nil && len(reply.Addrs) > 0 && reply.Addrs[0] != "" && reply.Addrs[0] != addr && !slices.Contains(next, reply.Addrs[0]) {
				next = append([]string{reply.Addrs[0]}, next...)
			}
		case errors.Is(err, fserr.Invalid), errors.Is(err, fserr.Exist), errors.Is(err, fserr.WrongCluster), errors.Is(err, fserr.Access):
			return id.Cluster{}, err
		}
		last = err
		if ctx.Err() != nil {
			next = nil
		}
	}
}

// askJoin asks one server, unless it is of another cluster than o says.
func askJoin(ctx context.Context, addr string, o *Options, key *pki.ClusterKey, req *msg.JoinMeta) (*msg.JoinMetaReply, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*memberTimeout)
	defer cancel()
	ask := &msg.Hello{Role: msg.Hello_ADMIN, Version: version}
	if !o.Cluster.IsZero() {
		ask.Cluster = o.Cluster[:]
	}
	c, hello, err := wire.Dial(ctx, addr, ask, nil, wire.Options{Class: wire.ClassMeta, Network: o.Network})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if o.Name != "" && o.Name != hello.Name || !o.Cluster.IsZero() && string(hello.Cluster) != string(o.Cluster[:]) {
		return nil, fmt.Errorf("%s is of another cluster, named %q (%x); correct the list of metadata servers: %w", addr, hello.Name, hello.Cluster, fserr.WrongCluster)
	}
	if _, shown := c.Peer(); shown && key != nil && req.Server != 0 {
		material, err := c.Export(proofExport)
		if err != nil {
			return nil, err
		}
		req.Proof = proofBy(key, material, proofMove)
	}
	reply := new(msg.JoinMetaReply)
	code, err := c.CallMessage(ctx, wire.JoinMeta, wire.ClassMeta, req, reply)
	if err != nil {
		return nil, err
	}
	if code == fserr.OK && len(reply.Cluster) != len(id.Cluster{}) {
		code = fserr.Protocol
	}
	if code != fserr.OK {
		return reply, fmt.Errorf("%s did not take the server in: %w", addr, withDetail(code, reply.Detail))
	}
	return reply, nil
}

// withDetail is a refusal with what the server said about it.
func withDetail(code fserr.Code, detail string) error {
	if detail == "" {
		return code
	}
	return fmt.Errorf("%s: %w", detail, code)
}

func without(list []string, x string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == x })
}

// joinMeta makes the server at the address a learner, or notes where a member has moved. The same UUID gets the same id again.
func (l *leadership) joinMeta(ctx context.Context, req *msg.JoinMeta) (*msg.JoinMetaReply, error) {
	if len(req.Uuid) != 16 {
		return nil, fmt.Errorf("uuid of %d bytes, want 16: %w", len(req.Uuid), fserr.Invalid)
	}
	book := planes.Book(req.Addr)
	if err := book.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", fserr.Invalid, err)
	}
	for _, addr := range book.Addrs() {
		if err := checkAddr(addr); err != nil {
			return nil, fmt.Errorf("%w: %w", fserr.Invalid, err)
		}
	}
	release, err := l.latchMembers(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	var known, taken *state.Meta
	n := 0
	l.s.fsm.view(func(st *state.State) {
		st.Metas(func(m *state.Meta) bool {
			n++
			if m.UUID == string(req.Uuid) {
				known = m
			} else if raftAddrOf(m) == raft.ServerAddress(book.Addr(planes.Heartbeat)) {
				taken = m
			}
			return true
		})
	})
	if req.Server != 0 && (known == nil || known.ID != id.MetaID(req.Server)) {
		return nil, fmt.Errorf("%v is no member of the cluster any more: %w", id.MetaID(req.Server), fserr.Retired)
	}
	if taken != nil {
		if err := l.replaceLearner(taken); err != nil {
			return nil, err
		}
		n--
	}
	switch {
	case known == nil && n >= maxMetas:
		return nil, fmt.Errorf("%d metadata servers are members already; remove one first: %w", n, fserr.Invalid)
	case known == nil:
		known = &state.Meta{ID: id.MetaID(l.nextMeta.Add(1) - 1), UUID: string(req.Uuid), Addr: req.Addr}
		if err := l.propose(&event.Event{Body: &event.Event_MetaAdd{MetaAdd: &event.MetaAdd{
			Id: uint32(known.ID), Uuid: []byte(known.UUID), Addr: known.Addr}}}, "metadata server joins"); err != nil {
			return nil, err
		}
	case known.Addr != req.Addr:
		if known, err = l.moveMeta(known, req.Addr); err != nil {
			return nil, err
		}
	}
	if _, ok := l.raftMember(known.ID); !ok {
		if err := l.s.await(l.s.raft.AddNonvoter(raftID(known.ID), raftAddrOf(known), 0, memberTimeout)); err != nil {
			return nil, fmt.Errorf("add %v as a learner: %w: %w", known.ID, fserr.Unavailable, err)
		}
		l.s.log.Info("metadata server joins as a learner", "server", known.ID, "addr", known.Addr)
	}
	cluster, name := l.s.Cluster()
	reply := &msg.JoinMetaReply{Server: uint32(known.ID), Name: name, Cluster: cluster[:]}
	reply.Addrs = l.s.members(msg.Hello_METADATA_SERVER).Addrs
	return reply, nil
}

// raftAddrOf is where Raft reaches a member.
func raftAddrOf(m *state.Meta) raft.ServerAddress {
	return raft.ServerAddress(planes.Book(m.Addr).Addr(planes.Heartbeat))
}

// public returns where clients reach the metadata server that Raft has at an address, which is the same where the state knows of no other.
func (s *Server) public(addr string) (out string) {
	out = addr
	s.fsm.view(func(st *state.State) {
		st.Metas(func(m *state.Meta) bool {
			b := planes.Book(m.Addr)
			if b.Addr(planes.Heartbeat) != addr {
				return true
			}
			out = b.Addr(planes.Client)
			return false
		})
	})
	return out
}

// leaderFor returns where who asks reaches the leader, "" if that is not known.
func (s *Server) leaderFor(role msg.Hello_Role) string {
	if addr := s.leaderAddr(); role != msg.Hello_CHUNK_SERVER && role != msg.Hello_METADATA_SERVER {
		return s.public(addr)
	} else {
		return addr
	}
}

// latchMembers keeps every other change of Raft's members back until release.
func (l *leadership) latchMembers(ctx context.Context) (release func(), _ error) {
	latch := []decide.Latch{{Kind: latchMeta, Exclusive: true}}
	if err := l.latches.acquire(ctx, latch); err != nil {
		return nil, err
	}
	return func() { l.latches.release(latch) }, nil
}

// moveMeta gives a member another address: in Raft first, where it keeps its vote, then in the state. If it breaks off in between, the
// member asks again.
func (l *leadership) moveMeta(m *state.Meta, addr string) (*state.Meta, error) {
	at := raft.ServerAddress(planes.Book(addr).Addr(planes.Heartbeat))
	if old, ok := l.raftMember(m.ID); ok && old.Address != at {
		change := l.s.raft.AddNonvoter
		if old.Suffrage == raft.Voter {
			change = l.s.raft.AddVoter
		}
		if err := l.s.await(change(old.ID, at, 0, memberTimeout)); err != nil {
			return nil, fmt.Errorf("move %v to %s: %w: %w", m.ID, addr, fserr.Unavailable, err)
		}
	}
	err := l.propose(&event.Event{Body: &event.Event_MetaUpdate{MetaUpdate: &event.MetaUpdate{Id: uint32(m.ID), Addr: addr}}}, "metadata server moved")
	if err != nil {
		return nil, err
	}
	l.s.log.Info("metadata server moved", "server", m.ID, "from", m.Addr, "to", addr)
	return &state.Meta{ID: m.ID, UUID: m.UUID, Addr: addr}, nil
}

// replaceLearner removes a member that never became a voter, so that its address can be used again after a join that broke off.
func (l *leadership) replaceLearner(old *state.Meta) error {
	if m, ok := l.raftMember(old.ID); ok {
		if m.Suffrage == raft.Voter {
			return fmt.Errorf("%s is the address of %v already; remove that first with rm-mds %d, or choose another: %w", old.Addr, old.ID, old.ID, fserr.Exist)
		}
		if err := l.s.await(l.s.raft.RemoveServer(m.ID, 0, memberTimeout)); err != nil {
			return fmt.Errorf("remove learner %v: %w: %w", old.ID, fserr.Unavailable, err)
		}
	}
	return l.propose(&event.Event{Body: &event.Event_MetaRemove{MetaRemove: &event.MetaRemove{Id: uint32(old.ID)}}}, "its address joins anew")
}

// raftMembers returns Raft's members, learners included, as the newest configuration in the log has them.
func (s *Server) raftMembers() []raft.Server {
	return s.raft.GetConfiguration().Configuration().Servers
}

// raftMember returns what Raft knows of a member.
func (l *leadership) raftMember(m id.MetaID) (raft.Server, bool) {
	all := l.s.raftMembers()
	i := slices.IndexFunc(all, func(x raft.Server) bool { return x.ID == raftID(m) })
	if i < 0 {
		return raft.Server{}, false
	}
	return all[i], true
}

// tendMembers makes voters of the learners that have caught up, and finishes changes of members that broke off.
func (l *leadership) tendMembers() {
	release, err := l.latchMembers(l.ctx)
	if err != nil {
		return
	}
	defer release()
	// What a learner says of itself is some time old, and under load the leader has gone on by more than a learner may lag: so it has
	// caught up as well if what it said since the last look is as far as the leader was then.
	before := l.tended
	last := uint64(l.s.fsm.index())
	l.tended = tended{bootNow(), last}
	for _, m := range l.s.raftMembers() {
		if m.Suffrage == raft.Voter {
			continue
		}
		p, ok := l.s.peers.get(string(m.Address))
		if !ok || !p.ok || p.heard < l.since || p.disk != diskOK {
			continue
		}
		if p.index+caughtUpEvents < last && (before.at == 0 || p.heard <= before.at || p.index+caughtUpEvents < before.index) {
			continue
		}
		if err := l.s.await(l.s.raft.AddVoter(m.ID, m.Address, 0, memberTimeout)); err != nil {
			l.s.log.Warn("learner not made a voter", "server", m.ID, "err", err)
			continue
		}
		l.s.log.Info("learner has caught up and is a voter", "server", m.ID, "index", last)
	}
	l.forgetStrays()
}

// forgetStrays retires the ids of servers that Raft does not have: their removal, or their join, broke off. Whoever was to join has not been
// told its id, or joins anew.
func (l *leadership) forgetStrays() {
	var strays []id.MetaID
	l.s.fsm.view(func(st *state.State) {
		st.Metas(func(m *state.Meta) bool { strays = append(strays, m.ID); return true })
	})
	for _, m := range strays {
		if _, ok := l.raftMember(m); ok {
			continue
		}
		if err := l.retireMeta(m, "its removal or its join broke off"); err != nil {
			l.s.log.Debug("stray metadata server not retired", "server", m, "err", err)
		}
	}
}

// retireMeta takes the id out of the state, for good.
func (l *leadership) retireMeta(m id.MetaID, reason string) error {
	err := l.propose(&event.Event{Body: &event.Event_MetaRemove{MetaRemove: &event.MetaRemove{Id: uint32(m)}}}, reason)
	if err == nil {
		l.s.log.Info("metadata server removed", "server", m, "cause", reason)
	}
	return err
}
