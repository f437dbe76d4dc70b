package readcache

import (
	"fmt"
	"sync"

	"varve/internal/chunk"
	"varve/internal/disk"
)

const (
	writers   = 4
	queueJobs = 1024 // of one writer
)

// job is blocks that are to be put into a slot.
type job struct {
	f      *File
	era    uint64
	key    key
	hash   uint64
	first  int // block of the slot
	ticket uint64
	data   []byte // of room
	room   []byte

	checked bool // data must have these checksums
	want    [slotBlocks]uint32
}

var jobs = sync.Pool{New: func() any { return &job{room: disk.AlignedBuffer(slotBytes)} }}

func (c *Cache) startWriters() {
	c.writers = make([]chan *job, writers)
	for i := range c.writers {
		ch := make(chan *job, queueJobs)
		c.writers[i] = ch
		c.done.Go(func() {
			for j := range ch {
				c.put(j)
				c.queued.Add(-int64(len(j.data)))
				j.f, j.data = nil, nil
				jobs.Put(j)
			}
		})
	}
	wake := c.dirtyTab
	c.done.Go(func() {
		for range wake {
			c.pause.RLock()
			if c.usable.Load() {
				if err := c.writeFiles(c.store.Load()); err != nil {
					c.pause.RUnlock()
					c.switchOff(fmt.Errorf("write the record of a file: %w", err))
					continue
				}
			}
			c.pause.RUnlock()
		}
	})
}

// stopWriters returns when what was queued is written and nothing is any more.
func (c *Cache) stopWriters() {
	c.table.Lock() // nobody wakes the writer of records
	wake := c.dirtyTab
	c.dirtyTab = nil
	c.table.Unlock()
	close(wake)
	c.off.Lock() // nobody queues
	for _, ch := range c.writers {
		close(ch)
	}
	c.writers = nil
	c.off.Unlock()
	c.done.Wait()
}

// stripe is the counter of invalidations of a slot's key.
func (c *Cache) stripe(h uint64) int { return int(h >> 16 % stripes) }

// Fill puts blocks that were read and verified into the cache, soon, if there is room in the queue. The caller has them as they are now, and
// will call Invalidate before they change: what it invalidates after this call is not put in. sums are the checksums of the blocks, as of chunk.AppendSums, if somebody
// else may write to the memory of data meanwhile: what has others then is not put in either. nil: nobody may.
func (f *File) Fill(b Blocks, data []byte, sums []uint32) {
	if f == nil || !f.c.usable.Load() {
		return
	}
	if era := f.era.Load(); era != Shared {
		f.fill(era, b, data, sums)
	}
}

func (f *File) fill(era uint64, b Blocks, data []byte, sums []uint32) {
	c := f.c
	for len(data) > 0 {
		at := int(b.First % slotBlocks)
		n := min(len(data), (slotBlocks-at)*chunk.BlockSize)
		k := key{chunk: b.Chunk, gen: generation(era, b.Lost), place: b.First / slotBlocks}
		blocks := n / chunk.BlockSize
		if sums == nil {
			c.queue(f, era, k, at, data[:n], nil)
		} else {
			c.queue(f, era, k, at, data[:n], sums[:blocks])
			sums = sums[blocks:]
		}
		data = data[n:]
		b.First += uint32(blocks)
	}
}

func (c *Cache) queue(f *File, era uint64, k key, at int, data []byte, sums []uint32) {
	if c.queued.Add(int64(len(data))) > c.o.QueueBytes {
		c.queued.Add(-int64(len(data)))
		c.skipped.Add(1)
		return
	}
	j := jobs.Get().(*job)
	j.f, j.era, j.key, j.hash, j.first = f, era, k, k.hash(), at
	j.ticket = c.stripes[c.stripe(j.hash)].Load()
	j.data = j.room[:copy(j.room, data)]
	j.checked = sums != nil
	copy(j.want[:], sums)
	c.off.RLock()
	sent := false
	if c.writers != nil {
		select {
		case c.writers[j.hash%shards%writers] <- j:
			sent = true
		default:
		}
	}
	c.off.RUnlock()
	if !sent {
		c.queued.Add(-int64(len(j.data)))
		c.skipped.Add(1)
		j.f, j.data = nil, nil
		jobs.Put(j)
	}
}

// current reports whether nothing was invalidated since the job was queued.
func (c *Cache) current(j *job) bool {
	return c.stripes[c.stripe(j.hash)].Load() == j.ticket && (j.era == Shared || j.f.era.Load() == j.era)
}

// put writes a job's blocks. Jobs of one shard come one after the other.
func (c *Cache) put(j *job) {
	c.pause.RLock()
	defer c.pause.RUnlock()
	if !c.usable.Load() {
		return
	}
	n := len(j.data) / chunk.BlockSize
	if j.checked && chunk.VerifySums(j.want[:n], 0, j.data) >= 0 {
		c.overtaken.Add(1)
		return
	}
	st := c.store.Load()
	s := &c.shards[j.hash%shards]
	bits := uint8((1<<n - 1) << j.first)
	s.mu.Lock()
	if !c.current(j) {
		s.mu.Unlock()
		c.overtaken.Add(1)
		return
	}
	i := s.find(j.key, j.hash)
	if i == none {
		var evicted bool
		if i, evicted = s.add(j.key, j.hash); evicted {
			c.evicted.Add(1)
		}
	}
	if i == none || s.slots[i].valid&bits == bits {
		s.mu.Unlock()
		return
	}
	s.slots[i].busy = true
	number := s.number(i)
	s.mu.Unlock()
	err := st.lay(number)
	if err == nil {
		_, err = st.data.WriteAt(j.data, int64(number)*slotBytes+int64(j.first)*chunk.BlockSize)
	}
	var sums [slotBlocks]uint64
	for k := range n {
		sums[k] = sumOf(j.data[k*chunk.BlockSize:][:chunk.BlockSize], c.head.salt(), j.key, j.first+k)
	}
	var rec [recordBytes]byte
	s.mu.Lock()
	x := &s.slots[i]
	x.busy = false
	if err != nil || !c.current(j) {
		if x.valid == 0 {
			s.drop(i)
		}
		s.mu.Unlock()
		if err != nil {
			c.switchOff(fmt.Errorf("write blocks: %w", err))
		}
		return
	}
	x.valid |= bits
	copy(x.sums[j.first:], sums[:n])
	x.version = c.version.Add(1)
	s.witness(i).Store(x.version<<slotBlocks | uint64(x.valid))
	x.dirty = false
	c.encode(x, &rec, number)
	s.mu.Unlock()
	c.filled.Add(uint64(n))
	if _, err := st.index.WriteAt(rec[:], recordAt(number)); err != nil {
		c.switchOff(fmt.Errorf("write the record of a slot: %w", err))
	}
}

// Invalidate has n bytes from off of a chunk not count any more, of whole blocks and parts alike. It is called before they change.
func (f *File) Invalidate(b Blocks, off, n uint32) {
	if f == nil || n == 0 {
		return
	}
	era := f.era.Load()
	if era == Shared {
		return
	}
	c, gen := f.c, generation(era, b.Lost)
	first, last := off/chunk.BlockSize, (off+n-1)/chunk.BlockSize
	for place := first / slotBlocks; place <= last/slotBlocks; place++ {
		k := key{chunk: b.Chunk, gen: gen, place: place}
		h := k.hash()
		from, to := max(first, place*slotBlocks)%slotBlocks, min(last, place*slotBlocks+slotBlocks-1)%slotBlocks
		bits := uint8(1<<(to+1)-1) &^ uint8(1<<from-1)
		c.stripes[c.stripe(h)].Add(1)
		s := &c.shards[h%shards]
		s.mu.Lock()
		if i := s.find(k, h); i != none {
			if n := s.invalidate(i, bits); n > 0 {
				c.invalidated.Add(uint64(n))
			}
		}
		s.mu.Unlock()
	}
}
