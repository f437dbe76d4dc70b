package iouring_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"varve/iouring"
)

func TestCancel(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Files: 2, Without: without})
		a, _ := pair(t, unix.AF_UNIX)
		c, _ := pair(t, unix.AF_UNIX)
		e, _ := pair(t, unix.AF_UNIX)
		if err := r.SetFile(1, e); err != nil {
			t.Fatal(err)
		}
		recv := func(fd iouring.FD, data uint64) iouring.Op {
			return r.ok(r.Recv(fd, make([]byte, 8), 0, data))
		}
		o := recv(iouring.FD(a), 1)
		r.ok(r.Cancel(o, 2))
		if m := r.all(2); m[1].Err != unix.ECANCELED || m[2].Err != nil {
			t.Errorf("cancelled by handle: %+v", m)
		}
		recv(iouring.FD(a), 1) // has the slot of the first, which the old handle must not reach
		r.ok(r.Cancel(o, 2))
		r.wantErr(2, unix.ENOENT)

		recv(iouring.FD(a), 3)
		recv(iouring.FD(c), 4)
		recv(iouring.Fixed(1), 5)
		recv(iouring.Fixed(1), 6)
		r.ok(r.CancelFD(iouring.FD(a), 10))
		if m := r.all(3); m[1].Err != unix.ECANCELED || m[3].Err != unix.ECANCELED || m[10].Err != nil {
			t.Errorf("cancelled by descriptor: %+v", m)
		}
		r.ok(r.CancelFD(iouring.FD(a), 10))
		if c := r.want(10); c.Err != unix.ENOENT && c.N != 0 {
			t.Errorf("nothing to cancel: %+v", c)
		}
		r.ok(r.CancelFD(iouring.Fixed(1), 10))
		if m := r.all(3); m[5].Err != unix.ECANCELED || m[6].Err != unix.ECANCELED || m[10].Err != nil {
			t.Errorf("cancelled by place: %+v", m)
		}
		recv(iouring.FD(a), 7)
		r.ok(r.Timeout(1<<40, 0, 8))
		r.ok(r.CancelAll(10))
		m := r.all(4)
		for _, d := range []uint64{4, 7, 8} {
			if m[d].Err != unix.ECANCELED {
				t.Errorf("all cancelled: %+v", m)
			}
		}
		r.ok(r.CancelAll(10))
		if c := r.want(10); c.Err != unix.ENOENT && c.N != 0 {
			t.Errorf("cancel of nothing: %+v", c)
		}
		r.idle()
	})
}

// TestCancelFull cancels when as many operations are under way as may be.
func TestCancelFull(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{InFlight: 3, Without: without})
		a, _ := pair(t, unix.AF_UNIX)
		for range 10 {
			var o iouring.Op
			for i := range 3 {
				o = r.ok(r.Recv(iouring.FD(a), make([]byte, 1), 0, uint64(i)))
			}
			if _, err := r.Nop(9); !errors.Is(err, iouring.ErrFull) || r.Room() != 0 {
				t.Fatalf("fourth of three: %v, room for %d; want ErrFull", err, r.Room())
			}
			r.ok(r.Cancel(o, 4))
			r.ok(r.CancelAll(5))
			m := r.all(5)
			for i := range uint64(3) {
				if m[i].Err != unix.ECANCELED {
					t.Errorf("cancelled: %+v", m)
				}
			}
			r.idle()
		}
	})
}
