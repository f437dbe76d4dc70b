package vhost

import (
	"context"
	"errors"

	"varve/internal/block"
)

// taken is what a server knows of opens of its image whose session was lost. Guarded by Server.mu.
type taken struct {
	lost []block.OpenFile // the last one; who comes next may be the guest that used it
	bad  bool             // the image is somebody else's since
}

// open opens the image, unless somebody else was let write to it since a session was lost: the guest of before would come back by its front end, which connects
// again, and go on.
func (s *Server) open(ctx context.Context, readOnly bool) (block.OpenFile, int64, error) {
	s.mu.Lock()
	bad, lost := s.taken.bad, s.taken.lost
	s.mu.Unlock()
	if bad {
		return nil, 0, block.ErrTaken
	}
	file, size, err := s.o.Image.Open(ctx, readOnly)
	if err != nil {
		return nil, 0, err
	}
	g, ok := file.(block.Guarded)
	bad = ok && !readOnly && g.Taken(lost)
	s.mu.Lock()
	s.taken = taken{bad: bad}
	s.mu.Unlock()
	if bad {
		return nil, 0, errors.Join(block.ErrTaken, file.Release(ctx))
	}
	for _, old := range lost {
		file.Inherit(old) // what the guest was told is written may be gone by now, which its next flush says
	}
	return file, size, nil
}

// closed notes an open that was given back.
func (s *Server) closed(file block.OpenFile) {
	if g, ok := file.(block.Guarded); ok && g.Lost() {
		s.mu.Lock()
		s.taken.lost = []block.OpenFile{file}
		s.mu.Unlock()
	}
}
