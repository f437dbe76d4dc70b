package ssd

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"varve/internal/disk"
	"varve/internal/id"
)

// Options of Create and Open. Dir, Journal, Server and Cluster are required, for Open also Root; every other field has a default.
type Options struct {
	// Fast is the disk of the journal, Slow the one that the journal is for. Default: disk.OS.
	Fast, Slow disk.FS
	// Dir is the directory of the journal.
	Dir string
	// Root is the directory on the slow disk below which all journaled files are.
	Root string
	// Journal and Server are the two sides' UUIDs, and Cluster that of the cluster.
	Journal, Server UUID
	Cluster         id.Cluster
	// Bytes is the size of the journal, for Create: MinBytes to MaxBytes.
	Bytes int64
	// Generation is the one that the server recorded last; 0 for a journal that was never opened.
	Generation uint64
	// Commit records a new generation on the server's side, durably. It is called once by Open, before anything depends on it.
	// Default: nothing is recorded.
	Commit func(generation uint64) error
	// Journaled says whether writes to the file of this path, relative to Root, go to the journal. Default: chunk files (*.chk) and
	// the activity log (active.log). A file that is not journaled must be closed before it is renamed to a name that is.
	Journaled func(path string) bool
	// ReadOnly opens a journal to look at a server that is stopped: nothing is written to either disk.
	ReadOnly bool
	// Failed is called once when the FS goes out of service. Default: nothing.
	Failed func(error)
	// Logger takes state transitions and failures. Default: nothing is logged.
	Logger *slog.Logger

	// BypassAfter is how many bytes must have come in sequence before long writes go to the slow disk at once. Default: 16 MiB.
	// Negative: never.
	BypassAfter int64
	// MaxWait is how long a write waits for room before it goes to the slow disk. Default: 100 ms.
	MaxWait time.Duration
	// IdleAfter is how long nobody must have read or written before destaging goes at full speed. Default: 500 ms.
	IdleAfter time.Duration
	// Depth is the number of writes that destaging has under way on the slow disk. Default: 4.
	Depth int
}

// Bounds of a journal's size in bytes.
const (
	MinBytes = ringOffset + minRingBlocks*pageSize
	MaxBytes = ringOffset + int64(maxRingBlocks)*pageSize
)

const (
	defaultBypassAfter = 16 << 20
	defaultMaxWait     = 100 * time.Millisecond
	defaultIdleAfter   = 500 * time.Millisecond
	defaultDepth       = 4

	// bypassWrite is the shortest write, in bytes, that may go past the journal since it is part of a sequence.
	bypassWrite = 128 << 10
	// bypassSlack is how far from the end of a sequence a write may be to belong to it, since several are under way at once.
	bypassSlack = 8 << 20
	// syncEvery bounds what the journal's disk is given without being synced, in blocks, so that a gap in what was synced shows itself
	// within scanAhead blocks behind the end of what is valid.
	syncEvery = 8192
	scanAhead = 4*syncEvery + 4*batchBlocks
)

// name is the journal's file.
const name = "journal"

func (o Options) withDefaults() (Options, error) {
	if o.Fast == nil {
		o.Fast = disk.OS{}
	}
	if o.Slow == nil {
		o.Slow = disk.OS{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Journaled == nil {
		o.Journaled = func(path string) bool {
			return strings.HasSuffix(path, ".chk") || filepath.Base(path) == "active.log"
		}
	}
	if o.BypassAfter == 0 {
		o.BypassAfter = defaultBypassAfter
	}
	if o.MaxWait == 0 {
		o.MaxWait = defaultMaxWait
	}
	if o.IdleAfter == 0 {
		o.IdleAfter = defaultIdleAfter
	}
	if o.Depth == 0 {
		o.Depth = defaultDepth
	}
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("journal: "+format, args...))
	}
	if o.Dir == "" {
		fault("no directory given")
	}
	if o.Journal == (UUID{}) || o.Server == (UUID{}) || o.Cluster.IsZero() {
		fault("UUID of the journal, the server or the cluster is missing")
	}
	if o.MaxWait < 0 || o.IdleAfter < 0 || o.Depth < 0 || o.Depth > maxDepth {
		fault("MaxWait %v, IdleAfter %v, Depth %d: want none negative and Depth up to %d", o.MaxWait, o.IdleAfter, o.Depth, maxDepth)
	}
	return o, errors.Join(faults...)
}

// maxDepth bounds Options.Depth.
const maxDepth = 64
