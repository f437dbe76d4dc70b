package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// fakeTransport keeps the answers.
type fakeTransport struct {
	answers map[uint64]answer
	refuse  bool // as the kernel does when the request was taken back
	sending func()
}

type answer struct {
	errno syscall.Errno
	body  []byte
}

var _ transport = (*fakeTransport)(nil)

func (f *fakeTransport) room(r *request, n int) []byte {
	r.frame = make([]byte, n)
	return r.frame
}

func (f *fakeTransport) send(r *request, e syscall.Errno, n int) error {
	if f.sending != nil {
		f.sending()
	}
	f.answers[r.unique] = answer{e, bytes.Clone(r.frame[:n])}
	if f.refuse {
		return syscall.ENOENT
	}
	return nil
}

func (f *fakeTransport) run(func(*request)) error      { return errUnmounted }
func (f *fakeTransport) notify(int32, ...[]byte) error { return nil }
func (f *fakeTransport) close()                        {}
func (f *fakeTransport) free()                         {}

// panics is a log handler that fails the test when a panic was survived.
type panics struct{ t testing.TB }

func (p panics) Enabled(context.Context, slog.Level) bool { return true }
func (p panics) WithAttrs([]slog.Attr) slog.Handler       { return p }
func (p panics) WithGroup(string) slog.Handler            { return p }

func (p panics) Handle(_ context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "panic") {
		r.Attrs(func(a slog.Attr) bool { p.t.Log(a); return true })
		p.t.Error(r.Message)
	}
	return nil
}

func fakeSession(t testing.TB, b Backend) (*Session, *fakeTransport) {
	opts, err := Options{MountPoint: "/x", Logger: slog.New(panics{t})}.complete()
	if err != nil {
		t.Fatal(err)
	}
	s := newSession(opts, b)
	f := &fakeTransport{answers: make(map[uint64]answer)}
	s.via = f
	return s, f
}

// feed gives a message to s as a transport would, and waits for the answer.
func feed(s *Session, message []byte) error {
	r := newRequest()
	r.via = s.via
	var args []byte
	var err error
	if r.header, args, err = parseHeader(message); err == nil {
		r.fixed, r.rest, err = split(r.op, args)
	}
	if err != nil {
		r.free()
		return err
	}
	s.accept(r)
	s.serving.Wait()
	return nil
}

// encode makes a message of integers, byte strings and strings, which get a zero byte.
func encode(op opcode, unique uint64, ino id.Ino, args ...any) []byte {
	b := make([]byte, inHeaderSize)
	le.PutUint32(b[4:], uint32(op))
	le.PutUint64(b[8:], unique)
	le.PutUint64(b[16:], uint64(ino))
	for _, a := range args {
		switch a := a.(type) {
		case uint32:
			b = le.AppendUint32(b, a)
		case uint64:
			b = le.AppendUint64(b, a)
		case string:
			b = append(append(b, a...), 0)
		case []byte:
			b = append(b, a...)
		}
	}
	le.PutUint32(b, uint32(len(b)))
	return b
}

type u32 = uint32
type u64 = uint64

func TestAnswers(t *testing.T) {
	s, f := fakeSession(t, newMemFS())
	long := strings.Repeat("n", 256)
	zeros := func(n int) []byte { return make([]byte, n) }
	for i, c := range []struct {
		name    string
		message func(unique uint64) []byte
		errno   syscall.Errno
		length  int
	}{
		{"init", func(u uint64) []byte {
			return encode(opInit, u, 0, u32(7), u32(45), u32(1<<17), u32(0xffffffff), u32(0xffffffff), zeros(44))
		}, 0, initOutSize},
		{"init of an old kernel", func(u uint64) []byte { return encode(opInit, u, 0, u32(7), u32(23), u32(0), u32(0)) }, syscall.EPROTO, 0},
		{"lookup of nothing", func(u uint64) []byte { return encode(opLookup, u, 1, "f") }, syscall.ENOENT, 0},
		{"name without end", func(u uint64) []byte { return encode(opLookup, u, 1, []byte("f")) }, syscall.EINVAL, 0},
		{"long name", func(u uint64) []byte { return encode(opLookup, u, 1, long) }, syscall.ENAMETOOLONG, 0},
		{"name with a slash", func(u uint64) []byte { return encode(opMkdir, u, 1, u64(0), "a/b") }, syscall.EINVAL, 0},
		{"create", func(u uint64) []byte { return encode(opCreate, u, 1, u32(2), u32(0o644), u32(0), u32(0), "f") }, 0, entryOutSize + openOutSize},
		{"create what is there", func(u uint64) []byte { return encode(opCreate, u, 1, u32(2), u32(0o644), u32(0), u32(0), "f") }, syscall.ESTALE, 0},
		{"create exclusively what is there", func(u uint64) []byte {
			return encode(opCreate, u, 1, u32(syscall.O_EXCL), u32(0o644), u32(0), u32(0), "f")
		}, syscall.EEXIST, 0},
		{"lookup", func(u uint64) []byte { return encode(opLookup, u, 1, "f") }, 0, entryOutSize},
		{"write", func(u uint64) []byte {
			return encode(opWrite, u, 2, u64(1), u64(0), u32(5), u32(0), u64(0), u32(0), u32(0), []byte("hello"))
		}, 0, 8},
		{"write of the wrong length", func(u uint64) []byte {
			return encode(opWrite, u, 2, u64(1), u64(0), u32(6), u32(0), u64(0), u32(0), u32(0), []byte("hello"))
		}, syscall.EINVAL, 0},
		{"write far away", func(u uint64) []byte {
			return encode(opWrite, u, 2, u64(1), u64(1<<60), u32(5), u32(0), u64(0), u32(0), u32(0), []byte("hello"))
		}, syscall.EFBIG, 0},
		{"read", func(u uint64) []byte { return encode(opRead, u, 2, u64(1), u64(1), u32(100), u32(0), u64(0), u64(0)) }, 0, 4},
		{"read of nothing", func(u uint64) []byte { return encode(opRead, u, 2, u64(1), u64(0), u32(0), u32(0), u64(0), u64(0)) }, 0, 0},
		{"read with a wrong handle", func(u uint64) []byte { return encode(opRead, u, 2, u64(9), u64(1), u32(100), u32(0), u64(0), u64(0)) }, syscall.EBADF, 0},
		{"read with a handle of another inode", func(u uint64) []byte { return encode(opRead, u, 3, u64(1), u64(1), u32(100), u32(0), u64(0), u64(0)) }, syscall.EBADF, 0},
		{"read of too much", func(u uint64) []byte { return encode(opRead, u, 2, u64(1), u64(1), u32(1<<31), u32(0), u64(0), u64(0)) }, syscall.EINVAL, 0},
		{"getattr", func(u uint64) []byte { return encode(opGetattr, u, 2, u64(0), u64(0)) }, 0, attrOutSize},
		{"statx", func(u uint64) []byte { return encode(opStatx, u, 2, u64(0), u64(0), u64(0)) }, 0, statxOutSize},
		{"setattr size", func(u uint64) []byte {
			return encode(opSetattr, u, 2, u32(fattrSize), u32(0), u64(0), u64(2), zeros(64))
		}, 0, attrOutSize},
		{"setattr too big", func(u uint64) []byte {
			return encode(opSetattr, u, 2, u32(fattrSize), u32(0), u64(0), u64(1<<60), zeros(64))
		}, syscall.EFBIG, 0},
		{"rename with whiteout", func(u uint64) []byte { return encode(opRename2, u, 1, u64(1), u32(4), u32(0), "f", "g") }, syscall.EINVAL, 0},
		{"rename without a second name", func(u uint64) []byte { return encode(opRename, u, 1, u64(1), "f") }, syscall.EINVAL, 0},
		{"readdir", func(u uint64) []byte {
			return encode(opReaddir, u, 1, u64(0), u64(0), u32(4096), u32(0), u64(0), u64(0))
		}, 0, 3 * 32},
		{"readdir after dot dot", func(u uint64) []byte {
			return encode(opReaddir, u, 1, u64(0), u64(2), u32(4096), u32(0), u64(0), u64(0))
		}, 0, 32},
		{"readdir without room", func(u uint64) []byte { return encode(opReaddir, u, 1, u64(0), u64(0), u32(10), u32(0), u64(0), u64(0)) }, syscall.EINVAL, 0},
		{"readdirplus, which is not asked for", func(u uint64) []byte {
			return encode(opReaddirplus, u, 1, u64(0), u64(0), u32(4096), u32(0), u64(0), u64(0))
		}, syscall.ENOSYS, 0},
		{"lock of another kind", func(u uint64) []byte {
			return encode(opSetlk, u, 2, u64(1), u64(5), u64(0), u64(9), u32(7), u32(0), u32(0), u32(0))
		}, syscall.EINVAL, 0},
		{"lock backwards", func(u uint64) []byte {
			return encode(opSetlk, u, 2, u64(1), u64(5), u64(9), u64(0), u32(1), u32(0), u32(0), u32(0))
		}, syscall.EINVAL, 0},
		{"lock", func(u uint64) []byte {
			return encode(opSetlk, u, 2, u64(1), u64(5), u64(0), u64(9), u32(1), u32(0), u32(0), u32(0))
		}, 0, 0},
		{"interrupt of nobody", func(u uint64) []byte { return encode(opInterrupt, u, 0, u64(9999)) }, syscall.EAGAIN, 0},
		{"ioctl", func(u uint64) []byte { return encode(opIoctl, u, 2, zeros(32)) }, syscall.ENOTTY, 0},
		{"poll", func(u uint64) []byte { return encode(opPoll, u, 2, zeros(24)) }, syscall.ENOSYS, 0},
		{"copy_file_range", func(u uint64) []byte { return encode(opCopyFileRange, u, 2, zeros(56)) }, syscall.ENOSYS, 0},
		{"unknown operation", func(u uint64) []byte { return encode(60, u, 2) }, syscall.ENOSYS, 0},
		{"operation of another age", func(u uint64) []byte { return encode(4096, u, 2) }, syscall.ENOSYS, 0},
		{"release", func(u uint64) []byte { return encode(opRelease, u, 2, u64(1), u32(0), u32(0), u64(0)) }, 0, 0},
		{"release again", func(u uint64) []byte { return encode(opRelease, u, 2, u64(1), u32(0), u32(0), u64(0)) }, syscall.EBADF, 0},
		{"destroy", func(u uint64) []byte { return encode(opDestroy, u, 0) }, 0, 0},
	} {
		unique := uint64(2 * (i + 1))
		if err := feed(s, c.message(unique)); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := f.answers[unique]; got.errno != c.errno || len(got.body) != c.length {
			t.Errorf("%s: errno %d (%v), %d bytes; want %d (%v), %d", c.name, got.errno, got.errno, len(got.body), c.errno, c.errno, c.length)
		}
	}
	if n, _ := s.nodes.get(2); n.lookups != 2 { // create, lookup
		t.Errorf("the kernel refers to inode 2 %d times, want 2", n.lookups)
	}
	if err := feed(s, encode(opBatchForget, 100, 0, u32(2), u32(0), u64(2), u64(2), u64(77), u64(1))); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.nodes.get(2); ok {
		t.Error("inode 2 is still known after its last reference was forgotten")
	}
}

// TestLostAnswers gives answers that the kernel does not take: nothing of them may be left.
func TestLostAnswers(t *testing.T) {
	m := newMemFS()
	s, f := fakeSession(t, m)
	f.refuse = true
	for i, b := range [][]byte{
		encode(opCreate, 2, 1, u32(2), u32(0o644), u32(0), u32(0), "f"), encode(opLookup, 4, 1, "f"), encode(opOpen, 6, 2, u64(0)),
	} {
		if err := feed(s, b); err != nil {
			t.Fatal(i, err)
		}
	}
	if files, inodes := s.Open(); files != 0 || inodes != 1 || m.opens.Load() != m.releases.Load() {
		t.Errorf("%d files open, %d inodes known, %d opens, %d releases", files, inodes, m.opens.Load(), m.releases.Load())
	}
}

func TestErrno(t *testing.T) {
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0}, {fserr.NotExist, syscall.ENOENT}, {fserr.NoAttr, syscall.ENODATA}, {fserr.NotReady, syscall.EIO},
		{fserr.Unavailable, syscall.EIO}, {fserr.Timeout, syscall.EIO}, {fserr.Fenced, syscall.ESTALE},
		{fmt.Errorf("read: %w", fserr.NoSpace), syscall.ENOSPC}, {errors.New("anything"), syscall.EIO},
		{context.Canceled, syscall.EINTR}, {context.DeadlineExceeded, syscall.EIO},
	} {
		if got := errnoOf(c.err); got != c.want {
			t.Errorf("%v: got %v, want %v", c.err, got, c.want)
		}
	}
}

func TestPutAttr(t *testing.T) {
	b := make([]byte, attrOutSize)
	putAttrOut(b, &msg.Attr{Ino: 7, Type: msg.FileType_SYMLINK, Perm: 0o777, Size: 5, Mtime: -1, Nlink: 3})
	if sec, nsec := int64(le.Uint64(b[16+32:])), le.Uint32(b[16+52:]); sec != -1 || nsec != 999999999 {
		t.Errorf("time before 1970: %d s %d ns", sec, nsec)
	}
	if mode := le.Uint32(b[16+60:]); mode != syscall.S_IFLNK|0o777 {
		t.Errorf("mode %o", mode)
	}
}

func TestPendingKill(t *testing.T) {
	for status, want := range map[string]bool{
		"Name:\tx\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n": true,
		"Name:\tx\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n": true,
		"Name:\tx\nSigPnd:\t0000000000400000\nSigBlk:\t0000000000000100\n": false,
		"": false,
	} {
		if got := pendingKill([]byte(status)); got != want {
			t.Errorf("%q: %v", status, got)
		}
	}
}

func TestParseMountinfo(t *testing.T) {
	in := "36 35 0:41 / /mnt/a\\040b rw,noatime shared:1 - fuse.varve varve rw\nnonsense\n37 35 8:1 / / rw - ext4 /dev/sda1 rw\n"
	var got []mountEntry
	if err := parseMountinfo(strings.NewReader(in), func(e mountEntry) { got = append(got, e) }); err != nil {
		t.Fatal(err)
	}
	want := []mountEntry{{"/mnt/a b", 0, 41, "fuse.varve", "varve"}, {"/", 8, 1, "ext4", "/dev/sda1"}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestFlightContext(t *testing.T) {
	f := new(flight)
	child, cancel := context.WithCancel(f)
	defer cancel()
	called := make(chan struct{})
	stop := context.AfterFunc(f, func() { close(called) })
	context.AfterFunc(f, func() { t.Error("called although called off") })()
	f.cancel()
	f.cancel()
	<-child.Done()
	<-called
	if stop() || !errors.Is(f.Err(), context.Canceled) {
		t.Error("not canceled as it should be")
	}
	<-f.Done()
}

func FuzzRequest(f *testing.F) {
	for op := opcode(0); op < opLimit; op++ {
		if op == opSetlkw || op == opInit {
			continue
		}
		f.Add(encode(op, 2, 1, make([]byte, ops[op].fixed), "name", "other"))
		f.Add(encode(op, 2, 1, make([]byte, max(ops[op].fixed-1, 0))))
	}
	f.Add(encode(opWrite, 2, 2, u64(1), u64(0), u32(5), u32(0), u64(0), u32(0), u32(0), []byte("hello")))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, fake := fakeSession(t, newMemFS())
		for i, m := range [][]byte{ // so that inode 2 and handle 1 exist
			encode(opCreate, 1002, 1, u32(2), u32(0o644), u32(0), u32(0), "f"), b,
		} {
			if len(m) >= 8 && opcode(le.Uint32(m[4:])) == opSetlkw {
				return // waits for ever if it likes
			}
			if ino := u64(0); len(m) >= inHeaderSize {
				if ino = le.Uint64(m[16:]); ino != 1 && ino != 2 {
					return // the Backend of this test knows no others
				}
			}
			err := feed(s, bytes.Clone(m))
			if i == 0 && (err != nil || fake.answers[1002].errno != 0) {
				t.Fatal(err, fake.answers)
			}
		}
	})
}
