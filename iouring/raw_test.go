package iouring_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"varve/iouring"
)

func TestRaw(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		r := newRing(t, iouring.Options{Files: 1, Without: without})
		f := file(t)
		if err := r.SetFile(0, int(f.Fd())); err != nil {
			t.Fatal(err)
		}
		r.ok(r.Raw(&iouring.Raw{SQE: iouring.SQE{Opcode: iouring.OpWrite, Off: 10}, File: iouring.Fixed(0), Buf: []byte("hello")}, 1))
		r.wantN(1, 5)
		p := make([]byte, 15)
		r.ok(r.Raw(&iouring.Raw{SQE: iouring.SQE{Opcode: iouring.OpReadv, FD: int32(f.Fd())}, Vec: [][]byte{p[:1], p[1:]}}, 2))
		if r.wantN(2, 15); string(p[10:]) != "hello" {
			t.Errorf("read %q", p)
		}
		for _, o := range []iouring.Raw{
			{Buf: p, Vec: [][]byte{p}},
			{Vec: [][]byte{}},
			{Buf: []byte{}},
			{Cmd: make([]byte, 17)},
			{SQE: iouring.SQE{Flags: 1 << 6}},
		} {
			if _, err := r.Raw(&o, 3); !errors.Is(err, unix.EINVAL) {
				t.Errorf("%+v: %v, want EINVAL", o, err)
			}
		}
		r.idle()
	})
}

// TestWide uses rings with submissions of 128 and completions of 32 bytes for ordinary operations and for a command.
func TestWide(t *testing.T) {
	inModes(t, func(t *testing.T, without iouring.Feature) {
		for _, o := range []iouring.Options{{SQE128: true}, {CQE32: true}, {SQE128: true, CQE32: true}} {
			o.Entries, o.Completions, o.InFlight, o.Without = 4, 4, 100, without
			r := newRing(t, o) // skips without the feature
			f := file(t)
			for round := range 3 {
				for i := range 30 {
					r.ok(r.Write(iouring.FD(f.Fd()), []byte{byte(round), byte(i)}, int64(2*i), uint64(i)))
				}
				for d, c := range r.all(30) {
					if c.N != 2 || c.Err != nil {
						t.Errorf("%+v: write %d: %+v", o, d, c)
					}
				}
			}
			cmd := make([]byte, 16)
			if o.SQE128 {
				cmd = make([]byte, 80)
			}
			for i := range cmd {
				cmd[i] = 0xff
			}
			r.ok(r.Raw(&iouring.Raw{SQE: iouring.SQE{Opcode: iouring.OpNop, FD: -1}, Cmd: cmd}, 1))
			r.want(1)
			for range 4 { // the command's bytes must not be left for the next in its place
				r.ok(r.Write(iouring.FD(f.Fd()), []byte("x"), 0, 2))
				r.wantN(2, 1)
			}
			a, b := pair(t, unix.AF_UNIX)
			if _, err := unix.Write(b, make([]byte, 123)); err != nil {
				t.Fatal(err)
			}
			const siocinq = 0 // SOCKET_URING_OP_SIOCINQ, kernel 6.7
			sq := iouring.SQE{Opcode: iouring.OpUringCmd, FD: int32(a), Off: siocinq}
			if _, err := r.Raw(&iouring.Raw{SQE: sq}, 3); !r.Has(iouring.UringCmd) {
				if !errors.Is(err, iouring.ErrUnsupported) {
					t.Errorf("command without the feature: %v, want ErrUnsupported", err)
				}
			} else if err != nil {
				t.Fatal(err)
			} else if c := r.want(3); c.Err == nil && c.N != 123 || c.Err != nil && c.Err != unix.EOPNOTSUPP && c.Err != unix.ENOTTY {
				t.Errorf("SIOCINQ: %+v, want 123 bytes", c)
			}
			r.idle()
		}
	})
}
