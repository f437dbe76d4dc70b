package posix

import (
	"os"
	"testing"
)

// TestPosix runs the suite on VARVE_POSIX_DIR, or on the filesystem of the temporary directory, which proves the suite itself.
func TestPosix(t *testing.T) {
	dir := os.Getenv("VARVE_POSIX_DIR")
	if dir == "" {
		dir = t.TempDir()
	}
	Run(t, dir)
}
