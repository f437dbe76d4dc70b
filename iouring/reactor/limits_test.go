package reactor_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/iouring/reactor"
)

// TestStuck has an operation that does not end: Close gives up in time, and the loop ends with the operation.
func TestStuck(t *testing.T) {
	l := start(t, reactor.Options{Kind: reactor.Ring})
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	buf, pipe := make([]byte, 1), l.File(p[0])
	ended := make(chan struct{})
	var late, stuck reactor.Op
	on(t, l, func() {
		timedOut := false
		late.Timeout = 20 * time.Millisecond
		late.Done = func(n int, err error) {
			timedOut = true
			if n != 0 || !errors.Is(err, reactor.ErrTimeout) {
				t.Errorf("read of an empty pipe: %d, %v; want a time-out", n, err)
			}
		}
		pipe.Read(&late, buf, 0)
		stuck.Done = func(n int, err error) {
			if n != 1 || err != nil || buf[0] != 'x' || !timedOut {
				t.Errorf("read of a pipe: %d, %v, %q; the other timed out: %v", n, err, buf, timedOut)
			}
			close(ended)
		}
	})
	until(t, "time-out", func() bool {
		under := true
		on(t, l, func() { under = late.UnderWay() })
		return !under
	})
	on(t, l, func() { pipe.Read(&stuck, buf, 0) })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := l.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("close with an operation under way: %v", err)
	}
	runtime.GC()
	if _, err := unix.Write(p[1], []byte("x")); err != nil {
		t.Fatal(err)
	}
	wait(t, ended, "the operation")
}

// TestNothingAllocated runs each hot path and counts.
func TestNothingAllocated(t *testing.T) {
	each(t, nil, func(t *testing.T, l *reactor.Loop) {
		check := func(what string, fn func()) {
			t.Helper()
			for range 100 {
				fn()
			}
			if n := testing.AllocsPerRun(1000, fn); n != 0 {
				t.Errorf("%s: %v allocations, want none", what, n)
			}
		}
		done := make(chan struct{}, 1)
		task := reactor.Task{Run: func() { done <- struct{}{} }}
		check("task", func() { l.Post(&task); <-done })

		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		file, buf := l.File(int(f.Fd())), make([]byte, 4096)
		op := reactor.Op{Timeout: time.Hour, Done: func(n int, err error) {
			if n != len(buf) || err != nil {
				t.Errorf("%d, %v", n, err)
			}
			done <- struct{}{}
		}}
		write := reactor.Task{Run: func() { file.Write(&op, buf, 0) }}
		read := reactor.Task{Run: func() { file.Read(&op, buf, 0) }}
		check("write and read", func() { l.Post(&write); <-done; l.Post(&read); <-done })

		for _, n := range []int{64, 100_000} {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fds[1])
			on(t, l, func() {
				if _, err := l.Adopt(fds[0], newBenchConn()); err != nil {
					t.Error(err)
				}
			})
			request := make([]byte, benchHead+n)
			binary.LittleEndian.PutUint32(request, uint32(n))
			binary.LittleEndian.PutUint32(request[4:], uint32(n))
			answer := make([]byte, benchHead+n)
			check("echo", func() {
				if err := all(fds[1], request, unix.Write); err != nil {
					t.Fatal(err)
				}
				if err := all(fds[1], answer, unix.Read); err != nil {
					t.Fatal(err)
				}
			})
		}
	})
}

// all reads or writes all of p.
func all(fd int, p []byte, call func(int, []byte) (int, error)) error {
	for len(p) > 0 {
		n, err := call(fd, p)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		p = p[n:]
	}
	return nil
}

// TestUnread gives bytes back that were read before the loop got the socket.
func TestUnread(t *testing.T) {
	each(t, nil, func(t *testing.T, l *reactor.Loop) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fds[1])
		var live atomic.Int64
		f := frame(1, 50_000, 0)
		on(t, l, func() {
			c, err := l.Adopt(fds[0], &framed{t: t, live: &live})
			if err != nil {
				t.Error(err)
				return
			}
			c.Unread(f[10_000:20_000])
			c.Unread(f[:10_000])
		})
		go all(fds[1], f[20_000:], unix.Write)
		got := make([]byte, len(f))
		if err := all(fds[1], got, unix.Read); err != nil || !bytes.Equal(got, f) {
			t.Errorf("%v, equal: %v", err, bytes.Equal(got, f))
		}
	})
}
