package mds

import (
	"maps"
	"slices"
	"time"

	"varve/internal/id"
	"varve/internal/latency"
	"varve/internal/wire/msg"
	"varve/mds/plan"
	"varve/mds/settings"
	"varve/mds/state"
	"varve/mds/throttle"
)

const (
	// lookInterval is how often the rate of repair is decided anew, and who is slow.
	lookInterval = time.Second
	// looksKept is how many looks the p99 of guests is taken over.
	looksKept = 3
	// leastServerRate is what rebuilds to one server may copy in a second in any case, so that a chunk is done within minutes.
	leastServerRate = 256 << 10
	// leastRate is what all rebuilds may copy in a second in any case; leastShare the same as a part, 1 in so many, of the most, and urgentLeastShare
	// while a chunk has one replica left.
	leastRate        = 1 << 20
	leastShare       = 128
	urgentLeastShare = 32
	// maxPeersTold bounds the servers of which one report tells.
	maxPeersTold = 1024
)

// Indexes of what throttle.Sample has of guests.
const (
	asReaders = iota // as clients see it
	asWriters
	asServers
)

// job is a step of the planner under way.
type job struct {
	plan.Action
	since        time.Duration // bootNow
	copied, left uint64        // bytes, as the target told last
}

// did counts what repair has done under this leader.
type did struct {
	rebuilt, failed, removed uint64 // replicas rebuilt; steps that failed; replicas taken out
	copied                   uint64 // bytes, as servers tell
}

// ended counts a step. The caller holds l.mu.
func (d *did) ended(kind plan.Kind, err error) {
	switch {
	case err != nil:
		d.failed++
	case kind == plan.Join:
		d.rebuilt++
	default:
		d.removed++
	}
}

// met adds up what was waited for one server.
type met struct {
	requests uint64
	waited   time.Duration // p90 times requests
}

// pacing is what decides how fast repair goes and who is slow: what was told since the last look, and what came of it.
type pacing struct {
	budget throttle.Budget
	watch  throttle.Watch

	now    [throttle.Views][]uint32            // latencies told since the last look
	last   [looksKept][throttle.Views][]uint32 // of the last looks
	met    map[id.ServerID]met
	sample throttle.Sample // the worst of memory, link and heartbeat, and the sum of what was copied

	rate, most, perServer uint64 // bytes a second
	copying               float64
	guests                throttle.Guests // as the view seen has it
	seen                  int
}

func newPacing() pacing { return pacing{met: make(map[id.ServerID]met)} }

// noteServerLoad takes what a heartbeat tells. The caller holds l.mu.
func (l *leadership) noteServerLoad(c *chunkServer, r *msg.LoadReport) {
	if r == nil {
		return
	}
	p := &l.pacing
	p.now[asServers] = latency.Add(p.now[asServers], r.Latencies)
	p.sample.Memory = max(p.sample.Memory, r.MemoryPermille)
	p.sample.Link = max(p.sample.Link, r.LinkPermille)
	p.sample.Heartbeat = max(p.sample.Heartbeat, time.Duration(r.HeartbeatUs)*time.Microsecond)
	if c.told && r.Repaired > c.repaired {
		p.sample.Copied += r.Repaired - c.repaired
		l.did.copied += r.Repaired - c.repaired
	}
	c.told, c.repaired = true, r.Repaired
	p.notePeers(r.Peers)
	for _, x := range r.Rebuilds {
		if j := l.jobs[id.ChunkID(x.Chunk)]; j != nil && j.Target == c.id {
			j.copied, j.left = x.Copied, x.Left
		}
	}
}

func (p *pacing) notePeers(list []*msg.PeerLatency) {
	for _, x := range list[:min(len(list), maxPeersTold)] {
		server := id.ServerID(x.Server)
		m, known := p.met[server]
		if !known && len(p.met) >= maxChunkServers {
			continue
		}
		m.requests += uint64(x.Requests)
		m.waited += time.Duration(x.Requests) * min(time.Duration(x.P90Us)*time.Microsecond, time.Minute)
		p.met[server] = m
	}
}

// noteClientLoad takes what a renewal tells, and returns the servers that are slow.
func (l *leadership) noteClientLoad(r *msg.LoadReport) (slow []uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &l.pacing
	p.now[asReaders] = latency.Add(p.now[asReaders], r.GetLatencies())
	p.now[asWriters] = latency.Add(p.now[asWriters], r.GetChanges())
	p.notePeers(r.GetPeers())
	for server := range l.servers {
		if p.watch.Slow(server) != "" {
			slow = append(slow, uint32(server))
		}
	}
	return slow
}

// look decides how fast repair may go from now on, and who is slow.
func (l *leadership) look() {
	var set struct {
		rate, server uint64
		factor       int
	}
	var members []id.ServerID
	urgent := false
	l.s.fsm.view(func(st *state.State) {
		set.rate, set.server = bytesSetting(st, settings.RepairRate), bytesSetting(st, settings.RepairServerRate)
		set.factor = countSetting(st, settings.SlowFactor)
		st.Degraded(func(c *state.Chunk) bool { // those with fewest replicas come first
			urgent = c.InSync() == 1 && c.Norm() > 1
			return false
		})
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	for server, c := range l.servers {
		if l.live(c) {
			members = append(members, server)
		}
	}
	p := &l.pacing
	if set.rate == 0 {
		set.rate = set.server * uint64(max(len(members), 1))
	}
	p.most, p.perServer = set.rate, set.server
	limits := throttle.Limits{Most: p.most, Least: max(leastRate, p.most/leastShare)}
	if urgent {
		limits.Least = max(leastRate, p.most/urgentLeastShare)
	}
	copy(p.last[1:], p.last[:])
	p.last[0], p.now = p.now, [throttle.Views][]uint32{}
	s := p.sample
	for i := range s.Guests {
		var all []uint32
		for _, w := range p.last {
			all = latency.Add(all, w[i])
		}
		s.Guests[i] = throttle.Guests{Requests: latency.Count(all), P99: latency.Quantile(all, 0.99)}
	}
	for p.seen = asReaders; p.seen < asServers && s.Guests[p.seen].Requests == 0; p.seen++ { // what most guests do is read
	}
	p.guests = s.Guests[p.seen]
	if l.joins > 0 && s.Copied == 0 && p.copying > 0 {
		s.Copied = 1 // heartbeats come twice a second at most: a look without one is not a repair that has ended
	}
	p.rate = p.budget.Step(s, limits)
	p.copying += (float64(p.sample.Copied)/lookInterval.Seconds() - p.copying) / 4
	if p.copying < 1 {
		p.copying = 0
	}
	p.sample = throttle.Sample{}
	var list []throttle.Met
	for server, m := range p.met {
		if m.requests > 0 {
			list = append(list, throttle.Met{Server: server, Requests: m.requests, P90: m.waited / time.Duration(m.requests)})
		}
	}
	clear(p.met)
	for _, server := range p.watch.Step(members, list, set.factor) {
		l.unsited.Add(1)
		if why := p.watch.Slow(server); why != "" {
			l.s.log.Info("chunk server slow: it gets no new data and reads go to others, but it is not lost", "cs", server, "cause", why)
		} else {
			l.s.log.Info("chunk server not slow any more", "cs", server)
		}
	}
}

// rateFor returns what rebuilds may copy to the server in a second: its share of the budget, which is that of all to whom something is copied. The
// caller holds l.mu.
func (l *leadership) rateFor(server id.ServerID) uint64 {
	p := &l.pacing
	if p.rate == 0 { // before the first look
		return leastRate
	}
	targets := map[id.ServerID]bool{server: true}
	for _, j := range l.jobs {
		if j.Kind == plan.Join {
			targets[j.Target] = true
		}
	}
	return max(min(p.rate/uint64(len(targets)), p.perServer), leastServerRate)
}

// coming returns how many bytes are still on their way to servers. The caller holds l.mu.
func (l *leadership) coming() map[id.ServerID]uint64 {
	if l.joins == 0 {
		return nil
	}
	out := make(map[id.ServerID]uint64)
	for _, j := range l.jobs {
		if j.Kind == plan.Join {
			out[j.Target] += j.Bytes - min(j.copied, j.Bytes)
		}
	}
	return out
}

// rebuildLimits returns how many rebuilds there may be in the cluster, and how many from or to one server.
func (l *leadership) rebuildLimits(st *state.State) (most, perServer int) {
	most, perServer = countSetting(st, settings.RepairRebuilds), countSetting(st, settings.RepairServerRebuilds)
	if most > 0 {
		return most, perServer
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.servers {
		if l.live(c) {
			most++
		}
	}
	return max(most, 2), perServer
}

// warn keeps what the planner cannot mend for as long as it says so.
func (l *leadership) warn(out plan.Plan, now time.Duration) {
	for _, w := range out.Warnings {
		l.addWarning(w.Text, now)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if out.Swept {
		maps.DeleteFunc(l.warnings, func(_ string, at time.Duration) bool { return now-at > warnFor })
	}
}

const (
	warnFor     = 10 * time.Second
	maxWarnings = 32
)

func (l *leadership) addWarning(text string, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.warnings[text]; known || len(l.warnings) < maxWarnings {
		l.warnings[text] = now
	}
}

// repairStatus says what repair does and what there is left to do.
func (l *leadership) repairStatus(st *state.State) *msg.RepairStatus {
	work := l.work(st)
	most, _ := l.rebuildLimits(st)
	now := bootNow()
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &l.pacing
	usual := p.budget.Usual(p.seen)
	r := &msg.RepairStatus{
		Rate: p.rate, Most: p.most, Copying: uint64(p.copying), Held: p.budget.Held(), Running: uint32(l.joins), MostRunning: uint32(most),
		GuestP99Us: uint32(p.guests.P99.Microseconds()), UsualP99Us: uint32(usual.Microseconds()), Warnings: slices.Sorted(maps.Keys(l.warnings)),
		CountingMs: max((now - l.since).Milliseconds(), 1), Rebuilt: l.did.rebuilt, Copied: l.did.copied, Failed: l.did.failed, Removed: l.did.removed,
	}
	eta := func(bytes uint64) int64 {
		switch {
		case bytes == 0:
			return 0
		case p.copying > 0:
			return int64(float64(bytes) / p.copying * 1000)
		}
		return -1
	}
	for _, w := range work {
		w.EtaMs = eta(w.Bytes)
		r.Left += w.Bytes
		r.Work = append(r.Work, w)
	}
	r.EtaMs = eta(r.Left)
	for _, j := range l.jobs {
		if len(r.Jobs) >= maxJobsTold {
			break
		}
		r.Jobs = append(r.Jobs, &msg.RepairJob{
			Chunk: uint64(j.Chunk), Class: j.Class.String(), Reason: j.Reason.String(), Target: uint32(j.Target), Source: uint32(j.Source), From: uint32(j.From),
			Bytes: j.Bytes, Copied: j.copied, RunningMs: (now - j.since).Milliseconds(),
		})
	}
	slices.SortFunc(r.Jobs, func(a, b *msg.RepairJob) int { return int(b.RunningMs - a.RunningMs) })
	return r
}

const (
	// maxJobsTold bounds the steps of which a status tells.
	maxJobsTold = 64
	// maxWorkSeen bounds the degraded chunks that are looked at to tell what is left; of more it is estimated.
	maxWorkSeen = 1 << 17
)

// work adds up what is left to be copied.
func (l *leadership) work(st *state.State) []*msg.RepairWork {
	var out []*msg.RepairWork
	find := func(class plan.Class, reason plan.Reason, server id.ServerID) *msg.RepairWork {
		for _, w := range out {
			if w.Class == class.String() && w.Reason == reason.String() && w.Server == uint32(server) {
				return w
			}
		}
		w := &msg.RepairWork{Class: class.String(), Reason: reason.String(), Server: uint32(server)}
		out = append(out, w)
		return w
	}
	seen := 0
	st.Degraded(func(c *state.Chunk) bool {
		class, reason, copies := plan.Restore, plan.BelowNorm, max(c.Norm()-c.InSync(), c.Joining())
		switch {
		case c.InSync() == 1 && c.Norm() > 1:
			class, reason = plan.Urgent, plan.LastReplica
		case c.InSync() < int(st.Policy(c.Ino).Min):
			class, reason = plan.Urgent, plan.BelowMin
		case c.InSync() >= c.Norm(): // a replica that moves, or one too many
			class, reason = plan.Tidy, plan.NotRebuilt
		}
		w := find(class, reason, 0)
		w.Chunks++
		w.Bytes += insideFile(st, c) * uint64(copies)
		seen++
		return seen < maxWorkSeen
	})
	if all := uint64(st.Counts().Degraded); seen > 0 && all > uint64(seen) {
		for _, w := range out {
			w.Chunks, w.Bytes = w.Chunks*all/uint64(seen), w.Bytes/uint64(seen)*all
		}
	}
	st.Servers(func(x *state.Server) bool {
		if !x.Leaving() {
			return true
		}
		chunks, bytes := leftOn(st, x.ID)
		if chunks > 0 {
			w := find(plan.Evacuate, plan.ServerDrained, x.ID)
			w.Chunks, w.Bytes = chunks, bytes
		}
		return true
	})
	return out
}

// leftOn returns how many chunks the server has, and how many bytes they are.
func leftOn(st *state.State, server id.ServerID) (chunks, bytes uint64) {
	st.ChunksOf(server, func(c *state.Chunk) bool {
		chunks++
		bytes += insideFile(st, c)
		return true
	})
	return chunks, bytes
}

// bytesSetting and countSetting return what is set, or the default of the table.
func bytesSetting(st *state.State, key string) uint64 {
	n, err := settings.Bytes(setOr(st, key))
	if err != nil {
		return 0
	}
	return uint64(n)
}

func countSetting(st *state.State, key string) int {
	n, err := settings.Count(setOr(st, key))
	if err != nil {
		return 0
	}
	return n
}

func setOr(st *state.State, key string) string {
	v := st.Config(key)
	if s, ok := settings.Find(key); ok && (v == "" || settings.Check(key, v) != nil) {
		return s.Default
	}
	return v
}
