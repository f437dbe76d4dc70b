package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"varve/fuse"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// downWait is how long `dev down` gives a `dev up` that was asked to stop, before it ends everything itself.
const downWait = 40 * time.Second

func (a *app) devDownCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "down", Short: "Stop and unmount, whatever state the cluster is in", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.devDown(cmd.Context(), dir) },
	}
	cmd.Flags().StringVar(&dir, "dir", "varve-data", "directory of the cluster")
	return cmd
}

// devDown needs nothing of the cluster to be well: it goes by the lock, the pid files and the kernel's table of mounts.
func (a *app) devDown(ctx context.Context, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	c, err := devDir(dir)
	if err != nil {
		if !isDir(filepath.Join(dir, "run")) {
			return err
		}
		c = &devConfig{dir: dir} // dev.json is damaged: the rest is found below
	}
	was := c.running()
	if was {
		c.stopSupervisor(ctx)
	}
	found, err := c.endProcesses()
	unmounted, uerr := c.unmountAll()
	if err := errors.Join(err, uerr); err != nil {
		return err
	}
	if c.running() {
		return fmt.Errorf("a process still holds %s; find it with: fuser %s", c.run("lock"), c.run("lock"))
	}
	stopped := was || found > 0 || unmounted > 0
	if a.json {
		return a.printJSON(map[string]any{"dir": dir, "stopped": stopped})
	}
	if stopped {
		fmt.Fprintf(a.out, "stopped; varve dev up --dir %s brings the same cluster back\n", shellQuote(shortPath(dir)))
	} else {
		fmt.Fprintf(a.out, "nothing was running in %s\n", shortPath(dir))
	}
	return nil
}

// stopSupervisor asks the `dev up` that has the directory to stop, waits, and kills it if it does not.
func (c *devConfig) stopSupervisor(ctx context.Context) {
	// The lock says that it lives; its pid was written under the lock, so it needs no further proof.
	pid := c.pid(supervisor).read()
	for end := time.Now().Add(2 * time.Second); pid == 0 && time.Now().Before(end) && c.running(); pid = c.pid(supervisor).read() {
		time.Sleep(pollPause) // it is just starting
	}
	if pid == 0 || unix.Kill(pid, unix.SIGTERM) != nil {
		return
	}
	for end := time.Now().Add(downWait); time.Now().Before(end) && ctx.Err() == nil && c.running(); {
		time.Sleep(pollPause)
	}
	if c.running() {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	// It gives the lock back a moment before it ends, and what it has open, its log for one, keeps a disk from being unmounted until then.
	for end := time.Now().Add(killGrace); time.Now().Before(end) && alive(pid); {
		time.Sleep(pollPause / 10)
	}
}

// endProcesses ends the processes that have pid files, mounts first, and removes the files. It returns how many lived.
func (c *devConfig) endProcesses() (found int, err error) {
	entries, err := os.ReadDir(c.run(""))
	if err != nil {
		return 0, err
	}
	for _, kind := range []string{"mount", "cs", "mds"} {
		var wg sync.WaitGroup
		for _, e := range entries {
			name, ok := strings.CutSuffix(e.Name(), ".pid")
			if !ok || !strings.HasPrefix(name, kind) {
				continue
			}
			if pid := c.process(name); pid != 0 {
				found++
				wg.Go(func() { endProcess(pid, killGrace+2*time.Second) })
			}
		}
		wg.Wait()
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".pid")
		if !ok || c.process(name) != 0 {
			continue
		}
		if rerr := os.Remove(c.run(e.Name())); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return found, err
}

// unmountAll takes away the mounts of the cluster that are left: their processes have ended.
func (c *devConfig) unmountAll() (n int, err error) {
	mounts, err := fuse.Mounts()
	if err != nil {
		return 0, err
	}
	for i := len(mounts) - 1; i >= 0; i-- { // the topmost first
		m := mounts[i]
		if where, err := sourceCluster(m.Source); err != nil || where != c.clusterDir() {
			continue
		}
		n++
		if uerr := fuse.Unmount(m.Dir, true, killGrace); uerr != nil {
			err = errors.Join(err, uerr)
		}
	}
	return n, err
}

// devStatusJSON is what `dev status --json` prints.
type devStatusJSON struct {
	Dir       string        `json:"dir"`
	Running   bool          `json:"running"`
	Procs     bool          `json:"procs"`
	Processes []devPartJSON `json:"processes"`
	Health    string        `json:"health"`
	Reasons   []string      `json:"reasons,omitempty"`
}

type devPartJSON struct {
	Name  string `json:"name"`
	State string `json:"state"` // running, dead, embedded, stopped
	PID   int    `json:"pid,omitempty"`
	Where string `json:"where"` // address or mount point
}

func (a *app) devStatusCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "status", Short: "Show what runs", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := devDir(dir)
			if err != nil {
				return err
			}
			s := c.status(cmd.Context())
			if a.json {
				err = a.printJSON(s)
			} else {
				err = a.printDevStatus(s)
			}
			if err == nil && !s.Running {
				err = unreachablef("the cluster in %s is not running; start it with: varve dev up --dir %s", c.dir, shellQuote(c.dir))
			}
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "varve-data", "directory of the cluster")
	return cmd
}

func (c *devConfig) status(ctx context.Context) *devStatusJSON {
	s := &devStatusJSON{Dir: c.dir, Running: c.running(), Procs: c.Procs, Health: "STOPPED"}
	for _, kind := range []string{"mds", "cs", "mount"} {
		for i, name := range c.names(kind) {
			p := devPartJSON{Name: name, State: "stopped"}
			p.Where = map[string][]string{"mds": c.MDS, "cs": c.CS, "mount": c.Mounts}[kind][i]
			pid := c.process(name)
			switch {
			case pid != 0:
				p.State, p.PID = "running", pid
			case s.Running && !c.Procs:
				p.State, p.PID = "embedded", c.pid(supervisor).read()
			case s.Running:
				p.State = "dead"
			}
			if on, err := fuse.IsMounted(p.Where); kind == "mount" && p.PID != 0 && (err != nil || !on) {
				p.State = "not mounted"
			}
			s.Processes = append(s.Processes, p)
		}
	}
	if !s.Running {
		return s
	}
	d, err := readClusterDir(c.clusterDir())
	if err == nil {
		st, serr := d.status(ctx)
		if err = serr; err == nil {
			j := newStatusJSON(st)
			s.Health, s.Reasons = j.Health, j.Reasons
			return s
		}
	}
	s.Health, s.Reasons = "UNREACHABLE", []string{oneLine(err)}
	return s
}

func (a *app) printDevStatus(s *devStatusJSON) error {
	rows := [][]string{{"NAME", "STATE", "PID", "WHERE"}}
	for _, p := range s.Processes {
		pid := "-"
		if p.PID != 0 {
			pid = fmt.Sprint(p.PID)
		}
		rows = append(rows, []string{p.Name, p.State, pid, p.Where})
	}
	if err := a.table(rows); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.out, "\n%s: %s\n", shortPath(s.Dir), strings.Join(append([]string{s.Health}, s.Reasons...), "; "))
	return err
}
