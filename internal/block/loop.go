package block

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"time"

	"varve/internal/hot"
	"varve/iouring/reactor"
)

// Loop is a thread that serves requests, with memory for their payload.
type Loop struct {
	*reactor.Loop
	memory
	host   hot.Host
	seat   hot.Seat
	seated bool
}

// LoopOptions say how threads are made. The zero value works.
type LoopOptions struct {
	Threads int             // default: half of the processors, at least 1, at most 8
	Memory  int             // for payload, bytes, of all threads; at least MinMemory each; default: 64 MiB each
	Kind    reactor.Kind    // default: a ring where there is one
	Host    hot.Host        // who operations can be begun with; nil: nobody
	Logger  *slog.Logger    // default: slog.Default()
	Reactor reactor.Options // of which Kind, Logger and what bounds sending and filling are set here
}

const maxThreads = 64

// DefaultThreads is how many threads serve if nobody says.
func DefaultThreads() int { return min(max(runtime.NumCPU()/2, 1), 8) }

// StartLoops starts the threads.
func StartLoops(o LoopOptions) (all []*Loop, err error) {
	if o.Threads == 0 {
		o.Threads = DefaultThreads()
	}
	if o.Memory == 0 {
		o.Memory = o.Threads * MinMemory
	}
	if o.Threads < 1 || o.Threads > maxThreads || o.Memory < o.Threads*MinMemory {
		return nil, fmt.Errorf("%d threads with %d bytes: want 1 to %d, and %d bytes for each", o.Threads, o.Memory, maxThreads, MinMemory)
	}
	o.Reactor.Kind, o.Reactor.Logger, o.Reactor.Batch = o.Kind, o.Logger, reactor.EvenBatch
	// How much waits to be sent is bounded by the memory.
	o.Reactor.SendBytes, o.Reactor.SendTimeout, o.Reactor.FillTimeout = 1<<30, IdleTimeout, IdleTimeout
	defer func() {
		if err != nil {
			err = errors.Join(err, CloseLoops(context.Background(), all))
			all = nil
		}
	}()
	for range o.Threads {
		r, err := reactor.Start(o.Reactor)
		if err != nil {
			return all, err
		}
		l := &Loop{Loop: r, memory: memory{limit: o.Memory / o.Threads}}
		all = append(all, l)
		if o.Host != nil {
			seat, err := o.Host.Sit(r)
			if err != nil {
				return all, fmt.Errorf("a thread's seat at the client: %w", err)
			}
			l.host, l.seat, l.seated = o.Host, seat, true
		}
	}
	return all, nil
}

// CloseLoops ends the threads. Preconditions: no operation is under way.
func CloseLoops(ctx context.Context, all []*Loop) error {
	var errs []error
	for _, l := range all {
		if l.seated {
			l.host.Leave(l.seat)
		}
		errs = append(errs, l.Close(ctx))
	}
	return errors.Join(errs...)
}

// MakeRoom lets Go run as many goroutines at once as before beside n threads that wait in the kernel: each keeps what it runs on from the others until the
// runtime looks after it.
func MakeRoom(n int) {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + n)
	}
}

// IdleTimeout is how long a peer may leave a payload unfinished, or its answers untaken, before its connection is ended: longer than a guest is usually stopped by
// a debugger or a snapshot of its host.
const IdleTimeout = time.Minute
