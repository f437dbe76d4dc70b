package mds

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"

	"varve/internal/disk"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/planes"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// DefaultPort is the port of a metadata server whose address names none.
const DefaultPort = "2510"

// Limits. Each bounds one queue, map or message.
const (
	maxBatchEvents   = 512       // events in one Raft entry
	maxBatchBytes    = 512 << 10 // bytes of events in one Raft entry
	maxEntriesFlying = 4         // Raft entries proposed and not yet applied
	maxProposals     = 4096      // events waiting for their Raft entry
	maxLatchWaiters  = 4096      // requests that wait for latches
	maxInFlight      = 8192      // changing requests under way, all sessions
	// maxConnRequests is the number of requests under way on one connection. It is more than a mount sends (8192, see package fuse): beyond it the
	// connection is not read, and so neither are answers to callbacks, which some of these requests may wait for.
	maxConnRequests   = 9216
	maxSessions       = 4096             // open sessions
	maxChunkServers   = 1024             // registered chunk servers
	maxLockWaiters    = 4096             // byte-range lock requests held
	maxMuxPeeking     = 4096             // connections whose first bytes have not come
	maxAppendStreams  = 64               // append streams of other servers at once
	maxMuxBacklog     = 64               // accepted connections that nobody has taken
	maxReadDirEntries = 4096             // entries in one answer
	maxReportChunks   = 1 << 22          // chunks that one server may report
	maxServerStale    = 1 << 16          // remembered old copies of chunks on one server
	maxStaleCopies    = 1 << 20          // chunks noted as unknown, or as short of replicas
	maxJournalRead    = 1 << 20          // bytes of one JournalRead answer
	maxCheckpoints    = 4                // open checkpoints that JournalRead sends in pieces
	journalSync       = time.Second      // how often the journal goes to stable media, if something was appended
	maxLockWait       = 30 * time.Second // one wait for a byte-range lock
)

// Options of a metadata server. Dir and, for Init and Join, Addr must be given; the rest has defaults.
type Options struct {
	Dir  string // directory of the server
	Addr string // IP[:PORT] that others reach it at; Open: default that of the directory, another one moves the server
	// Net says by which other addresses or interfaces of this host clients (client=) and servers (heartbeat=) reach the server, as planes.Parse
	// reads it; the others of its planes are of no meaning here. Default for Open: as recorded; "none": all by Addr.
	Net    string
	FS     disk.FS      // default disk.OS
	Logger *slog.Logger // default slog.Default()

	// Told, if set, is called once a second with who the servers are and what is set of the network. It must not block.
	Told func(*msg.MembersReply)
	// Serving, if set, is called with the addresses of the server each time it has begun to listen. It must not block.
	Serving func(planes.Book)
	// Network makes the connections, or the sockets under them if the cluster is secured; default wire.TCP.
	Network wire.Network
	// Credentials are what this server shows and trusts. Default: those in the directory of the cluster, if it is secured.
	Credentials *pki.Credentials
	opening     *secure.Opening // of a server that has no security for good yet
	// ClusterDir is the directory of the cluster on this node, where credentials are. Init and Join note it; Open: default what they noted.
	ClusterDir string
	// More, if set, names metadata servers to ask as well, where those that are known do not answer. It must not block.
	More func() []string
	// Members, if set, is told now and then where clients reach the metadata servers. It must not block for long.
	Members func(addrs []string)

	// Wall is the wall clock. It is recorded in events and attributes, and nothing is ordered or ended by it; default time.Now.
	Wall func() time.Time

	// Name is the name of the new cluster, of [A-Za-z0-9_-]+ (Init).
	Name string
	// Cluster is the cluster that Join expects at the addresses it is given; default: any.
	Cluster id.Cluster
	// Replicas is NORM:MIN, how many replicas a chunk of a new cluster should and must have; default 3:2 (Init).
	Replicas string

	// ElectionTimeout is how long a follower waits for its leader, before some randomness; default 700 ms. Half of it is the
	// leader's read lease.
	ElectionTimeout time.Duration
	// SessionLease is how long a session lives without renewal; default 10 s. Clients renew five times as often.
	SessionLease time.Duration
	// CacheLease is how long a client may cache metadata after a renewal; default half of SessionLease. A client that was killed delays
	// others by that.
	CacheLease time.Duration
	// ServerLease is how long a chunk server serves without hearing from the leader; default 8 s, less than SessionLease.
	ServerLease time.Duration
	// ServerTimeout is how long the leader takes a silent chunk server for live; default 3 s.
	ServerTimeout time.Duration
	// RequestTimeout bounds every wait of a request but those for a callback; default 25 s.
	RequestTimeout time.Duration
	// RepairGrace is how long a chunk may be short of replicas before a new server gets one; default 10 s.
	RepairGrace time.Duration
	// LostGrace is how long a chunk server may be away before its replicas are given up; default 60 s. The config key
	// repair.grace overrides it.
	LostGrace time.Duration
	// RepairInterval is how often the planners run; default 1 s.
	RepairInterval time.Duration
	// UnknownGrace is how long a reported chunk that the state does not know is kept; default 1 min.
	UnknownGrace time.Duration
	// UncleanWait is how long unclean replicas wait for the others to register; default 10 s.
	UncleanWait time.Duration
	// SnapshotEntries is how many Raft entries come between snapshots; default 8192.
	SnapshotEntries uint64
	// SnapshotInterval is how often that is looked at; default 30 s.
	SnapshotInterval time.Duration
	// DigestInterval is how long after an event at most its digest goes into the log; default 60 s.
	DigestInterval time.Duration
	// RetentionInterval is how often old events are looked for in the journal; default 1 min.
	RetentionInterval time.Duration
	// CheckpointEvents is how many events are replayed from a checkpoint at most to come to an index of the past, about: more
	// checkpoints than that needs are dropped; default 1,048,576.
	CheckpointEvents id.Index
	// SegmentBytes is the size of a journal segment; default the journal's.
	SegmentBytes int64
	// LogSegmentBytes is the size of a segment of Raft's log; default raftlog's.
	LogSegmentBytes int64
	// Reserve is how many bytes of the disk are kept for when it is full; below twice as many the server turns changes away. Default a
	// 64th of the disk, 1 to 16 MiB, and a 32nd, 4 to 64 MiB; negative: none, and nothing is turned away.
	Reserve int64
}

var clusterName = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

const maxNameLen = 64

func (o Options) withDefaults() Options {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&o.ElectionTimeout, 700*time.Millisecond)
	set(&o.SessionLease, 10*time.Second)
	set(&o.CacheLease, o.SessionLease/2)
	set(&o.ServerLease, o.SessionLease*4/5)
	set(&o.ServerTimeout, 3*time.Second)
	set(&o.RequestTimeout, 25*time.Second)
	set(&o.RepairGrace, 10*time.Second)
	set(&o.LostGrace, time.Minute)
	set(&o.RepairInterval, time.Second)
	set(&o.UnknownGrace, time.Minute)
	set(&o.UncleanWait, 10*time.Second)
	set(&o.SnapshotInterval, 30*time.Second)
	set(&o.DigestInterval, time.Minute)
	set(&o.RetentionInterval, time.Minute)
	if o.CheckpointEvents == 0 {
		o.CheckpointEvents = 1 << 20
	}
	if o.SnapshotEntries == 0 {
		o.SnapshotEntries = 8192
	}
	if o.FS == nil {
		o.FS = disk.OS{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Network == nil {
		o.Network = wire.TCP{}
	}
	if o.Wall == nil {
		o.Wall = time.Now
	}
	if o.Replicas == "" {
		o.Replicas = "3:2"
	}
	if o.Addr != "" {
		o.Addr = withPort(o.Addr)
	}
	return o
}

func withPort(addr string) string {
	if _, _, err := net.SplitHostPort(addr); err == nil {
		return addr
	}
	return net.JoinHostPort(strings.Trim(addr, "[]"), DefaultPort)
}

// validate reports every fault of defaulted options at once. fresh: they are for Init or Join.
func (o *Options) validate(fresh bool) error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if o.Dir == "" {
		fault("no directory given; say which with -r DIR")
	}
	if fresh {
		if err := checkAddr(o.Addr); err != nil {
			errs = append(errs, err)
		}
	}
	if _, err := planes.Parse(o.Net); err != nil {
		errs = append(errs, err)
	}
	for _, d := range []struct {
		name string
		v    time.Duration
	}{{"election timeout", o.ElectionTimeout}, {"session lease", o.SessionLease}, {"cache lease", o.CacheLease}, {"server lease", o.ServerLease},
		{"server timeout", o.ServerTimeout}, {"request timeout", o.RequestTimeout}, {"repair interval", o.RepairInterval},
		{"retention interval", o.RetentionInterval}} {
		if d.v < 5*time.Millisecond {
			fault("%s of %v is below 5 ms", d.name, d.v)
		}
	}
	if o.ServerLease >= o.SessionLease {
		fault("server lease %v must be shorter than session lease %v", o.ServerLease, o.SessionLease)
	}
	if o.SegmentBytes < 0 {
		fault("journal segment of %d bytes", o.SegmentBytes)
	}
	return errors.Join(errs...)
}

func checkAddr(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("address %q: want IP[:PORT]: %w", addr, err)
	}
	ip := net.ParseIP(host)
	if ip == nil || ip.IsUnspecified() {
		return fmt.Errorf("address %q: want an IP that the other servers reach, such as 10.0.0.1:%s", addr, DefaultPort)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("address %q: want a port from 1 to 65535", addr)
	}
	return nil
}

func checkName(name string) error {
	if len(name) > maxNameLen || !clusterName.MatchString(name) {
		return fmt.Errorf("cluster name %q: want 1 to %d of the characters A-Z a-z 0-9 _ -", name, maxNameLen)
	}
	return nil
}

// parseReplicas reads NORM:MIN, or NORM for a minimum of one less (at least one).
func parseReplicas(s string) (norm, minimum uint32, err error) {
	a, b, both := strings.Cut(s, ":")
	n, err1 := strconv.ParseUint(a, 10, 8)
	m := max(n, 2) - 1
	var err2 error
	if both {
		m, err2 = strconv.ParseUint(b, 10, 8)
	}
	if err1 != nil || err2 != nil || n < 1 || n > 5 || m < 1 || m > n {
		return 0, 0, fmt.Errorf("replicas %q: want NORM:MIN with 1 <= MIN <= NORM <= 5, such as 3:2", s)
	}
	return uint32(n), uint32(m), nil
}
