package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"sort"

	"varve/internal/id"
)

// Retention says what Retain may drop. The zero value drops nothing.
type Retention struct {
	// Before lets go of segments all of whose records have earlier times; 0 of none.
	Before int64
	// Bytes lets go of the oldest segments and checkpoints until all files take up no more; 0 is no limit.
	Bytes int64
	// Raft keeps all records of later Raft entries. 0 keeps all: a caller without Raft gives the highest number.
	Raft uint64
	// Every thins out checkpoints: from the one that is used to replay to an index there are at most about so many records, if there
	// was such a one. 0 keeps all.
	Every id.Index
}

// keepCheckpoints are the newest checkpoints, which are never dropped.
const keepCheckpoints = 2

// Dropped is what Retain removed.
type Dropped struct {
	From, To    id.Index // the records, as a half-open range: To is the first that is left
	Segments    int
	Checkpoints int
	Bytes       int64  // of the files
	Left        int64  // bytes of the files that remain
	Cause       string // why segments were dropped, "age" or "bytes" mostly; "" if none were
	Held        string // why more was not dropped although it should have been; "" if all is well
}

// anchor is a place from which on records can be kept: a segment begins there, and a checkpoint is right before it.
type anchor struct {
	segment    int // index in segments
	checkpoint Position
}

// Retain drops segments at the start as r says, and checkpoints that are of no use. A segment is dropped only if the first record left
// is one that a sound checkpoint stands right before, so that everything that is left can be replayed. The last segment
// and the newest checkpoints stay. Readers that are in a segment that is dropped read on.
//
// The order on the disk is: checkpoints that lose their records, then segments from the oldest on. So whatever is left by a crash is a
// journal that begins later, and the next Retain drops what it has before its first checkpoint.
func (j *Journal) Retain(r Retention) (Dropped, error) {
	j.checkpointMu.Lock()
	defer j.checkpointMu.Unlock()
	if err := j.writable(); err != nil {
		return Dropped{}, err
	}
	segments, _, err := j.all()
	if err != nil {
		return Dropped{}, err
	}
	points, err := j.measured()
	if err != nil {
		return Dropped{}, err
	}
	p := planner{r: r, segments: segments, points: points}
	j.mu.Lock()
	for _, s := range segments {
		p.sizes = append(p.sizes, s.size)
	}
	j.mu.Unlock()
	if first := segments[0].header.at; first.Index > 0 {
		_, err := j.o.FS.Stat(filepath.Join(j.o.Dir, checkpointName(first.Index)))
		p.headless = errors.Is(err, fs.ErrNotExist)
	}
	d := Dropped{From: segments[0].first(), To: segments[0].first()}
	cut := p.choose(&d)
	for cut.segment > 0 {
		// Nothing is dropped on the word of a checkpoint that cannot be read.
		if err = j.readThrough(cut.checkpoint.Index); err == nil {
			break
		}
		if !errors.Is(err, ErrCorrupt) {
			return d, err
		}
		j.o.Logger.Error("journal: checkpoint is damaged", "file", checkpointName(cut.checkpoint.Index), "err", err)
		p.without(cut.checkpoint.Index)
		d.Cause, d.Held = "", ""
		cut = p.choose(&d)
	}
	if err := j.drop(&d, segments[:cut.segment], p.useless(cut)); err != nil {
		return d, err
	}
	if d.Segments > 0 {
		d.To = segments[cut.segment].first()
	}
	d.Left = p.total() - d.Bytes
	return d, nil
}

// planner decides what Retain drops. It reads nothing.
type planner struct {
	r        Retention
	segments []*segment
	sizes    []int64    // of the segments
	points   []measured // checkpoints, ascending
	damaged  []measured // checkpoints that are none
	headless bool       // dropping was interrupted: no checkpoint is before the first segment
}

// measured is a checkpoint and its size.
type measured struct {
	Position
	bytes int64
}

func (p *planner) total() int64 {
	var n int64
	for _, size := range p.sizes {
		n += size
	}
	for _, c := range slices.Concat(p.points, p.damaged) {
		n += c.bytes
	}
	return n
}

// find returns the checkpoint at a position.
func (p *planner) find(at Position) bool {
	i := sort.Search(len(p.points), func(i int) bool { return p.points[i].Index >= at.Index })
	return i < len(p.points) && p.points[i].Position == at
}

// without takes a damaged checkpoint for none. It goes when those beside it do.
func (p *planner) without(index id.Index) {
	i := slices.IndexFunc(p.points, func(c measured) bool { return c.Index == index })
	p.damaged = append(p.damaged, p.points[i])
	p.points = slices.Delete(p.points, i, i+1)
}

// choose returns the first anchor that age and bytes are content with, or else the last one there is, and says in d why. Its
// segment is 0 if nothing is to be dropped.
func (p *planner) choose(d *Dropped) anchor {
	left := p.total()
	var best anchor
	old := 0 // segments that are too old, at the start
	for old < len(p.segments)-1 && p.newest(old) < p.r.Before {
		old++
	}
	satisfied := func(segment int) bool { return segment >= old && (p.r.Bytes == 0 || left <= p.r.Bytes) }
	if satisfied(0) && !p.headless {
		return best
	}
	cause := "bytes"
	switch {
	case old > 0:
		cause = "age"
	case p.headless && satisfied(0):
		cause = "dropping was interrupted"
	}
	bytes := left
	for i := 1; i < len(p.segments); i++ {
		bytes -= p.sizes[i-1]
		at := p.segments[i].header.at
		if at.Raft > p.r.Raft {
			d.Held = fmt.Sprintf("raft still needs the records after entry %d", p.r.Raft)
			break
		}
		if !p.find(at) {
			continue
		}
		best, d.Cause = anchor{segment: i, checkpoint: at}, cause
		left = bytes
		for _, c := range slices.Concat(p.points, p.damaged) {
			if c.Index < at.Index {
				left -= c.bytes
			}
		}
		if satisfied(i) {
			return best
		}
	}
	if d.Held == "" {
		d.Held = "no later segment begins right after a checkpoint"
	}
	return best
}

// newest returns about the highest time in a segment that is not the last: exactly if it is sealed, else the one of its last record.
func (p *planner) newest(i int) int64 {
	if s := p.segments[i]; s.seal != nil {
		return s.seal.times.high
	}
	return p.segments[i+1].header.at.Time
}

// useless returns the checkpoints that can go if the records before cut do: those whose records do, and those that are close
// to an earlier one.
func (p *planner) useless(cut anchor) []measured {
	var drop, kept []measured
	for _, c := range p.points {
		if cut.segment > 0 && c.Index < cut.checkpoint.Index {
			drop = append(drop, c)
		} else {
			kept = append(kept, c)
		}
	}
	for _, c := range p.damaged {
		if c.Index < cut.checkpoint.Index {
			drop = append(drop, c)
		}
	}
	if p.r.Every == 0 || len(kept) == 0 {
		return drop
	}
	// From each that stays, the next is the furthest one within reach, one that a segment begins after if there is any.
	newest := max(0, len(kept)-keepCheckpoints)
	for i := 0; i < newest; {
		next := i + 1
		for k, anchored := next, false; k <= newest && p.within(kept[i].Position, kept[k].Position); k++ {
			a := p.anchored(kept[k].Position)
			if a || !anchored {
				next, anchored = k, a
			}
			if p.afterHole(kept[k].Position) { // no record leads to it
				next = k
				break
			}
		}
		drop = append(drop, kept[i+1:next]...)
		i = next
	}
	return drop
}

// within reports whether records between two checkpoints are few enough that none is needed between them.
func (p *planner) within(a, b Position) bool {
	if b.Index-a.Index > p.r.Every {
		return false
	}
	if p.r.Bytes == 0 {
		return true
	}
	var n int64 // so that bytes can be dropped in steps
	for i, s := range p.segments {
		if s.header.at.Index >= a.Index && s.header.at.Index < b.Index {
			n += p.sizes[i]
		}
	}
	return n <= p.r.Bytes/8
}

// anchored reports whether a segment begins right after at.
func (p *planner) anchored(at Position) bool {
	i := sort.Search(len(p.segments), func(i int) bool { return p.segments[i].header.at.Index >= at.Index })
	return i < len(p.segments) && p.segments[i].header.at == at
}

// afterHole reports whether a hole ends at at, the place of a checkpoint that Reset went on from.
func (p *planner) afterHole(at Position) bool {
	return slices.ContainsFunc(p.segments, func(s *segment) bool { return s.gap() && s.header.at == at })
}

// drop removes files and counts them. The caller holds checkpointMu.
func (j *Journal) drop(d *Dropped, segments []*segment, points []measured) error {
	for _, c := range points {
		if err := j.o.FS.Remove(filepath.Join(j.o.Dir, checkpointName(c.Index))); err != nil {
			return j.poison(fmt.Errorf("%s: drop: %w", checkpointName(c.Index), err))
		}
		d.Checkpoints++
		d.Bytes += c.bytes
	}
	for _, s := range segments {
		if err := j.remove(s); err != nil {
			return err
		}
		d.Segments++
		d.Bytes += s.size
	}
	return nil
}

// measured returns all checkpoints that have a sound header, and their sizes.
func (j *Journal) measured() ([]measured, error) {
	all, err := j.Checkpoints()
	if err != nil {
		return nil, err
	}
	points := make([]measured, 0, len(all))
	for _, at := range all {
		info, err := j.o.FS.Stat(filepath.Join(j.o.Dir, checkpointName(at.Index)))
		if err != nil {
			return nil, err
		}
		points = append(points, measured{at, info.Size()})
	}
	return points, nil
}

// readThrough reads a checkpoint and checks all of it.
func (j *Journal) readThrough(index id.Index) error {
	o := j.o
	o.ReadOnly = true
	_, r, err := openCheckpoint(&o, index)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}

// remove takes s, which is not the last segment, out of the journal. Readers that are in it read on.
// The caller holds checkpointMu or appendMu, and nobody seals s meanwhile.
func (j *Journal) remove(s *segment) error {
	j.mu.Lock()
	kept := make([]*segment, 0, len(j.segments))
	for _, other := range j.segments {
		if other.first() != s.first() {
			kept = append(kept, other)
		}
	}
	j.segments = kept
	j.mu.Unlock()
	err := j.o.FS.Remove(s.path)
	if err == nil {
		err = j.o.FS.SyncDir(j.o.Dir)
	}
	if err != nil {
		return j.poison(fmt.Errorf("%s: remove segment: %w", s.path, err))
	}
	return nil
}
