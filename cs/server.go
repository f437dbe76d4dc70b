package cs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"varve/cs/ssd"
	"varve/cs/store"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/netcheck"
	"varve/internal/planes"
	"varve/internal/waits"
	"varve/internal/wire"
)

// Server is one chunk server.
type Server struct {
	o        Options
	id       id.ServerID
	cluster  id.Cluster
	name     string
	log      *slog.Logger
	waits    *waits.Table // what requests wait for
	store    *store.Store
	journal  *ssd.FS // below the store; nil: none
	listener net.Listener
	planes   *planes.Planes
	addr     string      // where clients reach it
	book     planes.Book // where all reach it
	wire     *wire.Server
	finder   *finder
	member   *netcheck.Member
	peers    *peers
	lanes    lanes
	scratch  scratch
	lease    lease
	fences   *fences
	orders   *orders
	spreads  chan struct{} // one place for each who makes replicas equal
	locals   *locals
	stats    stats
	health   health
	accepted atomic.Bool // the leader has heard the whole report of this process once

	gate     *gate
	own      flow // of what the server does by itself
	payload  payload
	reactors *reactors // nil: goroutines serve all
	dataPath string    // how data requests are served, for people
	rebuilds *semaphore.Weighted
	copying  copying
	nic      nicsUse // of heartbeats alone
	verifies *semaphore.Weighted

	auth         atomic.Pointer[auth] // nil: the cluster is insecure
	encrypt      atomic.Uint32        // what is to be with data, see encrypt.go
	capabilities capabilities
	leading      atomic.Pointer[wire.Conn] // to the leader, while it is registered there

	identityMu sync.Mutex
	identity   identity

	ctx     context.Context // ends with the server
	cancel  context.CancelFunc
	closing atomic.Bool
	end     sync.Once
	ended   chan struct{} // closed when the server has ended
	endErr  error         // set before ended is closed
	work    sync.WaitGroup
}

// shutdownTimeout bounds an orderly end that the end of Run's context asked for.
const shutdownTimeout = 30 * time.Second

// Open opens the directory of a chunk server and listens; nothing is served before Run. A directory that another
// process has open is refused.
func Open(o Options) (*Server, error) {
	o, d, err := whose(o)
	if err != nil {
		return nil, err
	}
	if !o.Cluster.IsZero() && d.cluster() != o.Cluster || o.Name != "" && d.Name != o.Name {
		return nil, fmt.Errorf("%s belongs to cluster %s (%s): %w", o.Dir, d.Name, d.Cluster, fserr.WrongCluster)
	}
	if d.Retired {
		return nil, d.retired(o.Dir)
	}
	if d.Server == 0 {
		return nil, fmt.Errorf("%s was never registered: repeat make-cs: %w", o.Dir, fserr.NotReady)
	}
	if o.Addr != "" {
		d.Addr = o.Addr
	}
	at, err := d.takeNet(&o)
	if err != nil {
		return nil, fmt.Errorf("chunk server of %s: %w; correct it with --net", o.Dir, err)
	}
	secured, err := d.secure(&o)
	if err != nil {
		return nil, err
	}
	var aside wire.Network
	if !at.IsZero() {
		aside = wire.Bound(o.Network, func(wire.Class, netip.AddrPort) (netip.AddrPort, string) { return netip.AddrPort{}, "" })
	}
	if o.Memory != 0 {
		d.Memory = o.Memory
	} else if o.Memory = d.Memory; o.Memory == 0 {
		o.Memory = DefaultMemory
	}
	own, err := ownMemory(o.Memory, d.journalBytes(o))
	if err != nil {
		return nil, err
	}
	div := divide(own)
	if o.LocalChunks == 0 {
		o.LocalChunks = div.locals
	}
	locals := newLocals(&o)
	so := d.storeOptions(o)
	so.Board = locals.board
	if so.MaxOpen == 0 {
		so.MaxOpen = div.tables
	}
	if so.Stages == 0 {
		so.Stages = div.stages
	}
	var self atomic.Pointer[Server]
	so.Busy = busyOf(&self)
	fsys, journal, err := d.openJournal(o)
	if err != nil {
		return nil, err
	}
	so.FS = fsys
	closeJournal := func() error {
		if journal == nil {
			return nil
		}
		return journal.Close()
	}
	st, err := store.Open(so)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the chunks in %s: %w", o.Dir, err), closeJournal())
	}
	l, addr, told, err := listen(&o, d.Addr, at)
	if err != nil {
		return nil, errors.Join(err, st.Close(), closeJournal())
	}
	pay, err := newPayload(&o, div)
	if err != nil {
		return nil, errors.Join(err, l.Close(), st.Close(), closeJournal())
	}
	g, err := newGate(maxOps, div.clients+div.peers)
	if err != nil {
		return nil, errors.Join(err, l.Close(), st.Close(), closeJournal(), pay.close())
	}
	s := &Server{
		o: o, id: d.Server, cluster: d.cluster(), name: d.Name, log: so.Logger, store: st, journal: journal, listener: l, planes: at, addr: addr, book: told, identity: d,
		fences: newFences(), orders: new(orders), spreads: make(chan struct{}, maxSpreads), locals: locals, ended: make(chan struct{}),
		gate: g, payload: pay,
		rebuilds: semaphore.NewWeighted(int64(o.Rebuilds)), verifies: semaphore.NewWeighted(maxVerifies),
	}
	s.waits = &waits.Table{Log: s.log}
	s.gate.waits, s.lanes.waits, s.fences.waits = s.waits, s.waits, s.waits
	self.Store(s)
	s.nic = newNICsUse(s.book.Addrs())
	s.fences.locals, s.fences.orders = locals, s.orders
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.lanes.conns = make(map[laneKey]*wire.Conn)
	s.member = s.newMember()
	s.peers = newPeers(s.cluster, s.id, &o)
	s.wire = &wire.Server{Accept: s.accept, Logger: s.log, MaxConns: div.conns}
	s.finder = &finder{cluster: s.cluster, version: o.Version, network: o.Network, logger: s.log, more: o.More, aside: aside}
	s.finder.learn(o.Metas)
	s.finder.learn(d.Metas)
	if err := errors.Join(locals.open(s), s.orders.open(o.FS, o.Dir, so.Boot, so.Logger), s.sweepAll()); err != nil {
		return nil, errors.Join(err, l.Close(), st.Close(), closeJournal(), pay.close())
	}
	if o.Net != "" {
		s.updateIdentity(func(x *identity) { x.Net = d.Net })
	}
	if err := s.openTrust(); err != nil {
		return nil, errors.Join(err, l.Close(), st.Close(), closeJournal(), pay.close())
	}
	s.reactors, s.dataPath = newReactors(s)
	s.log.Info("data requests are served", "by", s.dataPath)
	if secured {
		s.updateIdentity(func(*identity) {})
	}
	return s, nil
}

// ID returns the server's id.
func (s *Server) ID() id.ServerID { return s.id }

// Addr returns the address at which clients reach the server.
func (s *Server) Addr() string { return s.addr }

// Book returns all addresses at which the server is reached.
func (s *Server) Book() planes.Book { return s.book }

// listen listens on the address of each plane.
func listen(o *Options, addr string, at *planes.Planes) (l net.Listener, client string, told planes.Book, err error) {
	want := []string{addr}
	if !at.IsZero() {
		want = at.Listen(planes.Client, planes.Replication, planes.Repair)
	}
	l, bound, err := planes.Listen(context.Background(), o.Network, want)
	if err != nil {
		return nil, "", "", err
	}
	where := func(pl planes.Plane) string {
		if i := slices.Index(want, at.Addr(pl)); i > 0 {
			return bound[i]
		}
		return bound[0]
	}
	return l, bound[0], book(bound[0], where(planes.Replication), where(planes.Repair)), nil
}

// Run serves until Shutdown or Kill, or until ctx ends, which shuts the server down. It returns nil after an orderly
// end. It is called once.
func (s *Server) Run(ctx context.Context) error {
	if s.o.creds() == nil {
		s.log.Warn("serving without authentication: whoever reaches the address may read and write", "addr", s.Addr())
		if s.o.DataTLS {
			s.log.Warn("data is not encrypted, though that is asked for: it is where a cluster has security only", "see", "varve cluster secure")
		}
	}
	failed := make(chan error, 2)
	s.reactors.watch(failed)
	// Both are counted before the server can end, and end with it.
	if s.auth.Load() != nil || s.o.opening != nil {
		s.work.Go(s.keepAuth)
		s.work.Go(s.sweepCapabilities)
	}
	s.work.Add(3)
	go func() {
		defer s.work.Done()
		s.locals.run(s.ctx)
	}()
	go func() {
		defer s.work.Done()
		if err := s.wire.Serve(s.listener); err != nil {
			failed <- fmt.Errorf("accept connections on %s: %w", s.Addr(), err)
		}
	}()
	go func() {
		defer s.work.Done()
		if err := s.followLeader(s.ctx); err != nil {
			failed <- err
		}
	}()
	if s.o.Bonds != nil {
		s.work.Go(func() { s.peers.keepSpread(s.ctx) })
	}
	var err error
	select {
	case <-ctx.Done():
	case <-s.ctx.Done():
	case err = <-failed:
	}
	dctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	return errors.Join(err, s.Shutdown(dctx))
}

// Shutdown ends the server in order: requests under way are answered, everything is flushed, and the directory is left
// clean. If ctx ends first, the rest goes on in the background.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop(true)
	select {
	case <-s.ended:
		return s.endErr
	case <-ctx.Done():
		return fmt.Errorf("wait for requests to end and chunks to be flushed: %w: %w", fserr.Timeout, ctx.Err())
	}
}

// Kill ends the server as if the process had died: nothing is flushed and the store's lock stays held. It is for
// tests, which take the store's disk away.
func (s *Server) Kill() {
	s.stop(false)
	<-s.ended
}

// drainTimeout is how long an orderly end waits for requests under way before it cuts the connections.
const drainTimeout = 5 * time.Second

func (s *Server) stop(orderly bool) {
	s.end.Do(func() {
		s.closing.Store(true)
		s.listener.Close()
		s.locals.stop(orderly)
		go func() {
			defer close(s.ended)
			if orderly {
				ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
				_ = s.lease.drain(ctx) // nothing new is admitted since closing is set
				cancel()
			}
			s.cancel()
			s.wire.Close()
			s.peers.close()
			s.work.Wait()
			s.gate.close()
			s.endErr = errors.Join(s.reactors.close(), s.payload.close())
			if !orderly {
				s.store.Abandon()
				if s.journal != nil {
					s.journal.Abandon()
				}
			}
			if orderly {
				s.endErr = errors.Join(s.endErr, s.store.Close(), s.orders.close(true))
				if s.journal != nil {
					s.endErr = errors.Join(s.endErr, s.journal.Close())
				}
				s.locals.unmark()
				s.log.Info("chunk server stopped", "clean", s.endErr == nil)
			}
		}()
	})
}

// updateIdentity writes a changed identity. The server goes on if that fails: what it holds there is only where to begin.
func (s *Server) updateIdentity(change func(*identity)) {
	s.identityMu.Lock()
	defer s.identityMu.Unlock()
	d := s.identity.clone()
	change(&d)
	if err := d.write(s.o.FS, s.o.Dir); err != nil {
		s.log.Warn("identity not written, going on", "path", filepath.Join(s.o.Dir, identityName), "err", err)
		return
	}
	s.identity = d
}

func (s *Server) whoami() identity {
	s.identityMu.Lock()
	defer s.identityMu.Unlock()
	return s.identity.clone()
}
