package rules

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// TestTree is the rule itself: the tree as it is breaks none.
func TestTree(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	root, err := Root(dir, func(p string) bool { _, err := os.Stat(p); return err == nil })
	if err != nil {
		t.Fatal(err)
	}
	files, err := sources(root)
	if err != nil {
		t.Fatal(err)
	}
	faults, err := Check(os.DirFS(root), files)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		t.Error(f)
	}
}

// sources returns the files under version control; what else lies around, such as a disk image, is no source.
func sources(root string) ([]string, error) {
	if _, err := os.Stat(filepath.Join(root, ".git")); err != nil {
		return Walk(os.DirFS(root)) // a copy without history
	}
	out, err := exec.Command("git", "-c", "safe.directory=*", "-C", root, "ls-files", "-z").Output()
	if err != nil {
		return nil, fmt.Errorf("git ls-files: %w", err)
	}
	return strings.Split(strings.Trim(string(out), "\x00"), "\x00"), nil
}

// TestCheck breaks each rule once.
func TestCheck(t *testing.T) {
	const doc = "// Package x holds x.\n"
	for _, tc := range []struct {
		name, file, src string
		want            string // part of the only fault; empty: none
	}{
		{"fine", "mds/state/a.go", doc + `package state; import ("fmt"; "varve/mds/event"; "varve/internal/id")`, ""},
		{"fs to fs", "mds/a.go", doc + `package mds; import "varve/cs"`, "mds may not"},
		{"client in mds", "mds/a.go", doc + `package mds; import "varve/internal/client"`, "mds may not"},
		{"client in fuse", "fuse/a.go", doc + `package fuse; import "varve/internal/client"`, ""},
		{"journal knows events", "journal/a.go", doc + `package journal; import "varve/mds/event"`, "journal may not"},
		{"pure os", "mds/decide/a.go", doc + `package decide; import "os"`, "imports os"},
		{"pure slog", "cs/repl/a.go", doc + `package repl; import "log/slog"`, "imports log/slog"},
		{"pure clock", "cs/repl/a.go", doc + `package repl; import "time"; var t = time.Now()`, "time.Now"},
		{"pure duration", "cs/repl/a.go", doc + `package repl; import "time"; var t time.Duration = 3 * time.Second`, ""},
		{"pure test may", "cs/repl/a_test.go", `package repl; import "os"`, ""},
		{"cmd imported", "perf/a.go", doc + `package perf; import "varve/cmd/varve"`, "nothing imports cmd"},
		{"cmd test", "perf/a_test.go", `package perf; import "varve/bench"`, "nothing imports bench"},
		{"unsafe", "iouring/a.go", doc + `package iouring; import "unsafe"`, "unsafe"},
		{"unsafe named", "iouring/a_unsafe.go", doc + `package iouring; import "unsafe"`, ""},
		{"no doc", "perf/a.go", `package perf`, "no package doc"},
		{"no room", "misc/a.go", doc + `package misc`, "no room"},
		{"big", "perf/data.bin", strings.Repeat("x", maxFileBytes+1), "limit"},
		{"stand-alone", "iouring/a.go", doc + `package iouring; import "varve/internal/id"`, "iouring may not"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tree := fstest.MapFS{tc.file: {Data: []byte(tc.src)}, ".git/x.go": {}, "build/x.go": {}}
			files, err := Walk(tree)
			if err != nil {
				t.Fatal(err)
			}
			faults, err := Check(tree, append(files, "perf/gone.go"))
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case tc.want == "" && len(faults) > 0:
				t.Errorf("unexpected: %q", faults)
			case tc.want != "" && (len(faults) != 1 || !strings.Contains(faults[0], tc.want)):
				t.Errorf("got %q, want one with %q", faults, tc.want)
			}
		})
	}
}

// TestTable checks the table itself: each room once, pure rooms import only pure ones.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range rooms {
		if seen[r.dir] {
			t.Errorf("room %s stands twice", r.dir)
		}
		seen[r.dir] = true
		if !r.pure {
			continue
		}
		for _, m := range r.may {
			if i := slices.IndexFunc(rooms, func(o room) bool { return o.dir == m }); i < 0 || !rooms[i].pure {
				t.Errorf("pure room %s may import %s, which is not pure", r.dir, m)
			}
		}
	}
}
