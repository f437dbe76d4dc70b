package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"sync/atomic"

	"varve/cs/repl"
	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/local"
	"varve/internal/rwlock"
)

// entry is a chunk that the store holds. It stays in memory; its image comes and goes.
type entry struct {
	id    id.ChunkID
	used  atomic.Bool  // since the evictor last came by
	rest  atomic.Bool  // it is in the list of active chunks beside the activity log
	bad   atomic.Int32 // blocks in quarantine
	stuck atomic.Bool  // one of them stayed bad when it was written

	allocated atomic.Int64  // bytes that the file takes up and one; 0: not counted yet
	countedAt atomic.Uint64 // image.written when they were

	// gate is held shared by operations and exclusively by what changes the fields below.
	gate    rwlock.Mutex
	gone    bool        // deleted: look the chunk up again
	known   bool        // rep was read from the disk
	indexed bool        // the index on the disk tells of the chunk what the header does
	rec     repl.Record // in the header; if known. Written by whoever writes the header
	corrupt bool        // no valid header; only Join and Delete help
	rep     repl.Replica
	img     *image // nil while the file is not open
	loads   uint32 // how often it was opened

	// mu guards what follows. With an image, all of the image's own fields too.
	mu     sync.Mutex
	marked extents // active, on stable media
	replay extents // of these, left by a crash: checksums are made again when the image is loaded
}

// image is an open chunk file with its table. The fields without a note are guarded by entry.mu.
type image struct {
	f        disk.File // safe for concurrent use
	fd       int       // of f; -1 if it has none
	sequence uint64    // owned by whoever writes the header: the gate's holder, or the one settling
	pages    [chunk.Extents]uint32

	cond     sync.Cond // on entry.mu; broadcast when held, marking or settling shrink
	sums     [chunk.Blocks]uint32
	dirty    extents // sums differ from the table on disk; always within marked
	marking  extents // a mark is on its way to the disk
	settling extents // are being settled: writers wait
	writers  [chunk.Extents]int32
	last     [chunk.Extents]int64 // Store.now at the last write
	held     []hold
	ticket   uint64
	slot     *local.Slot // what readers outside the process see of the chunk; nil, or it may have ended

	flushMu   sync.Mutex
	flushCond sync.Cond
	flushing  bool
	written   atomic.Uint64 // writes done
	synced    atomic.Uint64 // of these, on stable media
}

// hold is a lock on the blocks [first, end), or a place in the queue for one.
type hold struct {
	ticket     uint64
	first, end uint32
	exclusive  bool
}

// lock returns when no earlier conflicting lock is held or waited for, so that no one starves.
func (e *entry) lock(first, end uint32, exclusive bool) uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	im := e.img
	im.ticket++
	t := im.ticket
	im.held = append(im.held, hold{ticket: t, first: first, end: end, exclusive: exclusive})
	for im.blocked(t) {
		im.cond.Wait()
	}
	im.announce(first, end, exclusive)
	return t
}

func (im *image) blocked(t uint64) bool {
	mine := im.held[im.place(t)]
	for _, h := range im.held {
		if h.ticket == t {
			return false
		}
		if h.first < mine.end && mine.first < h.end && (h.exclusive || mine.exclusive) {
			return true
		}
	}
	return false
}

// tryHold is lock for who cannot wait: it takes the lock if nobody holds or waits for one that conflicts. Preconditions: entry.mu is held.
func (im *image) tryHold(first, end uint32, exclusive bool) (ticket uint64, ok bool) {
	for _, h := range im.held {
		if h.first < end && first < h.end && (h.exclusive || exclusive) {
			return 0, false
		}
	}
	im.ticket++
	im.held = append(im.held, hold{ticket: im.ticket, first: first, end: end, exclusive: exclusive})
	im.announce(first, end, exclusive)
	return im.ticket, true
}

func (im *image) place(t uint64) int {
	i := 0
	for im.held[i].ticket != t {
		i++
	}
	return i
}

func (e *entry) unlock(t uint64) {
	e.mu.Lock()
	im := e.img
	i := im.place(t)
	im.conclude(im.held[i])
	im.held = append(im.held[:i], im.held[i+1:]...)
	if len(im.held) > 0 {
		im.cond.Broadcast()
	}
	e.mu.Unlock()
}

func (s *Store) dirOf(c id.ChunkID) string {
	return filepath.Join(s.o.Dir, "chunks", fmt.Sprintf("%02x", uint8(c)))
}

func (s *Store) pathOf(c id.ChunkID) string {
	return filepath.Join(s.dirOf(c), c.String()+".chk")
}

func (s *Store) openFile(path string, flag disk.Flag) (disk.File, error) {
	if s.direct {
		flag |= disk.Direct
	}
	return s.o.FS.Open(path, flag)
}

// make creates the file of a chunk durably: under another name, synced, renamed.
// It replaces a file that is there.
func (s *Store) make(c id.ChunkID, rec repl.Record) error {
	path := s.pathOf(c)
	f, err := s.openFile(path+".new", disk.ReadWrite|disk.Create)
	if err != nil {
		return s.outcome("create", c, err)
	}
	st := s.getStage()
	defer s.putStage(st)
	b := st.buf[:metaSize]
	clear(b)
	h := header{cluster: s.o.Cluster, chunk: c, rec: rec, sequence: 1}
	for i := range h.pages {
		h.pages[i] = chunk.Sum(b[tableOffset : tableOffset+pageSize])
	}
	h.encode(b)
	if err = f.Truncate(fileSize); err == nil {
		if _, err = f.WriteAt(b, 0); err == nil {
			err = f.Sync()
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		s.o.FS.Remove(path + ".new")
		return s.outcome("create", c, err)
	}
	if err := s.o.FS.Rename(path+".new", path); err != nil {
		return s.outcome("create", c, err)
	}
	if err := s.o.FS.SyncDir(s.dirOf(c)); err != nil {
		return s.fail("create", c, err)
	}
	return nil
}

// peek reads the header of a chunk, so that its epoch and state are known.
func (s *Store) peek(e *entry) error {
	e.gate.Lock()
	defer e.gate.Unlock()
	if e.known || e.gone {
		return nil
	}
	f, err := s.openFile(s.pathOf(e.id), disk.ReadOnly)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !disk.Medium(err) {
		return s.opening(e.id, err)
	}
	if err != nil {
		return s.unreadable(e, err)
	}
	defer f.Close()
	p := getPage()
	defer putPage(p)
	_, err = s.readHeader(e, f, p[:2*slotSize])
	return err
}

// readHeader fills b from the start of the file and decodes the header in it.
func (s *Store) readHeader(e *entry, f disk.File, b []byte) (header, error) {
	if _, err := f.ReadAt(b, 0); err != nil {
		return header{}, s.unreadable(e, err)
	}
	h, err := newestHeader(b)
	if err == nil {
		err = h.check(s.o.Cluster, e.id)
	}
	if err != nil {
		return header{}, s.unreadable(e, err)
	}
	wrong := e.indexed && h.rec != e.rec
	if wrong {
		s.o.Logger.Error("the index tells something else of a chunk than its header, which counts", "chunk", e.id,
			"index epoch", e.rec.Epoch, "index state", e.rec.State, "epoch", h.rec.Epoch, "state", h.rec.State)
		if err := s.index.touch(e.id); err != nil {
			return header{}, s.fail("write index", e.id, err)
		}
		e.indexed = false
	}
	if !e.known || wrong {
		e.mu.Lock()
		active := e.replay != 0
		e.mu.Unlock()
		e.rep, e.known, e.rec = repl.Restart(h.rec, active), true, h.rec
		s.index.changed()
	}
	return h, nil
}

// unreadable makes a chunk without a readable header joining, lost, so that it can be rebuilt.
func (s *Store) unreadable(e *entry, err error) error {
	if !e.corrupt {
		s.o.Logger.Error("chunk has no readable header", "chunk", e.id, "cause", err)
	}
	if e.indexed {
		if terr := s.index.touch(e.id); terr != nil {
			return s.fail("write index", e.id, terr)
		}
		e.indexed = false
	}
	s.headless.Store(e.id, true)
	e.rep, e.known, e.corrupt = repl.Replica{State: repl.Lost}, true, true
	return fmt.Errorf("chunk %v: %w: %w", e.id, fserr.Of(err), err)
}

// load opens the file of a chunk and reads its table. Preconditions: the gate is held exclusively.
func (s *Store) load(e *entry) error {
	if e.img != nil || e.gone {
		return nil
	}
	s.evict()
	f, err := s.openFile(s.pathOf(e.id), disk.ReadWrite)
	if errors.Is(err, fs.ErrNotExist) || err == nil && e.corrupt {
		if err == nil {
			f.Close()
		}
		return s.unreadable(e, ErrCorrupt)
	}
	if err != nil {
		return s.opening(e.id, err)
	}
	im := &image{f: f, fd: -1}
	if d, ok := f.(disk.Descriptor); ok {
		im.fd = d.Descriptor()
	}
	im.cond.L, im.flushCond.L = &e.mu, &im.flushMu
	if err := s.fill(e, im); err != nil {
		f.Close()
		return err
	}
	e.img = im
	e.loads++
	e.used.Store(true)
	s.openMu.Lock()
	s.open = append(s.open, e)
	s.openMu.Unlock()
	return nil
}

// fill reads header and table of an image and makes again the checksums that a crash left open.
func (s *Store) fill(e *entry, im *image) error {
	st := s.getStage()
	defer s.putStage(st)
	b := st.buf[:metaSize]
	h, err := s.readHeader(e, im.f, b)
	if err != nil {
		return err
	}
	im.sequence, im.pages = h.sequence, h.pages
	var bad extents
	for i := range uint32(chunk.Extents) {
		page := b[tableOffset+i*pageSize:][:pageSize]
		decodePage(im.sums[i*pageSums:(i+1)*pageSums], page)
		if chunk.Sum(page) != h.pages[i] {
			bad |= span(i, i)
		}
	}
	e.mu.Lock()
	replay := e.replay
	e.mu.Unlock()
	for i := range uint32(chunk.Extents) {
		switch {
		case replay.has(i):
			err = s.recompute(e, im, st, i)
		case bad.has(i):
			s.o.Logger.Error("table page does not match the header", "chunk", e.id, "extent", i)
			err = s.mistrust(e, im, st, i)
		}
		if err != nil {
			return fmt.Errorf("chunk %v: extent %d: %w", e.id, i, err)
		}
	}
	if err := s.falseHoles(e, im, st, replay); err != nil {
		return fmt.Errorf("chunk %v: look for lost blocks: %w", e.id, err)
	}
	now := s.now()
	for i := range im.last {
		im.last[i] = now
	}
	im.dirty = replay
	e.mu.Lock()
	e.replay = 0
	e.mu.Unlock()
	return nil
}

// recompute makes the checksums of an extent from the data on the disk. What is in quarantine keeps the checksum that it does not
// match.
func (s *Store) recompute(e *entry, im *image, st *stage, extent uint32) error {
	listed := s.listed(e)
	return s.each(e, im, st, extent, func(block uint32, data []byte) {
		switch sum := chunk.Sum(data); {
		case listed[block] || sum == im.sums[block]:
		case chunk.IsZero(data):
			im.sums[block] = chunk.Hole
		default:
			im.sums[block] = sum
		}
	})
}

// mistrust goes through an extent whose table page is damaged. A checksum in it that agrees with the
// data is right and one that does not makes reads fail, but a false hole would read as zeros: it
// gets a checksum that no read accepts.
func (s *Store) mistrust(e *entry, im *image, st *stage, extent uint32) error {
	return s.doubt(e, im, st, extent*pageSums, (extent+1)*pageSums)
}

// each gives every block of an extent that can be read to do. Those that the medium does not give go into quarantine.
func (s *Store) each(e *entry, im *image, st *stage, extent uint32, do func(block uint32, data []byte)) error {
	return s.blocks(e, im, st, extent*pageSums, (extent+1)*pageSums, do)
}

// blocks is each for the blocks from first up to end.
func (s *Store) blocks(e *entry, im *image, st *stage, first, end uint32, do func(block uint32, data []byte)) error {
	for ; first < end; first += stageSize / chunk.BlockSize {
		bad := map[uint32]bool(nil)
		buf := st.buf[:min(stageSize, (end-first)*chunk.BlockSize)]
		if _, err := im.f.ReadAt(buf, place(first)); err != nil {
			err = s.misread(e, im.f, first, buf, err)
			if errors.Is(err, ErrBadBlock) {
				bad = s.bad.of(e.id)
			} else if err != nil {
				return err
			}
		}
		for i := uint32(0); i < uint32(len(buf)); i += chunk.BlockSize {
			if b := first + i/chunk.BlockSize; !bad[b] {
				do(b, buf[i:i+chunk.BlockSize])
			}
		}
	}
	return nil
}

// listed returns the blocks of a chunk that are in quarantine, nil if there are none.
func (s *Store) listed(e *entry) map[uint32]bool {
	if e.bad.Load() == 0 {
		return nil
	}
	return s.bad.of(e.id)
}

// writeHeader writes the header with rec to the slot that is not the newest. The caller syncs before
// the next call. Preconditions: the gate is held exclusively, or shared by the one that is settling.
func (s *Store) writeHeader(e *entry, rec repl.Record) error {
	p := getPage()
	defer putPage(p)
	if e.indexed && rec != e.rec {
		if err := s.index.touch(e.id); err != nil {
			return s.fail("write index", e.id, err)
		}
		e.indexed = false
	}
	im := e.img
	h := header{cluster: s.o.Cluster, chunk: e.id, rec: rec, sequence: im.sequence + 1, pages: im.pages}
	h.encode(p[:])
	// Odd sequences are in slot A, even ones in slot B.
	slot := int64(im.sequence%2) * slotSize
	if _, err := im.f.WriteAt(p[:slotSize], slot); err != nil {
		return s.fail("write header", e.id, err)
	}
	im.sequence++
	e.rec = rec
	return nil
}

// evict closes images that are not in use until there is room for one more. Images with active
// extents stay, so the limit is exceeded by no more than MaxActive allows.
func (s *Store) evict() {
	s.openMu.Lock()
	defer s.openMu.Unlock()
	for tries := 2 * len(s.open); tries > 0 && len(s.open) >= s.o.MaxOpen; tries-- {
		s.hand = (s.hand + 1) % len(s.open)
		e := s.open[s.hand]
		if e.used.Swap(false) || !e.gate.TryLock() {
			continue
		}
		e.mu.Lock()
		busy := e.marked != 0
		e.mu.Unlock()
		if !busy {
			s.closeImage(e)
			s.open[s.hand] = s.open[len(s.open)-1]
			s.open = s.open[:len(s.open)-1]
		}
		e.gate.Unlock()
	}
}

// closeImage closes the file. Preconditions: the gate is held exclusively and nothing is dirty.
func (s *Store) closeImage(e *entry) {
	if e.img.written.Load() != e.countedAt.Swap(0) {
		s.recount(e)
	}
	e.unshare()
	if err := e.img.f.Close(); err != nil {
		s.fail("close", e.id, err)
	}
	e.img = nil
}

// forget takes an entry off the list of open images.
func (s *Store) forget(e *entry) {
	s.openMu.Lock()
	defer s.openMu.Unlock()
	for i, o := range s.open {
		if o == e {
			s.open[i] = s.open[len(s.open)-1]
			s.open = s.open[:len(s.open)-1]
			return
		}
	}
}
