package ssd

import (
	"errors"
	"fmt"
	"io"

	"varve/internal/chunk"
	"varve/internal/disk"
)

// windowBlocks is how much replay reads at once.
const windowBlocks = 1024

// window reads the ring in large pieces.
type window struct {
	f      io.ReaderAt
	blocks uint64 // of the ring
	buf    []byte
	from   uint64 // first block in buf
	n      uint64 // blocks in buf
}

func newWindow(f disk.File, blocks uint64) *window {
	return &window{f: f, blocks: blocks, buf: disk.AlignedBuffer(windowBlocks * pageSize)}
}

// get returns n blocks from a position, or nil if they go over the end of the ring. They are good until the next call.
func (w *window) get(position, n uint64) ([]byte, error) {
	at := position % w.blocks
	if n > windowBlocks || at+n > w.blocks {
		return nil, nil
	}
	if at < w.from || at+n > w.from+w.n {
		w.from, w.n = at, min(windowBlocks, w.blocks-at)
		if _, err := w.f.ReadAt(w.buf[:w.n*pageSize], ringOffset+int64(at)*pageSize); err != nil {
			w.n = 0
			return nil, fmt.Errorf("read block %d of the ring: %w", at, err)
		}
	}
	return w.buf[(at-w.from)*pageSize : (at-w.from+n)*pageSize], nil
}

// batch reads the descriptor at a position. It answers errInvalid if there is none of this journal.
func (w *window) batch(h *header, position uint64) (batch, error) {
	b, err := w.get(position, 1)
	if err != nil || b == nil {
		return batch{}, errors.Join(err, errInvalid)
	}
	n := descriptorLength(b)
	if n > 1 {
		if b, err = w.get(position, uint64(n)); err != nil || b == nil {
			return batch{}, errors.Join(err, errInvalid)
		}
	}
	d, err := decodeBatch(b)
	if err == nil && (d.journal != h.journal || d.position != position || d.generation > h.generation ||
		d.generation < h.generation && d.sequence >= h.first || position%h.blocks+uint64(d.blocks) > h.blocks) {
		err = fmt.Errorf("of another lap or generation: %w", errInvalid)
	}
	return d, err
}

// intact checks the data of a batch.
func (w *window) intact(b *batch) error {
	data, err := w.get(b.position, uint64(b.blocks))
	if err != nil {
		return err
	}
	at := int(b.head) * pageSize
	for _, e := range b.entries {
		for _, want := range e.sums {
			if got := chunk.Sum(data[at : at+pageSize]); got != want {
				return fmt.Errorf("batch %d: byte %d: checksum want %08x, got %08x: %w", b.sequence, at, want, got, errInvalid)
			}
			at += pageSize
		}
	}
	return nil
}

// chain calls do for each batch that counts, in order, and returns the position and the sequence behind the last. gap is called for what
// a batch skipped at the end of the ring. An invalid batch that is known to have been synced is damage.
func (w *window) chain(h *header, gap func(position, blocks uint64), do func(*batch) error) (position, sequence uint64, err error) {
	position, sequence = h.tail, h.tailSeq
	durable, generation := h.durable, uint64(0)
	var cause error
	for {
		var b batch
		var skipped uint64
		if b, err = w.next(h, position, sequence, generation); errors.Is(err, errInvalid) && position%h.blocks != 0 {
			skipped = h.blocks - position%h.blocks
			var serr error
			if b, serr = w.next(h, position+skipped, sequence, generation); serr == nil || !errors.Is(serr, errInvalid) {
				err = serr
			}
		}
		if err == nil && b.position+uint64(b.blocks)-h.tail > h.blocks {
			err = fmt.Errorf("batch %d is a lap ahead: %w", sequence, errInvalid)
		}
		if err == nil && sequence >= durable {
			err = w.intact(&b)
		}
		if errors.Is(err, errInvalid) {
			cause = err
			break
		}
		if err != nil {
			return 0, 0, err
		}
		if skipped > 0 && b.position != position {
			gap(position, skipped)
		}
		if err := do(&b); err != nil {
			return 0, 0, err
		}
		durable, generation = max(durable, b.durable), b.generation
		position, sequence = b.position+uint64(b.blocks), sequence+1
	}
	if sequence < durable {
		return 0, 0, fmt.Errorf("batch %d was synced and is not there (%w): %w", sequence, cause, ErrDamaged)
	}
	later, err := w.later(h, position, sequence)
	if err != nil {
		return 0, 0, err
	}
	if later != 0 {
		return 0, 0, fmt.Errorf("batch %d was synced, as batch %d says, and is not there (%w): %w", sequence, later, cause, ErrDamaged)
	}
	return position, sequence, nil
}

// next reads the batch that must follow.
func (w *window) next(h *header, position, sequence, generation uint64) (batch, error) {
	b, err := w.batch(h, position)
	if err == nil && (b.sequence != sequence || b.generation < generation) {
		err = fmt.Errorf("batch %d of generation %d where %d should be: %w", b.sequence, b.generation, sequence, errInvalid)
	}
	return b, err
}

// later looks behind the end of what is valid for a batch that says that more than that had been synced, and returns its sequence, or 0.
func (w *window) later(h *header, position, sequence uint64) (uint64, error) {
	for n := uint64(0); n < min(scanAhead, h.blocks); n++ {
		at := position + n
		if at >= h.tail+h.blocks {
			break
		}
		b, err := w.batch(h, at)
		if err != nil && !errors.Is(err, errInvalid) {
			return 0, err
		}
		if err == nil && b.sequence > sequence && b.durable > sequence {
			return b.sequence, nil
		}
	}
	return 0, nil
}

// replay makes the index from what is in the ring.
func (f *FS) replay(path string) error {
	r := f.ring
	h := &r.head
	r.tail, r.tailSeq = h.tail, h.tailSeq
	r.next, r.sequence = h.tail, h.tailSeq
	known := make(map[uint64]*life)
	var lives []*life
	w := newWindow(r.f, r.blocks)
	position, sequence, err := w.chain(h, func(_, blocks uint64) { r.skip(blocks) }, func(b *batch) error {
		lives = lives[:0]
		for _, bf := range b.files {
			l := known[bf.id]
			if l == nil {
				l = &life{id: bf.id, path: bf.path, found: true}
				r.index.add(l)
				known[bf.id] = l
			}
			if l.path != bf.path {
				return fmt.Errorf("batch %d: file %d is %q and %q: %w", b.sequence, bf.id, l.path, bf.path, ErrDamaged)
			}
			lives = append(lives, l)
		}
		r.enter(b, lives)
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	r.next, r.sequence = position, sequence
	r.written.Store(sequence)
	r.durable.Store(min(sequence, h.durable))
	for _, l := range known {
		switch {
		case l.ended:
			l.synced = true
		case f.files[l.path] != nil:
			return fmt.Errorf("%s: two lives of %s: %w", path, l.path, ErrDamaged)
		default:
			fl := &file{path: l.path}
			fl.life.Store(l)
			f.files[l.path] = fl
			continue
		}
		if l.blocks == 0 {
			r.index.drop(l)
		}
	}
	if used := r.next - r.tail; used > 0 {
		f.o.Logger.Info("write journal replayed", "dir", f.o.Dir, "files", len(f.files), "pages", r.index.live, "batches", sequence-h.tailSeq)
	}
	return nil
}
