package perf

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/fserr"
	"varve/perf/trace"

	"golang.org/x/sys/unix"
)

// ReplayOptions says how a trace is replayed.
type ReplayOptions struct {
	Target  string // as that of Options
	Cluster string // as that of Options
	Source  string // what the trace was read from, for reports
	// Speed divides the times of the trace; 0: as fast as possible, only in its order.
	Speed float64
	// Depth bounds the operations under way; default 256.
	Depth int
	// Map renames files: OLD=NEW, where OLD is the path of a file or directory in the trace, NEW one below the target. What it does not name goes to
	// the directory varve-replay.
	Map    []string
	Fill   bool // write what is read in the course of it, before it begins; else files have holes there
	Direct bool // O_DIRECT, for operations that can
}

const (
	defaultReplayDepth = 256
	maxSpeed           = 1e6
)

func (o *ReplayOptions) complete() error {
	var faults []error
	if o.Depth == 0 {
		o.Depth = defaultReplayDepth
	}
	if o.Target == "" {
		faults = append(faults, errors.New("which target? Give mount:DIR, file:PATH, cluster:NAME/PATH, nbd:URI or null"))
	} else if t, err := parseTarget(o.Target); err != nil {
		faults = append(faults, err)
	} else if t.server() || t.mds() {
		faults = append(faults, fmt.Errorf("target %s: a replay wants files: mount:DIR, file:PATH, cluster:NAME/PATH, nbd:URI or null", o.Target))
	} else if o.Direct && t.core() {
		faults = append(faults, fmt.Errorf("target %s has no page cache to go past", o.Target))
	}
	if o.Speed < 0 || o.Speed > maxSpeed || math.IsNaN(o.Speed) {
		faults = append(faults, fmt.Errorf("speed %v: want 0 (as fast as possible) to %v", o.Speed, maxSpeed))
	}
	if o.Depth < 1 || o.Depth > maxWorkers {
		faults = append(faults, fmt.Errorf("depth %d: want 1 to %d", o.Depth, maxWorkers))
	}
	return errors.Join(faults...)
}

// Validate reports every fault of the options at once.
func (o ReplayOptions) Validate() error {
	_, err := renamer(o.Map)
	return errors.Join(o.complete(), err)
}

// Takes is how long the replay of a trace should take, 0 if that is not known.
func (o ReplayOptions) Takes(t *trace.Trace) time.Duration {
	if o.Speed <= 0 {
		return 0
	}
	return time.Duration(float64(t.Length()) / o.Speed).Round(time.Second)
}

// Replay does the operations of a trace once more and measures them. Writes write other data than was written then: a trace has none.
//
// An operation begins when it did then (open loop), the times divided by Speed, but never before those of the same open file have ended that had ended
// when it began; what waits for those begins late, which is in Slip. Latencies count from when an operation began. Files are made as
// large as they have to be, and stay.
//
// It returns when all is done, ctx is done, or the target can do no more, and in all of these cases a result; an error means that nothing was replayed.
func Replay(ctx context.Context, o ReplayOptions, t *trace.Trace, progress func(Progress)) (*ReplayResult, error) {
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("options: %w", err)
	}
	rename, err := renamer(o.Map)
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	where, err := parseTarget(o.Target)
	if err != nil {
		return nil, err
	}
	p, err := newPlan(t, where.kind == "mount" || where.core(), rename)
	if err != nil {
		return nil, err
	}
	r := &replay{o: &o, p: p, run: newPool(uint64(time.Now().UnixNano())), room: make(chan struct{}, o.Depth), record: &recorder{series: new(series)}, grace: graceTime}
	if r.target, err = o.open(ctx, where, p); err != nil {
		return nil, fmt.Errorf("target %s: %w", o.Target, err)
	}
	if err := r.prepare(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("target %s: %w", o.Target, err), r.closeAll())
	}
	res, stuck := r.measure(ctx, t, progress)
	if stuck {
		return res, nil // closing would wait for what hangs
	}
	if err := r.closeAll(); err != nil && res.Replayed.Stopped == "" {
		res.Replayed.Stopped = fmt.Sprintf("target fails: close: %v", err)
	}
	return res, nil
}

func (o *ReplayOptions) open(ctx context.Context, t target, p *plan) (replayTarget, error) {
	switch {
	case t.kind == "mount":
		root, err := os.OpenRoot(t.path)
		if err != nil {
			return nil, err
		}
		return &mountFiles{root: root, direct: o.Direct}, nil
	case t.core():
		_, dir, _ := strings.Cut(t.path, "/")
		return openCoreFiles(ctx, o.Cluster, dir)
	}
	return openRange(ctx, t, &Options{Target: o.Target, Direct: o.Direct, RW: RandRW, BlockSize: sectorSize, Jobs: 1}, p.files)
}

// replay is one that is under way.
type replay struct {
	o       *ReplayOptions
	p       *plan
	target  replayTarget
	run     pool
	buffers bufferPool
	handles []openHandle
	record  *recorder

	grace  time.Duration   // how long to wait for operations that do not end, after it has ended
	ctx    context.Context // ends it; it lives as long as the run
	stop   context.CancelCauseFunc
	start  time.Time
	room   chan struct{} // one element for each operation under way
	under  sync.WaitGroup
	fails  atomic.Int64
	busy   atomic.Int64 // operations under way
	short  atomic.Int64
	mu     sync.Mutex // guards slip
	slip   slipped
	parked atomic.Int64
}

// openHandle is one open file of a replay, and who waits for whom there.
type openHandle struct {
	mu      sync.Mutex
	h       replayHandle // nil when it is not open
	ended   []bool       // by rank
	prefix  int          // all ranks below have ended
	waiting []*step      // in the order of what they need
}

// errNotOpen is what an operation gets on a file that could not be opened.
var errNotOpen = errors.New("the file could not be opened")

// prepare makes the files and opens those that were open when the trace began.
func (r *replay) prepare(ctx context.Context) error {
	for i := range r.p.files {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		f := &r.p.files[i]
		if err := r.target.make(ctx, i, f); err != nil {
			return err
		}
		if r.o.Fill {
			if err := r.fill(ctx, i, f); err != nil {
				return fmt.Errorf("fill %s: %w", f.name, err)
			}
		}
	}
	r.handles = make([]openHandle, len(r.p.handles))
	for i := range r.handles {
		h := &r.p.handles[i]
		r.handles[i].ended = make([]bool, h.steps)
		if h.opens {
			continue
		}
		open, err := r.target.open(h.file, &r.p.files[h.file], h.write, 0)
		if err != nil {
			return err
		}
		r.handles[i].h = open
	}
	return nil
}

// fill writes what is read of a file.
func (r *replay) fill(ctx context.Context, i int, f *replayFile) error {
	if len(f.read) == 0 {
		return nil
	}
	h, err := r.target.open(i, f, true, 0)
	if err != nil {
		return err
	}
	p, put := r.buffers.get(fillUnit)
	defer put()
	for _, s := range f.read {
		if err == nil {
			err = context.Cause(ctx)
		}
		if err == nil {
			r.run.fill(p, uint64(s.from))
			err = h.write(p[:s.to-s.from], s.from)
		}
	}
	if err == nil {
		err = h.sync(false)
	}
	return errors.Join(err, h.close())
}

func (r *replay) closeAll() error {
	var errs []error
	for i := range r.handles {
		if h := r.handles[i].h; h != nil {
			errs = append(errs, h.close())
		}
	}
	return errors.Join(append(errs, r.target.close())...)
}

func (r *replay) now() time.Duration { return time.Since(r.start) }

// due is when a step is to begin.
func (r *replay) due(s *step) time.Duration {
	if r.o.Speed == 0 {
		return 0
	}
	return time.Duration(float64(s.at) / r.o.Speed)
}

// await waits until a moment, false if the run is over before. It sleeps in the kernel, since Go's timers may be a millisecond late.
func (r *replay) await(due time.Duration) bool {
	for {
		if r.ctx.Err() != nil {
			return false
		}
		left := due - r.now()
		if left <= 0 {
			return true
		}
		ts := unix.NsecToTimespec(int64(min(left, maxNap)))
		_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, nil) // interrupted: the loop looks again
	}
}

// steps starts the operations in their order.
func (r *replay) steps() {
	for i := range r.p.steps {
		s := &r.p.steps[i]
		if !r.await(r.due(s)) {
			return
		}
		if s.handle >= 0 && !r.handles[s.handle].may(s) {
			r.parked.Add(1)
			continue // the one that it waits for starts it
		}
		if !r.launch(s) {
			return
		}
	}
}

// may reports whether a step may begin, and else lets it wait.
func (h *openHandle) may(s *step) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.needs <= h.prefix {
		return true
	}
	h.waiting = append(h.waiting, s)
	return false
}

// end notes that a step has ended, and returns those that may begin now.
func (h *openHandle) end(s *step) (ready []*step) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended[s.rank] = true
	for h.prefix < len(h.ended) && h.ended[h.prefix] {
		h.prefix++
	}
	n := 0
	for n < len(h.waiting) && h.waiting[n].needs <= h.prefix {
		n++
	}
	ready, h.waiting = h.waiting[:n:n], h.waiting[n:]
	return ready
}

// launch starts a step when there is room, false if the run is over.
func (r *replay) launch(s *step) bool {
	select {
	case r.room <- struct{}{}:
	case <-r.ctx.Done():
		return false
	}
	r.under.Add(1)
	r.busy.Add(1)
	go func() {
		defer r.under.Done()
		r.do(s)
		<-r.room
		if s.handle < 0 {
			return
		}
		for _, next := range r.handles[s.handle].end(s) {
			r.parked.Add(-1)
			r.under.Add(1)
			go func() { // waits for room without holding any
				defer r.under.Done()
				r.launch(next)
			}()
		}
	}()
	return true
}

// do does a step and records it.
func (r *replay) do(s *step) {
	n := 0
	if s.kind == opRead || s.kind == opWrite {
		n = int(s.x.Size)
	}
	p, put := r.buffers.get(n)
	defer put()
	if s.kind == opWrite {
		r.run.fill(p, uint64(s.x.Offset)^uint64(s.at))
	}
	x := outcome{op: op{kind: s.kind}, started: r.now()}
	got, err := r.call(s, p)
	x.ended, x.err = r.now(), err
	r.busy.Add(-1)
	x.bytes = int64(got)
	if s.kind == opRead && err == nil && got < int(s.x.Done) {
		r.short.Add(1)
	}
	r.mu.Lock()
	r.slip.add(x.started - r.due(s))
	r.mu.Unlock()
	if err != nil {
		r.failed(s.kind, err)
	}
	r.record.add(x)
}

// call does a step, and returns how many bytes were read or written.
func (r *replay) call(s *step, p []byte) (int, error) {
	f := &r.p.files[s.file]
	if s.handle < 0 {
		return 0, r.target.truncate(s.file, f, s.x.Offset)
	}
	slot := &r.handles[s.handle]
	if s.kind == opOpen {
		plan := &r.p.handles[s.handle]
		h, err := r.target.open(s.file, f, plan.write, plan.flags)
		if err == nil {
			slot.mu.Lock()
			slot.h, h = h, slot.h
			slot.mu.Unlock()
			if h != nil { // opened twice: a trace that lost a close
				err = h.close()
			}
		}
		return 0, err
	}
	slot.mu.Lock()
	h := slot.h
	if s.kind == opClose {
		slot.h = nil
	}
	slot.mu.Unlock()
	if h == nil {
		return 0, errNotOpen
	}
	switch s.kind {
	case opRead:
		return h.read(p, s.x.Offset)
	case opWrite:
		return len(p), h.write(p, s.x.Offset)
	case opSync:
		return 0, h.sync(s.x.Arg&1 != 0)
	case opTruncate:
		return 0, h.truncate(s.x.Offset)
	case opAllocate:
		mode := s.x.Arg
		if trimmed(s) {
			mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
		}
		return 0, h.allocate(mode, s.x.Offset, s.x.Size)
	}
	return 0, h.close()
}

// failed counts an error, and ends the run if the operations after it cannot fare better.
func (r *replay) failed(kind opKind, err error) {
	data := kind == opRead || kind == opWrite || kind == opSync
	if gone := errors.Is(err, unix.ENOSPC) || errors.Is(err, fserr.NoSpace); gone || data && !errors.Is(err, errNotOpen) && endsRun(err) {
		r.stop(errors.New(reason(kind, err)))
	} else if r.fails.Add(1) >= maxErrors {
		r.stop(fmt.Errorf("%d operations failed, the last: %s", maxErrors, reason(kind, err)))
	}
}

// measure replays, and reports whether operations hang.
func (r *replay) measure(ctx context.Context, t *trace.Trace, progress func(Progress)) (*ReplayResult, bool) {
	runCtx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	r.ctx, r.stop = runCtx, stop
	cpu := readCPU()
	r.start = time.Now()
	ended := make(chan struct{})
	var reporter sync.WaitGroup
	if progress != nil {
		l := &load{start: r.start}
		reporter.Go(func() { l.report([]worker{{r: r.record}}, r.record.series, nil, ended, nil, progressHooks(progress)) })
	}
	r.under.Add(1)
	done := make(chan struct{})
	go func() {
		go func() { defer r.under.Done(); r.steps() }()
		r.under.Wait()
		close(done)
	}()
	stuck := false
	select {
	case <-done:
	case <-runCtx.Done():
		late := time.NewTimer(r.grace)
		defer late.Stop()
		select {
		case <-done:
		case <-late.C:
			stuck = true
		}
	}
	close(ended)
	reporter.Wait()

	sum := &recorder{series: r.record.series}
	r.record.close(sum)
	o := &Options{Target: r.o.Target, Replay: fmt.Sprintf("replay of %s on %s, %s", filepath.Base(r.o.Source), r.o.Target, speedText(r.o.Speed))}
	res := newResult(o, r.start, sum.last, sum)
	res.CPU = readCPU().since(cpu, res.Total.Count)
	if stuck {
		res.Stuck = r.busy.Load()
	}
	switch cause := context.Cause(runCtx); {
	case ctx.Err() != nil:
		res.Stopped = cancelled
	case cause != nil:
		res.Stopped = cause.Error()
	}
	out := r.result(t, res)
	return out, stuck
}
