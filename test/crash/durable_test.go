package crash

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	mrand "math/rand"
	"testing"
	"time"

	core "varve/internal/client"
	"varve/internal/hot"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/iouring/reactor"
)

// begun is an operation on a reactor.
type begun struct{ ended chan error }

// Ended implements hot.Ender.
func (b *begun) Ended(_ int, err error) { b.ended <- err }

// onLoop has begin begin an operation, and waits for its end. It reports false if it could not be begun there.
func onLoop(t *testing.T, l *reactor.Loop, begin func(e hot.Ender) bool) bool {
	t.Helper()
	b := &begun{ended: make(chan error, 1)}
	can := make(chan bool, 1)
	if !l.Do(func() { can <- begin(b) }) {
		t.Fatal("the loop has ended")
	}
	if !<-can {
		return false
	}
	select {
	case err := <-b.ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("an operation does not end")
	}
	return true
}

// TestPowerLossAfterDurableWrites: a client that flushes after each write, so that its writes are durable and its flushes ask nobody, loses none of what was flushed
// when all chunk servers lose power at once, and no fsync fails.
func TestPowerLossAfterDurableWrites(t *testing.T) {
	needProcesses(t) // as TestPowerLossEverywhere
	p := newPowered(t)
	rng := mrand.New(mrand.NewSource(1))
	c, err := core.Dial(t.Context(), core.Options{Cluster: p.cluster, Addrs: []string{p.addr}, NoLocal: true,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l, err := reactor.Start(reactor.Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	seat, err := c.Sit(l)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		c.Leave(seat)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := l.Close(ctx); err != nil {
			t.Error(err)
		}
	}()
	_, f, err := c.Create(t.Context(), &msg.Cred{}, &msg.Create{Parent: uint64(id.Root), Name: []byte("log"), Type: msg.FileType_REGULAR, Perm: 0o600, Open: true})
	if err != nil {
		t.Fatal(err)
	}
	const blocks, size = 16, 4096
	want := make([]byte, blocks*size)
	if _, _, err := f.WriteAt(t.Context(), want, 0, false); err != nil {
		t.Fatal(err)
	}
	if err := f.Fsync(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	round := byte(0)
	put := func() {
		t.Helper()
		round++
		block := want[rng.Intn(blocks)*size:][:size]
		off := int64(cap(want) - cap(block))
		copy(block, bytes.Repeat([]byte{round}, size))
		if !onLoop(t, l, func(e hot.Ender) bool { return f.BeginWrite(seat, block, off, e) }) {
			if _, _, err := f.WriteAt(t.Context(), block, off, false); err != nil {
				t.Fatal(err)
			}
		}
		if !onLoop(t, l, func(e hot.Ender) bool { return f.BeginFsync(seat, true, e) }) {
			if err := f.Fsync(t.Context(), true); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 3 {
		before := c.HotStats().DurableWrites
		for end := time.Now().Add(patience); c.HotStats().DurableWrites < before+20; put() {
			if time.Now().After(end) {
				t.Fatalf("no durable writes: %+v", c.HotStats())
			}
		}
		p.fall(true, rng)
		if err := f.Fsync(t.Context(), true); err != nil {
			t.Fatalf("nothing was lost: %v", err)
		}
		p.whole()
		got := make([]byte, len(want))
		for range 3 { // of one replica or another
			if _, err := f.ReadAt(t.Context(), got, 0); err != nil {
				t.Fatal(err)
			}
			for b := range blocks {
				if !bytes.Equal(got[b*size:][:size], want[b*size:][:size]) {
					t.Fatalf("block %d has %d, %d was flushed", b, got[b*size], want[b*size])
				}
			}
		}
	}
	if err := f.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
}
