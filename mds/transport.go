package mds

import (
	"cmp"
	"context"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"varve/internal/id"
)

// streamLayer carries Raft's connections over the server's one port.
type streamLayer struct {
	*chanListener
	cluster id.Cluster
	addr    raft.ServerAddress
}

var _ raft.StreamLayer = (*streamLayer)(nil)

// Addr implements net.Listener: what others are told.
func (s *streamLayer) Addr() net.Addr { return raftAddr(s.addr) }

type raftAddr string

func (raftAddr) Network() string  { return "tcp" }
func (a raftAddr) String() string { return string(a) }

// Dial implements raft.StreamLayer.
func (s *streamLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
	d.SetMultipathTCP(false)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", string(addr))
	if err != nil {
		return nil, err
	}
	if err := c.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		c.Close()
		return nil, err
	}
	if _, err := c.Write(append([]byte(raftMagic), s.cluster[:]...)); err != nil {
		c.Close()
		return nil, err
	}
	return c, c.SetWriteDeadline(time.Time{})
}

// leaseTransport notes when each follower was last sent something that it confirmed: such a follower neither stands for
// election nor votes until the election time-out has passed since. VerifyLeader of raft would not do: an answer that was
// under way when it was called satisfies it, however old the question is.
type leaseTransport struct {
	*raft.NetworkTransport

	mu        sync.Mutex
	term      uint64
	confirmed map[raft.ServerID]time.Duration // bootNow when it was sent, in term
}

// AppendEntries implements raft.Transport.
func (t *leaseTransport) AppendEntries(to raft.ServerID, addr raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	sent := bootNow()
	err := t.NetworkTransport.AppendEntries(to, addr, args, resp)
	if err == nil && resp.Success && resp.Term == args.Term {
		t.confirm(to, args.Term, sent)
	}
	return err
}

func (t *leaseTransport) confirm(from raft.ServerID, term uint64, sent time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if term < t.term {
		return
	}
	if term > t.term || t.confirmed == nil {
		t.term, t.confirmed = term, make(map[raft.ServerID]time.Duration)
	}
	t.confirmed[from] = max(t.confirmed[from], sent)
}

// confirmedAt returns the last moment at which a majority of the voters, self included, is known to have followed self
// in term; false if there was none.
func (t *leaseTransport) confirmedAt(self raft.ServerID, term uint64, conf raft.Configuration, now time.Duration) (time.Duration, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var at []time.Duration
	voters := 0
	for _, s := range conf.Servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if s.ID == self {
			at = append(at, now)
		} else if c, ok := t.confirmed[s.ID]; ok && t.term == term {
			at = append(at, c)
		}
	}
	need := voters/2 + 1
	if len(at) < need {
		return 0, false
	}
	slices.SortFunc(at, func(a, b time.Duration) int { return cmp.Compare(b, a) })
	return at[need-1], true
}
