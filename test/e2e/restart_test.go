package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/ledger"

	"golang.org/x/sys/unix"
)

// user is what uses a mount while its process is replaced: everything that it has is there before and after.
type user struct {
	t        *testing.T
	name     string // of its directory
	dir      string // its path
	w        *writer
	stop     atomic.Bool
	wg       sync.WaitGroup
	held     *os.File // with a flock
	unlinked *os.File
	open     *os.File // a directory, of which a part was read
	seen     []string
	mapped   []byte
	got      chan error // of somebody who waits for the flock
}

const userNames = 120

func use(t *testing.T, mount, name string) *user {
	t.Helper()
	name = filepath.Base(name)
	dir := filepath.Join(mount, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	u := &user{name: name, t: t, dir: dir, w: newWriter(t, filepath.Join(dir, "written"), 2048), got: make(chan error, 1)}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	u.held, err = os.Create(filepath.Join(dir, "lock"))
	must(err)
	must(unix.Flock(int(u.held.Fd()), unix.LOCK_EX))
	u.unlinked, err = os.Create(filepath.Join(dir, "unlinked"))
	must(err)
	_, err = u.unlinked.WriteString(strings.Repeat("unlinked", 1000))
	must(err)
	must(os.Remove(u.unlinked.Name()))
	names := filepath.Join(dir, "names")
	must(os.Mkdir(names, 0o755))
	for i := range userNames {
		must(os.WriteFile(filepath.Join(names, strings.Repeat("n", 100)+string(rune('a'+i%26))+string(rune('a'+i/26))), nil, 0o644))
	}
	u.open, err = os.Open(names)
	must(err)
	u.seen, err = u.open.Readdirnames(50)
	must(err)
	f, err := os.Create(filepath.Join(dir, "mapped"))
	must(err)
	must(f.Truncate(1 << 20))
	u.mapped, err = unix.Mmap(int(f.Fd()), 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(err)
	must(f.Close())
	copy(u.mapped[5000:], "before")
	u.wg.Add(1)
	go u.w.run(&u.stop, &u.wg)
	return u
}

// wait has somebody wait for the lock that is held. A restart breaks such a wait off, which takes it a second.
func (u *user) wait() {
	u.t.Helper()
	waits, err := os.OpenFile(u.held.Name(), os.O_RDWR, 0)
	if err != nil {
		u.t.Fatal(err)
	}
	go func() {
		err := unix.Flock(int(waits.Fd()), unix.LOCK_EX)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(int(waits.Fd()), unix.LOCK_EX)
		}
		u.got <- err
		waits.Close()
	}()
}

// locked fails the test if the lock can be had on another mount.
func (u *user) locked(other string) {
	u.t.Helper()
	f, err := os.OpenFile(filepath.Join(other, u.name, "lock"), os.O_RDWR, 0)
	if err != nil {
		u.t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		u.t.Errorf("the lock is held on the first mount, and could be had on the second: %v", err)
	}
}

// end ends the use and looks at everything, also from another mount.
func (u *user) end(other string) {
	t := u.t
	t.Helper()
	there := filepath.Join(other, u.name)
	select {
	case err := <-u.got:
		t.Errorf("who waited for a lock that is held had an answer: %v", err)
	default:
	}
	u.locked(other)
	u.stop.Store(true)
	u.wg.Wait()
	if u.w.err != nil {
		t.Error(u.w.err)
	}
	for _, dir := range []string{u.dir, there} {
		if err := u.w.verify(filepath.Join(dir, "written")); err != nil {
			t.Errorf("%s: %v", dir, err)
		}
	}
	b := make([]byte, 10000)
	if n, _ := u.unlinked.ReadAt(b, 0); string(b[:n]) != strings.Repeat("unlinked", 1000) {
		t.Errorf("the removed file has %d bytes", n)
	}
	rest, err := u.open.Readdirnames(-1)
	if all := append(u.seen, rest...); err != nil || len(all) != userNames {
		t.Errorf("the directory has %d names, want %d: %v", len(all), userNames, err)
	}
	if string(u.mapped[5000:5006]) != "before" {
		t.Errorf("the mapped file has %q", u.mapped[5000:5006])
	}
	copy(u.mapped[5000:], "after!")
	if err := unix.Msync(u.mapped, unix.MS_SYNC); err != nil {
		t.Error(err)
	}
	if err := unix.Munmap(u.mapped); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(there, "mapped")); err != nil || string(b[5000:5006]) != "after!" {
		t.Errorf("the mapped file on the other mount: %v", err)
	}
	if err := u.held.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-u.got:
		if err != nil {
			t.Errorf("who waited for the lock: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("who waited for the lock has not got it")
	}
	u.unlinked.Close()
	u.open.Close()
}

// TestRestart: the process of a mount is replaced again and again, by programs that work and by ones that do not, while the mount is used, and whoever uses it sees a pause.
func TestRestart(t *testing.T) {
	need(t)
	t.Setenv("VARVE_TRANSPORT", "dev")
	c := up(t, 1, 2, 2, "2:1")
	t.Run("dev", func(t *testing.T) { onRestart(t, c, c.mounts[0]) })
	t.Run("uring", func(t *testing.T) {
		if err := os.WriteFile(uringSwitch, []byte("Y"), 0); err != nil {
			t.Skip("FUSE over io_uring:", err)
		}
		dir := filepath.Join(t.TempDir(), "mnt")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		c.must(60*time.Second, "-c", c.name(), "mount", "-o", "transport=uring", "-l", filepath.Join(c.dir, "run", "uring.log"), dir)
		t.Cleanup(func() {
			if out, err := c.varve(60*time.Second, "umount", "--lazy", dir); err != nil {
				t.Errorf("umount: %v, %s", err, out)
			}
		})
		onRestart(t, c, dir)
	})
}

func onRestart(t *testing.T, c *cluster, dir string) {
	u := use(t, dir, t.Name())
	pid := 0
	end := time.Now().Add(soak(t, 0))
	for i := 0; i < 5 || time.Now().Before(end); i++ {
		var now struct {
			PID    int           `json:"pid"`
			Times  int           `json:"times"`
			Paused time.Duration `json:"pause_ns"`
		}
		if err := json.Unmarshal([]byte(c.must(60*time.Second, "--json", "restart", dir)), &now); err != nil {
			t.Fatal(err)
		}
		t.Logf("restart %d: a pause of %v", now.Times, now.Paused.Round(time.Millisecond))
		if now.Times != i+1 || pid != 0 && now.PID != pid {
			t.Errorf("the process %d has restarted %d times, want %d and %d", now.PID, now.Times, pid, i+1)
		}
		if pid = now.PID; i == 3 {
			u.wait()
		}
		u.locked(c.mounts[1])
	}
	var both sync.WaitGroup
	for range 2 { // at once
		both.Go(func() {
			if out, err := c.varve(60*time.Second, "restart", dir); err != nil {
				t.Errorf("restart beside another one: %v, %s", err, out)
			}
		})
	}
	both.Wait()
	broken := filepath.Join(t.TempDir(), "varve") // works on trial, and fails when it counts
	if err := os.WriteFile(broken, []byte("#!/bin/sh\n[ \"$1\" = --trial=true ] || set -- mount -f -o nonsense /\nexec "+varveBinary+" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for program, want := range map[string]string{
		"/bin/false": "served as before", "/nowhere": "served as before", broken: "nonsense", u.w.path: "on the mount itself",
	} {
		out, err := c.varve(60*time.Second, "restart", "--program", program, dir)
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("restart with %s: %v, %s; want %q in it", program, err, out, want)
		}
		u.locked(c.mounts[1])
	}
	if dead, errs := ledger.Dead("/run/varve/sessions", c.uuid()); len(dead) > 0 || len(errs) > 0 { // somebody would end the mount's session
		t.Errorf("sessions of processes that have died: %v, %v", dead, errs)
	}
	u.end(c.mounts[1])
	t.Logf("%d writes, the longest took %v", u.w.writes, u.w.stall.Round(time.Millisecond))
}
