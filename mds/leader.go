package mds

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/decide"
	"varve/mds/event"
	"varve/mds/plan"
	"varve/mds/state"
)

// leadership is what the server knows and does as the leader of one term.
type leadership struct {
	s       *Server
	term    uint64
	since   time.Duration   // bootNow
	ctx     context.Context // ends with the leadership
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	latches latchTable
	prop    *proposer
	grants  *grants
	turned  atomic.Pointer[turnedAway] // what is refused for want of room; nil: nothing

	// The lowest numbers not given out.
	nextIno, nextChunk, nextSession, nextServer, nextMeta atomic.Uint64
	seed                                                  atomic.Uint64 // of placement

	sites    atomic.Pointer[sites] // where new chunks are put
	unsited  atomic.Uint64         // counts what makes others fit, or fit no more
	planning sync.Mutex            // of planner; before mu
	planner  *plan.Planner
	replan   atomic.Bool // somebody is about to plan again

	mu       sync.Mutex
	closed   bool
	inflight map[requestKey]chan struct{}
	sessions map[id.SessionID]*session
	fences   map[id.SessionID]*fence
	servers  map[id.ServerID]*chunkServer
	given    map[id.ChunkID]int           // numbers of chunks from which on allocations under way give some out, and how many do from there
	unknown  map[copyKey]time.Duration    // reported chunks that the state does not know, since when
	asked    map[id.Ino]*asking           // see askSize
	unclean  map[id.ChunkID]*uncleanChunk // chunks with unclean in-sync replicas
	badTold  map[badBlock]struct{}        // bad blocks that there are events about
	mended   map[copyKey]time.Duration    // bootNow, when a replica was made to join for its bad blocks
	busy     map[id.ChunkID]struct{}      // rebuilds under way
	retry    map[id.ChunkID]backoff       // rebuilds that failed
	short    map[id.ChunkID]time.Duration // degraded chunks, since when
	jobs     map[id.ChunkID]*job          // steps of the planner under way
	joins    int                          // those of them that copy
	did      did
	leftMost map[id.ServerID]uint64   // bytes that there were to move away, of servers that are emptied
	warnings map[string]time.Duration // bootNow, when the planner said so last
	pacing   pacing
	locks    map[id.Ino]chan struct{} // closed when locks on the inode are released
	waiting  int                      // byte-range lock requests held

	compared compared
	tended   tended // of tendMembers alone
}

// tended is when members were looked at last, and how far the leader's state was then.
type tended struct {
	at    time.Duration // bootNow
	index uint64
}

type requestKey struct {
	session id.SessionID
	seq     uint64
}

type copyKey struct {
	server id.ServerID
	chunk  id.ChunkID
}

func newLeadership(s *Server) (*leadership, error) {
	l := &leadership{
		s: s, term: s.raft.CurrentTerm(), since: bootNow(),
		inflight: make(map[requestKey]chan struct{}), asked: make(map[id.Ino]*asking), sessions: make(map[id.SessionID]*session), fences: make(map[id.SessionID]*fence),
		servers: make(map[id.ServerID]*chunkServer), unknown: make(map[copyKey]time.Duration), given: make(map[id.ChunkID]int),
		unclean: make(map[id.ChunkID]*uncleanChunk), mended: make(map[copyKey]time.Duration), badTold: make(map[badBlock]struct{}), busy: make(map[id.ChunkID]struct{}), retry: make(map[id.ChunkID]backoff),
		short: make(map[id.ChunkID]time.Duration), jobs: make(map[id.ChunkID]*job), warnings: make(map[string]time.Duration), pacing: newPacing(),
		leftMost: make(map[id.ServerID]uint64),
		planner:  plan.NewPlanner(), locks: make(map[id.Ino]chan struct{}),
	}
	l.ctx, l.cancel = context.WithCancel(s.ctx)
	l.latches.waits = s.waits
	l.prop = newProposer(s)
	l.grants = newGrants(s.o.CacheLease, leaseSlack, l.since)
	if s.fsm.index() == 0 {
		if err := l.found(); err != nil {
			l.close()
			return nil, err
		}
	}
	if err := l.foundSecurity(); err != nil {
		l.close()
		return nil, err
	}
	now := bootNow()
	s.fsm.view(func(st *state.State) {
		l.nextIno.Store(uint64(st.NextIno()))
		l.nextChunk.Store(uint64(st.NextChunk()))
		l.nextSession.Store(uint64(st.NextSession()))
		l.nextServer.Store(uint64(st.NextServer()))
		l.nextMeta.Store(uint64(st.NextMeta()))
		st.Sessions(func(x *state.Session) bool {
			if x.Fenced {
				l.fences[x.ID] = newFence(now)
			} else {
				l.sessions[x.ID] = l.newSession(x.ID)
				l.grants.wild(x.ID)
			}
			return true
		})
		// Any of them may serve until its lease from the earlier leader has run out.
		st.Servers(func(x *state.Server) bool {
			if !x.Retired {
				l.servers[x.ID] = &chunkServer{id: x.ID, heard: now, down: now, beat: &msg.Heartbeat{}}
			}
			return true
		})
	})
	return l, nil
}

// found makes the first events of a new cluster.
func (l *leadership) found() error {
	d := l.s.identity
	if !d.First {
		return fmt.Errorf("the log is empty, and this is not the cluster's first server: %w", fserr.Unavailable)
	}
	cluster := d.cluster()
	uuid := d.uuid()
	for _, ev := range []*event.Event{
		{Body: &event.Event_ClusterInit{ClusterInit: &event.ClusterInit{Uuid: cluster[:], Name: d.Name, Perm: 0o755}}},
		{Body: &event.Event_MetaAdd{MetaAdd: &event.MetaAdd{Id: d.Server, Uuid: uuid, Addr: string(d.book())}}},
		{Body: &event.Event_ConfigSet{ConfigSet: &event.ConfigSet{Key: state.ConfigReplicas, Value: d.Replicas}}},
	} {
		if err := l.propose(ev, "the cluster is made"); err != nil {
			return err
		}
	}
	return nil
}

// run starts what goes on beside requests.
func (l *leadership) run() {
	l.weigh()
	l.mu.Lock()
	for session, f := range l.fences {
		l.goFence(session, f)
	}
	l.mu.Unlock()
	l.every(l.s.o.SessionLease/20, l.expireSessions())
	l.every(l.s.o.ServerTimeout/10, l.watchServers)
	l.every(l.s.o.RepairInterval/4, l.resolveUnclean)
	l.every(l.s.o.RepairInterval, l.repair)
	l.every(lookInterval, l.look)
	l.every(l.s.o.RepairInterval, l.collectGarbage)
	l.every(l.s.o.RepairInterval, l.settleAll)
	l.every(min(l.s.o.RepairInterval, l.s.o.DigestInterval), l.compareDigests)
	l.every(l.s.o.ElectionTimeout, l.tendMembers)
	l.spawn(l.endOrphans)
	l.every(tendSecurityEvery, l.tendSecurity)
}

// spawn runs fn on a goroutine that close waits for; not at all if the leadership is over.
func (l *leadership) spawn(fn func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spawnLocked(fn)
}

func (l *leadership) spawnLocked(fn func()) {
	if l.closed {
		return
	}
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		fn()
	}()
}

// every runs fn each period, one at a time.
func (l *leadership) every(period time.Duration, fn func()) {
	l.spawn(func() {
		for sleep(l.ctx, period) {
			fn()
		}
	})
}

// close ends the leadership: requests under way fail, connections of clients and chunk servers are cut so that they look for the
// next leader, and clients forget what they were granted.
func (l *leadership) close() {
	l.cancel()
	l.mu.Lock()
	l.closed = true
	for _, c := range l.servers {
		if c.conn != nil {
			c.conn.Close()
		}
	}
	l.mu.Unlock()
	l.s.clients.closeAll()
	l.prop.close()
	l.wg.Wait()
}

// propose fills in what the leader itself causes, takes back what sessions were granted of what ev changes, and returns when ev is applied.
// ev was decided under latches that the caller holds.
func (l *leadership) propose(ev *event.Event, reason string) error {
	if err := l.noRoom(); err != nil {
		return err
	}
	if ev.Time == 0 {
		ev.Time = l.s.o.Wall().UnixNano()
	}
	if ev.Cause == nil {
		ev.Cause = &event.Cause{Reason: reason}
	}
	done, err := l.takeBack(ev)
	if err != nil {
		return err
	}
	defer done()
	err = l.prop.propose(ev)
	var code fserr.Code
	if err != nil && !errors.As(err, &code) { // this server could not apply it; others have, or will: the client asks them
		err = fmt.Errorf("%w: %w", fserr.Unavailable, err)
	}
	return err
}

// leased reports whether what was read before the call was the newest there is.
func (l *leadership) leased() bool {
	now := bootNow()
	at, ok := l.confirmedAt(now)
	return ok && now-at < l.s.readLease()
}

func (l *leadership) confirmedAt(now time.Duration) (time.Duration, bool) {
	if l.ctx.Err() != nil || l.s.raft.State() != raft.Leader || l.s.lead.Load() != l {
		return 0, false
	}
	conf := l.s.raft.GetConfiguration().Configuration()
	return l.s.transport.confirmedAt(l.s.raftID, l.term, conf, now)
}

// confirmRead returns nil if what was read before the call may be answered: under the read lease, else after a majority has
// confirmed the leader once more.
func (l *leadership) confirmRead(ctx context.Context) error {
	if l.leased() {
		return nil
	}
	start := bootNow()
	defer l.s.waits.For("a majority to confirm the leader").End()
	for {
		if err := l.s.await(l.s.raft.VerifyLeader()); err != nil {
			return fmt.Errorf("confirm leadership: %w: %w", fserr.NotLeader, err)
		}
		if at, ok := l.confirmedAt(bootNow()); ok && at >= start || l.leased() {
			return nil
		}
		if l.ctx.Err() != nil || !sleep(ctx, 5*time.Millisecond) {
			return fmt.Errorf("waiting for a majority to confirm the leader: %w", fserr.NotLeader)
		}
	}
}

// env is what package decide asks of the leader, which looks at st. skip are servers not to place on.
func (l *leadership) env(st *state.State, skip ...id.ServerID) *decide.Env {
	return &decide.Env{
		Now:       l.s.o.Wall().UnixNano(),
		NextIno:   func() id.Ino { return id.Ino(l.nextIno.Add(1) - 1) },
		NextChunk: func() id.ChunkID { return id.ChunkID(l.nextChunk.Add(1) - 1) },
		Servers:   func(c id.ServerID) (string, bool) { return l.server(st, c) },
		Space:     func(norm int) (total, free uint64) { return l.space(st, norm) },
		Place: func(ino id.Ino, index uint32, norm int) []id.ServerID {
			seed := uint64(ino)<<20 ^ uint64(index) ^ l.seed.Add(1)<<40
			return l.sitesNow(st).Place(st, ino, seed, norm, skip...)
		},
	}
}
