package repl

import (
	"slices"

	"varve/internal/chunk"
)

// MaxPartial is the number of blocks of which only a part may be fresh. A write that would need more
// is refused with NotReady, and its client has the replica dropped.
const MaxPartial = 4096

// MaxSpans is the number of separate fresh byte ranges inside one block.
const MaxSpans = 32

// Span is a range of bytes inside a block: [From, To).
type Span struct{ From, To uint16 }

// Fresh is the set of bytes that were written since the replica joined. The zero value is empty.
type Fresh struct {
	whole   [chunk.Blocks / 64]uint64
	partial map[uint32][]Span // sorted, neither touching nor overlapping
}

// Whole reports whether every byte of a block is fresh.
func (f *Fresh) Whole(block uint32) bool { return f.whole[block/64]>>(block%64)&1 != 0 }

// Spans returns the fresh bytes of a block of which a part is fresh. It is nil if the whole block is
// fresh or nothing of it.
func (f *Fresh) Spans(block uint32) []Span { return f.partial[block] }

// Room reports whether Note(from, to) would stay within MaxPartial and MaxSpans.
func (f *Fresh) Room(from, to uint32) bool {
	need := 0
	for _, b := range [2]uint32{from / chunk.BlockSize, (to - 1) / chunk.BlockSize} {
		if p := cut(b, from, to); p.whole() || f.Whole(b) {
			continue
		}
		spans, there := f.partial[b]
		if len(spans) >= MaxSpans {
			return false
		}
		if !there {
			need++
		}
	}
	return len(f.partial)+need <= MaxPartial
}

// Note adds the bytes [from, to) of the chunk. Preconditions: from < to, Room(from, to).
func (f *Fresh) Note(from, to uint32) {
	for b := from / chunk.BlockSize; b <= (to-1)/chunk.BlockSize; b++ {
		if f.Whole(b) {
			continue
		}
		if p := cut(b, from, to); p.whole() {
			f.NoteWhole(b)
		} else {
			f.notePart(b, p)
		}
	}
}

// NoteWhole adds one block.
func (f *Fresh) NoteWhole(block uint32) {
	f.whole[block/64] |= 1 << (block % 64)
	delete(f.partial, block)
}

func (f *Fresh) notePart(block uint32, p Span) {
	spans := f.partial[block]
	i := 0
	for i < len(spans) && spans[i].To < p.From {
		i++
	}
	j := i
	for j < len(spans) && spans[j].From <= p.To {
		p.From = min(p.From, spans[j].From)
		p.To = max(p.To, spans[j].To)
		j++
	}
	if p.whole() {
		f.NoteWhole(block)
		return
	}
	if f.partial == nil {
		f.partial = make(map[uint32][]Span)
	}
	f.partial[block] = slices.Replace(spans, i, j, p)
}

func (s Span) whole() bool { return s.From == 0 && s.To == chunk.BlockSize }

// cut returns the part of [from, to) that falls into a block, relative to the block.
func cut(block, from, to uint32) Span {
	start := block * chunk.BlockSize
	return Span{From: uint16(max(from, start) - start), To: uint16(min(to-start, chunk.BlockSize))}
}
