package traffic

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/ebpf"
	"varve/internal/wire/msg"
)

// fakeHost notes what an agent would do.
type fakeHost struct {
	mu     sync.Mutex
	last   plan
	cleans int
	closes int
}

func (f *fakeHost) view() (hostView, error) { return testView(time.Now()), nil }

func (f *fakeHost) clean() (map[string]ebpf.Left, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cleans++
	return nil, nil
}

func (f *fakeHost) apply(p plan) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = p
}

func (f *fakeHost) look(s *Snapshot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s.Classify, s.Shape, s.Guard, s.Watch = word(f.last.classifyOff, 1, 1, nil), "off: test", "off: test", "off: test"
}

func (f *fakeHost) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closes++
	return nil
}

func (f *fakeHost) ports() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.last.ports)
}

func runAgent(t *testing.T, dir string) (a *Agent, f *fakeHost, stop func()) {
	t.Helper()
	f = new(fakeHost)
	a = New(Options{Dir: dir, Every: 5 * time.Millisecond, Logger: slog.New(slog.DiscardHandler), host: f})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); a.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return a, f, stop
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func told(port int) *msg.MembersReply {
	return &msg.MembersReply{Servers: []string{fmt.Sprintf("10.0.0.5:%d", port)}}
}

var here = []netip.Addr{netip.MustParseAddr("10.0.0.5")}

// TestOwner: one of several owns what is done, with the needs of all; when it ends another does it, and all know what is done.
func TestOwner(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net", "1")
	a, fa, stop := runAgent(t, dir)
	m := a.Join("cs1", here, nil, "")
	m.Told(told(2511))
	eventually(t, "the first to act", func() bool { return fa.ports() == 1 })
	b, fb, _ := runAgent(t, dir)
	n := b.Join("cs2", here, nil, "")
	n.Told(told(2512))
	eventually(t, "the owner to know of the second", func() bool { return fa.ports() == 2 })
	eventually(t, "the second to know what is done", func() bool { return b.Latest().Classify == "on" && b.Latest().PID == os.Getpid() })
	if fb.ports() != 0 || fb.cleans != 0 {
		t.Error("two own it")
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) < 3 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, e := range files { // another user who could open a file that is locked could lock it himself
		if info, err := e.Info(); strings.HasPrefix(e.Name(), needPrefix) || e.Name() == lockFile {
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: mode %v, %v", e.Name(), info.Mode(), err)
			}
		}
	}
	n.Leave()
	eventually(t, "what is not needed any more to go", func() bool { return fa.ports() == 1 })
	n = b.Join("cs2", here, nil, "")
	n.Told(told(2512))
	stop()
	if fa.closes != 1 {
		t.Errorf("taken off %d times", fa.closes)
	}
	eventually(t, "the second to own it", func() bool { return fb.ports() == 1 })
	fb.mu.Lock()
	defer fb.mu.Unlock()
	if fb.cleans != 1 {
		t.Errorf("cleaned %d times", fb.cleans)
	}
}

// TestOwnerKilled: the needs of a process that was killed are forgotten, and its place is taken.
func TestOwnerKilled(t *testing.T) {
	if dir := os.Getenv("VARVE_TRAFFIC_DIR"); dir != "" { // the process that is killed
		a := New(Options{Dir: dir, Every: 5 * time.Millisecond, host: new(fakeHost)})
		a.Join("killed", here, nil, "").Told(told(2511))
		fmt.Println("joined")
		a.Run(context.Background())
		return
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestOwnerKilled$")
	cmd.Env = append(os.Environ(), "VARVE_TRAFFIC_DIR="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := sync.OnceFunc(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	defer kill()
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "joined"; {
	}
	eventually(t, "the other process to act", func() bool { return Read(dir).PID == cmd.Process.Pid })
	a, f, _ := runAgent(t, dir)
	a.Join("left", here, nil, "").Told(told(2512))
	eventually(t, "this process to know", func() bool { return a.Latest().PID == cmd.Process.Pid })
	kill()
	eventually(t, "this process to take over", func() bool { return f.ports() == 1 && a.Latest().PID == os.Getpid() })
	files, err := filepath.Glob(filepath.Join(dir, needPrefix+"*"))
	if err != nil || len(files) != 1 {
		t.Errorf("needs of the dead: %v, %v", files, err)
	}
}

// TestOff: without the privilege, or a directory, everything says so and nothing else happens.
func TestOff(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a, _, _ := runAgent(t, filepath.Join(file, "below"))
	eventually(t, "the fault to be told", func() bool { return strings.Contains(a.Latest().Classify, "not a directory") })
	if s := Read(t.TempDir()); s.PID != 0 || !strings.HasPrefix(s.Guard, "off: ") {
		t.Errorf("where nothing is: %+v", s)
	}
	old := &Snapshot{PID: 1, At: time.Now().Add(-time.Minute), Classify: "on"}
	dir := t.TempDir()
	lock, err := os.Create(filepath.Join(dir, lockFile))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := old.write(dir); err != nil {
		t.Fatal(err)
	}
	if s := Read(dir); s.PID != 0 || !strings.Contains(s.Classify, "not been heard of for 1m") {
		t.Errorf("an old snapshot: %+v", s)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if s := Read(dir); s.PID != 0 || !strings.Contains(s.Classify, "has ended") {
		t.Errorf("the snapshot of a process that has ended: %+v", s)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := trusted(dir); err == nil {
		t.Error("a directory that all may write to is trusted")
	}
	if r := a.Latest().Report(); !strings.HasPrefix(r.Classify, "off: ") || len(r.Counts) != 0 {
		t.Errorf("report %+v", r)
	}
}
