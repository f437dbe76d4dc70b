package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/fuse"

	"golang.org/x/sys/unix"
)

func TestHelperArgs(t *testing.T) {
	for _, tc := range []struct {
		args string
		want string // "": refused
		fake bool
	}{
		{"varve://main /mnt -o rw,_netdev,nofail", "-c " + clustersDir + "/main mount -o rw,_netdev,nofail -- /mnt", false},
		{"varve:///srv/x%20y /mnt", "-c /srv/x y mount -- /mnt", false},
		{"main /mnt -o ro -o bg,retry=5 -t fuse.varve -n", "-c main mount -o ro,bg,retry=5 -- /mnt", false},
		{"-sfv -oro main /mnt", "-c main mount -o ro -- /mnt", true},
		{"main /mnt -s -o ro,something,errors=fail", "-c main mount -o ro,errors=fail -- /mnt", false},
		{"main /mnt -r -o noatime,nodev", "-c main mount -o ro,noatime,nodev -- /mnt", false},
		{"main /mnt -o x-systemd.requires=libvirtd.service,x-systemd.mount-timeout=30,comment=hello", "-c main mount -o x-systemd.requires=libvirtd.service,x-systemd.mount-timeout=30,comment=hello -- /mnt", false},
		{"main /mnt -o something", "", false},
		{"main /mnt -o remount,ro", "restart --options defaults,ro -- /mnt", false},
		{"main /mnt -o rw,relatime,remount,user_id=0,group_id=0,max_read=1048576", "restart --options defaults,rw,relatime,x-varve.shown -- /mnt", false},
		{"main /mnt -o user_id=0", "", false},
		{"main /mnt -o retry=0", "", false},
		{"main /mnt -N 123", "", false},
		{"main /mnt -o", "", false},
		{"main", "", false},
		{"main /mnt more", "", false},
		{"main /mnt -z", "", false},
	} {
		got, fake, err := helperArgs(strings.Fields(tc.args))
		if tc.want == "" {
			if err == nil || exitCode(err) != exitUsage {
				t.Errorf("%s: %q, %v; want that it is refused", tc.args, got, err)
			}
			continue
		}
		if err != nil || strings.Join(got, " ") != tc.want || fake != tc.fake {
			t.Errorf("%s:\n got %q, fake %t, %v\nwant %q", tc.args, strings.Join(got, " "), fake, err, tc.want)
		}
	}
	if isHelper("/usr/bin/varve") || !isHelper("/sbin/mount.varve") || !isHelper("mount.fuse.varve") {
		t.Error("names of the helper")
	}
}

func TestMountFlags(t *testing.T) {
	o, err := parseMountOptions([]string{"nosuid,nodev", "noexec,sync,guard,bg", `context="a,b",x-a`})
	if err == nil {
		t.Errorf("an option that is unknown is accepted: %+v", o)
	}
	if o, err = parseMountOptions([]string{"nosuid,nodev", "noexec,sync,guard,bg"}); err != nil ||
		o.flags != unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_SYNCHRONOUS || !o.guard || !o.background {
		t.Errorf("%+v, %v", o, err)
	}
}

// TestMountWaits: a mount whose cluster is not there goes on in the background and is there when the cluster is; it can be called off.
func TestMountWaits(t *testing.T) {
	needMounts(t)
	t.Parallel()
	dir := t.TempDir()
	devUp(t, dir)
	must(t, dir, "dev", "down", "--dir", "data")
	place := filepath.Join(dir, "place")
	if err := os.Mkdir(place, 0o755); err != nil {
		t.Fatal(err)
	}
	mount := func(options string) (string, int) {
		t.Helper()
		_, errs, code := varve(t, dir, "-c", "data/cluster", "mount", "-o", options, "-l", "mount.log", place)
		return errs, code
	}
	t.Cleanup(func() { varve(t, dir, "umount", "--lazy", place) })
	if errs, code := mount("retry=1"); code != exitUnreachable {
		t.Errorf("mount of a cluster that is not there: exit code %d, %q", code, errs)
	}
	begin := time.Now()
	if errs, code := mount("bg,retry=1"); code != exitDone || !strings.Contains(errs, "not reached yet") {
		t.Fatalf("mount in the background: exit code %d, %q", code, errs)
	}
	t.Logf("the command came back after %v", time.Since(begin).Round(100*time.Millisecond))
	if errs, code := mount("bg,retry=1"); code == exitDone || !strings.Contains(errs, "another process waits") {
		t.Errorf("a second one: exit code %d, %q", code, errs)
	}
	must(t, dir, "umount", place)
	if _, errs, code := varve(t, dir, "umount", place); code != exitFailed || !strings.Contains(errs, "no varve filesystem") {
		t.Errorf("umount after it was called off: exit code %d, %q", code, errs)
	}
	if errs, code := mount("bg,retry=1"); code != exitDone {
		t.Fatalf("mount in the background: exit code %d, %q", code, errs)
	}
	must(t, dir, "dev", "up", "-d", "--dir", "data", "--mount", "mnt")
	waitFor(t, "the mount", func() bool {
		yes, err := fuse.IsMounted(place)
		return err == nil && yes
	})
	if err := os.WriteFile(filepath.Join(place, "f"), []byte("x"), 0o644); err != nil {
		t.Error(err)
	}
	must(t, dir, "umount", place)
	left, err := filepath.Glob(filepath.Join(waitDir(), "waiting-*"))
	if err != nil || slices.Contains(left, waitFile(place)) {
		t.Errorf("left: %q, %v", left, err)
	}
}

// TestGuard: nothing can be put into a guarded mount point while nothing is mounted there.
func TestGuard(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make a directory immutable")
	}
	dir := filepath.Join(t.TempDir(), "place")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "vm.img")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := guardPlace(dir); err != nil && strings.Contains(err.Error(), "has no immutable directories") {
		t.Skip(err)
	} else if exitCode(err) != exitRefused {
		t.Errorf("a directory that is not empty: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := guardPlace(dir); err != nil {
		t.Skip("this filesystem cannot: ", err)
	}
	defer func() {
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0); err != nil {
			t.Error(err)
		}
	}()
	if err := guardPlace(dir); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if err := os.WriteFile(file, nil, 0o644); err == nil {
		t.Error("a file was made in a guarded mount point")
	}
	must := []error{unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m")}
	if must[0] == nil {
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			t.Errorf("on what is mounted there: %v", err)
		}
		must = append(must, unix.Unmount(dir, 0))
	}
	for _, err := range must {
		if err != nil {
			t.Error(err)
		}
	}
}
