package store

import (
	"errors"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
)

// failOnce makes a store fail by a write or sync of the medium.
func failOnce(t *testing.T, d *disk.Faulty, s *Store, kind disk.OpKind, cause error) {
	t.Helper()
	d.Inject(func(op disk.Op) error {
		if op.Kind == kind && strings.HasSuffix(op.Path, ".chk") {
			return cause
		}
		return nil
	})
	err := errors.Join(write(s, 1, 1, 4096, make([]byte, 4096)), s.Flush(1, 1))
	wantCode(t, err, fserr.IO)
	d.Inject(nil)
	if s.Close() == nil {
		t.Fatal("Close of a failed store succeeds")
	}
}

// A disk that failed is not used again before an administrator says so.
func TestRetired(t *testing.T) {
	for _, kind := range []disk.OpKind{disk.OpSync, disk.OpWrite} {
		t.Run(string(kind), func(t *testing.T) {
			d := new(disk.Faulty)
			o := testOptions(d, "/d")
			s := mustOpen(t, o)
			must(t, s.Create(1, 1))
			must(t, write(s, 1, 1, 0, []byte("kept")))
			must(t, s.Flush(1, 1))
			failOnce(t, d, s, kind, syscall.EIO)
			for range 2 {
				_, err := Open(o)
				if !errors.Is(err, ErrRetired) {
					t.Fatalf("a retired disk starts again: %v", err)
				}
				for _, want := range []string{string(kind), "chunk 0000000000000001", "input/output error", "replace the disk", "varve cs readmit -r /d"} {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%q does not say %q", err, want)
					}
				}
			}
			gone, err := RetirementOf(d, "/d")
			if err != nil || gone == nil || gone.Time.IsZero() || !strings.Contains(gone.Cause, "input/output") {
				t.Fatalf("%+v %v", gone, err)
			}
			if r, err := Check(t.Context(), o, CheckOptions{}); err != nil || r.Retired == "" || r.Count != 1 {
				t.Fatalf("%+v %v", r, err)
			}
			d.Crash(rand.New(rand.NewSource(1)))
			was, err := Readmit(o)
			if err != nil || len(was) != 1 || !strings.Contains(was[0], "retired: ") {
				t.Fatal(was, err)
			}
			s = mustOpen(t, o)
			must(t, s.Accept(1)) // it was not stopped cleanly
			if got, err := read(s, 1, 1, 0, 4096); err != nil || string(got[:4]) != "kept" {
				t.Fatal(err)
			}
			must(t, s.Close())
			if was, err := Readmit(o); was != nil || err != nil {
				t.Fatal(was, err)
			}
		})
	}
}

// What is no failure of the disk ends the process's use of it, and no more.
func TestShortageDoesNotRetire(t *testing.T) {
	d := new(disk.Faulty)
	o := testOptions(d, "/d")
	s := mustOpen(t, o)
	must(t, s.Create(1, 1))
	must(t, write(s, 1, 1, 0, []byte("kept")))
	failOnce(t, d, s, disk.OpWrite, syscall.ENOMEM)
	s = mustOpen(t, o)
	must(t, s.Accept(1))
	must(t, s.Close())
	// A file that cannot be opened for want of descriptors fails the request and nothing else.
	s = mustOpen(t, o)
	d.Inject(func(op disk.Op) error {
		if op.Kind == disk.OpOpen && strings.HasSuffix(op.Path, ".chk") {
			return syscall.EMFILE
		}
		return nil
	})
	_, err := read(s, 1, 1, 0, 4096)
	wantCode(t, err, fserr.Unavailable)
	d.Inject(nil)
	_, err = read(s, 1, 1, 0, 4096)
	must(t, err)
	must(t, s.Close())
}

// A retirement that was torn counts as one.
func TestTornRetirement(t *testing.T) {
	d := new(disk.Faulty)
	o := testOptions(d, "/d")
	must(t, mustOpen(t, o).Close())
	must(t, d.Flip("/d/label", slotSize+700))
	if _, err := Open(o); !errors.Is(err, ErrRetired) {
		t.Fatal(err)
	}
	was, err := Readmit(o)
	if err != nil || len(was) != 1 {
		t.Fatal(was, err)
	}
	must(t, mustOpen(t, o).Close())
	// A damaged identity is refused as well: the directory may be anybody's.
	must(t, d.Flip("/d/label", 20))
	if _, err := Open(o); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	if was, err := Readmit(o); err != nil || len(was) != 1 {
		t.Fatal(was, err)
	}
	must(t, mustOpen(t, o).Close())
}

func TestRefusesOtherDirectories(t *testing.T) {
	mine := disk.Identity{UUID: [16]byte{1}, Inode: 100, Mount: true, Type: "xfs"}
	for name, tc := range map[string]struct {
		change func(o *Options, at *disk.Identity)
		want   string
		code   fserr.Code
	}{
		"same":             {func(o *Options, at *disk.Identity) {}, "", 0},
		"other cluster":    {func(o *Options, at *disk.Identity) { o.Cluster[3]++ }, "of cluster", fserr.WrongCluster},
		"other server":     {func(o *Options, at *disk.Identity) { o.Server[3]++ }, "another server", fserr.IO},
		"other filesystem": {func(o *Options, at *disk.Identity) { at.UUID[5]++ }, "made on the filesystem", fserr.IO},
		"other type":       {func(o *Options, at *disk.Identity) { at.Type, at.UUID, at.Inode = "ext4", [16]byte{}, 0 }, "made on xfs and is on ext4", fserr.IO},
		"not mounted":      {func(o *Options, at *disk.Identity) { at.Mount = false }, "is its filesystem mounted", fserr.IO},
		"copy":             {func(o *Options, at *disk.Identity) { at.Inode++ }, "it is a copy", fserr.IO},
		"knows nothing":    {func(o *Options, at *disk.Identity) { *at = disk.Identity{} }, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			d := new(disk.Faulty)
			d.SetIdentity(mine)
			o := testOptions(d, "/d")
			o.Server = [16]byte{9}
			must(t, mustOpen(t, o).Close())
			at := mine
			tc.change(&o, &at)
			d.SetIdentity(at)
			s, err := Open(o)
			if tc.want == "" {
				must(t, err)
				must(t, s.Close())
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || fserr.Of(err) != tc.code {
				t.Fatalf("%v: want %q", err, tc.want)
			}
			was, rerr := Readmit(o)
			if tc.code == fserr.WrongCluster || name == "other server" {
				if rerr == nil {
					t.Fatal("somebody else's store was readmitted")
				}
				return
			}
			if rerr != nil || len(was) != 1 {
				t.Fatal(was, rerr)
			}
			must(t, mustOpen(t, o).Close())
		})
	}
}

// Existing refuses an empty directory, and one that is not there, and takes what an older version made.
func TestExisting(t *testing.T) {
	onBoth(t, func(t *testing.T, o Options) {
		o.Existing = true
		o.Dir = filepath.Join(o.Dir, "sub")
		if _, err := Open(o); err == nil || !strings.Contains(err.Error(), "mounted?") {
			t.Fatal(err)
		}
		must(t, o.FS.MkdirAll(o.Dir))
		if _, err := Open(o); !errors.Is(err, ErrMoved) || !strings.Contains(err.Error(), "mounted?") {
			t.Fatal(err)
		}
		o.Existing = false
		must(t, mustOpen(t, o).Close())
		o.Existing = true
		must(t, mustOpen(t, o).Close())
		must(t, o.FS.Remove(filepath.Join(o.Dir, labelName)))
		must(t, mustOpen(t, o).Close())
		if _, err := o.FS.Stat(filepath.Join(o.Dir, labelName)); err != nil {
			t.Fatal(err)
		}
		first := mustOpen(t, o)
		if _, err := Open(o); err == nil || !strings.Contains(err.Error(), "already in use") {
			t.Fatalf("opened twice: %v", err)
		}
		if _, err := Check(t.Context(), o, CheckOptions{}); err == nil || !strings.Contains(err.Error(), "already in use") {
			t.Fatalf("checked while open: %v", err)
		}
		if _, err := Readmit(o); err == nil || !strings.Contains(err.Error(), "already in use") {
			t.Fatalf("readmitted while open: %v", err)
		}
		must(t, first.Close())
	})
}

// mounted makes a filesystem of a type in an image, mounts it and returns the directory and how to unmount it.
func mounted(t *testing.T, typ string, bytes int64) (dir string, umount func(), mount func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts a filesystem, which needs root")
	}
	base := t.TempDir()
	image, dir := filepath.Join(base, "image"), filepath.Join(base, "mnt")
	must(t, errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, bytes), os.Mkdir(dir, 0o700)))
	if out, err := exec.Command("mkfs."+typ, "-q", image).CombinedOutput(); err != nil {
		t.Skipf("mkfs.%s: %v: %s", typ, err, out)
	}
	up := false
	mount = func() {
		t.Helper()
		if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
			t.Skipf("mount: %v: %s", err, out)
		}
		up = true
	}
	umount = func() {
		t.Helper()
		if !up {
			return
		}
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Fatalf("umount: %v: %s", err, out)
		}
		up = false
	}
	t.Cleanup(func() {
		if up {
			_ = exec.Command("umount", "-l", dir).Run()
		}
	})
	mount()
	return dir, umount, mount
}

// A store on a filesystem of its own does not start when that is not mounted, nor from a copy, and does when it is back.
func TestMount(t *testing.T) {
	for _, typ := range []string{"ext4", "xfs"} {
		t.Run(typ, func(t *testing.T) {
			dir, umount, mount := mounted(t, typ, 320<<20)
			o := testOptions(disk.OS{}, dir)
			s := mustOpen(t, o)
			must(t, s.Create(1, 1))
			must(t, write(s, 1, 1, 0, make([]byte, chunk.BlockSize)))
			must(t, s.Close())
			o.Existing = true
			other := filepath.Join(t.TempDir(), "copy")
			if out, err := exec.Command("cp", "-a", dir, other).CombinedOutput(); err != nil {
				t.Fatalf("cp: %v: %s", err, out)
			}
			oc := o
			oc.Dir = other
			if _, err := Open(oc); !errors.Is(err, ErrMoved) {
				t.Fatalf("a copy on another filesystem starts: %v", err)
			}
			umount()
			if _, err := Open(o); !errors.Is(err, ErrMoved) || !strings.Contains(err.Error(), "mounted?") {
				t.Fatalf("the empty mount point starts: %v", err)
			}
			// Something that looks like the store below the mount point is not it.
			if out, err := exec.Command("cp", "-a", other+"/.", dir).CombinedOutput(); err != nil {
				t.Fatalf("cp: %v: %s", err, out)
			}
			if _, err := Open(o); !errors.Is(err, ErrMoved) || !strings.Contains(err.Error(), "is its filesystem mounted?") {
				t.Fatalf("a copy below the mount point starts: %v", err)
			}
			mount()
			must(t, mustOpen(t, o).Close())
			umount()
		})
	}
}

// A copy on the same filesystem is one as well.
func TestCopyBeside(t *testing.T) {
	dir := t.TempDir()
	if at, err := disk.Identify(disk.OS{}, dir); err != nil || at.Inode == 0 {
		t.Skipf("%s has no stable inode numbers", at.Type)
	}
	o := testOptions(disk.OS{}, filepath.Join(dir, "a"))
	must(t, mustOpen(t, o).Close())
	if out, err := exec.Command("cp", "-a", o.Dir, filepath.Join(dir, "b")).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	o.Dir = filepath.Join(dir, "b")
	if _, err := Open(o); !errors.Is(err, ErrMoved) || !strings.Contains(err.Error(), "copy") {
		t.Fatal(err)
	}
	must(t, os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "c")))
	o.Dir = filepath.Join(dir, "c")
	must(t, mustOpen(t, o).Close())
}
