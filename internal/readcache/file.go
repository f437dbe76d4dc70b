package readcache

import (
	"sync/atomic"
)

// File is what the cache has of one file. If the cache knows too many and it was not read for long, it is forgotten: then it has nothing and takes nothing, and
// whoever opens the file anew gets another one.
type File struct {
	c   *Cache
	n   int           // of its record
	era atomic.Uint64 // changed with Cache.table held; Shared: it is forgotten

	hits, misses atomic.Uint64 // reads
	used         atomic.Bool   // since the hand came by

	// Guarded by Cache.table.
	rec   fileRecord
	dirty bool // the record is not what is here
}

// table are the files that the cache knows.
type table struct {
	list  [maxFiles]*File
	byIno map[uint64]*File
	hand  int
}

func (t *table) init() { *t = table{byIno: make(map[uint64]*File)} }

// put puts a record in place n.
func (t *table) put(c *Cache, n int, r fileRecord) *File {
	f := &File{c: c, n: n, rec: r, dirty: true}
	f.era.Store(r.era)
	t.list[n] = f
	t.byIno[r.ino] = f
	return f
}

// victim returns a place for another file: a free one, or that of one that was not read since the hand came by, which is forgotten.
func (t *table) victim() int {
	for {
		n := t.hand
		t.hand = (t.hand + 1) % maxFiles
		f := t.list[n]
		if f == nil {
			return n
		}
		if !f.used.Swap(false) {
			f.era.Store(Shared)
			delete(t.byIno, f.rec.ino)
			t.list[n] = nil
			return n
		}
	}
}

// File returns what the cache has of an inode, nil if the cache is not in use. Nothing of it is believed before Opened.
func (c *Cache) File(ino uint64) *File {
	if !c.Usable() || ino == 0 {
		return nil
	}
	c.table.Lock()
	defer c.table.Unlock()
	f := c.files.byIno[ino]
	if f == nil {
		n := c.files.victim()
		f = c.files.put(c, n, fileRecord{ino: ino, era: newEra()})
		c.words.eras()[n].Store(f.rec.era)
	}
	return f
}

// Opened says that from now on nobody else writes to the file, until the caller stops to ask for it: before is an event of the metadata journal after which nobody
// was given the right to write, but perhaps the caller by this very grant; now is one after which certainly nobody was. write: the caller may.
func (f *File) Opened(before, now uint64, write bool) {
	if f == nil {
		return
	}
	f.c.table.Lock()
	defer f.c.table.Unlock()
	if f.c.files.list[f.n] != f {
		return
	}
	if before == 0 || f.rec.asOf < before {
		f.renewLocked()
	}
	f.rec.asOf = max(f.rec.asOf, now)
	if write {
		f.rec.written = f.c.head.run
	}
	f.changedLocked()
}

// Drop has nothing that the cache has of the file count any more.
func (f *File) Drop() {
	if f == nil {
		return
	}
	f.c.table.Lock()
	defer f.c.table.Unlock()
	if f.c.files.list[f.n] != f {
		return
	}
	f.renewLocked()
	f.changedLocked()
}

func (f *File) renewLocked() {
	f.rec.era = newEra()
	f.c.words.eras()[f.n].Store(f.rec.era) // before the era is used, or what it ends can be wrong
	f.era.Store(f.rec.era)
}

// changedLocked has the record written soon. Until it is, the older one counts after a crash only if the witness has the same era, or, without a witness, if
// nobody was let write since; the newer one says so itself.
func (f *File) changedLocked() {
	f.dirty = true
	select {
	case f.c.dirtyTab <- struct{}{}:
	default:
	}
}

// writeFiles writes the records that differ from what is here.
func (c *Cache) writeFiles(st *store) error {
	var b [fileBytes]byte
	for n := range maxFiles {
		c.table.Lock()
		f := c.files.list[n]
		if f == nil || !f.dirty {
			c.table.Unlock()
			continue
		}
		f.dirty = false
		f.rec.encode(b[:], c.head.salt(), n)
		c.table.Unlock()
		if _, err := st.index.WriteAt(b[:], headerBytes+int64(n)*fileBytes); err != nil {
			return err
		}
	}
	return nil
}
