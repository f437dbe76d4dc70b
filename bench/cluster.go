package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// cluster is one on this machine, each server and mount a process of its own.
type cluster struct {
	varve  string // the program
	data   string
	mounts []string
}

// startCluster builds varve and starts a cluster below o.dir, mounted as often as is said.
func startCluster(ctx context.Context, o options, mounts int) (*cluster, error) {
	c := &cluster{varve: filepath.Join(o.dir, "varve"), data: filepath.Join(o.dir, "data")}
	for i := range mounts {
		c.mounts = append(c.mounts, filepath.Join(o.dir, fmt.Sprint("mnt", i+1)))
	}
	if err := command(ctx, "go", "build", "-o", c.varve, "varve/cmd/varve"); err != nil {
		return nil, err
	}
	return c, command(ctx, c.varve, "dev", "up", "-d", "--procs", "--dir", c.data, "--mount", strings.Join(c.mounts, ","),
		"--mds", strconv.Itoa(o.mds), "--cs", strconv.Itoa(o.cs), "--replicas", o.replicas)
}

// stop adds to err what went wrong when the cluster was stopped.
func (c *cluster) stop(err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	return errors.Join(err, command(ctx, c.varve, "dev", "down", "--dir", c.data))
}

// status is what is read of varve stat --json.
type status struct {
	UUID   string `json:"uuid"`
	Leader string `json:"leader"`
	MDS    []struct {
		ID    int    `json:"id"`
		Addr  string `json:"addr"`
		State string `json:"state"`
	} `json:"mds"`
}

func (c *cluster) status(ctx context.Context) (*status, error) {
	cmd := exec.CommandContext(ctx, c.varve, "-c", filepath.Join(c.data, "cluster"), "stat", "--json")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("varve stat: %w: %s", err, stderr.String())
	}
	s := new(status)
	return s, json.Unmarshal(out, s)
}

// leader returns the pid of the leading metadata server's process.
func (c *cluster) leader(ctx context.Context) (int, error) {
	s, err := c.status(ctx)
	if err != nil {
		return 0, err
	}
	for _, m := range s.MDS {
		if m.Addr == s.Leader {
			return readPID(filepath.Join(c.run(), fmt.Sprintf("mds%d.pid", m.ID)))
		}
	}
	return 0, errors.New("no metadata server leads")
}

// clusterDir is the cluster directory.
func (c *cluster) clusterDir() string { return filepath.Join(c.data, "cluster") }

// where is what perf.Options.Cluster wants.
func (c *cluster) where(st *status) string { return st.UUID + "@" + st.Leader + "#" + c.clusterDir() }

// run is where the pid files are.
func (c *cluster) run() string { return filepath.Join(c.data, "run") }

func (c *cluster) cpu() time.Duration { return processTime(c.run()) }

func readPID(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// command runs a program and adds what it printed to the error.
func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out.String())
	}
	return nil
}

// processTime adds up the user and system time of the processes whose pid files are in dir.
func processTime(dir string) (total time.Duration) {
	pids, _ := filepath.Glob(filepath.Join(dir, "*.pid"))
	for _, path := range pids {
		pid, err := readPID(path)
		if err != nil {
			continue
		}
		total += pidTime(pid)
	}
	return total
}

// pidTime is the user and system time of a process, 0 if there is none.
func pidTime(pid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(after)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}
