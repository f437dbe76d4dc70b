package fuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"varve/internal/fserr"
)

// TestUringRefused gives the kernel queues that it does not take: everything goes on by /dev/fuse.
func TestUringRefused(t *testing.T) {
	h := newHotFS()
	s, dir := way{transport: Uring}.mount(t, h, func(o *Options) { o.ringPayload = pageSize })
	runGuest(t, "data", dir)
	if c := s.Conn(); c.Transport != Dev || !strings.Contains(c.Why, "refused") {
		t.Errorf("transport %s, %s", c.Transport, c.Why)
	}
	if err := s.Unmount(10 * time.Second); err != nil {
		t.Error(err)
	}
	h.checkHot(t)
}

// TestUringSwitchedOff: a mount goes on when the kernel's switch is put back, and there are no new ones.
func TestUringSwitchedOff(t *testing.T) {
	s, dir := way{transport: Uring}.mount(t, newHotFS(), nil)
	unlock := switchUring(t, "N")
	runGuest(t, "data", dir)
	_, err := Mount(t.Context(), Options{MountPoint: t.TempDir(), Transport: Uring}, newMemFS())
	if !errors.Is(err, fserr.NotSupported) || !strings.Contains(err.Error(), "echo Y > ") {
		t.Errorf("mount with the switch off: %v", err)
	}
	unlock()
	if got := s.Conn().Transport; got != Uring {
		t.Errorf("transport %s", got)
	}
}

// TestMountWaitsForInit: who has a mount may switch FUSE over io_uring off, so the kernel has the answer to INIT by then.
func TestMountWaitsForInit(t *testing.T) {
	s, f := fakeSession(t, newMemFS())
	ready := func() bool {
		select {
		case <-s.ready:
			return true
		default:
			return false
		}
	}
	f.sending = func() {
		if ready() {
			t.Error("ready before INIT was answered")
		}
	}
	init := encode(opInit, 2, 0, u32(7), u32(45), u32(1<<17), u32(0xffffffff), u32(0xffffffff), make([]byte, 44))
	if err := feed(s, init); err != nil {
		t.Fatal(err)
	}
	if !ready() {
		t.Error("not ready after INIT was answered")
	}
}

// TestUringLocks has more waits for locks than a queue has entries at first: the unlock gets through, and so do all who wait.
func TestUringLocks(t *testing.T) {
	s, dir := way{transport: Uring}.mount(t, newHotFS(), nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := guestCommand(ctx, "lock-queue", dir)
	cmd.Stderr = t.Output()
	more, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	waiting := func() (n int) {
		for _, f := range s.flights.all() {
			if f.op == opSetlkw {
				n++
			}
		}
		return n
	}
	for waiting() <= ringDepth+8 && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	more.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if err := s.Unmount(10 * time.Second); err != nil {
		t.Error(err)
	}
	entries := 0
	for _, q := range s.via.(*loops).ring.queues {
		entries = max(entries, q.entries)
	}
	if entries <= ringDepth {
		t.Errorf("the largest queue has %d entries: the test did not fill any", entries)
	}
}

// TestLoopFails ends a mount that cannot go on: with the reason, and so that nobody waits for it.
func TestLoopFails(t *testing.T) { each(t, onLoopFails) }

func onLoopFails(t *testing.T, w way) {
	if w.transport == Readers {
		t.Skip("it has no loops")
	}
	backend, m := w.mem()
	s, dir := w.mount(t, backend, nil)
	cmd := startStalled(t, m, dir)
	why := fmt.Errorf("as the test wants it: %w", fserr.Timeout) // which the end of the test forgives
	s.via.(*loops).fail(why)
	waitFor(t, "guest", cmd.Wait)
	waitFor(t, "session", func() error {
		if err := s.Wait(); !errors.Is(err, why) {
			t.Errorf("session: %v, want %v", err, why)
		}
		return nil
	})
}

// TestUringCheck says why there is no FUSE over io_uring.
func TestUringCheck(t *testing.T) {
	defer func(old string) { uringSwitch = old }(uringSwitch)
	uringSwitch = filepath.Join(t.TempDir(), "switch")
	if _, err := checkUring(); !errors.Is(err, fserr.NotSupported) || !strings.Contains(err.Error(), "6.14") {
		t.Errorf("an old kernel: %v", err)
	}
	if err := os.WriteFile(uringSwitch, []byte("N\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := checkUring(); !errors.Is(err, fserr.NotSupported) || !strings.Contains(err.Error(), "echo Y") {
		t.Errorf("switched off: %v", err)
	}
	for list, want := range map[string]int{"0\n": 1, "0-1\n": 2, "0-127": 128, "": 0, "1-3": 0, "0,2": 0, "0-x": 0, "0-3,8-11": 0, "0-99999": 0} {
		if n, err := parseCPUs(list); n != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v, want %d", list, n, err, want)
		}
	}
}

// TestEarlyInterrupt: on a ring's mount INTERRUPT comes by another way, and may overtake its request.
func TestEarlyInterrupt(t *testing.T) {
	s, f := fakeSession(t, newMemFS())
	s.transport = Uring
	lock := func(op opcode, unique, owner uint64) {
		t.Helper()
		m := encode(op, unique, 2, u64(1), u64(owner), u64(0), u64(1<<62), u32(syscall.F_WRLCK), u32(1), u32(0), u32(0))
		if err := feed(s, m); err != nil {
			t.Fatal(err)
		}
	}
	if err := feed(s, encode(opCreate, 2, 1, u32(2), u32(0o644), u32(0), u32(0), "f")); err != nil {
		t.Fatal(err)
	}
	lock(opSetlk, 4, 1)
	f.refuse = true // the kernel does not find the request by the answer to INTERRUPT
	if err := feed(s, encode(opInterrupt, 7, 0, u64(6))); err != nil {
		t.Fatal(err)
	}
	f.refuse = false
	lock(opSetlkw, 6, 2) // would wait for ever
	if got := f.answers[6].errno; got != syscall.EINTR {
		t.Errorf("interrupted wait for a lock: %v, want EINTR", got)
	}
	if n := s.early.n.Load(); n != 0 {
		t.Errorf("%d early interrupts left", n)
	}
	s.early.add(8)
	s.early.m[8] = time.Now().Add(-time.Hour)
	s.early.add(10)
	if s.early.expire(); s.early.take(8) || !s.early.take(10) || s.early.take(10) {
		t.Error("early interrupts are not kept as long as they should")
	}
}

// TestAuto mounts as most do: by what the kernel has, and with a backend for reactors or without.
func TestAuto(t *testing.T) {
	needKernel(t)
	for _, c := range []struct {
		to      string
		backend Backend
		want    Transport
		why     string
	}{
		{"Y", newHotFS(), Uring, "least CPU"}, {"N", newHotFS(), Dev, "echo Y"}, {"Y", newMemFS(), Readers, "nothing is begun"},
	} {
		unlock := switchUring(t, c.to)
		s, dir := testMount(t, c.backend, nil)
		if c.to == "N" {
			_ = os.WriteFile(uringSwitch, []byte("Y"), 0)
		}
		unlock()
		if got := s.Conn(); got.Transport != c.want || !strings.Contains(got.Why, c.why) {
			t.Errorf("%s: %s, since %s; want %s", c.to, got.Transport, got.Why, c.want)
		}
		runGuest(t, "make", dir)
	}
}
