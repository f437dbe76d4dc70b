package store

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"varve/internal/disk"
	"varve/internal/id"
	"varve/internal/local"
)

// Options of a Store. FS, Dir and Cluster are required; every other field has a default.
type Options struct {
	// FS is the disk. Default: disk.OS.
	FS disk.FS
	// Dir is the directory that holds the chunks. It is made if it is missing.
	Dir string
	// Cluster is written into every file; a directory of another cluster is refused.
	Cluster id.Cluster
	// Server is the UUID of the server that owns the store; a store of another one is refused. Default: any.
	Server [16]byte
	// Boot names the time since the machine was last switched on, such as the kernel's boot id. While it is the same, what a dead
	// process had answered is not lost. Default: it is never the same.
	Boot string
	// Existing refuses a directory that holds no store, and so the empty one below a filesystem that is not mounted. Default: one is made.
	Existing bool
	// Logger takes state transitions and failures. Default: nothing is logged.
	Logger *slog.Logger
	// MaxOpen is the number of chunks of which the file is open and the table in memory (64 KiB
	// each). Default: 1024.
	MaxOpen int
	// MaxActive is the number of chunks with active extents; a write to one more settles the
	// quietest first. Default: three quarters of MaxOpen.
	MaxActive int
	// Buffered sends data through the page cache. Default: direct I/O where the filesystem has it.
	Buffered bool
	// Stages is the number of staging buffers of 1 MiB. Partial writes, and loading and settling of chunks, need one each and wait for
	// it. Default: 32.
	Stages int
	// SettleAfter is how long an extent must be quiet before it is flushed and no longer active.
	// Default: 5 s.
	SettleAfter time.Duration
	// SettleEvery is the pause between two passes of settling. Default: 1 s. Negative: none.
	SettleEvery time.Duration
	// Reserve is the free space in bytes below which nothing new is stored (NoSpace): tables, the activity log and whatever else
	// lives on the disk, a metadata server's journal above all, go on to find room. Default: a 32nd of the disk, at least
	// 16 MiB and at most 1 GiB, but not over a quarter of the disk. Negative: none.
	Reserve int64
	// Board is where Share shows the checksums of chunks to readers on this host. It ends with the store, and when the store goes out
	// of service. Default: none.
	Board *local.Board
	// MaxUnreadable is the number of blocks that the disk may fail to read; with one more it is retired. Default: 256.
	MaxUnreadable int
	// CountAfter is how long after the start the space of the chunks is counted, so that it is not in the way of what comes first.
	// Default: 2 s. Negative: chunks are counted when they are used.
	CountAfter time.Duration
	// ScrubRate is how fast the scrub reads, in bytes/s, if SetScrub was never called. Default: 16 MiB/s. Negative: it is off.
	ScrubRate int64
	// ScrubEvery is the time from the beginning of one pass of the scrub to that of the next, or longer. Default: a week.
	ScrubEvery time.Duration
	// ScrubDelay is how long after the start the scrub goes on. Default: 10 s. Negative: at once.
	ScrubDelay time.Duration
	// Busy reports whether guests are served at this moment, so that the scrub waits. It is called often. Default: never.
	Busy func() bool
}

// Defaults of Options.
const (
	defaultMaxOpen     = 1024
	defaultSettleAfter = 5 * time.Second
	defaultSettleEvery = time.Second

	defaultMaxUnreadable = 256

	defaultCountAfter = 2 * time.Second

	defaultScrubRate  = 16 << 20
	defaultScrubEvery = 7 * 24 * time.Hour
	defaultScrubDelay = 10 * time.Second
)

// Bounds of the default reserve in bytes, and its share of the disk.
const (
	minReserve   = 16 << 20
	maxReserve   = 1 << 30
	reserveShare = 32
)

// maxRoom is how many bytes are given to writers before the disk is asked again how much is free.
const maxRoom = 1 << 20

// defaultStages is the default of Options.Stages.
const defaultStages = 32

// ahead is the number of extents that are marked together when writes come in sequence.
const ahead = 8

// settlePass is the most chunks that one pass of settling takes up, so that a pass does not crowd out
// the writes of guests.
const settlePass = 64

func (o Options) withDefaults() (Options, error) {
	if o.FS == nil {
		o.FS = disk.OS{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MaxOpen == 0 {
		o.MaxOpen = defaultMaxOpen
	}
	if o.MaxActive == 0 {
		o.MaxActive = max(1, o.MaxOpen*3/4)
	}
	if o.Stages == 0 {
		o.Stages = defaultStages
	}
	if o.SettleAfter == 0 {
		o.SettleAfter = defaultSettleAfter
	}
	if o.SettleEvery == 0 {
		o.SettleEvery = defaultSettleEvery
	}
	if o.MaxUnreadable == 0 {
		o.MaxUnreadable = defaultMaxUnreadable
	}
	if o.CountAfter == 0 {
		o.CountAfter = defaultCountAfter
	}
	if o.ScrubRate == 0 {
		o.ScrubRate = defaultScrubRate
	}
	if o.ScrubEvery == 0 {
		o.ScrubEvery = defaultScrubEvery
	}
	if o.ScrubDelay == 0 {
		o.ScrubDelay = defaultScrubDelay
	}
	var faults []error
	if o.Dir == "" {
		faults = append(faults, errors.New("store: no directory given"))
	}
	if o.Cluster.IsZero() {
		faults = append(faults, errors.New("store: no cluster given"))
	}
	if o.MaxOpen < 0 || o.MaxActive < 0 || o.MaxActive > o.MaxOpen {
		faults = append(faults, fmt.Errorf("store: MaxActive %d, MaxOpen %d: want 0 < MaxActive <= MaxOpen", o.MaxActive, o.MaxOpen))
	}
	if o.MaxActive > maxActiveChunks/2 {
		faults = append(faults, fmt.Errorf("store: MaxActive %d: limit %d", o.MaxActive, maxActiveChunks/2))
	}
	if o.Stages < 0 {
		faults = append(faults, fmt.Errorf("store: Stages %d is negative", o.Stages))
	}
	if o.ScrubRate > maxScrubRate || o.ScrubEvery < 0 {
		faults = append(faults, fmt.Errorf("store: ScrubRate %d, ScrubEvery %v: want at most %d and no negative time", o.ScrubRate, o.ScrubEvery, int64(maxScrubRate)))
	}
	if len(o.Boot) > maxBoot {
		faults = append(faults, fmt.Errorf("store: Boot has %d bytes, limit %d", len(o.Boot), maxBoot))
	}
	if o.SettleAfter < 0 {
		faults = append(faults, fmt.Errorf("store: SettleAfter %v is negative", o.SettleAfter))
	}
	return o, errors.Join(faults...)
}
