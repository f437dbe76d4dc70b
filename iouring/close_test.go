package iouring_test

import (
	"bytes"
	"errors"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/iouring"
)

// TestCloseUnderWay closes rings with operations of all kinds under way. Their memory must be left alone afterwards, and what was
// never handed over must not happen.
func TestCloseUnderWay(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Entries: 8, InFlight: 128, Files: 2, Buffers: 1, Without: without})
		a, b := pair(t, unix.AF_UNIX)
		l, _ := listen(t)
		f := file(t)
		g, err := r.NewBufferGroup(0, 4, 64)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.NewWaker(9); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(r.SetFile(0, b), r.SetBuffer(0, make([]byte, 8192))); err != nil {
			t.Fatal(err)
		}
		var bufs [][]byte
		for i := range 20 {
			p := make([]byte, 32)
			bufs = append(bufs, p)
			r.ok(r.Recv(iouring.FD(a), p, unix.MSG_WAITALL, uint64(i)))
		}
		r.ok(r.RecvMulti(iouring.Fixed(0), g, 30))
		r.ok(r.AcceptMulti(iouring.FD(l), 31))
		r.ok(r.PollMulti(iouring.FD(a), unix.POLLIN, 32))
		r.ok(r.Timeout(time.Hour, 0, 33))
		r.ok(r.Timeout(time.Millisecond, iouring.Repeat, 34))
		if err := r.Reserve(2); err != nil {
			t.Fatal(err)
		}
		r.ok(r.Recv(iouring.FD(a), make([]byte, 1), 0, 35))
		r.Link()
		r.ok(r.LinkTimeout(time.Hour, 36))
		r.ok(r.Read(iouring.FD(f.Fd()), make([]byte, 100), 0, 37))
		r.ok(r.Send(iouring.FD(b), make([]byte, 1<<20), 0, 38)) // waits for room
		if err := r.Submit(0); err != nil {
			t.Fatal(err)
		}
		r.ok(r.Write(iouring.FD(f.Fd()), []byte("never"), 0, 40))
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if r.Pending() != 0 || r.Held() {
			t.Errorf("%d operations pending after Close; held: %v", r.Pending(), r.Held())
		}
		if s, err := f.Stat(); err != nil || s.Size() != 0 {
			t.Errorf("a write that was not handed over was done: %v", err)
		}
		before := bytes.Join(bufs, nil)
		if _, err := unix.SendmsgN(b, bytes.Repeat([]byte("x"), 1000), nil, nil, unix.MSG_DONTWAIT); err != nil && err != unix.EAGAIN {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		if !bytes.Equal(before, bytes.Join(bufs, nil)) {
			t.Error("a buffer was written to after Close")
		}
		if err := r.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
}

// TestCloseStuck has an operation that does not end: Close gives up, and the memory is kept.
func TestCloseStuck(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r, err := iouring.New(iouring.Options{CloseWithin: time.Millisecond, Without: without})
		if errors.Is(err, iouring.ErrUnavailable) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		r.PretendBusy()
		if err := r.Close(); !errors.Is(err, iouring.ErrStuck) {
			t.Errorf("close: %v, want ErrStuck", err)
		}
		if !r.Held() {
			t.Error("the ring is not held")
		}
	})
}

// TestOverflow lets completions wait that do not fit into the ring.
func TestOverflow(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Entries: 4, Completions: 4, InFlight: 1000, Without: without})
		for range 3 {
			for i := range 1000 {
				if _, err := r.Nop(uint64(i)); err != nil {
					t.Fatal(err)
				}
			}
			if m := r.all(1000); len(m) != 1000 {
				t.Fatalf("%d completions", len(m))
			}
			r.idle()
		}
		a, b := pair(t, unix.AF_UNIX)
		g, err := r.NewBufferGroup(0, 64, 8)
		if err != nil {
			t.Fatal(err)
		}
		r.ok(r.RecvMulti(iouring.FD(a), g, 1))
		if err := r.Submit(0); err != nil {
			t.Fatal(err)
		}
		const size = 60 * 8
		if _, err := unix.Write(b, noise(size)); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < size; {
			c := r.want(1)
			if c.Err != nil {
				t.Fatalf("%+v after %d bytes", c, got)
			}
			got += c.N
			g.Recycle(c.Buffer)
			if !c.More() && got < size {
				r.ok(r.RecvMulti(iouring.FD(a), g, 1))
			}
		}
	})
}

// TestThreadGone closes a ring whose thread has ended. Close may fail, but must neither hang nor free what the kernel could write to.
func TestThreadGone(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		a, b := pair(t, unix.AF_UNIX)
		type made struct {
			r   *iouring.Ring
			err error
		}
		c := make(chan made)
		go func() {
			runtime.LockOSThread() // and never unlocks: the thread ends with the goroutine
			r, err := iouring.New(iouring.Options{CloseWithin: time.Second, Without: without})
			if err == nil {
				_, err = r.Recv(iouring.FD(a), make([]byte, 8), 0, 1)
				err = errors.Join(err, r.Submit(0))
			}
			c <- made{r, err}
		}()
		m := <-c
		if errors.Is(m.err, iouring.ErrUnavailable) {
			t.Skip(m.err)
		}
		if m.err != nil {
			t.Fatal(m.err)
		}
		time.Sleep(time.Millisecond)
		if err := m.r.Close(); err != nil {
			t.Log(err)
			if !m.r.Held() {
				t.Error("the ring could not be closed and is not held")
			}
		}
		if _, err := unix.Write(b, []byte("x")); err != nil {
			t.Fatal(err)
		}
	})
}
