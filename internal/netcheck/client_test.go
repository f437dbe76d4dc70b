package netcheck

import (
	"context"
	"strings"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// asked is a client as the leader reaches it.
func asked(t *testing.T) *wire.Conn {
	t.Helper()
	l, err := wire.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := New(Options{Network: wire.TCP{}, Addr: "127.0.0.1:1", Client: true, Logger: quiet(), Hello: func() *msg.Hello { return &msg.Hello{Role: msg.Hello_ADMIN} }})
	w := &wire.Server{Logger: quiet(), Accept: func(c *wire.Conn, h *msg.Hello) (wire.Handler, *msg.HelloReply, fserr.Code) {
		return handler(func(ctx context.Context, c *wire.Conn, f *wire.Frame) { m.Serve(ctx, c, f, h.Role) }), &msg.HelloReply{}, fserr.OK
	}}
	go w.Serve(l)
	c, err := asAdmin(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); l.Close(); w.Close() })
	return c
}

// TestRunClients: clients, which the leader asks, connect in tests of either way, and none with another. One that has gone shows as such.
func TestRunClients(t *testing.T) {
	t.Parallel()
	clients := map[uint64]*wire.Conn{7: asked(t), 8: asked(t)}
	relay := func(ctx context.Context, session uint64, typ wire.Type, req, reply wire.Message) (fserr.Code, error) {
		c := clients[session]
		if c == nil {
			return fserr.NoSession, nil
		}
		return c.CallMessage(ctx, typ, wire.ClassMeta, req, reply)
	}
	list := append(targets(member(t, 1, nil), member(t, 2, nil)), Target{Name: "a", Session: 7}, Target{Name: "b", Session: 8}, Target{Name: "gone", Session: 9})
	r, err := Run(t.Context(), RunOptions{Targets: list, Dial: asAdmin, Relay: relay, Self: self, For: 50 * time.Millisecond, Class: wire.ClassGuest})
	if err != nil {
		t.Fatal(err)
	}
	ways := map[string]bool{}
	for _, p := range r.Pairs {
		if p.Failed != "" || p.BytesPerS <= 0 || p.MedianUS <= 0 {
			t.Errorf("%+v", p)
		}
		ways[p.From+" "+p.To] = true
	}
	server := func(name string) bool { return strings.HasPrefix(name, "cs") }
	if want := 2 + 2*2*2 + 2*2; len(r.Pairs) != want { // servers, clients either way, this host
		t.Errorf("%d pairs, want %d: %v", len(r.Pairs), want, ways)
	}
	for _, p := range r.Pairs {
		if !server(p.From) && !server(p.To) {
			t.Errorf("a client was measured with another: %+v", p)
		}
	}
	for _, m := range r.Members {
		if gone := m.Name == "gone"; gone != (m.Failed != "") {
			t.Errorf("%+v", m)
		}
	}
}

// TestRunReader: a client that may measure nothing, since its certificate is a reader's, is no fault of the network.
func TestRunReader(t *testing.T) {
	t.Parallel()
	reader := asked(t)
	relay := func(ctx context.Context, _ uint64, typ wire.Type, req, reply wire.Message) (fserr.Code, error) {
		if typ == wire.NetTest {
			return fserr.Denied, nil
		}
		return reader.CallMessage(ctx, typ, wire.ClassMeta, req, reply)
	}
	list := append(targets(member(t, 1, nil), member(t, 2, nil)), Target{Name: "reader", Session: 7})
	r, err := Run(t.Context(), RunOptions{Targets: list, Dial: asAdmin, Relay: relay, For: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Pairs) != 2 || r.Possible != 2 {
		t.Errorf("%d of %d pairs: %+v", len(r.Pairs), r.Possible, r.Pairs)
	}
	if m := r.Members[2]; m.Name != "reader" || m.Failed != "" || m.Apart == "" {
		t.Errorf("%+v", m)
	}
	for _, p := range r.Problems { // a busy machine may be slow between the servers
		if p.Verdict == Bad && strings.Contains(p.Where, "reader") {
			t.Errorf("%+v", p)
		}
	}
}

// TestClientBounds: a client's tests go after its guests' traffic, one at a time, for administrators alone, and it opens no port.
func TestClientBounds(t *testing.T) {
	t.Parallel()
	c, to := asked(t), member(t, 1, nil)
	for typ, req := range map[wire.Type]wire.Message{
		wire.NetProbe: &msg.NetProbe{}, wire.NetTest: &msg.NetTest{Addr: to.addr, Server: 1, Class: uint32(wire.ClassRepair), Ms: uint32(2 * MaxTest.Milliseconds())},
	} {
		if code, err := c.CallMessage(t.Context(), typ, wire.ClassMeta, req, nil); err != nil || code == fserr.OK {
			t.Errorf("request type %d: %v, %v", typ, code, err)
		}
	}
	first := make(chan error, 1)
	test := &msg.NetTest{Addr: to.addr, Server: 1, Class: uint32(wire.ClassGuest), Ms: 2000, Rate: 1 << 20}
	go func() {
		for end := time.Now().Add(time.Minute); ; {
			code, err := c.CallMessage(t.Context(), wire.NetTest, wire.ClassMeta, test, new(msg.NetTestReply))
			if err == nil && code == fserr.Busy && time.Now().Before(end) { // with one of those below
				continue
			}
			if err == nil {
				err = code.Err()
			}
			first <- err
			return
		}
	}()
	var code fserr.Code
	for end := time.Now().Add(time.Minute); code != fserr.Busy && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-first:
			t.Fatalf("the test ended before another was refused: %v", err)
		default:
		}
		var err error
		if code, err = c.CallMessage(t.Context(), wire.NetTest, wire.ClassMeta, &msg.NetTest{Addr: to.addr, Server: 1, Class: uint32(wire.ClassRepair), Ms: 10}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
}
