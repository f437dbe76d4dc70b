package perf

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"varve/internal/bond"
	"varve/internal/chunk"
	"varve/internal/wire"
)

// Limits, so that a mistyped number does not eat the machine.
const (
	maxJobs      = 256
	MaxHosts     = 64 // that share a load
	maxDepth     = 2048
	maxWorkers   = 4096             // jobs x depth
	maxBuffers   = 4 << 30          // bytes of jobs x depth x block size
	maxBlockSize = 64 << 20         // bytes
	maxDuration  = 24 * time.Hour   // bounds the time series
	maxBlocks    = int64(1) << 27   // of a job under Verify, whose state costs 24 bytes each
	maxRate      = float64(1 << 30) // operations a second
	maxFiles     = 1 << 24          // of a job, whose state costs some 40 bytes each
)

// RW says which operations are done and in which order.
type RW string

// Patterns.
const (
	Read      RW = "read"
	Write     RW = "write"
	RandRead  RW = "randread"
	RandWrite RW = "randwrite"
	RandRW    RW = "randrw"
)

var patterns = []RW{Read, Write, RandRead, RandWrite, RandRW}

func (rw RW) reads() bool  { return rw != Write && rw != RandWrite }
func (rw RW) writes() bool { return rw != Read && rw != RandRead }
func (rw RW) random() bool { return strings.HasPrefix(string(rw), "rand") }

// Engine says how the operations reach the kernel.
type Engine string

// Engines.
const (
	Auto  Engine = "auto"  // URing where the kernel has it, else Sync
	Sync  Engine = "sync"  // a goroutine an operation under way, pread and pwrite
	URing Engine = "uring" // an io_uring a job, on a thread of its own
	Wire  Engine = "wire"  // a connection a job; of the targets that are servers, and of no other
)

// Options of a run. The zero value works: it measures the generator alone.
type Options struct {
	// Target is mount:DIR, file:PATH (a file or block device), cluster:NAME/PATH (a directory of a cluster, without a mount), cs:ADDR (a
	// chunk server), mds:ADDR[,ADDR...][/PATH] (the metadata servers), nbd:URI (an export of an NBD server), or null, which does nothing; default null.
	Target string `json:"target"`
	// Cluster says where the cluster of such a target is: UUID@ADDR[,ADDR...][#DIR], the addresses of metadata servers and, if it is secured, its
	// directory on the hosts that make the load, where credentials are. Targets cs and mds need it for a secured cluster only.
	Cluster string `json:"cluster,omitempty"`
	// NoLocal has the client of such a target read over the network also from chunk servers on this host.
	NoLocal bool `json:"no_local,omitempty"`
	// Network makes the connections of such a client, and Bonds has them spread over the links of bonds; default wire.TCP, and none.
	Network wire.Network `json:"-"`
	Bonds   *bond.Bonds  `json:"-"`
	// Label is part of the names of the files below mount:DIR, so that several runs at once have their own: letters, digits and "-".
	Label string `json:"label,omitempty"`
	// Metadata makes the load one of operations on names instead of data: each job has a directory of its own, varve-perf-names.N, in which it does
	// them in this mix. Then RW, Dist and the sizes mean nothing and must not be given. Targets are mount, mds, cluster and null.
	Metadata Mix `json:"metadata,omitempty"`
	Files    int `json:"files,omitempty"` // of each job, at most; default 1000
	// CloneOf makes the load one clone for each job: of the first file of the label CloneOf below mount:DIR, by the best way that the filesystem offers. Then RW
	// and the sizes must not be given.
	CloneOf string `json:"clone_of,omitempty"`
	RW      RW     `json:"rw,omitempty"` // default randread
	// ReadPercent is the share of reads of randrw; default 50.
	ReadPercent int   `json:"read_percent,omitempty"`
	BlockSize   int64 `json:"block_size"` // bytes of an operation; default 4096
	QD          int   `json:"qd"`         // operations under way in each job; default 1
	Jobs        int   `json:"jobs"`       // default 1
	// Size is how many bytes each job works on, rounded down to blocks; default 64 MiB.
	Size int64 `json:"size"`
	// Duration is how long operations are started; 0: until each job has done as many operations as it has blocks, or files.
	Duration time.Duration `json:"duration_ns"`
	// Rate is the operations a second of all jobs together (open loop); 0: each starts when one before it ends (closed loop).
	Rate float64 `json:"rate,omitempty"`
	// Arrival says how operations of an open loop come; default Fixed.
	Arrival Arrival `json:"arrival,omitempty"`
	// Dist says which blocks a random pattern chooses how often; default Uniform.
	Dist Dist `json:"dist,omitempty"`
	// FsyncEvery adds an fdatasync after as many writes of a job, or an fsync of its directory after as many changes of names, where that is
	// not durable already; 0: none. It is not counted in Rate.
	FsyncEvery int    `json:"fsync_every,omitempty"`
	Verify     bool   `json:"verify,omitempty"`
	Seed       uint64 `json:"seed"` // of the random order; the same seed gives the same order to each job
	// Repeat writes the same bytes again and again: less work for the generator, and for whoever saves equal blocks. Default: each write is another.
	Repeat bool   `json:"repeat,omitempty"`
	Direct bool   `json:"direct,omitempty"` // O_DIRECT
	Engine Engine `json:"engine"`           // default auto
	// Replay says what was replayed, in the result of a replay, which has no other options but Target.
	Replay string `json:"replay,omitempty"`
	// Ramp is how long the load runs before it is measured, in addition to Duration; what begins in it is in Result.Ramp.
	Ramp time.Duration `json:"ramp_ns,omitempty"`
	// Steady, with a number of rounds, ends the run when the load has settled. Duration is then the longest that it may take.
	Steady Steady `json:"steady,omitzero"`
	// Settle is how long an operation may take that began before the end of the run, and how long laying out, reading back and closing may
	// stand still; default 60 s.
	Settle time.Duration `json:"settle_ns,omitempty"`
	// MaxErrors is how many failed operations end the run; default 1000.
	MaxErrors int `json:"max_errors,omitempty"`
	// Share says which part of a load of several hosts this is.
	Share Share `json:"share,omitzero"`
}

// Share is the part of one host in the load of several: each has Options.Jobs, which are numbered on from host to host.
type Share struct {
	Host  int `json:"host"`  // from 0
	Hosts int `json:"hosts"` // 0 or 1: no others
}

// job is the number of the n-th job of this host among those of all.
func (o *Options) job(n int) int { return o.Share.Host*o.Jobs + n }

// allJobs is how many jobs there are on all hosts.
func (o *Options) allJobs() int { return max(o.Share.Hosts, 1) * o.Jobs }

// total is how long operations are started, 0 if time does not end the run.
func (o *Options) total() time.Duration {
	if o.Duration == 0 {
		return 0
	}
	return o.Ramp + o.Duration
}

var labelForm = regexp.MustCompile(`^[A-Za-z0-9-]{0,64}$`)

// fileName is the name of a job's file below mount:DIR.
func (o *Options) fileName(job int) string {
	if o.Label == "" {
		return fmt.Sprintf("varve-perf.%d", job)
	}
	return fmt.Sprintf("varve-perf.%s.%d", o.Label, job)
}

// dirName is the name of a job's directory.
func (o *Options) dirName(job int) string {
	if o.Label == "" {
		return fmt.Sprintf("varve-perf-names.%d", job)
	}
	return fmt.Sprintf("varve-perf-names.%s.%d", o.Label, job)
}

// data reports whether the load reads and writes.
func (o *Options) data() bool { return o.Metadata == "" && o.CloneOf == "" }

// setDefaults fills in what is zero.
func (o *Options) setDefaults() {
	set := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	if o.Target == "" {
		o.Target = "null"
	}
	if o.Engine == "" {
		o.Engine = Auto
	}
	if o.Rate > 0 && o.Arrival == "" {
		o.Arrival = Fixed
	}
	set(&o.QD, 1)
	set(&o.Jobs, 1)
	set(&o.MaxErrors, maxErrors)
	if o.Settle == 0 && o.CloneOf != "" {
		o.Settle = cloneTime
	}
	if o.Settle == 0 {
		o.Settle = settleTime
	}
	o.Steady.setDefaults()
	if o.Metadata != "" {
		set(&o.Files, 1000)
		return
	}
	if o.CloneOf != "" {
		return
	}
	if o.RW == "" {
		o.RW = RandRead
	}
	if o.BlockSize == 0 {
		o.BlockSize = 4096
	}
	if o.Size == 0 {
		o.Size = max(64<<20, o.BlockSize)
	}
	if o.RW.random() && o.Dist == "" {
		o.Dist = Uniform
	}
	if o.RW == RandRW {
		set(&o.ReadPercent, 50)
	}
}

// Validate reports every fault of the options at once.
func (o Options) Validate() error {
	o.setDefaults()
	var faults []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	t, err := parseTarget(o.Target)
	if err != nil {
		faults = append(faults, err)
	}
	check(labelForm.MatchString(o.Label), "label %q: want at most 64 letters, digits and -", o.Label)
	check(o.Jobs >= 1 && o.Jobs <= maxJobs, "%d jobs: want 1 to %d", o.Jobs, maxJobs)
	check(o.QD >= 1 && o.QD <= maxDepth, "depth %d: want 1 to %d", o.QD, maxDepth)
	check(o.Jobs*o.QD <= maxWorkers, "%d jobs of depth %d: at most %d operations under way", o.Jobs, o.QD, maxWorkers)
	check(o.Duration >= 0 && o.Duration <= maxDuration, "duration %v: want 0 to %v", o.Duration, maxDuration)
	check(o.Rate >= 0 && o.Rate <= maxRate, "rate %v: want 0 to %v", o.Rate, maxRate)
	check(slices.Contains([]Arrival{"", Fixed, Poisson}, o.Arrival), "arrival %q: want fixed or poisson", o.Arrival)
	check(o.Arrival == "" || o.Rate > 0, "arrival %s: operations arrive only where a rate is given", o.Arrival)
	check(o.Ramp >= 0 && o.Ramp <= maxDuration, "ramp %v: want 0 to %v", o.Ramp, maxDuration)
	check(o.Ramp == 0 || o.Duration > 0, "ramp %v: it wants a duration to measure after it", o.Ramp)
	check(o.Settle >= time.Millisecond, "settle %v: want 1 ms or more", o.Settle)
	check(o.MaxErrors >= 1, "end after %d errors: want 1 or more", o.MaxErrors)
	check(o.Share.Hosts >= 0 && o.Share.Hosts <= MaxHosts && o.Share.Host >= 0 && o.Share.Host < max(o.Share.Hosts, 1),
		"host %d of %d: want at most %d", o.Share.Host, o.Share.Hosts, MaxHosts)
	if err := o.Steady.validate(&o); err != nil {
		faults = append(faults, err)
	}
	check(o.FsyncEvery >= 0, "fsync every %d writes: want 0 or more", o.FsyncEvery)
	check(!t.core() || o.Cluster != "", "target %s: where the cluster is, is not told", o.Target)
	if o.Metadata != "" {
		faults = append(faults, o.namesFaults(t)...)
		return errors.Join(faults...)
	}
	if o.CloneOf != "" {
		check(t.kind == "mount" || t.null(), "target %s: cloning wants mount:DIR or null", o.Target)
		check(labelForm.MatchString(o.CloneOf) && o.CloneOf != o.Label, "clone of %q: want the label of other files", o.CloneOf)
		check(o.noPattern() && o.Rate == 0 && o.FsyncEvery == 0 && o.QD == 1 && o.Files == 0,
			"clone of %q: a job makes one clone, of the original's size, without pattern, depth or rate", o.CloneOf)
		check(o.Engine == Auto || o.Engine == Sync, "engine %q: clones are made by system calls, want auto", o.Engine)
		return errors.Join(faults...)
	}
	check(!t.mds(), "target %s: a metadata server has no data: want a load on names", o.Target)
	check(o.Files == 0, "%d files: only a load on names has a number of files", o.Files)
	check(slices.Contains(patterns, o.RW), "pattern %q: want one of %v", o.RW, patterns)
	if t.server() {
		check(o.Engine == Auto || o.Engine == Wire, "engine %q: a server is reached by connections, want auto", o.Engine)
		check(o.BlockSize%chunk.BlockSize == 0 && chunk.Size%max(o.BlockSize, 1) == 0 && o.BlockSize <= wire.MaxData,
			"block size %d: a chunk server wants a power of two from %d to %d", o.BlockSize, chunk.BlockSize, wire.MaxData)
		check(o.Size <= maxChunks*chunk.Size, "size %d: at most %d chunks of %d bytes a job", o.Size, maxChunks, chunk.Size)
	} else if t.core() || t.nbd() {
		check(o.Engine == Auto || o.Engine == Sync, "engine %q: target %s is reached by a client, want auto", o.Engine, o.Target)
	} else {
		check(slices.Contains([]Engine{Auto, Sync, URing}, o.Engine), "engine %q: want auto, sync or uring", o.Engine)
	}
	check(o.ReadPercent >= 0 && o.ReadPercent <= 100, "share of reads %d %%: want 0 to 100", o.ReadPercent)
	check(o.BlockSize >= 1 && o.BlockSize <= maxBlockSize, "block size %d: want 1 to %d", o.BlockSize, maxBlockSize)
	check(o.BlockSize%sectorSize == 0 || !o.Direct && !o.Verify, "block size %d: direct and verify want a multiple of %d", o.BlockSize, sectorSize)
	if len(faults) > 0 {
		return errors.Join(faults...) // what follows calculates with them
	}
	check(int64(o.Jobs*o.QD)*o.BlockSize <= maxBuffers, "%d jobs of depth %d and block size %d: at most %d bytes under way", o.Jobs, o.QD, o.BlockSize, maxBuffers)
	check(o.Size >= o.BlockSize && o.Size <= math.MaxInt64/maxJobs/MaxHosts, "size %d: want at least a block", o.Size)
	if _, err := o.Dist.parse(1, 0); err != nil {
		faults = append(faults, err)
	}
	check(o.Dist == "" || o.RW.random(), "distribution %s: pattern %s goes in order", o.Dist, o.RW)
	if o.Verify {
		blocks := o.Size / o.BlockSize
		check(o.Target != "null", "target null keeps nothing to verify")
		check(blocks >= 2*int64(o.QD), "verify: %d blocks for depth %d: want twice as many blocks", blocks, o.QD)
		check(blocks <= maxBlocks, "verify: %d blocks a job: at most %d", blocks, maxBlocks)
	}
	return errors.Join(faults...)
}

// noPattern reports whether nothing says how data is read or written.
func (o *Options) noPattern() bool {
	return o.RW == "" && o.BlockSize == 0 && o.Size == 0 && o.ReadPercent == 0 && o.Dist == "" && !o.Direct
}

// namesFaults are the faults of a load on names.
func (o *Options) namesFaults(t target) (faults []error) {
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	if _, err := o.Metadata.parse(); err != nil {
		faults = append(faults, err)
	}
	check(t.hasNames(), "target %s: a load on names wants mount:DIR, mds:IP:PORT, cluster:NAME/PATH or null", o.Target)
	check(o.noPattern() && o.CloneOf == "",
		"metadata %q: a load on names has no pattern, distribution, sizes or direct I/O", o.Metadata)
	check(o.Engine == Auto || o.Engine == Sync, "engine %q: operations on names are system calls or requests, want auto", o.Engine)
	check(o.Files >= 2*o.QD && o.Files <= maxFiles, "%d files for depth %d: want twice as many files, and at most %d", o.Files, o.QD, maxFiles)
	check(!o.Verify || !t.null(), "target null keeps nothing to verify")
	return faults
}
