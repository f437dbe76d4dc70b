package wire

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/wire/msg"
)

// keyed is a connection with keys.
type keyed struct {
	net.Conn
	keys Keys
}

func (k *keyed) FrameKeys() (send, receive uint32) { return k.keys.Send, k.keys.Receive }

// keyedNetwork gives each connection keys of its own.
type keyedNetwork struct {
	mu   sync.Mutex
	last Keys
}

func (n *keyedNetwork) Dial(ctx context.Context, addr string, class Class) (net.Conn, error) {
	c, err := TCP{}.Dial(ctx, addr, class)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return &keyed{c, n.last}, nil
}

func (n *keyedNetwork) Listen(ctx context.Context, addr string) (net.Listener, error) {
	l, err := TCP{}.Listen(ctx, addr)
	return &keyedListener{l, n}, err
}

type keyedListener struct {
	net.Listener
	n *keyedNetwork
}

func (l *keyedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	return &keyed{c, Keys{Send: l.n.last.Receive, Receive: l.n.last.Send}}, nil
}

type echoes struct{}

func (echoes) Serve(_ context.Context, c *Conn, f *Frame) { _ = c.Reply(f, fserr.OK, f.Body, f.Data) }

// TestKeys: requests and answers with keys arrive; a frame made with others, or none, ends the connection and is not carried out.
func TestKeys(t *testing.T) {
	n := &keyedNetwork{last: Keys{Send: 0x12345678, Receive: 0x9abcdef0}}
	l, err := n.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Accept: func(*Conn, *msg.Hello) (Handler, *msg.HelloReply, fserr.Code) {
		return echoes{}, &msg.HelloReply{}, fserr.OK
	}}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	defer func() {
		l.Close()
		s.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, _, err := Dial(ctx, l.Addr().String(), &msg.Hello{}, nil, Options{Network: n, Class: ClassGuest})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, size := range []int{0, 100, MaxData} {
		f, err := c.Call(ctx, &Frame{Type: Read, Body: []byte("body"), Data: make([]byte, size)})
		if err != nil || string(f.Body) != "body" || len(f.Data) != size {
			t.Fatalf("%d bytes: %v", size, err)
		}
		f.Release()
	}
	// The same bytes without a key, and with that of the other direction, on connections of their own.
	for name, key := range map[string]uint32{"none": 0, "the other direction's": n.last.Receive, "another": 7} {
		nc, read, _, err := DialBare(ctx, l.Addr().String(), &msg.Hello{}, Options{Network: n, Class: ClassGuest})
		if err != nil || len(read) > 0 {
			t.Fatal(err, read)
		}
		_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := nc.Write(AppendRequest(nil, Read, ClassGuest, 1, 5, nil, 0, key)); err != nil {
			t.Fatal(err)
		}
		if n, err := nc.Read(make([]byte, 100)); err == nil {
			t.Errorf("key %s: answered with %d bytes", name, n)
		}
		nc.Close()
	}
	nc, _, _, err := DialBare(ctx, l.Addr().String(), &msg.Hello{}, Options{Network: n, Class: ClassGuest})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	k := KeysOf(nc)
	if _, err := nc.Write(AppendRequest(nil, Read, ClassGuest, 1, 5, []byte("x"), 0, k.Send)); err != nil {
		t.Fatal(err)
	}
	head, err := bufio.NewReader(nc).Peek(HeaderSize)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := DecodeAnswer(head, k.Receive); err != nil || a.ID != 5 {
		t.Error(a, err)
	}
	if _, err := DecodeAnswer(head, 0); !errors.Is(err, fserr.Protocol) {
		t.Errorf("an answer is taken without its key: %v", err)
	}
	// As a reactor takes requests.
	var f Frame
	b := AppendRequest(nil, Write, ClassGuest, 1, 5, nil, 0, 77)
	if _, _, err := f.DecodeHeader(b, Keys{Receive: 78}); !errors.Is(err, fserr.Protocol) {
		t.Errorf("another key: %v", err)
	}
	if _, _, err := f.DecodeHeader(b, Keys{Send: 99, Receive: 77}); err != nil {
		t.Fatal(err)
	}
	if a, err := DecodeAnswer(f.AppendAnswer(nil, fserr.OK, nil, 0), 99); err != nil || a.ID != 5 {
		t.Error(a, err)
	}
	if plain := AppendRequest(nil, Write, ClassGuest, 1, 5, nil, 0, 0); bytes.Equal(plain, b) {
		t.Error("the key changes nothing")
	}
}
