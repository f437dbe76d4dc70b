package e2e

import (
	"testing"

	"varve/test/posix"
)

// TestPosix runs the POSIX suite on a mount.
func TestPosix(t *testing.T) {
	need(t)
	c := up(t, 1, 3, 1, "3:2")
	posix.Run(t, c.mounts[0])
}
