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
	Host    string           `json:"host"`
	Rack    string           `json:"rack,omitempty"`
	Tier    uint32           `json:"tier"`
	Memory  int64            `json:"memory,omitempty"`  // bytes; 0: DefaultMemory
	Metas   []string         `json:"metas"`             // as last known
	Retired bool             `json:"retired,omitempty"` // removed from the cluster: it never starts again
	Journal *journalIdentity `json:"journal,omitempty"` // none: writes go to the disk at once
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
