package fuse

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/capture"
)

// follow takes the records of a session's operations until done is called.
func follow(t testing.TB, s *Session) (done func() []capture.Record) {
	t.Helper()
	ours, theirs := socketPair(t)
	stop := make(chan struct{})
	begun := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		err := capture.Serve(theirs, stop, func(b *capture.Buffers) error {
			defer close(begun)
			if !s.capture.CompareAndSwap(nil, b) {
				return errors.New("busy")
			}
			return nil
		}, s.endCapture)
		if err != nil {
			t.Error(err)
		}
	})
	c, err := capture.NewStream(ours)
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	return func() []capture.Record {
		defer c.Close()
		if err := c.Stop(); err != nil {
			t.Fatal(err)
		}
		var out []capture.Record
		for {
			r, err := c.Next()
			if err == io.EOF {
				all.Wait()
				return out
			}
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, r)
		}
	}
}

func socketPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
	}
	return conns[0], conns[1]
}

// TestCaptured: what the kernel asked is what is recorded.
func TestCaptured(t *testing.T) {
	m := newMemFS()
	s, f := fakeSession(t, m)
	ask := func(message []byte) {
		t.Helper()
		if err := feed(s, message); err != nil {
			t.Fatal(err)
		}
	}
	ask(encode(opCreate, 2, 1, u32(0x42), u32(0o644), u32(0), u32(0), "before"))
	done := follow(t, s)
	ask(encode(opCreate, 4, 1, u32(0x42), u32(0o644), u32(0), u32(0), "f"))
	body := f.answers[4].body
	ino, fh := le.Uint64(body), le.Uint64(body[entryOutSize:])
	data := make([]byte, 5000)
	ask(encode(opWrite, 6, inoOf(ino), u64(fh), u64(8192), u32(5000), u32(0), u64(0), u32(0), u32(0), data))
	ask(encode(opRead, 8, inoOf(ino), u64(fh), u64(12288), u32(4096), u32(0), u64(0), u32(0), u32(0)))
	ask(encode(opFsync, 10, inoOf(ino), u64(fh), u32(1), u32(0)))
	ask(encode(opRead, 12, inoOf(ino), u64(fh+77), u64(0), u32(4096), u32(0), u64(0), u32(0), u32(0)))
	ask(encode(opFallocate, 14, inoOf(ino), u64(fh), u64(0), u64(1<<20), u32(0), u32(0)))
	ask(encode(opSetattr, 16, inoOf(ino), u32(fattrSize|fattrFH), u32(0), u64(fh), u64(777), make([]byte, 64)))
	ask(encode(opRelease, 18, inoOf(ino), u64(fh), u32(0), u32(0), u64(0)))
	got := done()
	slices.SortFunc(got, func(a, b capture.Record) int { return int(a.Begin - b.Begin) })
	ask(encode(opGetattr, 20, inoOf(ino), u64(0), u64(0))) // nobody captures any more
	want := []capture.Record{
		{Kind: capture.Create, Inode: ino, Handle: fh, Arg: 0x42},
		{Kind: capture.Write, Inode: ino, Handle: fh, Offset: 8192, Size: 5000, Done: 5000},
		{Kind: capture.Read, Inode: ino, Handle: fh, Offset: 12288, Size: 4096, Done: 904},
		{Kind: capture.Fsync, Inode: ino, Handle: fh, Arg: 1},
		{Kind: capture.Read, Inode: ino, Handle: fh + 77, Size: 4096, Errno: syscall.EBADF},
		{Kind: capture.Fallocate, Inode: ino, Handle: fh, Size: 1 << 20},
		{Kind: capture.Truncate, Inode: ino, Handle: fh, Offset: 777},
		{Kind: capture.Release, Inode: ino, Handle: fh},
	}
	if len(got) != len(want) {
		t.Fatalf("%d records, want %d: %+v", len(got), len(want), got)
	}
	for i, r := range got {
		if r.Took <= 0 || i > 0 && r.Begin < got[i-1].End() {
			t.Errorf("record %d begins at %v and takes %v, though one came after the other", i, r.Begin, r.Took)
		}
		r.Begin, r.Took, r.PID = 0, 0, 0
		if r != want[i] {
			t.Errorf("record %d: %+v, want %+v", i, r, want[i])
		}
	}
}

// TestCaptureMount captures a real mount by its socket, and finds the names of its files.
func TestCaptureMount(t *testing.T) { each(t, onCaptureMount) }

func onCaptureMount(t *testing.T, w way) {
	s, dir := w.mount(t, newMemFS(), nil)
	path := filepath.Join(dir, "sub", "file.img")
	run(t, "mkdir", filepath.Dir(path))
	begin := time.Now()
	c, err := capture.Dial(s.mount.conn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := capture.Dial(s.mount.conn); err == nil {
		t.Error("two captures at once")
	}
	run(t, "dd", "if=/dev/zero", "of="+path, "bs=4096", "count=20", "conv=fsync", "status=none")
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	count := map[capture.Kind]int{}
	for {
		r, err := c.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if r.End() > time.Since(begin) {
			t.Errorf("%+v ended after the capture", r)
		}
		count[r.Kind]++
	}
	if count[capture.Write] != 20 || count[capture.Create] != 1 || count[capture.Fsync] != 1 {
		t.Errorf("captured %v", count)
	}
}

// TestCaptureAllocs: to record an operation costs no allocation more than to serve it.
func TestCaptureAllocs(t *testing.T) {
	one := benchRequest(t, opRead, 4096)
	off := testing.AllocsPerRun(200, one)
	s, _ := fakeSession(t, newMemFS())
	s.files.add(&file{handle: &zeroHandle{}, ino: 2, write: true})
	s.via = &discard{make([]byte, maxWrite)}
	s.capture.Store(capture.NewBuffers())
	message := encode(opRead, 2, 2, u64(1), u64(0), u32(4096), u32(0), u64(0), u64(0))
	on := testing.AllocsPerRun(200, func() {
		if err := feed(s, message); err != nil {
			t.Fatal(err)
		}
	})
	if on > off {
		t.Errorf("%v allocations with a capture, %v without", on, off)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

// TestListen: the name that a mount's socket is to have may for a moment still be that of a mount that has ended.
func TestListen(t *testing.T) {
	before, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("@varve/test/%d", os.Getpid())})
	if err != nil {
		t.Fatal(err)
	}
	tries := 0
	l, err := Listen(func() (*net.UnixListener, error) {
		if tries++; tries == 3 {
			before.Close()
		}
		return net.ListenUnix("unix", before.Addr().(*net.UnixAddr))
	})
	if err != nil || tries != 3 {
		t.Fatalf("%d tries: %v", tries, err)
	}
	l.Close()
	if _, err := Listen(func() (*net.UnixListener, error) { return nil, unix.EACCES }); !errors.Is(err, unix.EACCES) {
		t.Errorf("what is not a matter of time: %v", err)
	}
}
