package mds

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/state"
)

const (
	peerTimeout   = 2 * time.Second // one look at another metadata server
	probeTimeout  = time.Second     // one question whether this server still is a member
	retireLinger  = 3               // election time-outs in which a removed server answers who the members are, before it ends
	maxPeerStates = 64
)

// peerStates is what the leader last saw of the other metadata servers.
type peerStates struct {
	mu    sync.Mutex
	peers map[string]*peerState // by address
}

type peerState struct {
	conn  *wire.Conn
	index uint64
	ok    bool          // the last look succeeded
	heard time.Duration // bootNow of the last look that succeeded
	keyed bool          // it has the cluster key and a certificate
	disk  diskState
	free  uint64 // bytes of its disk
}

// get returns what is known of the server at addr.
func (p *peerStates) get(addr string) (peerState, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if x := p.peers[addr]; x != nil {
		return *x, true
	}
	return peerState{}, false
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

// keep forgets all but the servers at addrs.
func (p *peerStates) keep(addrs []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for addr, x := range p.peers {
		if !slices.Contains(addrs, addr) {
			if x.conn != nil {
				x.conn.Close()
			}
			delete(p.peers, addr)
		}
	}
}

// others returns where the other members are.
func (s *Server) others() []string {
	var out []string
	for _, m := range s.raftMembers() {
		if m.ID != s.raftID {
			out = append(out, string(m.Address))
		}
	}
	return out
}

// watchPeers asks the other servers, while this one leads, how far they have got.
func (s *Server) watchPeers() {
	for sleep(s.ctx, s.o.ElectionTimeout) {
		if s.lead.Load() != nil {
			s.lookAround()
		}
	}
}

// lookAround asks all other members how they are.
func (s *Server) lookAround() {
	others := s.others()
	s.peers.keep(others)
	together(others, func(addr string) error { // a failure shows in ok
		s.lookAt(addr)
		return nil
	})
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
	var err error
	if conn == nil || conn.Err() != nil {
		conn, _, err = wire.Dial(ctx, addr, s.peerHello(), nil, wire.Options{Class: wire.ClassMeta, Network: s.o.Network})
	}
	reply := new(msg.StatusReply)
	var code fserr.Code
	if err == nil {
		if code, err = conn.CallMessage(ctx, wire.Status, wire.ClassMeta, &msg.Status{}, reply); err != nil {
			conn.Close()
		}
	}
	keyed := reply.Keyed
	if err != nil {
		conn = nil // after a cut a new connection answers long before TCP sends on the old one again
	} else if _, shown := conn.Peer(); keyed && !shown && s.creds() != nil { // that they know each other by certificates, a connection with these shows
		conn.Close()
		conn, keyed = nil, false
	}
	s.peers.mu.Lock()
	defer s.peers.mu.Unlock()
	if old := x.conn; old != nil && old != conn {
		old.Close()
	}
	x.conn = conn
	x.ok = err == nil && code == fserr.OK
	if x.ok {
		x.index, x.heard, x.disk, x.free, x.keyed = reply.Index, bootNow(), diskState(reply.Disk), reply.DiskFree, keyed
	}
}

func (s *Server) peerHello() *msg.Hello {
	cluster, _ := s.Cluster()
	return &msg.Hello{Cluster: cluster[:], Role: msg.Hello_METADATA_SERVER, Server: s.identity.Server, Version: version}
}

// isRetired reports whether the id belonged to a metadata server that was removed: ids are given out in order and never again. A server that
// lags does not know of a removal yet, but never takes a member for a removed one.
func (s *Server) isRetired(m id.MetaID) (retired bool) {
	s.fsm.view(func(st *state.State) {
		_, ok := st.Meta(m)
		retired = !ok && m != 0 && m < st.NextMeta()
	})
	return retired
}

// watchMembership finds out that this server was removed while it did not listen, and tells the others when it has moved.
func (s *Server) watchMembership() {
	for sleep(s.ctx, s.o.ElectionTimeout) {
		moved := s.moved()
		if s.lead.Load() == nil && (s.leaderAddr() == "" || !s.inConfiguration()) && s.wasRemoved(s.knownPeers(), probeTimeout) {
			s.retire()
			return
		}
		if moved {
			s.announceMove()
		}
	}
}

func (s *Server) inConfiguration() bool {
	for _, m := range s.raftMembers() {
		if m.ID == s.raftID {
			return true
		}
	}
	return false
}

// knownPeers returns where other members may be: those of Raft, of the state, and those of when the server joined.
func (s *Server) knownPeers() []string {
	out := s.others()
	add := func(addr string) {
		if addr != s.identity.Addr && !slices.Contains(out, addr) && len(out) < maxPeerStates {
			out = append(out, addr)
		}
	}
	s.fsm.view(func(st *state.State) {
		st.Metas(func(m *state.Meta) bool {
			if m.ID != s.identity.server() {
				add(string(raftAddrOf(m)))
			}
			return true
		})
	})
	for _, addr := range s.identity.Peers {
		add(addr)
	}
	return out
}

// wasRemoved asks others whether this server's id is retired.
func (s *Server) wasRemoved(addrs []string, timeout time.Duration) bool {
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	return errors.Is(together(addrs, func(addr string) error {
		c, _, err := wire.Dial(ctx, addr, s.peerHello(), nil, wire.Options{Class: wire.ClassMeta, Network: s.o.Network})
		if errors.Is(err, fserr.Retired) {
			cancel() // one is enough
			return err
		}
		if err == nil {
			c.Close()
		}
		return nil
	}), fserr.Retired)
}

// retire marks the directory and ends the server. For a moment it goes on saying who the members are, since some may know nobody else.
func (s *Server) retire() {
	reason := "removed from the cluster; its id is retired"
	s.log.Error("this metadata server was removed from the cluster and stops for good", "index", s.fsm.index())
	err := writeMarker(s.o.FS, s.o.Dir, marker{Kind: markRemoved, Reason: reason, Index: uint64(s.fsm.index())})
	sleep(s.ctx, retireLinger*s.o.ElectionTimeout)
	s.fatal(errors.Join(fmt.Errorf("%v was %s: %w: %w", s.identity.server(), reason, ErrStopped, fserr.Retired), err))
}

// moved reports whether Raft, or the state, has the server at other addresses than it now has.
func (s *Server) moved() bool {
	for _, m := range s.raftMembers() {
		if m.ID == s.raftID {
			if string(m.Address) != s.identity.Addr {
				return true
			}
			known := ""
			s.fsm.view(func(st *state.State) {
				if x, ok := st.Meta(s.identity.server()); ok {
					known = x.Addr
				}
			})
			return known != "" && known != string(s.identity.book())
		}
	}
	return false
}

// announceMove has the leader change the address of this server.
func (s *Server) announceMove() {
	req := &msg.JoinMeta{Addr: string(s.identity.book()), Uuid: s.identity.uuid(), Server: s.identity.Server}
	if l := s.lead.Load(); l != nil {
		if _, err := l.joinMeta(l.ctx, req); err != nil {
			s.log.Warn("own move not noted yet", "addr", s.identity.Addr, "err", err)
		}
		return
	}
	o := &Options{Name: s.identity.Name, Cluster: s.identity.cluster(), Network: s.o.Network}
	peers := s.knownPeers()
	if s.o.More != nil { // all may have moved
		peers = append(peers, s.o.More()...)
	}
	for _, addr := range peers {
		if s.ctx.Err() != nil {
			return
		}
		if _, err := askJoin(s.ctx, addr, o, s.keys.key.Load(), req); err == nil {
			return
		} else if !errors.Is(err, fserr.NotLeader) {
			s.log.Warn("move not announced yet", "to", addr, "addr", s.identity.Addr, "err", err)
		}
	}
}
