package readcache

import (
	"cmp"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync/atomic"

	"github.com/zeebo/xxh3"
)

// load takes what the last run left in the directory, and begins another one.
func (c *Cache) load() error {
	st := c.store.Load()
	page := make([]byte, headerBytes)
	n, err := st.index.ReadAt(page, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	old, herr := decodeHeader(page[:n])
	if herr != nil && n > 0 {
		c.log.Warn("the read cache has no sound header and begins empty", "dir", st.dir)
	}
	if herr == nil && old.cluster != c.o.Cluster {
		c.log.Warn("the read cache was another cluster's and begins empty", "dir", st.dir, "cluster", old.cluster)
		herr = errHeader
	}
	c.head = old
	if herr != nil {
		if err := c.make(); err != nil {
			return err
		}
	} else {
		c.head.slots = uint64(slotsFor(c.o.Bytes))
	}
	return c.loadRecords(st, &old, herr == nil)
}

// loadRecords is load once it is known which cache it is, and whether there is one.
func (c *Cache) loadRecords(st *store, old *header, there bool) error {
	if !there || old.slots < c.head.slots {
		if err := c.sizeTo(st, int(c.head.slots)); err != nil {
			return err
		}
	}
	c.words = words{all: make([]atomic.Uint64, witnessHead+maxFiles+int(c.head.slots)), close: func() error { return nil }}
	for k := range c.shards {
		c.shards[k].init(k, int(c.head.slots)/shards, c.words.slots())
	}
	c.files.init()
	if there {
		if err := c.take(st, old); errors.Is(err, errLostWrites) {
			if err := c.make(); err != nil {
				return err
			}
			return c.loadRecords(st, old, false)
		} else if err != nil {
			return err
		}
		if err := c.sizeTo(st, int(c.head.slots)); err != nil {
			return err
		}
	}
	// From here on the records are exact, so that the next run needs no witness of this one. Only then its witness may go.
	if err := c.writeAll(st); err != nil {
		return err
	}
	return c.begin()
}

// errLostWrites says that records are not those that were written at a stop in order.
var errLostWrites = errors.New("records are not those that were written last")

// take takes the records that count.
func (c *Cache) take(st *store, old *header) error {
	var w []uint64
	if !old.clean {
		w = c.oldWitness(old)
	}
	var digest uint64
	b := make([]byte, maxFiles*fileBytes)
	if n, err := st.index.ReadAt(b, headerBytes); err != nil && !errors.Is(err, io.EOF) {
		return err
	} else {
		clear(b[n:])
	}
	for n := range maxFiles {
		r, ok := decodeFile(b[n*fileBytes:], old.salt(), n)
		if ok {
			digest += xxh3.Hash(b[n*fileBytes:][:fileBytes])
		}
		switch {
		case !ok || c.files.byIno[r.ino] != nil:
			continue
		case old.clean:
			r.written = 0
		case w != nil && w[witnessHead+n] != r.era, w == nil && r.written != 0:
			r.era, r.asOf, r.written = newEra(), 0, 0
		}
		c.files.put(c, n, r)
	}
	type found struct {
		n    int
		r    slotRecord
		less bool // than the record says counts
	}
	var all []found
	const piece = 8192
	buf := make([]byte, piece*recordBytes)
	slots := int(old.slots)
	for first := 0; first < slots; first += piece {
		b := buf[:min(piece, slots-first)*recordBytes]
		if n, err := st.index.ReadAt(b, recordAt(first)); err != nil && !errors.Is(err, io.EOF) {
			return err
		} else {
			clear(b[n:])
		}
		for i := range len(b) / recordBytes {
			n := first + i
			r, ok := decodeSlot(b[i*recordBytes:], old.salt(), n)
			if !ok {
				continue
			}
			digest += xxh3.Hash(b[i*recordBytes:][:recordBytes])
			if uint64(n) >= c.head.slots {
				continue
			}
			less := false
			if w != nil {
				v := w[witnessHead+maxFiles+n]
				if v>>slotBlocks != r.version {
					v = 0
				}
				less = r.valid&^uint8(v) != 0
				r.valid &= uint8(v)
			}
			all = append(all, found{n, r, less})
		}
	}
	if old.clean && digest != old.digest {
		c.log.Warn("the disk of the read cache has lost what was written last: the cache begins empty", "dir", st.dir)
		return errLostWrites
	}
	slices.SortFunc(all, func(a, b found) int { return cmp.Compare(a.r.version, b.r.version) }) // oldest first, as they entered their queues
	for _, f := range all {
		h := f.r.key.hash()
		s := &c.shards[f.n%shards]
		at := &s.slots[f.n/shards]
		at.dirty = true
		if f.r.valid == 0 || h%shards != uint64(s.no) || s.find(f.r.key, h) != none {
			continue
		}
		i := uint32(f.n / shards)
		*at = slot{key: f.r.key, version: f.r.version, valid: f.r.valid, sums: f.r.sums, dirty: f.less}
		s.enqueue(i, f.r.queue)
		s.link(i)
		st.pass(int64(f.n+1) * slotBytes)
		c.version.Store(max(c.version.Load(), f.r.version))
	}
	for i := range c.shards {
		s := &c.shards[i]
		s.free = none
		for k := len(s.slots) - 1; k >= 0; k-- {
			if s.slots[k].queue == inNone {
				s.slots[k].next, s.free = s.free, uint32(k)
			}
		}
	}
	return nil
}

// oldWitness returns what the last run's witness says, or nil if there is none that counts.
func (c *Cache) oldWitness(old *header) []uint64 {
	w := c.o.Witness.Find(c.witnessName())
	u1, u2 := c.uuidWords()
	if len(w) < witnessHead+maxFiles || w[0] != witnessMagic || w[1] != u1 || w[2] != u2 || w[3] != old.run || w[4] != old.slots ||
		w[5] != witnessKept || uint64(len(w)) != witnessHead+maxFiles+old.slots {
		return nil
	}
	return w
}

func newEra() uint64 {
	for {
		if v := rand.Uint64(); v != Shared {
			return v
		}
	}
}
