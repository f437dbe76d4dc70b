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
		d, heap := divide(memory), HeapLimit(memory)
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
	if HeapLimit(0) != HeapLimit(DefaultMemory) {
		t.Error("no memory given is not the default")
	}
}
