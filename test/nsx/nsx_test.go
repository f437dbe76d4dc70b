package nsx_test

import (
	"os"
	"testing"

	"varve/test/nsx"
)

// TestAgainstItself checks the generator: a local filesystem must agree with itself.
func TestAgainstItself(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: device nodes and chown")
	}
	dir := t.TempDir()
	if err := nsx.Run(nsx.Options{Reference: t.TempDir(), Dirs: []string{dir, dir}, Ops: 5000, Seed: 1}); err != nil {
		t.Fatal(err)
	}
}
