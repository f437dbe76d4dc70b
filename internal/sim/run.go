package sim

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand"
	"slices"
	"strings"
	"sync"
	"time"

	"varve/cs/repl"
	"varve/cs/store"
	"varve/internal/chunk"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/settings"
)

// Options of a run.
type Options struct {
	Seed uint64
	// Log, if set, gets the story of a run that finds something; with All, of every run.
	Log io.Writer
	All bool
	// Begin, if set, is called when the run begins, after its cluster was made.
	Begin func()

	meddle  meddler       // plants a bug
	incline func(*config) // makes a run likelier to meet it
}

// Report is what became of a run.
type Report struct {
	Seed                 uint64
	Config               string
	Counts               counts
	Frames, Broken, Late uint64
	Virtual              time.Duration  // how long the run took on its own clock
	Trace                uint64         // a hash of what arrived when
	Findings             []string       // what must not be; nil: all is well
	Cover                map[string]int // what the run came to, and how often
}

const (
	// settleTime bounds how long repair may take once all faults are over.
	settleTime = 5 * time.Minute
	// longest bounds a run whose cluster does nothing any more.
	longest = 30 * time.Minute
)

// Run makes one run. It must be called in a bubble of package testing/synctest, with boottime.Now on the bubble's clock. An error means that
// there was nothing to judge.
func Run(ctx context.Context, t *Templates, o Options) (*Report, error) {
	rng := rand.New(rand.NewSource(int64(o.Seed)))
	cfg := newConfig(rng)
	if o.incline != nil {
		o.incline(&cfg)
	}
	x, err := t.get(ctx, cfg.shape)
	if err != nil {
		return nil, err
	}
	if o.Begin != nil {
		o.Begin()
	}
	w := &world{o: o, cfg: cfg, x: x, start: time.Now(), model: newModel(), fenced: make(map[uint64]time.Duration)}
	w.net = newNetwork(o.Seed, cfg.rules, w.note)
	w.net.meddle, w.net.cover = o.meddle, &w.cover
	var cancel, endLoad context.CancelFunc
	w.ctx, cancel = context.WithTimeout(ctx, longest)
	defer cancel()
	w.loading, endLoad = context.WithCancel(w.ctx)
	defer endLoad()
	err = w.run(rng, endLoad)
	cancel()
	w.tearDown()
	r := &Report{Seed: o.Seed, Config: cfg.String(), Counts: w.counts, Frames: w.net.stats.frames, Broken: w.net.stats.broken, Late: w.net.stats.late,
		Virtual: time.Since(w.start), Trace: w.net.stats.trace}
	if err == nil {
		if !cfg.shared {
			w.model.fence(w.grants)
		}
		w.model.end(w.fenced)
		w.compareReplicas()
	} else {
		w.model.faults = append(w.model.faults, err.Error())
	}
	r.Findings = w.model.check()
	r.Cover = w.cover.all()
	if o.Log != nil && (o.All || len(r.Findings) > 0) {
		fmt.Fprintf(o.Log, "seed %d: %s\n%s\n", o.Seed, r.Config, strings.Join(w.events, "\n"))
	}
	return r, nil
}

func (w *world) run(rng *rand.Rand, endLoad func()) error {
	for i, d := range w.x.metaDisks {
		w.metas = append(w.metas, &metaNode{process: newProcess(w, fmt.Sprint("m", i+1), metaIP(i), d), i: i})
	}
	for i, d := range w.x.serverDisks {
		w.servers = append(w.servers, &serverNode{process: newProcess(w, fmt.Sprint("s", i+1), serverIP(i), d), i: i})
	}
	w.startAll()
	calm := w.net.rules
	w.net.setRules(rules{})
	if err := w.makeFiles(w.ctx); err != nil {
		return fmt.Errorf("make the files: %w", err)
	}
	w.net.setRules(calm)
	var owners []*owner
	for i := range w.cfg.clients {
		o := &owner{w: w, i: i, ip: fmt.Sprintf("10.0.2.%d", i+1), op: make(chan struct{}, 1)}
		for f := range w.cfg.files {
			if w.cfg.shared || f%w.cfg.clients == i {
				o.files = append(o.files, f)
			}
		}
		if len(o.files) == 0 {
			continue
		}
		owners = append(owners, o)
		if err := o.next(w.ctx); err != nil {
			return fmt.Errorf("first client: %w", err)
		}
	}
	w.misfortunes(rng, owners)
	return w.afterwards(owners, endLoad)
}

// startAll starts whatever does not run.
func (w *world) startAll() {
	var wg sync.WaitGroup
	for _, m := range w.metas {
		wg.Go(m.start)
	}
	for _, s := range w.servers {
		wg.Go(s.start)
	}
	wg.Wait()
}

// misfortunes has happen what the plan says, for as long as the run is active.
func (w *world) misfortunes(rng *rand.Rand, owners []*owner) {
	begin := time.Now()
	var wg sync.WaitGroup
	var end time.Duration
	black := time.Duration(rng.Int63n(int64(w.cfg.active)))
	for _, f := range w.plan(rng, owners) {
		if w.cfg.family == blackout && f.at+f.lasts > black {
			f.lasts = max(0, black-f.at)
		}
		end = max(end, f.at)
		wg.Go(func() {
			_ = pause(w.ctx, f.at-time.Since(begin))
			w.note("--- %s for %v", f.what, f.lasts)
			w.mu.Lock()
			w.counts.Faults++
			w.mu.Unlock()
			w.cover.count("fault: " + f.kind())
			f.begin()
			if f.end != nil {
				_ = pause(w.ctx, f.lasts)
				w.note("--- %s: over", f.what)
				f.end()
			}
		})
	}
	if w.cfg.family == blackout {
		_ = pause(w.ctx, black-time.Since(begin))
		w.blackout(owners)
	}
	_ = pause(w.ctx, w.cfg.active-time.Since(begin))
	wg.Wait()
}

// blackout takes everybody's power away at one instant, and gives it back.
func (w *world) blackout(owners []*owner) {
	w.note("--- blackout")
	for _, o := range owners {
		o.op <- struct{}{}
		for _, a := range append(o.old, o.app) {
			if a != nil {
				a.kill(true)
			}
		}
		o.app, o.old = nil, nil
	}
	for _, s := range w.servers {
		s.crash(true)
	}
	for _, m := range w.metas {
		m.crash(true)
	}
	w.mu.Lock()
	w.model.blackout = w.clockLocked()
	w.mu.Unlock()
	_ = pause(w.ctx, time.Second)
	w.startAll()
	for _, o := range owners {
		if err := o.next(w.ctx); err != nil && w.ctx.Err() == nil {
			w.fault("client %d does not come back: %v", o.i, err)
		}
		<-o.op
	}
}

// afterwards waits until all is well, looks at everything, and stops the cluster in order.
func (w *world) afterwards(owners []*owner, endLoad func()) error {
	w.note("--- faults are over")
	w.net.settle()
	for _, s := range w.servers {
		s.d.SetCapacity(0)
	}
	w.startAll()
	endLoad()
	ended := make(chan struct{})
	go func() {
		w.load.Wait()
		close(ended)
	}()
	for _, o := range owners {
		for _, a := range o.old {
			a.kill(false)
		}
	}
	go func() {
		if pause(w.ctx, patience/8) == nil { // what those do that take so long
			w.net.tell(true)
			_ = pause(w.ctx, 20*time.Millisecond)
			w.net.tell(false)
		}
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		return fmt.Errorf("operations still wait %v after all faults were over", patience)
	}
	for _, o := range owners {
		if o.app != nil {
			if err := o.app.close(); err != nil {
				w.note("%s: %v", o.app.name, err)
			}
		}
	}
	last, err := w.newApp(w.ctx, "last", "10.0.2.251")
	if err != nil {
		return err
	}
	if err := w.quiesce(last); err != nil {
		return err
	}
	for range 2 {
		for f := range w.cfg.files {
			if err := w.readAll(last, f); err != nil {
				return err
			}
		}
	}
	if err := last.close(); err != nil {
		return fmt.Errorf("last client: %w", err)
	}
	for _, s := range w.servers {
		s.shutdown()
	}
	return nil
}

// quiesce returns when repair has nothing left to do.
func (w *world) quiesce(a *app) error {
	ctx, cancel := context.WithTimeout(w.ctx, settleTime)
	defer cancel()
	var st *msg.StatusReply
	var norm, least uint64
	if _, err := fmt.Sscanf(w.x.replicas, "%d:%d", &norm, &least); err != nil {
		return err
	}
	if err := a.c.SetConfig(ctx, settings.SessionGrace, "10s"); err != nil { // nobody comes back any more
		return err
	}
	calm := 0
	// What an allocation that came to nothing has left is removed when it is known for such, which may never be.
	patient := time.Now().Add(20 * time.Second)
	for {
		r, err := a.c.Status(ctx)
		if err == nil {
			st = r
			if len(r.Sessions) == 1 && r.Degraded == 0 && r.Joining == 0 && r.UnderMin == 0 && r.Garbage == 0 && allUp(r) && (held(r) == r.Chunks*norm || time.Now().After(patient)) {
				if calm++; calm == 5 {
					return nil
				}
			} else {
				calm = 0
			}
		}
		if pause(ctx, time.Second) != nil {
			return fmt.Errorf("repair does not end: after %v there are %d degraded chunks, %d below the minimum, %d joining, %d pieces of garbage, servers %v, sessions %v", settleTime,
				st.GetDegraded(), st.GetUnderMin(), st.GetJoining(), st.GetGarbage(), st.GetServers(), st.GetSessions())
		}
	}
}

func allUp(r *msg.StatusReply) bool {
	for _, s := range r.Servers {
		if s.State != "live" {
			return false
		}
	}
	return true
}

// held is how many chunks the servers hold.
func held(r *msg.StatusReply) (n uint64) {
	for _, s := range r.Servers {
		n += s.Chunks
	}
	return n
}

// readAll reads whatever may have been written of a file.
func (w *world) readAll(a *app, file int) error {
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	h, err := a.open(ctx, file, false)
	if err != nil {
		return err
	}
	for _, at := range areas {
		if err := a.readAt(ctx, a.name, h, file, at*cells, areaBlocks*cells); err != nil {
			return fmt.Errorf("read file %d when all faults are over: %w", file, err)
		}
	}
	return h.f.Release(ctx)
}

// compareReplicas looks at the disks of the stopped servers: all replicas of a chunk must hold the same.
func (w *world) compareReplicas() {
	type replica struct {
		server string
		epoch  id.Epoch
		state  repl.State
		sums   []uint32
	}
	all := make(map[id.ChunkID][]replica)
	for _, s := range w.servers {
		st, err := store.Open(store.Options{FS: s.d, Dir: "/cs", Cluster: w.x.cluster, Existing: true, SettleEvery: -1, CountAfter: -1, ScrubRate: -1})
		if err != nil {
			w.fault("chunks of %s: %v", s.name, err)
			continue
		}
		infos, _ := st.List(0, 1000)
		for _, i := range infos {
			sums, epoch, state, err := st.Table(i.ID)
			if err != nil {
				w.fault("table of chunk %v on %s: %v", i.ID, s.name, err)
				continue
			}
			if n, bad, _, err := st.Verify(i.ID); err != nil || bad > 0 {
				w.fault("chunk %v on %s: %d of %d blocks are bad: %v", i.ID, s.name, bad, n, err)
			}
			all[i.ID] = append(all[i.ID], replica{s.name, epoch, state, sums})
		}
		if err := st.Close(); err != nil {
			w.fault("close the chunks of %s: %v", s.name, err)
		}
	}
	for c, rs := range all {
		slices.SortFunc(rs, func(a, b replica) int { return cmp.Compare(b.epoch, a.epoch) })
		var norm, least int
		if _, err := fmt.Sscanf(w.x.replicas, "%d:%d", &norm, &least); err == nil && len(rs) > norm {
			rs = slices.DeleteFunc(rs, func(r replica) bool { return blank(r.epoch, r.sums) }) // of an allocation that came to nothing
		}
		if len(rs) == 0 {
			continue
		}
		if len(rs) != norm && !blank(rs[0].epoch, rs[0].sums) {
			w.fault("chunk %v has %d replicas, want %d", c, len(rs), norm)
		}
		for _, r := range rs[1:] {
			if r.state != rs[0].state { // epochs may differ: a replica hears of a higher one with the next message
				w.fault("chunk %v is %v on %s and %v on %s", c, rs[0].state, rs[0].server, r.state, r.server)
			}
			for b := range r.sums {
				if r.sums[b] != rs[0].sums[b] {
					w.fault("chunk %v block %d differs on %s and %s: checksums %08x and %08x", c, b%chunk.Blocks, rs[0].server, r.server, rs[0].sums[b], r.sums[b])
					break
				}
			}
		}
	}
}

// blank reports whether nothing was ever written to a chunk: it may be what an allocation has left that came to nothing.
func blank(e id.Epoch, sums []uint32) bool {
	return e == 1 && !slices.ContainsFunc(sums, func(s uint32) bool { return s != chunk.Hole })
}

// tearDown ends what still runs.
func (w *world) tearDown() {
	for _, s := range w.servers {
		s.crash(false)
	}
	for _, m := range w.metas {
		m.crash(false)
	}
	w.mu.Lock()
	apps := slices.Clone(w.apps)
	w.mu.Unlock()
	for _, a := range apps {
		a.kill(false)
	}
	w.load.Wait()
	w.ending.Wait()
	w.net.close()
}
