package mds

import (
	"errors"
	"io"
	"time"
)

const (
	// paceRest is how many times longer a checkpoint rests than it works.
	paceRest = 3
	// paceLimit is the longest rest between two blocks of a checkpoint.
	paceLimit = 100 * time.Millisecond
)

var errStopping = errors.New("the server stops")

// paced is where a checkpoint goes while requests are served: after each block it rests for paceRest times as long as the block took, to
// encode and to write, so that a checkpoint takes a quarter of one core and leaves the disk to the log between blocks. Measured with 400,000 files
// and two busy cores (TestCheckpointUnderLoad, medians of five on a quiet machine): the p99 of events is 1.3 to 1.5 times that without a checkpoint and the heap
// grows by 3 %; with two rests it was 1.4 to 1.6 times, with one 1.7 to 2.2. The longer a checkpoint takes, the more of the state is there twice.
type paced struct {
	w    io.Writer
	quit <-chan struct{} // the server stops: the checkpoint is given up
	last time.Time       // when the last rest ended
}

func newPaced(w io.Writer, quit <-chan struct{}) *paced {
	return &paced{w: w, quit: quit, last: time.Now()}
}

func (p *paced) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	if err != nil {
		return n, err
	}
	if rest := min(paceRest*time.Since(p.last), paceLimit); rest > time.Millisecond { // else it is too short to be kept
		select {
		case <-time.After(rest):
		case <-p.quit:
			return n, errStopping
		}
		p.last = time.Now()
	}
	return n, nil
}

const (
	// checkpointShare bounds the part of the time that checkpoints take: an interval is so many times what the last one took.
	checkpointShare = 20
	// shortCheckpoint is what may be done as often as the options say.
	shortCheckpoint = time.Second
	// maxSnapshotInterval bounds what a restart has to apply again.
	maxSnapshotInterval = 10 * time.Minute
)

// spreadCheckpoints has the next checkpoint come later if the last one took long.
func (s *Server) spreadCheckpoints(took time.Duration) {
	next := snapshotInterval(s.o.SnapshotInterval, took)
	s.spawn(func() {
		<-s.begun
		if c := s.raft.ReloadableConfig(); c.SnapshotInterval != next {
			c.SnapshotInterval = next
			if err := s.raft.ReloadConfig(c); err != nil {
				s.log.Warn("interval of checkpoints not changed", "interval", next, "err", err)
			}
		}
	})
}

func snapshotInterval(least, took time.Duration) time.Duration {
	if took < shortCheckpoint {
		return least
	}
	return max(least, min(took*checkpointShare, maxSnapshotInterval))
}
