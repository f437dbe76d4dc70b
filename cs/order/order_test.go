package order

import (
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
)

const bs = chunk.BlockSize

// TestAgainstModel compares the table with one that knows for each 512 bytes what is had, and what is loose.
func TestAgainstModel(t *testing.T) {
	const cells, cell = 64, 512
	type key struct {
		s   id.SessionID
		seq uint64
	}
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var tab Table
		has := make(map[key]*[cells]bool)
		slots := make(map[int32]Entry)
		epoch := id.Epoch(1)
		for step := range 60 {
			a, b := rng.Uint32N(cells), rng.Uint32N(cells)
			a, b = min(a, b), max(a, b)+1
			k := key{id.SessionID(1 + rng.Uint64N(2)), 1 + rng.Uint64N(4)}
			switch rng.IntN(6) {
			case 0, 1, 2:
				tab.Note(Entry{Chunk: 7, Session: k.s, Seq: k.seq, Epoch: epoch, From: a * cell, To: b * cell, Own: rng.IntN(2) == 0})
				if has[k] == nil {
					has[k] = new([cells]bool)
				}
				for i := a; i < b; i++ {
					has[k][i] = true
				}
			case 3:
				tab.Cut(7, a*cell, b*cell)
				from, to := Blocks(a*cell, b*cell)
				for _, h := range has {
					for i := from / cell; i < min(to/cell, cells); i++ {
						h[i] = false
					}
				}
			case 4:
				from, to := tab.Closure(7, epoch, a*cell, b*cell)
				if tab.Loose(7, epoch, a*cell, b*cell) {
					tab.Settle(7, epoch, from, to)
				}
				if tab.Loose(7, epoch, from, to) {
					t.Fatalf("seed %d, step %d: loose after it was settled", seed, step)
				}
			case 5:
				epoch++
			}
			tab.Changes(func(slot int32, e *Entry) {
				if delete(slots, slot); e != nil {
					slots[slot] = *e
				}
			})
			if len(slots) != tab.Len() {
				t.Fatalf("seed %d, step %d: %d slots for %d entries", seed, step, len(slots), tab.Len())
			}
			for k, h := range has {
				var got [cells]bool
				for i := range got {
					got[i] = true
				}
				for _, r := range tab.Missing(nil, 7, k.s, k.seq, 0, cells*cell) {
					for i := r.From / cell; i < r.To/cell; i++ {
						got[i] = false
					}
				}
				if got != *h {
					t.Fatalf("seed %d, step %d: change %v\nhas  %v\nwant %v", seed, step, k, got, *h)
				}
			}
		}
		// What the file has makes the same table.
		var again Table
		for i := range int32(tab.Slots()) {
			var b [SlotSize]byte
			if e, ok := slots[i]; ok {
				EncodeSlot(b[:], &e)
			}
			again.Load(DecodeSlot(b[:]))
		}
		if again.Len() != tab.Len() || again.Foreign() != tab.Foreign() {
			t.Fatalf("seed %d: read again: %d entries, %d foreign, want %d, %d", seed, again.Len(), again.Foreign(), tab.Len(), tab.Foreign())
		}
		for k := range has {
			if a, b := tab.Missing(nil, 7, k.s, k.seq, 0, cells*cell), again.Missing(nil, 7, k.s, k.seq, 0, cells*cell); len(a) != len(b) {
				t.Fatalf("seed %d: read again: change %v misses %v, want %v", seed, k, b, a)
			}
		}
		again.Rejoin(7, epoch+1)
		if again.Len() != 0 || again.Foreign() != 0 {
			t.Fatalf("seed %d: %d entries after a join", seed, again.Len())
		}
		tab.Forget(7)
		if tab.Len() != 0 {
			t.Fatalf("seed %d: %d entries of a chunk that is gone", seed, tab.Len())
		}
	}
}

func TestLoose(t *testing.T) {
	var tab Table
	tab.Note(Entry{Chunk: 7, Session: 1, Seq: 1, Epoch: 3, From: 100, To: 200})
	tab.Note(Entry{Chunk: 7, Session: 1, Seq: 2, Epoch: 3, From: bs, To: 5 * bs, Own: true})
	tests := []struct {
		epoch    id.Epoch
		from, to uint32
		want     bool
	}{
		{3, 0, bs, false},      // the first replica of that epoch is another one
		{4, 0, 1, true},        // in the block, though not in the bytes
		{4, bs, 2 * bs, false}, // its own
		{4, bs - 1, 2 * bs, true},
	}
	for _, tt := range tests {
		if got := tab.Loose(7, tt.epoch, tt.from, tt.to); got != tt.want {
			t.Errorf("epoch %d, [%d, %d): %t", tt.epoch, tt.from, tt.to, got)
		}
	}
	if tab.Loose(8, 9, 0, chunk.Size) {
		t.Error("another chunk is loose")
	}
}

// TestBounds: what is over is forgotten; what is not is never, but more is refused.
func TestBounds(t *testing.T) {
	var tab Table
	do := func(c id.ChunkID, s id.SessionID, seq, low uint64, recent uint32) error {
		err := tab.Admit(c, s, seq, low, recent)
		if err == nil {
			tab.Note(Entry{Chunk: c, Session: s, Seq: seq, Epoch: 1, From: 0, To: 1, Own: true})
			tab.Release()
		}
		return err
	}
	for seq := uint64(1); seq <= 10; seq++ {
		if err := do(7, 1, seq, seq, 0); err != nil || tab.Len() != 1 {
			t.Fatalf("change %d: %v, %d entries", seq, err, tab.Len())
		}
	}
	if err := do(7, 1, 9, 9, 0); !errors.Is(err, fserr.Protocol) {
		t.Errorf("a change that is over: %v", err)
	}
	// One of chunk 8 hangs; those of chunk 7 are over all the same.
	for seq := uint64(12); seq < 40; seq++ {
		if err := do(7, 1, seq, 11, 0); err != nil || tab.Len() != 1 {
			t.Fatalf("change %d: %v, %d entries", seq, err, tab.Len())
		}
	}
	// One of chunk 9 hangs: the others gather, up to the bound, and go on when it is done.
	n := 0
	for seq := uint64(101); ; seq++ {
		if err := do(9, 1, seq, 100, uint32(seq-100)); err != nil {
			if !errors.Is(err, fserr.Unavailable) || n != MaxSession {
				t.Fatalf("after %d: %v", n, err)
			}
			break
		}
		n++
	}
	if err := do(9, 1, 100, 100, 0); err != nil {
		t.Fatalf("the one that all wait for: %v", err)
	}
	if err := do(9, 1, 2000, 2000, 0); err != nil || tab.Len() != 2 {
		t.Fatalf("%v, %d entries", err, tab.Len())
	}
	// Many chunks, one change each: what the session says is over goes, wherever it is.
	for seq := uint64(3000); seq < 3000+2*MaxEntries; seq++ {
		if err := do(id.ChunkID(seq), 1, seq, seq, 0); err != nil {
			t.Fatalf("change %d: %v", seq, err)
		}
	}
	if tab.Len() > MaxEntries || tab.Slots() > MaxEntries {
		t.Errorf("%d entries, %d slots", tab.Len(), tab.Slots())
	}
	// A session that is over leaves what may be loose.
	tab.Note(Entry{Chunk: 5, Session: 1, Seq: 1 << 40, Epoch: 1, From: 0, To: 1})
	tab.Fence(1)
	if tab.Len() != 1 || tab.Foreign() != 1 {
		t.Errorf("%d entries, %d foreign", tab.Len(), tab.Foreign())
	}
}

func TestFormat(t *testing.T) {
	h := Header{Clean: true, Boot: [32]byte{1, 2}}
	if got, err := DecodeHeader(h.Encode()); err != nil || got != h {
		t.Errorf("%+v, %v", got, err)
	}
	for _, tt := range []struct {
		h    Header
		boot [32]byte
		want bool
	}{{Header{Boot: h.Boot}, h.Boot, true}, {Header{Boot: h.Boot}, [32]byte{9}, false}, {Header{}, [32]byte{}, false}, {h, [32]byte{9}, true}} {
		if got := tt.h.Counts(tt.boot); got != tt.want {
			t.Errorf("%+v in boot %x counts: %t", tt.h, tt.boot[:2], got)
		}
	}
	b := h.Encode()
	b[12] ^= 1
	if _, err := DecodeHeader(b); err == nil {
		t.Error("a changed header is taken")
	}
	e := Entry{Chunk: 1, Session: 2, Seq: 3, Epoch: 4, From: 5, To: 6, Own: true}
	var slot [SlotSize]byte
	EncodeSlot(slot[:], &e)
	if got := DecodeSlot(slot[:]); got == nil || *got != e {
		t.Errorf("%+v", got)
	}
	slot[1] ^= 1
	if got := DecodeSlot(slot[:]); got != nil {
		t.Errorf("a changed slot is %+v", got)
	}
	if got := DecodeSlot(make([]byte, SlotSize)); got != nil {
		t.Errorf("an empty slot is %+v", got)
	}
}

func FuzzSlot(f *testing.F) {
	var slot [SlotSize]byte
	EncodeSlot(slot[:], &Entry{Chunk: 1, Session: 2, Seq: 3, Epoch: 4, From: 5, To: 6, Own: true})
	f.Add(slot[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		e := DecodeSlot(b)
		if e == nil {
			return
		}
		var again [SlotSize]byte
		EncodeSlot(again[:], e)
		if got := DecodeSlot(again[:]); !reflect.DeepEqual(got, e) {
			t.Fatalf("%+v, want %+v", got, e)
		}
	})
}
