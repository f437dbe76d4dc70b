package iouring_test

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/iouring"
)

// TestWaker gives work to a ring's owner from several goroutines, which wake it. None may be overlooked.
func TestWaker(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Without: without})
		w, err := r.NewWaker(77)
		if err != nil {
			t.Fatal(err)
		}
		const givers, each = 4, 500
		var work atomic.Int64
		var g sync.WaitGroup
		for range givers {
			g.Go(func() {
				for i := range each {
					work.Add(1)
					if err := w.Wake(); err != nil {
						t.Error(err)
						return
					}
					if i%16 == 0 {
						time.Sleep(100 * time.Microsecond)
					}
				}
			})
		}
		done, wakes := int64(0), 0
		for end := time.Now().Add(patience); done < givers*each && time.Now().Before(end); {
			if c := r.want(77); c.Flags&iouring.Woken == 0 || c.Err != nil {
				t.Fatalf("wake-up: %+v", c)
			}
			wakes++
			done += work.Swap(0)
		}
		g.Wait()
		if done != givers*each {
			t.Errorf("%d of %d pieces of work seen", done, givers*each)
		}
		t.Logf("%d wake-ups for %d pieces of work", wakes, done)
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := w.Wake(); err != nil && !errors.Is(err, iouring.ErrClosed) {
				t.Errorf("wake of a closed ring: %v", err)
			}
		}
	})
}

func TestMessage(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Without: without})
		s := newRing(t, iouring.Options{})
		o, err := s.Message(r.Ring, 1<<62-1, 5, 1)
		if !s.Has(iouring.MsgRing) {
			if !errors.Is(err, iouring.ErrUnsupported) {
				t.Errorf("message without the feature: %v, want ErrUnsupported", err)
			}
			return
		}
		s.ok(o, err)
		s.wantN(1, 0)
		if c := r.wantN(1<<62-1, 5); c.Flags != iouring.Message {
			t.Errorf("message: %+v", c)
		}
		if _, err := s.Message(r.Ring, 1<<62, 0, 1); !errors.Is(err, unix.EINVAL) {
			t.Errorf("message of 63 bits: %v, want EINVAL", err)
		}
		if _, err := r.Message(s.Ring, 3, 0, 2); r.Has(iouring.MsgRing) != (err == nil) {
			t.Errorf("message with %v: %v", r.Features(), err)
		}
	})
}

// TestDisabled prepares a ring on one thread and uses it on another.
func TestDisabled(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r, err := iouring.New(iouring.Options{Disabled: true, Files: 2, Without: without})
		if errors.Is(err, iouring.ErrUnavailable) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		w, err := r.NewWaker(5)
		if err != nil {
			t.Fatal(err)
		}
		f := file(t)
		if err := r.SetFile(0, int(f.Fd())); err != nil {
			t.Fatal(err)
		}
		failed := make(chan error)
		go func() {
			runtime.LockOSThread()
			failed <- func() error {
				if err := r.Enable(); err != nil {
					return err
				}
				if _, err := r.Write(iouring.Fixed(0), []byte("hello"), 0, 1); err != nil {
					return err
				}
				for n, end := 0, time.Now().Add(patience); n < 2; {
					if time.Now().After(end) {
						return errors.New("no completion")
					}
					if err := r.SubmitWait(1, patience); err != nil {
						return err
					}
					for _, c := range r.Reap(nil, 2) {
						if n++; c.Err != nil || c.Data == 1 && c.N != 5 {
							return c.Err
						}
					}
				}
				return r.Close()
			}()
		}()
		if err := w.Wake(); err != nil {
			t.Error(err)
		}
		if err := <-failed; err != nil {
			t.Error(err)
		}
		unused, err := iouring.New(iouring.Options{Disabled: true, Without: without})
		if err != nil {
			t.Fatal(err)
		}
		if err := unused.Close(); err != nil {
			t.Errorf("close of a ring that was never enabled: %v", err)
		}
	})
}
