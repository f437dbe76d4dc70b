package mds

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/mds/state"
)

// removeMeta takes a metadata server out of the cluster and retires its id: out of Raft first, then out of the state. If it breaks off in
// between, the leader finishes it (forgetStrays); it may be asked for again at any time. A leader that is to remove itself hands over and
// fails with NotLeader.
func (l *leadership) removeMeta(ctx context.Context, m id.MetaID) error {
	release, err := l.latchMembers(ctx)
	if err != nil {
		return err
	}
	defer release()
	var member, known bool
	l.s.fsm.view(func(st *state.State) {
		_, member = st.Meta(m)
		known = m != 0 && m < st.NextMeta()
	})
	if !known {
		return fmt.Errorf("there is no %v and never was; varve stat lists the metadata servers: %w", m, fserr.NotExist)
	}
	old, inRaft := l.raftMember(m)
	if inRaft {
		if old.Suffrage == raft.Voter {
			if err := l.sureOfQuorumWithout(ctx, m); err != nil {
				return err
			}
		}
		if old.ID == l.s.raftID {
			if err := l.s.handOver(ctx, l.best(m)); err != nil {
				return fmt.Errorf("%v leads and could not hand over: %w: %w", m, fserr.Unavailable, err)
			}
			return fmt.Errorf("%v has handed leadership over: %w", m, fserr.NotLeader)
		}
		if err := l.s.await(l.s.raft.RemoveServer(old.ID, 0, memberTimeout)); err != nil {
			return fmt.Errorf("remove %v: %w: %w", m, fserr.Unavailable, err)
		}
	}
	if !member {
		return nil // done before
	}
	return l.retireMeta(m, "removed by an administrator")
}

// looks is how often, half a second apart, the others are asked before they count as silent: one may just have been started again, or be busy.
const looks = 4

// sureOfQuorumWithout is quorumWithout after a fresh look at the others.
func (l *leadership) sureOfQuorumWithout(ctx context.Context, gone id.MetaID) error {
	for n := 1; ; n++ {
		l.s.lookAround()
		err := l.quorumWithout(gone)
		if err == nil || n == looks || !sleep(ctx, 500*time.Millisecond) {
			return err
		}
	}
}

// quorumWithout refuses (Busy) a removal after which no majority of the voters would answer.
func (l *leadership) quorumWithout(gone id.MetaID) error {
	voters := 0
	var answer, silent []string
	for _, m := range l.s.raftMembers() {
		if m.Suffrage != raft.Voter || m.ID == raftID(gone) {
			continue
		}
		voters++
		p, _ := l.s.peers.get(string(m.Address))
		switch {
		case m.ID == l.s.raftID, p.ok && p.disk != diskFull:
			answer = append(answer, string(m.ID))
		case p.ok:
			silent = append(silent, string(m.ID)+" (its disk is full)")
		default:
			silent = append(silent, string(m.ID))
		}
	}
	if voters == 0 {
		return fmt.Errorf("%v is the last metadata server that votes: without it all metadata, and so every file, would be lost; "+
			"add another with make-mds and wait until it votes, then remove this one: %w", gone, fserr.Busy)
	}
	if need := voters/2 + 1; len(answer) < need {
		return fmt.Errorf("without %v the cluster would have no majority: of the %d that would vote %d must answer, and only %d would (%s), not %s; "+
			"no file could be opened or changed any more; start the silent ones, or remove them first: %w",
			gone, voters, need, len(answer), strings.Join(answer, ", "), strings.Join(silent, ", "), fserr.Busy)
	}
	return nil
}

// best returns the other voter that is to lead next: it answers, has room, and is furthest; "" if none answers.
func (l *leadership) best(not ...id.MetaID) raft.ServerID {
	var best raft.ServerID
	var most uint64
	for _, m := range l.s.raftMembers() {
		if m.Suffrage != raft.Voter || m.ID == l.s.raftID || slices.ContainsFunc(not, func(x id.MetaID) bool { return raftID(x) == m.ID }) {
			continue
		}
		if p, _ := l.s.peers.get(string(m.Address)); p.ok && p.disk == diskOK && (best == "" || p.index > most) {
			best, most = m.ID, p.index
		}
	}
	return best
}

// handOver gives leadership to the member, or to whoever is furthest if to is "". It returns when Raft has another leader or the attempt
// has failed; it takes transferTimeout at most.
func (s *Server) handOver(ctx context.Context, to raft.ServerID) error {
	ctx, cancel := context.WithTimeout(ctx, transferTimeout)
	defer cancel()
	begin := time.Now()
	var future raft.Future
	if to == "" {
		future = s.raft.LeadershipTransfer()
	} else {
		i := slices.IndexFunc(s.raftMembers(), func(m raft.Server) bool { return m.ID == to })
		if i < 0 {
			return fmt.Errorf("%s is no member: %w", to, fserr.NotExist)
		}
		future = s.raft.LeadershipTransferToServer(to, s.raftMembers()[i].Address)
	}
	done := make(chan error, 1)
	go func() { done <- s.await(future) }()
	select {
	case err := <-done:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return errors.New("not in time")
	}
	for s.leaderAddr() == "" || s.leaderAddr() == s.identity.Addr { // so that clients can be told
		if !sleep(ctx, 5*time.Millisecond) {
			return nil
		}
	}
	s.log.Info("leadership handed over", "leader", s.leaderAddr(), "took", time.Since(begin))
	return nil
}

// transferLeader hands leadership over because an administrator says so; to 0: to whoever is best.
func (l *leadership) transferLeader(ctx context.Context, to id.MetaID) error {
	target := l.best()
	if to != 0 {
		m, ok := l.raftMember(to)
		switch {
		case !ok:
			return fmt.Errorf("%v is no member: %w", to, fserr.NotExist)
		case m.ID == l.s.raftID:
			return nil
		case m.Suffrage != raft.Voter:
			return fmt.Errorf("%v is a learner and cannot lead before it has caught up: %w", to, fserr.Busy)
		}
		target = m.ID
	}
	if target == "" {
		return fmt.Errorf("no other metadata server that votes answers and has room: %w", fserr.Busy)
	}
	if err := l.s.handOver(ctx, target); err != nil {
		return fmt.Errorf("leadership was not handed over: %w: %w", fserr.Unavailable, err)
	}
	return nil
}
