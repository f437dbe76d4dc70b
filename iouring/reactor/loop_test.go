package reactor_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/iouring"
	"varve/iouring/reactor"
)

// patience bounds every wait of a test: a machine may be slow.
const patience = 30 * time.Second

// kinds are the implementations that every test runs on: rings as this kernel and older ones have them, and epoll.
var kinds = []struct {
	name string
	o    reactor.Options
}{
	{"ring", reactor.Options{Kind: reactor.Ring}},
	{"poll", reactor.Options{Kind: reactor.Poll}},
	{"ring-batch", reactor.Options{Kind: reactor.Ring, Batch: 2}},
	{"ring-6.0", reactor.Options{Kind: reactor.Ring, Ring: iouring.Options{Without: iouring.NewerThan(iouring.Version{Major: 6, Minor: 0})}}},
	{"ring-5.19", reactor.Options{Kind: reactor.Ring, Ring: iouring.Options{Without: iouring.NewerThan(iouring.Version{Major: 5, Minor: 19})}}},
	{"ring-5.15", reactor.Options{Kind: reactor.Ring, Ring: iouring.Options{Without: iouring.AllFeatures}}},
}

// each runs a test on each kind of loop.
func each(t *testing.T, change func(*reactor.Options), test func(t *testing.T, l *reactor.Loop)) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			o := k.o
			if change != nil {
				change(&o)
			}
			test(t, start(t, o))
		})
	}
}

func start(t testing.TB, o reactor.Options) *reactor.Loop {
	t.Helper()
	l, err := reactor.Start(o)
	if errors.Is(err, iouring.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := l.Close(ctx); err != nil {
			t.Errorf("close: %v; %+v", err, l.Stats())
		}
		if s := l.Stats(); s.UnderWay != 0 || s.Conns != 0 {
			t.Errorf("after the end %d operations and %d connections are left", s.UnderWay, s.Conns)
		}
	})
	return l
}

// on runs fn on the loop's thread and waits for it.
func on(t testing.TB, l *reactor.Loop, fn func()) {
	t.Helper()
	done := make(chan struct{})
	if !l.Do(func() { defer close(done); fn() }) {
		t.Fatal("the loop has ended")
	}
	wait(t, done, "task")
}

func wait(t testing.TB, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		buf := make([]byte, 1<<20)
		t.Fatalf("%s did not end within %v\n%s", what, patience, buf[:runtime.Stack(buf, true)])
	}
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// serve has the loop accept connections with handlers made by h, and returns the address.
func serve(t testing.TB, l *reactor.Loop, h func() reactor.Handler) string {
	t.Helper()
	nl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	fd, err := reactor.Descriptor(nl.(*net.TCPListener))
	if err != nil {
		t.Fatal(err)
	}
	on(t, l, func() {
		_, err = l.Listen(fd, func(fd int) {
			if _, err := l.Adopt(fd, h()); err != nil {
				t.Error(err)
			}
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return nl.Addr().String()
}

func dial(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// TestPost posts from many goroutines at once: every task runs once, those of one goroutine in order.
func TestPost(t *testing.T) {
	each(t, nil, func(t *testing.T, l *reactor.Loop) {
		const posters, tasks = 8, 1000
		var wg sync.WaitGroup
		last := make([]int, posters)
		ran := 0
		for p := range posters {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for i := range tasks {
					if !l.Do(func() {
						ran++
						if last[p] != i {
							t.Errorf("goroutine %d: task %d ran, want %d", p, i, last[p])
						}
						last[p] = i + 1
					}) {
						t.Error("refused")
					}
					if i%100 == 0 {
						time.Sleep(100 * time.Microsecond) // let it fall asleep
					}
				}
			}()
		}
		wg.Wait()
		on(t, l, func() {
			if ran != posters*tasks {
				t.Errorf("%d tasks ran, want %d", ran, posters*tasks)
			}
		})
		s := l.Stats()
		t.Logf("%s (%s): %d tasks, %d wakes, %d turns", l.Kind(), l.Reason(), s.Posted, s.Wakes, s.Waits)
		if s.Wakes > s.Posted {
			t.Errorf("%d wakes for %d tasks", s.Wakes, s.Posted)
		}
	})
}

// TestPostAtTheEnd posts while the loop is closed: what was taken runs, what was refused does not.
func TestPostAtTheEnd(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			for range 4 {
				l, err := reactor.Start(k.o)
				if errors.Is(err, iouring.ErrUnavailable) {
					t.Skip(err)
				}
				if err != nil {
					t.Fatal(err)
				}
				var taken, ran atomic.Int64
				var wg sync.WaitGroup
				for range 4 {
					wg.Add(1)
					go func() {
						defer wg.Done()
						for l.Do(func() { ran.Add(1) }) {
							taken.Add(1)
						}
					}()
				}
				time.Sleep(time.Millisecond)
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				if err := l.Close(ctx); err != nil {
					t.Fatal(err)
				}
				cancel()
				wg.Wait()
				if taken.Load() != ran.Load() {
					t.Fatalf("%d tasks were taken, %d ran", taken.Load(), ran.Load())
				}
			}
		})
	}
}

func TestTimers(t *testing.T) {
	each(t, nil, func(t *testing.T, l *reactor.Loop) {
		var order []int
		done := make(chan struct{})
		timers := make([]reactor.Timer, 5)
		began := time.Now()
		on(t, l, func() {
			for i := range timers {
				timers[i].Fire = func() {
					order = append(order, i)
					if d := time.Since(began); d < time.Duration(i*20-10)*time.Millisecond {
						t.Errorf("timer %d fired after %v", i, d)
					}
					if i == 4 {
						close(done)
					}
				}
			}
			for _, i := range []int{3, 0, 4, 1, 2} {
				l.SetTimer(&timers[i], time.Duration(i*20)*time.Millisecond)
			}
			l.StopTimer(&timers[2])
			l.StopTimer(&timers[2])
		})
		wait(t, done, "last timer")
		on(t, l, func() {
			if len(order) != 4 || order[0] != 0 || order[1] != 1 || order[2] != 3 || order[3] != 4 {
				t.Errorf("fired %v", order)
			}
		})
	})
}

// TestFile writes, syncs, punches and reads with more operations at once than the kernel is given.
func TestFile(t *testing.T) {
	arena := make([]byte, 1<<20)
	each(t, func(o *reactor.Options) { o.Operations, o.Arenas = 8, [][]byte{make([]byte, 4096), arena} }, func(t *testing.T, l *reactor.Loop) {
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		const blocks, size = 100, 4096
		var file reactor.File
		on(t, l, func() { file = l.File(int(f.Fd())) })
		run := func(n int, begin func(op *reactor.Op, i int), bytes int) {
			t.Helper()
			done := make(chan struct{})
			left := n
			l.Do(func() {
				ops := make([]reactor.Op, n)
				for i := range ops {
					ops[i].Done = func(n int, err error) {
						if n != bytes || err != nil {
							t.Errorf("operation %d: %d bytes, %v; want %d", i, n, err, bytes)
						}
						if left--; left == 0 {
							close(done)
						}
					}
					begin(&ops[i], i)
				}
				runtime.GC() // buffers are the kernel's now
			})
			wait(t, done, "file operations")
		}
		run(1, func(op *reactor.Op, _ int) { file.Allocate(op, 0, blocks*size) }, 0)
		run(blocks, func(op *reactor.Op, i int) { file.Write(op, pattern(i, size), int64(i)*size) }, size)
		run(1, func(op *reactor.Op, _ int) { file.Sync(op) }, 0)
		run(1, func(op *reactor.Op, _ int) { file.Punch(op, 3*size, 2*size) }, 0)
		got := arena[:blocks*size]
		clear(got)
		run(blocks, func(op *reactor.Op, i int) { file.Read(op, got[i*size:(i+1)*size], int64(i)*size) }, size)
		for i := range blocks {
			want := pattern(i, size)
			if i == 3 || i == 4 {
				clear(want)
			}
			if string(got[i*size:(i+1)*size]) != string(want) {
				t.Errorf("block %d differs", i)
			}
		}
		if s := l.Stats(); s.Backlogged == 0 {
			t.Error("no operation had to wait for room, though there were 100 and room for 8")
		}
		// Beyond the end, and of a descriptor that is none.
		done := make(chan struct{})
		l.Do(func() {
			var past, bad reactor.Op
			past.Done = func(n int, err error) {
				if n != size || err == nil {
					t.Errorf("read across the end: %d, %v; want %d and an error", n, err, size)
				}
				bad.Done = func(n int, err error) {
					if n != 0 || err == nil {
						t.Errorf("read of a bad descriptor: %d, %v", n, err)
					}
					close(done)
				}
				none := l.File(1 << 20)
				none.Read(&bad, got[:size], 0)
			}
			file.Read(&past, got[:2*size], (blocks-1)*size)
		})
		wait(t, done, "failing reads")
	})
}

// pattern is n bytes that depend on i.
func pattern(i, n int) []byte {
	p := make([]byte, n)
	x := uint32(i)*2654435761 + 1
	for j := range p {
		x = x*1664525 + 1013904223
		p[j] = byte(x >> 24)
	}
	return p
}

// TestPostFromCallback: what an operation posts when it ends is done in the next turn, with no system call to wake the loop that it runs on.
func TestPostFromCallback(t *testing.T) {
	each(t, nil, func(t *testing.T, l *reactor.Loop) {
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		const rounds = 100
		done := make(chan struct{})
		var (
			op   reactor.Op
			file reactor.File
			task reactor.Task
			n    int
			before,
			after reactor.Stats
		)
		buf := make([]byte, 4096)
		op.Done = func(_ int, err error) {
			if err != nil {
				t.Error(err)
			}
			before = l.Stats()
			l.Post(&task)
			after = l.Stats()
			if after.Wakes != before.Wakes {
				t.Errorf("round %d: the loop was woken by itself", n)
			}
		}
		task.Run = func() {
			if n++; n == rounds {
				close(done)
				return
			}
			file.Write(&op, buf, 0)
		}
		on(t, l, func() {
			file = l.File(int(f.Fd()))
			file.Write(&op, buf, 0)
		})
		wait(t, done, "rounds")
	})
}
