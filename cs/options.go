package cs

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	"varve/cs/ssd"
	"varve/cs/store"
	"varve/internal/bond"
	"varve/internal/disk"
	"varve/internal/id"
	"varve/internal/local"
	"varve/internal/pki"
	"varve/internal/planes"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// Options of Init and Open. Dir is required, and for Init also Metas and Addr; every other field has a default.
type Options struct {
	// FS is the disk. Default: disk.OS.
	FS disk.FS
	// Dir is the server's directory.
	Dir string
	// Metas are addresses of metadata servers. Open adds those that it knew last.
	Metas []string
	// More, if set, names metadata servers to try as well, when none of those that are known leads. It must not block.
	More func() []string
	// Members, if set, is told where clients reach the metadata servers, each time they were asked, one call at a time. It must not block for long.
	Members func(addrs []string)
	// Addr is the address to listen on, IP:PORT; peers and clients must be able to reach it. Port 0: any.
	// Default for Open: the one of Init.
	Addr string
	// Net says by which addresses or interfaces of this host kinds of traffic go that do not go by Addr, as planes.Parse reads it. Default for
	// Open: that of Init, or of the last Open that was given one; "none": all by Addr.
	Net string

	// Cluster and Name are what Init expects of the cluster. Default: whatever the metadata servers answer.
	Cluster id.Cluster
	Name    string
	// Host and Rack are where the server is, for placement. Default of Host: the host's name.
	Host, Rack string
	// Tier is the class of the disk, 0 to 3. Default: 0.
	Tier uint32
	// Journal is the directory of a write journal on a fast disk, for a server on a slow one, and JournalBytes its size. Init makes it;
	// for Open it says where the journal is now. Default: none; for Open: where it was.
	Journal      string
	JournalBytes int64
	// LostJournal has Open go on although the journal is missing or damaged: every chunk is rebuilt from other replicas before it is read,
	// and the server gets a new journal, or none if Journal is NoJournal. Refused if the journal is there and sound.
	LostJournal bool
	// JournalFS is the journal's disk. Default: disk.OS.
	JournalFS disk.FS
	// SSD is passed to ssd.Open; disks, directories, identities, size and Logger are filled in.
	SSD ssd.Options

	// Told, if set, is called every few seconds with who the servers are and what is set of the network. It must not block.
	Told func(*msg.MembersReply)
	// NetReport, if set, is asked every few seconds what was seen of this host's network, to tell the leader; nil: nothing new.
	NetReport func() *msg.NetReport
	// Network makes the connections, or the sockets under them if the cluster is secured. Default: wire.TCP.
	Network wire.Network
	// Credentials are what this server shows and trusts. Default: those in the directory of the cluster, if it is secured.
	Credentials *pki.Credentials
	opening     *secure.Opening // of a server that has no security for good yet
	// ClusterDir is the directory of the cluster on this node, where credentials are. Init notes it; Open: default what was noted.
	ClusterDir string
	// DataTLS has data encrypted on the connections of this server, whatever the cluster's setting says.
	DataTLS bool
	// Bonds has connections to other servers spread over the links of bonds; the network's Spread is its. Default: none.
	Bonds *bond.Bonds
	// Wall is the wall clock, which a check of the network compares with others'; nothing else uses it. Default: time.Now.
	Wall func() time.Time
	// Version is told to peers, for people.
	Version string
	// Logger takes state transitions and failures. Default: slog.Default().
	Logger *slog.Logger

	// Memory is what a process that is this server may take up, in bytes: half of it is payload, fixed at start; tables of open chunks,
	// staging buffers and connections are bounded accordingly; see Server.HeapLimit for the rest. Default: what Init was given, else
	// DefaultMemory. At least MinMemory.
	Memory int64
	// Populate has all payload memory taken up at start, so that the kernel cannot run out of it later.
	Populate bool
	// ForwardTimeout is how long another server may take to apply a forwarded write before it counts as failed.
	// Default: 5 s.
	ForwardTimeout time.Duration
	// Reactors is the number of threads with a ring that carry connections. Default: half as many as there are CPUs, 4 at most; none
	// where io_uring is not to be had. Negative: none.
	Reactors int
	// Rebuilds is the number of chunks rebuilt at once. Default: 2.
	Rebuilds int
	// LocalChunks is the number of chunks that clients on this host may read by themselves at once, at 128 KiB of memory each.
	// Default: 192 with the default memory. Negative: none.
	LocalChunks int
	// Store is passed to store.Open; FS, Dir, Cluster, Logger and Board are filled in.
	Store store.Options

	trace bool // of the arenas
}

// Defaults of Options.
const (
	defaultForwardTimeout = 5 * time.Second
	defaultRebuilds       = 2

	maxTier  = 3
	maxMetas = 16

	maxReactorsGiven = 64
)

func (o Options) withDefaults() (Options, error) {
	if o.FS == nil {
		o.FS = disk.OS{}
	}
	if o.JournalFS == nil {
		o.JournalFS = disk.OS{}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Network == nil {
		o.Network = wire.TCP{}
	}
	if o.Host == "" {
		o.Host, _ = os.Hostname()
	}
	if o.ForwardTimeout == 0 {
		o.ForwardTimeout = defaultForwardTimeout
	}
	if o.Rebuilds == 0 {
		o.Rebuilds = defaultRebuilds
	}
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("chunk server: "+format, args...))
	}
	if o.Dir == "" {
		fault("no directory given")
	}
	if o.Addr != "" {
		if err := checkAddr(o.Addr); err != nil {
			fault("%w", err)
		}
	}
	if _, err := planes.Parse(o.Net); err != nil {
		fault("%w", err)
	}
	if o.JournalBytes != 0 && (o.JournalBytes < ssd.MinBytes || o.JournalBytes > ssd.MaxBytes) {
		fault("write journal of %d bytes, want %d to %d", o.JournalBytes, ssd.MinBytes, ssd.MaxBytes)
	}
	if len(o.Metas) > maxMetas {
		fault("%d metadata servers given, limit %d", len(o.Metas), maxMetas)
	}
	if o.Tier > maxTier {
		fault("tier %d, want 0 to %d", o.Tier, maxTier)
	}
	if o.Memory != 0 && o.Memory < MinMemory {
		fault("memory of %d bytes, want at least %d", o.Memory, MinMemory)
	}
	if o.ForwardTimeout < 0 {
		fault("ForwardTimeout %v is negative", o.ForwardTimeout)
	}
	if o.LocalChunks > local.MaxSlots {
		fault("LocalChunks %d, limit %d", o.LocalChunks, local.MaxSlots)
	}
	if o.Reactors > maxReactorsGiven {
		fault("Reactors %d, limit %d", o.Reactors, maxReactorsGiven)
	}
	if o.Rebuilds < 0 {
		fault("Rebuilds %d is negative", o.Rebuilds)
	}
	return o, errors.Join(faults...)
}

// checkAddr refuses what others could not connect to.
func checkAddr(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("address %q: want IP:PORT: %w", addr, err)
	}
	ip := net.ParseIP(host)
	if ip == nil || ip.IsUnspecified() {
		return fmt.Errorf("address %q: want the IP address at which others reach this server", addr)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("address %q: want a port from 1 to 65535, or 0 for any", addr)
	}
	return nil
}
