package wire

import (
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
	"varve/internal/wire/msg"
)

// TestPasses: only what passes is waited for.
func TestPasses(t *testing.T) {
	accept := func(err error) error {
		return &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", err)}
	}
	for err, want := range map[error]bool{
		accept(unix.EMFILE): true, accept(unix.ENOBUFS): true, accept(unix.ECONNABORTED): true, accept(unix.EHOSTUNREACH): true, accept(os.ErrDeadlineExceeded): true,
		accept(unix.EBADF): false, accept(unix.EINVAL): false, net.ErrClosed: false, io.EOF: false,
	} {
		if got := Passes(err); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}

// failing is a listener that cannot accept at first.
type failing struct {
	net.Listener
	left int
}

func (f *failing) Accept() (net.Conn, error) {
	if f.left > 0 {
		f.left--
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", unix.ENOMEM)}
	}
	return f.Listener.Accept()
}

// TestAcceptGoesOn: a server that cannot accept for a moment goes on.
func TestAcceptGoesOn(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Accept: func(*Conn, *msg.Hello) (Handler, *msg.HelloReply, fserr.Code) {
		return nil, &msg.HelloReply{}, fserr.OK
	}}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(&failing{l, 2}) }()
	c, _, err := Dial(t.Context(), l.Addr().String(), &msg.Hello{}, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	l.Close()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it serves a closed listener")
	}
	s.Close()
}
