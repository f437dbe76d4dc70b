package mds

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"varve/internal/fserr"
	"varve/internal/wire/msg"
)

// leavePause is how long a leader whose disk has no room waits before it tries again to hand over.
const leavePause = 5 * time.Second

// turnedAway is why a leader refuses changes. Nothing is kept of a request that was refused.
type turnedAway struct {
	low  string // why clients get NoSpace for what would grow the log; empty: they do not
	full string // why no event is proposed at all; empty: those are
}

// watchRoom looks at the room on the disk, and on the others' while this server leads.
func (s *Server) watchRoom() {
	var left time.Duration
	for sleep(s.ctx, roomPeriod) {
		before, after := s.room.look()
		if before != after {
			s.noteRoom(after)
		}
		l := s.lead.Load()
		if l == nil {
			continue
		}
		l.weigh()
		if now := bootNow(); after != diskOK && now-left > leavePause {
			if to := l.best(); to != "" {
				left = now
				if err := s.handOver(s.ctx, to); err != nil {
					s.log.Warn("this server's disk has no room, but leadership was not handed over", "to", to, "err", err)
				}
			}
		}
	}
}

func (s *Server) noteRoom(now diskState) {
	free := s.room.free.Load()
	switch now {
	case diskOK:
		s.log.Info("there is room on the disk again", "free", free)
	case diskLow:
		s.log.Warn("the disk is nearly full: changes are turned away where this server is needed for them", "free", free, "margin", s.room.margin)
	case diskFull:
		s.log.Error("the disk is full: no changes are taken until there is room", "free", free)
	}
}

// leaveLead hands a leadership that has just been won to a server that has room, if there is one. It reports whether that was done.
func (s *Server) leaveLead() bool {
	if s.room.now() == diskOK || s.otherVoters() == 0 {
		return false
	}
	s.lookAround()
	to := (&leadership{s: s}).best()
	if to == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(s.ctx, transferTimeout)
	defer cancel()
	if err := s.handOver(ctx, to); err != nil {
		s.log.Warn("elected with a full disk, and leadership was not handed over", "to", to, "err", err)
		return false
	}
	return true
}

// weigh decides what is turned away: a majority of the voters, and the leader, must have room for an event.
func (l *leadership) weigh() {
	voters, roomy, holding := 0, 0, 0
	var short []string
	for _, m := range l.s.raftMembers() {
		if m.Suffrage != raft.Voter {
			continue
		}
		voters++
		state := l.s.room.now()
		if m.ID != l.s.raftID {
			p, _ := l.s.peers.get(string(m.Address))
			state = p.disk // one that does not answer is the concern of Raft
		}
		switch state {
		case diskOK:
			roomy++
			holding++
		case diskLow:
			holding++
			short = append(short, string(m.ID)+" (nearly full)")
		default:
			short = append(short, string(m.ID)+" (full)")
		}
	}
	own, need := l.s.room.now(), voters/2+1
	if own == diskOK && roomy >= need {
		l.turned.Store(nil)
		return
	}
	why := "metadata servers have no room on their disks: " + strings.Join(short, ", ") + "; make room there"
	t := &turnedAway{low: why}
	if own == diskFull || holding < need {
		t.full = why
	}
	if roomy >= need && (l.best() != "" || bootNow()-l.since < leavePause) { // that one leads soon, or the others have not been asked yet
		t.low = ""
	}
	if l.turned.Swap(t) == nil {
		l.s.log.Warn("changes are turned away", "cause", why)
	}
}

// noRoom returns why no event may be proposed now, or nil. Clients try again.
func (l *leadership) noRoom() error {
	if t := l.turned.Load(); t != nil && t.full != "" {
		return fmt.Errorf("%s: %w", t.full, fserr.Unavailable)
	}
	if l.s.room.now() == diskFull {
		return fmt.Errorf("%s: the disk is full; make room there: %w", l.s.raftID, fserr.Unavailable)
	}
	return nil
}

// admit returns why the request is turned away, or nil. What clients need to end what they have begun is let through as long as it fits.
func (l *leadership) admit(req *msg.MetaRequest) error {
	t := l.turned.Load()
	if t == nil || t.low == "" {
		return nil
	}
	switch op := req.Op.(type) {
	case *msg.MetaRequest_Release, *msg.MetaRequest_Open, *msg.MetaRequest_PunchDone, *msg.MetaRequest_DropReplica, *msg.MetaRequest_WriteDone,
		*msg.MetaRequest_Lock, *msg.MetaRequest_Remove:
		return nil
	case *msg.MetaRequest_SetAttr:
		if op.SetAttr.Flush {
			return nil
		}
	}
	return fmt.Errorf("%s: %w", t.low, fserr.NoSpace)
}
