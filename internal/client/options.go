package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"varve/internal/bond"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/readcache"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// Notifier is told when the kernel must forget what it cached. Calls may block, or only queue; the client holds no lock
// that a filesystem operation needs.
type Notifier interface {
	// InvalidateInode drops cached attributes and the pages of [off, off+length); length 0 means to the end.
	InvalidateInode(ino id.Ino, off, length int64)
	// InvalidateEntry drops a cached name.
	InvalidateEntry(parent id.Ino, name []byte)
}

// WaitNotifier is a Notifier whose InvalidateInode only queues: where another mount is to go on only when nothing old is
// cached any more, this is called instead.
type WaitNotifier interface {
	// InvalidateInodeWait is InvalidateInode and returns when it is done, or ctx has ended.
	InvalidateInodeWait(ctx context.Context, ino id.Ino, off, length int64) error
}

// ReleaseWaiter is a Notifier that knows of open files which nobody has open any more, and which still have their locks.
type ReleaseWaiter interface {
	// WaitReleases returns when those of the inode that were closed before the call have given up their locks, or ctx has ended.
	WaitReleases(ctx context.Context, ino id.Ino)
}

// Options of a client. Cluster and Addrs are needed; the zero value of the rest works.
type Options struct {
	Cluster id.Cluster // the cluster that every server must belong to
	Name    string     // its name, for people
	Addrs   []string   // host:port of metadata servers; refreshed from the cluster later
	Host    string     // this host, for people; default os.Hostname
	Mount   string     // mount point, for people
	Version string     // for people

	// Network makes the connections, or the sockets under them if the cluster is secured; default wire.TCP.
	Network wire.Network
	// Credentials are what this client shows and trusts; default none: the cluster is insecure.
	Credentials *pki.Credentials
	// ClusterDir, if set, is where credentials turn up once a cluster without security is being secured. It counts without Credentials only.
	ClusterDir string
	opening    *secure.Opening // of a cluster that has no security for good yet
	// DataTLS has data encrypted on the way, whatever the cluster's setting says. Dial fails without credentials, by which it is.
	DataTLS  bool
	Bonds    *bond.Bonds  // whose links connections are spread over; the network's Spread is its; default: none
	Logger   *slog.Logger // default slog.Default()
	Notifier Notifier     // default none; see SetNotifier
	// Estates, if set, is the directory in which clients of this host note their sessions (internal/ledger): those of processes that have died are ended at once,
	// and whoever comes after this one can do that with its session. Mounted: a kernel keeps what this client is granted.
	Estates string
	Mounted bool
	// ReadCache, if set, has blocks on a fast disk of this host. It outlives the client, and is closed after it.
	ReadCache *readcache.Cache
	// Members, if set, is told where the metadata servers are, each time they were asked, one call at a time. It must not block for long.
	Members func(addrs []string)
	// Told, if set, is called as Members is, with who all servers are and what is set of the network too.
	Told func(*msg.MembersReply)
	// More, if set, names metadata servers to try as well, when none of those that are known leads. It must not block.
	More func() []string

	Timeout      time.Duration // limit of one operation; default none: wait for the cluster
	FailFast     bool          // when an operation has taken Timeout, others are given up after a second until one succeeds
	StartTimeout time.Duration // Dial gives up after it; default 30 s
	DialTimeout  time.Duration // one connection attempt with its handshake; default 2 s
	ReadTimeout  time.Duration // a replica that has not answered a read is passed over; default 2 s
	WriteTimeout time.Duration // a replica that has not answered a write is dropped as slow; default 5 s
	Patience     time.Duration // a replica that says it is not ready for so long is dropped; default 2 s
	CloseTimeout time.Duration // Close gives up saying goodbye after it; default 5 s
	StallAfter   time.Duration // an operation that waits for so long is logged; default 5 s
	FlushEvery   time.Duration // size and mtime of files being written are reported so often; default 1 s

	Lanes      int // connections to each chunk server, 1 to 16, or some more where there is a bond; default 2
	IdleLeases int // leases kept of files that are not open; default 4096
	// CacheEntries bounds the attributes and names that are kept under lease, together; default 500,000, at some 200 bytes each.
	CacheEntries int
	// ReadAhead bounds the memory, in bytes, for what is read before it is asked for of files that are read in sequence; default
	// 64 MiB, less than 0: none.
	ReadAhead int64
	// WriteBehind is the memory, in bytes, for writes that return before they are carried out, see File.WriteBehind; default 0: none does.
	WriteBehind int64
	NoLocal     bool       // read from chunk servers on this host over the network too
	Relay       Relay      // whether large writes may go through one replica; default: as is faster
	Resume      *Suspended // go on with the session of a client that was suspended
	NoCache     bool       // answer no lookup or stat from what was granted: ask the leader each time
}

const maxLanes = 16

// Relay says which way large writes of a file that nobody else writes go: to all replicas at once, or to one that sends them on.
type Relay uint8

// The ways.
const (
	RelayAuto   Relay = iota // the one that was measured to be faster
	RelayNever               // in parallel
	RelayAlways              // relayed
)

func (o *Options) defaults() {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&o.StartTimeout, 30*time.Second)
	set(&o.DialTimeout, 2*time.Second)
	set(&o.ReadTimeout, 2*time.Second)
	set(&o.WriteTimeout, 5*time.Second)
	set(&o.Patience, 2*time.Second)
	set(&o.CloseTimeout, 5*time.Second)
	set(&o.StallAfter, 5*time.Second)
	set(&o.FlushEvery, time.Second)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Host == "" {
		o.Host, _ = os.Hostname() // for people only
	}
	if o.Lanes == 0 {
		o.Lanes = 2
	}
	if o.Credentials == nil {
		o.opening = secure.OpeningOf(o.ClusterDir, o.Cluster, o.Logger, pki.RoleNode, pki.RoleReader)
		if o.opening != nil {
			o.opening.Look()
		}
	}
	o.Network = secure.Of(secure.Options{Under: o.Network, Credentials: o.Credentials, Opening: o.opening, DataTLS: o.DataTLS, Logger: o.Logger})
	if o.IdleLeases == 0 {
		o.IdleLeases = 4096
	}
	if o.NoCache {
		o.CacheEntries = 1 // what is granted is not used, so little of it is kept
	}
	if o.ReadAhead == 0 {
		o.ReadAhead = 64 << 20
	}
	if o.CacheEntries == 0 {
		o.CacheEntries = 500_000
	}
}

// validate reports every fault at once.
func (o *Options) validate() error {
	var errs []error
	if o.Cluster.IsZero() {
		errs = append(errs, errors.New("no cluster uuid"))
	} else if err := secure.CheckCluster(o.Credentials, o.Cluster); err != nil {
		errs = append(errs, err)
	}
	if o.DataTLS && o.Resume == nil && o.Credentials == nil && (o.opening == nil || o.opening.Credentials() == nil) {
		errs = append(errs, fmt.Errorf("data is to be encrypted (data-tls), and cluster %s has no security, without which nothing is: see varve cluster secure, or leave that out", o.Name))
	}
	if len(o.Addrs) == 0 {
		errs = append(errs, errors.New("no metadata server address"))
	}
	for _, a := range o.Addrs {
		if _, _, err := net.SplitHostPort(a); err != nil {
			errs = append(errs, fmt.Errorf("metadata server address %q: want host:port", a))
		}
	}
	for name, d := range map[string]time.Duration{
		"Timeout": o.Timeout, "StartTimeout": o.StartTimeout, "DialTimeout": o.DialTimeout, "ReadTimeout": o.ReadTimeout,
		"WriteTimeout": o.WriteTimeout, "Patience": o.Patience, "CloseTimeout": o.CloseTimeout,
		"StallAfter": o.StallAfter, "FlushEvery": o.FlushEvery,
	} {
		if d < 0 {
			errs = append(errs, fmt.Errorf("option %s is %v, want a positive time", name, d))
		}
	}
	if o.Lanes < 1 || o.Lanes > maxLanes {
		errs = append(errs, fmt.Errorf("option Lanes is %d, want 1 to %d", o.Lanes, maxLanes))
	}
	if o.Relay > RelayAlways {
		errs = append(errs, fmt.Errorf("option Relay is %d, want %d to %d", o.Relay, RelayAuto, RelayAlways))
	}
	if o.WriteBehind < 0 {
		errs = append(errs, fmt.Errorf("option WriteBehind is %d bytes, want 0 or more", o.WriteBehind))
	}
	if o.IdleLeases < 0 {
		errs = append(errs, fmt.Errorf("option IdleLeases is %d, want 0 or more", o.IdleLeases))
	}
	if o.CacheEntries < 0 {
		errs = append(errs, fmt.Errorf("option CacheEntries is %d, want 0 or more", o.CacheEntries))
	}
	if o.Resume != nil {
		errs = append(errs, o.Resume.check())
	}
	return errors.Join(errs...)
}
