package e2e

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lockFile in the environment makes the test binary lock a file and keep it, see runLocker.
const lockFile = "VARVE_E2E_LOCK"

// lockKind is one of the three kinds of locks.
type lockKind string

var lockKinds = []lockKind{"flock", "posix", "ofd"}

// set sets a lock, unlocks, or waits for a lock.
func (k lockKind) set(fd int, typ int16, wait bool) error {
	for {
		var err error
		if k == "flock" {
			how := map[int16]int{unix.F_RDLCK: unix.LOCK_SH, unix.F_WRLCK: unix.LOCK_EX, unix.F_UNLCK: unix.LOCK_UN}[typ]
			if !wait {
				how |= unix.LOCK_NB
			}
			err = unix.Flock(fd, how)
		} else {
			cmd := map[lockKind][2]int{"posix": {unix.F_SETLK, unix.F_SETLKW}, "ofd": {unix.F_OFD_SETLK, unix.F_OFD_SETLKW}}[k][0]
			if wait {
				cmd++ // F_SETLKW and F_OFD_SETLKW follow
			}
			err = unix.FcntlFlock(uintptr(fd), cmd, &unix.Flock_t{Type: typ, Start: 100, Len: 10})
		}
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// runLocker takes the lock "kind path", says so, and keeps it until it is killed.
func runLocker(what string) int {
	kind, path, _ := strings.Cut(what, " ")
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		err = lockKind(kind).set(fd, unix.F_WRLCK, false)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("locked")
	time.Sleep(10 * time.Minute)
	return 0
}

// locker starts a process that has the lock.
func locker(t *testing.T, kind lockKind, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), lockFile+"="+string(kind)+" "+path)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, _ := bufio.NewReader(out).ReadString('\n')
	if strings.TrimSpace(line) != "locked" {
		t.Fatalf("the process says %q", line)
	}
	return cmd
}

func openLocked(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// waits sets a lock that somebody has, and returns the outcome when that has given it up.
func (k lockKind) waits(t *testing.T, fd int) <-chan error {
	t.Helper()
	if err := k.set(fd, unix.F_WRLCK, false); !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("%s: lock of a locked file: %v", k, err)
	}
	done := make(chan error, 1)
	go func() { done <- k.set(fd, unix.F_WRLCK, true) }()
	select {
	case err := <-done:
		t.Fatalf("%s: the lock that another has was granted: %v", k, err)
	case <-time.After(100 * time.Millisecond):
	}
	return done
}

func granted(t *testing.T, what string, done <-chan error, limit time.Duration) {
	t.Helper()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	case <-time.After(limit):
		t.Fatalf("%s: not granted within %v", what, limit)
	}
}

// TestAcrossMounts has two mounts lock a file, append to one, and look at each other's times.
func TestAcrossMounts(t *testing.T) {
	need(t)
	t.Parallel() // it waits more than it works
	c := up(t, 1, 3, 2, "3:2")
	t.Run("appends", c.appends)
	t.Run("times", c.times)
	c.locks(t)
}

// locks has two mounts lock one file in each of the ways there are, and ends with the first mount killed.
func (c *cluster) locks(t *testing.T) {
	for _, kind := range lockKinds {
		t.Run(string(kind), func(t *testing.T) {
			a, b := filepath.Join(c.mounts[0], string(kind)), filepath.Join(c.mounts[1], string(kind))
			if err := os.WriteFile(a, make([]byte, 4096), 0o644); err != nil {
				t.Fatal(err)
			}
			fa, fb := openLocked(t, a), openLocked(t, b)
			defer unix.Close(fb)
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			busy := func(fd int, typ int16) {
				t.Helper()
				if err := kind.set(fd, typ, false); !errors.Is(err, unix.EAGAIN) {
					t.Fatalf("lock that another mount has: %v", err)
				}
			}
			must(kind.set(fa, unix.F_WRLCK, false))
			busy(fb, unix.F_RDLCK)
			must(kind.set(fa, unix.F_RDLCK, false))
			must(kind.set(fb, unix.F_RDLCK, false))
			busy(fb, unix.F_WRLCK)
			must(kind.set(fb, unix.F_UNLCK, false))
			must(kind.set(fa, unix.F_WRLCK, false))
			done := kind.waits(t, fb)
			must(kind.set(fa, unix.F_UNLCK, false))
			granted(t, "unlocked", done, time.Minute)
			must(kind.set(fb, unix.F_UNLCK, false))

			// Who closes the file and then has another open it finds it free there, though the kernel says it later.
			for i := range 50 {
				must(kind.set(fa, unix.F_WRLCK, false))
				must(unix.Close(fa))
				if err := kind.set(fb, unix.F_WRLCK, false); err != nil {
					t.Fatalf("round %d: lock of a file that was closed: %v", i, err)
				}
				must(kind.set(fb, unix.F_UNLCK, false))
				fa = openLocked(t, a)
			}
			must(unix.Close(fa))

			p := locker(t, kind, a)
			done = kind.waits(t, fb)
			p.Process.Kill()
			granted(t, "its process was killed", done, time.Minute)
			must(kind.set(fb, unix.F_UNLCK, false))
		})
	}
	// The mount itself is killed: all its locks are free when its lease is over.
	var waiting []<-chan error
	for _, kind := range lockKinds {
		fb := openLocked(t, filepath.Join(c.mounts[1], string(kind)))
		defer unix.Close(fb)
		locker(t, kind, filepath.Join(c.mounts[0], string(kind)))
		waiting = append(waiting, kind.waits(t, fb))
	}
	c.kill("mount1")
	begin := time.Now()
	for i, done := range waiting {
		granted(t, string(lockKinds[i])+": its mount was killed", done, 2*time.Minute)
	}
	t.Logf("locks of a killed mount were free after %v", time.Since(begin).Round(100*time.Millisecond))
}

// appends appends records of different lengths to one file from two mounts at once: none is lost, torn, or over another, each writer's
// are in its order, and size and times are the same on both mounts.
func (c *cluster) appends(t *testing.T) {
	const writers, records = 4, 60
	path := func(m int) string { return filepath.Join(c.mounts[m], "log") }
	if err := os.WriteFile(path(0), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	length := func(w, i int) int { return 16 + (w*7919+i*104729)%9000 }
	var all sync.WaitGroup
	errs := make([]error, writers)
	want := int64(0)
	for w := range writers {
		for i := range records {
			want += int64(length(w, i))
		}
		all.Go(func() {
			f, err := os.OpenFile(path(w%2), os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				errs[w] = err
				return
			}
			for i := range records {
				b := make([]byte, length(w, i))
				for k := range b {
					b[k] = byte(w*records + i)
				}
				binary.LittleEndian.PutUint32(b, uint32(len(b)))
				binary.LittleEndian.PutUint32(b[4:], uint32(w))
				binary.LittleEndian.PutUint32(b[8:], uint32(i))
				if _, err := f.Write(b); err != nil {
					errs[w] = err
					return
				}
			}
			errs[w] = f.Close()
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for m := range c.mounts {
		got, err := os.ReadFile(path(m))
		if err != nil {
			t.Fatal(err)
		}
		if int64(len(got)) != want {
			t.Errorf("mount %d: %d bytes, want %d", m+1, len(got), want)
		}
		next := make([]int, writers)
		for off := 0; off < len(got); {
			b := got[off:]
			if len(b) < 16 {
				t.Fatalf("mount %d: %d bytes at the end", m+1, len(b))
			}
			n, w, i := int(binary.LittleEndian.Uint32(b)), int(binary.LittleEndian.Uint32(b[4:])), int(binary.LittleEndian.Uint32(b[8:]))
			if w >= writers || i >= records || i != next[w] || n != length(w, i) || n > len(b) {
				t.Fatalf("mount %d: at %d: record %d of writer %d, %d bytes", m+1, off, i, w, n)
			}
			for _, v := range b[12:n] {
				if v != byte(w*records+i) {
					t.Fatalf("mount %d: record %d of writer %d is torn", m+1, i, w)
				}
			}
			next[w]++
			off += n
		}
	}
	sameTimes(t, path(0), path(1))
}

// sameTimes checks that two mounts show the same size and modification time, and returns the time.
func sameTimes(t *testing.T, a, b string) unix.Timespec {
	t.Helper()
	sa, err := statOf(a)
	if err != nil {
		t.Fatal(err)
	}
	sb, err := statOf(b)
	if err != nil {
		t.Fatal(err)
	}
	if sa.Size != sb.Size || sa.Mtim != sb.Mtim {
		t.Errorf("size %d, modified %v; through the other mount %d, %v", sa.Size, sa.Mtim, sb.Size, sb.Mtim)
	}
	return sa.Mtim
}

// times checks that a write through one mount is seen in the size and the modification time through the other, at once, also of a file
// that both have open, and that a time that was set stays until the next write.
func (c *cluster) times(t *testing.T) {
	a, b := filepath.Join(c.mounts[0], "f"), filepath.Join(c.mounts[1], "f")
	fa, err := os.OpenFile(a, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer fa.Close()
	size := int64(0)
	later := func(what string, f *os.File, before unix.Timespec) unix.Timespec {
		t.Helper()
		time.Sleep(12 * time.Millisecond) // more than a tick of the kernel's coarse clock
		n, err := f.WriteAt([]byte("some more"), size)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		size += int64(n)
		for _, p := range []string{b, a} {
			if st, err := statOf(p); err != nil || st.Size != size {
				t.Fatalf("%s: %v, size %d, want %d", what, err, st.Size, size)
			}
		}
		now := sameTimes(t, a, b)
		if now.Nano() <= before.Nano() {
			t.Errorf("%s: modified %v, was %v before", what, now, before)
		}
		return now
	}
	at := later("one mount alone", fa, unix.Timespec{})
	at = later("one mount alone, again", fa, at)
	fb, err := os.OpenFile(b, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	at = later("both have it open, the first writes", fa, at)
	later("both have it open, the second writes", fb, at)
	set := time.Unix(1_000_000_000, 123_456_789)
	if err := os.Chtimes(b, set, set); err != nil {
		t.Fatal(err)
	}
	if now := sameTimes(t, a, b); now.Nano() != set.UnixNano() {
		t.Errorf("modified %v, was set to %v", now, set)
	}
	at = later("after its time was set", fa, unix.NsecToTimespec(set.UnixNano()))
	if err := fb.Close(); err != nil {
		t.Fatal(err)
	}
	if now := sameTimes(t, a, b); now != at {
		t.Errorf("modified %v after a close, was %v", now, at)
	}
	if err := os.Chtimes(a, set, set); err != nil {
		t.Fatal(err)
	}
	if err := fa.Sync(); err != nil {
		t.Fatal(err)
	}
	if now := sameTimes(t, a, b); now.Nano() != set.UnixNano() {
		t.Errorf("modified %v after fsync, was set to %v", now, set)
	}
	later("again", fa, unix.NsecToTimespec(set.UnixNano()))
}
