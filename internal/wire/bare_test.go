package wire

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/wire/msg"
)

// bareEcho answers a request with its body and data.
type bareEcho struct{}

func (bareEcho) Serve(_ context.Context, c *Conn, req *Frame) {
	_ = c.Reply(req, fserr.OK, req.Body, req.Data)
}

// TestDialBare: who moves the bytes himself is understood, and understands.
func TestDialBare(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var refuse atomic.Bool
	s := &Server{Accept: func(*Conn, *msg.Hello) (Handler, *msg.HelloReply, fserr.Code) {
		if refuse.Load() {
			return nil, nil, fserr.Fenced
		}
		return bareEcho{}, &msg.HelloReply{Server: 7}, fserr.OK
	}}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() {
		l.Close()
		s.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	nc, read, reply, err := DialBare(t.Context(), l.Addr().String(), &msg.Hello{}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if len(read) != 0 || reply.Server != 7 {
		t.Errorf("read %d bytes, server %d", len(read), reply.Server)
	}
	if err := nc.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	body, data := []byte("body"), []byte("some data")
	b := AppendRequest(nil, Read, ClassGuest, 3, 99, body, len(data), 0)
	if _, err := nc.Write(append(b, data...)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, HeaderSize+len(body)+len(data))
	if _, err := io.ReadFull(nc, got); err != nil {
		t.Fatal(err)
	}
	a, err := DecodeAnswer(got, 0)
	if err != nil || a.Type != Read || a.Code != fserr.OK || a.Epoch != 3 || a.ID != 99 || a.Body != len(body) || a.Data != len(data) {
		t.Fatalf("%+v, %v", a, err)
	}
	if err := a.CheckBody(body); err != nil {
		t.Error(err)
	}
	if err := a.CheckBody(data); !errors.Is(err, fserr.Protocol) {
		t.Errorf("wrong body: %v", err)
	}
	if _, err := DecodeAnswer(b, 0); !errors.Is(err, fserr.Protocol) {
		t.Errorf("a request was taken for an answer: %v", err)
	}
	got[9] ^= 1
	if _, err := DecodeAnswer(got, 0); !errors.Is(err, fserr.Protocol) {
		t.Errorf("damaged header: %v", err)
	}
	refuse.Store(true)
	if _, _, _, err := DialBare(t.Context(), l.Addr().String(), &msg.Hello{}, Options{}); fserr.Of(err) != fserr.Fenced {
		t.Errorf("refused: %v", err)
	}
}
