package perf

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// flight is an operation that a worker has under way. It is written by the worker, and read when the operation does not end.
type flight struct {
	what  atomic.Uint64 // kind+1 in the highest byte, the block in the others; 0: none
	since atomic.Int64  // nanoseconds from the start of the run
	_     [48]byte      // workers do not share a cache line
}

const flightBlock = 1<<56 - 1

func (f *flight) begin(o op, at time.Duration) {
	f.since.Store(int64(at))
	f.what.Store(uint64(o.kind+1)<<56 | uint64(o.block)&flightBlock)
}

func (f *flight) end() { f.what.Store(0) }

// StuckOp is an operation that did not end, and what it waits for as far as that can be seen.
type StuckOp struct {
	Job    int           `json:"job"`
	Op     string        `json:"op"`
	Path   string        `json:"path"`
	Offset int64         `json:"offset"` // in bytes
	For    time.Duration `json:"for_ns"` // how long it has been under way
	Waits  string        `json:"waits_for"`
}

func (s StuckOp) String() string {
	return fmt.Sprintf("%s at %d of %s, for %v, waits for %s", s.Op, s.Offset, s.Path, s.For.Round(time.Millisecond), s.Waits)
}

// maxStuck bounds the operations that a result describes; all are counted.
const maxStuck = 16

// stuck returns how many operations of the workers are under way, and the first of them.
func (l *load) stuck(workers []worker) (n int64, first []StuckOp) {
	now := l.now()
	for _, w := range workers {
		for i := range w.r.flights {
			f := &w.r.flights[i]
			what := f.what.Load()
			if what == 0 {
				continue
			}
			if n++; n > maxStuck {
				continue
			}
			kind, block := opKind(what>>56-1), int64(what&flightBlock)
			off := w.j.file.base + block*l.o.BlockSize
			path := w.j.file.path
			if w.j.names != nil {
				path = w.j.names.path
			}
			first = append(first, StuckOp{
				Job: w.j.n, Op: kind.String(), Path: path, Offset: off, For: now - time.Duration(f.since.Load()), Waits: w.j.file.waits(kind, off),
			})
		}
	}
	return n, first
}

// newest is when the operation began that began last of those under way; 0 if there is none.
func newest(workers []worker) (at time.Duration) {
	for _, w := range workers {
		for i := range w.r.flights {
			if f := &w.r.flights[i]; f.what.Load() != 0 {
				at = max(at, time.Duration(f.since.Load()))
			}
		}
	}
	return at
}

// waits says what an operation of the file waits for.
func (f *file) waits(kind opKind, off int64) string {
	switch {
	case f.names != nil:
		return "the target, which holds " + f.names.path
	case f.device != nil:
		return "the answer of the server that exports " + f.path
	case f.chunks != nil:
		return "the answer of the chunk server at " + f.path
	case f.core != nil:
		return "the cluster's servers, as its client does"
	case f.fd < 0:
		return "nothing that is known"
	}
	return kernelWaits(f.fd, kind, off)
}

// kernelWaits finds the thread of this process that is in the system call, and says in which function of the kernel it sleeps.
func kernelWaits(fd int, kind opKind, off int64) string {
	call := map[opKind]int64{opRead: unix.SYS_PREAD64, opWrite: unix.SYS_PWRITE64, opSync: unix.SYS_FDATASYNC}[kind]
	tasks, _ := filepath.Glob("/proc/self/task/*")
	worker := ""
	for _, dir := range tasks {
		text := func(name string) string {
			b, _ := os.ReadFile(filepath.Join(dir, name))
			return strings.TrimSpace(string(b))
		}
		if strings.HasPrefix(text("comm"), "iou-wrk-") { // does what a ring cannot do at once
			if at := text("wchan"); at != "" && at != "0" && !strings.HasPrefix(at, "io_w") {
				worker = at
			}
			continue
		}
		// The number of the system call and its arguments, or "running".
		words := strings.Fields(text("syscall"))
		number := func(i int) int64 {
			if i >= len(words) {
				return -1
			}
			v, err := strconv.ParseInt(words[i], 0, 64)
			if err != nil {
				return -1
			}
			return v
		}
		if number(0) == call && number(1) == int64(fd) && (kind == opSync || number(4) == off) {
			return kernelFunction(text("wchan"))
		}
	}
	if worker != "" {
		return kernelFunction(worker)
	}
	return "the kernel"
}

// kernelFunction adds what is known of a function in which threads wait.
func kernelFunction(name string) string {
	switch {
	case name == "" || name == "0":
		return "the kernel"
	case strings.HasPrefix(name, "request_wait_answer"), strings.HasPrefix(name, "fuse_"), strings.Contains(name, "fuse"):
		return "the process that serves the FUSE mount (kernel: " + name + ")"
	case strings.HasPrefix(name, "rpc_"), strings.HasPrefix(name, "nfs"):
		return "the NFS server (kernel: " + name + ")"
	case strings.HasPrefix(name, "blkdev_"), strings.HasPrefix(name, "io_schedule"), strings.HasPrefix(name, "folio_wait"), strings.Contains(name, "iomap_dio"):
		return "the disk (kernel: " + name + ")"
	}
	return "the kernel: " + name
}

// watch is told how work goes that cannot be interrupted.
type watch struct {
	steps atomic.Int64
	at    atomic.Pointer[string]
}

// step says what is done next.
func (w *watch) step(format string, args ...any) {
	if w == nil {
		return
	}
	s := fmt.Sprintf(format, args...)
	w.at.Store(&s)
	w.steps.Add(1)
}

func (w *watch) where() string {
	if s := w.at.Load(); s != nil {
		return *s
	}
	return "the first step"
}

// errStandsStill is the error of work that was given up; it goes on in the background, if it goes on.
type errStandsStill struct {
	where string
	after time.Duration
}

func (e errStandsStill) Error() string {
	return fmt.Sprintf("%s does not end (given up after %v)", e.where, e.after)
}

// bounded does f, which cannot be interrupted but looks at ctx between its steps, and returns its error. It gives up when a step takes longer than settle,
// or grace after ctx has ended. What f uses must then be left to it.
func bounded(ctx context.Context, settle, grace time.Duration, f func(*watch) error) error {
	w := new(watch)
	done := make(chan error, 1)
	go func() { done <- f(w) }()
	tick := time.NewTicker(min(max(settle/20, time.Millisecond), time.Second))
	defer tick.Stop()
	steps, since := int64(-1), time.Now()
	over := ctx.Done()
	var graceOver <-chan time.Time
	for {
		select {
		case err := <-done:
			return err
		case <-over:
			over = nil
			timer := time.NewTimer(grace)
			defer timer.Stop()
			graceOver = timer.C
		case <-graceOver:
			return errStandsStill{w.where(), grace}
		case <-tick.C:
			if n := w.steps.Load(); n != steps {
				steps, since = n, time.Now()
			} else if time.Since(since) > settle {
				return errStandsStill{w.where(), settle}
			}
		}
	}
}
