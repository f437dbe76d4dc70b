package capture

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNames finds the file that this process has open, below a directory that is no mount, and holds nothing open itself.
func TestNames(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "vm", "a.img")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, make([]byte, 12345), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	n, err := NewNames(dir)
	if err != nil {
		t.Fatal(err)
	}
	pid := uint32(os.Getpid())
	want := File{Inode: st.Ino, Size: 12345, Path: "vm/a.img"}
	if got, isNew, ok := n.Find(st.Ino, pid); !ok || !isNew || got != want {
		t.Errorf("%+v, new %v, found %v; want %+v", got, isNew, ok, want)
	}
	if got, isNew, ok := n.Find(st.Ino, pid); !ok || isNew || got != want {
		t.Errorf("again: %+v, new %v, found %v", got, isNew, ok)
	}
	if got, _, ok := n.Find(st.Ino+1<<40, pid); ok {
		t.Errorf("what does not exist is %+v", got)
	}
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if target, err := os.Readlink(l); err == nil && strings.HasPrefix(target, dir) && target != path {
			t.Errorf("%s is open", target)
		}
	}
	for glob, keeps := range map[string]bool{"*.img": true, "vm/*.img": true, "/vm/a.img": true, "*.raw": false, "*/b.img": false, "a.img": true} {
		if got := (Wanted{glob}).keeps("vm/a.img"); got != keeps {
			t.Errorf("pattern %s: %v", glob, got)
		}
	}
	if (Wanted{"["}).Check() == nil || (Wanted{"*.img"}).Check() != nil {
		t.Error("patterns are not checked")
	}
}
