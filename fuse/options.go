package fuse

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
)

// Options says where and how to mount. Only MountPoint has no default.
type Options struct {
	Logger        *slog.Logger // nil: slog.Default
	MountPoint    string       // an existing directory that nothing is mounted on
	FSName        string       // source shown in /proc/mounts; "" is "varve"
	AllowOther    bool         // users other than the one who mounts may use it (root always sets what it wants)
	Flags         uintptr      // MS_NOSUID and others of mount(2)
	ReadOnly      bool         // the kernel and the Session refuse every change
	Transport     Transport    // how requests come from the kernel; "" is Auto
	Loops         int          // threads for Dev and Uring; 0: one for each processor, 8 at most; up to 64
	MaxBackground int          // asynchronous requests the kernel keeps under way; 0 is 128, up to 65535
	Readers       int          // for the transport of that name: descriptors, each read by a goroutine; 0 is 2, up to 16
	ringPayload   int          // of an entry, instead of what the kernel wants; for tests
	MaxRequests   int          // requests served at once; above it the next one waits. 0 is 8192, at least 64
}

// Transport is a way by which requests come from the kernel.
type Transport string

// Transports.
const (
	Auto    Transport = "auto"    // what is best of those that the machine has
	Dev     Transport = "dev"     // /dev/fuse, read by the threads of reactors
	Uring   Transport = "uring"   // FUSE over io_uring
	Readers Transport = "readers" // /dev/fuse, read by goroutines: where no operation can be begun on a reactor's thread, this does as well as Dev
)

const (
	defaultMaxBackground = 128
	defaultReaders       = 2
	defaultMaxRequests   = 8192
	minMaxRequests       = 64
	maxReaders           = 16
	maxLoops             = 64
	mostLoops            = 8 // by default
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
	switch o.Transport {
	case "":
		o.Transport = Auto
	case Auto, Dev, Uring, Readers:
	default:
		faults = append(faults, fmt.Errorf("transport %q: want %s, %s, %s or %s", o.Transport, Auto, Dev, Uring, Readers))
	}
	if o.Loops < 0 || o.Loops > maxLoops {
		faults = append(faults, fmt.Errorf("loops %d: want 0 to %d", o.Loops, maxLoops))
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
	if o.Loops == 0 {
		o.Loops = DefaultLoops()
	}
	if o.MaxRequests == 0 {
		o.MaxRequests = defaultMaxRequests
	}
	return o, nil
}

// DefaultLoops is how many threads serve a mount's requests if Options.Loops does not say so. Each keeps a processor of Go (GOMAXPROCS) from others
// while it waits in the kernel, until the runtime looks after it.
func DefaultLoops() int { return min(runtime.NumCPU(), mostLoops) }
