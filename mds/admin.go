package mds

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/raft"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/latency"
	"varve/internal/planes"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/journal"
	"varve/mds/event"
	"varve/mds/state"
)

func (s *Server) serveAdmin(ctx context.Context, c *wire.Conn, f *wire.Frame) {
	ctx, cancel := context.WithTimeout(ctx, s.o.RequestTimeout)
	defer cancel()
	switch f.Type {
	case wire.Status:
		s.answer(c, f, fserr.OK, s.status())
	case wire.Members:
		req := new(msg.Members)
		if err := req.UnmarshalVT(f.Body); err != nil {
			s.answer(c, f, fserr.Protocol, nil)
			return
		}
		r := s.members(roleOf(c))
		if req.Net {
			s.addNet(r)
		}
		s.answer(c, f, fserr.OK, r)
	case wire.StateDigest:
		req := new(msg.StateDigest)
		if err := req.UnmarshalVT(f.Body); err != nil {
			s.answer(c, f, fserr.Protocol, nil)
			return
		}
		reply, err := s.stateDigest(ctx, req)
		if err != nil {
			s.failure(c, f, err)
			return
		}
		s.answer(c, f, fserr.OK, reply)
	case wire.JournalRead:
		s.serveJournal(c, f)
	case wire.JoinMeta, wire.RemoveMeta, wire.TransferLeader, wire.SetConfig, wire.GetConfig, wire.SetServerMode, wire.RemoveServer, wire.SetTier:
		s.serveLeader(ctx, c, f)
	}
}

// serveLeader answers what only a leader does. A refusal says in words why, and who leads.
func (s *Server) serveLeader(ctx context.Context, c *wire.Conn, f *wire.Frame) {
	var reply wire.Message = &msg.Empty{}
	var run func(l *leadership) error
	var req interface{ UnmarshalVT([]byte) error }
	switch f.Type {
	case wire.JoinMeta:
		m := new(msg.JoinMeta)
		req, run = m, func(l *leadership) error {
			if err := l.mayReaddress(c, m); err != nil {
				return err
			}
			key, err := l.keyFor(c, m)
			if err != nil {
				return err
			}
			r, err := l.joinMeta(ctx, m)
			if err == nil {
				r.ClusterKey = key
			}
			reply = r
			return err
		}
	case wire.RemoveMeta:
		m := new(msg.RemoveMeta)
		req, run = m, func(l *leadership) error { return l.removeMeta(ctx, id.MetaID(m.Server)) }
	case wire.TransferLeader:
		m := new(msg.TransferLeader)
		req, run = m, func(l *leadership) error { return l.transferLeader(ctx, id.MetaID(m.Server)) }
	case wire.SetConfig:
		m := new(msg.SetConfig)
		req, run = m, func(l *leadership) error { return l.setConfig(m) }
	case wire.SetServerMode:
		m := new(msg.SetServerMode)
		req, run = m, func(l *leadership) error { return l.setMode(ctx, m) }
	case wire.SetTier:
		m := new(msg.SetTier)
		req, run = m, func(l *leadership) error { return l.setTier(ctx, m) }
	case wire.RemoveServer:
		m := new(msg.RemoveServer)
		req, run = m, func(l *leadership) error {
			r, err := l.removeServer(ctx, m)
			reply = r
			return err
		}
	case wire.GetConfig:
		req, run = new(msg.GetConfig), func(l *leadership) error {
			r, err := l.getConfig(ctx)
			reply = r
			return err
		}
	}
	if err := req.UnmarshalVT(f.Body); err != nil {
		s.answer(c, f, fserr.Protocol, nil)
		return
	}
	err := fmt.Errorf("%v does not lead: %w", s.identity.server(), fserr.NotLeader)
	if l := s.lead.Load(); l != nil {
		err = run(l)
	}
	if err == nil {
		s.answer(c, f, fserr.OK, reply)
		return
	}
	s.log.Debug("request failed", "peer", c.RemoteAddr(), "type", f.Type, "err", err)
	if f.Type == wire.JoinMeta {
		reply = &msg.JoinMetaReply{Detail: err.Error(), Addrs: []string{s.leaderFor(roleOf(c))}}
	} else {
		reply = &msg.AdminReply{Detail: err.Error(), Leader: s.leaderFor(roleOf(c))}
	}
	s.answer(c, f, s.codeOf(err), reply)
}

// roleOf is who is at the other end.
func roleOf(c *wire.Conn) msg.Hello_Role {
	if p, ok := c.Value.(*peer); ok {
		return p.role
	}
	return msg.Hello_ADMIN
}

// members tells who the metadata servers are, at the addresses at which who asks reaches them.
func (s *Server) members(role msg.Hello_Role) *msg.MembersReply {
	cluster, name := s.Cluster()
	r := &msg.MembersReply{Leader: s.leaderFor(role), Name: name, Cluster: cluster[:], Trust: s.trustVersion()}
	server := role == msg.Hello_CHUNK_SERVER || role == msg.Hello_METADATA_SERVER
	for _, m := range s.raftMembers() {
		addr := s.public(string(m.Address))
		if server {
			r.Clients = append(r.Clients, addr)
			addr = string(m.Address)
		}
		r.Addrs = append(r.Addrs, addr)
	}
	if slices.Equal(r.Clients, r.Addrs) {
		r.Clients = nil
	}
	return r
}

// stateUnheard is the state of a server that a new leader has not heard of yet, though it may be well.
const stateUnheard = "unheard"

// status tells what this server knows; only the leader knows how chunk servers and sessions are.
func (s *Server) status() *msg.StatusReply {
	st := s.fsm.clone()
	cluster, name := s.Cluster()
	n := st.Counts()
	sum := st.Sum()
	r := &msg.StatusReply{
		Name: name, Cluster: cluster[:], Index: uint64(st.Index()), Leader: s.public(s.leaderAddr()), Term: s.raft.CurrentTerm(),
		Inodes: uint64(n.Inodes), Chunks: uint64(n.Chunks), Degraded: uint64(n.Degraded), UnderMin: uint64(st.UnderMin()),
		Disk: string(s.room.now()), DiskFree: s.room.free.Load(), Keyed: s.keyed(),
		Joining: uint64(n.Joining), Garbage: uint64(n.Garbage), Answering: s.identity.Server, JournalBytes: uint64(s.journal.Bytes()), Digest: sum[:],
	}
	if points, err := s.journal.Checkpoints(); err == nil && len(points) > 0 {
		r.Checkpoint = uint64(points[len(points)-1].Index)
	}
	l := s.lead.Load()
	for _, m := range s.raftMembers() {
		one := &msg.MetaServer{Addr: s.public(string(m.Address)), Voter: m.Suffrage == raft.Voter, State: "follower"}
		if v, err := id.ParseMetaID(string(m.ID)); err == nil {
			one.Server = uint32(v)
		}
		if !one.Voter {
			one.State = "learner"
		}
		switch {
		case m.ID == s.raftID:
			one.Applied, one.Disk, one.DiskFree = r.Index, r.Disk, r.DiskFree
		case l != nil:
			p, _ := s.peers.get(string(m.Address))
			one.Applied, one.Disk, one.DiskFree = p.index, string(p.disk), p.free
			switch {
			case p.ok:
			case p.heard < l.since && bootNow()-l.since < peerTimeout+s.o.ElectionTimeout:
				one.State = stateUnheard
			default:
				one.State = "unreachable"
			}
			if l.compared.differed(string(m.Address)) {
				one.State = "diverged"
			}
		}
		if string(m.Address) == s.leaderAddr() {
			one.State = "leader"
		}
		r.Metas = append(r.Metas, one)
	}
	st.Servers(func(x *state.Server) bool {
		one := &msg.ChunkServer{Server: uint32(x.ID), Addr: planes.Book(x.Addr).Addr(planes.Client), Host: x.Host, Tier: x.Tier, State: "unknown", HeardMs: -1}
		one.Rack = x.Rack
		if b := planes.Book(x.Addr); !b.Single() {
			one.Planes = x.Addr
		}
		if x.Retired {
			one.State = "retired"
		} else if x.Mode != event.ServerMode_ACTIVE {
			one.Mode = strings.ToLower(x.Mode.String())
		}
		if !x.Retired {
			one.ModeSince, one.ModeUntil = st.ModeSince(x.ID), st.StandbyUntil(x.ID)
		}
		if x.Leaving() {
			one.LeftChunks, one.Left = leftOn(st, x.ID)
		}
		r.Servers = append(r.Servers, one)
		return true
	})
	st.Sessions(func(x *state.Session) bool {
		if x.Fenced {
			return true
		}
		one := &msg.Session{Session: uint64(x.ID), Host: x.Host, Mount: x.Mount, Opened: uint64(x.Opened), RenewedMs: -1,
			Connected: s.clients.get(x.ID) != nil}
		st.LeasesOf(x.ID, func(state.Lease) bool { one.Files++; return true })
		r.Sessions = append(r.Sessions, one)
		return true
	})
	if l != nil {
		r.LeadingMs = max((bootNow() - l.since).Milliseconds(), 1)
		r.Repair = l.repairStatus(st)
		l.addSoft(r, st)
	}
	return r
}

// addSoft fills in what only the leader knows.
func (l *leadership) addSoft(r *msg.StatusReply, st *state.State) {
	now := bootNow()
	settling := l.settling()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range r.Servers {
		c := l.servers[id.ServerID(one.Server)]
		if c == nil || one.State == "retired" {
			continue
		}
		one.Net = c.net
		one.Total, one.Free, one.Chunks, one.LatencyUs = c.beat.Total, c.beat.Free, c.beat.Chunks, c.beat.LatencyUs
		one.Allocated, one.Reserved, one.BadBlocks = c.beat.Allocated, c.beat.Reserved, c.beat.BadBlocks
		one.Scrubbed, one.ScrubPermille, one.Reason = c.beat.Scrubbed, c.beat.ScrubPermille, c.beat.Reason
		one.Memory, one.Resident, one.DataPath = c.beat.Memory, c.beat.Resident, c.beat.DataPath
		one.Journal, one.Slow = c.beat.Journal, l.pacing.watch.Slow(c.id)
		one.Going = c.going(st)
		l.leftMost[c.id] = max(l.leftMost[c.id], one.Left)
		one.LeftMost = l.leftMost[c.id]
		if load := c.beat.Load; load != nil {
			one.Waiting, one.GuestP99Us = load.Waiting, uint32(latency.Quantile(load.Latencies, 0.99).Microseconds())
		}
		one.HeardMs = (now - c.heard).Milliseconds()
		switch {
		case c.incarnation == 0 && settling:
			one.State, one.HeardMs = stateUnheard, -1
		case l.live(c):
			one.State = "live"
		case c.failed():
			one.State = stateFailed
		case c.conn != nil && !c.ready:
			one.State = "starting"
		case c.incarnation == 0:
			one.State, one.HeardMs = "down", -1
		default:
			one.State = "down"
		}
		r.Total += one.Total
		r.Free += one.Free
	}
	for _, one := range r.Sessions {
		if x := l.sessions[id.SessionID(one.Session)]; x != nil {
			one.RenewedMs, one.Local = (now - x.renewed).Milliseconds(), x.local
		}
	}
}

// serveJournal sends raw records, or a piece of a checkpoint from byte `from` on.
func (s *Server) serveJournal(c *wire.Conn, f *wire.Frame) {
	req := new(msg.JournalRead)
	if err := req.UnmarshalVT(f.Body); err != nil {
		s.answer(c, f, fserr.Protocol, nil)
		return
	}
	limit := int(req.MaxBytes)
	if limit <= 0 || limit > maxJournalRead {
		limit = maxJournalRead
	}
	reply := &msg.JournalReadReply{Last: uint64(s.journal.Last().Index), First: uint64(s.journal.First())}
	var data []byte
	var err error
	if req.Checkpoint {
		data, err = s.pieces.read(s.journal, req, limit, reply)
	} else {
		var next id.Index
		data, next, err = s.journal.ReadRaw(max(id.Index(req.From), 1), limit)
		reply.Next = uint64(next)
		reply.More = uint64(next) <= reply.Last
		var gap *journal.GapError
		if errors.As(err, &gap) {
			reply.Next, reply.More, err = uint64(gap.Next), true, nil
		}
	}
	if errors.Is(err, journal.ErrNotFound) {
		s.answer(c, f, fserr.NotExist, reply)
		return
	}
	if err != nil {
		s.failure(c, f, fmt.Errorf("read the journal: %w: %w", fserr.IO, err))
		return
	}
	body, err := reply.MarshalVT()
	if err != nil || len(data) > wire.MaxData {
		s.answer(c, f, fserr.IO, nil)
		return
	}
	if err := c.Reply(f, fserr.OK, body, data); err != nil {
		s.log.Debug("answer not sent", "peer", c.RemoteAddr(), "err", err)
	}
}
