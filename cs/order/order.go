package order

import (
	"fmt"
	"math"
	"slices"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/invariant"
)

const (
	// MaxEntries bounds the entries of a server, and MaxSession those of one session on one chunk. More are refused, not forgotten. The
	// lowest change of a session on a chunk is let in beyond that, up to twice as many: the others can be forgotten when it is over.
	MaxEntries = 16384
	MaxSession = 512
	// ended is what a session that is over is taken to have said.
	ended = math.MaxUint64
)

// Entry says that the bytes [From, To) of a chunk are as the change (Session, Seq) left them, or newer.
type Entry struct {
	Chunk    id.ChunkID
	Session  id.SessionID
	Seq      uint64
	Epoch    id.Epoch // of the replica when it was made
	From, To uint32
	Own      bool // made by this replica as the first: all others have it too
}

func (e *Entry) is(s id.SessionID, seq uint64) bool { return e.Session == s && e.Seq == seq }

// meets reports whether the entry touches a block of which [from, to) has a part.
func (e *Entry) meets(from, to uint32) bool {
	from, to = Blocks(from, to)
	mine, end := Blocks(e.From, e.To)
	return mine < to && from < end
}

// Range is bytes of a chunk.
type Range struct{ From, To uint32 }

// Blocks widens [from, to) to whole blocks.
func Blocks(from, to uint32) (uint32, uint32) {
	return from &^ (chunk.BlockSize - 1), (to + chunk.BlockSize - 1) &^ (chunk.BlockSize - 1)
}

type item struct {
	Entry
	slot int32
}

// Table is the entries of a server. The zero value is empty.
type Table struct {
	chunks   map[id.ChunkID][]item
	lows     map[id.SessionID]uint64 // what the session has said last
	used     int                     // entries
	reserved int                     // for changes that are let in
	foreign  int                     // entries that are not Own
	top      int32                   // slots that were ever used
	free     []int32
	changed  []int32 // slots, since Changes
	now      map[int32]Entry
}

// Len returns the number of entries.
func (t *Table) Len() int { return t.used }

// Foreign returns the number of entries that are not Own; if there is none, nothing is loose.
func (t *Table) Foreign() int { return t.foreign }

// Slots returns how many slots of the file are in use or were, at most.
func (t *Table) Slots() int { return int(t.top) }

// Admit lets a change in, which ends with Release, and forgets what its session says is over. A change that is over itself is one that
// nobody waits for: Protocol. Where there are too many entries it is Unavailable.
func (t *Table) Admit(c id.ChunkID, s id.SessionID, seq, low uint64, recent uint32) error {
	t.init()
	if seq < t.lows[s] {
		return fmt.Errorf("change %d of session %v, which has ended all below %d: %w", seq, s, t.lows[s], fserr.Protocol)
	}
	t.lows[s] = max(t.lows[s], low)
	low = max(low, seq-uint64(recent))
	n := t.prune(c, func(e *Entry) bool { return e.Session == s && e.Seq < low || t.over(e) }, s)
	if t.used+t.reserved+reserve > MaxEntries || len(t.lows) > MaxEntries {
		t.sweep()
	}
	full := t.used + t.reserved + reserve - MaxEntries
	switch {
	case recent > 0 && n >= MaxSession:
		return fmt.Errorf("session %v has %d ordered changes of chunk %v under way: %w", s, n, c, fserr.Unavailable)
	case recent > 0 && full > 0, full > MaxEntries:
		return fmt.Errorf("%d ordered changes are remembered: %w", t.used, fserr.Unavailable)
	}
	t.reserved += reserve
	return nil
}

// reserve is how many entries one change may add: itself, and one that it cuts in two.
const reserve = 2

// Release ends what Admit let in.
func (t *Table) Release() { t.reserved -= reserve }

// over reports whether nobody will ever ask for an entry: its session has said so, or has ended and the others have it.
func (t *Table) over(e *Entry) bool {
	low := t.lows[e.Session]
	return e.Seq < low && (low != ended || e.Own)
}

// prune removes entries of a chunk and returns how many of the session are left.
func (t *Table) prune(c id.ChunkID, over func(*Entry) bool, s id.SessionID) (left int) {
	list := t.chunks[c]
	for i := 0; i < len(list); {
		if over(&list[i].Entry) {
			list = t.remove(c, i, false)
			continue
		}
		if list[i].Session == s {
			left++
		}
		i++
	}
	return left
}

// sweep removes what is over, and sessions of which there is nothing.
func (t *Table) sweep() {
	here := make(map[id.SessionID]bool)
	for c := range t.chunks {
		t.prune(c, t.over, 0)
		for i := range t.chunks[c] {
			here[t.chunks[c][i].Session] = true
		}
	}
	for s := range t.lows {
		if !here[s] {
			delete(t.lows, s)
		}
	}
}

// remove takes entry i of a chunk out. With clear its slot is emptied too: else the file may bring it back, which does no harm if the change is over.
func (t *Table) remove(c id.ChunkID, i int, clear bool) []item {
	list := t.chunks[c]
	x := list[i]
	list[i] = list[len(list)-1]
	list = list[:len(list)-1]
	if len(list) == 0 {
		delete(t.chunks, c)
	} else {
		t.chunks[c] = list
	}
	t.used--
	if !x.Own {
		t.foreign--
	}
	t.free = append(t.free, x.slot)
	if clear {
		t.changed = append(t.changed, x.slot)
	}
	delete(t.now, x.slot)
	return list
}

func (t *Table) add(e Entry) {
	slot := t.top
	if n := len(t.free); n > 0 {
		slot, t.free = t.free[n-1], t.free[:n-1]
	} else {
		t.top++
	}
	t.put(e, slot)
	t.changed = append(t.changed, slot)
}

func (t *Table) put(e Entry, slot int32) {
	if e.From >= e.To || e.Session == 0 || e.Seq == 0 {
		invariant.Failf("ordered change %+v", e)
	}
	t.init()
	t.chunks[e.Chunk] = append(t.chunks[e.Chunk], item{e, slot})
	t.used++
	if !e.Own {
		t.foreign++
	}
	t.now[slot] = e
}

func (t *Table) init() {
	if t.chunks == nil {
		t.chunks, t.lows, t.now = make(map[id.ChunkID][]item), make(map[id.SessionID]uint64), make(map[int32]Entry)
	}
}

// Changes calls fn for each slot that has changed since the last call, with what it holds now, nil for nothing.
func (t *Table) Changes(fn func(slot int32, e *Entry)) {
	for _, slot := range t.changed {
		if e, ok := t.now[slot]; ok {
			fn(slot, &e)
		} else {
			fn(slot, nil)
		}
	}
	t.changed = t.changed[:0]
}

// Note remembers a change, in place of what was known of it for these bytes.
func (t *Table) Note(e Entry) {
	t.cut(e.Chunk, e.From, e.To, func(x *Entry) bool { return x.is(e.Session, e.Seq) })
	t.add(e)
}

// Cut forgets what all changes have done to the blocks of [from, to).
func (t *Table) Cut(c id.ChunkID, from, to uint32) {
	from, to = Blocks(from, to)
	t.cut(c, from, to, func(*Entry) bool { return true })
}

func (t *Table) cut(c id.ChunkID, from, to uint32, which func(*Entry) bool) {
	list := t.chunks[c]
	for i := 0; i < len(list); {
		x := list[i].Entry
		if !which(&x) || x.From >= to || from >= x.To {
			i++
			continue
		}
		t.remove(c, i, true)
		// What is left of it comes behind, and meets the range no more.
		if x.From < from {
			left := x
			left.To = from
			t.add(left)
		}
		if x.To > to {
			left := x
			left.From = to
			t.add(left)
		}
		list = t.chunks[c]
	}
}

// Missing appends to dst the parts of [from, to) in which the change is not done.
func (t *Table) Missing(dst []Range, c id.ChunkID, s id.SessionID, seq uint64, from, to uint32) []Range {
	start := len(dst)
	dst = append(dst, Range{from, to})
	for i := range t.chunks[c] {
		x := &t.chunks[c][i].Entry
		if !x.is(s, seq) {
			continue
		}
		for k := start; k < len(dst); {
			r := dst[k]
			if x.From >= r.To || r.From >= x.To {
				k++
				continue
			}
			dst = slices.Delete(dst, k, k+1)
			if x.To < r.To {
				dst = slices.Insert(dst, k, Range{x.To, r.To})
			}
			if r.From < x.From {
				dst = slices.Insert(dst, k, Range{r.From, x.From})
			}
			k = start
		}
	}
	return dst
}

func (e *Entry) loose(epoch id.Epoch) bool { return !e.Own && e.Epoch < epoch }

// Loose reports whether other replicas may lack something that this one has in the blocks of [from, to), when it is the first at the epoch.
func (t *Table) Loose(c id.ChunkID, epoch id.Epoch, from, to uint32) bool {
	if t.foreign == 0 {
		return false
	}
	for i := range t.chunks[c] {
		if x := &t.chunks[c][i].Entry; x.loose(epoch) && x.meets(from, to) {
			return true
		}
	}
	return false
}

// Closure widens [from, to) to blocks, and to all that is loose in entries that it meets.
func (t *Table) Closure(c id.ChunkID, epoch id.Epoch, from, to uint32) (uint32, uint32) {
	from, to = Blocks(from, to)
	for again := true; again; {
		again = false
		for i := range t.chunks[c] {
			x := &t.chunks[c][i].Entry
			if !x.loose(epoch) || !x.meets(from, to) {
				continue
			}
			if a, b := Blocks(x.From, x.To); a < from || b > to {
				from, to, again = min(from, a), max(to, b), true
			}
		}
	}
	return from, to
}

// Settle notes that all replicas are equal in the blocks [from, to), at the epoch of which this one is the first.
func (t *Table) Settle(c id.ChunkID, epoch id.Epoch, from, to uint32) {
	for i := 0; i < len(t.chunks[c]); i++ {
		x := &t.chunks[c][i]
		if x.Own || x.From < from || x.To > to {
			continue
		}
		x.Own, x.Epoch = true, epoch
		t.foreign--
		t.now[x.slot] = x.Entry
		t.changed = append(t.changed, x.slot)
	}
}

// Within appends to dst what changes have done in [from, to).
func (t *Table) Within(dst []Entry, c id.ChunkID, from, to uint32) []Entry {
	for i := range t.chunks[c] {
		x := t.chunks[c][i].Entry
		if x.From = max(x.From, from); x.From < min(x.To, to) {
			x.To = min(x.To, to)
			dst = append(dst, x)
		}
	}
	return dst
}

// Rejoin forgets what was done before the epoch at which the replica joins.
func (t *Table) Rejoin(c id.ChunkID, epoch id.Epoch) {
	for i := 0; i < len(t.chunks[c]); {
		if t.chunks[c][i].Epoch < epoch {
			t.remove(c, i, true)
			continue
		}
		i++
	}
}

// Forget forgets a chunk that is deleted.
func (t *Table) Forget(c id.ChunkID) {
	for len(t.chunks[c]) > 0 {
		t.remove(c, 0, true)
	}
}

// Fence notes that a session is over: it sends nothing again. What is not Own stays, as it may be loose.
func (t *Table) Fence(s id.SessionID) {
	t.init()
	t.lows[s] = ended
	for c := range t.chunks {
		t.prune(c, t.over, 0)
	}
}

// Load takes an entry of the file into its slot, nil if that is empty. Call it before anything else, slot by slot.
func (t *Table) Load(e *Entry) {
	if e == nil {
		t.free = append(t.free, t.top)
	} else {
		t.put(*e, t.top)
	}
	t.top++
}
