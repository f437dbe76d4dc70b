package cs

import (
	"context"
	"testing"
	"time"

	"varve/internal/disk"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// TestDeletionsEndWithTheLeader: deletions that a leader asked for, and that take their time for the sake of guests, do not keep the server from the next leader:
// they end with the connection.
func TestDeletionsEndWithTheLeader(t *testing.T) {
	f := newFakeLeader(t)
	s := newTestServer(t, f)
	const n = 200 // a second in which the server may find out that the connection has ended
	req := new(msg.ChunkDelete)
	for k := range uint64(n) {
		f.create(id.ChunkID(k+1), 1, s)
		req.Chunks = append(req.Chunks, k+1)
	}
	f.mu.Lock()
	conn := f.conns[uint32(s.ID())]
	f.mu.Unlock()
	s.lease.inflight.Add(1) // a guest is served
	s.disk.Inject(func(op disk.Op) error {
		if op.Kind == disk.OpRemove {
			time.Sleep(5 * time.Millisecond)
		}
		return nil
	})
	answered := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		_, err := conn.CallMessage(ctx, wire.ChunkDelete, wire.ClassMeta, req, nil)
		answered <- err
	}()
	wait(t, "the first deletion", func() bool { return s.store.Count() < n })
	before := f.reportsOf(s.ID())
	conn.Close()
	if err := <-answered; err == nil {
		t.Fatal("all was deleted before the leader went")
	}
	wait(t, "the server to be registered again", func() bool { return f.reportsOf(s.ID()) > before })
	s.lease.inflight.Add(-1)
	s.disk.Inject(nil)
	if s.store.Count() == 0 {
		t.Error("the server deleted everything before it turned to the next leader")
	}
	f.must(s.ID(), wire.ChunkDelete, req) // as that one asks for again
	if left := s.store.Count(); left != 0 {
		t.Errorf("%d chunks are left", left)
	}
}
