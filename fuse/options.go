package fuse

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// Options says where and how to mount. Only MountPoint has no default.
type Options struct {
	Logger        *slog.Logger // nil: slog.Default
	MountPoint    string       // an existing directory that nothing is mounted on
	FSName        string       // source shown in /proc/mounts; "" is "varve"
	AllowOther    bool         // users other than the one who mounts may use it (root always sets what it wants)
	ReadOnly      bool         // the kernel and the Session refuse every change
	MaxBackground int          // asynchronous requests the kernel keeps under way; 0 is 128, up to 65535
	Readers       int          // descriptors that requests are read from, each by a goroutine; 0 is 2, up to 16
	MaxRequests   int          // requests served at once; above it the next one waits. 0 is 8192, at least 64
}

const (
	defaultMaxBackground = 128
	defaultReaders       = 2
	defaultMaxRequests   = 8192
	minMaxRequests       = 64
	maxReaders           = 16
)

// complete returns o with defaults filled in, or an error that names every fault.
func (o Options) complete() (Options, error) {
	var faults []error
	if o.MountPoint == "" {
		faults = append(faults, errors.New("no mount point given"))
	}
	if strings.ContainsAny(o.FSName, ",\\ \t\n\x00") {
		faults = append(faults, fmt.Errorf("filesystem name %q: want no comma, backslash or white space", o.FSName))
	}
	if o.MaxBackground < 0 || o.MaxBackground > 65535 {
		faults = append(faults, fmt.Errorf("background requests %d: want 0 to 65535", o.MaxBackground))
	}
	if o.Readers < 0 || o.Readers > maxReaders {
		faults = append(faults, fmt.Errorf("readers %d: want 0 to %d", o.Readers, maxReaders))
	}
	if o.MaxRequests != 0 && o.MaxRequests < minMaxRequests {
		faults = append(faults, fmt.Errorf("requests at once %d: want at least %d", o.MaxRequests, minMaxRequests))
	}
	if len(faults) > 0 {
		return o, fmt.Errorf("mount options: %w", errors.Join(faults...))
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.FSName == "" {
		o.FSName = "varve"
	}
	if o.MaxBackground == 0 {
		o.MaxBackground = defaultMaxBackground
	}
	if o.Readers == 0 {
		o.Readers = defaultReaders
	}
	if o.MaxRequests == 0 {
		o.MaxRequests = defaultMaxRequests
	}
	return o, nil
}
