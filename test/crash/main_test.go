package crash

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/cs"
	"varve/cs/store"
)

// serverEnv has this program run a chunk server instead of tests: a serverConfig as JSON.
const serverEnv = "VARVE_CRASH_SERVER"

func TestMain(m *testing.M) {
	if text := os.Getenv(serverEnv); text != "" {
		if err := runServer(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if path := os.Getenv(hogEnv); path != "" {
		os.Exit(runHog(path))
	}
	os.Exit(m.Run())
}

// serverConfig is how a chunk server process runs.
type serverConfig struct {
	Dir                      string
	SettleAfter, SettleEvery time.Duration // 0: the store's defaults
	MaxOpen, MaxActive       int
	Memory                   int64
}

func (c serverConfig) options(log *slog.Logger) cs.Options {
	return cs.Options{
		Dir: c.Dir, Logger: log, Memory: c.Memory,
		Store: store.Options{SettleAfter: c.SettleAfter, SettleEvery: c.SettleEvery, MaxOpen: c.MaxOpen, MaxActive: c.MaxActive},
	}
}

func runServer(text string) error {
	var c serverConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s, err := cs.Open(c.options(slog.New(slog.NewTextHandler(os.Stderr, nil))))
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// needProcesses skips the test unless it may start servers here.
func needProcesses(t *testing.T) {
	t.Helper()
	if os.Getenv("VARVE_E2E") == "" {
		t.Skip("starts and kills servers: runs with VARVE_E2E=1 (make test)")
	}
}

func needRoot(t *testing.T, programs ...string) {
	t.Helper()
	needProcesses(t)
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s: %v", p, err)
		}
	}
}

// number reads a number from the environment.
func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a number from 1", name, text)
	}
	return n
}

// makeServer makes the directory of a chunk server, with a write journal if one is named.
func makeServer(t *testing.T, l *leader, dir, journal string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	o := cs.Options{Dir: dir, Metas: []string{l.addr()}, Addr: "127.0.0.1:0", Host: "h", Logger: slog.New(slog.DiscardHandler)}
	if journal != "" {
		o.Journal, o.JournalBytes = journal, 64<<20
	}
	if _, err := cs.Init(ctx, o); err != nil {
		t.Fatal(err)
	}
}

// process is a program under test, a chunk server as a rule.
type process struct {
	cmd   *exec.Cmd
	began time.Time
	out   *tail
	ended chan struct{} // closed when the process is gone
	quiet atomic.Bool   // nothing was wrong with it, so nobody wants its log
}

// startServer runs a chunk server.
func startServer(t *testing.T, c serverConfig) *process {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return start(t, []string{serverEnv + "=" + string(text)}, self)
}

// start runs a program. It is killed when the test ends, and what it wrote is shown if the test failed.
func start(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(args[0], args[1:]...), out: new(tail), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.began = time.Now()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // killed, as a rule
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() && !p.quiet.Load() {
			t.Logf("%q wrote at the end:\n%s", args, p.out)
		}
	})
	return p
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// kill ends the process with SIGKILL and waits for its end.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may be gone
	<-p.ended
}

// stop ends the process in order.
func (p *process) stop(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatalf("the server did not stop within %v", patience)
	}
	if state := p.cmd.ProcessState; !state.Success() {
		t.Fatalf("the server ended with %v:\n%s", state, p.out)
	}
}

// dead reports whether the process has ended by itself.
func (p *process) dead() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailSize = 8 << 10

func (w *tail) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.b = append(w.b, p...)
	w.b = w.b[max(0, len(w.b)-tailSize):]
	return len(p), nil
}

func (w *tail) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.b)
}
