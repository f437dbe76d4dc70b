package readcache

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"

	crand "crypto/rand"

	"github.com/zeebo/xxh3"

	"varve/internal/disk"
	"varve/internal/fserr"
)

// Cache is a directory of blocks.
type Cache struct {
	o   Options
	log *slog.Logger

	admin sync.Mutex // Close, Resize, Move: one at a time
	table sync.Mutex // files, and what of them is kept
	files table

	shards  [shards]shard
	store   atomic.Pointer[store]
	head    header // changed with admin held
	version atomic.Uint64
	stripes [stripes]atomic.Uint64
	words   words // of the witness; changed with admin, table and all shards held

	writers  []chan *job
	done     sync.WaitGroup
	pause    sync.RWMutex // held for reading while a writer writes
	queued   atomic.Int64
	dirtyTab chan struct{} // wakes who writes records of files

	off    sync.RWMutex // also held for reading by who queues
	cause  error        // why the cache is not used any more
	closed bool         // guarded by off
	usable atomic.Bool  // it is used

	counts
}

// stripes is how many counters of invalidations there are, for fills to see that one came in between.
const stripes = 1 << 12

// words is the memory of the witness.
type words struct {
	all   []atomic.Uint64
	kept  bool // beyond the process
	close func() error
}

func (w *words) eras() []atomic.Uint64  { return w.all[witnessHead:][:maxFiles] }
func (w *words) slots() []atomic.Uint64 { return w.all[witnessHead+maxFiles:] }

// store is the files of a cache. They are closed when the last read of them has ended.
type store struct {
	dir         string
	data, index disk.File
	fd          int // of data, or -1
	unlock      func() error
	refs        atomic.Int32
	onClose     func()

	laying sync.Mutex
	laid   atomic.Int64 // bytes of data that have room on the disk, or were passed over; changed with laying held
}

func (s *store) hold() bool {
	for {
		n := s.refs.Load()
		if n == 0 {
			return false
		}
		if s.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (s *store) release() {
	if s.refs.Add(-1) == 0 {
		_ = errors.Join(s.data.Close(), s.index.Close()) // what counts was synced before
		if s.onClose != nil {
			s.onClose()
		}
		_ = s.unlock()
	}
}

// Open opens the cache in a directory, or makes one there. It fails if another process uses it, or the directory cannot be used.
func Open(o Options) (*Cache, error) {
	if err := o.defaults(); err != nil {
		return nil, fmt.Errorf("read cache %s: %w: %w", o.Dir, err, fserr.Invalid)
	}
	c := &Cache{o: o, log: o.Logger, dirtyTab: make(chan struct{}, 1)}
	st, err := openStore(o.FS, o.Dir)
	if err == nil {
		c.store.Store(st)
		if err = c.load(); err != nil {
			st.release()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read cache %s: %w", o.Dir, err)
	}
	c.usable.Store(true)
	c.startWriters()
	return c, nil
}

func openStore(fsys disk.FS, dir string) (*store, error) {
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, err
	}
	unlock, err := fsys.Lock(filepath.Join(dir, lockName))
	if err != nil {
		return nil, err
	}
	s := &store{dir: dir, unlock: unlock, fd: -1}
	s.refs.Store(1)
	if s.index, err = fsys.Open(filepath.Join(dir, indexName), disk.ReadWrite|disk.Create); err != nil {
		return nil, errors.Join(err, unlock())
	}
	s.data, err = fsys.Open(filepath.Join(dir, dataName), disk.ReadWrite|disk.Create|disk.Direct)
	if err != nil { // a filesystem without direct I/O
		if s.data, err = fsys.Open(filepath.Join(dir, dataName), disk.ReadWrite|disk.Create); err != nil {
			return nil, errors.Join(err, s.index.Close(), unlock())
		}
	}
	if d, ok := s.data.(disk.Descriptor); ok {
		s.fd = d.Descriptor()
	}
	return s, nil
}

// sizeTo gives the files their lengths. What they have not got yet must be there as room.
func (c *Cache) sizeTo(st *store, slots int) error {
	dataSize, indexSize := int64(slots)*slotBytes, int64(recordsStart)+int64(slots)*recordBytes
	have, err := st.data.Size()
	if err != nil {
		return err
	}
	if more := dataSize - have; more > 0 {
		if sp, err := c.o.FS.Space(st.dir); err == nil && sp.Free < uint64(more) {
			c.log.Warn("the read cache may grow larger than there is room; it will switch itself off when the disk is full",
				"dir", st.dir, "free", sp.Free, "more", more)
		}
	}
	return errors.Join(st.data.Truncate(dataSize), st.index.Truncate(indexSize))
}

// begin has the header say that a new run has begun, with the witness of it.
func (c *Cache) begin() error {
	st := c.store.Load()
	c.head.run = rand.Uint64() | 1
	c.head.clean = false
	w, keep := c.makeWitness()
	if _, err := st.index.WriteAt(c.head.encode(), 0); err != nil {
		return err
	}
	if err := st.index.Sync(); err != nil {
		return err
	}
	if err := keep(); err != nil {
		c.log.Warn("the read cache has no witness: after a crash, files that were open for writing are read anew", "dir", st.dir, "err", err)
		w.all[5].Store(witnessLost)
		w.kept = false
	}
	return nil
}

// makeWitness makes the words for the slots that there are, with what is known of them, and gives them to all shards.
//
// Preconditions: nobody else uses the cache, or all locks are held.
func (c *Cache) makeWitness() (w *words, keep func() error) {
	n := witnessHead + maxFiles + int(c.head.slots)
	all, keep, end, err := c.o.Witness.Make(c.witnessName(), n)
	if err != nil {
		all, end = make([]atomic.Uint64, n), func() error { return nil }
		keep = func() error { return err }
	}
	old := c.words
	if len(old.all) > 5 {
		old.all[5].Store(witnessLost) // what is kept of it counts no more: from here on nothing is noted there
	}
	c.words = words{all: all, kept: err == nil, close: end}
	u1, u2 := c.uuidWords()
	for i, v := range []uint64{witnessMagic, u1, u2, c.head.run, c.head.slots, witnessKept} {
		all[i].Store(v)
	}
	for i := range c.files.list {
		if f := c.files.list[i]; f != nil {
			c.words.eras()[i].Store(f.rec.era)
		}
	}
	for k := range c.shards {
		s := &c.shards[k]
		s.words = c.words.slots()
		for i := range s.slots {
			if x := &s.slots[i]; x.queue != inNone {
				s.witness(uint32(i)).Store(x.version<<slotBlocks | uint64(x.valid))
			}
		}
	}
	if old.close != nil {
		_ = old.close() // nobody has it any more
	}
	return &c.words, keep
}

func (c *Cache) witnessName() string { return "varve-cache-" + hex.EncodeToString(c.head.uuid[:]) }

func (c *Cache) uuidWords() (uint64, uint64) {
	return binary.LittleEndian.Uint64(c.head.uuid[:]), binary.LittleEndian.Uint64(c.head.uuid[8:])
}

// make makes the cache empty, under a new name.
func (c *Cache) make() error {
	if c.head.uuid != ([16]byte{}) {
		c.o.Witness.Forget(c.witnessName())
	}
	c.head = header{cluster: c.o.Cluster, slots: uint64(slotsFor(c.o.Bytes))}
	if _, err := crand.Read(c.head.uuid[:]); err != nil {
		return err
	}
	st := c.store.Load()
	// The header goes first: no record of the old cache counts under a new salt.
	if _, err := st.index.WriteAt(make([]byte, headerBytes), 0); err != nil {
		return err
	}
	return errors.Join(st.index.Truncate(0), st.data.Truncate(0))
}

// GiveUp switches the cache off because its disk is of no use.
func (c *Cache) GiveUp(cause error) { c.switchOff(cause) }

// switchOff ends the use of the cache for good, and says why.
func (c *Cache) switchOff(cause error) {
	c.off.Lock()
	first := c.cause == nil && !c.closed
	if first {
		c.cause = cause
	}
	c.off.Unlock()
	if !first {
		return
	}
	c.usable.Store(false)
	c.loseWitness()
	c.log.Error("read cache switched off, going on without", "dir", c.store.Load().dir, "cause", cause)
}

// loseWitness has nothing of this run count after a crash that was held for writing. Nobody notes any more what is invalidated.
func (c *Cache) loseWitness() {
	c.table.Lock()
	defer c.table.Unlock()
	c.words.all[5].Store(witnessLost)
}

// Usable reports whether the cache is in use. When it has switched itself off, Cause says why.
func (c *Cache) Usable() bool { return c != nil && c.usable.Load() }

// Cause says why the cache switched itself off; nil if it did not.
func (c *Cache) Cause() error {
	c.off.Lock()
	defer c.off.Unlock()
	return c.cause
}

// Close writes down what is in the cache, so that it counts after the next Open.
//
// Preconditions: nobody calls Invalidate any more.
func (c *Cache) Close() error {
	c.admin.Lock()
	defer c.admin.Unlock()
	c.off.Lock()
	was := c.closed
	c.closed = true
	c.off.Unlock()
	if was {
		return nil
	}
	wasUsable := c.usable.Swap(false)
	c.stopWriters()
	st := c.store.Load()
	defer st.release()
	if !wasUsable {
		return nil
	}
	err := c.writeAll(st)
	if err == nil {
		c.head.clean, c.head.digest = true, c.digest()
		if _, err = st.index.WriteAt(c.head.encode(), 0); err == nil {
			err = st.index.Sync()
		}
	}
	c.table.Lock()
	c.lockShards()
	n := len(c.words.all)
	if err == nil {
		c.o.Witness.Forget(c.witnessName())
	} else {
		c.words.all[5].Store(witnessLost)
	}
	end := c.words.close
	c.words = words{all: make([]atomic.Uint64, n)}
	for k := range c.shards {
		c.shards[k].words = c.words.slots()
	}
	c.unlockShards()
	c.table.Unlock()
	err = errors.Join(err, end())
	if err != nil {
		return fmt.Errorf("close read cache %s: %w", st.dir, err)
	}
	return nil
}

func (c *Cache) lockShards() {
	for k := range c.shards {
		c.shards[k].mu.Lock()
	}
}

func (c *Cache) unlockShards() {
	for k := range c.shards {
		c.shards[k].mu.Unlock()
	}
}

// writeAll writes the records that differ from what is here, and syncs them.
//
// Preconditions: no writer runs.
func (c *Cache) writeAll(st *store) error {
	if err := c.writeFiles(st); err != nil {
		return err
	}
	var b [recordBytes]byte
	for k := range c.shards {
		s := &c.shards[k]
		for i := range s.slots {
			s.mu.Lock()
			x := &s.slots[i]
			dirty := x.dirty
			x.dirty = false
			c.encode(x, &b, s.number(uint32(i)))
			s.mu.Unlock()
			if !dirty {
				continue
			}
			if _, err := st.index.WriteAt(b[:], recordAt(s.number(uint32(i)))); err != nil {
				return err
			}
		}
	}
	return st.index.Sync()
}

// digest names all records together, as they should be on the disk: if one of the last writes was lost, they are another's.
func (c *Cache) digest() uint64 {
	var d uint64
	var b [recordBytes]byte
	for n, f := range c.files.list {
		if f != nil {
			f.rec.encode(b[:], c.head.salt(), n)
			d += xxh3.Hash(b[:fileBytes])
		}
	}
	for k := range c.shards {
		s := &c.shards[k]
		for i := range s.slots {
			if x := &s.slots[i]; x.valid != 0 {
				c.encode(x, &b, s.number(uint32(i)))
				d += xxh3.Hash(b[:])
			}
		}
	}
	return d
}

func recordAt(n int) int64 { return recordsStart + int64(n)*recordBytes }

// encode makes the record of a slot: zeros if there is nothing in it.
func (c *Cache) encode(x *slot, b *[recordBytes]byte, n int) {
	if x.queue == inNone || x.valid == 0 {
		clear(b[:])
		return
	}
	r := slotRecord{key: x.key, version: x.version, valid: x.valid, queue: x.queue, sums: x.sums}
	r.encode(b[:], c.head.salt(), n)
}

// Remove deletes the files of a cache that no process uses. It is for who moves a cache away.
func Remove(fsys disk.FS, dir string) error {
	var errs []error
	for _, name := range []string{indexName, dataName, lockName} {
		if err := fsys.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
