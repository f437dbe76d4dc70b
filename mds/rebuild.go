package mds

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"varve/internal/disk"
	"varve/internal/id"
)

// asidePrefix begins the names of directories, inside a server's, that hold what was in it before it was made anew.
const asidePrefix = "old-"

// Resident is who the server of a directory is.
type Resident struct {
	Server  id.MetaID
	Cluster id.Cluster
	Name    string // of the cluster
	Addr    string
	Net     string // see Options.Net
	// Aside: the contents were set aside already, by an attempt to make it anew that broke off.
	Aside bool
}

// ReadResident reads who the server of a directory is, or was before SetAside. fs.ErrNotExist: there was none.
func ReadResident(dir string) (Resident, error) { return readResident(disk.OS{}, dir) }

func readResident(fsys disk.FS, dir string) (Resident, error) {
	d, err := readIdentity(fsys, dir)
	aside := false
	if errors.Is(err, fs.ErrNotExist) {
		names, lerr := asides(fsys, dir)
		if lerr != nil || len(names) == 0 {
			return Resident{}, err
		}
		aside = true
		d, err = readIdentity(fsys, filepath.Join(dir, names[len(names)-1]))
	}
	if err != nil {
		return Resident{}, err
	}
	return Resident{Server: d.server(), Cluster: d.cluster(), Name: d.Name, Addr: cmp.Or(d.Base, d.Addr), Net: d.Net, Aside: aside}, nil
}

// asides lists the directories that SetAside made, oldest server first.
func asides(fsys disk.FS, dir string) ([]string, error) {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), asidePrefix) && e.IsDir() {
			out = append(out, e.Name())
		}
	}
	slices.SortFunc(out, func(a, b string) int { // old-mds9 before old-mds10
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	return out, nil
}

// SetAside moves everything in a server's directory into a directory inside it, so that the server can be made anew by Join. It returns
// where to. Nobody may use the directory, and the server must have been removed from its cluster. If it breaks off, it may be repeated.
func SetAside(o Options) (string, error) {
	o = o.withDefaults()
	unlock, err := o.FS.Lock(filepath.Join(o.Dir, "lock"))
	if err != nil {
		return "", fmt.Errorf("stop the metadata server that uses the directory first: %w", err)
	}
	defer unlock()
	r, err := readResident(o.FS, o.Dir)
	if err != nil {
		return "", err
	}
	aside := filepath.Join(o.Dir, asidePrefix+r.Server.String())
	if r.Aside {
		return aside, nil
	}
	if err := o.FS.MkdirAll(aside); err != nil {
		return "", err
	}
	entries, err := o.FS.ReadDir(o.Dir)
	if err != nil {
		return "", err
	}
	var names []string
	for _, e := range entries {
		switch name := e.Name(); {
		case name == identityFile, name == "lock", strings.HasPrefix(name, asidePrefix):
		case name == reserveFile:
			if err := o.FS.Remove(filepath.Join(o.Dir, name)); err != nil {
				return "", err
			}
		default:
			names = append(names, name)
		}
	}
	for _, name := range append(names, identityFile) { // who it was comes last, so that this can be repeated
		if err := o.FS.Rename(filepath.Join(o.Dir, name), filepath.Join(aside, name)); err != nil {
			return "", fmt.Errorf("set the old contents aside in %s: %w", aside, err)
		}
	}
	if err := o.FS.SyncDir(aside); err != nil {
		return "", err
	}
	return aside, o.FS.SyncDir(o.Dir)
}
