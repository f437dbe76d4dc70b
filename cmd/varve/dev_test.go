package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/fuse"

	"golang.org/x/sys/unix"
)

// needMounts skips a test that mounts where that is not possible.
func needMounts(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("runs real clusters for some seconds; not with -short")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts a filesystem")
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skip("needs FUSE: ", err)
	}
	f.Close()
}

// devUp starts a cluster in the background and stops it when the test ends.
func devUp(t *testing.T, dir string, args ...string) {
	t.Helper()
	t.Cleanup(func() {
		varve(t, dir, "dev", "down", "--dir", "data")
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(dir, "data", "run", "*.log"))
			for _, l := range logs {
				b, _ := os.ReadFile(l)
				t.Logf("%s:\n%s", filepath.Base(l), b[max(0, len(b)-2000):])
			}
		}
	})
	out := must(t, dir, append([]string{"dev", "up", "-d", "--dir", "data", "--mount", "mnt"}, args...)...)
	if !strings.HasPrefix(out, "ready\n") {
		t.Fatalf("dev up printed %q", out)
	}
}

func devStatus(t *testing.T, dir string) devStatusJSON {
	t.Helper()
	out, errs, _ := varve(t, dir, "dev", "status", "--dir", "data", "--json")
	var s devStatusJSON
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("dev status: %v\n%s%s", err, out, errs)
	}
	return s
}

// clean fails if anything of the cluster is left: mounts, pid files, processes.
func clean(t *testing.T, dir string) {
	t.Helper()
	mounts, err := fuse.Mounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if strings.HasPrefix(m.Dir, dir) {
			t.Errorf("%s is still mounted", m.Dir)
		}
	}
	if pids, _ := filepath.Glob(filepath.Join(dir, "data", "run", "*.pid")); len(pids) > 0 {
		t.Errorf("left: %q", pids)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && bytes.HasPrefix(b, []byte(binary)) && bytes.Contains(b, []byte(dir)) {
			t.Errorf("%s is still there: %q", p, b)
		}
	}
}

// TestDevEmbedded: a cluster in one process, all the way from `dev up` to a journal that tells the story.
func TestDevEmbedded(t *testing.T) {
	needMounts(t)
	t.Parallel()
	dir := t.TempDir()
	devUp(t, dir)
	want := bytes.Repeat([]byte("varve"), 100_000)
	file := filepath.Join(dir, "mnt", "file")
	if err := os.WriteFile(file, want, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := varve(t, dir, "dev", "up", "--dir", "data"); code != exitFailed || !strings.Contains(errs, "dev down --dir") {
		t.Errorf("second dev up: exit code %d, %q", code, errs)
	}
	waitFor(t, "the cluster to be healthy", func() bool {
		var st statusJSON
		if err := json.Unmarshal([]byte(must(t, dir, "-c", "data/cluster", "stat", "--json")), &st); err != nil {
			t.Fatal(err)
		}
		out := must(t, dir, "-c", "data/cluster", "stat")
		if strings.Contains(out, "access    open") {
			t.Errorf("stat printed %s", out)
		}
		return st.Health == "HEALTHY" && len(st.Servers) == 3 && len(st.Sessions) == 1 && strings.Contains(out, "HEALTHY")
	})
	testAttributes(t, dir)
	for _, where := range [][]string{{"-c", "data/cluster"}, {"-r", "data/mds1"}} {
		for args, want := range map[string]string{"cat": "/file ", "replay": "/file", "verify": "replay gives all"} {
			if out := must(t, dir, append([]string{"journal", args}, where...)...); !strings.Contains(out, want) {
				t.Errorf("journal %s %q: no %q in\n%s", args, where, want, out)
			}
		}
	}
	must(t, dir, "dev", "down", "--dir", "data")
	clean(t, dir)
	if s := devStatus(t, dir); s.Running || s.Health != "STOPPED" {
		t.Errorf("after down: %+v", s)
	}
	if out := must(t, dir, "dev", "down", "--dir", "data"); !strings.Contains(out, "nothing was running") {
		t.Errorf("second down: %s", out)
	}
	must(t, dir, "journal", "verify", "-r", "data/mds1")
	devUp(t, dir) // the same cluster again
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
		t.Errorf("after a restart: %d bytes, %v; want %d", len(got), err, len(want))
	}
}

func testAttributes(t *testing.T, dir string) {
	t.Helper()
	must(t, dir, "set-attr", "mnt/file", "replicas=2:1")
	if out := must(t, dir, "get-attr", "mnt/file"); !strings.Contains(out, "2:1 (set here: 2:1)") {
		t.Errorf("get-attr: %s", out)
	}
	must(t, dir, "set-attr", "-R", "mnt", "replicas=3:1")
	if out := must(t, dir, "get-attr", "mnt/file"); !strings.Contains(out, "3:1 (inherited)") {
		t.Errorf("get-attr after set-attr -R: %s", out)
	}
}

// TestDevProcs: a cluster of processes that are killed, stopped and left behind.
func TestDevProcs(t *testing.T) {
	needMounts(t)
	t.Parallel()
	dir := t.TempDir()
	devUp(t, dir, "--procs", "--mds", "3", "--cs", "3", "--replicas", "3:2")
	c, err := readDevConfig(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "mnt", "file")
	if err := os.WriteFile(file, []byte("before"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cs2", "mds1", "mount1"} {
		old := c.process(name)
		if old == 0 {
			t.Fatalf("%s does not run", name)
		}
		if err := unix.Kill(old, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		waitFor(t, name+" to run again", func() bool { pid := c.process(name); return pid != 0 && pid != old })
	}
	waitFor(t, "the mount to be back", func() bool { b, err := os.ReadFile(file); return err == nil && string(b) == "before" })
	waitFor(t, "the cluster to be whole", func() bool { return devStatus(t, dir).Health == "HEALTHY" })

	// NAME.cmd starts a process again when its supervisor has gone.
	kill := func(name string) {
		t.Helper()
		if err := unix.Kill(c.pid(name).read(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	kill(supervisor)
	kill("cs1")
	waitFor(t, "the supervisor to end", func() bool { return !c.running() })
	if _, errs, code := varve(t, dir, "dev", "up", "--dir", "data"); code != exitFailed || !strings.Contains(errs, "of an earlier run") {
		t.Errorf("dev up beside what a dead one left: exit code %d, %q", code, errs)
	}
	waitFor(t, "cs1 to end", func() bool { return c.process("cs1") == 0 })
	if err := exec.Command("sh", "-c", c.command("cs1")+" >/dev/null 2>&1 &").Run(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "cs1 to run again", func() bool { return c.process("cs1") != 0 })
	waitFor(t, "the cluster to be whole", func() bool { return wholeAgain(t, dir) })

	// Everything at once: no supervisor, a dead mount, a stopped server, a pid file that names a stranger.
	kill("mount1")
	if err := unix.Kill(c.process("mds2"), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.run("cs9.pid"), []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.run("mds9.pid"), []byte("garbage"), 0o644); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	must(t, dir, "dev", "down", "--dir", "data")
	if took := time.Since(begin); took > 90*time.Second {
		t.Errorf("dev down took %v", took)
	}
	clean(t, dir)
	devUp(t, dir)
	if b, err := os.ReadFile(file); err != nil || string(b) != "before" {
		t.Errorf("after all this the file holds %q, %v", b, err)
	}
}

func wholeAgain(t *testing.T, dir string) bool {
	t.Helper()
	var st statusJSON
	out, _, _ := varve(t, dir, "-c", "data/cluster", "stat", "--json")
	return json.Unmarshal([]byte(out), &st) == nil && st.Health == "HEALTHY"
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited two minutes for %s", what)
		}
	}
}

// TestMountCommands: mount and umount as an administrator uses them.
func TestMountCommands(t *testing.T) {
	needMounts(t)
	t.Parallel()
	dir := t.TempDir()
	devUp(t, dir)
	second := filepath.Join(dir, "second")
	if err := os.Mkdir(second, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { varve(t, dir, "umount", "--lazy", second) })
	must(t, dir, "-c", "data/cluster", "mount", "-o", "ro,_netdev", "-l", "mount.log", second)
	if err := os.WriteFile(filepath.Join(second, "f"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write on a read-only mount: %v", err)
	}
	if _, errs, code := varve(t, dir, "-c", "data/cluster", "mount", "-l", "mount.log", second); code != exitFailed || !strings.Contains(errs, "already") {
		t.Errorf("mount over a mount: exit code %d, %q", code, errs)
	}
	must(t, dir, "umount", second)
	// As mount(8) calls it.
	helper := filepath.Join(dir, "mount.fuse.varve")
	if err := os.Symlink(binary, helper); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(helper, mountSource(filepath.Join(dir, "data", "cluster")), second, "-o", "rw,noexec,_netdev,nofail,x-systemd.automount", "-t", "fuse.varve")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	script := filepath.Join(second, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(script).Run(); !errors.Is(err, unix.EACCES) {
		t.Errorf("a program on a mount with noexec: %v", err)
	}
	must(t, dir, "umount", second)
	must(t, dir, "-c", "data/cluster", "mount", "-l", "mount.log", second)
	f, err := os.Create(filepath.Join(second, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, errs, code := varve(t, dir, "umount", second); code != exitRefused || !strings.Contains(errs, "in use") {
		t.Errorf("umount of what is in use: exit code %d, %q", code, errs)
	}
	sleeper := exec.Command("sleep", "600")
	sleeper.Dir = second
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sleeper.Process.Kill(); _ = sleeper.Wait() }()
	said, errs, code := varve(t, dir, "umount", "--lazy", second)
	for _, want := range []string{fmt.Sprintf("sleep (pid %d): %s", sleeper.Process.Pid, second), fmt.Sprintf("(pid %d): %s", os.Getpid(), filepath.Join(second, "f"))} {
		if code != exitDone || !strings.Contains(said, want) {
			t.Errorf("lazy umount: exit code %d, %q, %q; want %q in it", code, said, errs, want)
		}
	}
	if _, err := f.WriteString("still open"); err != nil {
		t.Errorf("write to what was open before a lazy umount: %v", err)
	}
}
