package nbdserver_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/block/blocktest"
	"varve/internal/fserr"
	"varve/internal/nbd"
	"varve/internal/nbd/nbdserver"
	"varve/iouring/reactor"
)

var be = binary.BigEndian

// image is an image in memory; each open of it is a file of its own with the same contents.
type image struct {
	f     *blocktest.File
	seats *blocktest.Seats // nil: nothing begins on a loop

	mu    sync.Mutex
	opens int
	err   error
}

func (m *image) Size(context.Context) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	m.f.Data(func(p []byte) { n = len(p) })
	return int64(n), m.err
}

func (m *image) Open(ctx context.Context, _ bool) (block.OpenFile, int64, error) {
	n, err := m.Size(ctx)
	if err != nil {
		return nil, 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.opens++
	if m.seats != nil {
		return hotFile{&blocktest.Hot{File: m.f, Seats: m.seats}}, n, nil
	}
	return file{m.f}, n, nil
}

func (m *image) opened() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.opens
}

func (m *image) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

type file struct{ *blocktest.File }

func (f file) Inherit(block.OpenFile) { f.Heir() }

type hotFile struct{ *blocktest.Hot }

func (f hotFile) Inherit(block.OpenFile) { f.Heir() }

// server is one under test.
type server struct {
	*nbdserver.Server
	t     *testing.T
	m     *image
	loops []*block.Loop
	path  string
	stop  func() error
}

type config struct {
	size     int
	kind     reactor.Kind
	hot      bool
	readOnly bool
	memory   int
	change   func(*nbdserver.Options)
}

const mib = 1 << 20

func serve(t *testing.T, c config) *server {
	t.Helper()
	if c.size == 0 {
		c.size = 4 * mib
	}
	s := &server{t: t, m: &image{f: blocktest.New(c.size)}, path: filepath.Join(t.TempDir(), "s")}
	o := block.LoopOptions{Threads: 2, Kind: c.kind, Memory: c.memory}
	if c.hot {
		s.m.seats = &blocktest.Seats{}
		o.Host = s.m.seats
	}
	var err error
	if s.loops, err = block.StartLoops(o); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	so := nbdserver.Options{
		Loops: s.loops, Listeners: []net.Listener{l}, Logger: slog.New(slog.DiscardHandler),
		Exports: []nbdserver.Export{
			{Name: "disk", Description: "a disk", Image: s.m, ReadOnly: c.readOnly},
			{Name: "images/other", Image: &image{f: blocktest.New(12345)}},
		},
	}
	if c.change != nil {
		c.change(&so)
	}
	if s.Server, err = nbdserver.Start(so); err != nil {
		t.Fatal(err)
	}
	s.stop = sync.OnceValue(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		return errors.Join(s.Shutdown(ctx), block.CloseLoops(ctx, s.loops))
	})
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *server) dial(export string) *nbd.Conn {
	s.t.Helper()
	c, err := nbd.Dial(s.t.Context(), nbd.URI{Network: "unix", Address: s.path, Export: export})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// each runs a test on a ring and on epoll, with files that begin operations on loops and without.
func each(t *testing.T, c config, fn func(t *testing.T, s *server)) {
	for name, v := range map[string]config{"ring": {}, "epoll": {kind: reactor.Poll}, "ring, on loops": {hot: true}, "epoll, on loops": {kind: reactor.Poll, hot: true}} {
		t.Run(name, func(t *testing.T) {
			c.kind, c.hot = v.kind, v.hot
			fn(t, serve(t, c))
		})
	}
}

// TestModel: random commands from several connections, each in its own part, give what a slice gives; the end is flushed.
func TestModel(t *testing.T) {
	const part, conns = mib, 3
	each(t, config{size: part * conns}, func(t *testing.T, s *server) {
		var wg sync.WaitGroup
		want := make([]byte, part*conns)
		for i := range conns {
			c := s.dial("disk")
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(i), 1))
				mine := want[i*part:][:part]
				for range 150 {
					off, n := rnd.IntN(part), 1+rnd.IntN(20000)
					n = min(n, part-off)
					at := uint64(i*part + off)
					flags := uint16(0)
					if rnd.IntN(4) == 0 {
						flags = nbd.FlagFUA
					}
					var err error
					switch rnd.IntN(6) {
					case 0, 1:
						p := bytes.Repeat([]byte{byte(rnd.IntN(255) + 1)}, n)
						copy(mine[off:], p)
						err = c.Do(nbd.CmdWrite, flags, at, p, 0)
					case 2, 3:
						p := make([]byte, n)
						if err = c.Do(nbd.CmdRead, 0, at, p, 0); err == nil && !bytes.Equal(p, mine[off:][:n]) {
							t.Errorf("conn %d: what is read at %d is not what was written", i, at)
						}
					case 4:
						clear(mine[off:][:n])
						if rnd.IntN(2) == 0 {
							flags |= nbd.FlagNoHole
						}
						err = c.Do(nbd.CmdWriteZeroes, flags, at, nil, uint32(n))
					case 5:
						if err = c.Do(nbd.CmdFlush, 0, 0, nil, 0); err == nil {
							err = c.Do(nbd.CmdCache, 0, at, nil, uint32(n))
						}
					}
					if err != nil {
						t.Errorf("conn %d: %v", i, err)
						return
					}
				}
			})
		}
		wg.Wait()
		if err := s.stop(); err != nil {
			t.Error(err)
		}
		s.m.f.Data(func(p []byte) {
			if !bytes.Equal(p, want) {
				t.Error("the image is not what was written")
			}
		})
		if s.m.f.Unflushed() != 0 || s.m.f.Released() != 1 || s.m.opened() != 1 {
			t.Errorf("%d writes unflushed, %d opens, %d of them given back", s.m.f.Unflushed(), s.m.opened(), s.m.f.Released())
		}
	})
}

// TestRange: what is beyond the end, read-only or unknown is refused as the protocol says, and the connection goes on.
func TestRange(t *testing.T) {
	each(t, config{size: 10000}, func(t *testing.T, s *server) {
		c := s.dial("")
		if e := c.Export; e.Size != 10000 || e.Least != 1 || e.Preferred != 4096 || e.Most != 32*mib || !c.MultiConn() || !e.Structured {
			t.Errorf("%+v", e)
		}
		buf := make([]byte, 8192)
		for _, tc := range []struct {
			name   string
			cmd    nbd.Command
			flags  uint16
			off    uint64
			p      []byte
			length uint32
			want   nbd.Errno
		}{
			{"read beyond", nbd.CmdRead, 0, 5000, buf, 0, nbd.EINVAL},
			{"read far beyond", nbd.CmdRead, 0, 1<<64 - 100, buf, 0, nbd.EINVAL},
			{"write beyond", nbd.CmdWrite, 0, 5000, buf, 0, nbd.ENOSPC},
			{"write at 2^64", nbd.CmdWrite, 0, 1<<64 - 8192, buf, 0, nbd.ENOSPC},
			{"zeroes beyond", nbd.CmdWriteZeroes, 0, 5000, nil, 8192, nbd.ENOSPC},
			{"trim beyond", nbd.CmdTrim, 0, 5000, nil, 1<<32 - 1, nbd.EINVAL},
			{"fast zeroes that cannot be", nbd.CmdWriteZeroes, nbd.FlagFastZero | nbd.FlagNoHole, 0, nil, 4096, nbd.ENOTSUP},
			{"fast zeroes", nbd.CmdWriteZeroes, nbd.FlagFastZero, 0, nil, 4096, 0},
			{"a flag that does not belong there", nbd.CmdTrim, nbd.FlagNoHole, 0, nil, 4096, nbd.EINVAL},
			{"an unknown command", 99, 0, 0, nil, 0, nbd.EINVAL},
			{"block status that was not agreed on", nbd.CmdBlockStatus, 0, 0, nil, 4096, nbd.EINVAL},
			{"nothing", nbd.CmdWrite, 0, 10000, []byte{}, 0, 0},
			{"read nothing", nbd.CmdRead, 0, 10000, []byte{}, 0, 0},
			{"the last bytes", nbd.CmdWrite, nbd.FlagFUA, 10000 - 8192, buf, 0, 0},
			{"all", nbd.CmdTrim, 0, 0, nil, 10000, 0},
		} {
			err := c.Do(tc.cmd, tc.flags, tc.off, tc.p, tc.length)
			if tc.want == 0 && err != nil || tc.want != 0 && !errors.Is(err, tc.want) {
				t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
			}
		}
	})
	s := serve(t, config{readOnly: true})
	c := s.dial("disk")
	for _, cmd := range []nbd.Command{nbd.CmdTrim, nbd.CmdWriteZeroes} {
		if err := c.Do(cmd, 0, 0, nil, 4096); !errors.Is(err, nbd.EPERM) {
			t.Errorf("%s of a read-only export: %v", cmd, err)
		}
	}
	if err := c.Do(nbd.CmdWrite, 0, 0, make([]byte, 20000), 0); !errors.Is(err, nbd.EPERM) || c.Export.Flags&nbd.ReadOnly == 0 {
		t.Errorf("write to a read-only export: %v", err)
	}
	if err := c.Do(nbd.CmdRead, 0, 0, make([]byte, 20000), 0); err != nil {
		t.Error(err)
	}
}

// TestErrors: outcomes of operations become the protocol's.
func TestErrors(t *testing.T) {
	for code, want := range map[fserr.Code]nbd.Errno{
		fserr.NoSpace: nbd.ENOSPC, fserr.IO: nbd.EIO, fserr.ReadOnly: nbd.EPERM, fserr.NotSupported: nbd.ENOTSUP, fserr.Timeout: nbd.EIO, fserr.Invalid: nbd.EINVAL,
	} {
		s := serve(t, config{hot: true})
		s.m.f.Fault(func(string, int64, int64) error { return code })
		c := s.dial("disk")
		for _, cmd := range []nbd.Command{nbd.CmdRead, nbd.CmdRead, nbd.CmdWrite, nbd.CmdWrite, nbd.CmdTrim, nbd.CmdFlush} {
			var p []byte
			if cmd == nbd.CmdRead || cmd == nbd.CmdWrite {
				p = make([]byte, 4096)
			}
			if err := c.Do(cmd, 0, 0, p, 4096); !errors.Is(err, want) {
				t.Errorf("%s that fails with %q: %v, want %v", cmd, code, err, want)
			}
		}
		c.Close()
		if err := s.stop(); !errors.Is(err, code) { // the last flush fails as well
			t.Errorf("stop: %v", err)
		}
		s.stop = func() error { return nil }
	}
}

// TestOpen: an image is opened with its first client and given back after its last; one that cannot be opened is refused with the reason.
func TestOpen(t *testing.T) {
	s := serve(t, config{})
	a, b := s.dial("disk"), s.dial("/disk")
	if n := s.m.opened(); n != 1 {
		t.Errorf("%d opens for two clients", n)
	}
	if err := a.Do(nbd.CmdWrite, 0, 0, make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	a.Close()
	b.Close()
	for deadline := time.Now().Add(time.Minute); s.m.f.Released() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the image is not given back")
		}
	}
	if s.m.f.Unflushed() != 0 {
		t.Error("it was given back unflushed")
	}
	s.dial("disk")
	if n := s.m.opened(); n != 2 {
		t.Errorf("%d opens, want 2", n)
	}
	s.m.fail(fserr.NotExist)
	for s.m.f.Released() == 0 {
		time.Sleep(time.Millisecond)
	}
	if _, err := nbd.Dial(t.Context(), nbd.URI{Network: "unix", Address: s.path, Export: "nope"}); err == nil {
		t.Error("an export that there is not was opened")
	}
}

// TestLost: when the session behind an image is lost, nothing is acknowledged any more, the connection ends, and who comes again finds it opened anew, with what
// was not flushed handed on.
func TestLost(t *testing.T) {
	each(t, config{}, func(t *testing.T, s *server) {
		a, b := s.dial("disk"), s.dial("disk")
		if err := a.Do(nbd.CmdWrite, 0, 0, make([]byte, 4096), 0); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		lost := true
		s.m.f.Fault(func(string, int64, int64) error {
			mu.Lock()
			defer mu.Unlock()
			if lost {
				return fserr.Stale
			}
			return nil
		})
		for i, c := range []*nbd.Conn{a, b} {
			if err := c.Do(nbd.CmdWrite, 0, 0, make([]byte, 4096), 0); err == nil {
				t.Errorf("conn %d: a write is acknowledged", i)
			}
			if err := c.Do(nbd.CmdFlush, 0, 0, nil, 0); err == nil {
				t.Errorf("conn %d: a flush is acknowledged", i)
			}
		}
		c := s.dial("disk")
		mu.Lock()
		lost = false
		mu.Unlock()
		if err := c.Do(nbd.CmdFlush, 0, 0, nil, 0); err != nil {
			t.Error(err)
		}
		if s.m.opened() != 2 || s.m.f.Inherited() != 1 {
			t.Errorf("%d opens, %d of them heirs", s.m.opened(), s.m.f.Inherited())
		}
	})
}

// guarded is an open of an image that somebody else may take.
type guarded struct {
	file
	m *shared
}

func (g guarded) Lost() bool { return g.m.lost.Load() }

func (g guarded) Taken(lost []block.OpenFile) bool { return len(lost) > 0 && g.m.taken.Load() }

// shared is an image whose opens are guarded.
type shared struct {
	image
	lost, taken atomic.Bool
}

func (m *shared) Open(ctx context.Context, readOnly bool) (block.OpenFile, int64, error) {
	o, n, err := m.image.Open(ctx, readOnly)
	if err != nil {
		return nil, 0, err
	}
	return guarded{o.(file), m}, n, nil
}

// TestTaken: clients of an image whose session was lost come again, unless somebody else was let write to it since: then nobody does.
func TestTaken(t *testing.T) {
	m := &shared{image: image{f: blocktest.New(mib)}}
	s := serve(t, config{change: func(o *nbdserver.Options) {
		o.Exports = []nbdserver.Export{{Name: "disk", Image: m}, {Name: "seen", Image: m, ReadOnly: true}}
	}})
	gone := func() {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); s.Connections() > 0 || m.f.Released() != m.opened(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the image is not given back")
			}
		}
	}
	lose := func() {
		t.Helper()
		c := s.dial("disk")
		m.lost.Store(true)
		m.f.Fault(func(string, int64, int64) error { return fserr.Stale })
		if err := c.Do(nbd.CmdRead, 0, 0, make([]byte, 512), 0); err == nil {
			t.Error("a read of a lost session")
		}
		gone()
		m.f.Fault(nil)
		m.lost.Store(false)
	}
	lose()
	c := s.dial("disk") // nobody else has it
	if err := c.Do(nbd.CmdWrite, 0, 0, make([]byte, 512), 0); err != nil {
		t.Error(err)
	}
	c.Close()
	gone()
	m.taken.Store(true)
	c = s.dial("disk") // it was given back in order
	c.Close()
	gone()
	lose()
	for range 2 {
		if c, err := nbd.Dial(t.Context(), nbd.URI{Network: "unix", Address: s.path, Export: "disk"}); err == nil {
			c.Close()
			t.Error("an image was opened again that is somebody else's")
		}
	}
	s.dial("seen").Close()
	gone()
}

// TestMany: the payload of a write is taken, and not late, though as many requests are under way as may be and none of them ends; none is taken after it.
func TestMany(t *testing.T) {
	const most = 256                                                                          // under way
	s := serve(t, config{change: func(o *nbdserver.Options) { o.Payload = 3 * time.Second }}) // less may pass on a busy machine without anybody's fault
	enter, leave := make(chan struct{}, 2*most), make(chan struct{})
	s.m.f.Gate(func(context.Context, string) error {
		enter <- struct{}{}
		<-leave
		return nil
	})
	c := s.dial("disk")
	var wg sync.WaitGroup
	do := func(command nbd.Command, p []byte) {
		wg.Go(func() {
			if err := c.Do(command, 0, 0, p, 0); err != nil {
				t.Errorf("%v: %v", command, err)
			}
		})
	}
	for range most - 1 {
		do(nbd.CmdRead, make([]byte, 512))
	}
	<-enter
	time.Sleep(50 * time.Millisecond) // all are there by now, or the write is one of the first, which shows less
	do(nbd.CmdWrite, bytes.Repeat([]byte{5}, 200<<10))
	time.Sleep(50 * time.Millisecond)
	do(nbd.CmdRead, make([]byte, 512))
	time.Sleep(3600 * time.Millisecond) // longer than a payload may take
	close(leave)
	wg.Wait()
	got := make([]byte, 200<<10)
	if err := c.Do(nbd.CmdRead, 0, 0, got, 0); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{5}, 200<<10)) {
		t.Errorf("what was written is not there: %v", err)
	}
}

// TestShutdown: a write under way is answered and flushed; what hangs is given up.
func TestShutdown(t *testing.T) {
	s := serve(t, config{})
	enter, leave := make(chan struct{}), make(chan struct{})
	s.m.f.Gate(func(_ context.Context, what string) error {
		if what == "write" {
			close(enter)
			<-leave
		}
		return nil
	})
	c, idle := s.dial("disk"), s.dial("images/other")
	half, err := net.Dial("unix", s.path) // never gets on
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	written := make(chan error)
	go func() { written <- c.Do(nbd.CmdWrite, 0, 0, make([]byte, 4096), 0) }()
	<-enter
	stopped := make(chan error)
	go func() { stopped <- s.stop() }()
	select {
	case err := <-stopped:
		t.Fatalf("the server stops before a write is answered: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(leave)
	if err := <-written; err != nil {
		t.Errorf("a write under way: %v", err)
	}
	if err := <-stopped; err != nil || s.m.f.Unflushed() != 0 || s.m.f.Released() != 1 {
		t.Errorf("%v, %d unflushed, %d given back", err, s.m.f.Unflushed(), s.m.f.Released())
	}
	if err := idle.Do(nbd.CmdFlush, 0, 0, nil, 0); err == nil {
		t.Error("a server that has stopped flushes")
	}

	s = serve(t, config{})
	hung := make(chan struct{})
	s.m.f.Gate(func(ctx context.Context, what string) error {
		if what == "write" {
			close(hung)
			<-ctx.Done()
			return fserr.Interrupted
		}
		return nil
	})
	c = s.dial("disk")
	go func() { written <- c.Do(nbd.CmdWrite, 0, 0, make([]byte, 4096), 0) }()
	<-hung
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a write that hangs: %v", err)
	}
	if err := <-written; err == nil {
		t.Error("a write that was given up is acknowledged")
	}
	s.stop = func() error { return block.CloseLoops(context.Background(), s.loops) }
}

// raw is a connection whose bytes the test says itself.
type raw struct {
	net.Conn
	t *testing.T
}

func (s *server) raw() raw {
	s.t.Helper()
	c, err := net.Dial("unix", s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	r := raw{c, s.t}
	r.read(nbd.GreetingSize)
	return r
}

func (r raw) say(p ...byte) {
	if _, err := r.Write(p); err != nil {
		r.t.Log(err) // hung up on already
	}
}

func (r raw) read(n int) []byte {
	r.t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		r.t.Fatalf("%d bytes: %v", n, err)
	}
	return p
}

// answer reads an answer to an option.
func (r raw) answer(o nbd.Option) (nbd.Answer, []byte) {
	r.t.Helper()
	p := r.read(nbd.AnswerSize)
	if be.Uint64(p) != nbd.AnswerMagic || nbd.Option(be.Uint32(p[8:])) != o {
		r.t.Fatalf("%x is no answer to option %d", p, o)
	}
	return nbd.Answer(be.Uint32(p[12:])), r.read(int(be.Uint32(p[16:])))
}

// ended waits until the server hangs up.
func (r raw) ended() {
	r.t.Helper()
	if _, err := io.Copy(io.Discard, r); err != nil && !isReset(err) {
		r.t.Errorf("the server does not hang up: %v", err)
	}
}

func isReset(err error) bool {
	var n net.Error
	return !errors.As(err, &n) || !n.Timeout()
}
