package journal

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"varve/internal/disk"
	"varve/internal/id"
)

const (
	defaultSegmentBytes = 64 << 20
	minSegmentBytes     = 4 << 10
	maxSegmentBytes     = 1 << 30 // offsets in a segment fit 32 bits also after its largest last record

	readBuffer  = 256 << 10   // bytes read at once
	writeBuffer = 1 << 20     // bytes encoded before they are written
	keepBuffer  = 4 << 20     // a larger write buffer is given back after use
	markStep    = 128 << 10   // bytes of segment between two marks of the index in memory
	cutShare    = 16          // Cut ends a segment that has at least this part of SegmentBytes
	sealRest    = 3           // the sealer rests this many times as long as it worked: a quarter of one CPU
	sealAgain   = time.Minute // after the disk was full
)

// Options say where a journal is and how it is kept. Dir is needed; to write, Cluster as well.
type Options struct {
	// FS is the disk; nil means the real one.
	FS disk.FS
	// Dir is the journal's own directory, made if missing. The caller sees to it that one process
	// at a time opens it for writing.
	Dir string
	// Cluster is in every file's header and must match. Zero, with ReadOnly, takes what the first
	// segment says.
	Cluster id.Cluster
	// SegmentBytes is the size at which a new segment is begun, 4 KiB to 1 GiB; 0 means 64 MiB. A
	// record larger than this has a segment of its own.
	SegmentBytes int64
	// Logger gets a line for what recovery changes; nil means nowhere.
	Logger *slog.Logger
	// ReadOnly promises that nothing is written: a torn tail is not read, and it is left where it is.
	ReadOnly bool
	// NoSeal leaves segments that are full as they are. Else they are compressed in the background, one after the other,
	// with a quarter of one CPU at most.
	NoSeal bool

	blockBytes int // blockTarget, or less in tests
}

// withDefaults fills in the defaults and reports every fault at once.
func (o Options) withDefaults() (Options, error) {
	var faults []error
	if o.FS == nil {
		o.FS = disk.OS{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Dir == "" {
		faults = append(faults, errors.New("journal: Dir is empty"))
	}
	if o.Cluster.IsZero() && !o.ReadOnly {
		faults = append(faults, errors.New("journal: Cluster is zero"))
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = defaultSegmentBytes
	}
	if o.blockBytes == 0 {
		o.blockBytes = blockTarget
	}
	if o.SegmentBytes < minSegmentBytes || o.SegmentBytes > maxSegmentBytes {
		faults = append(faults, fmt.Errorf("journal: SegmentBytes: want %d to %d, got %d", minSegmentBytes, maxSegmentBytes, o.SegmentBytes))
	}
	return o, errors.Join(faults...)
}
