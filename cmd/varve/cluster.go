package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"varve/internal/id"
)

// A cluster directory is how a node knows a cluster: /etc/varve/clusters/NAME, or any directory given to -c. It holds
//
//	bs.list       host:port of a metadata server a line; blank lines and what follows a # are ignored
//	cluster.json  name and UUID of the cluster
//
// make-mds -I writes both; every command that reaches the cluster refreshes bs.list from its members.
const (
	clustersDir    = "/etc/varve/clusters"
	bootstrapFile  = "bs.list"
	clusterFile    = "cluster.json"
	defaultPort    = "2510"
	maxClusterFile = 64 << 10 // bytes of either file
	maxBootstrap   = 64       // servers in bs.list
)

// hostName is what a host's name or address is made of, an IPv6 zone included.
var hostName = regexp.MustCompile(`^[A-Za-z0-9._:%-]+$`)

var clusterName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// clusterDir is a cluster directory's path and contents.
type clusterDir struct {
	path string
	name string
	uuid id.Cluster
	mds  []string // host:port
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
	d := &clusterDir{path: path}
	b, err := readSmall(filepath.Join(path, clusterFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not a cluster directory (no %s); make the cluster with make-mds -I, or copy the directory from another node", path, clusterFile)
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
	list := filepath.Join(path, bootstrapFile)
	if b, err = readSmall(list); err != nil {
		return nil, fmt.Errorf("%w; write the address of a metadata server, host:port, into it", err)
	}
	if d.mds, err = parseBootstrap(b); err != nil {
		return nil, fmt.Errorf("%s: %w", list, err)
	}
	if len(d.mds) == 0 {
		return nil, fmt.Errorf("%s names no metadata server; write host:port of one into it", list)
	}
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

func (d *clusterDir) writeBootstrap() error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Metadata servers of the cluster %s, host:port a line. Refreshed by varve.\n", d.name)
	for _, addr := range d.mds {
		fmt.Fprintln(&b, addr)
	}
	return replaceFile(filepath.Join(d.path, bootstrapFile), b.Bytes())
}

// refresh takes over the members that the cluster named. It is a courtesy to the next command: a directory that
// cannot be written stays as it is.
func (d *clusterDir) refresh(addrs []string) {
	if len(addrs) == 0 || len(addrs) > maxBootstrap || slices.Equal(addrs, d.mds) {
		return
	}
	d.mds = slices.Clone(addrs)
	_ = d.writeBootstrap()
}

// parseBootstrap reads bs.list.
func parseBootstrap(b []byte) ([]string, error) {
	var addrs []string
	sc := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; sc.Scan(); n++ {
		line, _, _ := strings.Cut(sc.Text(), "#")
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		addr, err := hostPort(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if len(addrs) == maxBootstrap {
			return nil, fmt.Errorf("line %d: more than %d servers", n, maxBootstrap)
		}
		if !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	return addrs, sc.Err()
}

// hostPort returns s with the default port if it has none.
func hostPort(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = strings.Trim(s, "[]"), defaultPort
		if strings.Contains(host, ":") && net.ParseIP(host) == nil {
			return "", fmt.Errorf("address %q: want HOST[:PORT], such as 10.0.0.1 or 10.0.0.1:%s", s, defaultPort)
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || !hostName.MatchString(host) {
		return "", fmt.Errorf("address %q: want HOST[:PORT], such as 10.0.0.1 or 10.0.0.1:%s", s, defaultPort)
	}
	return net.JoinHostPort(host, port), nil
}

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
