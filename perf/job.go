package perf

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"varve/internal/disk"
)

// opKind is what an operation does.
type opKind uint8

const (
	opRead opKind = iota
	opWrite
	opSync
	opClone // of a whole file
	opCreate
	opStat
	opLookup
	opList // of a whole directory
	opRename
	opDelete
	opOpen // of a replay, as those that follow
	opClose
	opTruncate
	opAllocate
	opKinds
)

var opNames = [opKinds]string{"read", "write", "fsync", "clone", "create", "stat", "lookup", "list", "rename", "delete", "open", "close", "truncate",
	"fallocate"}

func (k opKind) String() string { return opNames[k] }

// counts reports whether operations of the kind are what a run is told to do. A flush only goes with them.
func (k opKind) counts() bool { return k != opSync }

// op is one operation to be done.
type op struct {
	kind  opKind
	block int64
	seq   uint64        // of a write
	due   time.Duration // since the start of the run; 0 in closed loop: at once
	file  entry         // of an operation on names
	to    uint64        // number that a rename gives it
}

// job gives out the operations of one job and keeps what its blocks should hold.
type job struct {
	o      *Options
	n      int // among the jobs of all hosts
	file   *file
	pool   pool
	run    uint64
	blocks int64
	all    []*job        // of this host
	arrive *arrivals     // in open loop; nil in closed loop
	placer placer        // of random patterns
	names  *names        // of a load on names; it has no blocks then, and no placer
	until  time.Duration // no operation is due at or after it; 0: no limit

	mu     sync.Mutex // guards what follows
	rng    *rand.Rand
	given  int64 // operations given out, without fsyncs
	cursor int64 // next block in order
	seq    uint64
	writes int
	owed   int    // fsyncs that are due
	state  *state // of the blocks, nil without Verify
}

func newJob(o *Options, n int, f *file, p pool, run uint64) *job {
	j := &job{
		o: o, n: o.job(n), file: f, pool: p, run: run, blocks: o.Size / max(o.BlockSize, 1), until: o.total(),
		rng: rand.New(rand.NewPCG(o.Seed, uint64(o.job(n)))),
	}
	if o.Rate > 0 {
		j.arrive = newArrivals(o, j.n)
	}
	if f.names != nil {
		j.names, j.blocks = f.names, int64(o.Files)
		return j
	}
	if o.CloneOf != "" {
		j.blocks = 1
		return j
	}
	j.placer, _ = o.Dist.parse(j.blocks, o.Seed+uint64(j.n)) // Validate has parsed it
	if o.Verify {
		j.state = &state{blocks: make([]span, j.blocks), busy: map[int64]struct{}{}, faulty: map[int64]uint64{}}
	}
	return j
}

// next returns the next operation, false if there is none left. Each must be given back to done.
func (j *job) next() (op, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.owed > 0 {
		j.owed--
		return op{kind: opSync}, true
	}
	if j.until == 0 && j.given >= j.blocks {
		return op{}, false
	}
	if j.o.CloneOf != "" {
		j.given++
		return op{kind: opClone}, j.given == 1
	}
	var o op
	if j.arrive != nil {
		if o.due = j.arrive.due; j.until > 0 && o.due >= j.until {
			return op{}, false
		}
		j.arrive.next()
	}
	j.given++
	if j.names != nil {
		given, ok := j.names.choose(o, j.rng)
		if !ok && j.arrive != nil {
			j.until = o.due // what was due later is not missed: there was nothing left to do
		}
		return given, ok
	}
	if j.o.RW.writes() && (j.o.RW != RandRW || j.rng.IntN(100) >= j.o.ReadPercent) {
		o.kind = opWrite
	}
	o.block = j.place()
	if o.kind == opWrite {
		j.seq++
		o.seq = j.seq
		j.state.begin(o)
	}
	return o, true
}

// place chooses a block. Under Verify no two operations under way share one, so that what it holds is known; Validate sees
// to it that at least half of the blocks are free.
func (j *job) place() int64 {
	b := j.cursor
	if j.o.RW.random() {
		b = j.placer.place(j.rng)
	}
	for !j.state.take(b) {
		b = (b + 1) % j.blocks
	}
	j.cursor = (b + 1) % j.blocks
	return b
}

// done ends an operation that next gave out. The outcome err is nil if it was done.
func (j *job) done(o op, err error) {
	if j.names == nil && j.state == nil && (o.kind != opWrite || j.o.FsyncEvery == 0) {
		return // nothing depends on it
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if o.kind == opSync {
		return
	}
	if j.names != nil {
		if j.names.done(o, err) {
			j.changed()
		}
		return
	}
	if j.state != nil {
		delete(j.state.busy, o.block)
	}
	if o.kind != opWrite || err != nil {
		return
	}
	j.state.end(o)
	j.changed()
}

// changed counts what a flush has to follow. The caller holds mu.
func (j *job) changed() {
	if j.writes++; j.o.FsyncEvery > 0 && j.writes%j.o.FsyncEvery == 0 {
		j.owed++
	}
}

// missed returns how many operations were due before at and were not given out.
func (j *job) missed(at time.Duration) int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.arrive == nil {
		return 0
	}
	left := int64(math.MaxInt64)
	if j.until > 0 {
		at = min(at, j.until)
	} else {
		left = j.blocks - j.given
	}
	return j.arrive.before(at, left)
}

// ready fills a worker's n-th buffer, before the first prepare.
func (j *job) ready(p []byte, n int) {
	if j.o.RW.writes() {
		j.pool.fill(p, uint64(j.n)<<48^uint64(n))
	}
}

// prepare makes p, which is ready, what the operation writes.
func (j *job) prepare(o op, p []byte) {
	switch n := uint64(j.n)<<48 ^ o.seq; {
	case o.kind != opWrite:
	case j.o.Verify:
		j.pool.seal(p, stamp{run: j.run, job: uint32(j.n), block: o.block, seq: o.seq})
	case j.o.Repeat:
	case j.o.RW == RandRW: // p may hold what was read, such as zeros
		j.pool.fill(p, n)
	default:
		renew(p, n)
	}
}

// inspect compares what the operation read with what its block should hold, and returns what is wrong.
func (j *job) inspect(o op, p []byte) *Fault {
	if j.state == nil || o.kind != opRead {
		return nil
	}
	return j.compare(o.block, p)
}

// compare returns what is wrong with a block, once for each write that should be there.
func (j *job) compare(block int64, p []byte) *Fault {
	j.mu.Lock()
	s := j.state.blocks[block]
	j.mu.Unlock()
	kind, detail, found := check(p, want{run: j.run, job: uint32(j.n), block: block, lo: s.lo, hi: s.hi})
	switch {
	case kind == "" && found.run != j.run:
		return nil
	case kind == Old && found.run == j.run && found.seq < s.seen:
		kind, detail = Duplicated, fmt.Sprintf("%s; write %d had been read here, so that the older one was done again, or is from an old copy", detail, s.seen)
	case kind == Misplaced && j.atHome(found):
		kind, detail = Duplicated, detail+", which is at its own place as well"
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if kind == "" {
		seen := &j.state.blocks[block].seen
		*seen = max(*seen, found.seq)
		return nil
	}
	if at, known := j.state.faulty[block]; known && at == s.lo {
		return nil // it was told
	}
	j.state.faulty[block] = s.lo
	return &Fault{Kind: kind, Job: j.n, Block: block, Path: j.file.path, Offset: j.file.base + block*j.o.BlockSize, Detail: detail}
}

// atHome reports whether the sector that s describes is also where it belongs.
func (j *job) atHome(s stamp) bool {
	i := slices.IndexFunc(j.all, func(x *job) bool { return uint32(x.n) == s.job })
	if i < 0 || s.run != j.run || s.block < 0 || s.block >= j.all[i].blocks || int64(s.sector) >= j.o.BlockSize/sectorSize {
		return false
	}
	p := disk.AlignedBuffer(int(j.o.BlockSize))
	if err := j.all[i].file.transfer(opRead, p, s.block*j.o.BlockSize); err != nil {
		return false
	}
	home, ok := readStamp(p[s.sector*sectorSize:][:sectorSize])
	return ok && home == s
}

// span says which writes a block may hold: that of number lo, the last acknowledged, to that of hi, the last begun. seen is the latest that was
// read from it.
type span struct{ lo, hi, seen uint64 }

// state is what the blocks of a job should hold. A nil state keeps nothing.
type state struct {
	blocks []span
	busy   map[int64]struct{} // blocks of operations under way, at most QD
	faulty map[int64]uint64   // blocks whose fault was told, and lo at that time
}

func (s *state) take(block int64) bool {
	if s == nil {
		return true
	}
	if _, taken := s.busy[block]; taken {
		return false
	}
	s.busy[block] = struct{}{}
	return true
}

func (s *state) begin(o op) {
	if s != nil {
		s.blocks[o.block].hi = o.seq
	}
}

func (s *state) end(o op) {
	if s != nil {
		s.blocks[o.block].lo = o.seq
	}
}

// layoutChunk is how many bytes are written at once when a file is laid out.
const layoutChunk = 1 << 20

// layOut writes the whole range of the job. step is told the offset of each part, and may end it.
func (j *job) layOut(step func(off int64) error, buffer []byte) error {
	perChunk := max(1, int64(len(buffer))/j.o.BlockSize)
	for b := int64(0); b < j.blocks; b += perChunk {
		if err := step(b * j.o.BlockSize); err != nil {
			return err
		}
		n := min(perChunk, j.blocks-b)
		chunk := buffer[:n*j.o.BlockSize]
		for i := range n {
			j.seq++
			o := op{kind: opWrite, block: b + i, seq: j.seq}
			p := chunk[i*j.o.BlockSize : (i+1)*j.o.BlockSize]
			j.pool.fill(p, uint64(j.n)<<48^o.seq)
			j.prepare(o, p)
			j.state.begin(o)
			j.state.end(o)
		}
		if err := j.file.transfer(opWrite, chunk, b*j.o.BlockSize); err != nil {
			return fmt.Errorf("lay out %s: %w", j.file.path, err)
		}
	}
	if err := j.file.sync(); err != nil {
		return fmt.Errorf("lay out %s: %w", j.file.path, err)
	}
	return nil
}
