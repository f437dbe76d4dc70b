package iouring_test

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"varve/iouring"
)

// TestRecvMulti streams through a few small buffers, so that they often run out.
func TestRecvMulti(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Without: without})
		a, b := pair(t, unix.AF_UNIX)
		g, err := r.NewBufferGroup(7, 8, 1000)
		if err != nil {
			t.Fatal(err)
		}
		want := noise(200_000)
		sent := 0
		r.ok(r.Send(iouring.FD(a), want, 0, 1))
		r.ok(r.RecvMulti(iouring.FD(b), g, 2))
		var got []byte
		var kept []uint16
		empty, rearmed := 0, 0
		for ended, shut := false, false; !ended || !shut; {
			c := r.next()
			if c.Data == 1 {
				if c.Err != nil {
					t.Fatal(c.Err)
				}
				if sent += c.N; sent < len(want) {
					r.ok(r.Send(iouring.FD(a), want[sent:], 0, 1))
				} else {
					r.ok(r.Shutdown(iouring.FD(a), unix.SHUT_WR, 3))
				}
				continue
			}
			if c.Data == 3 {
				shut = true
				continue
			}
			switch {
			case c.Err == unix.ENOBUFS:
				empty++
				for _, id := range kept {
					g.Recycle(id)
				}
				kept = kept[:0]
			case c.Err != nil:
				t.Fatalf("receive: %+v", c)
			case c.N == 0:
				ended = true
			default:
				if c.Flags&iouring.HasBuffer == 0 {
					t.Fatalf("receive: %+v, want a buffer", c)
				}
				got = append(got, g.Buffer(c.Buffer)[:c.N]...)
				if kept = append(kept, c.Buffer); len(got)%3 == 0 {
					g.Recycle(c.Buffer)
					kept = kept[:len(kept)-1]
				}
			}
			if c.N > 0 && c.Flags&iouring.HasBuffer == 0 || c.More() && !r.Has(iouring.MultishotRecv) {
				t.Errorf("completion %+v without the feature", c)
			}
			if !c.More() && !ended {
				rearmed++
				r.ok(r.RecvMulti(iouring.FD(b), g, 2))
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("received %d bytes, want the %d that were sent", len(got), len(want))
		}
		if empty == 0 {
			t.Error("the buffers never ran out: the test does not show what it should")
		}
		t.Logf("%d times without a buffer, %d times queued again", empty, rearmed)
		if g.Free()+len(kept) != g.Count() {
			t.Errorf("%d buffers free and %d kept of %d", g.Free(), len(kept), g.Count())
		}
		r.idle()
	})
}

// TestRecvSelect has two groups, and receptions that wait when nothing is there.
func TestRecvSelect(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Without: without})
		small, err := r.NewBufferGroup(0, 2, 16)
		if err != nil {
			t.Fatal(err)
		}
		large, err := r.NewBufferGroup(65535, 1, 1<<16)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.NewBufferGroup(0, 2, 16); err == nil {
			t.Error("a second group 0 was made")
		}
		if _, err := r.NewBufferGroup(1, 3, 16); err == nil {
			t.Error("a group of three was made")
		}
		a, b := pair(t, unix.AF_UNIX)
		for i := range 20 {
			g := small
			if i%2 == 1 {
				g = large
			}
			r.ok(r.RecvSelect(iouring.FD(b), g, 1))
			if err := r.Submit(0); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Write(a, []byte("0123456789")); err != nil {
				t.Fatal(err)
			}
			c := r.wantN(1, 10)
			if p := g.Buffer(c.Buffer)[:c.N]; string(p) != "0123456789" || c.More() {
				t.Fatalf("receive: %+v, %q", c, p)
			}
			g.Recycle(c.Buffer)
		}
		defer func() {
			if recover() == nil {
				t.Error("a buffer was given back twice without a panic")
			}
		}()
		small.Recycle(0)
	})
}

// TestGroupWraps uses a group's buffers more often than its counter of 16 bits counts.
func TestGroupWraps(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Without: without})
		g, err := r.NewBufferGroup(1, 4, 8)
		if err != nil {
			t.Fatal(err)
		}
		a, b := pair(t, unix.AF_UNIX)
		messages := 70_000
		if without != 0 || testing.Short() {
			messages = 1000
		}
		armed := false
		p := make([]byte, 8)
		for i := range messages {
			if !armed {
				r.ok(r.RecvMulti(iouring.FD(b), g, 1))
			}
			p[0], p[7] = byte(i), byte(i>>8)
			if _, err := unix.Write(a, p); err != nil {
				t.Fatal(err)
			}
			c := r.wantN(1, 8)
			if q := g.Buffer(c.Buffer); !bytes.Equal(p, q) {
				t.Fatalf("message %d: %v, want %v", i, q, p)
			}
			g.Recycle(c.Buffer)
			armed = c.More()
		}
	})
}
