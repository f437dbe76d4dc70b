package iouring_test

import (
	"bytes"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/iouring"
)

// collecting runs the garbage collector all the time until the returned function is called.
func collecting() (stop func()) {
	var over atomic.Bool
	var g sync.WaitGroup
	g.Go(func() {
		for !over.Load() {
			runtime.GC()
		}
	})
	return func() { over.Store(true); g.Wait() }
}

// watched returns a buffer and counts in freed when the collector took it.
func watched(n int, freed *atomic.Int64) []byte {
	p := make([]byte, n)
	runtime.AddCleanup(&p[0], func(c *atomic.Int64) { c.Add(1) }, freed)
	return p
}

// TestBuffersLive leaves buffers to the ring alone while the collector runs. None may be freed under way, and all must be after.
func TestBuffersLive(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Entries: 64, InFlight: 64, Buffers: 1, Without: without})
		a, b := pair(t, unix.AF_UNIX)
		c, d := pair(t, unix.AF_UNIX)
		var freed atomic.Int64
		const size = 4096
		r.ok(r.Recv(iouring.FD(a), watched(size, &freed), unix.MSG_WAITALL, 1))
		r.ok(r.RecvV(iouring.FD(c), [][]byte{watched(size, &freed), watched(size, &freed)}, unix.MSG_WAITALL, 2))
		r.ok(r.Raw(&iouring.Raw{SQE: iouring.SQE{Opcode: iouring.OpPollAdd, FD: int32(a), OpFlags: unix.POLLPRI}, Keep: watched(size, &freed)}, 3))
		if err := r.SetBuffer(0, watched(size, &freed)); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			runtime.GC()
			if err := r.Submit(0); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		if n := freed.Load(); n != 0 {
			t.Fatalf("%d of the buffers under way were freed", n)
		}
		for fd, n := range map[int]int{b: size, d: 2 * size} {
			if _, err := unix.Write(fd, make([]byte, n)); err != nil {
				t.Fatal(err)
			}
		}
		r.all(2)
		r.ok(r.CancelAll(4))
		r.all(2)
		if err := r.SetBuffer(0, nil); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(patience); freed.Load() < 5 && time.Now().Before(end); time.Sleep(time.Millisecond) {
			runtime.GC()
		}
		if n := freed.Load(); n != 5 {
			t.Errorf("%d buffers freed after their completions, want 5", n)
		}
		r.idle()
	})
}

// TestForgottenRing forgets a ring with an operation under way: its buffer stays.
func TestForgottenRing(t *testing.T) {
	var freed atomic.Int64
	a, b := pair(t, unix.AF_UNIX)
	func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		r, err := iouring.New(iouring.Options{})
		if errors.Is(err, iouring.ErrUnavailable) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Recv(iouring.FD(a), watched(64, &freed), 0, 1); err != nil {
			t.Fatal(err)
		}
		if err := r.Submit(0); err != nil {
			t.Fatal(err)
		}
	}()
	for range 10 {
		runtime.GC()
	}
	if _, err := unix.Write(b, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if freed.Load() != 0 {
		t.Error("the buffer of an operation under way was freed with its ring")
	}
}

// TestCollectorStress streams through buffers that only the ring knows, while the collector runs and other memory of the same size comes
// and goes. A buffer freed too early shows as bytes that are wrong, in what was received or in the other memory.
func TestCollectorStress(t *testing.T) {
	rounds := 100
	if testing.Short() {
		rounds = 30
	}
	inModes(t, func(t *testing.T, without iouring.Feature) {
		defer collecting()()
		r := newRing(t, iouring.Options{Entries: 64, Without: without})
		a, b := tcpPair(t)
		const size, each = 2048, 8
		canary := func(v byte) []byte { return bytes.Repeat([]byte{v}, size) }
		for round := range rounds {
			v := byte(round) | 1
			for i := range each {
				r.ok(r.Recv(iouring.FD(b), make([]byte, size), unix.MSG_WAITALL, uint64(i)))
			}
			if err := r.Submit(0); err != nil {
				t.Fatal(err)
			}
			var canaries [][]byte
			for range 4 * each {
				canaries = append(canaries, canary(v+1))
			}
			for i := range each {
				if i%2 == 0 {
					r.ok(r.SendZC(iouring.FD(a), canary(v), unix.MSG_WAITALL, 100))
				} else {
					r.ok(r.SendV(iouring.FD(a), [][]byte{canary(v)[:1000], canary(v)[1000:]}, unix.MSG_WAITALL, 100))
				}
				for n := 0; n < 1; {
					c := r.next()
					if c.Err != nil {
						t.Fatal(c)
					}
					if c.Data == 100 && !c.More() {
						n++
					}
				}
			}
			for r.Pending() > 0 {
				r.next()
			}
			r.done = r.done[:0]
			for _, p := range canaries {
				if !bytes.Equal(p, canary(v+1)) {
					t.Fatal("memory of others was overwritten")
				}
			}
			// And the other way: what was sent from forgotten memory arrives as it was.
			got := make([]byte, size)
			r.ok(r.Send(iouring.FD(a), canary(v), unix.MSG_WAITALL, 1))
			r.ok(r.Recv(iouring.FD(b), got, unix.MSG_WAITALL, 2))
			r.all(2)
			if !bytes.Equal(got, canary(v)) {
				t.Fatal("what was received is not what was sent")
			}
		}
	})
}

// TestAllocations counts what operations allocate, once their slots were used.
func TestAllocations(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Entries: 64, Files: 1, Buffers: 1, Without: without})
		a, b := tcpPair(t)
		f := file(t)
		p, q := make([]byte, 4096), make([]byte, 4096)
		vec := [][]byte{p[:100], p[100:]}
		if err := errors.Join(r.SetFile(0, int(f.Fd())), r.SetBuffer(0, p)); err != nil {
			t.Fatal(err)
		}
		g, err := r.NewBufferGroup(0, 8, 8192)
		if err != nil {
			t.Fatal(err)
		}
		w, err := r.NewWaker(1)
		if err != nil {
			t.Fatal(err)
		}
		fd := iouring.FD(f.Fd())
		raw := &iouring.Raw{SQE: iouring.SQE{Opcode: iouring.OpNop}, Vec: vec}
		done := make([]iouring.Completion, 0, 64)
		run := func(name string, ops func() error) {
			t.Helper()
			all := func() {
				if err := ops(); err != nil {
					t.Fatal(name, err)
				}
				for end := time.Now().Add(patience); r.Pending() > 0 && time.Now().Before(end); {
					if err := r.SubmitWait(1, time.Second); err != nil {
						t.Fatal(name, err)
					}
					done = r.Reap(done[:0], 64)
					for i := range done {
						if done[i].Flags&iouring.HasBuffer != 0 {
							g.Recycle(done[i].Buffer)
						}
					}
				}
			}
			if n := testing.AllocsPerRun(100, all); n != 0 {
				t.Errorf("%s: %v allocations, want none", name, n)
			}
		}
		two := func(_ iouring.Op, e1 error) func(iouring.Op, error) error {
			return func(_ iouring.Op, e2 error) error {
				if e1 != nil {
					return e1
				}
				return e2
			}
		}
		run("Write, Read", func() error { return two(r.Write(fd, p, 0, 1))(r.Read(fd, q, 0, 2)) })
		run("WriteFixed, ReadFixed", func() error {
			return two(r.WriteFixed(iouring.Fixed(0), p, 0, 0, 1))(r.ReadFixed(iouring.Fixed(0), p[:512], 0, 0, 2))
		})
		run("WriteV, ReadV", func() error { return two(r.WriteV(fd, vec, 0, 1))(r.ReadV(fd, vec, 0, 2)) })
		run("Send, Recv", func() error {
			return two(r.Send(iouring.FD(a), p, 0, 1))(r.Recv(iouring.FD(b), q, unix.MSG_WAITALL, 2))
		})
		run("SendV, RecvV", func() error {
			return two(r.SendV(iouring.FD(a), vec, 0, 1))(r.RecvV(iouring.FD(b), vec, unix.MSG_WAITALL, 2))
		})
		run("SendZC, RecvSelect", func() error {
			return two(r.SendZC(iouring.FD(a), p, 0, 1))(r.RecvSelect(iouring.FD(b), g, 2))
		})
		run("Timeout, Cancel", func() error {
			o, err := r.Timeout(time.Hour, 0, 1)
			return two(o, err)(r.Cancel(o, 2))
		})
		run("LinkTimeout", func() error {
			_, err := r.Nop(1)
			r.Link()
			return two(0, err)(r.LinkTimeout(time.Hour, 2))
		})
		run("Poll, Sync, an error", func() error {
			_, err := r.Poll(iouring.FD(a), unix.POLLOUT, 1)
			return two(r.Sync(-1, 3))(0, err)
		})
		run("Raw", func() error { _, err := r.Raw(raw, 1); return err })
		run("Wake", func() error {
			_, err := r.Nop(1)
			return two(0, err)(0, w.Wake())
		})
	})
}
