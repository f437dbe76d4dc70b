package e2e

import (
	"time"

	"varve/test/replicas"
)

// checkReplicas waits until the cluster is whole, then reads every block of every chunk on every server, and fails
// unless each chunk has exactly `norm` replicas with equal checksum tables and no bad block.
// Nothing may be writing.
func (c *cluster) checkReplicas(norm int) {
	c.t.Helper()
	begin := time.Now()
	c.wait(3*time.Minute, "the cluster to be whole", c.healthy)
	c.t.Logf("whole after %v", time.Since(begin).Round(time.Millisecond))
	c.wait(2*time.Minute, "replicas to be equal", func() error { return c.compareReplicas(norm) })
}

func (c *cluster) compareReplicas(norm int) error {
	st, err := c.status()
	if err != nil {
		return err
	}
	chunks, blocks, err := replicas.Compare(st, norm, c.network())
	if err == nil {
		c.t.Logf("%d chunks with %d equal replicas each, %d blocks verified", chunks, norm, blocks)
	}
	return err
}
