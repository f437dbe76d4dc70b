package journal

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand"
	"testing"

	"varve/internal/disk"
	"varve/internal/id"
)

var (
	crashSeed = flag.Int64("crash.seed", 0, "run TestCrash with this seed only")
	crashRuns = flag.Int64("crash.runs", 100, "run TestCrash with so many seeds")
)

// TestCrash runs random work on a disk that loses power at a random moment and keeps any part of what
// was not synced, many times over on the same disk.
func TestCrash(t *testing.T) {
	if *crashSeed != 0 {
		crashRun(t, *crashSeed)
		return
	}
	for seed := int64(1); seed <= *crashRuns; seed++ {
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

func crashRun(t *testing.T, seed int64) {
	rng := rand.New(rand.NewSource(seed))
	d := new(disk.Faulty)
	m := &crashModel{rng: rng, recs: map[id.Index]Record{}, resets: map[id.Index]bool{}}
	for range 8 {
		budget := rng.Intn(200) // operations until the power fails
		d.Inject(func(disk.Op) error {
			if budget--; budget < 0 {
				return disk.ErrPowerOff
			}
			return nil
		})
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
		if !errors.Is(err, disk.ErrPowerOff) {
			t.Fatalf("failed before the power did: %v", err)
		}
		d.Crash(rng)
		m.recover(t, d)
	}
}

// step does one thing.
func (m *crashModel) step() error {
	j := m.j
	at := j.Last()
	var err error
	switch m.rng.Intn(14) {
	default:
		var recs []Record
		for i := range m.rng.Intn(6) + 1 {
			payload := make([]byte, 8+m.rng.Intn(300))
			binary.LittleEndian.PutUint64(payload, m.rng.Uint64())
			r := Record{Index: at.Index + 1 + id.Index(i), Time: m.rng.Int63(), Raft: m.rng.Uint64(), Payload: payload}
			recs = append(recs, r)
			m.recs[r.Index] = r
		}
		return j.Append(recs)
	case 0, 1, 2:
		err = j.Sync()
	case 3:
		err = j.WriteCheckpoint(at, writeState(m.rng.Intn(3000)))
	case 4:
		if m.rng.Intn(4) > 0 {
			return nil
		}
		at = Position{Index: at.Index + 5, Raft: m.rng.Uint64(), Chain: [16]byte{byte(m.rng.Uint32())}, Time: 7}
		m.resets[at.Index] = true
		if err := j.WriteCheckpoint(at, writeState(100)); err != nil {
			return err
		}
		err = j.Reset(at)
	case 5:
		_, err := j.Retain(Retention{Bytes: 4000 + m.rng.Int63n(8000), Raft: math.MaxUint64, Every: id.Index(m.rng.Intn(100))})
		return err
	case 6:
		if s := j.nextToSeal(nil); s != nil {
			return j.seal(s, nil)
		}
		return nil
	case 7:
		j.Cut()
		if err = j.WriteCheckpoint(at, writeState(m.rng.Intn(3000))); err == nil {
			m.synced = at
		}
		return err
	}
	if err == nil {
		m.synced = at
	}
	return err
}

// recover opens the journal on d and compares it with the model.
func (m *crashModel) recover(t *testing.T, d *disk.Faulty) {
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

// TestPoison lets one operation fail and checks that nothing is tried again.
func TestPoison(t *testing.T) {
	broken := errors.New("broken disk")
	for _, op := range []disk.OpKind{disk.OpWrite, disk.OpSync, disk.OpRename, disk.OpSyncDir} {
		t.Run("op="+string(op), func(t *testing.T) {
			d := new(disk.Faulty)
			o := testOptions("journal")
			o.FS = d
			j := mustOpen(t, o)
			mustAppend(t, j, records(1, 10))
			ok(t, j.Sync())
			d.Inject(func(got disk.Op) error {
				if got.Kind == op {
					return broken
				}
				return nil
			})
			var err error
			for i := id.Index(11); err == nil && i < 1000; i++ {
				if err = j.Append(records(i, i)); err == nil {
					err = j.Sync()
				}
			}
			if !errors.Is(err, broken) {
				t.Fatalf("want %v, got %v", broken, err)
			}
			changes := 0
			d.Inject(func(got disk.Op) error {
				if got.Kind != disk.OpOpen && got.Kind != disk.OpRead {
					changes++
				}
				return nil
			})
			_, readerErr := j.Reader(1)
			_, _, rawErr := j.ReadRaw(1, 100)
			_, timeErr := j.FindTime(100000)
			_, checkpointsErr := j.Checkpoints()
			_, _, openErr := j.OpenCheckpoint(5)
			_, retainErr := j.Retain(Retention{})
			for i, later := range []error{
				j.Append(records(j.Last().Index+1, j.Last().Index+1)), j.Sync(), j.Reset(Position{Index: 5000}), retainErr,
				j.WriteCheckpoint(j.Last(), writeState(16)), readerErr, rawErr, timeErr, checkpointsErr, openErr, j.Close(),
			} {
				if !errors.Is(later, broken) {
					t.Errorf("call %d after the failure: want %v, got %v", i, broken, later)
				}
			}
			if changes > 0 {
				t.Errorf("changed the disk %d times after the failure", changes)
			}
		})
	}
}
