package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"varve/cs"
	"varve/cs/ssd"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/planes"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

const (
	joinTimeout = 10 * time.Second // to be taken in by a cluster
	stopTimeout = 25 * time.Second // for an orderly stop
)

func (a *app) makeMDSCommand() *cobra.Command {
	var first, insecure, rebuild bool
	var password passwordFlags
	var node string
	var addr, dir, net string
	cmd := &cobra.Command{
		Use: "make-mds [-I | --rebuild] -a IP[:PORT] -r DIR", Short: "Make the directory of a metadata server: with -I the first of a new cluster", Args: noArgs,
		Long: "Make the directory of a metadata server: with -I the first of a new cluster, else a further one, which votes once it runs and has\n" +
			"caught up. With --rebuild that of a server whose metadata diverged or whose disk is damaged, or that was removed: it is removed from\n" +
			"the cluster (if that keeps a majority), what it holds is set aside in a directory inside it, and it joins again under a new id.\n" +
			"Stop it first, and start it again afterwards.\n" +
			"A new cluster has security: its servers and clients show certificates, which nodes get with the password that is asked for here (auth-node). This node\n" +
			"gets its own, and an administrator's. Servers are added with an administrator's certificate. --insecure makes a cluster that anybody may use who\n" +
			"reaches it, for closed test networks.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if given := password.ask || password.fd >= 0; (given || insecure || node != "") && !first || given && insecure {
				return usagef("-p, --password-fd, --node and --insecure are for a new cluster (-I), and --insecure has no password; see varve make-mds --help")
			}
			if err := checkNet(net); err != nil {
				return err
			}
			if rebuild {
				if first || dir == "" {
					return usagef("make-mds --rebuild needs -r DIR, and no -I; see varve make-mds --help")
				}
				return a.rebuildMDS(cmd.Context(), dir, addr, net)
			}
			if addr == "" || dir == "" {
				return usagef("make-mds needs -a IP[:PORT] and -r DIR; see varve make-mds --help")
			}
			if first {
				return a.makeCluster(dir, addr, net, &password, node, insecure)
			}
			return a.joinCluster(cmd.Context(), dir, addr, net)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&first, "init", "I", false, "make a new cluster")
	f.BoolVar(&rebuild, "rebuild", false, "make the server of DIR anew from another server's checkpoint; -a is needed only to move it")
	f.StringVarP(&addr, "addr", "a", "", "IP[:PORT] at which the other servers and clients reach this one (default port "+defaultPort+")")
	f.StringVarP(&dir, "repo", "r", "", "directory of the server; must be empty or missing")
	netFlag(f, &net, "client and heartbeat (other servers, with Raft)")
	password.flags(cmd, "the new cluster's password")
	f.StringVar(&node, "node", "", "with -I: name of this node in certificates (default: its hostname)")
	f.BoolVar(&insecure, "insecure", false, "with -I: a cluster without security")
	return cmd
}

// rebuildMDS makes a server's directory anew. Each step may be repeated, so the whole may.
func (a *app) rebuildMDS(ctx context.Context, dir, addr, net string) error {
	d, err := a.readCluster()
	if err != nil {
		return err
	}
	old, err := mds.ReadResident(dir)
	if err != nil {
		return fmt.Errorf("%w; if the disk is lost, take the server out with rm-mds and make a new one in an empty directory with make-mds", err)
	}
	if old.Cluster != d.uuid {
		return fmt.Errorf("%s is of cluster %s (%s), not of %s (%s); give the right -c or -r", dir, old.Name, old.Cluster, d.name, d.uuid)
	}
	if addr == "" {
		addr = old.Addr
	}
	if net == "" {
		net = old.Net
	}
	if addr, err = hostPort(addr); err != nil {
		return usagef("-a: %w", err)
	}
	if busy, err := mds.InUse(dir); err != nil || busy {
		if busy {
			err = fmt.Errorf("%s is in use; stop that metadata server first", dir)
		}
		return err
	}
	if !old.Aside {
		if err := d.atLeader(ctx, wire.RemoveMeta, &msg.RemoveMeta{Server: uint32(old.Server)}, nil); err != nil {
			return err
		}
		d.learn(ctx)
	}
	aside, err := mds.SetAside(mds.Options{Dir: dir})
	if err != nil {
		return inUse(err)
	}
	if err := joinMDS(ctx, d, dir, addr, net); err != nil {
		return fmt.Errorf("%w; %v is removed and its contents are in %s: repeat the command to go on", err, old.Server, aside)
	}
	fresh, err := mds.ReadResident(dir)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(struct {
			madeJSON
			Removed string `json:"removed"`
			Aside   string `json:"aside"`
		}{madeJSON{d.name, d.uuid.String(), fresh.Server.String(), dir, addr, ""}, old.Server.String(), aside})
	}
	_, err = fmt.Fprintf(a.out, "%v was removed from cluster %s, and joins again as the learner %v; it votes once it runs and has caught up: varve mds -r %s\n"+
		"what it held is kept in %s; remove that when nobody wants to look at it\n", old.Server, d.name, fresh.Server, shellQuote(dir), aside)
	return err
}

// madeJSON is what make-mds and make-cs print with --json.
type madeJSON struct {
	Cluster string `json:"cluster"`
	UUID    string `json:"uuid"`
	Server  string `json:"server,omitempty"`
	Dir     string `json:"dir"`
	Addr    string `json:"addr"`
	// Fingerprint is that of the authority of a new cluster with security.
	Fingerprint string `json:"fingerprint,omitempty"`
}

func (a *app) makeCluster(dir, addr, by string, password *passwordFlags, node string, insecure bool) error {
	path, err := clusterPath(a.cluster)
	if err != nil {
		return err
	}
	in := initSpec{path: path, name: filepath.Base(path), dir: dir, addr: addr, net: by, node: node}
	if err := in.check(); err != nil {
		return err
	}
	if !insecure {
		in.password, err = password.read(a, "password of the new cluster "+in.name, true)
		if errors.Is(err, errNoTerminal) {
			err = usagef("%w; or make a cluster without security, for a closed test network, with --insecure", errNoTerminal)
		}
		if err == nil {
			err = pki.CheckPassword(in.password)
		}
		if err != nil {
			return &exitError{exitUsage, err}
		}
	}
	d, err := initCluster(in)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(madeJSON{d.name, d.uuid.String(), "mds1", dir, d.mds[0], d.fingerprint})
	}
	fmt.Fprintf(a.out, "cluster %s made (%s); start its first metadata server with: varve mds -r %s\n", d.name, d.uuid, shellQuote(dir))
	if insecure {
		fmt.Fprintf(a.out, "note: the cluster is insecure: whoever reaches %s may read and write\n", d.mds[0])
		return nil
	}
	fmt.Fprintf(a.out, "other nodes get their credentials with: varve -c %s auth-node --mds %s --fingerprint %s\n", d.name, d.mds[0], d.fingerprint)
	return nil
}

// initSpec says what cluster is made.
type initSpec struct {
	path, name string // of the cluster and its directory
	dir, addr  string // of its first metadata server
	replicas   string
	net        string        // planes
	node       string        // of the certificates; default the hostname
	password   []byte        // nil: the cluster is insecure
	validFor   time.Duration // of the first certificates; default pki.ValidFor
}

func (in *initSpec) check() error {
	path, name := in.path, in.name
	if old, err := readClusterName(path); err == nil {
		return refusedf("%s already says where the cluster %s (%s) is, and this node would no longer find it; "+
			"choose another -c, or move that directory away", path, old.name, old.uuid)
	}
	if !clusterName.MatchString(name) {
		return usagef("cluster name %q: want 1 to 64 of the characters A-Z a-z 0-9 _ -", name)
	}
	addr, err := hostPort(in.addr)
	if err != nil {
		return usagef("-a: %w", err)
	}
	in.addr = addr
	return nil
}

// initCluster makes a cluster's first metadata server and its cluster directory.
func initCluster(in initSpec) (*clusterDir, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(in.path, 0o755); err != nil { // before the server is made, which cannot be taken back
		return nil, fmt.Errorf("make the cluster directory: %w", err)
	}
	o := mds.Options{Dir: in.dir, Addr: in.addr, Net: in.net, Name: in.name, Replicas: in.replicas, ClusterDir: in.path}
	d := &clusterDir{path: in.path, name: in.name, mds: []string{clientAddr(in.addr, in.net)}}
	var err error
	if in.password == nil {
		d.uuid, err = mds.Init(o)
	} else {
		var f *mds.Founded
		if f, err = mds.InitSecure(o, mds.Founding{Password: in.password, Node: in.node, ValidFor: in.validFor}); err == nil {
			d.uuid, d.fingerprint = f.Cluster, f.Fingerprint
		}
	}
	if err != nil {
		return nil, existing(err)
	}
	return d, d.write()
}

func (a *app) joinCluster(ctx context.Context, dir, addr, net string) error {
	d, err := a.readCluster()
	if err != nil {
		return err
	}
	if addr, err = hostPort(addr); err != nil {
		return usagef("-a: %w", err)
	}
	if err := joinMDS(ctx, d, dir, addr, net); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(madeJSON{d.name, d.uuid.String(), "", dir, addr, ""})
	}
	fmt.Fprintf(a.out, "cluster %s has taken the server in as a learner; it votes once it runs: varve mds -r %s\n", d.name, shellQuote(dir))
	return nil
}

func joinMDS(ctx context.Context, d *clusterDir, dir, addr, net string) error {
	creds, err := d.credentials(pki.RoleAdmin, pki.RoleNode)
	if err != nil {
		return noAccess(err)
	}
	d.learn(ctx)
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	_, err = mds.Join(ctx, mds.Options{Dir: dir, Addr: addr, Net: net, Name: d.name, Cluster: d.uuid, ClusterDir: d.path, Credentials: creds}, d.mds)
	return existing(unreached(d, err))
}

// existing makes the refusal to overwrite a directory one for safety.
func existing(err error) error {
	if errors.Is(err, fs.ErrExist) || errors.Is(err, fserr.Exist) || errors.Is(err, fserr.NotEmpty) {
		return &exitError{exitRefused, err}
	}
	return inUse(err)
}

// inUse says what to do about a directory that another process has locked.
func inUse(err error) error {
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%w; stop that process first, or give another directory with -r", err)
	}
	return err
}

func (a *app) makeCSCommand() *cobra.Command {
	var dir, addr, net, host, rack, row, room, journal string
	var tier uint32
	var memory sizeFlag
	var journalMB int64
	cmd := &cobra.Command{
		Use: "make-cs -r DIR -t TIER [-a IP[:PORT]] [-j JOURNALDIR -s MB]", Short: "Make the directory of a chunk server and register it", Args: noArgs,
		Long: "Make the directory of a chunk server and register it. With -j and -s the server has a write journal on another, faster disk: what guests\n" +
			"write is flushed there, and brought to the disk of -r in the background, in order of place. The journal is part of the server: without it\n" +
			"the server does not start. It is made at its full size, and takes 5 MB of memory for each GB.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" || !cmd.Flags().Changed("tier") {
				return usagef("make-cs needs -r DIR and -t TIER (0 to 3); see varve make-cs --help")
			}
			if tier > 3 {
				return usagef("tier %d: want 0 to 3", tier)
			}
			if err := errors.Join(checkNet(net), ssdFlags(&journal, journalMB)); err != nil {
				return err
			}
			if (journal == "") != (journalMB == 0) {
				return usagef("a write journal needs both -j JOURNALDIR and -s MB")
			}
			if err := expectMount(dir); err != nil {
				return err
			}
			d, err := a.readCluster()
			if err != nil {
				return err
			}
			listen, err := csAddr(addr, d.mds[0])
			if err != nil {
				return err
			}
			server, err := makeCS(cmd.Context(), d, cs.Options{Dir: dir, Addr: listen, Net: net, Host: host, Rack: rackPath(room, row, rack), Tier: tier, Memory: int64(memory),
				Journal: journal, JournalBytes: journalMB << 20})
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(madeJSON{d.name, d.uuid.String(), server.String(), dir, listen, ""})
			}
			fmt.Fprintf(a.out, "%s of cluster %s made; start it with: varve cs -r %s\n", server, d.name, shellQuote(dir))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&dir, "repo", "r", "", "directory for the chunks; must be empty or missing")
	f.Uint32VarP(&tier, "tier", "t", 0, "class of the disk, 0 to 3")
	f.StringVarP(&addr, "addr", "a", "", "IP[:PORT] at which clients and servers reach it (default: the IP that reaches the metadata servers, any port)")
	f.StringVar(&host, "host", "", "name of the host, for placement (default: its hostname)")
	f.StringVar(&rack, "rack", "", "name of the rack, for placement, or RACK in a row and room as ROW/RACK or ROOM/ROW/RACK")
	f.StringVar(&row, "row", "", "name of the row of racks, for placement")
	f.StringVar(&room, "room", "", "name of the room, for placement")
	netFlag(f, &net, "client, replication, repair and heartbeat")
	memory.flag(cmd)
	f.StringVarP(&journal, "journal", "j", "", "directory on a faster disk for a write journal")
	f.Int64VarP(&journalMB, "journal-size", "s", 0, fmt.Sprintf("size of the write journal in MB, %d to %d", minJournalMB, maxJournalMB))
	return cmd
}

// rackPath is where a rack is, as the planners read it.
func rackPath(room, row, rack string) string {
	switch {
	case room != "":
		return room + "/" + row + "/" + rack
	case row != "":
		return row + "/" + rack
	}
	return rack
}

// Bounds of -s.
const (
	minJournalMB = 64
	maxJournalMB = ssd.MaxBytes >> 20
)

// ssdFlags checks -j and -s, and makes the directory one that does not depend on where the server is started.
func ssdFlags(dir *string, mb int64) error {
	if mb != 0 && (mb < minJournalMB || mb > maxJournalMB) {
		return usagef("-s %d: want %d to %d MB", mb, minJournalMB, maxJournalMB)
	}
	if *dir == "" || *dir == cs.NoJournal {
		return nil
	}
	abs, err := filepath.Abs(*dir)
	*dir = abs
	return err
}

// journalFill is how many bytes a second a write journal is filled with zeros at the least.
const journalFill = 32 << 20

func makeCS(ctx context.Context, d *clusterDir, o cs.Options) (id.ServerID, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout+time.Duration(o.JournalBytes/journalFill)*time.Second)
	defer cancel()
	o.Metas, o.Cluster, o.Name, o.Version, o.ClusterDir = d.mds, d.uuid, d.name, version, d.path
	server, err := cs.Init(ctx, o)
	return server, existing(unreached(d, err))
}

// csAddr returns where a chunk server listens: as given, with any port if none is, or at the address from which this host
// reaches a metadata server.
func csAddr(given, meta string) (string, error) {
	if given != "" {
		if ip := net.ParseIP(strings.Trim(given, "[]")); ip != nil {
			return net.JoinHostPort(ip.String(), "0"), nil
		}
		if _, _, err := net.SplitHostPort(given); err != nil {
			return "", usagef("-a %q: want IP[:PORT], such as 10.0.0.1 or 10.0.0.1:2511", given)
		}
		return given, nil
	}
	c, err := net.Dial("udp", meta) // sends nothing: the kernel only picks a route
	if err != nil {
		return "", fmt.Errorf("find the address that reaches %s: %w; give one with -a", meta, err)
	}
	defer c.Close()
	host, _, err := net.SplitHostPort(c.LocalAddr().String())
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(host, "0"), nil
}

func (a *app) mdsCommand() *cobra.Command {
	var addr, net, classify string
	cmd := a.serverCommand("mds", "Run a metadata server in the foreground", func(ctx context.Context, dir string, log *slog.Logger) error {
		if addr != "" {
			var err error
			if addr, err = hostPort(addr); err != nil {
				return usagef("-a: %w", err)
			}
		}
		if err := checkNet(net); err != nil {
			return err
		}
		if err := checkClassify(classify); err != nil {
			return err
		}
		e := a.elsewhereOf(dir, "mds.json", log)
		defer e.Close()
		return runMDSWith(ctx, mds.Options{Dir: dir, Addr: addr, Net: net, Logger: log, More: e.More, Members: e.members}, classify)
	})
	classifyFlag(cmd.Flags(), &classify)
	netFlag(cmd.Flags(), &net, "client and heartbeat (other servers, with Raft)")
	cmd.Flags().StringVarP(&addr, "addr", "a", "", "IP[:PORT] to move the server to (default: where it was)")
	return cmd
}

func (a *app) csCommand() *cobra.Command {
	var memory sizeFlag
	var journal, net, classify string
	var journalMB int64
	var lost, populate, dataTLS bool
	cmd := a.serverCommand("cs", "Run a chunk server in the foreground", func(ctx context.Context, dir string, log *slog.Logger) error {
		if err := errors.Join(checkNet(net), checkClassify(classify), ssdFlags(&journal, journalMB)); err != nil {
			return err
		}
		if !lost && (journalMB != 0 || journal == cs.NoJournal) {
			return usagef("a write journal is made by make-cs, or anew with --lost-journal")
		}
		e := a.elsewhereOf(dir, "cs.json", log)
		defer e.Close()
		return runCSWith(ctx, cs.Options{Dir: dir, Net: net, Version: version, Logger: log, Memory: int64(memory), Populate: populate, DataTLS: dataTLS,
			Journal: journal, JournalBytes: journalMB << 20, LostJournal: lost, More: e.More, Members: e.members}, classify, true)
	})
	memory.flag(cmd)
	f := cmd.Flags()
	netFlag(f, &net, "client, replication, repair and heartbeat")
	classifyFlag(f, &classify)
	f.StringVarP(&journal, "journal", "j", "", "directory in which the write journal is now; with --lost-journal that of a new one, or "+cs.NoJournal)
	f.Int64VarP(&journalMB, "journal-size", "s", 0, "with --lost-journal: size of the new write journal in MB (default: as it was)")
	f.BoolVar(&populate, "populate", false, "take up all memory for data at the start, where a ring can use it with less work")
	f.BoolVar(&dataTLS, "data-tls", false, "encrypt data on the connections of this server, whatever the setting net.data.tls says")
	f.BoolVar(&lost, "lost-journal", false, "go on without the write journal that is missing or damaged: every chunk is rebuilt from other replicas")
	cmd.AddCommand(a.csCheckCommand(), a.csDumpCommand(), a.csReadmitCommand(), a.csScrubCommand(), a.csStatCommand(), a.setTierCommand())
	cmd.AddCommand(a.modeCommands()...)
	return cmd
}

func (a *app) serverCommand(name, short string, run func(context.Context, string, *slog.Logger) error) *cobra.Command {
	var dir string
	var pid pidFile
	cmd := &cobra.Command{
		Use: name + " -r DIR", Short: short, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return usagef("%s needs -r DIR, which make-%s made", name, name)
			}
			if err := pid.write(); err != nil {
				return err
			}
			defer pid.remove()
			if name != "cs" { // which keeps to what --memory says
				slackenGC(heapSlack)
			}
			return run(cmd.Context(), dir, slog.Default())
		},
	}
	cmd.Flags().StringVarP(&dir, "repo", "r", "", "directory of the server")
	pid.flag(cmd)
	return cmd
}

// otherKind says so if a directory without the file that was looked for is that of the other kind of server.
func otherKind(dir, missing, other string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, serr := os.Stat(filepath.Join(dir, other+".json")); serr == nil {
		return fmt.Errorf("%s holds no %s but the other kind of server; run that with: varve %s -r %s", dir, missing, other, shellQuote(dir))
	}
	return err
}

// runMDS runs a metadata server until ctx ends, then stops it in order.
func runMDS(ctx context.Context, dir string, log *slog.Logger) error {
	return runMDSWith(ctx, mds.Options{Dir: dir, Logger: log}, "")
}

func runMDSWith(ctx context.Context, o mds.Options, classify string) error {
	dir, net := o.Dir, newSeat(classify, o.Logger)
	defer net.leave()
	o.Serving, o.Told = func(b planes.Book) { net.joinBook("metadata server of "+dir, b) }, net.told
	err := mds.Serve(ctx, o, stopTimeout)
	if errors.Is(err, mds.ErrStopped) {
		return &exitError{exitRefused, err}
	}
	return otherKind(o.Dir, "mds.json", "cs", inUse(err))
}

// runCS runs a chunk server until ctx ends, then stops it in order.
func runCS(ctx context.Context, dir string, log *slog.Logger) error {
	return runCSWith(ctx, cs.Options{Dir: dir, Version: version, Logger: log}, "", false)
}

// runCSWith runs a chunk server with other options; alone says that the process is nothing else.
func runCSWith(ctx context.Context, o cs.Options, classify string, alone bool) error {
	net := newSeat(classify, o.Logger)
	defer net.leave()
	o.Told, o.NetReport = net.told, net.report
	if alone {
		bonds, tcp := watchBonds(o.Logger)
		defer bonds.Close()
		o.Network, o.Bonds, net.bonds = tcp, bonds, bonds
	}
	s, err := cs.Open(o)
	if errors.Is(err, ssd.ErrLost) || errors.Is(err, ssd.ErrDamaged) {
		return &exitError{exitRefused, err}
	}
	if err != nil {
		return otherKind(o.Dir, "cs.json", "mds", csRefusal(err))
	}
	net.joinBook(s.ID().String(), s.Book())
	if alone {
		limitHeap(s.HeapLimit())
	}
	if err := s.Run(ctx); errors.Is(err, fserr.Retired) {
		return &exitError{exitRefused, err}
	} else if err != nil {
		return err
	}
	return nil
}
