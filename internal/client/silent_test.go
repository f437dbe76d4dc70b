package client

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/iouring/reactor"
)

// hangWrites has the server answer no write until stop is closed, and returns how many have come.
func (s *fakeCS) hangWrites(stop chan struct{}) *atomic.Int32 {
	n := new(atomic.Int32)
	s.set(func() {
		s.before = func(t wire.Type, _ *wire.DataRequest) fserr.Code {
			if t == wire.Write {
				n.Add(1)
				<-stop
			}
			return fserr.OK
		}
	})
	return n
}

func (w *world) setSilent(list ...uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent = list
}

// TestSilentReplica: a replica on a server that the leader does not hear from either is dropped long before the time-out, whoever writes; one on a
// server that it hears from is waited for.
func TestSilentReplica(t *testing.T) {
	t.Parallel() // it waits more than it works
	for _, on := range []string{"goroutine", "reactor"} {
		t.Run(on, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1, 3, 3, 2)
			c := w.dial(t, func(o *Options) { o.WriteTimeout = time.Minute })
			f := create(t, c, "a")
			write(t, f, fill(4096, 1), 0)
			stop := make(chan struct{})
			came := w.cs[3].hangWrites(stop)
			begin := time.Now()
			done := make(chan error, 1)
			if on == "goroutine" {
				go func() {
					_, _, err := f.WriteAt(context.Background(), fill(4096, 2), 0, false)
					done <- err
				}()
			} else {
				h := sit(t, c, reactor.Auto)
				w.cs[3].set(func() { w.cs[3].before = nil })
				h.warm(f)
				came = w.cs[3].hangWrites(stop)
				o := h.must(f, true, fill(4096, 2), 0)
				go func() { done <- (<-o.ended).err }()
			}
			eventually(t, "the write to hang", func() bool { return came.Load() > 0 })
			select {
			case err := <-done:
				t.Errorf("the write ended after %v with %v, though its server is only slow", time.Since(begin), err)
			case <-time.After(silentAfter + 500*time.Millisecond):
			}
			if n := w.count("drop"); n != 0 {
				t.Errorf("%d replicas were dropped of a server that is only slow", n)
			}
			w.setSilent(3)
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(time.Minute):
				t.Error("the write waits for a server that answers nobody")
			}
			if r := w.replicas(f.Ino(), 0); slices.Contains(r, 3) {
				t.Errorf("replicas %v", r)
			}
			close(stop)
		})
	}
}

// TestSilentIsNoDamage: what is on a server that the leader does not hear from is waited for, and is there when it is heard from again; a connection
// that is not made for it is no error of a disk. (A simulated read failed with EIO.)
func TestSilentIsNoDamage(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	want := fill(4096, 1)
	write(t, f, want, 0)
	w.setSilent(1)
	srv := f.in.s.servers.server(&replica{server: 1})
	eventually(t, "the client to know", srv.silent)
	w.cs[1].stop()
	w.cs[1].start()
	done := make(chan error, 2)
	go func() {
		p := make([]byte, 4096)
		_, err := f.ReadAt(context.Background(), p, 0)
		if err == nil && !bytes.Equal(p, want) {
			err = errors.New("other bytes than were written")
		}
		done <- err
	}()
	go func() {
		_, _, err := f.WriteAt(context.Background(), fill(4096, 2), 4096, false)
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("an operation on a silent server ended: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	w.setSilent()
	for range 2 {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("an operation waits, though the server is heard from")
		}
	}
}
