package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"varve/test/fsx"
	"varve/test/nsx"
)

// ops returns how many operations random tests do: VARVE_OPS, or usual.
func ops(t *testing.T, usual int) int {
	s := os.Getenv("VARVE_OPS")
	if s == "" {
		return usual
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("VARVE_OPS=%s: %v", s, err)
	}
	return n
}

// TestModel runs random file and namespace operations on one mount and on two mounts at once.
func TestModel(t *testing.T) {
	need(t)
	c := up(t, 1, 3, 2, "3:2")
	seed := uint64(time.Now().UnixNano())
	for _, mounts := range [][]string{c.mounts[:1], c.mounts} {
		t.Run(fmt.Sprintf("file/mounts=%d", len(mounts)), func(t *testing.T) {
			begin, n := time.Now(), ops(t, 20000)
			if err := fsx.Run(fsx.Options{Dirs: mounts, Name: "fsx", Ops: n, Seed: seed}); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d operations, seed %d, %v", n, seed, time.Since(begin).Round(time.Second))
		})
		t.Run(fmt.Sprintf("namespace/mounts=%d", len(mounts)), func(t *testing.T) {
			dirs := make([]string, len(mounts))
			for i, m := range mounts {
				dirs[i] = filepath.Join(m, fmt.Sprintf("ns%d", len(mounts)))
			}
			if err := os.Mkdir(dirs[0], 0o755); err != nil {
				t.Fatal(err)
			}
			begin, n := time.Now(), ops(t, 20000)/2
			if err := nsx.Run(nsx.Options{Reference: t.TempDir(), Dirs: dirs, Ops: n, Seed: seed, Compare: 1000}); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d operations, seed %d, %v", n, seed, time.Since(begin).Round(time.Second))
		})
	}
	// With writes that return before they are carried out, alone and beside a mount that keeps nothing back.
	late := filepath.Join(t.TempDir(), "late")
	if err := os.Mkdir(late, 0o755); err != nil {
		t.Fatal(err)
	}
	c.must(90*time.Second, "-c", c.name(), "mount", "-o", "writeback=4", late)
	t.Cleanup(func() { c.varve(30*time.Second, "umount", late) })
	for _, mounts := range [][]string{{late}, {late, c.mounts[0]}} {
		t.Run(fmt.Sprintf("behind/mounts=%d", len(mounts)), func(t *testing.T) {
			if err := fsx.Run(fsx.Options{Dirs: mounts, Name: fmt.Sprintf("behind%d", len(mounts)), Ops: ops(t, 20000) / 4, Seed: seed}); err != nil {
				t.Fatal(err)
			}
		})
	}
	c.must(90*time.Second, "umount", late)
	c.checkReplicas(3)
}
