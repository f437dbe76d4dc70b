package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"varve/cs"
	"varve/fuse"
	"varve/internal/wire/msg"
	"varve/mds"

	"github.com/spf13/cobra"
)

const startTimeout = 75 * time.Second // until a dev cluster is ready

func (a *app) devCommand() *cobra.Command {
	f := &devFlags{dir: "varve-data", mounts: []string{"varve-mnt"}, mds: 1, cs: 3, transport: "auto", changed: func(string) bool { return false }}
	cmd := &cobra.Command{
		Use: "dev", Short: "Run a whole cluster on this machine, mounted on ./varve-mnt", Args: noArgs,
		Long: "Run a whole cluster in this process: 1 metadata server, 3 chunk servers, mounted on ./varve-mnt, data kept in ./varve-data.\n" +
			"It prints `ready` with what to try next; Ctrl-C unmounts and stops. The same data is there the next time.",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.devUp(cmd.Context(), f) },
	}
	cmd.AddCommand(a.devUpCommand(), a.devDownCommand(), a.devStatusCommand())
	return cmd
}

func (a *app) devUpCommand() *cobra.Command {
	var f devFlags
	cmd := &cobra.Command{
		Use: "up", Short: "Run a whole cluster on this machine, as the flags say", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.changed = cmd.Flags().Changed
			if err := f.check(); err != nil {
				return err
			}
			if f.detach && tellParent.pipe == nil {
				return a.devDetach(cmd.Context(), &f)
			}
			return a.devUp(cmd.Context(), &f)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.dir, "dir", "varve-data", "directory of the cluster")
	fl.StringSliceVar(&f.mounts, "mount", []string{"varve-mnt"}, "directories to mount it on, with commas between")
	fl.IntVar(&f.mds, "mds", 1, "number of metadata servers: 1, 3 or 5")
	fl.IntVar(&f.cs, "cs", 3, "number of chunk servers")
	fl.StringVar(&f.replicas, "replicas", "", "NORM:MIN replicas of a new cluster (default 3:2, less with fewer chunk servers)")
	fl.BoolVar(&f.procs, "procs", false, "each server and mount in a process of its own, started again when it dies")
	fl.StringVar(&f.transport, "transport", "auto", "how the kernel is talked to: auto, dev or uring")
	fl.BoolVar(&f.insecure, "insecure", false, "a new cluster without certificates, in which whoever reaches a port may do anything")
	fl.BoolVarP(&f.detach, "detach", "d", false, "return when ready")
	fl.BoolVar(&f.noRestart, "no-restart", false, "with --procs: leave a process that died dead")
	fl.StringVar(&f.cache, "cache", "", "directory on a fast disk for the read caches of the mounts, one below it for each")
	fl.IntVar(&f.cachesize, "cachesize", 0, "size of each read cache in MB")
	return cmd
}

// devDetach starts `dev up` in the background.
func (a *app) devDetach(ctx context.Context, f *devFlags) error {
	c, err := devConfigOf(f)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.run(""), 0o755); err != nil {
		return err
	}
	text, err := startDaemon(ctx, a.args, c.run(supervisor+".log"))
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(a.out, text)
	return err
}

// devUp runs a dev cluster until ctx ends.
func (a *app) devUp(ctx context.Context, f *devFlags) (err error) {
	c, err := devConfigOf(f)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.run(""), 0o755); err != nil {
		return err
	}
	unlock, err := c.lock()
	if err != nil {
		return fmt.Errorf("the cluster in %s is running already; stop it first with: varve dev down --dir %s", c.dir, shellQuote(c.dir))
	}
	defer unlock()
	if err := c.leftovers(); err != nil {
		return err
	}
	defer c.holdPorts()()
	if err := c.write(); err != nil {
		return err
	}
	words := append([]string{programPath()}, a.args...)
	pid := c.pid(supervisor)
	if err := errors.Join(replaceFile(c.run(supervisor+".cmd"), []byte(shellJoin(words)+"\n")), pid.write()); err != nil {
		return err
	}
	defer pid.remove()
	log := slog.Default()
	if !c.Procs && tellParent.pipe == nil {
		log = slog.New(slog.DiscardHandler) // the terminal is for the person; the parts have logs
	}
	p, err := newParts(c, log)
	if err != nil {
		return err
	}
	if !c.Procs {
		makeRoom(len(c.CS) * max(runtime.GOMAXPROCS(0)/2, 1)) // mounts make their own
	}
	defer func() { err = errors.Join(err, p.stopAll()) }()
	started, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := p.up(started); err != nil {
		if ctx.Err() != nil {
			return nil // asked to stop while starting
		}
		return err
	}
	a.sayReady(c)
	select {
	case <-ctx.Done():
		return nil
	case err := <-p.failed:
		return err
	}
}

// makeRoom lets Go run as many goroutines at once as there are processors for, though so many threads of reactors wait in the kernel: each keeps
// what it runs on from the others until the runtime looks after it, which takes 20 µs to 10 ms. Servers that have a process of their own have fewer
// such threads than processors.
func makeRoom(threads int) {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + threads)
	}
}

// leftovers refuses to start beside processes of a `dev up` that was killed.
func (c *devConfig) leftovers() error {
	for _, kind := range []string{"mds", "cs", "mount"} {
		for _, name := range c.names(kind) {
			if pid := c.process(name); pid != 0 {
				return fmt.Errorf("%s (process %d) of an earlier run is still there; stop it first with: varve dev down --dir %s", name, pid, shellQuote(c.dir))
			}
		}
	}
	return nil
}

// up starts everything, making what is not there yet, and returns when it is ready.
func (p *parts) up(ctx context.Context) error {
	c := p.c
	var d *clusterDir
	var err error
	if isDir(c.path("mds1")) {
		if d, err = readClusterDir(c.clusterDir()); err != nil {
			return err
		}
	} else if d, err = c.found(); err != nil {
		return err
	}
	var fresh []int
	for i := range c.MDS {
		if dir := c.path(numbered("mds", i)); mds.Retired(dir) {
			continue // removed with rm-mds
		} else if !isDir(dir) {
			fresh = append(fresh, i)
		} else if err := p.start(p.server("mds", i)); err != nil {
			return err
		}
	}
	d.mds = c.MDS[:len(c.MDS)-len(fresh)]
	if _, err := p.wait(ctx, d, "a leader", func(st *msg.StatusReply) bool { return st.Leader != "" && serves(st) }); err != nil {
		return err
	}
	for _, i := range fresh {
		if err := joinMDS(ctx, d, c.path(numbered("mds", i)), c.MDS[i], ""); err != nil {
			return err
		}
		if err := p.start(p.server("mds", i)); err != nil {
			return err
		}
	}
	d.mds = c.MDS
	if err := d.writeBootstrap(); err != nil {
		return err
	}
	for i, addr := range c.CS {
		if dir := c.path(numbered("cs", i)); cs.Retired(dir) {
			continue // removed with rm-cs
		} else if !isDir(dir) {
			// Each is a host of its own, so that placement spreads replicas as it would in production.
			if _, err := makeCS(ctx, d, cs.Options{Dir: dir, Addr: addr, Host: numbered("host", i)}); err != nil {
				return err
			}
		}
		if err := p.start(p.server("cs", i)); err != nil {
			return err
		}
	}
	if _, err := p.wait(ctx, d, "all servers", func(st *msg.StatusReply) bool { return p.complete(st) }); err != nil {
		return err
	}
	return p.upMounts(ctx)
}

func (p *parts) upMounts(ctx context.Context) error {
	for i, dir := range p.c.Mounts {
		if err := dropStaleMount(dir); err != nil {
			return err
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := p.start(p.mount(i)); err != nil {
			return err
		}
	}
	for i, dir := range p.c.Mounts {
		for {
			if on, err := fuse.IsMounted(dir); err == nil && on {
				break
			}
			if err := p.pause(ctx); err != nil {
				return p.waited(numbered("mount", i), err)
			}
		}
	}
	return nil
}

// complete reports whether all servers of the dev cluster take part.
func (p *parts) complete(st *msg.StatusReply) bool {
	voters, live := 0, 0
	for _, m := range st.Metas {
		if m.Voter && m.State != stateUnreachable && m.State != stateUnheard {
			voters++
		}
	}
	for _, s := range st.Servers {
		if s.State == stateLive {
			live++
		}
	}
	want := 0
	for i := range p.c.MDS {
		if !mds.Retired(p.c.path(numbered("mds", i))) {
			want++
		}
	}
	servers := 0
	for i := range p.c.CS {
		if !cs.Retired(p.c.path(numbered("cs", i))) {
			servers++
		}
	}
	return serves(st) && voters >= want && live >= servers
}

// wait asks for the cluster's status until ok.
func (p *parts) wait(ctx context.Context, d *clusterDir, what string, ok func(*msg.StatusReply) bool) (*msg.StatusReply, error) {
	for {
		one, cancel := context.WithTimeout(ctx, 3*time.Second)
		st, err := d.status(one)
		cancel()
		if err == nil && ok(st) {
			return st, nil
		}
		if err := p.pause(ctx); err != nil {
			return nil, p.waited(what, err)
		}
	}
}

// pause waits a little; it returns early when ctx ends or a part has failed.
func (p *parts) pause(ctx context.Context) error {
	select {
	case err := <-p.failed:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pollPause / 2):
		return nil
	}
}

// waited says what did not come, with the last line of each log that tells of a failure.
func (p *parts) waited(what string, err error) error {
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var tails []string
	for _, kind := range []string{"mds", "cs", "mount"} {
		for _, name := range p.c.names(kind) {
			if line := lastLine(p.c.run(name + ".log")); strings.Contains(line, "varve:") || strings.Contains(line, "level=ERROR") {
				tails = append(tails, name+": "+line)
			}
		}
	}
	return fmt.Errorf("waited %v for %s; see the logs in %s: %s", startTimeout, what, p.c.run(""), strings.Join(tails, "; "))
}

func (p *parts) server(kind string, i int) *part {
	name := numbered(kind, i)
	dir := p.c.path(name)
	run := runMDS
	if kind == "cs" {
		run = runCS
	}
	return &part{
		name: name, args: []string{kind, "-r", dir, "--pid-file", string(p.c.pid(name))},
		serve: func(ctx context.Context, log *slog.Logger) error { return run(ctx, dir, log) },
	}
}

func (p *parts) mount(i int) *part {
	name, dir := numbered("mount", i), p.c.Mounts[i]
	spec := mountSpec{cluster: p.c.clusterDir(), dir: dir, mountOptions: mountOptions{transport: p.c.transport()}}
	options := "transport=" + spec.transport
	if p.c.Cache != "" {
		spec.cache, spec.cacheSize = filepath.Join(p.c.Cache, name), int64(p.c.CacheSize)<<20
		options += fmt.Sprintf(",cache=%s,cachesize=%d", spec.cache, p.c.CacheSize)
	}
	return &part{
		name: name, args: []string{"-c", spec.cluster, "mount", "-f", "-o", options, "--pid-file", string(p.c.pid(name)), "--", dir}, mount: dir,
		serve: func(ctx context.Context, log *slog.Logger) error {
			return runMount(ctx, spec, log, func(string) {}, nil)
		},
	}
}

// readyJSON is what `dev up --json` prints once the cluster is ready.
type readyJSON struct {
	Ready   bool     `json:"ready"`
	Dir     string   `json:"dir"`
	Cluster string   `json:"cluster"`
	Mounts  []string `json:"mounts"`
}

func (a *app) sayReady(c *devConfig) {
	var b strings.Builder
	if a.json {
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(readyJSON{true, c.dir, c.clusterDir(), append([]string{}, c.Mounts...)}) // strings cannot fail
	} else {
		prog := shellQuote(programPath())
		if isGoRun(prog) {
			prog = "go run ./cmd/varve"
		}
		cluster := shellQuote(shortPath(c.clusterDir()))
		fmt.Fprintf(&b, "ready\n\n  %s, %s, replicas %s, data in %s\n", count(uint64(len(c.MDS)), "metadata server"),
			count(uint64(len(c.CS)), "chunk server"), c.Replicas, shortPath(c.dir))
		for _, m := range c.Mounts {
			fmt.Fprintf(&b, "  mounted on %s\n", shortPath(m))
		}
		b.WriteString("\ntry:\n")
		if len(c.Mounts) > 0 {
			fmt.Fprintf(&b, "  cp some.img %s/\n  %s get-attr %s\n", shellQuote(shortPath(c.Mounts[0])), prog, shellQuote(shortPath(c.Mounts[0])))
		}
		fmt.Fprintf(&b, "  %[1]s -c %[2]s stat\n  %[1]s -c %[2]s journal cat\n", prog, cluster)
		if tellParent.pipe != nil {
			fmt.Fprintf(&b, "stop it with: %s dev down --dir %s\n", prog, shellQuote(shortPath(c.dir)))
		} else {
			b.WriteString("Ctrl-C unmounts and stops\n")
		}
	}
	if tellParent.pipe != nil {
		signalReady(b.String())
		return
	}
	fmt.Fprint(a.out, b.String())
}

// isGoRun reports whether the program is one that `go run` made and will remove.
func isGoRun(prog string) bool { return strings.Contains(prog, "/go-build") }

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// shortPath returns path relative to the working directory if that is shorter.
func shortPath(path string) string {
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, path); err == nil && len(rel) < len(path) && filepath.IsLocal(rel) {
			return rel
		}
	}
	return path
}

// devDir returns the dev cluster in dir, for `dev down` and `dev status`.
func devDir(dir string) (*devConfig, error) {
	c, err := readDevConfig(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s holds no dev cluster; say with --dir where it is", dir)
	}
	return c, err
}
