package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"varve/fuse"
	"varve/internal/client"
	"varve/internal/fserr"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

const (
	trialTime   = 30 * time.Second // for the next program to show that it works
	pauseTime   = 15 * time.Second // for the requests under way to end; after it the mount goes on as before
	restartTime = 60 * time.Second // all of it, for who has asked
	restartLook = 5 * time.Millisecond
	restartGap  = 10 * time.Second // between one program's socket and the next one's
	trialSays   = "varve handover" // and the versions that it reads
)

// mountLife is what a process that serves one mount and nothing else has to go on in another program. nil: it does not.
type mountLife struct {
	spec  mountSpec
	log   *slog.Logger
	from  *handover // what the program before has left; nil: there was none
	state restartState
	asks  chan restartAsk
	l     *net.UnixListener

	signals chan os.Signal // SIGUSR2
	stop    context.CancelFunc
}

// restartAsk asks to go on in another program.
type restartAsk struct {
	program string
	answer  chan error // has room; closed by the exec if all is well
}

// restartState is what is said of a mount that may have been restarted.
type restartState struct {
	Version string        `json:"version"`
	PID     int           `json:"pid"`
	Times   int           `json:"times"`          // how often the mount has gone on in another program
	Paused  time.Duration `json:"pause_ns"`       // the last time
	Back    string        `json:"back,omitempty"` // why the last one did not go on
}

// controlRequest is a line of JSON that the process of a mount is sent; restartAnswer is its answer.
type controlRequest struct {
	Do      string   `json:"do"` // state or restart
	Program string   `json:"program,omitempty"`
	Options []string `json:"options,omitempty"` // those the mount is to have, if it was asked by mount -o remount
}

type restartAnswer struct {
	Code  fserr.Code    `json:"code"`
	Error string        `json:"error,omitempty"`
	State *restartState `json:"state,omitempty"`
}

// controlSocket is the name of the socket of the mount whose device number has this minor.
func controlSocket(minor uint32) *net.UnixAddr {
	return &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("@varve/mount/%d/control", minor)}
}

func newMountLife(spec mountSpec, from *handover) *mountLife {
	m := &mountLife{spec: spec, from: from, asks: make(chan restartAsk), state: restartState{Version: version, PID: os.Getpid()}}
	if from != nil {
		m.state.Times, m.state.Back = from.Times, from.Back
	}
	return m
}

// asked is where restarts are asked for.
func (m *mountLife) asked() <-chan restartAsk {
	if m == nil {
		return nil
	}
	return m.asks
}

func (m *mountLife) before() *handover {
	if m == nil {
		return nil
	}
	return m.from
}

// serve takes requests to restart, by the socket and by SIGUSR2, until close.
func (m *mountLife) serve(log *slog.Logger) {
	if m == nil {
		return
	}
	m.log = log
	if h := m.from; h != nil {
		m.state.Paused = h.pause()
		unix.Close(h.Old)
		if h.Back != "" {
			log.Error("the other program could not go on with the mount; this one does", "cause", h.Back, "paused", m.state.Paused)
		} else {
			log.Info("the mount goes on", "before", h.Version, "version", version, "paused", m.state.Paused)
		}
		m.from = nil
	}
	var ctx context.Context
	ctx, m.stop = context.WithCancel(context.Background())
	m.signals = make(chan os.Signal, 1)
	signal.Notify(m.signals, syscall.SIGUSR2)
	go func() {
		defer signal.Stop(m.signals)
		for {
			select {
			case <-ctx.Done():
				return
			case <-m.signals:
			}
			if err := m.ask(ctx, programPath()); err != nil {
				log.Error("not restarted", "cause", err)
			}
		}
	}()
	minor, err := minorOf(m.spec.dir)
	if err == nil {
		m.l, err = fuse.Listen(func() (*net.UnixListener, error) { return net.ListenUnix("unix", controlSocket(minor)) })
	}
	if err != nil {
		log.Warn("varve restart cannot reach this mount", "cause", err)
		return
	}
	go func() {
		for {
			nc, err := m.l.AcceptUnix()
			if err != nil {
				return // closed
			}
			m.answer(ctx, nc)
			nc.Close()
		}
	}()
}

// ask hands a restart to whoever serves the mount and returns why it was not done.
func (m *mountLife) ask(ctx context.Context, program string) error {
	a := restartAsk{program: program, answer: make(chan error, 1)}
	select {
	case m.asks <- a:
	case <-ctx.Done():
		return fserr.Unavailable
	}
	select {
	case err := <-a.answer:
		return err
	case <-ctx.Done():
		return fserr.Unavailable
	}
}

// answer serves one connection: one request.
func (m *mountLife) answer(ctx context.Context, nc *net.UnixConn) {
	_ = nc.SetDeadline(time.Now().Add(cacheGreet))
	var req controlRequest
	err := samePeer(nc)
	if err == nil {
		var line []byte
		if line, err = bufio.NewReaderSize(nc, maxCacheLine).ReadSlice('\n'); err == nil {
			err = json.Unmarshal(line, &req)
		}
	}
	var a restartAnswer
	if !errors.Is(err, fserr.Access) {
		a.State = &m.state // no business of others
	}
	switch {
	case err != nil:
	case req.Do == "restart":
		if err = m.sameOptions(req.Options); err == nil {
			err = m.ask(ctx, req.Program)
		}
	case req.Do != "state":
		err = fmt.Errorf("asked to %q: %w", req.Do, fserr.NotSupported)
	}
	if err != nil {
		a.Code, a.Error = fserr.Of(err), oneLine(err)
	}
	_ = nc.SetDeadline(time.Now().Add(cacheGreet))
	_ = json.NewEncoder(nc).Encode(a) // who asked may have gone
}

// sameOptions refuses options that the mount does not have.
func (m *mountLife) sameOptions(words []string) error {
	if len(words) == 0 {
		return nil
	}
	want, err := parseMountOptions(words)
	if err != nil {
		return err
	}
	have := m.spec.mountOptions
	if slices.Contains(splitOptions(words), shownOption) {
		shown := have
		shown.readOnly, shown.flags = want.readOnly, want.flags
		want = shown
	}
	for _, o := range []*mountOptions{&want, &have} {
		o.retry, o.background, o.guard = 0, false, false // of the start alone
	}
	if want != have {
		return fmt.Errorf("a varve mount keeps the options that it was made with; unmount it and mount it again: %w", fserr.NotSupported)
	}
	return nil
}

// hangUp ends the socket, as that of a mountCache.
func (m *mountLife) hangUp() {
	if m != nil && m.l != nil {
		_ = m.l.Close()
	}
}

func (m *mountLife) close() {
	if m == nil || m.stop == nil {
		return
	}
	m.stop()
	m.hangUp()
}

// restart replaces this program by another, which goes on with the mount. It returns only if that was not done: then the mount is served as before.
func (m *mountLife) restart(ctx context.Context, program string, s *fuse.Session, c *client.Client, cache *mountCache) error {
	if err := m.elsewhere(program); err != nil {
		return err
	}
	if err := tryProgram(ctx, program); err != nil {
		return err
	}
	old, err := openSelf()
	if err != nil {
		return err
	}
	defer unix.Close(old)
	ctx, cancel := context.WithTimeout(ctx, pauseTime)
	defer cancel()
	h := &handover{Version: version, Times: m.state.Times + 1, Old: old, Name: programPath(), Args: os.Args[1:]}
	poke := func(string, map[int]int) error { return nil } // only FUSE over io_uring asks
	if s.Conn().Transport == fuse.Uring {
		p, err := startHelper(m.spec.dir)
		if err != nil {
			return err
		}
		defer p.end()
		poke, h.Helper = p.poke, p.cmd.Process.Pid
	}
	if err := s.Pause(ctx, poke); err != nil {
		return err
	}
	h.Paused = int64(s.PausedSince())
	defer s.Continue()
	if h.Client, err = c.Suspend(ctx); err != nil {
		return err
	}
	defer c.Continue()
	if h.Mount, err = s.Save(ctx); err != nil {
		return err
	}
	if ctx.Err() != nil { // told to end meanwhile, which the next program would not know
		return ctx.Err()
	}
	cache.rest()
	signal.Ignore(syscall.SIGUSR2) // which would end the next program before it takes it; its Notify ends that
	err = h.execute(program, program)
	signal.Notify(m.signals, syscall.SIGUSR2)
	return err
}

// elsewhere refuses a program that is on the mount itself: to execute it, the kernel would have to read what nobody answers just then.
func (m *mountLife) elsewhere(program string) error {
	if !filepath.IsAbs(program) {
		return fmt.Errorf("program %q: want an absolute path: %w", program, fserr.Invalid)
	}
	minor, err := minorOf(m.spec.dir)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(program, &st); err != nil {
		return fmt.Errorf("program %s: %w; the mount is served as before", program, err)
	}
	if unix.Major(st.Dev) == 0 && unix.Minor(st.Dev) == minor {
		return fmt.Errorf("program %s is on the mount itself: copy it to another filesystem: %w", program, fserr.Invalid)
	}
	return nil
}

// tryProgram has the program show that it can serve the mount, with the arguments of this one.
func tryProgram(ctx context.Context, program string) error {
	ctx, cancel := context.WithTimeout(ctx, trialTime)
	defer cancel()
	var said, failed strings.Builder
	cmd := exec.CommandContext(ctx, program, append([]string{"--trial=true"}, os.Args[1:]...)...)
	cmd.Stdout, cmd.Stderr = &said, &failed
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if versions, ok := strings.CutPrefix(said.String(), trialSays); err == nil && (!ok || !slices.Contains(strings.Fields(versions), strconv.Itoa(handoverVersion))) {
		err = fmt.Errorf("it goes on from %q, want version %d among them: %w", said.String(), handoverVersion, fserr.NotSupported)
	}
	if err != nil {
		why := strings.TrimSpace(failed.String())
		if at := strings.LastIndexByte(why, '\n'); at >= 0 {
			why = why[at+1:]
		}
		return fmt.Errorf("%s cannot go on with the mount, which is served as before: %w: %s", program, err, why)
	}
	return nil
}

// trial is what tryProgram runs: it does all that a mount needs, but for the mount.
func trial(ctx context.Context, spec mountSpec, out *os.File) error {
	quiet := slog.New(slog.DiscardHandler)
	d, err := readClusterDir(spec.cluster)
	if err != nil {
		return err
	}
	bonds, tcp := watchBonds(quiet)
	defer bonds.Close()
	network, err := dialFrom(spec.net, tcp)
	if err != nil {
		return err
	}
	creds, err := d.filesCredentials()
	if err != nil {
		return noAccess(err)
	}
	c, err := client.Dial(ctx, client.Options{
		Cluster: d.uuid, Name: d.name, Addrs: d.mds, Network: network, Credentials: creds, ClusterDir: d.path, Version: version, Logger: quiet, StartTimeout: retryFor, NoLocal: true, NoCache: true,
	})
	if err != nil {
		return unreached(d, err)
	}
	if err := c.Close(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s %d\n", trialSays, handoverVersion)
	return err
}

// helper is the process of pokeCommand. It is started before the mount pauses, and ends when its input does.
type helper struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

func startHelper(dir string) (*helper, error) {
	cmd := selfCommand([]string{"poke", "--", dir})
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start a helper process: %w", err)
	}
	return &helper{cmd: cmd, in: in}, nil
}

// poke is a fuse.Poke.
func (p *helper) poke(_ string, calls map[int]int) error {
	var line strings.Builder
	for cpu, n := range calls {
		fmt.Fprintf(&line, "%d:%d ", cpu, n)
	}
	if _, err := fmt.Fprintln(p.in, line.String()); err != nil {
		return fmt.Errorf("the helper process: %w", err)
	}
	return nil
}

// end waits for it when the mount goes on in this program after all.
func (p *helper) end() {
	_ = p.in.Close()
	go func() { _ = p.cmd.Wait() }() // its calls are answered now
}

func (a *app) restartCommand() *cobra.Command {
	var program, options string
	cmd := &cobra.Command{
		Use: "restart DIR", Short: "Have a mount go on in this version of the program, without unmounting", Args: exactArgs("DIR"),
		Long: `The process that serves the mount is replaced by this program (or --program): what is open stays open, locks stay held, and whoever uses the mount sees a pause
of less than a second. The other program first shows that it can reach the cluster; if it cannot, or requests do not end within 15 s, the mount is
served as before. The options and the process id stay what they were. SIGUSR2 to the process does the same with the program at the path that it
was started from, and so does systemctl reload of a unit that varve systemd wrote.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			path := program
			if path == "" {
				path = programPath()
			}
			path, err := filepath.Abs(path)
			if err != nil {
				return err
			}
			req := controlRequest{Do: "restart", Program: path}
			if options != "" {
				req.Options = []string{options}
			}
			return a.restart(cmd.Context(), args[0], req)
		},
	}
	cmd.Flags().StringVar(&program, "program", "", "the program that is to serve the mount (default: this one)")
	cmd.Flags().StringVar(&options, "options", "", "refuse if these are not the mount's; for mount -o remount")
	_ = cmd.Flags().MarkHidden("options")
	return cmd
}

// restart asks the process of a mount, and waits until the next program serves it.
func (a *app) restart(ctx context.Context, dir string, req controlRequest) error {
	mount, err := mountOf(dir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, restartTime)
	defer cancel()
	var was *restartState
	for end := time.Now().Add(restartGap); ; time.Sleep(restartLook) {
		// A restart that somebody else asked for may be under way.
		was, err = askControl(ctx, mount, controlRequest{Do: "state"})
		if errors.Is(err, errCutOff) {
			end = time.Now().Add(restartGap) // it has just come to that
		} else if !errors.Is(err, unix.ECONNREFUSED) || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("%s cannot be restarted without unmounting: it is served inside varve dev, by an older version, or in another network namespace: %w", mount.Dir, err)
	}
	if _, err = askControl(ctx, mount, req); err != nil && !errors.Is(err, errCutOff) {
		return err
	}
	for {
		now, err := askControl(ctx, mount, controlRequest{Do: "state"})
		switch {
		case err == nil && now.Times > was.Times && now.Back != "":
			return refusedf("%s is served as before: %s could not go on with it: %s", mount.Dir, req.Program, now.Back)
		case err == nil && now.Times > was.Times:
			if a.json {
				return a.printJSON(now)
			}
			_, err = fmt.Fprintf(a.out, "%s goes on in version %s; it paused for %v\n", mount.Dir, now.Version, now.Paused.Round(time.Millisecond))
			return err
		}
		if mounted, merr := fuse.IsMounted(mount.Dir); merr == nil && !mounted {
			return fmt.Errorf("%s is not mounted any more; the log of its process says why", mount.Dir)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: the next program does not answer; the log of its process (%d) says why: %w", mount.Dir, was.PID, errors.Join(err, fserr.Timeout))
		case <-time.After(restartLook):
		}
	}
}

var errCutOff = errors.New("the connection ended without an answer")

func askControl(ctx context.Context, mount fuse.MountInfo, req controlRequest) (*restartState, error) {
	nc, err := net.DialUnix("unix", nil, controlSocket(mount.Minor))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", mount.Dir, err)
	}
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { _ = nc.Close() })()
	if err := samePeer(nc); err != nil {
		return nil, err
	}
	var a restartAnswer
	if err = json.NewEncoder(nc).Encode(req); err == nil {
		err = json.NewDecoder(nc).Decode(&a)
	}
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: %w", mount.Dir, fserr.Timeout)
	case err != nil:
		return nil, fmt.Errorf("%s: %w: %w", mount.Dir, errCutOff, err)
	case a.Error != "":
		return nil, refusedf("%s: %s", mount.Dir, a.Error)
	case a.State == nil:
		return nil, fmt.Errorf("%s: answer without a state: %w", mount.Dir, fserr.Protocol)
	}
	return a.State, nil
}
