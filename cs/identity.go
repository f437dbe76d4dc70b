package cs

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"varve/cs/store"
	"varve/internal/disk"
	"varve/internal/id"
	"varve/internal/planes"
	"varve/internal/wire"
)

const (
	identityName    = "cs.json"
	identityVersion = 1
	// journalVersion is that of a server with a write journal, so that no program without one starts it.
	journalVersion = 2
	// maxIdentity bounds the identity file, in bytes.
	maxIdentity = 64 << 10
)

// identity is what cs.json holds: who the server is. The file is replaced as a whole, so it is never torn.
type identity struct {
	Version int              `json:"version"`
	Cluster string           `json:"cluster"` // UUID
	Name    string           `json:"name"`    // of the cluster
	UUID    string           `json:"uuid"`    // of the server, made by Init: makes a repeated registration find its id
	Server  id.ServerID      `json:"server"`  // 0 until the leader gave one
	Addr    string           `json:"addr"`
	Net     string           `json:"net,omitempty"` // by which other addresses or interfaces traffic goes, as planes.Parse reads it
	Host    string           `json:"host"`
	Rack    string           `json:"rack,omitempty"`
	Tier    uint32           `json:"tier"`
	Memory  int64            `json:"memory,omitempty"`  // bytes; 0: DefaultMemory
	Metas   []string         `json:"metas"`             // as last known
	Retired bool             `json:"retired,omitempty"` // removed from the cluster: it never starts again
	Journal *journalIdentity `json:"journal,omitempty"` // none: writes go to the disk at once
	// ClusterDir is the cluster's directory on this node, where the server's credentials are.
	ClusterDir string `json:"cluster_dir,omitempty"`
	// Secured: the server has run with credentials, and never runs without them again.
	Secured bool `json:"secured,omitempty"`
	// DataTLS: the leader's last word was that data is to be encrypted. So it is from the first connection on, before the leader was heard again.
	DataTLS bool `json:"data_tls,omitempty"`
}

// clone returns a copy that shares nothing.
func (d identity) clone() identity {
	d.Metas = slices.Clone(d.Metas)
	if d.Journal != nil {
		j := *d.Journal
		d.Journal = &j
	}
	return d
}

func (d identity) cluster() id.Cluster {
	c, _ := id.ParseCluster(d.Cluster) // checked when it was read
	return c
}

func (d identity) uuid() []byte {
	b, _ := hex.DecodeString(d.UUID)
	return b
}

// planes finds the addresses of the server on this host.
func (d identity) planes() (*planes.Planes, error) {
	spec, err := planes.Parse(d.Net)
	if err != nil {
		return nil, err
	}
	var host []planes.Interface
	if !spec.IsZero() {
		if host, err = planes.Host(); err != nil {
			return nil, err
		}
	}
	return spec.Resolve(d.Addr, host)
}

// takeNet takes over what the options say of addresses, and binds the network to them.
func (d *identity) takeNet(o *Options) (*planes.Planes, error) {
	if o.Net != "" {
		spec, err := planes.Parse(o.Net)
		if err != nil {
			return nil, err
		}
		d.Net = spec.String()
	}
	p, err := d.planes()
	if err != nil {
		return nil, err
	}
	if !p.IsZero() {
		o.Network = wire.Bound(o.Network, p.Bind)
	}
	return p, nil
}

// storeOptions returns the options of the server's store.
func (d identity) storeOptions(o Options) store.Options {
	so := o.Store
	so.FS, so.Dir, so.Cluster, so.Logger = o.FS, o.Dir, d.cluster(), o.Logger
	if d.Server != 0 {
		so.Logger = o.Logger.With("cs", d.Server)
	}
	so.Server, so.Existing = [16]byte(d.uuid()), true
	if so.Boot == "" {
		so.Boot = bootID()
	}
	return so
}

// bootID is the kernel's name for the time since the machine was switched on, "" if it does not tell.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// whose returns the options with defaults, and who the server of the directory is.
func whose(o Options) (Options, identity, error) {
	o, err := o.withDefaults()
	if err != nil {
		return o, identity{}, err
	}
	d, err := readIdentity(o.FS, o.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		hint := ""
		if at, ierr := disk.Identify(o.FS, o.Dir); ierr != nil || !at.Mount && at.Type != "" {
			hint = "; is its filesystem mounted?"
		}
		return o, d, fmt.Errorf("%s is not the directory of a chunk server (make one with make-cs)%s: %w", o.Dir, hint, err)
	}
	if err != nil {
		return o, d, fmt.Errorf("who the server of %s is cannot be read: %w", o.Dir, err)
	}
	return o, d, nil
}

// readIdentity returns fs.ErrNotExist, wrapped, if there is none.
func readIdentity(fsys disk.FS, dir string) (identity, error) {
	path := filepath.Join(dir, identityName)
	f, err := fsys.Open(path, disk.ReadOnly)
	if err != nil {
		return identity{}, err
	}
	defer f.Close()
	n, err := f.Size()
	if err != nil {
		return identity{}, err
	}
	if n > maxIdentity {
		return identity{}, fmt.Errorf("%s is %d bytes long, limit %d", path, n, maxIdentity)
	}
	b := make([]byte, n)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return identity{}, err
	}
	var d identity
	if err := json.Unmarshal(b, &d); err != nil {
		return identity{}, fmt.Errorf("%s: %w", path, err)
	}
	if d.Version != identityVersion && d.Version != journalVersion {
		return identity{}, fmt.Errorf("%s has version %d, this program knows %d and %d", path, d.Version, identityVersion, journalVersion)
	}
	if d.Journal != nil {
		if err := d.Journal.check(); err != nil {
			return identity{}, fmt.Errorf("%s: %w", path, err)
		}
	}
	if _, err := id.ParseCluster(d.Cluster); err != nil {
		return identity{}, fmt.Errorf("%s: %w", path, err)
	}
	if len(d.uuid()) != 16 {
		return identity{}, fmt.Errorf("%s: server uuid %q: want 32 hexadecimal digits", path, d.UUID)
	}
	return d, nil
}

// write puts the identity on stable media, in place of the old one.
func (d identity) write(fsys disk.FS, dir string) error {
	if d.Version = identityVersion; d.Journal != nil {
		d.Version = journalVersion
	}
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, identityName)
	if err := fsys.Remove(path + ".new"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := fsys.Open(path+".new", disk.ReadWrite|disk.Create|disk.Exclusive)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(append(b, '\n'), 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := fsys.Rename(path+".new", path); err != nil {
		return err
	}
	return fsys.SyncDir(dir)
}

// foreign returns the name of something in a directory without identity that is not ours, or "".
func foreign(fsys disk.FS, dir string) (string, error) {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		switch e.Name() {
		case "lost+found", "lock", identityName, identityName + ".new":
		default:
			return e.Name(), nil
		}
	}
	return "", nil
}
