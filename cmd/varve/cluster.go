package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"varve/internal/discover"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/wire"
)

// A cluster directory is how a node knows a cluster: /etc/varve/clusters/NAME, or any directory given to -c. It holds
//
//	bs.list       host:port of a metadata server a line; blank lines and what follows a # are ignored (package discover)
//	cluster.json  name and UUID of the cluster
//	ca.crt        certificates of the authority, if the cluster has security, and then one or more of
//	ROLE.crt, ROLE.key  what this node shows as ROLE: node, admin or reader; the keys have mode 0600
//	trust.json    what was known last of revoked certificates and keys of capabilities; public, and signed by the authority
//
// make-mds -I writes both; every command that reaches the cluster, and every server and mount that runs, refreshes bs.list from its members. Where nobody on
// it answers, or it is not there, the cluster is looked for by DNS and by multicast (discover.go).
const (
	clustersDir    = "/etc/varve/clusters"
	bootstrapFile  = "bs.list"
	clusterFile    = "cluster.json"
	defaultPort    = discover.DefaultPort
	maxClusterFile = 64 << 10 // bytes of either file
)

var clusterName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// clusterDir is a cluster directory's path and contents.
type clusterDir struct {
	path string
	name string
	uuid id.Cluster
	mds  []string     // host:port
	net  wire.Network // of administrators; nil until it is needed
	// meta, if set, has metadata servers show that they are such (wire.DialMeta), before they are told what is not for every node.
	meta *pki.Trust
	// fingerprint is that of the authority, if the cluster was just made.
	fingerprint string
}

// clusterPath returns the directory that -c means: a path if it has a slash or is a relative directory name such as
// "." or "..", else a name.
func clusterPath(arg string) (string, error) {
	switch {
	case arg == "":
		return "", usagef("which cluster? Name it with -c NAME (or -c DIR), or set VARVE_CLUSTER")
	case strings.Contains(arg, "/") || arg == "." || arg == "..":
		p, err := filepath.Abs(arg)
		if err != nil {
			return "", usagef("cluster directory %q: %w", arg, err)
		}
		return p, nil
	case !clusterName.MatchString(arg):
		return "", usagef("cluster name %q: want 1 to 64 of the characters A-Z a-z 0-9 _ -, or a path with a /", arg)
	}
	return filepath.Join(clustersDir, arg), nil
}

// readCluster reads the cluster directory that -c means.
func (a *app) readCluster() (*clusterDir, error) {
	path, err := clusterPath(a.cluster)
	if err != nil {
		return nil, err
	}
	return readClusterDir(path)
}

func readClusterDir(path string) (*clusterDir, error) {
	d, err := readClusterName(path)
	if err != nil {
		return nil, err
	}
	if d.mds, err = discover.ReadList(d.list()); err != nil {
		// What else is known of the cluster is enough to find it.
		if err := d.find(context.Background(), nil); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// readClusterName reads who the cluster is, and not where.
func readClusterName(path string) (*clusterDir, error) {
	d := &clusterDir{path: path}
	b, err := readSmall(filepath.Join(path, clusterFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not a cluster directory (no %s); make the cluster with make-mds -I, or join it with auth-node --mds IP[:PORT]: %w", path, clusterFile, fs.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	var c clusterJSON
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("%s: %w; copy it from another node", filepath.Join(path, clusterFile), err)
	}
	if d.uuid, err = id.ParseCluster(c.UUID); err != nil {
		return nil, fmt.Errorf("%s: %w; copy it from another node", filepath.Join(path, clusterFile), err)
	}
	d.name = c.Name
	return d, nil
}

type clusterJSON struct {
	Name string `json:"name"`
	UUID string `json:"uuid"`
}

// write makes the directory with both files.
func (d *clusterDir) write() error {
	if err := os.MkdirAll(d.path, 0o755); err != nil {
		return fmt.Errorf("make the cluster directory: %w", err)
	}
	b, err := json.MarshalIndent(clusterJSON{d.name, d.uuid.String()}, "", "  ")
	if err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(d.path, clusterFile), append(b, '\n')); err != nil {
		return err
	}
	return d.writeBootstrap()
}

func (d *clusterDir) list() string { return filepath.Join(d.path, bootstrapFile) }

func (d *clusterDir) writeBootstrap() error {
	return replaceFile(d.list(), discover.FormatList(d.name, d.mds))
}

// refresh takes over the members that the cluster named. It is a courtesy to the next command: a directory that
// cannot be written stays as it is, and so does a list when the cluster names nobody.
func (d *clusterDir) refresh(addrs []string) {
	if len(addrs) == 0 || len(addrs) > discover.MaxServers {
		return
	}
	d.mds = slices.Clone(addrs)
	_, _ = discover.UpdateList(d.list(), d.name, addrs)
}

// hostPort returns s with the default port if it has none.
func hostPort(s string) (string, error) { return discover.HostPort(s) }

// readSmall reads a file that a person may have written.
func readSmall(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxClusterFile {
		return nil, fmt.Errorf("%s has %d bytes, limit %d", path, info.Size(), maxClusterFile)
	}
	return os.ReadFile(path)
}

// replaceFile writes a file so that it is there in full, or as it was.
func replaceFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, werr := f.Write(b)
	if err := errors.Join(werr, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		os.Remove(f.Name())
		return err
	}
	return nil
}
