package mds

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"varve/internal/disk"
	"varve/internal/id"
	"varve/internal/planes"
	"varve/internal/wire"
)

const (
	identityFile    = "mds.json"
	identityVersion = 1
	maxIdentity     = 64 << 10 // bytes of mds.json
)

// identity is mds.json: who the server of a directory is. It is written once, and again only when the server moves to another
// address. Versions: 1, first.
type identity struct {
	Version int    `json:"version"`
	Cluster string `json:"cluster"` // UUID
	Name    string `json:"name"`    // of the cluster
	Server  uint32 `json:"server"`  // id.MetaID
	UUID    string `json:"uuid"`    // of the server, 32 hexadecimal digits
	Addr    string `json:"addr"`    // at which other servers reach it
	// Client is where clients reach it, "" for Addr. Base and Net are what a person said, of which these two were made; "" if it was Addr alone.
	Client string `json:"client,omitempty"`
	Base   string `json:"base,omitempty"`
	Net    string `json:"net,omitempty"`
	// First: the server that made the cluster. It starts Raft alone and makes the first event.
	First    bool   `json:"first,omitempty"`
	Replicas string `json:"replicas,omitempty"` // with First: the cluster's first setting
	// Peers are where other members were when the server joined: whom it asks while its own log does not say.
	Peers []string `json:"peers,omitempty"`
	// ClusterDir is the cluster's directory on this node, where the server's credentials are.
	ClusterDir string `json:"cluster_dir,omitempty"`
	// Secured: the server has run with credentials, and never runs without them again.
	Secured bool `json:"secured,omitempty"`
	// Key: the directory has the cluster key.
	Key bool `json:"key,omitempty"`
	// Opening: the key came while a cluster that was made without security was being secured; what the log says up to this index does not take it back.
	Opening uint64 `json:"opening,omitempty"`
}

func (d *identity) cluster() id.Cluster {
	c, err := id.ParseCluster(d.Cluster)
	if err != nil {
		return id.Cluster{}
	}
	return c
}

func (d *identity) server() id.MetaID { return id.MetaID(d.Server) }

func (d *identity) uuid() []byte {
	b, err := hex.DecodeString(d.UUID)
	if err != nil {
		return nil
	}
	return b
}

func (d *identity) check() error {
	var errs []error
	if d.Version != identityVersion {
		errs = append(errs, fmt.Errorf("version %d, want %d", d.Version, identityVersion))
	}
	if _, err := id.ParseCluster(d.Cluster); err != nil {
		errs = append(errs, err)
	}
	if err := checkName(d.Name); err != nil {
		errs = append(errs, err)
	}
	if d.Server == 0 {
		errs = append(errs, errors.New("server 0"))
	}
	if b, err := hex.DecodeString(d.UUID); err != nil || len(b) != 16 {
		errs = append(errs, fmt.Errorf("server uuid %q", d.UUID))
	}
	if err := checkAddr(d.Addr); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// book is all addresses of the server, as the state has them.
func (d *identity) book() planes.Book {
	return planes.NewBook(d.Addr, map[planes.Plane]string{planes.Client: d.Client})
}

// locate finds the server's addresses on this host: at base, but for what net says. It has o's connections leave from there.
func (d *identity) locate(o *Options, base, net string) error {
	spec, err := planes.Parse(net)
	if err != nil {
		return err
	}
	d.Addr, d.Client, d.Base, d.Net = base, "", "", ""
	if spec.IsZero() {
		return nil
	}
	host, err := planes.Host()
	if err != nil {
		return err
	}
	at, err := spec.Resolve(base, host)
	if err != nil {
		return err
	}
	d.Base, d.Net = base, spec.String()
	if d.Addr = at.Addr(planes.Heartbeat); at.Addr(planes.Client) != d.Addr {
		d.Client = at.Addr(planes.Client)
	}
	o.Network = wire.Bound(o.Network, at.Bind)
	return nil
}

// listenAddrs returns where the server listens.
func (d *identity) listenAddrs() []string {
	if d.Client != "" {
		return []string{d.Addr, d.Client}
	}
	return []string{d.Addr}
}

// moveTo finds the server's addresses, and writes them down if they are others than they were. Once it runs there it has the leader change them for
// the others.
func (d *identity) moveTo(o *Options) error {
	base, net := cmp.Or(o.Addr, d.Base, d.Addr), cmp.Or(o.Net, d.Net)
	if err := checkAddr(base); err != nil {
		return err
	}
	moved := *d
	if err := moved.locate(o, base, net); err != nil {
		return fmt.Errorf("metadata server of %s: %w; correct it with -a or --net", o.Dir, err)
	}
	if moved.Addr == d.Addr && moved.Client == d.Client && moved.Base == d.Base && moved.Net == d.Net {
		return nil
	}
	if err := replaceIdentity(o.FS, o.Dir, &moved); err != nil {
		return err
	}
	if moved.book() != d.book() {
		o.Logger.Info("metadata server moves to another address", "from", d.book(), "to", moved.book())
	}
	*d = moved
	return nil
}

func newUUID() [16]byte {
	var b [16]byte
	rand.Read(b[:]) // never fails: crypto/rand
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return b
}

// Init makes the directory of the first metadata server of a new cluster without security (InitSecure) and returns the cluster's UUID.
func Init(o Options) (id.Cluster, error) {
	o = o.withDefaults()
	cluster := id.Cluster(newUUID())
	d, err := initIdentity(&o, cluster)
	if err != nil {
		return id.Cluster{}, err
	}
	if err := writeIdentity(o.FS, o.Dir, d); err != nil {
		return id.Cluster{}, err
	}
	return cluster, nil
}

// initIdentity returns the identity of the first server of a new cluster.
func initIdentity(o *Options, cluster id.Cluster) (*identity, error) {
	errs := []error{o.validate(true), checkName(o.Name)}
	if _, _, err := parseReplicas(o.Replicas); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	uuid := newUUID()
	d := &identity{
		Version: identityVersion, Cluster: cluster.String(), Name: o.Name, Server: 1,
		UUID: hex.EncodeToString(uuid[:]), Addr: o.Addr, First: true, Replicas: o.Replicas, ClusterDir: o.ClusterDir,
	}
	return d, d.locate(o, o.Addr, o.Net)
}

// checkFresh refuses a directory that holds anything but what was set aside.
func checkFresh(fsys disk.FS, dir string) error {
	entries, err := fsys.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	foreign := false
	for _, e := range entries {
		switch name := e.Name(); {
		case name == identityFile:
			return fmt.Errorf("%s already is the directory of a metadata server; choose an empty one with -r: %w", dir, fs.ErrExist)
		case name != "lock" && name != identityFile+".new" && name != keyFile && name != keyFile+".new" && name != foundingFile && !strings.HasPrefix(name, asidePrefix):
			foreign = true
		}
	}
	if foreign {
		return fmt.Errorf("%s is not empty; choose an empty directory with -r: %w", dir, fs.ErrExist)
	}
	return nil
}

func writeIdentity(fsys disk.FS, dir string, d *identity) error {
	if err := checkFresh(fsys, dir); err != nil {
		return err
	}
	return replaceIdentity(fsys, dir, d)
}

// replaceIdentity writes mds.json, so that it is there in full or as it was.
func replaceIdentity(fsys disk.FS, dir string, d *identity) error {
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	if err := fsys.MkdirAll(dir); err != nil {
		return err
	}
	path := filepath.Join(dir, identityFile)
	if err := writeFile(fsys, path+".new", append(b, '\n')); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := fsys.Rename(path+".new", path); err != nil {
		return err
	}
	if err := fsys.SyncDir(dir); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(dir))
}

func writeFile(fsys disk.FS, path string, b []byte) error {
	f, err := fsys.Open(path, disk.ReadWrite|disk.Create)
	if err != nil {
		return err
	}
	_, werr := f.WriteAt(b, 0)
	return errors.Join(werr, f.Truncate(int64(len(b))), f.Sync(), f.Close())
}

func readIdentity(fsys disk.FS, dir string) (*identity, error) {
	path := filepath.Join(dir, identityFile)
	b, err := readWhole(fsys, path, maxIdentity)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not the directory of a metadata server (no %s); make one with make-mds -r %s: %w", dir, identityFile, dir, err)
	}
	if err != nil {
		return nil, err
	}
	d := new(identity)
	if err := json.Unmarshal(b, d); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("%s is damaged; restore it from a copy: %w", path, err)
	}
	return d, nil
}
