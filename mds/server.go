package mds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/netcheck"
	"varve/internal/planes"
	"varve/internal/waits"
	"varve/internal/wire"
	"varve/journal"
	"varve/mds/raftlog"
)

const (
	snapshotsKept   = 2
	trailingEntries = 4096 // kept in Raft's log behind a snapshot, for followers that lag
	raftConns       = 4    // pooled to each peer
	raftMaxEntries  = 64   // in one message, and in one round of Apply: Raft makes room for so many each time
	raftTimeout     = 5 * time.Second
	transferTimeout = 3 * time.Second
)

// Server is a metadata server that runs.
type Server struct {
	o        Options
	identity *identity
	log      *slog.Logger
	waits    *waits.Table // what requests wait for
	member   *netcheck.Member
	raftID   raft.ServerID
	unlock   func() error

	room      *room
	journal   *journal.Journal
	fsm       *fsm
	votes     *voteStore
	raftLog   *raftlog.Log
	transport *transport
	snapshots raft.SnapshotStore
	raft      *raft.Raft
	running   atomic.Pointer[raft.Raft] // raft, once it runs
	mux       *mux
	wire      *wire.Server

	lead    atomic.Pointer[leadership] // nil while another leads, or nobody
	clients clients
	pieces  checkpointPieces
	guard   *guard
	keys    keyHolder
	relays  chan struct{} // holds one for each question to a client that is under way
	whatIf  chan struct{} // holds one: whose forecast is being made
	peers   peerStates

	ctx          context.Context // ends when the server is to stop
	cancel       context.CancelFunc
	wg           sync.WaitGroup
	ended        chan struct{}
	raftEnded    chan struct{} // closed when Raft answers nothing any more
	once         sync.Once
	divergedOnce sync.Once
	begun        chan struct{} // closed when Raft runs

	mu  sync.Mutex
	err error // why it ended
}

func raftID(m id.MetaID) raft.ServerID { return raft.ServerID(m.String()) }

// Open starts the server in the directory.
func Open(o Options) (*Server, error) {
	o = o.withDefaults()
	if err := o.validate(false); err != nil {
		return nil, err
	}
	d, err := readIdentity(o.FS, o.Dir)
	if err != nil {
		return nil, err
	}
	if o.Name != "" && o.Name != d.Name {
		return nil, fmt.Errorf("%s belongs to cluster %q, not to %q; give the right directory with -r: %w", o.Dir, d.Name, o.Name, fserr.WrongCluster)
	}
	if m, err := readMarker(o.FS, o.Dir); err != nil || m != nil {
		if err == nil {
			err = m.refusal(o.Dir, d)
		}
		return nil, err
	}
	unlock, err := o.FS.Lock(filepath.Join(o.Dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("stop the metadata server that uses the directory first: %w", err)
	}
	if err := errors.Join(d.moveTo(&o), d.secure(&o)); err != nil {
		return nil, errors.Join(err, unlock())
	}
	o.Addr = d.Addr
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{
		o: o, identity: d, log: o.Logger.With("mds", d.server().String()), raftID: raftID(d.server()), unlock: unlock,
		ctx: ctx, cancel: cancel, ended: make(chan struct{}), raftEnded: make(chan struct{}), begun: make(chan struct{}),
		whatIf: make(chan struct{}, 1), relays: make(chan struct{}, maxRelays),
	}
	s.waits = &waits.Table{Log: s.log}
	s.member = s.newMember()
	s.clients.conns = make(map[id.SessionID]*wire.Conn)
	if err := s.start(); err != nil {
		s.closeAll()
		return nil, err
	}
	return s, nil
}

// start brings up everything; what it has set when it fails is closed by closeAll.
func (s *Server) start() error {
	var err error
	if s.room, err = newRoom(s.o.FS, s.o.Dir, s.o.Reserve); err != nil {
		return err
	}
	s.journal, err = journal.Open(journal.Options{
		FS: s.o.FS, Dir: filepath.Join(s.o.Dir, "journal"), Cluster: s.identity.cluster(), SegmentBytes: s.o.SegmentBytes, Logger: s.log,
	})
	if err != nil {
		return err
	}
	if err := s.openStores(); err != nil {
		return err
	}
	rlog := &raftLogger{log: s.log}
	s.snapshots, err = raft.NewFileSnapshotStoreWithLogger(s.o.Dir, snapshotsKept, rlog)
	if err != nil {
		return err
	}
	logs := s.logStore()
	known, err := raft.HasExistingState(logs, s.votes, s.snapshots)
	if err != nil {
		return err
	}
	l, err := listen(s.ctx, &s.o, s.identity)
	if err != nil {
		return err
	}
	s.mux = newMux(l, s.identity.cluster(), s.log)
	key, err := readKey(s.o.FS, s.o.Dir, s.identity)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	s.keys.opening = s.o.opening
	s.keys.key.Store(key)
	s.mux.keys = &s.keys
	layer := &streamLayer{chanListener: s.mux.raft, cluster: s.identity.cluster(), addr: raft.ServerAddress(s.identity.Addr), network: s.o.Network, keys: &s.keys}
	s.transport = newTransport(layer, s.mux.appends, s.log, rlog, s.raftLog.Stable, s.streamEnded)
	s.fsm = newFSM(s.journal, s.log, s.fail)
	s.fsm.quit, s.fsm.persisted = s.ctx.Done(), s.spreadCheckpoints
	s.fsm.roomy = func() bool { return s.room.now() == diskOK }
	conf := s.raftConfig(rlog)
	switch {
	case known:
		// Before it stopped it may have promised not to vote.
		sleep(s.ctx, s.readLease())
	case s.journal.Last().Index > 0:
		return fmt.Errorf("%s has a journal but no raft log; remove the directory and join the server again", s.o.Dir)
	case s.identity.First:
		err := raft.BootstrapCluster(conf, logs, s.votes, s.snapshots, s.transport, raft.Configuration{Servers: []raft.Server{
			{ID: s.raftID, Address: raft.ServerAddress(s.identity.Addr)}}})
		if err != nil {
			return fmt.Errorf("start raft: %w", err)
		}
	}
	s.raft, err = raft.NewRaft(conf, s.fsm, logs, s.votes, s.snapshots, s.transport)
	if err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	if s.guard, err = newGuard(s); err != nil {
		return err
	}
	close(s.begun)
	s.running.Store(s.raft)
	s.wire = &wire.Server{Accept: s.accept, Started: s.started, Logger: s.log, Options: wire.Options{InFlight: maxConnRequests}}
	s.log.Info("metadata server started", "cluster", s.identity.Name, "addr", s.identity.book(), "index", s.fsm.index())
	if s.creds() == nil {
		s.log.Warn("the server answers anyone who reaches its port: the cluster is insecure")
	}
	s.spawn(func() { s.check(s.mux.run()) })
	s.spawn(func() { s.check(s.wire.Serve(s.mux.wire)) })
	s.spawn(s.watchLeadership)
	s.spawn(s.guard.watch)
	s.spawn(s.guard.tendOpening)
	s.spawn(s.watchPeers)
	s.spawn(s.watchMembership)
	s.spawn(s.syncJournal)
	s.spawn(s.retainJournal)
	s.spawn(s.tellMembers)
	s.spawn(s.announce)
	s.spawn(s.watchRoom)
	if s.o.Serving != nil {
		s.o.Serving(s.identity.book())
	}
	if s.o.Told != nil {
		s.spawn(s.tell)
	}
	return nil
}

func (s *Server) raftConfig(rlog *raftLogger) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = s.raftID
	c.HeartbeatTimeout = s.o.ElectionTimeout
	c.ElectionTimeout = s.o.ElectionTimeout
	c.LeaderLeaseTimeout = s.leaseTimeout()
	c.CommitTimeout = min(c.CommitTimeout, s.o.ElectionTimeout/10)
	c.NoLegacyTelemetry = true
	c.MaxAppendEntries = raftMaxEntries
	c.SnapshotThreshold = s.o.SnapshotEntries
	c.SnapshotInterval = s.o.SnapshotInterval
	c.TrailingLogs = min(trailingEntries, s.o.SnapshotEntries)
	c.Logger = rlog
	return c
}

// leaseTimeout is after what time without a majority a leader steps down, and the shortest time after its last contact at which a follower
// may stand for election or vote.
func (s *Server) leaseTimeout() time.Duration { return s.o.ElectionTimeout * 4 / 7 }

// readLease is how long a leader may answer from its state after a majority has confirmed it.
func (s *Server) readLease() time.Duration { return s.o.ElectionTimeout / 2 }

func (s *Server) spawn(fn func()) {
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		fn()
	}()
}

// syncJournal puts the journal on stable media every journalSync. Recovery does not need that, since the Raft log has what the
// journal lost; but only of what was synced before later records came can a reader tell damage from a torn end.
func (s *Server) syncJournal() {
	t := time.NewTicker(journalSync)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-s.ctx.Done():
			return
		}
		if err := s.journal.Sync(); err != nil && s.ctx.Err() == nil {
			s.fatal(err)
			return
		}
	}
}

func (s *Server) check(err error) {
	if err != nil {
		s.fatal(err)
	}
}

// fail stops the server because of what the log or the journal says.
func (s *Server) fail(err error) {
	if errors.Is(err, errDiverged) {
		s.diverged(err)
		return
	}
	s.fatal(err)
}

// fatal stops the server because of err. It does not wait.
func (s *Server) fatal(err error) {
	s.mu.Lock()
	first := s.err == nil
	if first {
		s.err = err
	}
	s.mu.Unlock()
	if first && s.ctx.Err() == nil {
		s.log.Error("metadata server stops", "err", err)
		go s.Kill()
	}
}

// Run waits until the server has ended, and returns why if it was not stopped on purpose.
func (s *Server) Run() error {
	<-s.ended
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func listen(ctx context.Context, o *Options, d *identity) (net.Listener, error) {
	l, _, err := planes.Listen(ctx, o.Network, d.listenAddrs())
	return l, err
}

// Addr returns the address at which other servers reach this one.
func (s *Server) Addr() string { return s.identity.Addr }

// Cluster returns the UUID and name of the cluster.
func (s *Server) Cluster() (id.Cluster, string) { return s.identity.cluster(), s.identity.Name }

// Leads reports whether the server leads and serves.
func (s *Server) Leads() bool { return s.lead.Load() != nil }

// Shutdown stops the server in order: a leader hands its leadership over first, if there is another voter.
func (s *Server) Shutdown(ctx context.Context) error {
	if l := s.lead.Load(); l != nil && s.otherVoters() > 0 {
		if err := s.handOver(ctx, l.best()); err != nil {
			s.log.Warn("leadership was not handed over; the others elect a leader when they miss this one", "err", err)
		}
	}
	s.Kill()
	return s.Run()
}

// Kill stops the server without handing anything over.
func (s *Server) Kill() {
	s.once.Do(func() {
		s.closeAll()
		s.log.Info("metadata server stopped", "index", s.fsm.index())
		close(s.ended)
	})
	<-s.ended
}

// closeAll releases what was opened, in reverse order.
func (s *Server) closeAll() {
	s.cancel()
	if s.mux != nil {
		s.mux.close()
	}
	l := s.lead.Swap(nil)
	if s.raft != nil {
		if err := s.raft.Shutdown().Error(); err != nil {
			s.log.Warn("raft did not stop", "err", err)
		}
	}
	close(s.raftEnded)
	if l != nil { // after Raft, so that no proposal of it is waited for
		l.close()
	}
	if s.wire != nil {
		s.wire.Close()
	}
	s.wg.Wait()
	s.peers.close()
	s.pieces.close()
	var errs []error
	if s.transport != nil {
		errs = append(errs, s.transport.Close())
	}
	if s.raftLog != nil {
		errs = append(errs, s.raftLog.Close())
	}
	if s.votes != nil {
		errs = append(errs, s.votes.close())
	}
	if s.fsm != nil && s.fsm.replay != nil {
		s.fsm.replay.Close()
	}
	if s.journal != nil {
		errs = append(errs, s.journal.Close())
	}
	errs = append(errs, s.unlock())
	if err := errors.Join(errs...); err != nil && !errors.Is(err, net.ErrClosed) {
		s.log.Warn("not everything closed in order", "err", err)
	}
}

func (s *Server) otherVoters() int {
	n := 0
	for _, m := range s.raftMembers() {
		if m.Suffrage == raft.Voter && m.ID != s.raftID {
			n++
		}
	}
	return n
}

// leaderAddr returns where the leader is, "" if that is not known.
func (s *Server) leaderAddr() string {
	addr, _ := s.raft.LeaderWithID()
	return string(addr)
}

// watchLeadership begins and ends leaderships as Raft says.
func (s *Server) watchLeadership() {
	for {
		var leads bool
		select {
		case leads = <-s.raft.LeaderCh():
		case <-s.ctx.Done():
			if l := s.lead.Swap(nil); l != nil {
				l.close()
			}
			return
		}
		if l := s.lead.Swap(nil); l != nil {
			s.log.Info("leadership lost", "term", l.term, "leader", s.leaderAddr())
			l.close()
		}
		if leads {
			s.gain()
		}
	}
}

// gain makes a leadership, once everything that earlier leaders committed is applied here.
func (s *Server) gain() {
	for s.ctx.Err() == nil && s.raft.State() == raft.Leader && s.fsm.halted.Load() == nil {
		if err := s.await(s.raft.Barrier(raftTimeout)); err != nil {
			s.log.Debug("barrier failed", "err", err)
			sleep(s.ctx, 10*time.Millisecond)
			continue
		}
		if s.leaveLead() {
			return
		}
		l, err := newLeadership(s)
		if err != nil {
			s.log.Warn("cannot lead yet", "err", err)
			sleep(s.ctx, 100*time.Millisecond)
			continue
		}
		s.log.Info("leads", "term", l.term, "index", s.fsm.index())
		s.lead.Store(l)
		l.run()
		return
	}
}
