package disk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestIdentify(t *testing.T) {
	dir := t.TempDir()
	a, err := Identify(OS{}, dir)
	if err != nil {
		t.Fatal(err)
	}
	stable := a.Type == "ext4" || a.Type == "xfs"
	if stable && a.Inode == 0 || a.Type == "" || a.Mount {
		t.Fatalf("%+v", a)
	}
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	b, err := Identify(OS{}, sub)
	if err != nil || b.UUID != a.UUID || stable && b.Inode == a.Inode || b.Type != a.Type {
		t.Fatalf("%+v beside %+v, %v", b, a, err)
	}
	if root, err := Identify(OS{}, "/proc"); err != nil || !root.Mount || root.UUID != [16]byte{} {
		t.Fatalf("/proc: %+v %v", root, err)
	}
	if _, err := Identify(OS{}, filepath.Join(dir, "none")); err == nil {
		t.Fatal("a directory that is not there has an identity")
	}
	t.Logf("%s: %+v", dir, a)
}

func TestAllocated(t *testing.T) {
	d := new(Faulty)
	for name, c := range map[string]struct {
		fsys FS
		dir  string
	}{"os": {OS{}, t.TempDir()}, "faulty": {d, "/d"}} {
		t.Run(name, func(t *testing.T) {
			if err := c.fsys.MkdirAll(c.dir); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(c.dir, "f")
			f, err := c.fsys.Open(path, ReadWrite|Create)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Truncate(1 << 20); err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(make([]byte, 3*4096), 8192); err != nil {
				t.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
			fi, err := c.fsys.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if n, ok := Allocated(fi); n != 3*4096 || !ok {
				t.Fatalf("%d bytes of a sparse file are allocated, want %d", n, 3*4096)
			}
		})
	}
}

// A loop-mounted filesystem tells the UUID that it was made with, and its root from the directory below the mount.
func TestIdentifyMounted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts a filesystem, which needs root")
	}
	const uuid = "6d9ba4a5-6bc1-4ec2-8ee2-6a4d4d64b7f1"
	for typ, args := range map[string][]string{
		"ext4": {"mkfs.ext4", "-q", "-U", uuid},
		"xfs":  {"mkfs.xfs", "-q", "-m", "uuid=" + uuid},
	} {
		t.Run(typ, func(t *testing.T) {
			dir := t.TempDir()
			image, mnt := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
			if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 320<<20), os.Mkdir(mnt, 0o700)); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(args[0], append(args[1:], image)...).CombinedOutput(); err != nil {
				t.Skipf("%s: %v: %s", args[0], err, out)
			}
			below, err := Identify(OS{}, mnt)
			if err != nil || below.Mount {
				t.Fatalf("%+v %v", below, err)
			}
			if out, err := exec.Command("mount", "-o", "loop", image, mnt).CombinedOutput(); err != nil {
				t.Skipf("mount: %v: %s", err, out)
			}
			defer func() {
				if out, err := exec.Command("umount", mnt).CombinedOutput(); err != nil {
					t.Errorf("umount: %v: %s", err, out)
				}
			}()
			id, err := Identify(OS{}, mnt)
			if err != nil || !id.Mount || id.Type != typ || id.Inode == 0 {
				t.Fatalf("%+v %v", id, err)
			}
			if got := fmt.Sprintf("%x", id.UUID); got != strings.ReplaceAll(uuid, "-", "") {
				t.Fatalf("uuid %s, want %s", got, uuid)
			}
		})
	}
}
