package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"varve/fuse"
	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"

	"golang.org/x/sys/unix"
)

const (
	restartPause  = time.Second
	stopGrace     = 12 * time.Second // for one kind of part to stop, before it is killed
	settleTimeout = 2 * time.Second
	killGrace     = 3 * time.Second
	pollPause     = 100 * time.Millisecond
)

// part is one server or mount of a dev cluster.
type part struct {
	name  string
	args  []string // of the process that is it
	mount string   // directory, of a mount
	serve func(ctx context.Context, log *slog.Logger) error
}

// parts runs them: in this process, or each in a supervised one.
type parts struct {
	c    *devConfig
	prog string // path of the program that processes run
	log  *slog.Logger

	mu      sync.Mutex
	running map[string]*running
	failed  chan error // a part of this process ended by itself
}

type running struct {
	stop context.CancelFunc
	done chan struct{}
}

func newParts(c *devConfig, log *slog.Logger) (*parts, error) {
	prog, err := devProgram(c)
	return &parts{c: c, prog: prog, log: log, running: map[string]*running{}, failed: make(chan error, 1)}, err
}

// start starts a part. It returns at once; whether the part works is seen from the cluster.
func (p *parts) start(pt *part) error {
	logFile, err := openLog(p.c.run(pt.name + ".log"))
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &running{stop: stop, done: make(chan struct{})}
	p.mu.Lock()
	p.running[pt.name] = r
	p.mu.Unlock()
	if !p.c.Procs {
		go func() {
			defer close(r.done)
			defer logFile.Close()
			p.embed(ctx, pt, slog.New(slog.NewTextHandler(logFile, nil)))
		}()
		return nil
	}
	line := shellJoin(append([]string{p.prog}, pt.args...))
	if err := replaceFile(p.c.run(pt.name+".cmd"), []byte(line+"\n")); err != nil {
		stop()
		close(r.done)
		return errors.Join(err, logFile.Close())
	}
	go func() {
		defer close(r.done)
		defer logFile.Close()
		p.supervise(ctx, pt, logFile)
	}()
	return nil
}

// embed runs a part in this process.
func (p *parts) embed(ctx context.Context, pt *part, log *slog.Logger) {
	err := pt.serve(ctx, log)
	if ctx.Err() != nil {
		if err != nil {
			log.Warn("not stopped in order", "err", err)
		}
		return
	}
	if errors.Is(err, fserr.Retired) { // removed with rm-cs: the others go on
		log.Info("ended, and never starts again", "cause", err)
		return
	}
	if err == nil {
		err = errors.New("ended by itself")
	}
	log.Error("ended", "err", err)
	select {
	case p.failed <- fmt.Errorf("%s: %w", pt.name, err):
	default:
	}
}

// supervise keeps a part's process running until ctx ends, then stops it. A process that somebody started in its place
// (with NAME.cmd) is left alone.
func (p *parts) supervise(ctx context.Context, pt *part, logFile *os.File) {
	for ctx.Err() == nil {
		if pid := p.c.process(pt.name); pid != 0 {
			p.watch(ctx, pid)
		} else if err := p.runOnce(ctx, pt, logFile); err != nil {
			p.log.Warn("process ended", "name", pt.name, "err", err)
			var exit *exec.ExitError
			if errors.As(err, &exit) && exit.ExitCode() == exitRefused { // a server that was removed never starts again
				<-ctx.Done()
			}
		}
		if !p.c.Restart && ctx.Err() == nil {
			<-ctx.Done()
		}
		select {
		case <-ctx.Done():
		case <-time.After(restartPause):
		}
	}
	if pid := p.c.process(pt.name); pid != 0 { // started by hand
		endProcess(pid, stopGrace)
	}
	p.c.cleanUp(pt.name, pt.mount)
}

func (p *parts) runOnce(ctx context.Context, pt *part, logFile *os.File) error {
	if pt.mount != "" {
		if err := dropStaleMount(pt.mount); err != nil {
			return err
		}
	}
	cmd := exec.Command(p.prog, pt.args...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for the supervisor, which stops them in order
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := replaceFile(string(p.c.pid(pt.name)), fmt.Appendln(nil, cmd.Process.Pid)); err != nil {
		p.log.Warn("pid file not written", "name", pt.name, "err", err)
	}
	p.log.Info("process started", "name", pt.name, "pid", cmd.Process.Pid)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			err = errors.New("exit status 0")
		}
		return err
	case <-ctx.Done():
	}
	_ = cmd.Process.Signal(unix.SIGTERM)
	_ = cmd.Process.Signal(unix.SIGCONT) // one that was stopped cannot end
	select {
	case <-ended:
	case <-time.After(stopGrace):
		p.log.Warn("process killed: it did not stop", "name", pt.name, "after", stopGrace)
		_ = cmd.Process.Kill()
		<-ended
	}
	return nil
}

// watch waits until a process that is not this one's child has ended.
func (p *parts) watch(ctx context.Context, pid int) {
	for alive(pid) && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(pollPause):
		}
	}
}

// stop stops parts together and waits for them, for a bounded time.
func (p *parts) stop(names ...string) error {
	var waits []*running
	for _, n := range names {
		p.mu.Lock()
		r := p.running[n]
		delete(p.running, n)
		p.mu.Unlock()
		if r != nil {
			r.stop()
			waits = append(waits, r)
		}
	}
	timeout := time.After(stopGrace + 2*killGrace)
	for _, r := range waits {
		select {
		case <-r.done:
		case <-timeout:
			return fmt.Errorf("%v did not stop within %v", names, stopGrace+2*killGrace)
		}
	}
	return nil
}

// stopAll stops mounts, then chunk servers, then metadata servers.
func (p *parts) stopAll() error {
	errs := []error{p.stop(p.c.names("mount")...), p.stop(p.c.names("cs")...)}
	p.settle()
	return errors.Join(append(errs, p.stop(p.c.names("mds")...))...)
}

// settle waits, for a short time, until every metadata server has applied what the leader has. Stopped all at once, the
// others might not have learned yet that the last events were committed, and their journals would lack them until the next start.
func (p *parts) settle() {
	if len(p.c.MDS) == 1 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()
	d, err := readClusterDir(p.c.clusterDir())
	if err != nil {
		return // never got that far
	}
	st, err := d.status(ctx)
	if err != nil {
		return
	}
	for _, addr := range p.c.MDS {
		m, err := d.dial(ctx, addr)
		if err != nil {
			continue
		}
		err = m.ask(ctx, wire.StateDigest, &msg.StateDigest{AtLeast: st.Index}, new(msg.StateDigestReply))
		if err != nil {
			p.log.Warn("metadata server is stopped before it has caught up", "addr", addr, "err", err)
		}
		m.close()
	}
}

// cleanUp removes what a process that has ended left.
func (c *devConfig) cleanUp(name, mount string) {
	if mount != "" {
		_ = dropStaleMount(mount) // a mount that is not stale is somebody else's
	}
	if c.process(name) == 0 {
		os.Remove(string(c.pid(name)))
	}
}

// endProcess asks a process to stop and kills it if it has not after grace.
func endProcess(pid int, grace time.Duration) {
	for _, sig := range []struct {
		sig  unix.Signal
		wait time.Duration
	}{{unix.SIGTERM, grace}, {unix.SIGKILL, killGrace}} {
		if unix.Kill(pid, sig.sig) != nil {
			return
		}
		_ = unix.Kill(pid, unix.SIGCONT) // one that was stopped cannot end
		for end := time.Now().Add(sig.wait); time.Now().Before(end); time.Sleep(pollPause / 2) {
			if !alive(pid) {
				return
			}
		}
	}
}

// dropStaleMount unmounts what is left at dir of mounts whose process has gone, and only those.
func dropStaleMount(dir string) error {
	const layers = 8 // mounted one over the other
	for range layers {
		mounted, err := fuse.IsMounted(dir)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTCONN) {
			err = nil
		}
		if err != nil || !mounted {
			return err
		}
		if mountAnswers(dir) {
			return fmt.Errorf("%s is mounted by another process; unmount it with varve umount %s", dir, shellQuote(dir))
		}
		if err := fuse.Unmount(dir, true, killGrace); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s is mounted more than %d times over", dir, layers)
}

// mountAnswers reports whether a process serves the mount at dir. One that only takes long does.
func mountAnswers(dir string) bool {
	dead := make(chan bool, 1)
	go func() {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		dead <- errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
	}()
	select {
	case d := <-dead:
		return !d
	case <-time.After(killGrace):
		return true
	}
}

// devProgram returns the path of a program that stays: `go run` removes the one it made when it ends, so that one is copied.
func devProgram(c *devConfig) (string, error) {
	prog := programPath()
	if !c.Procs || !isGoRun(prog) {
		return prog, nil
	}
	kept := c.run("varve")
	in, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := os.CreateTemp(c.run(""), ".varve.*") // renamed: the old one may be running
	if err != nil {
		return "", err
	}
	_, cerr := io.Copy(out, in)
	if err := errors.Join(cerr, out.Chmod(0o755), out.Close()); err != nil {
		os.Remove(out.Name())
		return "", err
	}
	return kept, os.Rename(out.Name(), kept)
}
