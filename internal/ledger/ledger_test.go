package ledger

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"

	"golang.org/x/sys/unix"
)

var cluster = id.Cluster{1, 2, 3}

// childEnv has what a copy of the test does, and the directory after a space.
const (
	childEnv  = "VARVE_LEDGER_CHILD"
	childKept = "VARVE_LEDGER_KEPT"
)

// TestMain is also the process that is killed.
func TestMain(m *testing.M) {
	do, dir, ok := strings.Cut(os.Getenv(childEnv), " ")
	if !ok {
		os.Exit(m.Run())
	}
	fail := func(err error) {
		if err != nil {
			println(err.Error())
			os.Exit(1)
		}
	}
	switch do {
	case "hold", "exec":
		e, err := Write(dir, cluster, bytes.Repeat([]byte{7}, secretBytes), "/mnt", true)
		fail(err)
		if do == "exec" {
			k := e.Keep()
			_, err = unix.FcntlInt(uintptr(k.FD), unix.F_SETFD, 0)
			fail(err)
			fail(errors.Join(os.Setenv(childEnv, "adopt "+dir), os.Setenv(childKept, k.Name+" "+strconv.Itoa(k.FD))))
			fail(unix.Exec("/proc/self/exe", os.Args, os.Environ()))
		}
	case "adopt":
		name, number, _ := strings.Cut(os.Getenv(childKept), " ")
		fd, err := strconv.Atoi(number)
		fail(err)
		_, err = Adopt(&Kept{dir, name, fd})
		fail(err)
	case "inherit": // and die before the entry is removed
		dead, errs := Dead(dir, cluster)
		fail(errors.Join(errs...))
		if len(dead) != 1 {
			println("entries of the dead:", len(dead))
			os.Exit(1)
		}
	case "spawn": // a child of the process does not keep its entry
		_, err := Write(dir, cluster, NewSecret(), "", false)
		fail(err)
		cmd := exec.Command("sleep", "60")
		fail(cmd.Start())
		println(cmd.Process.Pid)
	}
	println("ready")
	time.Sleep(time.Minute) // and ends by itself if the test is no more
}

// child starts a copy of the test and returns it when it is ready, with what it said before.
func child(t *testing.T, do, dir string) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+do+" "+dir)
	out, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	said := ""
	for in := bufio.NewScanner(out); in.Scan(); {
		if in.Text() == "ready" {
			return cmd, said
		}
		said += in.Text()
	}
	t.Fatalf("%s: it said %q and ended", do, said)
	return nil, ""
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("not killed: %v", err)
	}
}

// found returns the entries of the dead, and fails if anything was not understood.
func found(t *testing.T, dir string) []Estate {
	t.Helper()
	dead, errs := Dead(dir, cluster)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	return dead
}

// TestKilled: the entry of a process is nobody's while it lives or stands still, and the first heir's when it was killed; when he is killed, the next one's.
func TestKilled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run", "sessions")
	cmd, _ := child(t, "hold", dir)
	if got := found(t, dir); len(got) != 0 {
		t.Fatalf("entries of the dead while their process lives: %v", got)
	}
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if got := found(t, dir); len(got) != 0 {
		t.Fatalf("entries of the dead while their process stands still: %v", got)
	}
	kill(t, cmd)
	heir, _ := child(t, "inherit", dir)
	if got := found(t, dir); len(got) != 0 {
		t.Fatalf("a second heir has %v", got)
	}
	kill(t, heir)
	got := found(t, dir)
	if len(got) != 1 {
		t.Fatalf("%d entries when the heir was killed, want 1", len(got))
	}
	r := got[0].Record
	if r.PID != cmd.Process.Pid || r.Mount != "/mnt" || !r.Mounted || !bytes.Equal(r.SecretBytes(), bytes.Repeat([]byte{7}, secretBytes)) {
		t.Errorf("the entry says %+v", r)
	}
	if other, _ := Dead(dir, id.Cluster{9}); len(other) != 0 {
		t.Errorf("entries of another cluster: %v", other)
	}
	got[0].Remove()
	if got := found(t, dir); len(got) != 0 {
		t.Errorf("still there when it was removed: %v", got)
	}
}

// TestExec: an entry goes on in the next program of the process, and dies with that.
func TestExec(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sessions")
	cmd, _ := child(t, "exec", dir)
	if got := found(t, dir); len(got) != 0 {
		t.Fatalf("entries of the dead while the next program runs: %v", got)
	}
	kill(t, cmd)
	if got := found(t, dir); len(got) != 1 {
		t.Errorf("%d entries of the dead, want 1", len(got))
	}
}

// TestChildOutlives: what a process has started does not keep its entry.
func TestChildOutlives(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sessions")
	cmd, said := child(t, "spawn", dir)
	kill(t, cmd)
	var pid int
	for _, r := range said {
		pid = pid*10 + int(r-'0')
	}
	if pid > 1 {
		defer syscall.Kill(pid, syscall.SIGKILL)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("the child %d: %v", pid, err)
	}
	if got := found(t, dir); len(got) != 1 {
		t.Errorf("%d entries of the dead, want 1", len(got))
	}
}

// TestOneHeir: of many at once, one has an entry.
func TestOneHeir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sessions")
	for range 20 {
		e, err := Write(dir, cluster, NewSecret(), "", false)
		if err != nil {
			t.Fatal(err)
		}
		e.Release()
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := make(map[string]int)
	for range 8 {
		wg.Go(func() {
			dead, errs := Dead(dir, cluster)
			for _, d := range dead {
				mu.Lock()
				seen[d.Secret]++
				mu.Unlock()
				d.Remove()
			}
			for _, err := range errs {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, d := range found(t, dir) { // whom two had tried to lock at the same moment, neither may have
		seen[d.Secret]++
		d.Remove()
	}
	for secret, n := range seen {
		if n != 1 {
			t.Errorf("%d heirs had %s", n, secret)
		}
	}
	if len(seen) != 20 {
		t.Errorf("%d entries were inherited, want 20", len(seen))
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestNotBelieved: what is not an entry of this boot and user is passed over and told, and goes when it is old.
func TestNotBelieved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sessions")
	good, err := Write(dir, cluster, NewSecret(), strings.Repeat("ü", maxMount), false)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, good.name)
	good.Release()
	line, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	bad := map[string][]byte{
		"empty": nil, "cut": line[:len(line)/2], "words": []byte("no entry"), "null": []byte("null"), "large": append(line, make([]byte, maxFile)...),
		"version": bytes.Replace(line, []byte(`"version":1`), []byte(`"version":2`), 1),
		"secret":  bytes.Replace(line, []byte(`"secret":"`), []byte(`"secret":"00`), 1),
		"boot":    bytes.Replace(line, []byte(boot), []byte("another"), 1),
		"noboot":  bytes.Replace(line, []byte(boot), nil, 1),
		"cluster": bytes.Replace(line, []byte(`"cluster":"01`), []byte(`"cluster":"02`), 1),
	}
	name := func(what string) string { return filepath.Join(dir, cluster.String()+"-"+what) }
	for what, b := range bad {
		if bytes.Equal(b, line) {
			t.Fatalf("%s: not changed", what)
		}
		if err := os.WriteFile(name(what), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for what, err := range map[string]error{"link": os.Symlink(path, name("link")), "directory": os.Mkdir(name("directory"), 0o700), "fifo": unix.Mkfifo(name("fifo"), 0o600)} {
		if err != nil {
			t.Fatal(what, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, unfinished+"x"), line, 0o600); err != nil {
		t.Fatal(err)
	}
	dead, errs := Dead(dir, cluster)
	if len(dead) != 1 || len(errs) != len(bad)+3 {
		t.Errorf("%d entries, and %d that were told of, want 1 and %d: %v", len(dead), len(errs), len(bad)+3, errors.Join(errs...))
	}
	for _, d := range dead {
		d.Release()
	}
	old := time.Now().Add(-2 * stale)
	for what := range bad {
		if err := os.Chtimes(name(what), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(filepath.Join(dir, unfinished+"x"), old, old); err != nil {
		t.Fatal(err)
	}
	dead, _ = Dead(dir, cluster)
	for _, d := range dead {
		d.Remove()
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 3 { // link, directory, fifo
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestDirectory: none, one that is others' too, one that cannot be written.
func TestDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sessions")
	if got := found(t, dir); len(got) != 0 {
		t.Error(got)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(dir, cluster, NewSecret(), "", false); !errors.Is(err, fserr.Access) {
		t.Errorf("an entry in a directory that others can read: %v", err)
	}
	if _, errs := Dead(dir, cluster); len(errs) != 1 || !errors.Is(errs[0], fserr.Access) {
		t.Errorf("entries of a directory that others can read: %v", errs)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(filepath.Join(file, "sessions"), cluster, NewSecret(), "", false); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("an entry below a file: %v", err)
	}
	if os.Geteuid() != 0 {
		locked := filepath.Join(t.TempDir(), "locked")
		if err := os.Mkdir(locked, 0o500); err != nil {
			t.Fatal(err)
		}
		if _, err := Write(filepath.Join(locked, "sessions"), cluster, NewSecret(), "", false); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("an entry where nothing may be made: %v", err)
		}
	}
}

func TestNonce(t *testing.T) {
	if got := hex.EncodeToString(Nonce(make([]byte, secretBytes))); got != "6be72e3064a7c7b6b23a2d423097930e" {
		t.Errorf("%s: clients and servers of different versions must make the same of a secret", got)
	}
	if Nonce(nil) != nil || Nonce(make([]byte, nonceBytes)) != nil {
		t.Error("a nonce of what is no secret")
	}
}
