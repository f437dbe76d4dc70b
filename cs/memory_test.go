package cs

import (
	"testing"

	"varve/cs/arena"
	"varve/internal/wire"
)

// TestDivision has the heap's part hold what is bounded elsewhere, for any memory.
func TestDivision(t *testing.T) {
	const table, stage, conn = 72 << 10, 1 << 20, 80 << 10
	for memory := int64(MinMemory); memory <= 64<<30; memory += memory / 7 {
		d := divide(memory)
		heap := heapLimit(memory, d.clients+d.peers, d.locals)
		if d.clients < arena.MinSize(1) || d.peers < arena.MinSize(1) {
			t.Errorf("memory %d: arenas of %d and %d bytes", memory, d.clients, d.peers)
		}
		if need := int64(d.tables)*table + int64(d.stages)*stage + int64(d.conns)*conn + 8<<20; need > heap {
			t.Errorf("memory %d: tables, stages and connections take %d bytes, the heap may have %d: %+v", memory, need, heap, d)
		}
		if _, err := newGate(maxOps, d.clients+d.peers); err != nil {
			t.Errorf("memory %d: %v", memory, err)
		}
		if d.clients+d.peers < 8*wire.MaxData {
			t.Errorf("memory %d: %+v", memory, d)
		}
	}
	if own, err := ownMemory(0, 1<<30); err != nil || own >= DefaultMemory || own < DefaultMemory-16<<20 {
		t.Errorf("of the default memory a journal of 1 GiB leaves %d bytes, %v", own, err)
	}
	if _, err := ownMemory(MinMemory, 1<<30); err == nil {
		t.Error("a journal for which there is no memory is accepted")
	}
}
