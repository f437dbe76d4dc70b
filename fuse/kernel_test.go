package fuse

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
	"varve/internal/id"
)

// Tests with a real mount. What uses the mount runs in another process (the guest, guest_test.go), since a Go
// process that opens files of a mount that it serves can stop itself for good: see the package documentation.

const testLoops = 2

const guestEnv, guestDirEnv = "VARVE_TEST_GUEST", "VARVE_TEST_GUEST_DIR"

func TestMain(m *testing.M) {
	if name := os.Getenv(guestEnv); name != "" {
		os.Exit(guestMain(name, os.Getenv(guestDirEnv)))
	}
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 2*testLoops) // see DefaultLoops; a session may begin while another one ends
	before, _ := os.ReadFile(uringSwitch)
	code := m.Run()
	if switched && strings.TrimSpace(string(before)) == "N" {
		setUring("N")
	}
	os.Exit(code)
}

func needKernel(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if _, err := os.Stat(devicePath); err != nil {
		t.Skip("no /dev/fuse on this machine")
	}
}

// way is how the mounts of a test are served.
type way struct {
	name      string
	transport Transport
}

// ways are what the tests with a real mount run on.
var ways = []way{{"readers", Readers}, {"dev", Dev}, {"uring", Uring}}

// each runs a test on every transport. VARVE_TRANSPORT names one.
func each(t *testing.T, test func(t *testing.T, w way)) {
	t.Helper()
	needKernel(t)
	for _, w := range ways {
		if only := os.Getenv("VARVE_TRANSPORT"); only == "" || only == w.name {
			t.Run(w.name, func(t *testing.T) { test(t, w) })
		}
	}
}

// mem returns a backend with which the transport does what it can, and its memory.
func (w way) mem() (Backend, *memFS) {
	if w.transport == Readers {
		m := newMemFS()
		return m, m
	}
	h := newHotFS()
	return h, h.memFS
}

// switched says that the tests have changed the kernel's switch for FUSE over io_uring. TestMain puts it back.
var switched bool

// setUring sets the switch, which processes that test at once share, and holds it.
func setUring(to string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(os.TempDir(), "varve-test-uring.lock"), os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		return nil, err
	}
	if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); err == nil {
		switched = true
		err = os.WriteFile(uringSwitch, []byte(to), 0)
	}
	return func() { f.Close() }, err
}

func switchUring(t testing.TB, to string) (unlock func()) {
	t.Helper()
	unlock, err := setUring(to)
	if err != nil {
		t.Skip("no FUSE over io_uring here:", err)
	}
	return unlock
}

// mount is testMount on the transport.
func (w way) mount(t testing.TB, backend Backend, change func(*Options)) (*Session, string) {
	t.Helper()
	if w.transport == Uring {
		needKernel(t)
		defer switchUring(t, "Y")()
		if _, err := checkUring(); errors.Is(err, fserr.NotSupported) {
			t.Skip(err)
		}
	}
	return testMount(t, backend, func(o *Options) {
		o.Transport, o.Loops = w.transport, testLoops
		if change != nil {
			change(o)
		}
	})
}

// testMount mounts backend and unmounts it at the end, come what may.
func testMount(t testing.TB, backend Backend, change func(*Options)) (*Session, string) {
	t.Helper()
	needKernel(t)
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // for other users
		t.Fatal(err)
	}
	opts := Options{MountPoint: dir, AllowOther: true, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
	if change != nil {
		change(&opts)
	}
	s, err := Mount(t.Context(), opts, backend)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Unmount(10 * time.Second); err != nil && !errors.Is(err, fserr.Timeout) {
			t.Errorf("unmount: %v", err)
		}
		_ = unix.Unmount(dir, unix.MNT_DETACH) // in case something above failed: normally there is nothing
	})
	return s, dir
}

// guestCommand runs a scenario in another process.
func guestCommand(ctx context.Context, name, dir string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), guestEnv+"="+name, guestDirEnv+"="+dir, "GORACE=atexit_sleep_ms=0") // it would wait a second
	cmd.WaitDelay = time.Second
	return cmd
}

func runGuest(t *testing.T, name, dir string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	out, err := guestCommand(ctx, name, dir).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", name, err, out)
	}
}

func TestMount(t *testing.T) { each(t, onMount) }

func onMount(t *testing.T, w way) {
	backend, m := w.mem()
	s, dir := w.mount(t, backend, nil)
	for _, sc := range scenarios {
		if sc.auto {
			t.Run(sc.name, func(t *testing.T) {
				at := filepath.Join(dir, sc.name)
				if err := os.Mkdir(at, 0o777); err != nil {
					t.Fatal(err)
				}
				runGuest(t, sc.name, at)
			})
		}
	}
	if got := m.largest.Load(); got != maxWrite {
		t.Errorf("largest write request: got %d bytes, want %d", got, maxWrite)
	}
	for _, st := range s.Stats() {
		if st.Op == "SETLKW" && st.Errors < 2 { // that of who gives up, and of who goes on; on a busy machine many signals interrupt one wait
			t.Errorf("%d lock waits were interrupted by 9 signals, want at least 2", st.Errors)
		}
	}
	if ok, err := IsMounted(dir); err != nil || !ok {
		t.Errorf("IsMounted: %v, %v", ok, err)
	}
	if _, err := Mount(t.Context(), Options{MountPoint: dir}, m); !errors.Is(err, fserr.Busy) {
		t.Errorf("second mount at the same place: %v, want it refused as busy", err)
	}
	if err := s.Unmount(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	if err := s.Wait(); err != nil {
		t.Errorf("session: %v", err)
	}
	if ok, err := IsMounted(dir); err != nil || ok {
		t.Errorf("IsMounted after unmount: %v, %v", ok, err)
	}
	if o, r := m.opens.Load(), m.releases.Load(); o != r || o == 0 {
		t.Errorf("%d opens, %d releases", o, r)
	}
	if h, ok := backend.(*hotFS); ok {
		h.checkHot(t)
	}
	for ino, n := range m.inodes {
		if len(n.locks) > 0 {
			t.Errorf("inode %d: %d locks left: %v", ino, len(n.locks), n.locks)
		}
	}
	t.Logf("agreed: %+v", s.Conn())
	for _, st := range s.Stats() {
		t.Logf("%-14s %7d, %4d failed, mean %v", st.Op, st.Count, st.Errors, st.Elapsed/time.Duration(st.Count))
	}
}

func TestMountRefusals(t *testing.T) {
	needKernel(t)
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, at string
		want     error
	}{
		{"missing", filepath.Join(dir, "missing"), os.ErrNotExist},
		{"not a directory", plain, fserr.NotDir},
		{"other filesystem", "/proc", fserr.Busy},
	} {
		if s, err := Mount(t.Context(), Options{MountPoint: c.at}, newMemFS()); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
			if s != nil {
				s.Unmount(time.Second)
			}
		}
	}
	if err := Unmount(dir, false, time.Second); !errors.Is(err, fserr.Invalid) {
		t.Errorf("unmount of what is not mounted: %v", err)
	}
}

func TestReadOnly(t *testing.T) { each(t, onReadOnly) }

func onReadOnly(t *testing.T, w way) {
	_, dir := w.mount(t, newMemFS(), func(o *Options) { o.ReadOnly = true })
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); !errors.Is(err, unix.EROFS) {
		t.Errorf("mkdir: %v, want EROFS", err)
	}
}

// startStalled starts a guest whose read does not end, and returns once the read has begun.
func startStalled(t *testing.T, m *memFS, dir string) *exec.Cmd {
	t.Helper()
	cmd := guestCommand(t.Context(), "stall", dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.stalled:
	case <-time.After(time.Minute):
		cmd.Process.Kill()
		t.Fatalf("guest did not begin to read: %s", out.String())
	}
	return cmd
}

func waitFor(t *testing.T, what string, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		t.Logf("%s: %v", what, err)
	case <-time.After(time.Minute):
		t.Fatalf("%s took more than a minute", what)
	}
}

// TestStalledRead shows that a request that blocks does not stop others, and that a process that waits for it
// can be killed.
func TestStalledRead(t *testing.T) { each(t, onStalledRead) }

func onStalledRead(t *testing.T, w way) {
	backend, m := w.mem()
	_, dir := w.mount(t, backend, nil)
	cmd := startStalled(t, m, dir)
	for range 100 {
		if _, err := os.Stat(filepath.Join(dir, "stall")); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Process.Signal(unix.SIGURG); err != nil { // harmless, and the only one the kernel announces
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	cmd.Process.Kill()
	waitFor(t, "killed guest", cmd.Wait)
}

// TestMountAsUser mounts through fusermount3.
func TestMountAsUser(t *testing.T) {
	needKernel(t)
	if _, err := exec.LookPath("fusermount3"); err != nil {
		t.Skip("fusermount3 is not installed")
	}
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	defer unix.Unmount(dir, unix.MNT_DETACH) // only if the guest failed
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := guestCommand(ctx, "mount-as-user", dir)
	cmd.Path = "/proc/self/exe"
	const nobody = 65534 // fusermount3 wants a user with a name
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestUnmountStalled unmounts while a request never ends: detached, then aborted.
func TestUnmountStalled(t *testing.T) { each(t, onUnmountStalled) }

func onUnmountStalled(t *testing.T, w way) {
	backend, m := w.mem()
	s, dir := w.mount(t, backend, nil)
	cmd := startStalled(t, m, dir)
	start := time.Now()
	if err := s.Unmount(2 * time.Second); !errors.Is(err, fserr.Timeout) {
		t.Errorf("unmount: %v, want a time-out that says the connection was aborted", err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("unmount took %v", took)
	}
	waitFor(t, "guest of an aborted mount", cmd.Wait)
	if o, r := m.opens.Load(), m.releases.Load(); o != r {
		t.Errorf("%d opens, %d releases", o, r)
	}
}

// TestUnmountOther ends a mount as the command line does: busy, then lazily.
func TestUnmountOther(t *testing.T) { each(t, onUnmountOther) }

func onUnmountOther(t *testing.T, w way) {
	backend, m := w.mem()
	s, dir := w.mount(t, backend, nil)
	cmd := startStalled(t, m, dir)
	if err := Unmount(dir, false, time.Minute); !errors.Is(err, unix.EBUSY) {
		t.Errorf("unmount of a busy mount: %v, want EBUSY", err)
	}
	if err := Unmount(dir, true, time.Minute); err != nil {
		t.Errorf("lazy unmount: %v", err)
	}
	if ok, _ := IsMounted(dir); ok {
		t.Error("still mounted after a lazy unmount")
	}
	cmd.Process.Kill()
	waitFor(t, "killed guest", cmd.Wait)
	waitFor(t, "session", s.Wait)
}

// TestAbort ends a connection behind the back of the session.
func TestAbort(t *testing.T) { each(t, onAbort) }

func onAbort(t *testing.T, w way) {
	backend, _ := w.mem()
	s, dir := w.mount(t, backend, nil)
	runGuest(t, "make", dir)
	if s.mount.conn == 0 {
		t.Fatal("number of the connection is unknown")
	}
	if err := abort(s.mount.conn); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "session", s.Wait)
	if err := Unmount(dir, true, time.Minute); err != nil {
		t.Errorf("unmount of a dead mount: %v", err)
	}
}

// TestInvalidate changes a mapped file behind the kernel's back.
func TestInvalidate(t *testing.T) { each(t, onInvalidate) }

func onInvalidate(t *testing.T, w way) {
	backend, m := w.mem()
	s, dir := w.mount(t, backend, nil)
	runGuest(t, "make", dir)
	cmd := guestCommand(t.Context(), "mapped", dir)
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	ask := func() string {
		answer := make(chan string, 1)
		go func() {
			io.WriteString(in, "?")
			var b [2]byte
			n, _ := io.ReadFull(out, b[:])
			answer <- string(b[:n])
		}()
		select {
		case a := <-answer:
			return a
		case <-time.After(time.Minute):
			t.Fatal("guest does not answer")
			return ""
		}
	}
	if got := ask(); got != "aa" {
		t.Fatalf("mapped: %q, want aa", got)
	}
	ino := id.Ino(2)
	m.mu.Lock()
	m.inodes[ino].pages[1][0] = 'b'
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.InvalidateInodeWait(ctx, ino, pageSize, pageSize); err != nil {
		t.Fatal(err)
	}
	if got := ask(); got != "ab" {
		t.Errorf("mapped, after invalidation: %q, want ab", got)
	}
	m.notifier.InvalidateEntry(id.Root, []byte("f"))
	m.notifier.InvalidateInode(ino, -1, 0)
}
