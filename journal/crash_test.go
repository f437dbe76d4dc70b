package journal

import (
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"varve/internal/id"
)

var crashSeed = flag.Uint64("crash.seed", 0, "run TestCrash with this seed only")

// TestCrash runs random work on a disk that loses power at a random moment and keeps any part of what
// was not synced, many times over on the same disk.
func TestCrash(t *testing.T) {
	if *crashSeed != 0 {
		crashRun(t, *crashSeed)
		return
	}
	for seed := uint64(1); seed <= 300; seed++ {
		if !t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { crashRun(t, seed) }) {
			t.Fatalf("replay: go test ./journal -run TestCrash -crash.seed=%d", seed)
		}
	}
}

// crashModel is what must be found again.
type crashModel struct {
	rng    *rand.Rand
	j      *Journal
	recs   map[id.Index]Record // all that were ever appended, the newest of each index
	synced Position            // of the last successful Sync
	resets map[id.Index]bool   // that were begun
}

func crashRun(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 7))
	d := newFakeDisk(rng)
	m := &crashModel{rng: rng, recs: map[id.Index]Record{}, resets: map[id.Index]bool{}}
	for range 8 {
		d.budget = rng.IntN(60)
		o := testOptions("journal")
		o.FS = d
		j, err := Open(o)
		if err == nil {
			m.j = j
			j.o.SegmentBytes = 2000
			for err == nil {
				err = m.step()
			}
		}
		if d.budget != 0 {
			t.Fatalf("failed before the power did: %v", err)
		}
		d = d.crash()
		m.recover(t, d)
	}
}

// step does one thing.
func (m *crashModel) step() error {
	j := m.j
	at := j.Last()
	var err error
	switch m.rng.IntN(12) {
	default:
		var recs []Record
		for i := range m.rng.IntN(6) + 1 {
			payload := make([]byte, 8+m.rng.IntN(300))
			binary.LittleEndian.PutUint64(payload, m.rng.Uint64())
			r := Record{Index: at.Index + 1 + id.Index(i), Time: m.rng.Int64(), Raft: m.rng.Uint64(), Payload: payload}
			recs = append(recs, r)
			m.recs[r.Index] = r
		}
		return j.Append(recs)
	case 0, 1, 2:
		err = j.Sync()
	case 3:
		err = j.WriteCheckpoint(at, writeState(m.rng.IntN(3000)))
	case 4:
		if m.rng.IntN(4) > 0 {
			return nil
		}
		at = Position{Index: at.Index + 5, Raft: m.rng.Uint64(), Chain: [16]byte{byte(m.rng.Uint32())}, Time: 7}
		m.resets[at.Index] = true
		if err := j.WriteCheckpoint(at, writeState(100)); err != nil {
			return err
		}
		err = j.Reset(at)
	case 5:
		return j.Trim(at.Index - min(at.Index, 20))
	}
	if err == nil {
		m.synced = at
	}
	return err
}

// recover opens the journal on d and compares it with the model.
func (m *crashModel) recover(t *testing.T, d *fakeDisk) {
	t.Helper()
	o := testOptions("journal")
	o.FS = d
	j, err := Open(o)
	ok(t, err)
	last := j.Last()
	if last.Index < m.synced.Index {
		t.Fatalf("last: want at least %d, got %d", m.synced.Index, last.Index)
	}
	if last.Index == m.synced.Index && last != m.synced {
		t.Fatalf("last: want %+v, got %+v", m.synced, last)
	}
	r, err := j.Reader(j.First())
	ok(t, err)
	for {
		rec, err := r.Next()
		if err == io.EOF {
			break
		}
		if gap, isGap := err.(*GapError); isGap {
			if !m.resets[gap.Next-1] {
				t.Fatalf("a hole that no reset made: %+v", gap)
			}
			continue
		}
		ok(t, err)
		wantRecord(t, rec, m.recs[rec.Index])
	}
	ok(t, r.Close())
	checkpoints, err := j.Checkpoints()
	ok(t, err)
	if n := len(checkpoints); j.First() > 1 && (n == 0 || checkpoints[n-1].Index+1 < j.First()) {
		t.Fatalf("first record %d: no state to go on from in %+v", j.First(), checkpoints)
	}
	ok(t, j.Close())
	if rep, err := Verify(o, nil); err != nil || rep.Torn != 0 {
		t.Fatalf("verify: got %+v, %v", rep, err)
	}
	m.synced = last // what Open found is stable
}
