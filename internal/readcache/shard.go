package readcache

import (
	"slices"
	"sync"
	"sync/atomic"
)

const (
	shards    = 16
	shardBits = 4

	inNone  = 0
	inSmall = 1
	inMain  = 2

	maxFreq   = 3
	smallPart = 10 // the small queue has a tenth of the slots
	promote   = 2  // hits in the small queue that bring a slot to the main one
)

// none is no slot.
const none = ^uint32(0)

// slot is what is in 32 KiB of the data file.
type slot struct {
	key        key
	version    uint64
	next, prev uint32 // in its queue, towards the tail and the head; next also links free slots
	chain      uint32 // the next with the same bucket
	valid      uint8
	queue      uint8
	freq       uint8
	busy       bool // something is being written to it
	dirty      bool // its record is not what is here
	sums       [slotBlocks]uint64
}

// shard is a part of the slots, those whose number ends in its own, for the keys whose hash does.
type shard struct {
	mu      sync.Mutex
	no      uint32
	words   []atomic.Uint64 // of the witness, for all slots
	slots   []slot
	buckets []uint32
	free    uint32
	small   queue
	main    queue
	ghosts  []uint64 // hash of a key that left the small queue <<32 | when, by hash
	left    uint32   // how many have left it
}

// queue is a FIFO of slots. New ones come to the head.
type queue struct {
	head, tail uint32
	n          int
}

func (s *shard) init(no, n int, words []atomic.Uint64) {
	s.no, s.words = uint32(no), words
	s.slots = nil
	s.free, s.small, s.main = none, queue{none, none, 0}, queue{none, none, 0}
	s.grow(n)
}

// grow makes room for n slots, and all buckets anew.
func (s *shard) grow(n int) {
	was := len(s.slots)
	s.slots = slices.Grow(s.slots, n-was)[:n]
	for i := n - 1; i >= was; i-- {
		s.slots[i] = slot{next: s.free}
		s.free = uint32(i)
	}
	size := 1
	for size < n {
		size *= 2
	}
	s.buckets = make([]uint32, size)
	for i := range s.buckets {
		s.buckets[i] = none
	}
	for i := range s.slots {
		if s.slots[i].queue != inNone {
			s.link(uint32(i))
		}
	}
	s.ghosts = make([]uint64, size)
}

// shrink drops the slots from n on.
func (s *shard) shrink(n int) (dropped int) {
	for i := n; i < len(s.slots); i++ {
		if s.slots[i].queue != inNone {
			s.drop(uint32(i))
			dropped++
		}
	}
	s.slots = slices.Clone(s.slots[:n])
	s.free = none
	for i := n - 1; i >= 0; i-- {
		if s.slots[i].queue == inNone {
			s.slots[i].next = s.free
			s.free = uint32(i)
		}
	}
	s.grow(n)
	return dropped
}

func (s *shard) bucket(h uint64) *uint32 { return &s.buckets[h>>shardBits&uint64(len(s.buckets)-1)] }

func (s *shard) link(i uint32) {
	b := s.bucket(s.slots[i].key.hash())
	s.slots[i].chain, *b = *b, i
}

// find returns the slot of a key, or none.
func (s *shard) find(k key, h uint64) uint32 {
	for i := *s.bucket(h); i != none; i = s.slots[i].chain {
		if s.slots[i].key == k {
			return i
		}
	}
	return none
}

// drop frees a slot.
func (s *shard) drop(i uint32) {
	x := &s.slots[i]
	at := s.bucket(x.key.hash())
	for *at != i {
		at = &s.slots[*at].chain
	}
	*at = x.chain
	s.unqueue(i)
	s.witness(i).Store(0) // else a record of it could count, with what nobody invalidates any more
	*x = slot{next: s.free, dirty: true}
	s.free = i
}

// number is that of the shard's i-th slot in the cache.
func (s *shard) number(i uint32) int { return int(i<<shardBits | s.no) }

func (s *shard) witness(i uint32) *atomic.Uint64 { return &s.words[s.number(i)] }

// invalidate makes blocks of a slot count no more. An empty slot goes, unless something is being written to it.
func (s *shard) invalidate(i uint32, bits uint8) (dropped int) {
	x := &s.slots[i]
	had := x.valid & bits
	if had == 0 {
		return 0
	}
	x.valid &^= bits
	x.dirty = true
	s.witness(i).Store(x.version<<slotBlocks | uint64(x.valid))
	if x.valid == 0 && !x.busy {
		s.drop(i)
	}
	return bits8(had)
}

// takeFree takes a slot from the free ones.
func (s *shard) takeFree(i uint32) {
	at := &s.free
	for *at != i {
		at = &s.slots[*at].next
	}
	*at = s.slots[i].next
}

func (s *shard) queueOf(which uint8) *queue {
	if which == inSmall {
		return &s.small
	}
	return &s.main
}

func (s *shard) enqueue(i uint32, which uint8) {
	x, q := &s.slots[i], s.queueOf(which)
	x.queue, x.prev, x.next = which, none, q.head
	if q.head != none {
		s.slots[q.head].prev = i
	} else {
		q.tail = i
	}
	q.head = i
	q.n++
}

func (s *shard) unqueue(i uint32) {
	x := &s.slots[i]
	q := s.queueOf(x.queue)
	if x.prev != none {
		s.slots[x.prev].next = x.next
	} else {
		q.head = x.next
	}
	if x.next != none {
		s.slots[x.next].prev = x.prev
	} else {
		q.tail = x.prev
	}
	q.n--
	x.queue = inNone
}

// add returns an empty slot for a key that has none, or none if all are busy. evicted: something had to go for it.
func (s *shard) add(k key, h uint64) (i uint32, evicted bool) {
	which := uint8(inSmall)
	if s.remembered(h) {
		which = inMain
	}
	if s.free == none {
		if !s.evict() {
			return none, false
		}
		evicted = true
	}
	i = s.free
	s.free = s.slots[i].next
	s.slots[i] = slot{key: k, dirty: true}
	s.enqueue(i, which)
	s.link(i)
	return i, evicted
}

// evict frees a slot.
func (s *shard) evict() bool {
	for range 2*maxFreq*len(s.slots) + 1 {
		if s.small.n > 0 && (s.small.n > len(s.slots)/smallPart || s.main.n == 0) {
			i := s.small.tail
			x := &s.slots[i]
			switch {
			case x.busy:
				s.unqueue(i)
				s.enqueue(i, inSmall)
			case x.freq >= promote:
				s.unqueue(i)
				x.freq, x.dirty = 0, true
				s.enqueue(i, inMain)
			default:
				s.remember(x.key.hash())
				s.drop(i)
				return true
			}
			continue
		}
		i := s.main.tail
		if i == none {
			return false
		}
		x := &s.slots[i]
		if !x.busy && x.freq == 0 {
			s.drop(i)
			return true
		}
		if !x.busy {
			x.freq--
		}
		s.unqueue(i)
		s.enqueue(i, inMain)
	}
	return false
}

func (s *shard) ghost(h uint64) *uint64 { return &s.ghosts[h>>shardBits&uint64(len(s.ghosts)-1)] }

func (s *shard) remember(h uint64) {
	s.left++
	*s.ghost(h) = h>>32<<32 | uint64(s.left)
}

// remembered reports whether a key left the small queue lately, and forgets it.
func (s *shard) remembered(h uint64) bool {
	g := s.ghost(h)
	if *g == 0 || *g>>32 != h>>32 || s.left-uint32(*g) > uint32(len(s.slots)) {
		return false
	}
	*g = 0
	return true
}
