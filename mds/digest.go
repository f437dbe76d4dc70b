package mds

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

// Digests of the servers' states are compared in two ways. Once a second, if there were events, the leader asks the other voters
// for the sum of their states at one index. If a majority has its own sum, it is right; at intervals, and at once if
// somebody differs, it puts the sum into the log, and every server that differs stops itself when it applies that event. If
// a majority agrees on another sum, it is the leader that is wrong, and it stops; one of the others leads. If no majority agrees on
// anything, nobody can tell who is right: that is logged, and asked again.
const (
	// digestEvery is the largest number of events between two Digest events.
	digestEvery = 1 << 16
	// maxSums is how many indexes a server remembers its sum at, 16 bytes each. Two Digest events and what is under way when
	// the second is made fit, so that a server which differs at one finds out where it began to.
	maxSums = 1 << 17
	// digestTimeout bounds one round of asking, narrowTimeout the search for the first index that differs.
	digestTimeout = 2 * time.Second
	narrowTimeout = 2 * time.Second
)

// sums remembers the state's sum at the newest indexes. Its owner's lock guards it.
type sums struct {
	ring        [][16]byte
	first, last id.Index // of those remembered; last 0: none
	changed     id.Index // the newest index of an event that is not a Digest
	agreed      id.Index // the newest at which a Digest event had this server's sum
}

// note adds the sum after the next event.
func (d *sums) note(index id.Index, sum state.Sum, ev *event.Event) {
	if d.ring == nil {
		d.ring = make([][16]byte, maxSums)
	}
	if d.last == 0 || index != d.last+1 {
		d.first = index
	}
	d.last = index
	d.ring[index%maxSums] = sum
	if index-d.first >= maxSums {
		d.first = index - maxSums + 1
	}
	if _, is := ev.GetBody().(*event.Event_Digest); !is {
		d.changed = index
	}
}

func (d *sums) at(index id.Index) (state.Sum, bool) {
	if d.last == 0 || index < d.first || index > d.last {
		return state.Sum{}, false
	}
	return d.ring[index%maxSums], true
}

// reset forgets all, after the state was replaced.
func (d *sums) reset() { *d = sums{ring: d.ring} }

// compare checks a Digest event of the log. It returns an error if this server's state differs. A SHA-256 (kind 0) is left to those
// who replay the journal, since the state at that index is gone.
func (d *sums) compare(e *event.Digest) error {
	if e.Kind != state.DigestSum {
		return nil
	}
	own, ok := d.at(id.Index(e.Index))
	if !ok {
		return nil // older than what is remembered
	}
	if !bytes.Equal(own[:], e.Digest) {
		return &divergence{index: id.Index(e.Index), agreed: d.agreed, own: own, others: e.Digest}
	}
	d.agreed = max(d.agreed, id.Index(e.Index))
	return nil
}

// divergence is that this server's state is not the others'.
type divergence struct {
	index, agreed id.Index // agreed: the newest index at which it was the same, 0: not known
	first         id.Index // where it began, 0: not known
	own           state.Sum
	others        []byte
}

func (d *divergence) Error() string {
	where := ""
	switch {
	case d.first != 0:
		where = fmt.Sprintf("; event %d is the first after which it differs", d.first)
	case d.agreed != 0:
		where = fmt.Sprintf("; it was the same at index %d", d.agreed)
	}
	return fmt.Sprintf("the state at index %d has digest %x here and %x on a majority of the others%s: %v; do not start it from its own "+
		"directory again, make it anew from another server with varve make-mds --rebuild -r DIR", d.index, d.own, d.others, where, errDiverged)
}

func (d *divergence) Unwrap() error { return errDiverged }

// diverged stops the server for good: nothing more is applied or served, the reason is kept in the directory.
func (s *Server) diverged(err error) {
	s.divergedOnce.Do(func() {
		s.fsm.halt(err)
		l := s.lead.Swap(nil)
		s.mark(err)
		go func() {
			if l != nil {
				l.close()
			}
			if d := new(divergence); errors.As(err, &d) {
				err = s.narrowed(*d)
			}
			s.fatal(err)
		}()
	})
}

// mark leaves the reason in the directory, so that the server does not start from its wrong state.
func (s *Server) mark(err error) {
	m := marker{Kind: markDiverged, Reason: err.Error(), Index: uint64(s.fsm.index())}
	if werr := writeMarker(s.o.FS, s.o.Dir, m); werr != nil {
		s.log.Error("the reason why the server stops could not be kept in its directory", "err", werr)
	}
}

// narrowed returns d with the first index at which the sum differs from that of a server which has the right one, if it can be found.
func (s *Server) narrowed(d divergence) error {
	ctx, cancel := context.WithTimeout(s.ctx, narrowTimeout)
	defer cancel()
	select {
	case <-s.begun:
	case <-ctx.Done():
		return &d
	}
	oldest, agreed := s.fsm.remembered()
	low := max(oldest, agreed+1)
	d.agreed = agreed
	for _, addr := range s.otherAddrs() {
		c, _, err := wire.Dial(ctx, addr, s.peerHello(), nil, wire.Options{Class: wire.ClassMeta, Network: s.o.Network})
		if err != nil {
			continue
		}
		first, ok := s.narrowWith(ctx, c, &d, low)
		c.Close()
		if ok && (first > low || low == agreed+1) {
			d.first = first
			break
		}
	}
	return &d
}

// narrowWith searches [low, d.index]. A server that does not remember all of that, or has not the digest that d wants, is no help.
func (s *Server) narrowWith(ctx context.Context, c *wire.Conn, d *divergence, low id.Index) (id.Index, bool) {
	known := true
	differs := func(index id.Index, want []byte) bool {
		own, ok := s.fsm.sumAt(index)
		reply := new(msg.StateDigestReply)
		if ok && known {
			code, err := c.CallMessage(ctx, wire.StateDigest, wire.ClassMeta, &msg.StateDigest{Kind: state.DigestSum, At: uint64(index)}, reply)
			ok = err == nil && code == fserr.OK && (want == nil || bytes.Equal(want, reply.Digest))
		}
		known = known && ok
		return !known || !bytes.Equal(own[:], reply.Digest)
	}
	if !differs(d.index, d.others) || !known || low > d.index {
		return 0, false
	}
	n := sort.Search(int(d.index-low), func(i int) bool { return differs(low+id.Index(i), nil) })
	return low + id.Index(n), known
}

func (s *Server) otherAddrs() []string {
	var out []string
	for _, m := range s.raft.GetConfiguration().Configuration().Servers {
		if m.Suffrage == raft.Voter && m.ID != s.raftID {
			out = append(out, string(m.Address))
		}
	}
	return out
}

// compared is what the leader knows of the last rounds.
type compared struct {
	mu      sync.Mutex
	index   id.Index            // of the last round that a majority agreed in
	logged  id.Index            // of the last Digest event made here
	at      time.Duration       // when that was, on the boot-time clock
	differs map[string]struct{} // addresses of servers that differed from the majority
}

func (c *compared) differed(addr string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.differs[addr]
	return ok
}

// compareDigests is one round; it makes a Digest event if one is due.
func (l *leadership) compareDigests() {
	s, c := l.s, &l.compared
	index, changed := s.fsm.newest()
	now := bootNow()
	c.mu.Lock()
	if c.at == 0 {
		c.at = now // a new leader's first Digest event comes an interval after its beginning
	}
	quiet := changed <= c.index
	due := changed > c.logged && (index >= c.logged+digestEvery || now-c.at >= s.o.DigestInterval)
	c.mu.Unlock()
	own, ok := s.fsm.sumAt(index)
	if !ok || quiet && !due {
		return
	}
	others := s.otherAddrs()
	votes, wrong, silent := l.poll(index, own, others)
	majority := (len(others)+1)/2 + 1
	switch winner, n := most(votes); {
	case n < majority:
		if len(votes) > 1 {
			s.log.Error("the states of the metadata servers differ, and no majority agrees; compare their journals with varve journal verify",
				"index", index, "own", fmt.Sprintf("%x", own), "differ", wrong, "silent", silent)
		}
		return
	case winner != own:
		s.diverged(&divergence{index: index, own: own, others: winner[:]})
		return
	}
	c.mu.Lock()
	c.index = index
	fresh := false
	differs := make(map[string]struct{})
	for _, addr := range wrong {
		_, known := c.differs[addr]
		fresh = fresh || !known
		differs[addr] = struct{}{}
	}
	for _, addr := range silent {
		if _, was := c.differs[addr]; was {
			differs[addr] = struct{}{} // it stopped, until somebody makes it anew
		}
	}
	c.differs = differs
	if due = due || fresh && c.logged < index; due {
		c.logged, c.at = index, now
	}
	c.mu.Unlock()
	if !due {
		return
	}
	ev := &event.Event{Body: &event.Event_Digest{Digest: &event.Digest{Index: uint64(index), Digest: own[:], Kind: state.DigestSum}}}
	reason := "interval"
	if fresh {
		reason = fmt.Sprintf("%v differs", wrong)
		s.log.Error("a metadata server's state differs from the others'; it is told to stop", "index", index, "servers", wrong)
	}
	if err := l.propose(ev, reason); err != nil {
		s.log.Debug("digest not proposed", "err", err)
	}
}

// poll asks the others for their sum at index, which they may have to get to first.
func (l *leadership) poll(index id.Index, own state.Sum, others []string) (votes map[state.Sum]int, wrong, silent []string) {
	ctx, cancel := context.WithTimeout(l.ctx, digestTimeout)
	defer cancel()
	var mu sync.Mutex
	votes = map[state.Sum]int{own: 1}
	together(others, func(addr string) error { // who does not answer has no vote
		sum, err := l.s.peers.sumAt(ctx, addr, index)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil:
			silent = append(silent, addr)
		case sum != own:
			wrong = append(wrong, addr)
			votes[sum]++
		default:
			votes[sum]++
		}
		return nil
	})
	return votes, wrong, silent
}

// most returns the sum with most votes.
func most(votes map[state.Sum]int) (winner state.Sum, n int) {
	for sum, v := range votes {
		if v > n || v == n && bytes.Compare(sum[:], winner[:]) < 0 {
			winner, n = sum, v
		}
	}
	return winner, n
}

// sumAt asks the server at addr, over the connection that watchPeers keeps.
func (p *peerStates) sumAt(ctx context.Context, addr string, index id.Index) (state.Sum, error) {
	p.mu.Lock()
	var conn *wire.Conn
	if x := p.peers[addr]; x != nil {
		conn = x.conn
	}
	p.mu.Unlock()
	if conn == nil || conn.Err() != nil {
		return state.Sum{}, fmt.Errorf("no connection to %s: %w", addr, fserr.Unavailable)
	}
	reply := new(msg.StateDigestReply)
	req := &msg.StateDigest{AtLeast: uint64(index), At: uint64(index), Kind: state.DigestSum}
	code, err := conn.CallMessage(ctx, wire.StateDigest, wire.ClassMeta, req, reply)
	if err == nil && code != fserr.OK {
		err = code
	}
	if err == nil && (reply.Index != uint64(index) || len(reply.Digest) != len(state.Sum{})) {
		err = fserr.Protocol // an older version answers with a digest of another kind
	}
	if err != nil {
		return state.Sum{}, fmt.Errorf("digest of %s at %d: %w", addr, index, err)
	}
	return state.Sum(reply.Digest), nil
}

// stateDigest waits for the index and returns the digest asked for.
func (s *Server) stateDigest(ctx context.Context, req *msg.StateDigest) (*msg.StateDigestReply, error) {
	if err := s.fsm.wait(ctx, s.ctx, id.Index(req.AtLeast)); err != nil {
		return nil, err
	}
	if req.At != 0 {
		sum, ok := s.fsm.sumAt(id.Index(req.At))
		if !ok {
			return nil, fmt.Errorf("digest at index %d: not remembered: %w", req.At, fserr.NotExist)
		}
		return &msg.StateDigestReply{Index: req.At, Digest: sum[:], Kind: state.DigestSum}, nil
	}
	c := s.fsm.clone()
	d, err := c.DigestOf(req.Kind)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", fserr.NotSupported, err)
	}
	return &msg.StateDigestReply{Index: uint64(c.Index()), Digest: d, Kind: req.Kind}, nil
}
