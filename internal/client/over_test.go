package client

import (
	"context"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// TestOver: a client that has said that its session is over serves nothing under it any more, not even what no server is asked for; and it does say it.
func TestOver(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, nil)
	said := 0
	for range 10 {
		f := create(t, c, "a")
		if err := f.Truncate(t.Context(), 1<<20); err != nil { // a hole
			t.Fatal(err)
		}
		read(t, f, 0, 4096)
		was := c.Session()
		w.mu.Lock()
		conn := w.sessions[uint64(was)].conn
		w.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		r := new(msg.CallbackReply)
		_, err := conn.CallMessage(ctx, wire.Callback, wire.ClassMeta, &msg.Callback{Kind: msg.Callback_OVER}, r)
		cancel()
		switch {
		case err != nil: // who stands still for lastAnswers gives the connection up before it has said so
			t.Log(err)
		case !r.Over:
			t.Fatal("the client did not say that it serves nothing any more")
		default:
			said++
		}
		if n, err := f.ReadAt(t.Context(), make([]byte, 4096), 0); fserr.Of(err) != fserr.Stale {
			t.Fatalf("a read after that: %d bytes, %v", n, err)
		}
		_ = f.Release(t.Context())
		w.expire(uint64(was))
		eventually(t, "another session", func() bool { return c.Session() != was })
		if err := c.Remove(t.Context(), nil, 1, []byte("a"), false); err != nil {
			t.Fatal(err)
		}
	}
	if said < 8 {
		t.Errorf("the client has said %d times of 10 that it serves nothing any more", said)
	}
}

// slowKernel is a notifier whose kernel drops pages when it is let.
type slowKernel struct {
	notifier
	asked, let chan struct{}
}

func (n *slowKernel) InvalidateInodeWait(ctx context.Context, _ id.Ino, _, _ int64) error {
	select {
	case n.asked <- struct{}{}:
	default:
	}
	select {
	case <-n.let:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestOverWaitsForTheKernel: pages that are mapped the kernel serves without asking, so a client says that its session is over when they are gone.
func TestOverWaitsForTheKernel(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	n := &slowKernel{asked: make(chan struct{}, 1), let: make(chan struct{})}
	c := w.dial(t, func(o *Options) { o.Notifier = n })
	f := create(t, c, "a")
	write(t, f, fill(4096, 1), 0)
	was := c.Session()
	w.mu.Lock()
	conn := w.sessions[uint64(was)].conn
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	done := make(chan error, 1)
	reply := new(msg.CallbackReply)
	go func() {
		_, err := conn.CallMessage(ctx, wire.Callback, wire.ClassMeta, &msg.Callback{Kind: msg.Callback_OVER}, reply)
		done <- err
	}()
	select {
	case <-n.asked:
	case err := <-done:
		t.Errorf("the client has answered before the kernel was asked: %v, over: %v", err, reply.Over)
		done <- err
	}
	close(n.let)
	if err := <-done; err == nil && !reply.Over { // it may have given the connection up by now
		t.Error("the client did not say that it serves nothing any more")
	}
	_ = f.Release(t.Context())
	w.expire(uint64(was))
	eventually(t, "another session", func() bool { return c.Session() != was })
}
