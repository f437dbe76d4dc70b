package iouring_test

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/iouring"
)

// modes are the rings that every operation is tested on: as on kernels back to 5.15, and with one feature missing at a time.
var modes = []struct {
	name    string
	without iouring.Feature
}{
	{"kernel=newest", 0},
	{"kernel=6.12", iouring.NewerThan(iouring.Version{Major: 6, Minor: 12})},
	{"kernel=6.1", iouring.NewerThan(iouring.Version{Major: 6, Minor: 1})},
	{"kernel=6.0", iouring.NewerThan(iouring.Version{Major: 6, Minor: 0})},
	{"kernel=5.19", iouring.NewerThan(iouring.Version{Major: 5, Minor: 19})},
	{"kernel=5.18", iouring.NewerThan(iouring.Version{Major: 5, Minor: 18})},
	{"kernel=5.15", iouring.NewerThan(iouring.Version{Major: 5, Minor: 15})},
	{"without=multishot-recv", iouring.MultishotRecv},
	{"without=buffer-ring", iouring.BufferRing},
	{"without=multishot-recv,buffer-ring", iouring.MultishotRecv | iouring.BufferRing},
	{"without=multishot-accept", iouring.MultishotAccept},
	{"without=send-zc", iouring.SendZC | iouring.SendmsgZC},
	{"without=msg-ring", iouring.MsgRing | iouring.SyncMsgRing},
	{"without=sparse-tables", iouring.SparseTables | iouring.DirectAlloc},
	{"without=cancel-many", iouring.CancelMany | iouring.CancelFixed},
	{"without=ring-fd,no-sqarray", iouring.RingFD | iouring.NoSQArray},
}

// inModes runs a test once in each mode, in a goroutine locked to its thread.
func inModes(t *testing.T, f func(t *testing.T, without iouring.Feature)) {
	t.Helper()
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			runtime.LockOSThread()
			t.Cleanup(runtime.UnlockOSThread) // after the rings were closed
			f(t, m.without)
		})
	}
}

// tester is a ring and what tests do with it.
type tester struct {
	*iouring.Ring
	t    testing.TB
	done []iouring.Completion // reaped and not asked for yet
}

// patience bounds how long a test waits for a completion on a busy machine.
const patience = 30 * time.Second

func newRing(t testing.TB, o iouring.Options) *tester {
	t.Helper()
	r, err := iouring.New(o)
	if errors.Is(err, iouring.ErrUnavailable) || errors.Is(err, iouring.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	x := &tester{Ring: r, t: t}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

// ok takes the results of a method that queues.
func (x *tester) ok(o iouring.Op, err error) iouring.Op {
	x.t.Helper()
	if err != nil {
		x.t.Fatal(err)
	}
	return o
}

// next submits and returns the next completion.
func (x *tester) next() iouring.Completion {
	x.t.Helper()
	for end := time.Now().Add(patience); len(x.done) == 0; {
		if err := x.SubmitWait(1, time.Second); err != nil {
			x.t.Fatal(err)
		}
		x.done = x.Reap(x.done, 1000)
		if len(x.done) == 0 && time.Now().After(end) {
			x.t.Fatalf("no completion within %v; %d operations pending", patience, x.Pending())
		}
	}
	c := x.done[0]
	x.done = x.done[1:]
	return c
}

// want returns the next completion, which must carry data.
func (x *tester) want(data uint64) iouring.Completion {
	x.t.Helper()
	c := x.next()
	if c.Data != data {
		x.t.Fatalf("completion %+v, want that of %d", c, data)
	}
	return c
}

// wantN is want of a completion that succeeded with n.
func (x *tester) wantN(data uint64, n int) iouring.Completion {
	x.t.Helper()
	c := x.want(data)
	if c.Err != nil || c.N != n {
		x.t.Fatalf("completion %+v, want %d without an error", c, n)
	}
	return c
}

// wantErr is want of a completion that failed with one of errs.
func (x *tester) wantErr(data uint64, errs ...error) iouring.Completion {
	x.t.Helper()
	c := x.want(data)
	for _, err := range errs {
		if c.Err == err {
			return c
		}
	}
	x.t.Fatalf("completion %+v, want one of %v", c, errs)
	return c
}

// all returns the next n completions by their data, of which each must be another.
func (x *tester) all(n int) map[uint64]iouring.Completion {
	x.t.Helper()
	m := make(map[uint64]iouring.Completion)
	for range n {
		c := x.next()
		if _, ok := m[c.Data]; ok {
			x.t.Fatalf("completion %+v came twice", c)
		}
		m[c.Data] = c
	}
	return m
}

// idle fails unless nothing is under way.
func (x *tester) idle() {
	x.t.Helper()
	if x.Pending() != 0 || len(x.done) != 0 {
		x.t.Errorf("%d operations pending and completions %+v, want none", x.Pending(), x.done)
	}
}

// pair is two connected sockets.
func pair(t testing.TB, domain int) (int, int) {
	t.Helper()
	p, err := unix.Socketpair(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(p[0]); closeQuietly(p[1]) })
	return p[0], p[1]
}

// closeQuietly closes a descriptor that the test may have closed.
func closeQuietly(fd int) { _ = unix.Close(fd) }

// listen is a TCP listener on loopback, and its address.
func listen(t testing.TB) (int, *unix.SockaddrInet4) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 64); err != nil {
		t.Fatal(err)
	}
	a, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fd, a.(*unix.SockaddrInet4)
}

// tcpPair is two connected sockets, for what UNIX sockets do not do.
func tcpPair(t testing.TB) (int, int) {
	t.Helper()
	l, at := listen(t)
	a := dial(t, at)
	b, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(b) })
	return a, b
}

// dial is a connection to a.
func dial(t testing.TB, a unix.Sockaddr) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeQuietly(fd) })
	if err := unix.Connect(fd, a); err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestProbe(t *testing.T) {
	f, err := iouring.Probe()
	if errors.Is(err, iouring.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Log("this kernel has:", f)
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	t.Log("release:", unix.ByteSliceToString(u.Release[:]))
}

func TestModes(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Without: without})
		if got := r.Features() & without; got != 0 {
			t.Errorf("the ring has %v, which was taken away", got)
		}
		t.Log(r.Mode(), "|", r.Features())
		x := r.ok(r.Nop(5))
		if c := r.wantN(5, 0); c.Op != x {
			t.Errorf("completion of %#x, want %#x", c.Op, x)
		}
		r.idle()
	})
}
