package iouring_test

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/iouring"
)

func TestTimeout(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Without: without})
		start := time.Now()
		r.ok(r.Timeout(20*time.Millisecond, 0, 1))
		r.ok(r.Timeout(10*time.Millisecond, iouring.Boottime, 2))
		if m := r.all(2); m[1].Err != unix.ETIME || m[2].Err != unix.ETIME { // in any order: they are of two clocks, and a busy machine looks at both late
			t.Errorf("two time-outs: %+v", m)
		}
		if d := time.Since(start); d < 20*time.Millisecond {
			t.Errorf("20 ms were over after %v", d)
		}

		o := r.ok(r.Timeout(time.Hour, 0, 1))
		r.ok(r.TimeoutUpdate(o, time.Millisecond, 2))
		if m := r.all(2); m[1].Err != unix.ETIME || m[2].Err != nil {
			t.Errorf("time-out made shorter: %+v", m)
		}
		r.ok(r.TimeoutUpdate(o, time.Millisecond, 2))
		r.wantErr(2, unix.ENOENT)

		o = r.ok(r.Timeout(time.Hour, 0, 1))
		r.ok(r.TimeoutRemove(o, 2))
		if m := r.all(2); m[1].Err != unix.ECANCELED || m[2].Err != nil {
			t.Errorf("time-out removed: %+v", m)
		}
		r.ok(r.TimeoutRemove(o, 2))
		r.wantErr(2, unix.ENOENT)
		o = r.ok(r.Timeout(time.Hour, 0, 1))
		r.ok(r.Cancel(o, 2))
		if m := r.all(2); m[1].Err != unix.ECANCELED || m[2].Err != nil {
			t.Errorf("time-out cancelled: %+v", m)
		}

		if _, err := r.Timeout(1, iouring.Repeat, 0); !errors.Is(err, unix.EINVAL) {
			t.Errorf("period of a nanosecond: %v, want EINVAL", err)
		}
		o = r.ok(r.Timeout(time.Millisecond, iouring.Repeat, 3))
		more := true
		for range 5 {
			if !more {
				o = r.ok(r.Timeout(time.Millisecond, iouring.Repeat, 3))
			}
			c := r.wantErr(3, unix.ETIME)
			if more = c.More(); more != r.Has(iouring.MultishotTimeout) {
				t.Errorf("tick %+v with %v", c, r.Features())
			}
		}
		// One that has just fired is not found, and goes on: the kernel sets it again when it has told of it.
		for try := 0; more; try++ {
			switch try {
			case 0:
				time.Sleep(3 * time.Millisecond)
			case 1000:
				t.Fatal("a time-out is never removed")
			}
			r.ok(r.TimeoutRemove(o, 4))
			removed, told := false, false
			for !told || removed && more {
				switch c := r.next(); c.Data {
				case 3:
					more = c.More()
				case 4:
					told, removed = true, c.Err == nil
					if c.Err != nil && c.Err != unix.ENOENT {
						t.Fatalf("removal %+v", c)
					}
				}
			}
		}
		r.idle()
	})
}

func TestLinkTimeout(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Without: without})
		a, b := pair(t, unix.AF_UNIX)
		p := make([]byte, 1)
		r.ok(r.Recv(iouring.FD(a), p, 0, 1))
		r.Link()
		r.ok(r.LinkTimeout(time.Millisecond, 2))
		m := r.all(2)
		if err := m[1].Err; err != unix.ECANCELED && err != unix.EINTR || m[2].Err != unix.ETIME && m[2].Err != unix.EALREADY {
			t.Errorf("limit reached: %+v", m)
		}
		r.ok(r.Recv(iouring.FD(a), p, 0, 1))
		r.Link()
		r.ok(r.LinkTimeout(time.Hour, 2))
		if err := r.Submit(0); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(b, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if m := r.all(2); m[1].N != 1 || m[2].Err != unix.ECANCELED {
			t.Errorf("limit not reached: %+v", m)
		}
		r.idle()
	})
}

// TestSubmitWait waits with a limit, in which nothing or too little happens.
func TestSubmitWait(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Without: without})
		for _, n := range []int{0, 1} {
			if n > 0 {
				r.ok(r.Nop(1))
			}
			start := time.Now()
			if err := r.SubmitWait(n+1, 20*time.Millisecond); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(start); d < 20*time.Millisecond {
				t.Errorf("wait for %d of %d ended after %v, want 20 ms", n+1, n, d)
			}
			if got := r.Reap(nil, 10); len(got) != n {
				t.Errorf("completions %+v, want %d", got, n)
			}
		}
		r.ok(r.Nop(1))
		if err := r.SubmitWait(1, 0); err != nil {
			t.Fatal(err)
		}
		r.wantN(1, 0)
		r.idle()
	})
}
