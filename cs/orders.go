package cs

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"

	"varve/cs/order"
	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
)

const (
	// orderedName is the file of the ordered changes (package order), in the server's directory.
	orderedName = "ordered"
	// slotsPage is by how many slots it grows, so that a change that was let in finds room on the disk; slotsAhead is how many are kept ahead.
	slotsPage, slotsAhead = 4096 / order.SlotSize, 16
)

// orders is the ordered changes that the server has, in memory and in their file.
//
// Lock order: io, mu. Nobody waits for the disk with mu held, so that reactors may take it.
type orders struct {
	log  *slog.Logger
	boot [32]byte

	io      sync.Mutex // held by who changes the file, from when the table changes
	f       disk.File
	pending []byte  // slots to write
	places  []int32 // their numbers

	mu      sync.Mutex
	t       order.Table
	room    int          // slots in the file
	foreign atomic.Int64 // entries that may be loose
}

// open reads what an earlier process has left.
func (o *orders) open(fsys disk.FS, dir, boot string, log *slog.Logger) (err error) {
	o.log = log
	if boot != "" {
		o.boot = sha256.Sum256([]byte(boot))
	}
	path := filepath.Join(dir, orderedName)
	if o.f, err = fsys.Open(path, disk.ReadWrite|disk.Create); err != nil {
		return fmt.Errorf("open the ordered changes: %w", err)
	}
	size, err := o.f.Size()
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	b := make([]byte, min(size, order.SlotsFrom+2*order.MaxEntries*order.SlotSize))
	if n, err := o.f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: %w", path, err)
	} else if b = b[:n]; n > 0 {
		o.load(path, b)
	}
	if o.t.Slots() == 0 { // new, or it does not count
		if err := o.f.Truncate(0); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return o.seal(false)
}

func (o *orders) load(path string, b []byte) {
	h, err := order.DecodeHeader(b[:min(len(b), order.SlotSize)])
	if err != nil || !h.Counts(o.boot) {
		o.log.Info("ordered changes of before are not known: the machine was started anew", "path", path, "cause", err)
		return
	}
	for at := order.SlotsFrom; at+order.SlotSize <= len(b); at += order.SlotSize {
		o.t.Load(order.DecodeSlot(b[at : at+order.SlotSize]))
	}
	o.room = o.t.Slots()
	o.foreign.Store(int64(o.t.Foreign()))
}

// seal writes the header and has it, and all before it, on stable media.
func (o *orders) seal(clean bool) error {
	o.io.Lock()
	defer o.io.Unlock()
	if _, err := o.f.WriteAt(order.Header{Clean: clean, Boot: o.boot}.Encode(), 0); err != nil {
		return fmt.Errorf("write the ordered changes: %w", err)
	}
	if err := o.f.Sync(); err != nil {
		return fmt.Errorf("sync the ordered changes: %w", err)
	}
	return nil
}

// close ends the use of the file. In order: it counts whatever happens to the machine.
func (o *orders) close(orderly bool) error {
	if o.f == nil || !orderly {
		return nil
	}
	return errors.Join(o.seal(true), o.f.Close())
}

// change changes the table and the file. The disk's failure is the change's.
func (o *orders) change(fn func(*order.Table)) error {
	o.io.Lock()
	defer o.io.Unlock()
	o.mu.Lock()
	fn(&o.t)
	o.foreign.Store(int64(o.t.Foreign()))
	o.pending, o.places = o.pending[:0], o.places[:0]
	o.t.Changes(func(slot int32, e *order.Entry) {
		o.pending = append(o.pending, make([]byte, order.SlotSize)...)
		order.EncodeSlot(o.pending[len(o.pending)-order.SlotSize:], e)
		o.places = append(o.places, slot)
	})
	slots := o.t.Slots()
	o.mu.Unlock()
	if err := o.grow(slots); err != nil {
		return err
	}
	for i, slot := range o.places {
		if _, err := o.f.WriteAt(o.pending[i*order.SlotSize:][:order.SlotSize], order.SlotsFrom+int64(slot)*order.SlotSize); err != nil {
			return fmt.Errorf("write an ordered change: %w: %w", fserr.IO, err)
		}
	}
	return nil
}

// grow makes room in the file for so many slots. Preconditions: io is held.
func (o *orders) grow(slots int) error {
	var zeros [slotsPage * order.SlotSize]byte
	for o.room < slots {
		if _, err := o.f.WriteAt(zeros[:], order.SlotsFrom+int64(o.room)*order.SlotSize); err != nil {
			return fmt.Errorf("make room for ordered changes: %w: %w", fserr.Unavailable, err)
		}
		o.mu.Lock()
		o.room += slotsPage
		o.mu.Unlock()
	}
	return nil
}

// admit lets a change with a name in, if it need not wait. It ends with release.
func (o *orders) admit(r *wire.DataRequest) (now bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.t.Slots()+slotsAhead > o.room {
		return false, nil
	}
	err = o.t.Admit(r.Chunk, r.Session, r.Seq, r.Low, r.Recent)
	o.foreign.Store(int64(o.t.Foreign()))
	return err == nil, err
}

// enter is admit for who can wait.
func (o *orders) enter(r *wire.DataRequest) error {
	for {
		if now, err := o.admit(r); now || err != nil {
			return err
		}
		o.io.Lock()
		o.mu.Lock()
		slots := o.t.Slots() + slotsAhead
		o.mu.Unlock()
		err := o.grow(slots)
		o.io.Unlock()
		if err != nil {
			return err
		}
	}
}

func (o *orders) release() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.t.Release()
}

// note remembers a change that this replica has done: own, if all others have it too. Preconditions: the blocks are locked.
func (o *orders) note(r *wire.DataRequest, epoch id.Epoch, own bool) error {
	return o.change(func(t *order.Table) {
		t.Note(order.Entry{Chunk: r.Chunk, Session: r.Session, Seq: r.Seq, Epoch: epoch, From: r.Offset, To: r.Offset + r.Length, Own: own})
	})
}

// settled takes the changes that are in blocks which are now as the first replica has them. Preconditions: the blocks are locked.
func (o *orders) settled(r *wire.DataRequest, epoch id.Epoch) error {
	return o.change(func(t *order.Table) {
		t.Cut(r.Chunk, r.Offset, r.Offset+r.Length)
		for _, d := range r.Done {
			t.Note(order.Entry{Chunk: r.Chunk, Session: d.Session, Seq: d.Seq, Epoch: epoch, From: d.From, To: d.To})
		}
	})
}

// merge takes the changes that are in blocks copied from the source of a join.
func (o *orders) merge(c id.ChunkID, epoch id.Epoch, done []wire.Done) error {
	if len(done) == 0 {
		return nil
	}
	return o.change(func(t *order.Table) {
		for _, d := range done {
			t.Note(order.Entry{Chunk: c, Session: d.Session, Seq: d.Seq, Epoch: epoch, From: d.From, To: d.To})
		}
	})
}

// of appends the changes of a chunk that are in [from, to).
func (o *orders) of(dst []wire.Done, c id.ChunkID, from, to uint32) []wire.Done {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range o.t.Within(nil, c, from, to) {
		dst = append(dst, wire.Done{Session: e.Session, Seq: e.Seq, From: e.From, To: e.To})
	}
	return dst
}

func (o *orders) loose(c id.ChunkID, epoch id.Epoch, from, to uint32) bool {
	if o.foreign.Load() == 0 {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.t.Loose(c, epoch, from, to)
}

// anyLoose reports whether there is any in the chunk.
func (o *orders) anyLoose(c id.ChunkID, epoch id.Epoch) bool { return o.loose(c, epoch, 0, chunk.Size) }

func (o *orders) closure(c id.ChunkID, epoch id.Epoch, from, to uint32) (uint32, uint32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.t.Closure(c, epoch, from, to)
}

func (o *orders) missing(dst []order.Range, r *wire.DataRequest) []order.Range {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.t.Missing(dst, r.Chunk, r.Session, r.Seq, r.Offset, r.Offset+r.Length)
}

// count returns how many are remembered.
func (o *orders) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.t.Len()
}

// fence notes that a session is over.
func (o *orders) fence(s id.SessionID) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.t.Fence(s)
	o.foreign.Store(int64(o.t.Foreign()))
}

// join has the replica join: what it had of earlier epochs it has no more.
func (s *Server) join(c id.ChunkID, epoch id.Epoch) error {
	if err := s.store.Join(c, epoch); err != nil {
		return err
	}
	return s.orders.change(func(t *order.Table) { t.Rejoin(c, epoch) })
}

// delete removes a chunk, unless it has a higher epoch than upTo, if that is above 0.
func (s *Server) delete(c id.ChunkID, upTo id.Epoch) error {
	if stays, err := s.store.DeleteUpTo(c, upTo); stays || err != nil {
		return err
	}
	return s.orders.change(func(t *order.Table) { t.Forget(c) })
}
