package perf

import (
	"context"
	"fmt"
	"sync"

	"varve/internal/disk"
)

// maxFaults bounds the faults that a result describes; all are counted.
const maxFaults = 16

// VerifyResult is what Options.Verify found.
type VerifyResult struct {
	Checked int64 `json:"checked"` // blocks compared: those read in the run, and those read back after it
	// ReadBack says whether what was written was read back after the run: done, or why not.
	ReadBack  string `json:"read_back,omitempty"`
	Lost      int64  `json:"lost"`
	Old       int64  `json:"old"`
	Torn      int64  `json:"torn"`
	Misplaced int64  `json:"misplaced"`
	// Duplicated are blocks with a write that is also at its own place, or that came back after a later one had been read.
	Duplicated int64   `json:"duplicated"`
	Corrupt    int64   `json:"corrupt"`
	First      []Fault `json:"first,omitempty"` // the first faults, at most 16
}

// Fault is a block that does not hold what it should.
type Fault struct {
	Kind   FaultKind `json:"kind"`
	Job    int       `json:"job"`
	Block  int64     `json:"block"`  // in the job's range
	Path   string    `json:"path"`   // of the file or device
	Offset int64     `json:"offset"` // of the block in it, in bytes
	Detail string    `json:"detail"`
}

func (f Fault) String() string {
	return fmt.Sprintf("%s at %d: %s (job %d, block %d): %s", f.Path, f.Offset, f.Kind, f.Job, f.Block, f.Detail)
}

// Faults is the number of blocks that do not hold what they should.
func (v *VerifyResult) Faults() int64 {
	return v.Lost + v.Old + v.Torn + v.Misplaced + v.Duplicated + v.Corrupt
}

func (v *VerifyResult) add(f *Fault) {
	if f == nil {
		return
	}
	*v.counter(f.Kind)++
	if len(v.First) < maxFaults {
		v.First = append(v.First, *f)
	}
}

func (v *VerifyResult) counter(k FaultKind) *int64 {
	switch k {
	case Lost:
		return &v.Lost
	case Old:
		return &v.Old
	case Torn:
		return &v.Torn
	case Misplaced:
		return &v.Misplaced
	case Duplicated:
		return &v.Duplicated
	}
	return &v.Corrupt
}

func (v *VerifyResult) merge(from *VerifyResult) {
	v.Checked += from.Checked
	for _, k := range []FaultKind{Lost, Old, Torn, Misplaced, Duplicated, Corrupt} {
		*v.counter(k) += *from.counter(k)
	}
	v.First = append(v.First, from.First...)
	v.First = v.First[:min(len(v.First), maxFaults)]
}

// readBack reads all that the jobs wrote and compares it, a goroutine a job, and returns how that ended.
func readBack(ctx context.Context, o *Options, jobs []*job, sum *recorder) string {
	r := &recorder{series: sum.series}
	err := bounded(ctx, o.Settle, graceTime, func(w *watch) error {
		var wg sync.WaitGroup
		for _, j := range jobs {
			wg.Go(func() {
				if c := j.file.clone; c != nil {
					step := func(off int64) { w.step("comparing %s at %d", c.to, off) }
					if err := c.verify(j.n, r, step); err != nil {
						r.failed(opRead, fmt.Errorf("read back: %w", err))
					}
					return
				}
				if j.names != nil {
					w.step("listing %s", j.names.path)
					if err := j.names.verify(j.n, r); err != nil {
						r.failed(opList, fmt.Errorf("read back: %w", err))
					}
					return
				}
				w.step("flushing %s", j.file.path)
				if err := j.file.sync(); err != nil { // what is dirty cannot be forgotten
					r.failed(opSync, err)
				}
				j.file.forget(o.Size)
				j.readBack(ctx, w, r)
			})
		}
		wg.Wait()
		return nil
	})
	r.close(sum)
	switch {
	case err != nil:
		return err.Error()
	case ctx.Err() != nil:
		return cancelled
	}
	return "done"
}

func (j *job) readBack(ctx context.Context, w *watch, r *recorder) {
	size := j.o.BlockSize
	perChunk := max(1, layoutChunk/size)
	p := disk.AlignedBuffer(int(perChunk * size))
	failures := 0
	for first := int64(0); first < j.blocks && ctx.Err() == nil && failures < maxErrors; first += perChunk {
		n := min(perChunk, j.blocks-first)
		if !j.wrote(first, n) {
			continue
		}
		w.step("reading back %s at %d", j.file.path, first*size)
		whole := j.file.transfer(opRead, p[:n*size], first*size) == nil
		for i := range n {
			if !j.wrote(first+i, 1) {
				continue
			}
			b := p[i*size : (i+1)*size]
			if !whole { // find out which blocks cannot be read
				w.step("reading back %s at %d", j.file.path, (first+i)*size)
				if err := j.file.transfer(opRead, b, (first+i)*size); err != nil {
					r.failed(opRead, fmt.Errorf("read back: %w", err))
					if failures++; endsRun(err) || failures >= maxErrors {
						return
					}
					continue
				}
			}
			r.checked(j.compare(first+i, b))
		}
	}
}

// wrote reports whether the run wrote, or tried to write, one of n blocks.
func (j *job) wrote(first, n int64) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.state.blocks[first : first+n] {
		if s.hi > 0 {
			return true
		}
	}
	return false
}

// failed and checked count what readBack finds.
func (r *recorder) failed(kind opKind, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	r.fail(errorKind{kind, err.Error()}, 1, 0)
}

func (r *recorder) checked(f *Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	r.verify.Checked++
	r.verify.add(f)
}
