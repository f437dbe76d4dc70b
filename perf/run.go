package perf

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"varve/internal/disk"
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
	jobs, err := openAll(ctx, &o)
	if err != nil {
		return nil, err
	}
	res, stuck := measure(ctx, &o, jobs, progress)
	if stuck {
		return res, nil // closing would let what hangs write to files opened later
	}
	if err := closeAll(jobs); err != nil && res.Stopped == "" {
		res.Stopped = fmt.Sprintf("target fails: close: %v", err)
	}
	return res, nil
}

// Prepare lays out what Run with the same options would lay out before it measures, so that several runs that begin together
// measure at the same time. Blocks that are both written and verified are laid out by Run once more.
func Prepare(ctx context.Context, o Options) error {
	if t, err := parseTarget(o.Target); err == nil && t.server() {
		return nil // its chunks go with the connection
	}
	jobs, err := openAll(ctx, &o)
	if err != nil {
		return err
	}
	return closeAll(jobs)
}

// openAll checks the options, fills in what is zero, and opens and lays out what the jobs work on.
func openAll(ctx context.Context, o *Options) ([]*job, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("options: %w", err)
	}
	o.setDefaults()
	o.Size -= o.Size % max(o.BlockSize, 1)
	t, err := parseTarget(o.Target)
	if err != nil {
		return nil, err
	}
	if o.Metadata != "" {
		o.Engine = Sync
	}
	if o.Engine, err = chooseEngine(t, o.Engine); err != nil {
		return nil, err
	}
	run := uint64(time.Now().UnixNano())
	words := newPool(run)
	jobs := make([]*job, 0, o.Jobs)
	var first *file
	for n := range o.Jobs {
		f, err := t.open(ctx, n, o, first)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("target %s: %w", o.Target, err), closeAll(jobs))
		}
		first = f
		jobs = append(jobs, newJob(o, n, f, words, run))
	}
	if err := layOutAll(ctx, o, jobs); err != nil {
		return nil, errors.Join(err, closeAll(jobs))
	}
	return jobs, nil
}

func closeAll(jobs []*job) error {
	var err error
	for _, j := range jobs {
		err = errors.Join(err, j.file.close())
	}
	return err
}

// layOutAll writes the files that are to be read and are not there in full. What is verified while it is also written
// is always laid out, so that every block has a known content.
func layOutAll(ctx context.Context, o *Options, jobs []*job) error {
	if o.Metadata != "" {
		return prepareNames(ctx, jobs)
	}
	if !o.RW.reads() {
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
		stop := func() error { return context.Cause(ctx) }
		if err := j.layOut(stop, buffer); err != nil {
			return err
		}
	}
	for _, j := range jobs {
		j.file.forget(o.Size)
	}
	return nil
}

// measure runs the load and returns what it measured, and whether operations are stuck.
func measure(ctx context.Context, o *Options, jobs []*job, progress func(Progress)) (*Result, bool) {
	runCtx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	l := &load{o: o, ctx: runCtx, stop: stop, grace: graceTime, begun: make(chan struct{})}
	var workers sync.WaitGroup
	var recorders []*recorder
	latencies := new(series)
	worker := func(j *job, do func(*job, *recorder)) {
		r := &recorder{series: latencies}
		recorders = append(recorders, r)
		l.setUp.Add(1)
		workers.Go(func() { do(j, r) })
	}
	for _, j := range jobs {
		switch o.Engine {
		case URing:
			worker(j, l.ringWorker)
			continue
		case Wire:
			worker(j, l.wireWorker)
			continue
		}
		for range o.QD {
			worker(j, l.syncWorker)
		}
	}
	l.setUp.Wait()
	cpu := readCPU()
	cpu.setOwn(ownCPU())
	l.start = time.Now()
	close(l.begun)
	ended := make(chan struct{})
	var reporter sync.WaitGroup
	if progress != nil {
		reporter.Go(func() { l.report(recorders, latencies, ended, progress) })
	}
	stuck := !l.wait(&workers)
	close(ended)
	reporter.Wait()
	elapsed, own := l.now(), ownCPU()

	sum := &recorder{series: latencies}
	for _, r := range recorders {
		r.close(sum)
	}
	res := newResult(o, l.start, elapsed, sum)
	used := readCPU()
	used.setOwn(own)
	res.CPU = used.since(cpu, res.Total.Count)
	if stuck {
		for _, r := range recorders {
			res.Stuck += r.busy.Load()
		}
	}
	switch cause := context.Cause(runCtx); {
	case ctx.Err() != nil:
		res.Stopped = cancelled
	case cause != nil:
		res.Stopped = cause.Error()
	case stuck:
		res.Stopped = fmt.Sprintf("operations did not end within %v", settleTime)
	}
	for _, j := range jobs {
		res.Missed += j.missed(elapsed)
	}
	if o.Verify {
		if o.RW.writes() || o.Metadata != "" {
			sum.verify.ReadBack = "operations are stuck"
			if !stuck {
				sum.verify.ReadBack = readBack(ctx, o, jobs, sum)
			}
		}
		res.Verify = &sum.verify
		res.setErrors(sum) // reading back may have added some
	}
	return res, stuck
}

// wait waits for the workers, false if it gave up on them.
func (l *load) wait(workers *sync.WaitGroup) bool {
	done := make(chan struct{})
	go func() { workers.Wait(); close(done) }()
	var late <-chan time.Time
	if l.o.Duration > 0 {
		timer := time.NewTimer(l.o.Duration + settleTime)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-done:
		return true
	case <-late:
		return false
	case <-l.ctx.Done():
	}
	grace := time.NewTimer(l.grace)
	defer grace.Stop()
	select {
	case <-done:
		return true
	case <-grace.C:
		return false
	}
}
