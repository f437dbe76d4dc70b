package readcache

import (
	"varve/internal/chunk"
)

// Blocks names blocks of a chunk.
type Blocks struct {
	Chunk uint64
	Lost  uint64 // the epoch before which unflushed writes to the chunk may be gone, as its layout says
	First uint32 // number of the first
}

// Op is a read that has begun: Dst is to be filled from Offset of the file FD, or by Do if FD is negative. FD stays open until Finish. An Op can be
// used again.
type Op struct {
	FD     int
	Offset int64
	Dst    []byte

	f       *File
	st      *store
	key     key
	hash    uint64
	version uint64
	first   int // block of the slot
	sums    [slotBlocks]uint64
}

// SlotBytes is how much one Op reads at most; an Op does not cross multiples of it in a chunk.
const SlotBytes = slotBytes

// Begin begins a read of whole blocks into dst, in aligned memory. If it is false the cache does not have all of them, and there is nothing to finish. The
// caller has seen to it, as for Opened, that nobody else writes to them until Finish.
func (f *File) Begin(op *Op, b Blocks, dst []byte) bool {
	if f == nil || !f.c.usable.Load() {
		return false
	}
	era := f.era.Load()
	if era == Shared {
		return false
	}
	return f.begin(op, era, b, dst)
}

// Has reports whether the cache has n blocks, as far as is known without reading them.
func (f *File) Has(b Blocks, n int) bool {
	if f == nil || !f.c.usable.Load() {
		return false
	}
	era := f.era.Load()
	if era == Shared {
		return false
	}
	gen := generation(era, b.Lost)
	for n > 0 {
		at := int(b.First % slotBlocks)
		here := min(n, slotBlocks-at)
		want := uint8((1<<here - 1) << at)
		k := key{chunk: b.Chunk, gen: gen, place: b.First / slotBlocks}
		h := k.hash()
		s := &f.c.shards[h%shards]
		s.mu.Lock()
		i := s.find(k, h)
		has := i != none && s.slots[i].valid&want == want
		s.mu.Unlock()
		if !has {
			return false
		}
		n -= here
		b.First += uint32(here)
	}
	return true
}

func (f *File) begin(op *Op, era uint64, b Blocks, dst []byte) bool {
	n := len(dst) / chunk.BlockSize
	at := int(b.First % slotBlocks)
	if n == 0 || at+n > slotBlocks || len(dst)%chunk.BlockSize != 0 {
		return false
	}
	k := key{chunk: b.Chunk, gen: generation(era, b.Lost), place: b.First / slotBlocks}
	h := k.hash()
	s := &f.c.shards[h%shards]
	want := uint8((1<<n - 1) << at)
	s.mu.Lock()
	i := s.find(k, h)
	if i == none || s.slots[i].valid&want != want {
		s.mu.Unlock()
		return false
	}
	x := &s.slots[i]
	x.freq = min(x.freq+1, maxFreq)
	op.version = x.version
	copy(op.sums[:n], x.sums[at:])
	number := s.number(i)
	s.mu.Unlock()
	st := f.c.store.Load()
	if !st.hold() {
		return false
	}
	op.f, op.st, op.key, op.hash, op.first = f, st, k, h, at
	op.FD, op.Offset, op.Dst = st.fd, int64(number)*slotBytes+int64(at)*chunk.BlockSize, dst
	return true
}

// Do does what Begin has named, and waits for the disk.
func (op *Op) Do() (int, error) { return op.st.data.ReadAt(op.Dst, op.Offset) }

// Finish ends a read after n bytes of Dst were filled, and err. True: Dst has what the blocks hold.
func (op *Op) Finish(n int, err error) bool {
	c := op.f.c
	ok := err == nil && n == len(op.Dst)
	bad := uint8(0)
	for i := range len(op.Dst) / chunk.BlockSize {
		if !ok || sumOf(op.Dst[i*chunk.BlockSize:][:chunk.BlockSize], c.head.salt(), op.key, op.first+i) != op.sums[i] {
			bad |= 1 << (op.first + i)
		}
	}
	if bad != 0 {
		c.judge(op, bad, err)
	}
	op.st.release()
	op.f, op.st, op.Dst = nil, nil, nil
	return bad == 0
}

// maxReadErrors is how many reads the disk may fail before the cache is not used any more.
const maxReadErrors = 64

// judge is about blocks that are not what they should be. If something else was put in the slot's place meanwhile, that is no fault.
func (c *Cache) judge(op *Op, bad uint8, err error) {
	s := &c.shards[op.hash%shards]
	s.mu.Lock()
	i := s.find(op.key, op.hash)
	same := i != none && s.slots[i].version == op.version
	if same {
		s.invalidate(i, bad)
	}
	s.mu.Unlock()
	switch {
	case !same:
	case err != nil:
		if c.readErrors.Add(1) == maxReadErrors {
			c.switchOff(err)
		}
	default:
		if c.damaged.Add(1) == 1 {
			c.log.Warn("a block of the read cache was damaged; it is read elsewhere", "dir", op.st.dir, "chunk", op.key.chunk)
		}
	}
}

// Hit and Miss count a read of the file that was, or was not, answered by the cache.
func (f *File) Hit(n int) {
	if f != nil {
		f.touch()
		f.hits.Add(1)
		f.c.hits.Add(1)
		f.c.hitBytes.Add(uint64(n))
	}
}

// Miss is the other.
func (f *File) Miss(n int) {
	if f != nil {
		f.touch()
		f.misses.Add(1)
		f.c.misses.Add(1)
		f.c.missBytes.Add(uint64(n))
	}
}

func (f *File) touch() {
	if !f.used.Load() {
		f.used.Store(true)
	}
}
