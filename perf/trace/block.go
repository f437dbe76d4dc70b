package trace

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"syscall"
	"time"

	"varve/internal/capture"
)

const (
	sector = 512

	// maxEvents bounds the events of a block trace: 640 MiB of memory.
	maxEvents = 1 << 23
)

// Actions of events that count here, as blkparse writes them.
const (
	actQueue    = 'Q'
	actIssue    = 'D'
	actComplete = 'C'
)

// event is what one line or record of a block trace says.
type event struct {
	at     time.Duration
	device uint32 // major << 20 | minor
	pid    uint32
	sector uint64
	bytes  uint32
	act    byte
	kind   capture.Kind
	errno  syscall.Errno
}

// way is where an operation waits for its completion.
type way struct {
	device uint32
	kind   capture.Kind
	sector uint64 // 0 of an fsync
}

// blocks makes operations of the events of a block trace.
func (t *Trace) blocks(events []event) error {
	slices.SortStableFunc(events, func(a, b event) int { return cmp.Compare(a.at, b.at) })
	begins := map[uint32]byte{} // of each device: what begins an operation
	for _, e := range events {
		if e.act == actIssue || begins[e.device] == 0 && e.act == actQueue {
			begins[e.device] = e.act
		}
	}
	under := map[way][]int{} // operations that have not been completed, the oldest first
	size := map[uint32]int64{}
	var ops []capture.Record
	done := map[int]bool{}
	for _, e := range events {
		w := way{e.device, e.kind, e.sector}
		if e.bytes == 0 {
			w.sector = 0
		}
		if e.act == begins[e.device] && e.act != 0 {
			under[w] = append(under[w], len(ops))
			ops = append(ops, capture.Record{
				Kind: e.kind, PID: e.pid, Begin: e.at, Inode: uint64(e.device) + 1, Handle: uint64(e.device) + 1, Offset: int64(e.sector) * sector, Size: int64(e.bytes),
			})
			size[e.device] = max(size[e.device], int64(e.sector)*sector+int64(e.bytes))
			if e.bytes == 0 {
				ops[len(ops)-1].Offset = 0
			}
			continue
		}
		if e.act != actComplete {
			continue
		}
		// One completion may be of several operations, if the driver got them as one, or of a part of one.
		for left := int64(e.bytes); ; {
			waiting := under[w]
			if len(waiting) == 0 {
				break
			}
			i := waiting[0]
			under[w] = waiting[1:]
			o := &ops[i]
			missing := o.Size - int64(o.Done)
			o.Done += uint32(min(missing, left))
			if left < missing { // the rest is completed later, at the place where it begins
				w.sector += uint64(left) / sector
				under[w] = append(under[w], i)
				break
			}
			o.Took, o.Errno, done[i] = max(e.at-o.Begin, 0), e.errno, true
			left -= missing
			w.sector += uint64(missing) / sector
			if left == 0 {
				break
			}
		}
	}
	for i := range ops {
		if !done[i] { // it was under way when the trace ended
			t.Stats.LeftOut++
			continue
		}
		if err := t.add(ops[i]); err != nil {
			return err
		}
	}
	for device, n := range size {
		t.Files = append(t.Files, capture.File{Inode: uint64(device) + 1, Size: n, Path: fmt.Sprintf("%d,%d", device>>20, device&0xfffff)})
	}
	t.Timed = true
	return nil
}

// checkSector refuses a place that no disk has.
func checkSector(s uint64) error {
	if s > math.MaxInt64/sector/2 {
		return fmt.Errorf("sector %d: no disk is so large", s)
	}
	return nil
}
