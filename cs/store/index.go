package store

// The file `index` lists the chunks with their epochs and states, so that a start need not read 100,000 headers before the server can say
// what it has. It is written when the store is closed. The file `index.log` lists the chunks whose headers may have changed since; it is
// written before they do, so both are good after a crash as well. A chunk that is in neither was made since. The header of a chunk is what
// counts: it is read when the chunk is opened, and the index is wrong only where somebody has changed files behind the store's back.
//
// index, replaced as a whole:
//
//	offset  bytes  what
//	0       8      magic "VRVINDX1"
//	8       4      version, 1
//	12      4      number of entries
//	16      16     cluster
//	32      8      generation, from 1
//	40      4      checksum of the entries
//	44      4048   reserved
//	4092    4      checksum of bytes 0 to 4091
//	4096           entries of 24 bytes, by chunk: chunk id (8), epoch (8), state (1) as in a header, reserved (7)
//
// index.log is 1 MiB long from the start and holds records as in the activity log, of kind mark and extents 1, with the generation of
// the index. Records of earlier generations are what an older index left. If the log is damaged, or full, the index is removed, and
// every header is read at the next start.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync"

	"varve/cs/repl"
	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/id"
)

const (
	indexName     = "index"
	indexLogName  = "index.log"
	indexMagic    = "VRVINDX1"
	indexEntry    = 24
	maxIndex      = 1 << 24 // entries
	indexLogSize  = regionRecords * recordSize
	indexLogMarks = 1
)

// indexed is one entry of the index.
type indexed struct {
	chunk id.ChunkID
	rec   repl.Record
}

// index is what is known of the two files. touch may be called at once.
type index struct {
	fsys    disk.FS
	dir     string
	cluster id.Cluster

	mu         sync.Mutex
	on         bool       // there is an index on the disk, and a log that goes with it
	log        disk.File  // nil while there is none
	last       id.ChunkID // the highest id that the index has, scratch chunks left out
	generation uint64
	position   int // of the next record
	stale      bool
}

// encodeIndex returns the content of the file.
func encodeIndex(cluster id.Cluster, generation uint64, list []indexed) []byte {
	b := make([]byte, slotSize+len(list)*indexEntry)
	for i, e := range list {
		at := b[slotSize+i*indexEntry:]
		binary.LittleEndian.PutUint64(at, uint64(e.chunk))
		binary.LittleEndian.PutUint64(at[8:], uint64(e.rec.Epoch))
		at[16] = byte(e.rec.State)
	}
	copy(b, indexMagic)
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(list)))
	copy(b[16:], cluster[:])
	binary.LittleEndian.PutUint64(b[32:], generation)
	binary.LittleEndian.PutUint32(b[40:], chunk.Sum(b[slotSize:]))
	seal(b)
	return b
}

// decodeIndex is the inverse of encodeIndex. Its errors wrap ErrCorrupt.
func decodeIndex(b []byte) (cluster id.Cluster, generation uint64, list []indexed, err error) {
	bad := func(format string, args ...any) (id.Cluster, uint64, []indexed, error) {
		return id.Cluster{}, 0, nil, fmt.Errorf("index: "+format+": %w", append(args, ErrCorrupt)...)
	}
	if len(b) < slotSize {
		return bad("%d bytes", len(b))
	}
	if err := unseal(b, indexMagic); err != nil {
		return id.Cluster{}, 0, nil, err
	}
	n := int64(binary.LittleEndian.Uint32(b[12:]))
	if n > maxIndex || int64(len(b)) != slotSize+n*indexEntry {
		return bad("%d bytes with %d entries", len(b), n)
	}
	if want, got := binary.LittleEndian.Uint32(b[40:]), chunk.Sum(b[slotSize:]); want != got {
		return bad("entries: checksum %08x, want %08x", got, want)
	}
	if generation = binary.LittleEndian.Uint64(b[32:]); generation == 0 || !chunk.IsZero(b[44:slotSize-4]) {
		return bad("generation %d, or reserved bytes are not zero", generation)
	}
	list = make([]indexed, n)
	for i := range list {
		at := b[slotSize+i*indexEntry:][:indexEntry]
		e := indexed{id.ChunkID(binary.LittleEndian.Uint64(at)), repl.Record{Epoch: id.Epoch(binary.LittleEndian.Uint64(at[8:])), State: repl.State(at[16])}}
		known := e.rec.State == repl.Serving || e.rec.State == repl.Tracking || e.rec.State == repl.Unclean || e.rec.State == repl.Copied
		if !known || !chunk.IsZero(at[17:]) || i > 0 && list[i-1].chunk >= e.chunk {
			return bad("entry %d: chunk %v state %d", i, e.chunk, at[16])
		}
		list[i] = e
	}
	return id.Cluster(b[16:32]), generation, list, nil
}

// decodeIndexLog returns the chunks that the log of an index of a generation lists, and how many records it has. A damaged log is an error, which
// wraps ErrCorrupt.
func decodeIndexLog(b []byte, generation uint64) (touched map[id.ChunkID]bool, records int, err error) {
	touched = make(map[id.ChunkID]bool)
	for i := 0; i < regionRecords; i++ {
		if n := emptySlots(b, i); n > 0 {
			i += n - 1
			continue
		}
		switch r, state := readSlot(b[i*recordSize:], uint64(i), generation); {
		case state == slotBad || state == slotRecord && (i != records || r.kind != kindMark || r.marks != indexLogMarks):
			return nil, 0, fmt.Errorf("index.log: record %d of generation %d is damaged: %w", i, generation, ErrCorrupt)
		case state == slotRecord:
			touched[r.chunk] = true
			records++
		}
	}
	return touched, records, nil
}

// open reads index and log. What cannot be believed is removed, and is no error. The entries come without those whose headers must be read.
func (x *index) open() (list []indexed, err error) {
	touched := map[id.ChunkID]bool{}
	list, err = x.read()
	if err == nil {
		if x.log, err = x.fsys.Open(x.path(indexLogName), disk.ReadWrite); err == nil {
			b, done := startBuffer(indexLogSize)
			defer done()
			if _, err = x.log.ReadAt(b, 0); errors.Is(err, io.EOF) {
				err = fmt.Errorf("index.log is too short: %w", ErrCorrupt)
			}
			if err == nil {
				touched, x.position, err = decodeIndexLog(b, x.generation)
			}
		}
	}
	switch {
	case errors.Is(err, ErrCorrupt) || errors.Is(err, fs.ErrNotExist) || disk.Medium(err):
		return nil, x.discard()
	case err != nil:
		return nil, err
	}
	x.on = true
	for _, e := range list {
		if !e.chunk.IsScratch() {
			x.last = e.chunk
		}
	}
	sound := list[:0]
	for _, e := range list {
		if !touched[e.chunk] {
			sound = append(sound, e)
		}
	}
	x.stale = len(touched) > 0
	return sound, nil
}

func (x *index) path(name string) string { return filepath.Join(x.dir, name) }

func (x *index) read() ([]indexed, error) {
	f, err := x.fsys.Open(x.path(indexName), disk.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n, err := f.Size()
	if err != nil {
		return nil, err
	}
	if n > slotSize+maxIndex*indexEntry {
		return nil, fmt.Errorf("index: %d bytes: %w", n, ErrCorrupt)
	}
	b := make([]byte, n)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	cluster, generation, list, err := decodeIndex(b)
	if err == nil && cluster != x.cluster {
		err = fmt.Errorf("index is of cluster %v: %w", cluster, ErrCorrupt)
	}
	x.generation = generation
	return list, err
}

// discard removes the index durably. The log is of no use without it, and is made anew with the next.
func (x *index) discard() error {
	x.on, x.stale = false, true
	err := x.close()
	if rerr := x.fsys.Remove(x.path(indexName)); errors.Is(rerr, fs.ErrNotExist) {
		return err
	} else if rerr != nil {
		return errors.Join(err, rerr)
	}
	return errors.Join(err, x.fsys.SyncDir(x.dir))
}

func (x *index) close() error {
	if x.log == nil {
		return nil
	}
	err := x.log.Close()
	x.log = nil
	return err
}

// touch returns when it is on stable media that the index does not tell about the chunk any more. Preconditions: it is not touched yet, or may be
// touched again.
func (x *index) touch(c id.ChunkID) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.stale = true
	if !x.on {
		return nil
	}
	if x.position == regionRecords {
		return x.discard()
	}
	b := record{kind: kindMark, marks: indexLogMarks, chunk: c}.append(nil, uint64(x.position), x.generation)
	if _, err := x.log.WriteAt(b, int64(x.position)*recordSize); err != nil {
		return err
	}
	x.position++
	return x.log.Sync()
}

// made is told of a chunk that gets a new file: an index may have an older one of the same id.
func (x *index) made(c id.ChunkID) error {
	x.mu.Lock()
	old := x.on && (c <= x.last || c.IsScratch())
	x.stale = true
	x.mu.Unlock()
	if old {
		return x.touch(c)
	}
	return nil
}

// changed notes that the next index is another one.
func (x *index) changed() {
	x.mu.Lock()
	x.stale = true
	x.mu.Unlock()
}

// write puts a new index in place of the old one. Preconditions: nothing else runs.
func (x *index) write(list []indexed) error {
	if !x.stale || len(list) > maxIndex {
		return nil
	}
	if !x.on {
		// What is in a log without an index is not known.
		if err := x.makeLog(); err != nil {
			return err
		}
		x.generation = 0
	}
	path := x.path(indexName)
	if err := x.fsys.Remove(path + ".new"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := x.fsys.Open(path+".new", disk.ReadWrite|disk.Create)
	if err != nil {
		return err
	}
	if _, err = f.WriteAt(encodeIndex(x.cluster, x.generation+1, list), 0); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := x.fsys.Rename(path+".new", path); err != nil {
		return err
	}
	return x.fsys.SyncDir(x.dir)
}

// makeLog makes an empty log durably.
func (x *index) makeLog() error {
	path := x.path(indexLogName)
	f, err := x.fsys.Open(path+".new", disk.ReadWrite|disk.Create)
	if err != nil {
		return err
	}
	if _, err = f.WriteAt(make([]byte, indexLogSize), 0); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := x.fsys.Rename(path+".new", path); err != nil {
		return err
	}
	return x.fsys.SyncDir(x.dir)
}

// removeIndex removes the index of a store that is not open, for who changes headers without opening it.
func removeIndex(fsys disk.FS, dir string) error {
	return (&index{fsys: fsys, dir: dir}).discard()
}

// recoverIndex takes from the index what it knows of the chunks.
func (s *Store) recoverIndex() error {
	s.index = index{fsys: s.o.FS, dir: s.o.Dir, cluster: s.o.Cluster}
	list, err := s.index.open()
	if err != nil {
		return err
	}
	for _, x := range list {
		if e := s.chunks[x.chunk]; e != nil {
			e.known, e.indexed, e.rec, e.rep = true, true, x.rec, repl.Restart(x.rec, e.replay != 0)
		} else {
			s.index.stale = true
		}
	}
	if len(list) < len(s.ids) {
		s.index.stale = true
	}
	return nil
}

// writeIndex writes down what is known of all chunks. Preconditions: nothing else runs.
func (s *Store) writeIndex() {
	list := make([]indexed, 0, len(s.ids))
	for _, c := range s.ids {
		if e := s.chunks[c]; e.known && !e.corrupt {
			list = append(list, indexed{c, e.rec})
		}
	}
	if err := s.index.write(list); err != nil {
		s.o.Logger.Warn("index of the chunks not written: the next start reads every header", "dir", s.o.Dir, "err", err)
	}
}
