package cs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"varve/cs/repl"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/waits"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const (
	// reportPage is the number of chunks in one page of a report.
	reportPage = 4096
	// reportTimeout bounds the leader's answer to a page.
	reportTimeout = 5 * time.Second
	// membersEvery is how often the list of metadata servers is refreshed.
	membersEvery = 10 * time.Second
	// toldEvery is that where somebody asked for what is with it, and reportNetEvery how often the leader is told of the network.
	// It is longer where there are many servers, whose addresses are told each time, but shorter than what package traffic waits for.
	toldEvery      = 3 * time.Second
	toldEachServer = 30 * time.Millisecond
	toldMost       = 30 * time.Second
	reportNetEvery = 2 * time.Second
)

// followLeader keeps the server registered with whoever leads, until ctx ends. An error means that it never will be again.
func (s *Server) followLeader(ctx context.Context) error {
	var b backoff
	lost := false // said that there is no leader
	s.locals.settle(ctx)
	for ctx.Err() == nil {
		reg := s.whoami().register(string(s.book))
		reg.Total, reg.Free, _ = s.store.Space()
		l, err := s.finder.find(ctx, (*control)(s), reg)
		switch {
		case errors.Is(err, fserr.Retired):
			return s.retire()
		case err != nil:
			if !lost && ctx.Err() == nil {
				s.log.Warn("no leader found, trying on", "err", err)
				lost = true
			}
		default:
			lost = false
			err = s.obey(ctx, l)
			l.conn.Quiesce() // what the old leader asked for has ended before a new one asks
			if errors.Is(err, fserr.Retired) {
				return s.retire()
			}
			if ctx.Err() == nil {
				s.log.Warn("leader lost", "addr", l.addr, "err", err)
			}
			if s.registeredFor(l) > maxBackoff {
				b = backoff{}
			}
		}
		b.wait(ctx)
	}
	return nil
}

func (s *Server) registeredFor(l *leader) time.Duration { return time.Duration(bootTime() - l.since) }

// obey does what registration asks for, reports and heartbeats until the leader is lost. It returns why.
func (s *Server) obey(ctx context.Context, l *leader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.conn.Close() })
	defer stop()
	s.peers.learn(l.reply.Peers)
	s.leading.Store(l.conn)
	defer s.leading.Store(nil)
	s.obeySettings(l.reply.Now, l.since, l.reply.DataTls, 0)
	// Fenced before the lease begins, so that the leader may take a registered server as fenced.
	if err := s.fences.fence(ctx, l.reply.Fenced); err != nil {
		return fmt.Errorf("fence %d sessions: %w", len(l.reply.Fenced), err)
	}
	period := time.Duration(l.reply.HeartbeatMs) * time.Millisecond
	term := time.Duration(l.reply.LeaseMs) * time.Millisecond
	if s.accepted.Load() {
		if err := s.lease.renew(ctx, l.since+term.Nanoseconds()); err != nil {
			return err
		}
	}
	beating := make(chan error, 1)
	go func() { beating <- s.beat(ctx, l, period, term) }()
	err := s.report(ctx, l.conn)
	if err == nil {
		if s.accepted.Swap(true) {
			s.log.Info("registered again", "addr", l.addr, "chunks", s.store.Count())
		} else {
			s.log.Info("registered", "addr", l.addr, "chunks", s.store.Count())
			err = s.lease.renew(ctx, l.since+term.Nanoseconds())
		}
	}
	if err != nil {
		cancel()
		<-beating
		return err
	}
	return <-beating
}

// report tells the leader of all chunks, a page at a time.
func (s *Server) report(ctx context.Context, c *wire.Conn) error {
	for after, more := id.ChunkID(0), true; more; {
		var infos []chunkInfo
		infos, more = s.store.List(after, reportPage)
		page := &msg.ChunkReport{Last: !more, Server: uint32(s.id), Chunks: make([]*msg.ChunkInfo, 0, len(infos))}
		for _, i := range infos {
			if after = i.ID; !i.ID.IsScratch() {
				page.Chunks = append(page.Chunks, s.infoMessage(i))
			}
		}
		rctx, cancel := context.WithTimeout(ctx, reportTimeout)
		code, err := c.CallMessage(rctx, wire.ChunkReport, wire.ClassMeta, page, new(msg.ChunkReportReply))
		cancel()
		if err != nil {
			return fmt.Errorf("report chunks: %w", err)
		}
		if code != fserr.OK {
			return fmt.Errorf("report chunks: %w", code)
		}
	}
	return nil
}

func (s *Server) infoMessage(i chunkInfo) *msg.ChunkInfo {
	return &msg.ChunkInfo{
		Id: uint64(i.ID), Epoch: uint64(i.Epoch), Unclean: i.State == repl.Unclean, Joining: i.State.Joining(),
		Power: i.State == repl.Unclean && s.store.LostPower(),
	}
}

// beat sends heartbeats until one fails. It returns why.
func (s *Server) beat(ctx context.Context, l *leader, period, term time.Duration) error {
	tick := time.NewTicker(period)
	defer tick.Stop()
	var refreshed, reported time.Time
	told := 0
	var took time.Duration // by the last heartbeat
	var stuck *waits.Wait
	var ended uint64
	defer func() { stuck.End() }()
	for {
		// A disk that hangs makes no error and no end: that nothing ends is all there is to see.
		_, underWay := s.gate.use()
		if now := s.gate.progress(); now != ended || underWay == 0 {
			stuck.End()
			stuck, ended = nil, now
		} else if stuck == nil {
			stuck = s.waits.For("any request under way to end: the disk, or another server, does not answer", "under_way", underWay)
		}
		if time.Since(refreshed) >= s.refreshEvery(told) {
			refreshed = time.Now()
			told = s.refreshMembers(ctx, l)
		}
		select {
		case <-tick.C:
		case <-l.conn.Done():
			return l.conn.Err()
		}
		since := bootTime()
		reply := new(msg.HeartbeatReply)
		hctx, cancel := context.WithTimeout(ctx, max(term/3, period))
		h := s.heartbeat()
		h.Load.HeartbeatUs = uint32(took.Microseconds())
		sent := time.Now()
		if s.o.NetReport != nil && sent.Sub(reported) >= reportNetEvery {
			h.Net, reported = s.o.NetReport(), sent
		}
		code, err := l.conn.CallMessage(hctx, wire.Heartbeat, wire.ClassHeartbeat, h, reply)
		took = time.Since(sent)
		cancel()
		if err == nil {
			err = code.Err()
		}
		if err != nil {
			l.conn.Close() // ends a report under way too
			return fmt.Errorf("heartbeat: %w", err)
		}
		s.peers.learn(reply.Peers)
		s.obeySettings(reply.Now, since, reply.DataTls, reply.Trust)
		if s.obeyOpening(l.conn, l.since, reply) {
			l.conn.Close()
			return errors.New("it is connected to anew, with a certificate")
		}
		s.copying.pace.set(int64(min(reply.RepairRate, 1<<62)))
		s.takeTier(reply.Tier)
		if reply.LeaseMs > 0 {
			term = time.Duration(reply.LeaseMs) * time.Millisecond
		}
		if err := s.fences.fence(ctx, reply.Fenced); err != nil {
			return fmt.Errorf("fence %d sessions: %w", len(reply.Fenced), err)
		}
		if s.accepted.Load() {
			if err := s.lease.renew(ctx, since+term.Nanoseconds()); err != nil {
				return err
			}
		}
	}
}

// refreshEvery is how often members are asked for where the addresses of so many servers come with it.
func (s *Server) refreshEvery(told int) time.Duration {
	if s.o.Told != nil {
		return min(max(toldEvery, time.Duration(told)*toldEachServer), toldMost)
	}
	return membersEvery
}

func (s *Server) heartbeat() *msg.Heartbeat {
	s.checkHealth()
	st := s.Stats()
	h := &msg.Heartbeat{
		Server: uint32(s.id), Total: st.Total, Free: st.Free, Chunks: uint64(st.Chunks),
		Ops: st.Reads + st.Writes + st.Punches + st.Flushes, LatencyUs: uint32(min(st.Latency.Microseconds(), 1<<31)), State: "ok",
		Memory: uint64(st.Memory), Resident: uint64(st.Resident), DataPath: st.DataPath,
		Journal: s.journalMessage(), Load: s.loadReport(),
	}
	if st.Failed {
		h.State = "failed"
	}
	s.addStore(h)
	return h
}

// refreshMembers keeps the list of metadata servers current, in memory and on disk. It returns the addresses of how many servers were told.
func (s *Server) refreshMembers(ctx context.Context, l *leader) (told int) {
	ctx, cancel := context.WithTimeout(ctx, membersTimeout)
	defer cancel()
	reply := new(msg.MembersReply)
	code, err := l.conn.CallMessage(ctx, wire.Members, wire.ClassMeta, &msg.Members{Net: s.o.Told != nil}, reply)
	if err != nil || code != fserr.OK || len(reply.Addrs) == 0 {
		return 0
	}
	if s.o.Told != nil {
		s.o.Told(reply)
	}
	s.finder.replace(reply.Addrs)
	s.finder.first(l.addr)
	if s.o.Members != nil {
		if reply.Clients != nil {
			s.o.Members(reply.Clients)
		} else {
			s.o.Members(slices.Clone(reply.Addrs))
		}
	}
	if metas := slices.Sorted(slices.Values(reply.Addrs)); !slices.Equal(metas, s.whoami().Metas) {
		s.updateIdentity(func(d *identity) { d.Metas = metas })
	}
	return len(reply.Servers)
}
