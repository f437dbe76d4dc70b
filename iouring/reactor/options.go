package reactor

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"varve/iouring"
)

// Kind is how a loop talks to the kernel.
type Kind int

// Kinds.
const (
	Auto Kind = iota // in Options: a ring if the kernel allows, else poll
	Ring             // io_uring
	Poll             // epoll for sockets, a few goroutines for files
)

func (k Kind) String() string { return [...]string{"auto", "io_uring", "epoll"}[k] }

// Options of a loop. The zero value works.
type Options struct {
	// Kind forces one implementation. Default: Auto.
	Kind Kind
	// Ring is passed to iouring.New. Entries has a default of its own here, 256.
	Ring iouring.Options
	// Operations is how many operations the kernel may have at once; more wait in the loop, in order. Default: 1024.
	Operations int
	// Batch, if not 0, has a ring hand the kernel so many operations at a time, and finish so many reads, writes and sends before it looks for new work,
	// which goes first. What the kernel does, the disk above all, then goes on beside what the loop does; without it a deep queue moves as one block
	// between whoever asks, the loop and the disk: one works and two wait. EvenBatch is a good one. Default: 0.
	Batch int
	// BufferSize and Buffers are the memory into which small data is received: size of each in bytes, a power of two, and their
	// number, a power of two. Default: 16 KiB, 128.
	BufferSize, Buffers int
	// Arenas is memory that file operations use often: where there is a ring it is registered with it, so that the kernel need not
	// look its pages up each time. It must not be moved or freed before the loop has ended.
	Arenas [][]byte
	// Workers is how many goroutines do file operations without a ring. Default: 8.
	Workers int

	// SendBytes is the amount of data queued on a connection, in bytes, from which on it is congested: it is not read until half
	// of it has left. Default: 1 MiB.
	SendBytes int
	// Sends is how many sends a connection may have queued; more are refused. Default: 4096.
	Sends int
	// SendTimeout ends a connection whose peer has taken less than 1 MiB of what it was sent for so long. Default: 10 s.
	SendTimeout time.Duration
	// FillTimeout ends a connection that does not bring the bytes that Fill waits for. Default: 15 s.
	FillTimeout time.Duration
	// Held bounds what a connection keeps of bytes that its handler has not consumed. Default: 64 KiB. A handler that
	// wants more at once uses Fill.
	Held int

	// Logger takes the choice of the kind and failures of the loop itself. Default: slog.Default().
	Logger *slog.Logger
}

// EvenBatch is an Options.Batch for loops with a disk behind them. Of 2, 4, 8, 12 and 16 it was the fastest for random reads of 4 KiB through a mount with
// 32 under way: 1.34 times as many as without.
const EvenBatch = 8

// Limits of options.
const (
	maxOperations = 4096
	maxBatch      = 256
	maxBufferSize = 1 << 20
	maxBuffers    = 1 << 15
	maxWorkers    = 256
)

func (o Options) withDefaults() (Options, error) {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&o.Operations, 1024)
	def(&o.BufferSize, 16<<10)
	def(&o.Buffers, 128)
	def(&o.Workers, 8)
	def(&o.SendBytes, 1<<20)
	def(&o.Sends, 4096)
	def(&o.Held, 64<<10)
	if o.SendTimeout == 0 {
		o.SendTimeout = 10 * time.Second
	}
	if o.FillTimeout == 0 {
		o.FillTimeout = 15 * time.Second
	}
	if o.Ring.Entries == 0 {
		o.Ring.Entries = 256
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	var faults []error
	within := func(name string, v, lo, hi int, pow2 bool) {
		if v < lo || v > hi || pow2 && v&(v-1) != 0 {
			want := ""
			if pow2 {
				want = ", a power of two"
			}
			faults = append(faults, fmt.Errorf("reactor: %s %d: want %d to %d%s", name, v, lo, hi, want))
		}
	}
	within("Kind", int(o.Kind), int(Auto), int(Poll), false)
	within("Operations", o.Operations, 8, maxOperations, false)
	within("Batch", o.Batch, 0, maxBatch, false)
	within("BufferSize", o.BufferSize, 64, maxBufferSize, true)
	within("Buffers", o.Buffers, 1, maxBuffers, true)
	within("Workers", o.Workers, 1, maxWorkers, false)
	within("SendBytes", o.SendBytes, 1, 1<<30, false)
	within("Sends", o.Sends, 1, 1<<20, false)
	within("Held", o.Held, 1, 1<<30, false)
	if o.SendTimeout < 0 || o.FillTimeout < 0 {
		faults = append(faults, fmt.Errorf("reactor: SendTimeout %v, FillTimeout %v: want none negative", o.SendTimeout, o.FillTimeout))
	}
	return o, errors.Join(faults...)
}
