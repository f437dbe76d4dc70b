package ssd

// life is one life of a file: from when it is opened to when it is removed, or its pages are all on the slow disk and it is renamed or
// truncated. Fields without a note are guarded by ring.mu.
type life struct {
	id     uint64 // never changes
	slot   uint32 // never changes; its place in index.lives
	path   string // never changes; relative to Options.Root
	blocks int    // of the ring that hold its pages, also those that were written again since
	pages  int    // in the index
	last   uint64 // sequence of the newest batch with an entry of it
	found  bool   // replay found it, and nobody has opened the file since: it may have been removed just before a crash
	going  bool   // the file is being removed
	ended  bool   // the file is removed or the pages are on the slow disk: none of them counts any more
	synced bool   // with ended: the removal is on stable media
}

// index says where in the ring the newest version of each page is. It is flat, so that it is bounded and the garbage collector has
// nothing to do: for each block of the ring whose page it holds, and a hash table of block numbers with open addressing.
type index struct {
	lives []*life  // by slot; nil: free
	free  []uint32 // slots
	owner []uint32 // of each block: slot, or one of the marks
	page  []uint32 // of each block: page of the file; with a mark, how many blocks the batch or the gap has
	sum   []uint32 // of each block: checksum
	flags []uint8
	table []uint32 // block + 1, 0: none; twice as many as blocks or more
	mask  uint32
	dirty int // pages that are not on the slow disk
	live  int // pages
}

// Marks in index.owner.
const (
	markBatch = ^uint32(0)
	markGap   = ^uint32(0) - 1 // from here to the end of the ring nothing is used
)

// Flags of a block that holds a page.
const (
	flagLive  = 1 << iota // the newest version of its page
	flagClean             // the slow disk has it, synced
	flagHole
	flagUsed   // holds a page, if also an old version
	flagQueued // is about to be destaged
)

func newIndex(blocks uint64) *index {
	size := uint32(1)
	for uint64(size) < 2*blocks {
		size <<= 1
	}
	return &index{
		owner: make([]uint32, blocks), page: make([]uint32, blocks), sum: make([]uint32, blocks), flags: make([]uint8, blocks),
		table: make([]uint32, size), mask: size - 1,
	}
}

// add gives a life its slot.
func (x *index) add(l *life) {
	if n := len(x.free); n > 0 {
		l.slot = x.free[n-1]
		x.free = x.free[:n-1]
		x.lives[l.slot] = l
		return
	}
	l.slot = uint32(len(x.lives))
	x.lives = append(x.lives, l)
}

// drop takes back a life's slot, once. Preconditions: no block is its.
func (x *index) drop(l *life) {
	if x.lives[l.slot] != l {
		return
	}
	x.lives[l.slot] = nil
	x.free = append(x.free, l.slot)
}

func (x *index) home(slot, page uint32) uint32 {
	h := (uint64(slot)<<32 | uint64(page)) * 0x9E3779B97F4A7C15
	return uint32(h>>32) & x.mask
}

// find returns the place of a page in the table, or the free one where it belongs.
func (x *index) find(slot, page uint32) uint32 {
	i := x.home(slot, page)
	for {
		b := x.table[i]
		if b == 0 || x.owner[b-1] == slot && x.page[b-1] == page {
			return i
		}
		i = (i + 1) & x.mask
	}
}

// lookup returns the block that has the newest version of a page.
func (x *index) lookup(l *life, page uint32) (block uint32, ok bool) {
	if l.pages == 0 || l.ended {
		return 0, false
	}
	b := x.table[x.find(l.slot, page)]
	return b - 1, b != 0
}

// put notes that a block holds the newest version of a page.
func (x *index) put(l *life, page, block, sum uint32, flags uint8) {
	x.owner[block], x.page[block], x.sum[block] = l.slot, page, sum
	x.flags[block] = flags | flagLive | flagUsed
	i := x.find(l.slot, page)
	if old := x.table[i]; old != 0 {
		if x.flags[old-1]&flagClean == 0 {
			x.dirty--
		}
		x.flags[old-1] &^= flagLive
		x.live--
		l.pages--
	}
	x.table[i] = block + 1
	x.dirty++
	x.live++
	l.pages++
	l.blocks++
}

// wrote notes that the slow disk has what a block held when its page was destaged.
func (x *index) wrote(block uint32) {
	if x.flags[block]&(flagLive|flagClean) == flagLive {
		x.flags[block] |= flagClean
		x.dirty--
	}
}

// release forgets a block whose room is used again.
func (x *index) release(block uint32) (done *life) {
	l := x.lives[x.owner[block]]
	if x.flags[block]&flagLive != 0 {
		if x.flags[block]&flagClean == 0 {
			x.dirty--
		}
		x.live--
		l.pages--
		x.cut(x.find(l.slot, x.page[block]))
	}
	x.flags[block] = 0
	if l.blocks--; l.blocks == 0 {
		return l
	}
	return nil
}

// cut empties a place of the table and closes the gap behind it.
func (x *index) cut(i uint32) {
	for {
		x.table[i] = 0
		for j := (i + 1) & x.mask; ; j = (j + 1) & x.mask {
			b := x.table[j]
			if b == 0 {
				return
			}
			h := x.home(x.owner[b-1], x.page[b-1])
			// It may move to i unless its home lies behind i and not behind j, on the circle.
			if (j-h)&x.mask >= (j-i)&x.mask {
				x.table[i] = b
				i = j
				break
			}
		}
	}
}
