package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/chunk"
	"varve/internal/client"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// areas are where files are written: the first blocks of areaBlocks, at a chunk's beginning, across two extents of the activity log and across two chunks.
var areas = []int{0, 1022, chunk.Blocks - 3}

const (
	areaBlocks = 6
	fileBytes  = chunk.Size + 16*chunk.BlockSize
	// patience is how long an operation may take once all faults are over.
	patience = 2 * time.Minute
)

func fileName(i int) []byte { return fmt.Appendf(nil, "image%d", i) }

// makeFiles makes the files, which are empty and long.
func (w *world) makeFiles(ctx context.Context) error {
	a, err := w.newApp(ctx, "setup", "10.0.2.250")
	if err != nil {
		return err
	}
	for i := range w.cfg.files {
		_, f, err := a.c.Create(ctx, &msg.Cred{}, &msg.Create{Parent: 1, Name: fileName(i), Type: msg.FileType_REGULAR, Perm: 0o600, Open: true})
		if err != nil {
			return err
		}
		if err := f.Truncate(ctx, fileBytes); err != nil {
			return err
		}
		if err := f.Release(ctx); err != nil {
			return err
		}
	}
	return a.close()
}

// handle is a file that an app has open.
type handle struct {
	f       *client.File
	session uint64
}

// open opens a file, until ctx ends. It keeps what a later session's grant says about the writes of earlier ones.
func (a *app) open(ctx context.Context, file int, write bool) (*handle, error) {
	for {
		attr, err := a.c.Lookup(ctx, &msg.Cred{}, id.Ino(1), fileName(file))
		if err == nil {
			session := uint64(a.c.Session())
			var f *client.File
			f, err = a.c.Open(ctx, &msg.Cred{}, id.Ino(attr.Ino), write, false)
			if err == nil && session == uint64(a.c.Session()) {
				a.mu.Lock()
				a.w.mu.Lock()
				a.w.counts.Opens++
				if write && !a.dead {
					a.w.grants = append(a.w.grants, grant{file: file, session: session, at: a.w.clockLocked()})
				}
				a.w.mu.Unlock()
				a.mu.Unlock()
				return &handle{f: f, session: session}, nil
			}
			if err == nil {
				_ = f.Release(ctx)
				continue
			}
		}
		if ctx.Err() != nil || a.isDead() {
			return nil, err
		}
		if !retry(err) {
			return nil, fmt.Errorf("open of file %d: %w", file, err)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// retry reports whether an operation may fail like this in a cluster that has trouble.
func retry(err error) bool {
	for _, c := range []fserr.Code{fserr.Stale, fserr.Timeout, fserr.Interrupted, fserr.Unavailable, fserr.NoSpace, fserr.NotLeader} {
		if errors.Is(err, c) {
			return true
		}
	}
	return false
}

// worker does random operations on one file until ctx ends or the app is killed. hard ends those under way.
func (a *app) worker(ctx, hard context.Context, n, file int, write bool) {
	w := a.w
	who := fmt.Sprintf("%s/%d", a.name, n)
	rng := rand.New(rand.NewSource(int64(mix(mixString(w.o.Seed, who), uint64(file)))))
	var h *handle
	defer func() {
		if h != nil {
			_ = h.f.Release(hard)
		}
	}()
	for ops := 0; ctx.Err() == nil && !a.isDead() && ops < w.cfg.ops; ops++ {
		if err := pause(ctx, time.Duration(rng.Int63n(int64(w.cfg.think)))); err != nil {
			return
		}
		if h == nil {
			var err error
			if h, err = a.open(hard, file, write); err != nil {
				if !a.isDead() && hard.Err() == nil {
					w.fault("%s: %v", who, err)
				}
				return
			}
		}
		octx, cancel := hard, context.CancelFunc(func() {})
		if rng.Intn(25) == 0 {
			octx, cancel = context.WithTimeout(hard, time.Duration(rng.Intn(3000))*time.Millisecond)
		}
		var err error
		of := 100
		if w.cfg.steady {
			of = 88
		}
		switch k := rng.Intn(of); {
		case k < 50 && write:
			err = a.change(octx, who, h, file, rng)
		case k < 88:
			err = a.read(octx, who, h, file, rng)
		case k < 96 && write:
			err = a.flush(octx, who, h, file)
		default:
			err = h.f.Release(octx)
			h = nil
		}
		cancel()
		if err == nil || a.isDead() || hard.Err() != nil {
			continue
		}
		w.mu.Lock()
		w.counts.Failed++
		w.mu.Unlock()
		switch {
		case errors.Is(err, fserr.Stale):
			if h != nil {
				_ = h.f.Release(hard)
				h = nil
			}
		case !retry(err):
			w.fault("%s: %v", who, err)
			return
		}
	}
}

// place draws a run of cells.
func place(rng *rand.Rand) (first, n int) {
	total := areaBlocks * cells
	first = rng.Intn(total)
	switch rng.Intn(3) {
	case 0: // one whole block
		first, n = first/cells*cells, cells
	case 1: // whole blocks
		first = first / cells * cells
		n = min(total-first, cells*(1+rng.Intn(3)))
	default:
		n = min(total-first, 1+rng.Intn(20))
	}
	return areas[rng.Intn(len(areas))]*cells + first, n
}

// begin notes a write, before it is sent, to some cells of a file.
func (a *app) begin(x write, h *handle, file int, places ...[2]int) (all []*write) {
	w := a.w
	w.mu.Lock()
	defer w.mu.Unlock()
	start := w.clockLocked()
	for _, p := range places {
		w.values++
		one := x
		one.v, one.file, one.first, one.n, one.start, one.session = value(w.values), file, p[0], p[1], start, h.session
		w.model.begin(&one)
		all = append(all, &one)
	}
	w.counts.Writes++
	return all
}

// end notes how a write ended.
func (a *app) end(all []*write, err error, what string) error {
	w := a.w
	a.mu.Lock() // a process that was killed has heard no answer
	defer a.mu.Unlock()
	w.mu.Lock()
	end := w.clockLocked()
	if err == nil && !a.dead {
		for _, x := range all {
			x.end, x.acked = end, true
		}
		w.counts.Acked++
	}
	w.mu.Unlock()
	if w.o.Log != nil {
		for _, x := range all {
			w.note("%s: %s %d at block %d+%d, %d sectors: %v", x.who, what, x.v, x.first/cells, x.first%cells, x.n, err)
		}
	}
	return err
}

// change does one operation that changes the file. A size that a write has made longer is lost with its mount until it was reported, so a file that
// was cut gets its length back before anything else is written.
func (a *app) change(ctx context.Context, who string, h *handle, file int, rng *rand.Rand) error {
	what := rng.Intn(100)
	if a.w.cfg.cuts == 0 {
		if what < a.w.cfg.punches {
			return a.punch(ctx, who, h, file, rng)
		}
		return a.write(ctx, who, h, file, rng)
	}
	l := &a.lengths[file]
	if what >= a.w.cfg.punches && what < a.w.cfg.punches+a.w.cfg.cuts {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.whole = false
		if err := a.cut(ctx, who, h, file, rng); err != nil {
			return err
		}
		return a.lengthen(ctx, h, file)
	}
	l.mu.RLock()
	for !l.whole {
		l.mu.RUnlock()
		l.mu.Lock()
		err := a.lengthen(ctx, h, file)
		l.mu.Unlock()
		if err != nil {
			return err
		}
		l.mu.RLock()
	}
	defer l.mu.RUnlock()
	if what < a.w.cfg.punches {
		return a.punch(ctx, who, h, file, rng)
	}
	return a.write(ctx, who, h, file, rng)
}

// lengthen gives a file its length back. The caller holds the length's lock.
func (a *app) lengthen(ctx context.Context, h *handle, file int) error {
	l := &a.lengths[file]
	if l.whole {
		return nil
	}
	err := h.f.Truncate(ctx, fileBytes)
	l.whole = err == nil
	return err
}

func (a *app) write(ctx context.Context, who string, h *handle, file int, rng *rand.Rand) error {
	first, n := place(rng)
	all := a.begin(write{who: who}, h, file, [2]int{first, n})
	p := make([]byte, n*cellSize)
	fill(p, all[0].v, first)
	_, _, err := h.f.WriteAt(ctx, p, int64(first)*cellSize, false)
	return a.end(all, err, "write")
}

// punch puts zeros, by one of the two modes of fallocate that do.
func (a *app) punch(ctx context.Context, who string, h *handle, file int, rng *rand.Rand) error {
	first, n := place(rng)
	mode := draw[uint32](rng, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE)
	all := a.begin(write{who: who, zero: true}, h, file, [2]int{first, n})
	return a.end(all, h.f.Fallocate(ctx, mode, int64(first)*cellSize, int64(n)*cellSize), "punch")
}

// cut makes the file shorter, mostly by little. What is behind its end counts as zeros, which a later write, or nobody, puts into the file.
func (a *app) cut(ctx context.Context, who string, h *handle, file int, rng *rand.Rand) error {
	area := areas[draw(rng, 0, 1, 1, 2, 2, 2, 2, 2)]
	size := area*cells + rng.Intn(areaBlocks*cells)
	var places [][2]int
	for _, at := range areas {
		if first, end := max(at*cells, size), (at+areaBlocks)*cells; first < end {
			places = append(places, [2]int{first, end - first})
		}
	}
	all := a.begin(write{who: who, zero: true}, h, file, places...)
	return a.end(all, h.f.Truncate(ctx, int64(size)*cellSize), "cut")
}

func (a *app) read(ctx context.Context, who string, h *handle, file int, rng *rand.Rand) error {
	first, n := place(rng)
	return a.readAt(ctx, who, h, file, first, n)
}

func (a *app) readAt(ctx context.Context, who string, h *handle, file, first, n int) error {
	w := a.w
	p := make([]byte, n*cellSize)
	start := w.clock()
	got, err := h.f.ReadAt(ctx, p, int64(first)*cellSize)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil || a.dead {
		return err
	}
	if got != len(p) && w.cfg.cuts == 0 {
		w.fault("%s: read of %d bytes at %d of file %d answered %d", who, len(p), first*cellSize, file, got)
		return nil
	}
	clear(p[got:]) // behind the end
	end := w.clock()
	w.mu.Lock()
	w.model.saw(who, file, first, p, start, end)
	w.counts.Reads++
	w.mu.Unlock()
	if w.o.Log != nil {
		var vs []value
		for i := range n {
			if v := valueOf(p[i*cellSize:], first+i); len(vs) == 0 || vs[len(vs)-1] != v {
				vs = append(vs, v)
			}
		}
		w.note("%s: read block %d+%d, %d sectors: %d", who, first/cells, first%cells, n, vs)
	}
	return nil
}

func (a *app) flush(ctx context.Context, who string, h *handle, file int) error {
	w := a.w
	w.mu.Lock()
	var covered []*write
	for _, x := range w.model.writes {
		if x.file == file && x.acked && !x.flushed && x.session == h.session {
			covered = append(covered, x)
		}
	}
	w.mu.Unlock()
	err := h.f.Fsync(ctx, true)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil || a.dead {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts.Flushes++
	for _, x := range covered {
		x.flushed = true
	}
	return nil
}
