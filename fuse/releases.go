package fuse

import (
	"context"
	"time"

	"varve/internal/id"
)

// releaseGrace is how long a release may take from the kernel's queue to here. It is queued when the last close(2) returns, and an idle
// reader takes it at once; no more is known of what is still in the queue.
const releaseGrace = 5 * time.Millisecond

// WaitReleases returns when the open files of an inode that were closed before the call have given back their locks, or ctx has ended. The kernel
// says that an open file is gone (RELEASE), and with it its locks, after the last close(2) of it has returned.
func (s *Session) WaitReleases(ctx context.Context, ino id.Ino) {
	t := time.NewTimer(releaseGrace)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		case <-s.ended:
			return
		}
		under := false
		for _, f := range s.flights.all() {
			under = under || f.op == opRelease && f.ino == ino
		}
		if !under {
			return
		}
		t.Reset(time.Millisecond)
	}
}
