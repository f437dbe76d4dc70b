package perf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"varve/internal/disk"

	"golang.org/x/sys/unix"
)

// How long a run waits for operations that do not end.
const (
	settleTime = 60 * time.Second // after the time of the run is over: the target may be about to recover
	graceTime  = 5 * time.Second  // after it was cancelled or the target failed
)

// cancelled is what a result says of a run that ctx ended.
const cancelled = "cancelled"

// Run generates the load and measures it. It returns when the load has ended, ctx is done, or the target can do no more, and in
// all of these cases a Result. An error means that nothing was measured: the options make no sense, or the target cannot be
// opened or laid out.
//
// Operations that hang in the kernel cannot be ended from here. Run gives up on them after a while, says so in Result.Stuck,
// and leaves their goroutines and descriptors behind.
func Run(ctx context.Context, o Options) (*Result, error) { return RunWith(ctx, o, nil) }

// RunWith is Run, and tells progress, unless it is nil, every second of the load what happened in it.
func RunWith(ctx context.Context, o Options, progress func(Progress)) (*Result, error) {
	l, err := Open(ctx, o)
	if err != nil {
		return nil, err
	}
	return l.Run(ctx, progressHooks(progress)), nil
}

func progressHooks(progress func(Progress)) (h Hooks) {
	if progress != nil {
		h.Second = func(s *Sample) { progress(s.Progress()) }
	}
	return h
}

// Prepare lays out what Run with the same options would lay out before it measures, so that several runs that begin together
// measure at the same time. Blocks that are both written and verified are laid out by Run once more.
func Prepare(ctx context.Context, o Options) error {
	if t, err := parseTarget(o.Target); err == nil && t.server() {
		return nil // its chunks go with the connection
	}
	l, err := Open(ctx, o)
	if err != nil {
		return err
	}
	return l.Close()
}

// Load is a load that is ready to begin: its target is open and laid out. Either Run or Close ends it.
type Load struct {
	o    Options
	jobs []*job
}

// Hooks are what the caller of Load.Run wants to know and to decide meanwhile. The zero value is none of it.
type Hooks struct {
	Start  time.Time       // when the load begins, which is what Result.Elapsed counts from; if zero or past, at once
	Second func(*Sample)   // is told of each second when it is over; it must not wait
	Enough <-chan struct{} // when closed, the load ends as if its time were over
}

// await waits for the start, or the end of ctx, and returns the moment from which the load counts.
func (h *Hooks) await(ctx context.Context) time.Time {
	now := time.Now()
	wait := h.Start.Sub(now)
	if wait <= 0 {
		return now
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return h.Start
}

// Open checks the options, fills in what is zero, and opens and lays out what the jobs work on. It gives up where a step of that stands still for
// Options.Settle.
func Open(ctx context.Context, o Options) (*Load, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("options: %w", err)
	}
	o.setDefaults()
	o.Size -= o.Size % max(o.BlockSize, 1)
	t, err := parseTarget(o.Target)
	if err != nil {
		return nil, err
	}
	if !o.data() {
		o.Engine = Sync
	}
	if o.Engine, err = chooseEngine(t, o.Engine); err != nil {
		return nil, err
	}
	opened := make(chan *Load, 1)
	if err := bounded(ctx, o.Settle, graceTime, func(w *watch) error {
		l, err := openAll(ctx, o, t, w)
		if err == nil {
			opened <- l
		}
		return err
	}); err != nil {
		return nil, err
	}
	return <-opened, nil
}

func openAll(ctx context.Context, o Options, t target, w *watch) (*Load, error) {
	l := &Load{o: o}
	run := uint64(time.Now().UnixNano())
	words := newPool(run)
	var first *file
	for n := range o.Jobs {
		w.step("opening %s for job %d", o.Target, n)
		f, err := t.open(ctx, n, &l.o, first)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("target %s: %w", o.Target, err), closeAll(l.jobs, w))
		}
		first = f
		l.jobs = append(l.jobs, newJob(&l.o, n, f, words, run))
	}
	for _, j := range l.jobs {
		j.all = l.jobs
	}
	if err := layOutAll(ctx, &l.o, l.jobs, w); err != nil {
		return nil, errors.Join(err, closeAll(l.jobs, w))
	}
	return l, nil
}

// Close ends a load that did not run.
func (l *Load) Close() error {
	return bounded(context.Background(), l.o.Settle, graceTime, func(w *watch) error { return closeAll(l.jobs, w) })
}

func closeAll(jobs []*job, w *watch) error {
	var err error
	for _, j := range jobs {
		w.step("closing %s", j.file.path)
		err = errors.Join(err, j.file.close())
	}
	return err
}

// layOutAll writes the files that are to be read and are not there in full. What is verified while it is also written
// is always laid out, so that every block has a known content.
func layOutAll(ctx context.Context, o *Options, jobs []*job, w *watch) error {
	if o.Metadata != "" {
		return prepareNames(ctx, jobs, w)
	}
	if !o.RW.reads() || o.CloneOf != "" {
		return nil
	}
	buffer := disk.AlignedBuffer(int(max(layoutChunk/o.BlockSize, 1) * o.BlockSize))
	for _, j := range jobs {
		short, err := j.file.short(o.Size)
		if err != nil {
			return err
		}
		if !short && !(o.Verify && o.RW.writes()) {
			continue
		}
		step := func(off int64) error {
			w.step("laying out %s at %d", j.file.path, off)
			return context.Cause(ctx)
		}
		if err := j.layOut(step, buffer); err != nil {
			return err
		}
	}
	for _, j := range jobs {
		j.file.forget(o.Size)
	}
	return nil
}

// Run begins the load, measures it, and closes what Open opened.
func (l *Load) Run(ctx context.Context, h Hooks) *Result {
	res, stuck := measure(ctx, &l.o, l.jobs, h)
	if stuck {
		return res // closing would let what hangs write to files opened later
	}
	res.Removed = removed(&l.o, l.jobs)
	if err := l.Close(); err != nil && res.Stopped == "" {
		res.Stopped = fmt.Sprintf("target fails: close: %v", err)
	}
	return res
}

// removed returns the files that are not to be found by their names any more.
func removed(o *Options, jobs []*job) []string {
	var out []string
	found := make(chan []string, 1)
	if err := bounded(context.Background(), o.Settle, graceTime, func(w *watch) error {
		var gone []string
		for _, j := range jobs {
			if j.file.fd < 0 {
				continue
			}
			w.step("looking for %s", j.file.path)
			var open, named unix.Stat_t
			if err := unix.Fstat(j.file.fd, &open); err != nil {
				continue // the target itself is gone, which operations have told
			}
			err := unix.Stat(j.file.path, &named)
			if errors.Is(err, os.ErrNotExist) || err == nil && (open.Dev != named.Dev || open.Ino != named.Ino) {
				gone = append(gone, j.file.path)
			}
		}
		found <- slices.Compact(gone)
		return nil
	}); err == nil {
		out = <-found
	}
	return out
}

// worker is who does operations of a job, and what he measures.
type worker struct {
	j *job
	r *recorder
}

// measure runs the load and returns what it measured, and whether operations are stuck.
func measure(ctx context.Context, o *Options, jobs []*job, h Hooks) (*Result, bool) {
	runCtx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	l := &load{o: o, ctx: runCtx, stop: stop, grace: graceTime, begun: make(chan struct{})}
	var running sync.WaitGroup
	var workers []worker
	latencies, before := new(series), new(series)
	begin := func(j *job, depth int, do func(*job, *recorder)) {
		r := &recorder{series: latencies, flights: make([]flight, depth)}
		if o.Ramp > 0 {
			r.ramp, r.before = o.Ramp, &recorder{series: before}
		}
		workers = append(workers, worker{j, r})
		l.setUp.Add(1)
		running.Go(func() { do(j, r) })
	}
	for _, j := range jobs {
		switch o.Engine {
		case URing:
			begin(j, o.QD, l.ringWorker)
			continue
		case Wire:
			begin(j, o.QD, l.wireWorker)
			continue
		}
		for range o.QD {
			begin(j, 1, l.syncWorker)
		}
	}
	l.setUp.Wait()
	clock := &runClock{at: readCPU()} // which takes its time, and so comes first
	clock.at.setOwn(ownCPU())
	l.start = h.await(ctx)
	clock.again(l.start.Add(o.Ramp), o.Ramp > 0)
	close(l.begun)
	ended := make(chan struct{})
	watch := newSteadyWatch(o)
	var reporter sync.WaitGroup
	if watch != nil || h.Second != nil || h.Enough != nil {
		reporter.Go(func() { l.report(workers, latencies, before, ended, watch, h) })
	}
	stuck := !l.wait(&running, workers)
	elapsed, own := l.now(), ownCPU()
	close(ended)
	reporter.Wait()

	sum := &recorder{series: latencies}
	for _, w := range workers {
		w.r.close(sum)
	}
	res := newResult(o, l.start, elapsed, sum)
	if !stuck {
		res.ClonedBy = clonedBy(jobs)
	}
	used := readCPU()
	used.setOwn(own)
	res.CPU = used.since(clock.stop(), res.Total.Count)
	res.Steady = watch.result(sum)
	if stuck {
		res.Stuck, res.StuckOps = l.stuck(workers)
	}
	switch cause := context.Cause(runCtx); {
	case ctx.Err() != nil:
		res.Stopped = cancelled
	case cause != nil && cause != errEnough:
		res.Stopped = cause.Error()
		var e endError
		res.Gone = errors.As(cause, &e) && isGone(e.err)
	case stuck && len(res.StuckOps) > 0:
		res.Stopped = fmt.Sprintf("%d operations did not end within %v, the first: %v", res.Stuck, o.Settle, res.StuckOps[0])
	case stuck:
		res.Stopped = fmt.Sprintf("operations did not end within %v", o.Settle)
	}
	for _, j := range jobs {
		res.Missed += j.missed(elapsed)
	}
	if o.Verify {
		if o.RW.writes() || !o.data() {
			sum.verify.ReadBack = "operations are stuck"
			if !stuck {
				sum.verify.ReadBack = readBack(ctx, o, jobs, sum)
				stuck = sum.verify.ReadBack != "done" && sum.verify.ReadBack != cancelled
			}
		}
		res.Verify = &sum.verify
		res.setErrors(sum) // reading back may have added some
	}
	return res, stuck
}

// wait waits for the workers, false if it gave up on them.
func (l *load) wait(running *sync.WaitGroup, workers []worker) bool {
	done := make(chan struct{})
	go func() { running.Wait(); close(done) }()
	var late, look <-chan time.Time
	if l.o.Duration > 0 {
		timer := time.NewTimer(time.Until(l.start) + l.o.total() + l.o.Settle)
		defer timer.Stop()
		late = timer.C
	} else { // the load ends with its last operation, so one that does not end must be noticed
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		look = ticker.C
	}
	for waiting := true; waiting; {
		select {
		case <-done:
			return true
		case <-late:
			return false
		case <-look:
			if last := newest(workers); last > 0 && l.now()-last > l.o.Settle {
				return false
			}
		case <-l.ctx.Done():
			waiting = false
		}
	}
	patience := l.grace
	if context.Cause(l.ctx) == errEnough {
		patience = l.o.Settle
	}
	grace := time.NewTimer(patience)
	defer grace.Stop()
	select {
	case <-done:
		return true
	case <-grace.C:
		return false
	}
}
