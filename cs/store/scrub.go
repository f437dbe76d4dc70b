package store

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"varve/cs/repl"
	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/id"
)

// ScrubStat is how far the scrub is. Counters are of the present pass, which may have begun in an earlier process.
type ScrubStat struct {
	Rate    int64     // bytes/s; 0: it is off
	Passes  uint64    // that came to their end, ever
	Passed  time.Time // when the last of them did; zero: none
	Took    time.Duration
	Running bool // a pass is under way
	Begun   time.Time
	Chunks  uint64
	Bytes   uint64
	Found   uint64 // bad blocks
	Done    float64
	Waiting bool // for guests
}

// scrub reads all chunks over and over, at a bounded rate and when nobody else wants the disk, so that rot is found while
// there are other replicas to mend it from. A chunk that is not open is read through a file of its own and without being put into memory, so
// that a pass does not push the guests' tables out.
type scrub struct {
	s    *Store
	file *scrubFile
	wake chan struct{} // holds one: something was set

	mu      sync.Mutex
	state   scrubState
	waiting bool
}

const (
	// scrubSave is how often the position is written down.
	scrubSave = 10 * time.Second
	// scrubPatience is how many times as long as a piece may take at the full rate the scrub waits for guests, so that a pass
	// comes to its end even on a server that is never idle.
	scrubPatience = 8
	// scrubPoll is the pause between looks whether guests are served.
	scrubPoll = 5 * time.Millisecond
	// maxScrubRate bounds what may be set.
	maxScrubRate = 1 << 40
)

// ScrubStat returns how far the scrub is.
func (s *Store) ScrubStat() ScrubStat {
	k := &s.scrub
	k.mu.Lock()
	st, waiting := k.state, k.waiting
	k.mu.Unlock()
	s.mu.RLock()
	at, _ := slices.BinarySearch(s.ids, st.chunk)
	n := len(s.ids)
	s.mu.RUnlock()
	out := ScrubStat{
		Rate: k.rate(st), Passes: st.passes, Passed: unixOrZero(st.passed), Took: time.Duration(st.took), Running: st.running,
		Begun: unixOrZero(st.begun), Chunks: st.chunks, Bytes: st.bytes, Found: st.found, Waiting: waiting,
	}
	if st.running && n > 0 {
		out.Done = (float64(at) + float64(st.block)/chunk.Blocks) / float64(n)
	}
	return out
}

func unixOrZero(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// SetScrub sets the rate in bytes/s, 0 for off, and remembers it; negative: as it was. With begin a new pass begins at once.
func (s *Store) SetScrub(rate int64, begin bool) error {
	if rate > maxScrubRate {
		return fmt.Errorf("scrub rate %d, limit %d", rate, int64(maxScrubRate))
	}
	k := &s.scrub
	k.mu.Lock()
	if rate >= 0 {
		k.state.rate, k.state.rateSet = rate, true
	}
	if begin {
		k.state.begin(time.Now().UnixNano())
	}
	st := k.state
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
	return k.file.save(st)
}

// begin starts a pass from the first chunk.
func (st *scrubState) begin(now int64) {
	st.running, st.begun = true, now
	st.chunk, st.block, st.chunks, st.bytes, st.found = 0, 0, 0, 0, 0
}

func (k *scrub) rate(st scrubState) int64 {
	if st.rateSet {
		return st.rate
	}
	return max(0, k.s.o.ScrubRate)
}

// run scrubs until the store is closed.
func (k *scrub) run() {
	st := &stage{buf: disk.AlignedBuffer(stageSize)}
	saved := time.Now()
	if !k.pause(k.s.o.ScrubDelay, true) {
		return
	}
	for {
		k.mu.Lock()
		now := time.Now()
		rate, running, next := k.rate(k.state), k.state.running, k.state.chunk
		due := time.Unix(0, k.state.begun).Add(k.s.o.ScrubEvery)
		if rate > 0 && !running && (k.state.begun == 0 || now.After(due)) {
			k.state.begin(now.UnixNano())
			running, next = true, 0
		}
		k.mu.Unlock()
		switch {
		case rate == 0 || !running:
			wait := max(due.Sub(now), time.Second)
			if rate == 0 {
				wait = time.Hour
			}
			if !k.pause(min(wait, time.Hour), true) {
				return
			}
			continue
		case k.s.failure() != nil:
			return
		}
		c, ok := k.s.next(next)
		if !ok {
			k.ended()
			saved = time.Now()
			continue
		}
		if !k.chunk(c, st) {
			return
		}
		if time.Since(saved) > scrubSave {
			saved = time.Now()
			k.save()
		}
	}
}

// next returns the first chunk with an id of at least from.
func (s *Store) next(from id.ChunkID) (id.ChunkID, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	i, _ := slices.BinarySearch(s.ids, from)
	if i == len(s.ids) {
		return 0, false
	}
	return s.ids[i], true
}

// ended notes that a pass came to its end.
func (k *scrub) ended() {
	k.mu.Lock()
	st := &k.state
	now := time.Now().UnixNano()
	st.running, st.passed, st.took = false, now, now-st.begun
	st.passes++
	st.chunk, st.block = 0, 0
	done := *st
	k.mu.Unlock()
	k.s.o.Logger.Info("scrub came to its end", "dir", k.s.o.Dir, "chunks", done.chunks, "bytes", done.bytes, "found", done.found,
		"took", time.Duration(done.took).Round(time.Millisecond))
	k.save()
}

func (k *scrub) save() {
	k.mu.Lock()
	st := k.state
	k.mu.Unlock()
	if err := k.file.save(st); err != nil && !errors.Is(err, disk.ErrPowerOff) {
		k.s.o.Logger.Warn("position of the scrub not written, going on", "dir", k.s.o.Dir, "err", err)
	}
}

// pause waits for d, or until something is set if wake says so. It returns false when the store is closed.
func (k *scrub) pause(d time.Duration, wake bool) bool {
	var set chan struct{}
	if wake {
		set = k.wake
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-k.s.stop:
		return false
	case <-set:
	case <-t.C:
	}
	return true
}

// pace waits so long that n bytes since start are no more than the rate allows, and longer if guests are served. It returns false when
// the store is closed.
func (k *scrub) pace(n int64, start time.Time) bool {
	k.mu.Lock()
	rate := k.rate(k.state)
	k.mu.Unlock()
	if rate <= 0 {
		return k.pause(0, false)
	}
	share := time.Duration(float64(n) / float64(rate) * float64(time.Second))
	if !k.pause(share-time.Since(start), false) {
		return false
	}
	for k.s.o.Busy != nil && k.s.o.Busy() && time.Since(start) < scrubPatience*share {
		k.setWaiting(true)
		if !k.pause(min(scrubPoll, share), false) {
			return false
		}
	}
	k.setWaiting(false)
	return true
}

func (k *scrub) setWaiting(w bool) {
	k.mu.Lock()
	k.waiting = w
	k.mu.Unlock()
}

// chunk scrubs one chunk from where the state is on. It returns false when the store is closed or has failed. A pass that was begun anew
// meanwhile goes on from its own place.
func (k *scrub) chunk(c id.ChunkID, st *stage) bool {
	k.mu.Lock()
	begun, first := k.state.begun, uint32(0)
	if k.state.chunk == c {
		first = k.state.block
	}
	k.mu.Unlock()
	var cold coldChunk
	defer cold.close()
	tries := 0
	for b := first / scrubPiece * scrubPiece; b < chunk.Blocks; b += scrubPiece {
		start := time.Now()
		n, found, what := k.s.scrubPiece(&cold, c, b, st)
		if k.s.failure() != nil {
			return false
		}
		if tries++; what == pieceAgain && tries <= scrubTries {
			b -= scrubPiece
			continue
		}
		gone := what != pieceDone
		k.mu.Lock()
		same := k.state.begun == begun && k.rate(k.state) > 0
		if k.state.begun == begun {
			k.state.chunk, k.state.block = c, b+scrubPiece
			k.state.bytes += uint64(n)
			k.state.found += uint64(found)
			if tries = 0; gone || b+scrubPiece >= chunk.Blocks {
				k.state.chunk, k.state.block = c+1, 0
				k.state.chunks++
			}
		}
		k.mu.Unlock()
		if n > 0 && !k.pace(n, start) {
			return false
		}
		if gone || !same {
			break
		}
	}
	select {
	case <-k.s.stop:
		return false
	default:
		return true
	}
}

// scrubPiece is the number of blocks that are read at once.
const scrubPiece = stageSize / chunk.BlockSize

// coldChunk is the file and the table of a chunk that is not in memory.
type coldChunk struct {
	f      disk.File
	loads  uint32 // entry.loads when it was read
	sums   []uint32
	active extents // that a crash left: not verified
}

func (cc *coldChunk) close() {
	if cc.f != nil {
		cc.f.Close()
		cc.f = nil
	}
}

// scrubTries bounds how often a piece is looked at again.
const scrubTries = 4

// pieceOutcome is what became of a piece.
type pieceOutcome uint8

const (
	pieceDone  pieceOutcome = iota
	pieceAgain              // the chunk was put into memory: look again
	pieceGone               // nothing of the chunk is to be verified any more
)

// scrubPiece verifies a piece of a chunk. n is how many bytes were read, found how many bad blocks that nobody knew.
func (s *Store) scrubPiece(cc *coldChunk, c id.ChunkID, first uint32, st *stage) (n int64, found int32, what pieceOutcome) {
	if s.begin() != nil {
		return 0, 0, pieceGone
	}
	defer s.end()
	e := s.find(c)
	if e == nil {
		return 0, 0, pieceGone
	}
	e.gate.RLock()
	if e.gone || e.corrupt || e.known && e.rep.State != repl.Serving && e.rep.State != repl.Unclean {
		e.gate.RUnlock()
		return 0, 0, pieceGone
	}
	if e.img == nil && (cc.f == nil || cc.loads != e.loads) {
		sound := s.openCold(cc, e, st)
		n = metaSize
		if !sound {
			e.gate.RUnlock()
			cc.close()
			// What is wrong is for load to judge.
			h, err := s.hold(c)
			if err != nil {
				return n, 0, pieceGone
			}
			h.gate.RUnlock()
			return n, 0, pieceAgain
		}
	}
	defer e.gate.RUnlock()
	before := e.bad.Load()
	if e.img == nil {
		n += s.scrubCold(cc, e, first, st)
	} else {
		cc.close()
		n = s.scrubWarm(e, first, st)
	}
	return n, max(0, e.bad.Load()-before), pieceDone
}

// openCold reads header and table of a chunk that is not in memory, through st. It returns false if something is wrong with them. Preconditions: the
// gate is held and there is no image.
func (s *Store) openCold(cc *coldChunk, e *entry, st *stage) bool {
	cc.close()
	f, err := s.openFile(s.pathOf(e.id), disk.ReadOnly)
	if err != nil {
		return false
	}
	cc.f, cc.loads = f, e.loads
	b := st.buf[:metaSize]
	if _, err := f.ReadAt(b, 0); err != nil {
		return false
	}
	h, err := newestHeader(b)
	if err != nil || h.check(s.o.Cluster, e.id) != nil {
		return false
	}
	e.mu.Lock()
	cc.active = e.marked
	e.mu.Unlock()
	if cc.sums == nil {
		cc.sums = make([]uint32, chunk.Blocks)
	}
	for i := range uint32(chunk.Extents) {
		page := b[tableOffset+i*pageSize:][:pageSize]
		decodePage(cc.sums[i*pageSums:(i+1)*pageSums], page)
		if !cc.active.has(i) && chunk.Sum(page) != h.pages[i] {
			return false
		}
	}
	return true
}

// scrubCold verifies a piece of a chunk that is not in memory, which nobody can write to as long as the gate is held.
func (s *Store) scrubCold(cc *coldChunk, e *entry, first uint32, st *stage) int64 {
	sums := cc.sums[first:][:scrubPiece]
	if cc.active.has(first/pageSums) || !slices.ContainsFunc(sums, func(sum uint32) bool { return sum != chunk.Hole }) {
		return 0
	}
	listed := s.listed(e)
	if _, err := cc.f.ReadAt(st.buf, place(first)); err != nil {
		if err := s.misread(e, cc.f, first, st.buf, err); err != nil {
			if !errors.Is(err, ErrBadBlock) {
				s.o.Logger.Warn("scrub could not read, going on", "chunk", e.id, "block", first, "err", err)
				return stageSize
			}
			listed = s.bad.of(e.id)
		}
	}
	copy(st.sums[:], sums)
	for i := range st.sums {
		if listed[first+uint32(i)] {
			st.sums[i] = chunk.Hole // known; passed over
		}
	}
	for i, sum := range st.sums {
		if sum != chunk.Hole && chunk.Sum(st.buf[i*chunk.BlockSize:][:chunk.BlockSize]) != sum {
			_ = s.mismatch(e, cc.f, first, st.buf, st.sums[:]) // it is noted, or the store has failed
			break
		}
	}
	return stageSize
}

// scrubWarm verifies a piece of a chunk that is in memory.
func (s *Store) scrubWarm(e *entry, first uint32, st *stage) int64 {
	e.mu.Lock()
	empty := !slices.ContainsFunc(e.img.sums[first:][:scrubPiece], func(sum uint32) bool { return sum != chunk.Hole })
	e.mu.Unlock()
	if empty {
		return 0
	}
	if s.read(e, first, st.buf, st.sums[:]) != nil {
		s.count(e, first, st)
	}
	return stageSize
}
