package journal

import (
	"errors"
	"fmt"
	"io"
	"sort"

	"varve/internal/disk"
	"varve/internal/id"
)

// blocks reads the records of one sealed segment in order, a block at a time.
type blocks struct {
	name  string // for errors
	file  disk.File
	table []block
	foot  *footer
	comp  []byte   // a compressed block
	raw   []byte   // the block being read, decoded
	next  int      // the block after it
	pos   int      // in raw, of the next record
	at    Position // of the last record; without its chain hash
	// backPos and backAt are pos and at before the last record.
	backPos int
	backAt  Position
	// Chain hashes were computed in this block up to the byte chainPos, that is up to the record chainAt.
	chainPos int
	chainAt  Position
	chain    *chainer
	body     []byte
}

// reset goes to the block in which the record index is, the first one if it is before all. The segment's table is set.
func (b *blocks) reset(name string, file disk.File, foot *footer, index id.Index) error {
	b.name, b.file, b.foot = name, file, foot
	b.next = max(0, sort.Search(len(b.table), func(i int) bool { return b.table[i].at.Index >= index })-1)
	b.at = b.table[b.next].at
	return b.load()
}

// load decodes the next block.
func (b *blocks) load() error {
	x := &b.table[b.next]
	if b.at.Index != x.at.Index || b.at.Raft != x.at.Raft || b.at.Time != x.at.Time {
		return fmt.Errorf("%s: offset %d: block: begins after record %d of raft entry %d, the one before ends with %d of %d: %w",
			b.name, x.off, x.at.Index, x.at.Raft, b.at.Index, b.at.Raft, ErrCorrupt)
	}
	if cap(b.comp) < x.size {
		b.comp = make([]byte, x.size+x.size/4)
	}
	comp := b.comp[:x.size]
	if n, err := b.file.ReadAt(comp, x.off); n < len(comp) {
		if err == nil || errors.Is(err, io.EOF) {
			return fmt.Errorf("%s: offset %d: block: want %d bytes, got %d: %w", b.name, x.off, len(comp), n, ErrCorrupt)
		}
		return fmt.Errorf("%s: read at offset %d: %w", b.name, x.off, err)
	}
	raw, err := decompress(b.name, x, comp, b.raw)
	if err != nil {
		return err
	}
	b.raw, b.pos, b.at = raw, 0, x.at
	b.chainPos, b.chainAt = 0, x.at
	b.next++
	return nil
}

// record returns the next record, valid until the next call, and io.EOF at the end of the segment.
func (b *blocks) record() (Record, error) {
	for b.pos == len(b.raw) {
		if b.next == len(b.table) {
			if f := &b.foot.last; b.at.Index != f.Index || b.at.Raft != f.Raft || b.at.Time != f.Time {
				return Record{}, fmt.Errorf("%s: last record: want %d, got %d: %w", b.name, f.Index, b.at.Index, ErrCorrupt)
			}
			return Record{}, io.EOF
		}
		if err := b.load(); err != nil {
			return Record{}, err
		}
	}
	b.backPos, b.backAt = b.pos, b.at
	r, n := decodeSealed(b.raw[b.pos:], &b.at)
	if n == 0 {
		return Record{}, fmt.Errorf("%s: offset %d: byte %d of the decoded block: want record %d: %w",
			b.name, b.table[b.next-1].off, b.pos, b.at.Index+1, ErrCorrupt)
	}
	b.pos += n
	b.at.Index, b.at.Raft, b.at.Time = r.Index, r.Raft, r.Time
	return r, nil
}

// back makes record return the last record again.
func (b *blocks) back() { b.pos, b.at = b.backPos, b.backAt }

// position returns the position of the last record, whose chain hash it computes from the block's start or from where it
// did so last.
func (b *blocks) position() Position {
	if b.chain == nil {
		b.chain = newChainer()
	}
	for b.chainPos < b.pos {
		r, n := decodeSealed(b.raw[b.chainPos:], &b.chainAt)
		b.body = appendBody(b.body[:0], &r)
		b.chainAt = Position{Index: r.Index, Raft: r.Raft, Time: r.Time, Chain: b.chain.next(b.chainAt.Chain, b.body)}
		b.chainPos += n
	}
	return b.chainAt
}

// encoded returns r, the last record, as it stands in an open segment, not known to be stable.
func (b *blocks) encoded(r *Record) []byte {
	at := b.position()
	b.body = appendBody(b.body[:0], r)
	b.body = appendTrailer(b.body, 0, 0, at.Chain)
	return b.body
}
