package fsx_test

import (
	"testing"

	"varve/test/fsx"
)

// TestModelOnLocalDirectory checks the model itself on the filesystem that holds the temporary directory.
func TestModelOnLocalDirectory(t *testing.T) {
	ops := 20000
	if testing.Short() {
		ops = 2000
	}
	dir := t.TempDir()
	for seed := range uint64(3) {
		if err := fsx.Run(fsx.Options{Dirs: []string{dir, dir}, Name: "f", Ops: ops / 3, Seed: seed}); err != nil {
			t.Fatal(err)
		}
	}
}
