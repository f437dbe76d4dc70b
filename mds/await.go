package mds

import (
	"time"

	"github.com/hashicorp/raft"
)

// endedGrace is how long answers of Raft that are under way when it has ended may still come.
const endedGrace = 100 * time.Millisecond

// await waits for Raft's answer. Raft leaves what it had committed and not yet handed over unanswered when it is shut down: then the outcome is
// not known.
func (s *Server) await(f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return err
	case <-s.raftEnded:
	}
	t := time.NewTimer(endedGrace)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
		return raft.ErrRaftShutdown
	}
}
