package e2e

import (
	"testing"

	"varve/test/posix"
)

// TestPosix runs the POSIX suite on a mount; what is done there is looked at through another mount too.
func TestPosix(t *testing.T) {
	need(t)
	c := up(t, 1, 3, 2, "3:2")
	posix.RunSeen(t, c.mounts[0], c.mounts[1])
}
