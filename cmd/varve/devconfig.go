package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"varve/internal/disk"
	"varve/internal/pki"

	"golang.org/x/sys/unix"
)

// A dev cluster's directory holds
//
//	dev.json       what the cluster consists of (devConfig); written once and when servers are added
//	cluster/       the cluster directory: what -c needs
//	mds1/ … cs1/ … the servers' directories
//	run/           lock, held while `dev up` runs; NAME.pid, NAME.cmd and NAME.log of each process, supervisor included
const (
	devConfigFile = "dev.json"
	devName       = "dev"
	supervisor    = "supervisor"
	maxDevServers = 32
	maxDevMounts  = 16
)

// devConfig is dev.json. Version 1.
type devConfig struct {
	Version  int      `json:"version"`
	Replicas string   `json:"replicas"`
	MDS      []string `json:"mds"` // addresses, in order of their numbers
	CS       []string `json:"cs"`
	Mounts   []string `json:"mounts"`
	Procs    bool     `json:"procs"`
	Restart  bool     `json:"restart"`
	// Transport of the mounts; "" is auto.
	Transport string `json:"transport,omitempty"`
	// Cache is where the read caches of the mounts are, of CacheSize MB each; "": they have none.
	Cache     string `json:"cache,omitempty"`
	CacheSize int    `json:"cachesize,omitempty"`

	dir      string         // absolute
	insecure bool           // if it is made now
	held     map[string]int // sockets that hold the ports of servers, by address
}

func (c *devConfig) transport() string {
	if c.Transport == "" {
		return "auto"
	}
	return c.Transport
}

// devFlags are the flags of `dev up`.
type devFlags struct {
	dir       string
	mounts    []string
	mds, cs   int
	replicas  string
	procs     bool
	transport string
	cache     string
	cachesize int
	detach    bool
	noRestart bool
	insecure  bool
	changed   func(flag string) bool
}

// check refuses what this release cannot do.
func (f *devFlags) check() error {
	if f.cache != "" || f.cachesize != 0 {
		if _, err := parseCacheSize(strconv.Itoa(f.cachesize)); err != nil || f.cache == "" {
			return usagef("--cache DIR and --cachesize MB go together: %w", cmp.Or(err, errors.New("no directory")))
		}
		if strings.Contains(f.cache, ",") {
			return usagef("--cache %s: a path with a comma cannot be a mount option; choose another", f.cache)
		}
	}
	if err := checkTransport(f.transport); err != nil {
		return err
	}
	if f.mds != 1 && f.mds != 3 && f.mds != 5 {
		return usagef("--mds %d: want 1, 3 or 5", f.mds)
	}
	if f.cs < 1 || f.cs > maxDevServers {
		return usagef("--cs %d: want 1 to %d", f.cs, maxDevServers)
	}
	if len(f.mounts) > maxDevMounts {
		return usagef("--mount: %d directories, limit %d", len(f.mounts), maxDevMounts)
	}
	if f.replicas != "" {
		p, err := parseReplicas(f.replicas)
		if err != nil {
			return err
		}
		if int(p.Min) > f.cs {
			return usagef("--replicas %s needs at least %d chunk servers, --cs says %d", f.replicas, p.Min, f.cs)
		}
		f.replicas = replicasText(p)
	}
	return nil
}

// defaultReplicas is what so many chunk servers can keep.
func defaultReplicas(cs int) string {
	switch cs {
	case 1:
		return "1:1"
	case 2:
		return "2:1"
	}
	return "3:2"
}

func readDevConfig(dir string) (*devConfig, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, devConfigFile)
	b, err := readSmall(path)
	if errors.Is(err, unix.ENOTDIR) {
		return nil, usagef("--dir %s: not a directory; choose another", dir)
	}
	if err != nil {
		return nil, err
	}
	c := new(devConfig)
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if c.Version != 1 || len(c.MDS) == 0 || len(c.CS) == 0 {
		return nil, fmt.Errorf("%s: version %d with %d metadata and %d chunk servers: want version 1 with some of each", path, c.Version, len(c.MDS), len(c.CS))
	}
	c.dir = dir
	return c, nil
}

// devConfigOf returns the cluster that flags describe: that of the directory, with what flags change, or a new one.
func devConfigOf(f *devFlags) (*devConfig, error) {
	c, err := readDevConfig(f.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c, err = newDevConfig(f)
	case err != nil:
		return nil, err
	default:
		err = c.adapt(f)
	}
	if err != nil {
		return nil, err
	}
	for i, m := range c.Mounts {
		if c.Mounts[i], err = filepath.Abs(m); err != nil {
			return nil, err
		}
		if slices.Contains(c.Mounts[:i], c.Mounts[i]) {
			return nil, usagef("--mount names %s twice; each mount needs a directory of its own", m)
		}
		if info, err := os.Stat(c.Mounts[i]); err == nil && !info.IsDir() {
			return nil, usagef("--mount %s: not a directory; choose another", m)
		}
		if rel, err := filepath.Rel(c.Mounts[i], c.dir); err == nil && (rel == "." || filepath.IsLocal(rel)) {
			return nil, usagef("--mount %s would hide the cluster's own directory %s; choose another", m, c.dir)
		}
	}
	return c, nil
}

func newDevConfig(f *devFlags) (*devConfig, error) {
	dir, err := filepath.Abs(f.dir)
	if err != nil {
		return nil, err
	}
	if entries, err := os.ReadDir(dir); err == nil && slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() != "run" }) {
		return nil, refusedf("%s is not empty and holds no dev cluster; its contents would be mixed with one: choose another --dir", dir)
	}
	c := &devConfig{
		Version: 1, Replicas: f.replicas, MDS: make([]string, f.mds), CS: make([]string, f.cs), Mounts: f.mounts, Procs: f.procs,
		Restart: !f.noRestart, Transport: f.transport, dir: dir, insecure: f.insecure,
	}
	if err := c.setCache(f); err != nil {
		return nil, err
	}
	if c.Replicas == "" {
		c.Replicas = defaultReplicas(f.cs)
	}
	return c, c.choosePorts()
}

// adapt takes over what flags say about an existing cluster. It may grow, not shrink.
func (c *devConfig) adapt(f *devFlags) error {
	if f.changed("insecure") && f.insecure == pki.Secured(c.clusterDir()) {
		return refusedf("the cluster in %s was made otherwise, which varve dev does not change: leave --insecure out, or use another --dir", c.dir)
	}
	if f.changed("replicas") && f.replicas != c.Replicas {
		return usagef("the cluster in %s was made with --replicas %s; change that with varve set-attr MOUNT replicas=%s", c.dir, c.Replicas, f.replicas)
	}
	grow := func(flag string, have *[]string, want int) error {
		if !f.changed(flag) || want == len(*have) {
			return nil
		}
		if want < len(*have) {
			return refusedf("the cluster in %s has --%s %d; taking servers away would lose what they hold: leave --%s out, or use another --dir",
				c.dir, flag, len(*have), flag)
		}
		*have = append(*have, make([]string, want-len(*have))...)
		return nil
	}
	if err := grow("mds", &c.MDS, f.mds); err != nil {
		return err
	}
	if err := grow("cs", &c.CS, f.cs); err != nil {
		return err
	}
	if f.changed("mount") {
		c.Mounts = f.mounts
	}
	if f.changed("transport") {
		c.Transport = f.transport
	}
	if f.changed("cache") || f.changed("cachesize") {
		if err := c.setCache(f); err != nil {
			return err
		}
	}
	if f.changed("procs") {
		c.Procs = f.procs
	}
	c.Restart = !f.noRestart
	return c.choosePorts()
}

// setCache takes over what flags say about read caches; an empty directory: none.
func (c *devConfig) setCache(f *devFlags) (err error) {
	c.Cache, c.CacheSize = "", f.cachesize
	if f.cache != "" {
		c.Cache, err = filepath.Abs(f.cache)
	}
	return err
}

func (c *devConfig) write() error {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(c.dir, devConfigFile), append(b, '\n'))
}

func (c *devConfig) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}
func (c *devConfig) clusterDir() string          { return c.path("cluster") }
func (c *devConfig) run(name string) string      { return c.path("run", name) }
func (c *devConfig) pid(name string) pidFile     { return pidFile(c.run(name + ".pid")) }
func (c *devConfig) command(name string) string  { return readText(c.run(name + ".cmd")) }
func (c *devConfig) process(name string) int     { return c.pid(name).process(c.command(name)) }
func readText(path string) string                { b, _ := readSmall(path); return strings.TrimSpace(string(b)) }
func numbered(kind string, i int) string         { return fmt.Sprintf("%s%d", kind, i+1) }
func (c *devConfig) lock() (func() error, error) { return disk.OS{}.Lock(c.run("lock")) }

// names returns the names of the processes of a kind ("mds", "cs", "mount").
func (c *devConfig) names(kind string) []string {
	n := map[string]int{"mds": len(c.MDS), "cs": len(c.CS), "mount": len(c.Mounts)}[kind]
	names := make([]string, n)
	for i := range names {
		names[i] = numbered(kind, i)
	}
	return names
}

// running reports whether a `dev up` has the directory.
func (c *devConfig) running() bool {
	unlock, err := c.lock()
	if err != nil {
		return true
	}
	_ = unlock()
	return false
}
