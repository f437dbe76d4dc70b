package readcache

import (
	"errors"
	"fmt"
	"log/slog"

	"varve/internal/disk"
	"varve/internal/id"
)

// Options of a cache. Dir, Bytes and Cluster are needed.
type Options struct {
	Dir     string     // made if it is missing; for one process at a time
	Bytes   int64      // what all files in Dir may take up, MinBytes to MaxBytes
	Cluster id.Cluster // a cache of another cluster is emptied

	Logger *slog.Logger // default slog.Default()
	FS     disk.FS      // default disk.OS
	// Witness keeps words beyond the process, but not beyond the machine; default a file of /dev/shm, or, if that is no tmpfs, none: then files
	// that are held for writing begin anew after a crash.
	Witness Keeper

	QueueBytes int64 // what waits to be written to the cache; more is dropped; default 16 MiB
}

func (o *Options) defaults() error {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.FS == nil {
		o.FS = disk.OS{}
	}
	if o.Witness == nil {
		o.Witness = shm{}
	}
	if o.QueueBytes == 0 {
		o.QueueBytes = 16 << 20
	}
	var errs []error
	if o.Dir == "" {
		errs = append(errs, errors.New("no directory"))
	}
	if o.Bytes < MinBytes || o.Bytes > MaxBytes {
		errs = append(errs, fmt.Errorf("%d bytes, want %d to %d", o.Bytes, int64(MinBytes), int64(MaxBytes)))
	}
	if o.Cluster.IsZero() {
		errs = append(errs, errors.New("no cluster"))
	}
	return errors.Join(errs...)
}
