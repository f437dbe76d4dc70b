package ssd

import (
	"cmp"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// urgentPass, busyPass and idlePass are how long a pass of destaging should take while the journal is nearly full or a writer waits
	// for room, while somebody uses the server, and else. Long ones can be sorted and merged better; short ones free room sooner and keep
	// readers waiting for less. minPass and maxPass bound the pages that this comes to.
	urgentPass = 150 * time.Millisecond
	busyPass   = 500 * time.Millisecond
	idlePass   = 2 * time.Second
	minPass    = 16
	maxPass    = 8192
	// firstSpeed is how many pages a second the slow disk is taken to write before that was measured.
	firstSpeed = 200
	// urgentFill is how full the journal is when room is needed soon.
	urgentFill = 0.7
	// restFull is how full the journal is when destaging no longer rests between passes; in an empty one it rests restMost times as long
	// as it works.
	restFull = 0.6
	restMost = 8
	// minRest is the rest in an empty journal at the least, so that a page that is written often is not destaged each time.
	minRest = 250 * time.Millisecond
	// maxRest bounds a rest, so that what was written reaches the slow disk also when somebody always reads.
	maxRest = 2 * time.Second
	// fullRetry is the pause before destaging tries again to write to a slow disk that is full.
	fullRetry = time.Second
)

// journalError is one of the journal's disk, not of the slow one.
type journalError struct{ cause error }

func (e *journalError) Error() string { return e.cause.Error() }

// page is one to destage: the block of the ring that has its newest version.
type page struct {
	life  *life
	page  uint32
	block uint32
	sum   uint32
	hole  bool
}

// bringRequest asks the destager for all pages of a life.
type bringRequest struct {
	life *life
	done chan error
}

// destager writes pages to the slow disk. There is one at a time, so no page is written by two, an older version behind a newer.
type destager struct {
	f      *FS
	brings chan bringRequest
	work   []page
	speed  atomic.Int64 // pages a second that the slow disk took lately
}

// touch notes that somebody uses the server.
func (f *FS) touch() { f.active.Store(time.Now().UnixNano()) }

func (f *FS) wakeDestager() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// run destages until the FS is closed or fails.
func (d *destager) run() {
	f := d.f
	var rest time.Duration
	for {
		timer := time.NewTimer(max(rest, 0))
		select {
		case <-f.stop:
			timer.Stop()
			d.refuse()
			return
		case q := <-d.brings:
			q.done <- d.bring(q.life)
		case <-f.wake:
		case <-timer.C:
		}
		timer.Stop()
		if f.ring.err() != nil {
			d.refuse()
			return
		}
		rest = d.step()
	}
}

// refuse answers requests when no more will be done.
func (d *destager) refuse() {
	for {
		select {
		case q := <-d.brings:
			q.done <- errors.Join(d.f.ring.err(), fs.ErrClosed)
		case <-d.f.stop:
			select {
			case q := <-d.brings:
				q.done <- errors.Join(d.f.ring.err(), fs.ErrClosed)
			default:
				return
			}
		}
	}
}

// step makes one pass and returns how long to rest.
func (d *destager) step() time.Duration {
	f, r := d.f, d.f.ring
	r.mu.RLock()
	fill, waiting, used := r.fill(), r.waiting > 0, r.next-r.tail
	r.mu.RUnlock()
	if used == 0 {
		return maxRest
	}
	idle := time.Since(time.Unix(0, f.active.Load())) > f.o.IdleAfter
	target := busyPass
	switch {
	case waiting || fill > urgentFill:
		target = urgentPass
	case idle:
		target = idlePass
	}
	began := time.Now()
	freed, err := d.pass(int(min(max(int64(target.Seconds()*float64(d.speed.Load())), minPass), maxPass)))
	took := time.Since(began)
	switch {
	case errors.Is(err, errGoing):
		return time.Millisecond
	case full(err):
		d.full(err)
		return fullRetry
	case err != nil:
		var j *journalError
		if errors.As(err, &j) {
			_ = r.fail("destage", err)
		} else {
			_ = r.failSlow("destage", err)
		}
		return 0 // it was logged
	}
	d.full(nil)
	f.pace.freed(freed, took)
	if n := len(d.work); n >= minPass {
		old, sample := d.speed.Load(), int64(float64(n)/took.Seconds())
		d.speed.Store(max(1, old+(sample-old)/4))
	}
	if idle || waiting || fill >= restFull {
		return 0
	}
	return min(maxRest, time.Duration(float64(max(took*restMost, minRest))*(1-fill/restFull)))
}

// full notes that the slow disk is full, or no longer.
func (d *destager) full(err error) {
	r := d.f.ring
	r.mu.Lock()
	was := r.stuck
	r.stuck = err
	if err != nil {
		r.free() // who waits hears of it
	}
	r.mu.Unlock()
	switch {
	case err != nil && was == nil:
		d.f.o.Logger.Error("the slow disk is full: its write journal cannot be emptied; make room there", "root", d.f.o.Root, "err", err)
	case err == nil && was != nil:
		d.f.o.Logger.Info("the slow disk has room again, destaging goes on", "root", d.f.o.Root)
	}
}

func full(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// pass destages the oldest batches, with about that many pages on the slow disk, and frees their room. It returns how many blocks it
// freed.
func (d *destager) pass(pages int) (uint64, error) {
	r := d.f.ring
	end, sequence, unsynced := d.gather(pages)
	if err := d.write(); err != nil {
		return 0, err
	}
	for _, dir := range unsynced {
		if err := d.f.slow.SyncDir(dir); err != nil {
			return 0, err
		}
	}
	return d.free(end, sequence, r.tail)
}

// gather collects the pages of the oldest batches that are to be written, and their neighbours. It returns where the first batch begins
// that is not among them, and directories of which removals must be on stable media before the pages of what was removed are forgotten.
func (d *destager) gather(pages int) (end, sequence uint64, unsynced []string) {
	r := d.f.ring
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.index
	d.work = d.work[:0]
	end, sequence = r.tail, r.tailSeq
	// A window of superseded pages costs nothing but this look at it, with the lock held: it is bounded too.
	for limit := r.tail + 64*batchBlocks; end < r.next && end < limit && len(d.work) < pages; {
		at := uint32(end % r.blocks)
		n := x.page[at]
		end += uint64(n)
		if x.owner[at] == markGap {
			continue
		}
		sequence++
		for b := at + 1; b < at+n; b++ {
			if x.flags[b]&(flagLive|flagClean) != flagLive {
				continue
			}
			l := x.lives[x.owner[b]]
			switch {
			case !l.ended:
				d.work = append(d.work, d.queue(l, b))
			case !l.synced:
				l.synced = true // it will be, or the FS has failed
				if dir := filepath.Dir(d.f.path(l.path)); !slices.Contains(unsynced, dir) {
					unsynced = append(unsynced, dir)
				}
			}
		}
	}
	d.neighbours()
	return end, sequence, unsynced
}

// queue notes that a block is about to be destaged. It is called with ring.mu held.
func (d *destager) queue(l *life, b uint32) page {
	x := d.f.ring.index
	x.flags[b] |= flagQueued
	return page{life: l, page: x.page[b], block: b, sum: x.sum[b], hole: x.flags[b]&flagHole != 0}
}

// neighbours sorts the work by place, and adds younger pages that lie right behind or before one of it: they cost hardly more now and a
// whole seek later. It is called with ring.mu held.
func (d *destager) neighbours() {
	x := d.f.ring.index
	n := len(d.work)
	for i := range n {
		for step := int64(-1); step <= 1; step += 2 {
			for w := d.work[i]; len(d.work) < 2*n+batchPages; {
				next := int64(w.page) + step
				if next < 0 || next > int64(^uint32(0)) {
					break
				}
				b, ok := x.lookup(w.life, uint32(next))
				if !ok || x.flags[b]&(flagClean|flagQueued) != 0 {
					break
				}
				w = d.queue(w.life, b)
				d.work = append(d.work, w)
			}
		}
	}
	slices.SortFunc(d.work, func(a, b page) int {
		if a.life != b.life {
			return cmp.Or(cmp.Compare(a.life.path, b.life.path), cmp.Compare(a.life.id, b.life.id))
		}
		return cmp.Compare(a.page, b.page)
	})
}

// errGoing says that a file of the work is being removed: what is to be done with its pages is known in a moment.
var errGoing = errors.New("the file is being removed")

// free lets the room of the batches before end be used again, once the header on stable media says so.
func (d *destager) free(end, sequence, tail uint64) (uint64, error) {
	r := d.f.ring
	if end == tail {
		return 0, nil
	}
	h := r.head
	h.tail, h.tailSeq, h.durable = end, sequence, r.durable.Load()
	if err := r.writeHeader(h); err != nil {
		return 0, err
	}
	var done []*life
	r.mu.Lock()
	for at := tail; at < end; {
		i := uint32(at % r.blocks)
		n := r.index.page[i]
		if r.index.owner[i] != markGap {
			for b := i + 1; b < i+n; b++ {
				if r.index.flags[b]&flagUsed != 0 {
					if l := r.index.release(b); l != nil {
						done = append(done, l)
					}
				}
			}
		}
		at += uint64(n)
	}
	r.tail, r.tailSeq = end, sequence
	r.free()
	r.mu.Unlock()
	for _, l := range done {
		d.f.done(l)
	}
	return end - tail, nil
}

// done forgets a life that has no block in the journal any more, if its file is not open.
func (f *FS) done(l *life) {
	if fl := f.lookup(l.path); fl != nil && fl.life.Load() == l {
		f.tidy(fl)
		return
	}
	f.filesMu.Lock()
	defer f.filesMu.Unlock()
	f.ring.mu.Lock()
	defer f.ring.mu.Unlock()
	if !l.ended || l.blocks > 0 {
		return
	}
	f.ring.index.drop(l)
	f.ghosts[l.path] = slices.DeleteFunc(f.ghosts[l.path], func(g *life) bool { return g == l })
	if len(f.ghosts[l.path]) == 0 {
		delete(f.ghosts, l.path)
	}
}

// bring has the destager bring all pages of a life to the slow disk.
func (f *FS) bring(l *life) error {
	q := bringRequest{l, make(chan error, 1)}
	select {
	case f.destager.brings <- q:
		return <-q.done
	case <-f.stop:
		return fs.ErrClosed
	}
}

// bring destages all pages of a life, without freeing their room.
func (d *destager) bring(l *life) error {
	r := d.f.ring
	r.mu.Lock()
	d.work = d.work[:0]
	for at := r.tail; at < r.next; {
		i := uint32(at % r.blocks)
		n := r.index.page[i]
		at += uint64(n)
		if r.index.owner[i] == markGap {
			continue
		}
		for b := i + 1; b < i+n; b++ {
			if r.index.owner[b] == l.slot && r.index.flags[b]&(flagLive|flagClean) == flagLive {
				d.work = append(d.work, d.queue(l, b))
			}
		}
	}
	d.neighbours()
	r.mu.Unlock()
	return d.write()
}
