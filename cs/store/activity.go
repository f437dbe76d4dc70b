package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync"

	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// maxActiveChunks is the most chunks that can have active extents, so that a region always has room for
// a good many records behind the marks that it begins with.
const maxActiveChunks = regionRecords - 2048

// activity is the activity log: which extents may differ between memory and disk. Its methods may be
// called at once; marks that wait for the disk together share one sync.
type activity struct {
	f       disk.File
	cluster id.Cluster

	mu      sync.Mutex
	cond    sync.Cond
	active  map[id.ChunkID]extents // with every record in queue applied
	queue   []record               // not yet given to the disk
	queued  uint64                 // records ever queued
	durable uint64                 // of these, on stable media
	busy    bool                   // one goroutine is writing; it owns the fields below
	err     error                  // sticky: the log is out of service

	generation uint64
	position   uint64 // of the next record in the region
	buf        []byte
}

// openActivity opens the log of a directory. If it is missing or damaged, one is made that has every
// extent of the chunks in all active, and rebuilt is true.
func openActivity(fsys disk.FS, dir string, cluster id.Cluster, all []id.ChunkID) (a *activity, rebuilt bool, err error) {
	path := filepath.Join(dir, "active.log")
	if _, err := fsys.Stat(path); errors.Is(err, fs.ErrNotExist) {
		rebuilt = true
		if err := makeActivity(fsys, dir, cluster, all); err != nil {
			return nil, false, err
		}
	} else if err != nil {
		return nil, false, err
	}
	f, err := fsys.Open(path, disk.ReadWrite)
	if err != nil {
		return nil, false, err
	}
	g, err := readActivity(f)
	if errors.Is(err, ErrCorrupt) {
		f.Close()
		if err := fsys.Remove(path); err != nil {
			return nil, false, err
		}
		a, _, err := openActivity(fsys, dir, cluster, all)
		return a, true, err
	}
	if err == nil && g.cluster != cluster {
		err = fmt.Errorf("%s is of cluster %v, want %v: %w", path, g.cluster, cluster, fserr.WrongCluster)
	}
	if err != nil {
		f.Close()
		return nil, false, err
	}
	a = &activity{f: f, cluster: cluster, active: g.active, generation: g.generation}
	a.cond.L = &a.mu
	// A new region, so that nothing is appended behind a torn record.
	if err := a.rewrite(a.snapshot()); err != nil {
		f.Close()
		return nil, false, err
	}
	return a, rebuilt, nil
}

func makeActivity(fsys disk.FS, dir string, cluster id.Cluster, all []id.ChunkID) error {
	if len(all) > mostMarked { // the others are listed, before a log is there that does not name them
		if err := writeRest(fsys, dir, cluster, all[keepMarked:]); err != nil {
			return err
		}
		all = all[:keepMarked]
	}
	path := filepath.Join(dir, "active.log")
	f, err := fsys.Open(path+".new", disk.ReadWrite|disk.Create)
	if err != nil {
		return err
	}
	b := make([]byte, 2*regionSize)
	encodeRegionHeader(b[regionSize:], cluster, 1)
	records := b[regionSize+slotSize:][:0]
	for i, c := range all {
		records = record{kind: kindMark, chunk: c, marks: allExtents}.append(records, uint64(i), 1)
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fsys.Rename(path+".new", path); err != nil {
		return err
	}
	return fsys.SyncDir(dir)
}

// startBuffers are what logs are read into at a start, so that many starts in one process do not clear so much memory each.
var startBuffers = sync.Pool{New: func() any { b := make([]byte, 2*regionSize); return &b }}

// startBuffer returns a buffer of n bytes, which hold anything, and what gives it back.
func startBuffer(n int) (b []byte, done func()) {
	p := startBuffers.Get().(*[]byte)
	return (*p)[:n], func() { startBuffers.Put(p) }
}

// readActivity returns the region that counts.
func readActivity(f disk.File) (region, error) {
	b, done := startBuffer(2 * regionSize)
	defer done()
	if n, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return region{}, err
	} else if n < len(b) {
		return region{}, fmt.Errorf("active.log is %d bytes long, want %d: %w", n, len(b), ErrCorrupt)
	}
	this, other := b[:regionSize], b[regionSize:]
	g, err := decodeRegionHeader(this)
	g2, err2 := decodeRegionHeader(other)
	switch {
	case err != nil && err2 != nil:
		return region{}, fmt.Errorf("active.log: region 0: %w, region 1: %w", err, err2)
	case err != nil || err2 == nil && g2.generation > g.generation:
		this, other = other, this
	}
	if g, err = decodeRegion(this); err != nil {
		return region{}, err
	}
	g.successor(other)
	return g, g.damage
}

// mark returns when the extents are marked on stable media.
func (a *activity) mark(c id.ChunkID, x extents) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.active[c] |= x
	a.push(record{kind: kindMark, chunk: c, marks: x})
	return a.wait(a.queued)
}

// unmark queues the opposite of mark; it is on stable media some time later. Preconditions: the data
// and the checksums of the extents are on stable media.
func (a *activity) unmark(c id.ChunkID, x extents) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.active[c] &^= x; a.active[c] == 0 {
		delete(a.active, c)
	}
	a.push(record{kind: kindUnmark, chunk: c, marks: x})
}

// sync returns when everything queued is on stable media.
func (a *activity) sync() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.wait(a.queued)
}

func (a *activity) push(r record) {
	a.queue = append(a.queue, r)
	a.queued++
}

// wait returns when the first n records are durable. It is called with mu held; whoever finds the log
// idle writes for all that wait.
func (a *activity) wait(n uint64) error {
	for a.err == nil && a.durable < n {
		if a.busy {
			a.cond.Wait()
			continue
		}
		a.busy = true
		upto, err := a.queued, error(nil)
		if full := a.position+uint64(len(a.queue)) > regionRecords; full {
			all := a.snapshot()
			a.queue = a.queue[:0]
			a.mu.Unlock()
			err = a.rewrite(all)
		} else {
			a.buf = a.buf[:0]
			for i, r := range a.queue {
				a.buf = r.append(a.buf, a.position+uint64(i), a.generation)
			}
			a.queue = a.queue[:0]
			a.mu.Unlock()
			err = a.append()
		}
		a.mu.Lock()
		a.busy = false
		if err != nil {
			a.err = fmt.Errorf("active.log: %w", err)
		} else {
			a.durable = upto
		}
		a.cond.Broadcast()
	}
	return a.err
}

// append writes buf, whole records, behind the last record of the region.
func (a *activity) append() error {
	off := int64(a.generation%2)*regionSize + slotSize + int64(a.position)*recordSize
	if _, err := a.f.WriteAt(a.buf, off); err != nil {
		return err
	}
	a.position += uint64(len(a.buf) / recordSize)
	return a.f.Sync()
}

// snapshot returns a mark for all that is active.
func (a *activity) snapshot() []record {
	all := make([]record, 0, len(a.active))
	for c, x := range a.active {
		all = append(all, record{kind: kindMark, chunk: c, marks: x})
	}
	return all
}

// rewrite begins the other region with all. Its header is written last, so that until then the
// present region counts.
func (a *activity) rewrite(all []record) error {
	if len(all) > maxActiveChunks {
		return fmt.Errorf("%d chunks are active, limit %d", len(all), maxActiveChunks)
	}
	generation := a.generation + 1
	start := int64(generation%2) * regionSize
	a.buf = a.buf[:0]
	for i, r := range all {
		a.buf = r.append(a.buf, uint64(i), generation)
	}
	if _, err := a.f.WriteAt(a.buf, start+slotSize); err != nil {
		return err
	}
	if err := a.f.Sync(); err != nil {
		return err
	}
	head := make([]byte, slotSize)
	encodeRegionHeader(head, a.cluster, generation)
	if _, err := a.f.WriteAt(head, start); err != nil {
		return err
	}
	a.generation, a.position = generation, uint64(len(all))
	return a.f.Sync()
}

func (a *activity) close() error { return a.f.Close() }
