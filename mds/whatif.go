package mds

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/plan"
	"varve/mds/settings"
	"varve/mds/state"
)

const (
	maxWhatIfTime    = 2 * time.Minute // then it is given up
	maxWhatIfFiles   = 1000            // named in an answer
	maxWhatIfServers = maxChunkServers // in an answer
)

// serveWhatIf answers what would be lost with chunk servers. One question is worked on at a time: it keeps a CPU busy and a clone of the state alive.
func (s *Server) serveWhatIf(ctx context.Context, c *wire.Conn, p *peer, f *wire.Frame) {
	l := s.lead.Load()
	req := new(msg.WhatIf)
	switch {
	case l == nil:
		s.answer(c, f, fserr.NotLeader, nil)
		return
	case p.role != msg.Hello_ADMIN:
		s.answer(c, f, fserr.Perm, nil)
		return
	case req.UnmarshalVT(f.Body) != nil:
		s.answer(c, f, fserr.Protocol, nil)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, maxWhatIfTime)
	defer cancel()
	stop := context.AfterFunc(l.ctx, cancel)
	defer stop()
	reply, err := l.whatIf(ctx, req)
	if err != nil {
		s.log.Debug("request failed", "peer", c.RemoteAddr(), "type", f.Type, "err", err)
		s.answer(c, f, s.codeOf(err), &msg.WhatIfReply{Detail: err.Error()})
		return
	}
	s.answer(c, f, fserr.OK, reply)
}

// whatIf forecasts the loss of the servers that the request names.
func (l *leadership) whatIf(ctx context.Context, req *msg.WhatIf) (*msg.WhatIfReply, error) {
	select {
	case l.s.whatIf <- struct{}{}:
		defer func() { <-l.s.whatIf }()
	case <-ctx.Done():
		return nil, waitError(ctx, "another forecast to end")
	}
	began := time.Now()
	st := l.s.fsm.clone()
	views := l.views(st)
	lost, err := lostServers(st, req)
	if err != nil {
		return nil, err
	}
	o := plan.WhatIfOptions{Rate: req.Rate, ServerRate: req.ServerRate, Reserve: repairReserve, MaxFiles: int(min(req.MaxFiles, maxWhatIfFiles)),
		Stop: func() bool { return ctx.Err() != nil }}
	if o.Rate == 0 {
		o.Rate = rateOf(st, settings.RepairRate)
	}
	if o.ServerRate == 0 {
		o.ServerRate = rateOf(st, settings.RepairServerRate)
	}
	f, err := plan.WhatIf(st, views, lost, o)
	if errors.Is(err, plan.ErrStopped) {
		return nil, waitError(ctx, "the forecast")
	}
	if err != nil {
		return nil, err
	}
	reply := forecastReply(st, f)
	reply.Rate, reply.ServerRate = o.Rate, o.ServerRate
	reply.TookMs = time.Since(began).Milliseconds()
	return reply, l.confirmRead(ctx)
}

// rateOf returns the rate that a setting says, or its default; 0: there is none.
func rateOf(st *state.State, key string) uint64 {
	s, _ := settings.Find(key)
	for _, v := range []string{st.Config(key), s.Default} {
		if n, err := settings.Bytes(v); err == nil && n > 0 {
			return uint64(n)
		}
	}
	return 0
}

// lostServers returns the members that the request names.
func lostServers(st *state.State, req *msg.WhatIf) ([]id.ServerID, error) {
	var lost []id.ServerID
	found := map[string]bool{}
	st.Servers(func(x *state.Server) bool {
		if x.Retired {
			return true
		}
		hit := slices.Contains(req.Servers, uint32(x.ID))
		if hit {
			found[x.ID.String()] = true
		}
		if slices.Contains(req.Hosts, x.Host) {
			hit, found["host "+x.Host] = true, true
		}
		for _, rack := range req.Racks {
			if inRack(x.Rack, rack) {
				hit, found["rack "+rack] = true, true
			}
		}
		if hit {
			lost = append(lost, x.ID)
		}
		return true
	})
	var missing []string
	miss := func(name string) {
		if !found[name] {
			missing = append(missing, name)
		}
	}
	for _, n := range req.Servers {
		miss(id.ServerID(n).String())
	}
	for _, h := range req.Hosts {
		miss("host " + h)
	}
	for _, r := range req.Racks {
		miss("rack " + r)
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("no chunk server is %s: %w", strings.Join(missing, ", or "), fserr.NotExist)
	}
	if len(lost) == 0 {
		return nil, fmt.Errorf("a question about no server: %w", fserr.Invalid)
	}
	return lost, nil
}

// inRack reports whether a server that says to be at a place is in the rack, row or room with the name, which may be a whole path or its last part.
func inRack(place, name string) bool {
	if name == "" {
		return false
	}
	_, _, last := plan.RackParts(place)
	return place == name || last == name || strings.HasPrefix(place, name+"/")
}

func forecastReply(st *state.State, f *plan.Forecast) *msg.WhatIfReply {
	r := &msg.WhatIfReply{
		Index: uint64(st.Index()), Chunks: f.Chunks, Hit: f.Hit, Gone: f.Gone.Chunks, GoneBytes: f.Gone.Bytes, GoneFiles: f.Gone.Files,
		UnderMin: f.UnderMin.Chunks, UnderMinFiles: f.UnderMin.Files, Last: f.Last, Moves: f.Moves, MoveBytes: f.MoveBytes,
		Homeless: f.Homeless, HomelessBytes: f.HomelessBytes, Shared: f.Shared, FilesLeftOut: f.LeftOut,
		EtaMs: f.ETA.Milliseconds(), ByServer: f.ByServer, Degraded: f.Degraded,
	}
	share := func(x *plan.Share) *msg.WhatIfServer {
		return &msg.WhatIfServer{Server: uint32(x.Server.ID), Host: x.Server.Host, Rack: x.Server.Rack, Tier: x.Server.Tier, Live: x.Server.Live,
			Chunks: x.Chunks, Bytes: x.Bytes, Reads: x.Reads, ReadBytes: x.ReadBytes, Free: x.Server.Free, Total: x.Server.Total}
	}
	for i := range f.Lost[:min(len(f.Lost), maxWhatIfServers)] {
		r.Lost = append(r.Lost, share(&f.Lost[i]))
	}
	for i := range f.Survivors[:min(len(f.Survivors), maxWhatIfServers)] {
		r.Survivors = append(r.Survivors, share(&f.Survivors[i]))
	}
	paths := pathFinder{st: st, names: make(map[id.Ino]map[id.Ino]string)}
	for _, x := range f.Files {
		one := &msg.WhatIfFile{Ino: uint64(x.Ino), Path: paths.find(x.Ino), Gone: x.Gone.Chunks, GoneBytes: x.Gone.Bytes, UnderMin: x.UnderMin}
		if n, ok := st.Inode(x.Ino); ok {
			one.Size = n.Size
		}
		r.Files = append(r.Files, one)
	}
	return r
}
