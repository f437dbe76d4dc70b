package iouring_test

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"varve/iouring"
)

// TestAccept accepts connections one by one and many at a time, and connects through the ring.
func TestAccept(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Without: without})
		l, at := listen(t)
		r.ok(r.Accept(iouring.FD(l), 1))
		dial(t, at)
		c := r.want(1)
		if c.Err != nil || c.More() {
			t.Fatalf("accept: %+v", c)
		}
		closeQuietly(c.N)

		r.ok(r.AcceptMulti(iouring.FD(l), 2))
		armed := true
		for i := range 5 {
			if !armed {
				r.ok(r.AcceptMulti(iouring.FD(l), 2))
			}
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			r.ok(r.Connect(iouring.FD(fd), at, 3))
			m := r.all(2)
			if m[3].Err != nil || m[2].Err != nil {
				t.Fatalf("connection %d: %+v", i, m)
			}
			if c := m[2]; c.More() != r.Has(iouring.MultishotAccept) {
				t.Errorf("accept %+v with %v", c, r.Features())
			}
			c := m[2]
			armed = c.More()
			closeQuietly(m[2].N)
			closeQuietly(fd)
		}
		r.ok(r.CancelFD(iouring.FD(l), 4))
		if armed {
			if m := r.all(2); m[2].Err != unix.ECANCELED {
				t.Errorf("cancelled accept: %+v", m)
			}
		} else {
			r.want(4)
		}
		r.idle()
	})
}

// TestAcceptDirect accepts into the table of files.
func TestAcceptDirect(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Files: 8, Without: without})
		l, at := listen(t)
		if _, err := r.AcceptDirect(iouring.FD(l), 8, 1); !errors.Is(err, unix.EINVAL) {
			t.Errorf("accept into place 8 of 8: %v, want EINVAL", err)
		}
		r.ok(r.AcceptDirect(iouring.FD(l), 1, 1))
		fd := dial(t, at)
		r.wantN(1, 0)
		r.ok(r.Send(iouring.Fixed(1), []byte("hello"), 0, 2))
		r.wantN(2, 5)
		p := make([]byte, 5)
		if n, err := unix.Read(fd, p); n != 5 || err != nil || string(p) != "hello" {
			t.Fatalf("read %d %v %q", n, err, p)
		}
		r.ok(r.CloseFile(iouring.Fixed(1), 3))
		r.wantN(3, 0)
		if n, err := unix.Read(fd, p); n != 0 || err != nil {
			t.Errorf("read after the close of the other end: %d, %v; want the end", n, err)
		}

		if !r.Has(iouring.DirectAlloc) {
			if _, err := r.AcceptDirectMulti(iouring.FD(l), 4); !errors.Is(err, iouring.ErrUnsupported) {
				t.Errorf("direct accept without the feature: %v, want ErrUnsupported", err)
			}
			return
		}
		if err := r.FileRange(4, 2); err == nil {
			r.ok(r.AcceptDirectMulti(iouring.FD(l), 4))
			places := map[int]bool{}
			for range 2 {
				dial(t, at)
				c := r.want(4)
				if places[c.N] = true; !c.More() {
					r.ok(r.AcceptDirectMulti(iouring.FD(l), 4))
				}
			}
			if !places[4] || !places[5] {
				t.Errorf("accepted into places %v, want 4 and 5", places)
			}
			dial(t, at)
			if c := r.wantErr(4, unix.ENFILE); c.More() {
				t.Errorf("accept without an empty place: %+v, want no More", c)
			}
		} else if !errors.Is(err, iouring.ErrUnsupported) {
			t.Fatal(err)
		}
		r.idle()
	})
}

// TestSendRecv streams through each way of sending and of receiving.
func TestSendRecv(t *testing.T) {
	sends := map[string]func(r *tester, fd iouring.FD, p []byte) (iouring.Op, error){
		"Send":       func(r *tester, fd iouring.FD, p []byte) (iouring.Op, error) { return r.Send(fd, p, 0, 1) },
		"Write":      func(r *tester, fd iouring.FD, p []byte) (iouring.Op, error) { return r.Write(fd, p, 0, 1) },
		"WriteFixed": func(r *tester, fd iouring.FD, p []byte) (iouring.Op, error) { return r.WriteFixed(fd, p, 0, 0, 1) },
		"SendV": func(r *tester, fd iouring.FD, p []byte) (iouring.Op, error) {
			return r.SendV(fd, [][]byte{p[:1], p[1 : len(p)/2], p[len(p)/2:]}, 0, 1)
		},
		"SendZC":      func(r *tester, fd iouring.FD, p []byte) (iouring.Op, error) { return r.SendZC(fd, p, 0, 1) },
		"SendZCFixed": func(r *tester, fd iouring.FD, p []byte) (iouring.Op, error) { return r.SendZCFixed(fd, p, 0, 0, 1) },
		"SendZCV": func(r *tester, fd iouring.FD, p []byte) (iouring.Op, error) {
			return r.SendZCV(fd, [][]byte{p[:1], p[1:]}, 0, 1)
		},
	}
	recvs := map[string]func(r *tester, fd iouring.FD, p []byte) (iouring.Op, error){
		"Recv": func(r *tester, fd iouring.FD, p []byte) (iouring.Op, error) {
			return r.Recv(fd, p, unix.MSG_WAITALL, 2)
		},
		"RecvV": func(r *tester, fd iouring.FD, p []byte) (iouring.Op, error) {
			return r.RecvV(fd, [][]byte{p[:7], p[7:1000], p[1000:]}, unix.MSG_WAITALL, 2)
		},
		"ReadFixed": func(r *tester, fd iouring.FD, p []byte) (iouring.Op, error) { return r.ReadFixed(fd, p, 0, 1, 2) },
	}
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Buffers: 2, Without: without})
		from, to := tcpPair(t)
		const size = 300_000
		out, in := make([]byte, size), make([]byte, size)
		if err := errors.Join(r.SetBuffer(0, out), r.SetBuffer(1, in)); err != nil {
			t.Fatal(err)
		}
		for sname, send := range sends {
			for rname, recv := range recvs {
				copy(out, noise(1000))
				clear(in)
				sent, got, notes := 0, 0, 0
				queue := func(o iouring.Op, err error) {
					if err != nil {
						t.Fatalf("%s, %s: %v", sname, rname, err)
					}
				}
				queue(send(r, iouring.FD(from), out))
				queue(recv(r, iouring.FD(to), in))
				for sent < size || got < size || notes > 0 {
					c := r.next()
					if c.Err != nil {
						t.Fatalf("%s, %s: %+v", sname, rname, c)
					}
					switch {
					case c.Flags&iouring.Notif != 0:
						notes--
					case c.Data == 1:
						if sent += c.N; c.More() {
							notes++
						}
						if sent < size {
							queue(send(r, iouring.FD(from), out[sent:]))
						}
					default:
						if got += c.N; got < size {
							if rname == "RecvV" && size-got < 1001 {
								queue(r.Recv(iouring.FD(to), in[got:], 0, 2))
							} else {
								queue(recv(r, iouring.FD(to), in[got:]))
							}
						}
					}
				}
				if !bytes.Equal(in, out) {
					t.Errorf("%s, %s: what was received differs", sname, rname)
				}
			}
		}
		r.idle()
	})
}

// TestNonEmpty is told that there is more to receive.
func TestNonEmpty(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{FileWorkers: 2, OtherWorkers: 3, Without: without})
		a, b := tcpPair(t)
		if _, err := unix.Write(a, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 60)
		r.ok(r.Recv(iouring.FD(b), p, unix.MSG_WAITALL, 1))
		if c := r.wantN(1, 60); c.Flags&iouring.SockNonEmpty == 0 {
			if f, err := iouring.Probe(); err == nil && f.Has(iouring.BufferRing) { // both are of 5.19
				t.Errorf("40 bytes are left, but the completion says %+v", c)
			}
		}
		r.ok(r.Recv(iouring.FD(b), p, 0, 1))
		if c := r.wantN(1, 40); c.Flags&iouring.SockNonEmpty != 0 {
			t.Errorf("no bytes are left, but the completion says %+v", c)
		}
		r.idle()
	})
}

// TestSendZC looks at the two completions of a zero-copy send.
func TestSendZC(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Without: without})
		from, to := tcpPair(t)
		o := r.ok(r.SendZC(iouring.FD(from), make([]byte, 4096), 0, 1))
		c := r.wantN(1, 4096)
		if c.More() != r.Has(iouring.SendZC) {
			t.Fatalf("completion %+v with %v", c, r.Features())
		}
		if c.More() {
			p := make([]byte, 4096)
			if _, err := unix.Read(to, p); err != nil { // the network is done when it was received
				t.Fatal(err)
			}
			n := r.want(1)
			if n.Flags&iouring.Notif == 0 || n.More() || n.Op != o || n.Err != nil {
				t.Errorf("notification %+v", n)
			}
			t.Log("copied:", n.Copied())
		}
		r.ok(r.Shutdown(iouring.FD(from), unix.SHUT_WR, 2))
		r.want(2)
		r.ok(r.SendZC(iouring.FD(from), make([]byte, 10), 0, 3))
		for c := r.want(3); ; c = r.want(3) {
			if c.Flags&iouring.Notif == 0 && c.Err != unix.EPIPE {
				t.Errorf("send after shutdown: %+v, want EPIPE", c)
			}
			if !c.More() {
				break
			}
		}
		r.idle()
	})
}

func TestUnixAddress(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Without: without})
		name := filepath.Join(t.TempDir(), "s")
		for _, name := range []string{name, fmt.Sprintf("@varve-ring-%d-%d", unix.Getpid(), unix.Gettid())} {
			l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer closeQuietly(l)
			a := &unix.SockaddrUnix{Name: name}
			if err := errors.Join(unix.Bind(l, a), unix.Listen(l, 1)); err != nil {
				t.Fatal(err)
			}
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer closeQuietly(fd)
			r.ok(r.Connect(iouring.FD(fd), a, 1))
			r.wantN(1, 0)
		}
		if _, err := r.Connect(0, &unix.SockaddrUnix{}, 1); !errors.Is(err, unix.EINVAL) {
			t.Errorf("no name: %v, want EINVAL", err)
		}
		if _, err := r.Connect(0, &unix.SockaddrVM{}, 1); !errors.Is(err, unix.EAFNOSUPPORT) {
			t.Errorf("address of another family: %v, want EAFNOSUPPORT", err)
		}
		r.idle()
	})
}

func TestPoll(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Without: without})
		a, b := pair(t, unix.AF_UNIX)
		r.ok(r.Poll(iouring.FD(a), unix.POLLIN, 1))
		if err := r.Submit(0); err != nil {
			t.Fatal(err)
		}
		p := []byte("x")
		for range 2 {
			if _, err := unix.Write(b, p); err != nil {
				t.Fatal(err)
			}
			if c := r.want(1); c.Err != nil || c.N&unix.POLLIN == 0 || c.More() {
				t.Fatalf("poll: %+v", c)
			}
			r.ok(r.Poll(iouring.FD(a), unix.POLLIN, 1))
			r.want(1) // it is still readable
			if _, err := unix.Read(a, p); err != nil {
				t.Fatal(err)
			}
			r.ok(r.Poll(iouring.FD(a), unix.POLLIN, 1))
		}
		r.ok(r.CancelFD(iouring.FD(a), 2))
		if m := r.all(2); m[1].Err != unix.ECANCELED {
			t.Errorf("cancelled poll: %+v", m)
		}
		o := r.ok(r.PollMulti(iouring.FD(a), unix.POLLIN, 3))
		if err := r.Submit(0); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			if _, err := unix.Write(b, p); err != nil {
				t.Fatal(err)
			}
			if c := r.want(3); c.Err != nil || c.N&unix.POLLIN == 0 || !c.More() || c.Op != o {
				t.Fatalf("multishot poll: %+v", c)
			}
			if _, err := unix.Read(a, p); err != nil {
				t.Fatal(err)
			}
		}
		r.ok(r.Cancel(o, 4))
		if m := r.all(2); m[3].Err != unix.ECANCELED || m[4].Err != nil {
			t.Errorf("cancelled multishot poll: %+v", m)
		}
		r.idle()
	})
}
