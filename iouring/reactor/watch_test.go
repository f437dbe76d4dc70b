package reactor_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"varve/iouring"
	"varve/iouring/reactor"
)

// TestPoll waits for a pipe that others fill and empty.
func TestPoll(t *testing.T) {
	each(t, nil, func(t *testing.T, l *reactor.Loop) {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fds[1])
		defer unix.Close(fds[0])
		type end struct {
			n   int
			err error
		}
		ended := make(chan end, 1)
		op := &reactor.Op{Done: func(n int, err error) { ended <- end{n, err} }}
		arm := func() { l.Poll(op, fds[0], unix.POLLIN) }
		var err error
		if on(t, l, func() { err = l.Watch(fds[0]) }); err != nil {
			t.Fatal(err)
		}
		for round := range 3 {
			on(t, l, arm)
			select {
			case e := <-ended:
				t.Fatalf("round %d: ended with %+v though nothing is there", round, e)
			default:
			}
			if _, err := unix.Write(fds[1], []byte("x")); err != nil {
				t.Fatal(err)
			}
			if e := <-ended; e.err != nil || e.n&unix.POLLIN == 0 {
				t.Fatalf("round %d: %+v, want POLLIN", round, e)
			}
			on(t, l, arm) // what is there still is told at once
			if e := <-ended; e.err != nil || e.n&unix.POLLIN == 0 {
				t.Fatalf("round %d, again: %+v, want POLLIN", round, e)
			}
			var b [8]byte
			if n, err := unix.Read(fds[0], b[:]); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}
		on(t, l, arm)
		on(t, l, func() { l.Cancel(op) })
		if e := <-ended; e.err != unix.ECANCELED {
			t.Errorf("cancelled: %+v", e)
		}
		on(t, l, func() { l.Unwatch(fds[0]) })
	})
}

// TestRaw writes a file by an operation that has no method, on rings with submissions of either length.
func TestRaw(t *testing.T) {
	for _, wide := range []bool{false, true} {
		each(t, func(o *reactor.Options) { o.Ring.SQE128 = wide && o.Ring.Without == 0 }, func(t *testing.T, l *reactor.Loop) {
			if l.Kind() != reactor.Ring {
				t.Skip("no ring")
			}
			f, err := os.Create(filepath.Join(t.TempDir(), "f"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			ended := make(chan struct{})
			var n int
			op := &reactor.Op{Done: func(k int, e error) { n, err = k, e; close(ended) }}
			raw := &iouring.Raw{SQE: iouring.SQE{Opcode: iouring.OpWritev}, File: iouring.FD(f.Fd()), Vec: [][]byte{[]byte("hel"), []byte("lo")}}
			on(t, l, func() { l.Raw(op, raw) })
			wait(t, ended, "write")
			got, rerr := os.ReadFile(f.Name())
			if n != 5 || err != nil || rerr != nil || string(got) != "hello" {
				t.Errorf("%d, %v: %q, %v", n, err, got, rerr)
			}
		})
	}
}
