package mds

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/journal"
)

// checkpointPieces sends checkpoints in pieces. Between two of them a checkpoint stays open, so that a piece costs no reading of those
// before it. A piece but the first is asked for with the index of the checkpoint that the first one came from: one who reads a
// checkpoint never gets bytes of another, whoever else reads, and whatever is written or dropped meanwhile.
type checkpointPieces struct {
	mu     sync.Mutex
	closed bool
	open   []*openCheckpoint // whose next piece nobody has asked for, oldest first
	sound  id.Index          // the last checkpoint that was read to its end and found whole
}

// openCheckpoint is a checkpoint of which off bytes were sent.
type openCheckpoint struct {
	at  id.Index
	off uint64
	rc  io.ReadCloser
}

// read returns the piece at byte req.From: of the newest sound checkpoint at or below req.CheckpointAt (0: of all) if that is 0, else of the
// checkpoint at req.CheckpointAt.
func (p *checkpointPieces) read(j *journal.Journal, req *msg.JournalRead, limit int, reply *msg.JournalReadReply) ([]byte, error) {
	o, err := p.take(id.Index(req.CheckpointAt), req.From)
	if err == nil && o == nil {
		o, err = p.begin(j, id.Index(req.CheckpointAt), req.From)
	}
	if err != nil {
		return nil, err
	}
	b := make([]byte, limit)
	n, err := io.ReadFull(o.rc, b)
	o.off += uint64(n)
	reply.Checkpoint, reply.Next, reply.More = uint64(o.at), o.off, err == nil
	if err == nil {
		p.put(o)
		return b, nil
	}
	o.rc.Close()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return b[:n], err
}

// take returns the open checkpoint at that index of which off bytes were sent, nil if there is none.
func (p *checkpointPieces) take(at id.Index, off uint64) (*openCheckpoint, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, fserr.Unavailable
	}
	for i, o := range p.open {
		if off > 0 && o.at == at && o.off == off {
			p.open = append(p.open[:i], p.open[i+1:]...)
			return o, nil
		}
	}
	return nil, nil
}

// put keeps o open for the next piece.
func (p *checkpointPieces) put(o *openCheckpoint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		o.rc.Close()
		return
	}
	if len(p.open) >= maxCheckpoints {
		p.open[0].rc.Close()
		p.open = p.open[1:]
	}
	p.open = append(p.open, o)
}

// begin opens a checkpoint and goes to off.
func (p *checkpointPieces) begin(j *journal.Journal, at id.Index, off uint64) (*openCheckpoint, error) {
	if off == 0 {
		if at == 0 {
			at = j.Last().Index
		}
		var err error
		if at, err = p.newest(j, at); err != nil {
			return nil, err
		}
	}
	got, rc, err := j.OpenCheckpoint(at)
	if err != nil {
		return nil, err
	}
	if got.Index != at {
		rc.Close()
		return nil, fmt.Errorf("checkpoint %d was dropped meanwhile, begin again: %w", at, journal.ErrNotFound)
	}
	if _, err := io.CopyN(io.Discard, rc, int64(off)); err != nil {
		rc.Close()
		return nil, err
	}
	return &openCheckpoint{at: at, off: off, rc: rc}, nil
}

// newest returns the newest checkpoint at or below index that is sound: what is sent in pieces cannot be taken back.
func (p *checkpointPieces) newest(j *journal.Journal, index id.Index) (id.Index, error) {
	got, rc, err := j.OpenCheckpoint(index)
	if err != nil {
		return 0, err
	}
	rc.Close()
	p.mu.Lock()
	sound := p.sound
	p.mu.Unlock()
	if at := got.Index; at == sound {
		return at, nil
	}
	err = j.ReadCheckpoint(index, func(at journal.Position, _ io.Reader) error {
		sound = at.Index // of the last call, which did not find damage
		return nil
	})
	if err != nil {
		return 0, err
	}
	p.mu.Lock()
	p.sound = sound
	p.mu.Unlock()
	return sound, nil
}

func (p *checkpointPieces) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, o := range p.open {
		o.rc.Close()
	}
	p.open = nil
}
