package iouring_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"varve/iouring"
)

// file is an empty file.
func file(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func noise(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rand.Uint32())
	}
	return p
}

// TestFile writes a file in random order, syncs, punches, and reads it back: by descriptor and by place, into the heap and into registered
// buffers.
func TestFile(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Entries: 16, Files: 4, Buffers: 4, Without: without})
		f := file(t)
		const blocks, size = 100, 4096
		want := noise(blocks * size)
		fd, place := iouring.FD(f.Fd()), iouring.Fixed(2)
		if err := r.SetFile(2, int(f.Fd())); err != nil {
			t.Fatal(err)
		}
		fixed := make([]byte, len(want))
		if err := r.SetBuffer(3, fixed); err != nil {
			t.Fatal(err)
		}
		r.each(blocks, size, func(i int) error {
			_, err := r.Write(fd, bytes.Clone(want[i*size:(i+1)*size]), int64(i)*size, uint64(i))
			return err
		})
		r.ok(r.Sync(fd, 0))
		r.wantN(0, 0)
		r.ok(r.Punch(place, 3*size, 2*size, 0))
		r.wantN(0, 0)
		r.ok(r.Fsync(place, 0))
		r.wantN(0, 0)
		clear(want[3*size : 5*size])

		got := make([]byte, len(want))
		r.each(blocks, size, func(i int) error {
			_, err := r.Read(place, got[i*size:(i+1)*size], int64(i)*size, uint64(i))
			return err
		})
		if !bytes.Equal(got, want) {
			t.Error("Read: what was read differs from what was written")
		}
		r.each(blocks, size, func(i int) error {
			_, err := r.ReadFixed(fd, fixed[i*size:(i+1)*size], int64(i)*size, 3, uint64(i))
			return err
		})
		if !bytes.Equal(fixed, want) {
			t.Error("ReadFixed: what was read differs from what was written")
		}
		copy(fixed, noise(len(fixed)))
		r.each(blocks, size, func(i int) error {
			_, err := r.WriteFixed(place, fixed[i*size:(i+1)*size], int64(i)*size, 3, uint64(i))
			return err
		})
		clear(got)
		r.each(blocks/10, 10*size, func(i int) error {
			p := got[i*10*size:]
			_, err := r.ReadV(fd, [][]byte{p[:1], p[1:7777], p[7777 : 10*size]}, int64(i)*10*size, uint64(i))
			return err
		})
		if !bytes.Equal(got, fixed) {
			t.Error("WriteFixed, ReadV: what was read differs from what was written")
		}
		r.ok(r.WriteV(place, [][]byte{[]byte("ab"), []byte("cde")}, 7, 1))
		r.wantN(1, 5)
		if _, err := f.ReadAt(got[:5], 7); err != nil || string(got[:5]) != "abcde" {
			t.Errorf("WriteV: read %q, %v", got[:5], err)
		}
		r.idle()
	})
}

// each does n operations of size bytes through the ring, as many at once as fit, and expects each exactly once.
func (x *tester) each(n, size int, queue func(int) error) {
	x.t.Helper()
	seen := make([]bool, n)
	for next, ended := 0, 0; ended < n; {
		for next < n {
			err := queue(next)
			if errors.Is(err, iouring.ErrFull) {
				break
			}
			if err != nil {
				x.t.Fatal(err)
			}
			next++
		}
		if ended%16 == 0 {
			runtime.GC() // buffers must survive it
		}
		c := x.next()
		if c.Err != nil || c.N != size || seen[c.Data] {
			x.t.Fatalf("completion %+v, want %d bytes, seen before: %v", c, size, seen[c.Data])
		}
		seen[c.Data] = true
		ended++
	}
	x.idle()
}

func TestTables(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Files: 8, Buffers: 2, Without: without})
		f := file(t)
		p := make([]byte, 4096)
		r.ok(r.Read(iouring.Fixed(0), p, 0, 1))
		r.wantErr(1, unix.EBADF)
		for _, err := range []error{r.SetFile(8, 1), r.SetFile(-1, 1), r.SetBuffer(2, p), r.SetFiles(7, []int32{1, 1})} {
			if !errors.Is(err, unix.EINVAL) {
				t.Errorf("place out of the table: %v, want EINVAL", err)
			}
		}
		if err := r.SetFiles(5, []int32{int32(f.Fd()), -1, int32(f.Fd())}); err != nil {
			t.Fatal(err)
		}
		for i, want := range map[int]error{5: nil, 6: unix.EBADF, 7: nil} {
			r.ok(r.Write(iouring.Fixed(i), []byte("x"), 0, 2))
			if c := r.want(2); c.Err != want {
				t.Errorf("write to place %d: %v, want %v", i, c.Err, want)
			}
		}
		r.ok(r.CloseFile(iouring.Fixed(7), 3))
		r.wantN(3, 0)
		r.ok(r.Write(iouring.Fixed(7), []byte("x"), 0, 4))
		r.wantErr(4, unix.EBADF)
		if err := r.SetFile(5, -1); err != nil {
			t.Fatal(err)
		}
		r.ok(r.Write(iouring.Fixed(5), []byte("x"), 0, 4))
		r.wantErr(4, unix.EBADF)

		if _, err := r.ReadFixed(iouring.FD(f.Fd()), p, 0, 1, 5); !errors.Is(err, unix.EFAULT) {
			t.Errorf("read into an empty place: %v, want EFAULT", err)
		}
		if err := r.SetBuffer(1, p[1024:]); err != nil {
			t.Fatal(err)
		}
		if _, err := r.ReadFixed(iouring.FD(f.Fd()), p[1023:], 0, 1, 5); !errors.Is(err, unix.EFAULT) {
			t.Errorf("read before the buffer: %v, want EFAULT", err)
		}
		if _, err := f.WriteAt([]byte("hello"), 0); err != nil {
			t.Fatal(err)
		}
		r.ok(r.ReadFixed(iouring.FD(f.Fd()), p[2000:3000], 0, 1, 6))
		if r.wantN(6, 5); string(p[2000:2005]) != "hello" {
			t.Errorf("read %q", p[2000:2005])
		}
		if err := r.SetBuffer(1, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := r.ReadFixed(iouring.FD(f.Fd()), p[2000:3000], 0, 1, 7); !errors.Is(err, unix.EFAULT) {
			t.Errorf("read into a place made empty: %v, want EFAULT", err)
		}
		d, err := unix.Dup(int(f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		r.ok(r.CloseFile(iouring.FD(d), 8))
		r.wantN(8, 0)
		if err := unix.Close(d); err != unix.EBADF {
			t.Errorf("close of a descriptor that the ring closed: %v, want EBADF", err)
		}
		r.idle()
	})
}

func TestLinks(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Entries: 8, InFlight: 16, Without: without})
		f := file(t)
		fd := iouring.FD(f.Fd())
		p := make([]byte, 3)
		if err := r.Reserve(3); err != nil {
			t.Fatal(err)
		}
		r.ok(r.Write(fd, []byte("abc"), 0, 1))
		r.Link()
		r.ok(r.Sync(fd, 2))
		r.Link()
		r.ok(r.Read(fd, p, 0, 3))
		m := r.all(3)
		if m[1].N != 3 || m[2].Err != nil || m[3].N != 3 || string(p) != "abc" {
			t.Errorf("write, sync, read: %+v, read %q", m, p)
		}

		r.ok(r.Read(fd, p, 3, 1)) // short: the end of the file
		r.Link()
		r.ok(r.Nop(2))
		if m := r.all(2); m[1].N != 0 || m[2].Err != unix.ECANCELED {
			t.Errorf("operation linked to a short read: %+v, want ECANCELED", m)
		}

		r.ok(r.Read(-1, p, 0, 1))
		r.HardLink()
		r.ok(r.Nop(2))
		if m := r.all(2); m[1].Err != unix.EBADF || m[2].Err != nil {
			t.Errorf("operation hard-linked to one that failed: %+v, want none", m)
		}

		// A chain that does not fit into what is left of the queue is not torn.
		for i := range 6 {
			r.ok(r.Nop(uint64(100 + i)))
		}
		if err := r.Reserve(4); err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			r.ok(r.Nop(uint64(i)))
			if i < 3 {
				r.Link()
			}
		}
		r.all(10)
		for range 8 {
			r.ok(r.Nop(0))
		}
		r.Link()
		if _, err := r.Nop(1); !errors.Is(err, iouring.ErrFull) {
			t.Errorf("a chain that does not fit: %v, want ErrFull", err)
		}
		if err := r.Reserve(17); !errors.Is(err, iouring.ErrFull) {
			t.Errorf("reserve 17 of 16: %v, want ErrFull", err)
		}
		for range 8 {
			r.wantN(0, 0)
		}
		r.ok(r.Nop(1))
		r.Async()
		r.ok(r.Nop(2))
		r.Drain()
		r.wantN(1, 0)
		r.wantN(2, 0)
		r.idle()
	})
}

func TestErrors(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Entries: 4, InFlight: 6, Without: without})
		r.ok(r.Read(-1, make([]byte, 10), 0, 7))
		r.wantErr(7, unix.EBADF)
		for i := range 6 {
			r.ok(r.Nop(uint64(i))) // the fifth hands over the first four
		}
		if _, err := r.Nop(9); !errors.Is(err, iouring.ErrFull) {
			t.Errorf("seventh of six: %v, want ErrFull", err)
		}
		r.all(6)
		_, e1 := r.Read(0, nil, 0, 0)
		_, e2 := r.Read(0, make([]byte, 1), -1, 0)
		_, e3 := r.ReadV(0, nil, 0, 0)
		_, e4 := r.SendV(0, nil, 0, 0)
		_, e5 := r.Timeout(-1, 0, 0)
		_, e6 := r.LinkTimeout(1, 0)
		_, e7 := r.Fallocate(0, 0, 0, 0, 0)
		_, e8 := r.RecvMulti(0, nil, 0)
		for i, err := range []error{e1, e2, e3, e4, e5, e6, e7, e8} {
			if !errors.Is(err, unix.EINVAL) {
				t.Errorf("faulty argument %d: %v, want EINVAL", i+1, err)
			}
		}
		r.idle()
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		_, err := r.Nop(1)
		for _, err := range []error{err, r.Submit(0), r.SetFile(0, 0), r.Reserve(1)} {
			if !errors.Is(err, iouring.ErrClosed) {
				t.Errorf("use of a closed ring: %v, want ErrClosed", err)
			}
		}
	})
	for _, o := range []iouring.Options{{Entries: 3}, {Entries: 1 << 13}, {Entries: 8, Completions: 4}, {Files: 1 << 16}, {Buffers: 1 << 15}, {CloseWithin: -1}} {
		if _, err := iouring.New(o); err == nil || errors.Is(err, iouring.ErrUnavailable) {
			t.Errorf("%+v: %v, want a fault", o, err)
		}
	}
}

// TestHandOver has the ring hand operations over in batches, but never in the middle of a chain.
func TestHandOver(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Entries: 16, HandOver: 4, Without: without})
		for i, want := range []int{1, 2, 3, 4, 1, 2, 3, 4, 1} {
			r.ok(r.Nop(uint64(i)))
			if got := r.Queued(); got != want {
				t.Errorf("operation %d: %d queued, want %d", i, got, want)
			}
		}
		if m := r.all(9); len(m) != 9 {
			t.Errorf("%d completions, want 9", len(m))
		}
		if err := r.Reserve(6); err != nil {
			t.Fatal(err)
		}
		for i := range 6 {
			r.ok(r.Read(-1, make([]byte, 1), 0, uint64(i)))
			if i < 5 {
				r.Link()
			}
		}
		if got := r.Queued(); got != 6 {
			t.Errorf("%d of a chain of 6 queued", got)
		}
		r.ok(r.Nop(6))
		if got := r.Queued(); got != 1 {
			t.Errorf("%d queued behind the chain, want 1", got)
		}
		m := r.all(7)
		if m[0].Err != unix.EBADF || m[6].Err != nil {
			t.Errorf("first of the chain, and what follows it: %+v %+v", m[0], m[6])
		}
		for i := uint64(1); i < 6; i++ {
			if m[i].Err != unix.ECANCELED {
				t.Errorf("operation %d of a chain that failed: %+v", i, m[i])
			}
		}
	})
}
