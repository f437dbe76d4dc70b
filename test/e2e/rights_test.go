package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// as runs a program as a user with supplementary groups and returns what it said on its standard error, "" if it succeeded.
func as(uid, gid uint32, groups []uint32, name string, args ...string) string {
	cmd := exec.Command(name, args...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid, Groups: groups}}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return said.String() + err.Error()
	}
	return ""
}

// TestRightsSeenAtOnce: what a user may do through one mount, whose kernel has names and attributes in its cache, follows from what was
// changed through another a moment ago.
func TestRightsSeenAtOnce(t *testing.T) {
	need(t, "stat", "rm", "chmod", "touch")
	c := up(t, 1, 3, 2, "3:2")
	const user, group, friends, stranger = 2001, 2001, 2002, 2003
	for _, m := range append(c.mounts, filepath.Dir(c.mounts[0]), filepath.Dir(filepath.Dir(c.mounts[0]))) {
		if err := os.Chmod(m, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	one, two := filepath.Join(c.mounts[0], "d"), filepath.Join(c.mounts[1], "d")
	if err := errors.Join(os.Mkdir(one, 0o755), os.Chown(one, 0, friends), os.Chmod(one, 0o2770|os.ModeSetgid), os.WriteFile(filepath.Join(one, "f"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(one, "f")
	allowed := func(what, said string) {
		t.Helper()
		if said != "" {
			t.Errorf("%s: %s", what, said)
		}
	}
	refused := func(what, said, why string) {
		t.Helper()
		if !strings.Contains(said, why) {
			t.Errorf("%s: got %q, want %q", what, said, why)
		}
	}
	for range 2 {
		allowed("stat by a supplementary group", as(user, group, []uint32{friends}, "stat", file))
	}
	refused("stat by others", as(stranger, stranger, nil, "stat", file), "Permission denied")
	if err := os.Chmod(two, 0o700); err != nil {
		t.Fatal(err)
	}
	refused("stat after the group's right was taken", as(user, group, []uint32{friends}, "stat", file), "Permission denied")
	if err := os.Chmod(two, 0o775|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	allowed("stat after it was given back", as(user, group, []uint32{friends}, "stat", file))
	mine := filepath.Join(one, "mine")
	allowed("create by the group", as(user, group, []uint32{friends}, "touch", mine))
	if st, err := statOf(filepath.Join(two, "mine")); err != nil || st.Uid != user || st.Gid != friends {
		t.Errorf("made in a directory with setgid: %v, user %d, group %d, want %d and %d", err, st.Uid, st.Gid, user, friends)
	}

	// Sticky: the kernel compares owners that it knows.
	if err := errors.Join(os.Chmod(two, 0o777|os.ModeSticky)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		allowed("stat of what is one's own", as(user, group, nil, "stat", mine))
	}
	if err := os.Chown(filepath.Join(two, "mine"), stranger, stranger); err != nil {
		t.Fatal(err)
	}
	refused("chmod of what has become another's", as(user, group, nil, "chmod", "600", mine), "not permitted")
	refused("rm of what has become another's", as(user, group, nil, "rm", "-f", mine), "not permitted")
	allowed("rm by the owner", as(stranger, stranger, nil, "rm", "-f", mine))
}
