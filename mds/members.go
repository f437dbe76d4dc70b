package mds

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"varve/internal/fserr"
	"varve/internal/id"
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
	peerTimeout    = 2 * time.Second // one look at another metadata server
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
		reply, err := askJoin(ctx, addr, &o, &msg.JoinMeta{Addr: o.Addr, Uuid: uuid[:]})
		switch {
		case err == nil:
			cluster := id.Cluster(reply.Cluster)
			return cluster, writeIdentity(o.FS, o.Dir, &identity{
				Version: identityVersion, Cluster: cluster.String(), Name: reply.Name, Server: reply.Server,
				UUID: hex.EncodeToString(uuid[:]), Addr: o.Addr,
			})
		case errors.Is(err, fserr.NotLeader):
			if reply != nil && len(reply.Addrs) > 0 && reply.Addrs[0] != "" && reply.Addrs[0] != addr && !slices.Contains(next, reply.Addrs[0]) {
				next = append([]string{reply.Addrs[0]}, next...)
			}
		case errors.Is(err, fserr.Invalid), errors.Is(err, fserr.Exist), errors.Is(err, fserr.WrongCluster):
			return id.Cluster{}, err
		}
		last = err
		if ctx.Err() != nil {
			next = nil
		}
	}
}

// askJoin asks one server, unless it is of another cluster than o says.
func askJoin(ctx context.Context, addr string, o *Options, req *msg.JoinMeta) (*msg.JoinMetaReply, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*memberTimeout)
	defer cancel()
	c, hello, err := wire.Dial(ctx, addr, &msg.Hello{Role: msg.Hello_ADMIN, Version: version}, nil, wire.Options{})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if o.Name != "" && o.Name != hello.Name || !o.Cluster.IsZero() && string(hello.Cluster) != string(o.Cluster[:]) {
		return nil, fmt.Errorf("%s is of another cluster, named %q (%x); correct the list of metadata servers: %w", addr, hello.Name, hello.Cluster, fserr.WrongCluster)
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
		return reply, fmt.Errorf("%s refused to take the server in: %w", addr, code)
	}
	return reply, nil
}

// joinMeta makes the server at the address a learner. The same UUID gets the same id again.
func (l *leadership) joinMeta(ctx context.Context, req *msg.JoinMeta) (*msg.JoinMetaReply, error) {
	if len(req.Uuid) != 16 {
		return nil, fmt.Errorf("uuid of %d bytes, want 16: %w", len(req.Uuid), fserr.Invalid)
	}
	if err := checkAddr(req.Addr); err != nil {
		return nil, fmt.Errorf("%w: %w", fserr.Invalid, err)
	}
	latch := []decide.Latch{{Kind: latchMeta, Exclusive: true}}
	if err := l.latches.acquire(ctx, latch); err != nil {
		return nil, err
	}
	defer l.latches.release(latch)
	var known, taken *state.Meta
	n := 0
	l.s.fsm.view(func(st *state.State) {
		st.Metas(func(m *state.Meta) bool {
			n++
			if m.UUID == string(req.Uuid) {
				known = m
			} else if m.Addr == req.Addr {
				taken = m
			}
			return true
		})
	})
	if taken != nil {
		if err := l.replaceLearner(taken); err != nil {
			return nil, err
		}
		n--
	}
	if known == nil {
		if n >= maxMetas {
			return nil, fmt.Errorf("%d metadata servers are members already: %w", n, fserr.Invalid)
		}
		known = &state.Meta{ID: id.MetaID(l.nextMeta.Add(1) - 1), UUID: string(req.Uuid), Addr: req.Addr}
		if err := l.propose(&event.Event{Body: &event.Event_MetaAdd{MetaAdd: &event.MetaAdd{
			Id: uint32(known.ID), Uuid: []byte(known.UUID), Addr: known.Addr}}}, "metadata server joins"); err != nil {
			return nil, err
		}
	}
	if !l.isMember(raftID(known.ID)) {
		if err := l.s.raft.AddNonvoter(raftID(known.ID), raft.ServerAddress(known.Addr), 0, memberTimeout).Error(); err != nil {
			return nil, fmt.Errorf("add %v as a learner: %w: %w", known.ID, fserr.Unavailable, err)
		}
		l.s.log.Info("metadata server joins as a learner", "server", known.ID, "addr", known.Addr)
	}
	cluster, name := l.s.Cluster()
	reply := &msg.JoinMetaReply{Server: uint32(known.ID), Name: name, Cluster: cluster[:]}
	reply.Addrs = l.s.members().Addrs
	return reply, nil
}

// replaceLearner removes a member that never became a voter, so that its address can be used again after a join that broke off.
func (l *leadership) replaceLearner(old *state.Meta) error {
	for _, m := range l.s.raft.GetConfiguration().Configuration().Servers {
		if m.ID != raftID(old.ID) {
			continue
		}
		if m.Suffrage == raft.Voter {
			return fmt.Errorf("%s is the address of %v already: %w", old.Addr, old.ID, fserr.Exist)
		}
		if err := l.s.raft.RemoveServer(m.ID, 0, memberTimeout).Error(); err != nil {
			return fmt.Errorf("remove learner %v: %w: %w", old.ID, fserr.Unavailable, err)
		}
	}
	return l.propose(&event.Event{Body: &event.Event_MetaRemove{MetaRemove: &event.MetaRemove{Id: uint32(old.ID)}}}, "its address joins anew")
}

func (l *leadership) isMember(member raft.ServerID) bool {
	return slices.ContainsFunc(l.s.raft.GetConfiguration().Configuration().Servers, func(m raft.Server) bool { return m.ID == member })
}

// promoteLearners makes voters of the learners that have caught up.
func (l *leadership) promoteLearners() {
	last := uint64(l.s.fsm.index())
	for _, m := range l.s.raft.GetConfiguration().Configuration().Servers {
		if m.Suffrage == raft.Voter {
			continue
		}
		if index, ok := l.s.peers.index(string(m.Address)); !ok || index+caughtUpEvents < last {
			continue
		}
		if err := l.s.raft.AddVoter(m.ID, m.Address, 0, memberTimeout).Error(); err != nil {
			l.s.log.Warn("learner not made a voter", "server", m.ID, "err", err)
			continue
		}
		l.s.log.Info("learner has caught up and is a voter", "server", m.ID, "index", last)
	}
}

// peerStates is what the leader last saw of the other metadata servers.
type peerStates struct {
	mu    sync.Mutex
	peers map[string]*peerState // by address
}

type peerState struct {
	conn  *wire.Conn
	index uint64
	ok    bool
}

func (p *peerStates) index(addr string) (uint64, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if x := p.peers[addr]; x != nil {
		return x.index, x.ok
	}
	return 0, false
}

func (p *peerStates) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range p.peers {
		if x.conn != nil {
			x.conn.Close()
		}
	}
}

// watchPeers asks the other servers, while this one leads, how far they have got.
func (s *Server) watchPeers() {
	for sleep(s.ctx, s.o.ElectionTimeout) {
		if s.lead.Load() == nil {
			continue
		}
		var others []string
		for _, m := range s.raft.GetConfiguration().Configuration().Servers {
			if m.ID != s.raftID {
				others = append(others, string(m.Address))
			}
		}
		together(others, func(addr string) error { // a failure shows in ok
			s.lookAt(addr)
			return nil
		})
	}
}

func (s *Server) lookAt(addr string) {
	ctx, cancel := context.WithTimeout(s.ctx, peerTimeout)
	defer cancel()
	s.peers.mu.Lock()
	if s.peers.peers == nil {
		s.peers.peers = make(map[string]*peerState)
	}
	x := s.peers.peers[addr]
	if x == nil {
		x = new(peerState)
		s.peers.peers[addr] = x
	}
	conn := x.conn
	s.peers.mu.Unlock()
	cluster, _ := s.Cluster()
	var err error
	if conn == nil || conn.Err() != nil {
		conn, _, err = wire.Dial(ctx, addr, &msg.Hello{
			Cluster: cluster[:], Role: msg.Hello_METADATA_SERVER, Server: s.identity.Server, Version: version}, nil, wire.Options{})
	}
	reply := new(msg.StatusReply)
	var code fserr.Code
	if err == nil {
		code, err = conn.CallMessage(ctx, wire.Status, wire.ClassMeta, &msg.Status{}, reply)
	}
	s.peers.mu.Lock()
	defer s.peers.mu.Unlock()
	x.conn = conn
	x.ok = err == nil && code == fserr.OK
	if x.ok {
		x.index = reply.Index
	}
}
