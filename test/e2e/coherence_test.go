package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// seen is one thing that is changed through one mount and then looked at through another, which has looked before.
type seen struct {
	name   string
	change func(dir string) error
	check  func(dir string) error
}

func statOf(path string) (st unix.Stat_t, err error) { return st, unix.Lstat(path, &st) }

func there(path string) error { _, err := statOf(path); return err }

func gone(path string) error {
	if _, err := statOf(path); !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%s: %v, want that it is not there", path, err)
	}
	return nil
}

func differs(what string, got, want any) error {
	if got != want {
		return fmt.Errorf("%s: got %v, want %v", what, got, want)
	}
	return nil
}

// changesSeen are done one after the other in an empty directory.
var changesSeen = []seen{
	{"create", func(d string) error { return os.WriteFile(filepath.Join(d, "f"), nil, 0o644) }, func(d string) error { return there(filepath.Join(d, "f")) }},
	{"chmod", func(d string) error { return os.Chmod(filepath.Join(d, "f"), 0o600) }, func(d string) error {
		st, err := statOf(filepath.Join(d, "f"))
		return errors.Join(err, differs("mode", st.Mode&0o777, uint32(0o600)))
	}},
	{"write", func(d string) error { return os.WriteFile(filepath.Join(d, "f"), make([]byte, 12345), 0o600) }, func(d string) error {
		st, err := statOf(filepath.Join(d, "f"))
		return errors.Join(err, differs("size", st.Size, int64(12345)))
	}},
	{"truncate", func(d string) error { return os.Truncate(filepath.Join(d, "f"), 77) }, func(d string) error {
		st, err := statOf(filepath.Join(d, "f"))
		return errors.Join(err, differs("size", st.Size, int64(77)))
	}},
	{"link", func(d string) error { return os.Link(filepath.Join(d, "f"), filepath.Join(d, "g")) }, func(d string) error {
		a, err := statOf(filepath.Join(d, "f"))
		b, err2 := statOf(filepath.Join(d, "g"))
		return errors.Join(err, err2, differs("inode", a.Ino, b.Ino), differs("links", uint64(a.Nlink), uint64(2)))
	}},
	{"rename over a file", func(d string) error {
		return errors.Join(os.WriteFile(filepath.Join(d, "h"), []byte("h"), 0o644), os.Rename(filepath.Join(d, "h"), filepath.Join(d, "g")))
	}, func(d string) error {
		a, err := statOf(filepath.Join(d, "f"))
		b, err2 := statOf(filepath.Join(d, "g"))
		return errors.Join(err, err2, gone(filepath.Join(d, "h")), differs("links", uint64(a.Nlink), uint64(1)), differs("size", b.Size, int64(1)))
	}},
	{"symlink", func(d string) error { return os.Symlink("g", filepath.Join(d, "s")) }, func(d string) error {
		to, err := os.Readlink(filepath.Join(d, "s"))
		return errors.Join(err, differs("target", to, "g"))
	}},
	{"mkdir", func(d string) error {
		return errors.Join(os.MkdirAll(filepath.Join(d, "one", "in"), 0o755), os.Mkdir(filepath.Join(d, "two"), 0o755))
	}, func(d string) error {
		return errors.Join(there(filepath.Join(d, "one", "in")), there(filepath.Join(d, "two")))
	}},
	{"rename of a directory over a directory", func(d string) error { return unix.Rename(filepath.Join(d, "one"), filepath.Join(d, "two")) }, func(d string) error {
		return errors.Join(gone(filepath.Join(d, "one")), there(filepath.Join(d, "two", "in")))
	}},
	{"xattr", func(d string) error { return unix.Setxattr(filepath.Join(d, "g"), "user.x", []byte("1"), 0) }, func(d string) error {
		var b [8]byte
		n, err := unix.Getxattr(filepath.Join(d, "g"), "user.x", b[:])
		return errors.Join(err, differs("value", string(b[:max(n, 0)]), "1"))
	}},
	{"rmdir", func(d string) error {
		return errors.Join(os.Remove(filepath.Join(d, "two", "in")), os.Remove(filepath.Join(d, "two")))
	}, func(d string) error { return gone(filepath.Join(d, "two")) }},
	{"unlink", func(d string) error {
		return errors.Join(os.Remove(filepath.Join(d, "f")), os.Remove(filepath.Join(d, "g")), os.Remove(filepath.Join(d, "s")))
	}, func(d string) error {
		left, err := os.ReadDir(d)
		return errors.Join(err, gone(filepath.Join(d, "f")), gone(filepath.Join(d, "g")), differs("names left", len(left), 0))
	}},
}

// lookAround fills the caches of a mount.
func lookAround(dir string) {
	for range 3 {
		for _, n := range []string{"f", "g", "h", "s", "one", "two", "one/in", "two/in"} {
			_, _ = statOf(filepath.Join(dir, n))
		}
		_, _ = os.ReadDir(dir)
		_, _ = statOf(dir)
	}
}

// TestMountsSeeEachOther changes things through one mount and looks at once through the other, which had looked before; also while the
// leader is killed.
func TestMountsSeeEachOther(t *testing.T) {
	need(t)
	c := up(t, 3, 3, 2, "3:2")
	for round := range 10 {
		one, other := c.mounts[round%2], c.mounts[1-round%2]
		name := fmt.Sprint("dir", round)
		if err := os.Mkdir(filepath.Join(one, name), 0o755); err != nil {
			t.Fatal(err)
		}
		for i, s := range changesSeen {
			for _, m := range c.mounts {
				lookAround(filepath.Join(m, name))
			}
			if round == 5 && i == 4 {
				c.kill(c.mustLead())
			}
			if err := s.change(filepath.Join(one, name)); err != nil {
				t.Fatalf("round %d, %s: %v", round, s.name, err)
			}
			for _, m := range []string{other, one} {
				if err := s.check(filepath.Join(m, name)); err != nil {
					t.Fatalf("round %d, %s, seen through %s: %v", round, s.name, filepath.Base(m), err)
				}
			}
		}
	}
}

// TestStoppedMountDelaysNobodyForLong stops the process that serves a mount, changes what it may have cached through another, and looks at
// what the stopped mount's kernel says.
func TestStoppedMountDelaysNobodyForLong(t *testing.T) {
	need(t)
	c := up(t, 3, 3, 2, "3:2")
	file := "d" // not a file: the first mount would hold a lease of that
	if err := os.Mkdir(filepath.Join(c.mounts[0], file), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		lookAround(filepath.Join(c.mounts[0], file))
	}
	pid := c.pid("mount1")
	if pid == 0 {
		t.Fatal("mount1 is not running")
	}
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	awake := false
	wake := func() {
		if !awake {
			awake = true
			_ = unix.Kill(pid, unix.SIGCONT)
		}
	}
	defer wake()
	begin := time.Now()
	if err := os.Chmod(filepath.Join(c.mounts[1], file), 0o700); err != nil {
		t.Fatal(err)
	}
	took := time.Since(begin)
	t.Logf("the change took %v while the other mount was stopped", took.Round(time.Millisecond))
	if limit := time.Minute; took > limit { // the lease of what is cached is 5 s; a session's is 10 s
		t.Errorf("the change took %v, want at most %v", took, limit)
	}
	mode := make(chan uint32, 1)
	go func() {
		st, err := statOf(filepath.Join(c.mounts[0], file))
		if err != nil {
			t.Error(err)
		}
		mode <- st.Mode & 0o777
	}()
	got := []uint32{}
	select { // the kernel asks the stopped process, or knows what is right: it must not say what was
	case m := <-mode:
		got = append(got, m)
	case <-time.After(time.Second):
		wake()
		select {
		case m := <-mode:
			got = append(got, m)
		case <-time.After(time.Minute):
			t.Fatal("no answer after the process was woken up")
		}
	}
	wake()
	st, err := statOf(filepath.Join(c.mounts[0], file))
	if err != nil {
		t.Fatal(err)
	}
	if got = append(got, st.Mode&0o777); !slices.Equal(got, []uint32{0o700, 0o700}) {
		t.Errorf("modes %o, want 700", got)
	}
}
