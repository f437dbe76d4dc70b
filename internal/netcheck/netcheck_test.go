package netcheck

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// server is a member and nothing else, on loopback.
type server struct {
	number uint32
	addr   string
	l      net.Listener
	w      *wire.Server
	once   sync.Once
}

func (s *server) stop() {
	s.once.Do(func() {
		s.l.Close()
		s.w.Close()
	})
}

// serveMember serves a member at an address until the server is stopped.
func serveMember(addr string, number uint32, wall func() time.Time) (*server, error) {
	l, err := wire.Listen(context.Background(), addr)
	if err != nil {
		return nil, err
	}
	s := &server{number: number, addr: l.Addr().String(), l: l}
	m := New(Options{Network: wire.TCP{}, Addr: s.addr, Wall: wall, Logger: quiet(),
		Hello: func() *msg.Hello { return &msg.Hello{Role: msg.Hello_CHUNK_SERVER, Server: number} }})
	s.w = &wire.Server{Logger: quiet(), Accept: func(c *wire.Conn, h *msg.Hello) (wire.Handler, *msg.HelloReply, fserr.Code) {
		return handler(func(ctx context.Context, c *wire.Conn, f *wire.Frame) { m.Serve(ctx, c, f, h.Role) }), &msg.HelloReply{Server: number}, fserr.OK
	}}
	go s.w.Serve(l)
	return s, nil
}

type handler func(context.Context, *wire.Conn, *wire.Frame)

func (h handler) Serve(ctx context.Context, c *wire.Conn, f *wire.Frame) { h(ctx, c, f) }

func member(t *testing.T, number uint32, wall func() time.Time) *server {
	t.Helper()
	s, err := serveMember("127.0.0.1:0", number, wall)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	return s
}

func dialAs(ctx context.Context, addr string, role msg.Hello_Role) (*wire.Conn, error) {
	c, _, err := wire.Dial(ctx, addr, &msg.Hello{Role: role, Server: 9}, nil, wire.Options{Class: wire.ClassMeta})
	return c, err
}

func asAdmin(ctx context.Context, addr string) (*wire.Conn, error) {
	return dialAs(ctx, addr, msg.Hello_ADMIN)
}

func targets(list ...*server) (out []Target) {
	for _, s := range list {
		out = append(out, Target{Name: "cs" + string(rune('0'+s.number)), Server: s.number, Addr: s.addr})
	}
	return out
}

func self() (wire.Network, *msg.Hello) { return wire.TCP{}, &msg.Hello{Role: msg.Hello_ADMIN} }

// TestRun: three members and this host, all on one host, so that every pair is measured.
func TestRun(t *testing.T) {
	t.Parallel()
	var calls, last int
	r, err := Run(t.Context(), RunOptions{Targets: targets(member(t, 1, nil), member(t, 2, nil), member(t, 3, nil)), Dial: asAdmin, Self: self, For: 60 * time.Millisecond,
		Progress: func(done, all int) {
			if all != 12 || done < last {
				t.Errorf("progress %d of %d after %d", done, all, last)
			}
			calls, last = calls+1, done
		}})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Members) != 4 || len(r.Pairs) != 12 || r.Possible != 12 || calls != 13 || last != 12 {
		t.Fatalf("%d members, %d pairs of %d, %d calls", len(r.Members), len(r.Pairs), r.Possible, calls)
	}
	for _, p := range r.Pairs {
		if p.Failed != "" || p.BytesPerS <= 0 || p.MedianUS <= 0 || p.LeastUS > p.MedianUS || p.MedianUS > p.P99US {
			t.Errorf("%+v", p)
		}
		if pulled := p.To == SelfName; !pulled && (!p.TCP || p.PathMTU == 0 || p.MTUBy != byProbe) {
			t.Errorf("of the kernel and the path: %+v", p)
		}
	}
	for _, m := range r.Members {
		if m.Failed != "" || m.Interface != "lo" || m.MTU == 0 || !m.Clock || time.Duration(m.ClockNS).Abs() > time.Second {
			t.Errorf("%+v", m)
		}
	}
}

// TestRunFaults: one that is down, one that nobody listens at, one that answers as another, and one whose clock is wrong show as such, and the others are measured.
func TestRunFaults(t *testing.T) {
	t.Parallel()
	one, two := member(t, 1, nil), member(t, 2, func() time.Time { return time.Now().Add(3 * time.Second) })
	gone := member(t, 3, nil)
	gone.stop()
	list := targets(one, two, gone, member(t, 4, nil))
	list = append(list, Target{Name: "cs5", Server: 5, Addr: one.addr, Data: two.addr}, Target{Name: "cs6", Server: 6, Addr: one.addr, Down: "is down: its connection ended"})
	r, err := Run(t.Context(), RunOptions{Targets: list, Dial: asAdmin, For: 20 * time.Millisecond, NoMTU: true})
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	for _, p := range r.Problems {
		if p.Verdict == Bad {
			said[p.Where] += p.What + "; "
		}
	}
	for where, want := range map[string]string{"cs2": "clock 3s ahead", "cs3": "does not answer", "cs6": "is down", "cs4 -> cs5": "answers as the server 2, want 5"} {
		if !strings.Contains(said[where], want) {
			t.Errorf("%s: %q, want %q", where, said[where], want)
		}
	}
	for _, p := range r.Pairs {
		if (p.From == "cs1" && p.To == "cs4" || p.From == "cs4" && p.To == "cs2") && (p.Failed != "" || p.BytesPerS == 0) {
			t.Errorf("%+v", p)
		}
		if p.From == "cs3" || p.To == "cs6" {
			t.Errorf("measured although it is not there: %+v", p)
		}
	}
}

// TestRunDies: a member that ends in the middle shows, and the others' pairs are measured.
func TestRunDies(t *testing.T) {
	t.Parallel()
	one, two, three := member(t, 1, nil), member(t, 2, nil), member(t, 3, nil)
	r, err := Run(t.Context(), RunOptions{Targets: targets(one, two, three), Dial: asAdmin, For: 20 * time.Millisecond, NoMTU: true,
		Progress: func(done, _ int) {
			if done == 2 {
				two.stop()
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	if r.Members[1].Failed != "stopped answering while it was measured" || r.Members[0].Failed != "" || r.Members[2].Failed != "" {
		t.Errorf("members %+v", r.Members)
	}
	for _, p := range r.Pairs {
		if p.from != 1 && p.to != 1 && p.Failed != "" {
			t.Errorf("%+v", p)
		}
	}
	if len(r.Pairs) != 6 || r.Worst() != Bad {
		t.Errorf("%d pairs, worst %s", len(r.Pairs), r.Worst())
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = Run(ctx, RunOptions{Targets: targets(one, three), Dial: asAdmin, For: time.Second, Progress: func(int, int) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}

func TestRate(t *testing.T) {
	t.Parallel()
	one := member(t, 1, nil)
	network, hello := self()
	for _, pull := range []bool{false, true} {
		r := measure(t.Context(), way{network: network, hello: hello, addr: one.addr, class: wire.ClassRepair, span: 300 * time.Millisecond, rate: 2 << 20, pull: pull})
		rate := float64(r.Bytes) / (float64(r.TookNs) / 1e9)
		if r.Failed != "" || rate > 3*(2<<20) || rate <= 0 { // how much less it is, is a matter of the machine
			t.Errorf("pull %v: %.0f bytes/s where 2 MiB/s were allowed: %+v", pull, rate, r)
		}
	}
}

// TestRefused: who may not, and what is over the limits.
func TestRefused(t *testing.T) {
	t.Parallel()
	one := member(t, 1, nil)
	test := &msg.NetTest{Addr: one.addr, Server: 1, Class: uint32(wire.ClassRepair), Ms: 10}
	with := func(change func(*msg.NetTest)) *msg.NetTest {
		m := &msg.NetTest{Addr: test.Addr, Server: test.Server, Class: test.Class, Ms: test.Ms}
		change(m)
		return m
	}
	for _, tc := range []struct {
		name string
		role msg.Hello_Role
		typ  wire.Type
		req  wire.Message
		want fserr.Code
	}{
		{"a test for an administrator", msg.Hello_ADMIN, wire.NetTest, test, fserr.OK},
		{"for a client", msg.Hello_CLIENT, wire.NetTest, test, fserr.Perm},
		{"for a server", msg.Hello_CHUNK_SERVER, wire.NetTest, test, fserr.Perm},
		{"too long", msg.Hello_ADMIN, wire.NetTest, with(func(m *msg.NetTest) { m.Ms = 10001 }), fserr.Protocol},
		{"for no time", msg.Hello_ADMIN, wire.NetTest, with(func(m *msg.NetTest) { m.Ms = 0 }), fserr.Protocol},
		{"of no class", msg.Hello_ADMIN, wire.NetTest, with(func(m *msg.NetTest) { m.Class = 99 }), fserr.Protocol},
		{"to nobody", msg.Hello_ADMIN, wire.NetTest, with(func(m *msg.NetTest) { m.Addr = "" }), fserr.Protocol},
		{"a probe for a client", msg.Hello_CLIENT, wire.NetProbe, &msg.NetProbe{}, fserr.Perm},
		{"an echo", msg.Hello_CLIENT, wire.NetEcho, &msg.NetEcho{Answer: 1000}, fserr.OK},
		{"too long an echo", msg.Hello_CLIENT, wire.NetEcho, &msg.NetEcho{Answer: maxAnswer + 1}, fserr.Protocol},
		{"something else", msg.Hello_ADMIN, wire.Status, &msg.Status{}, fserr.Protocol},
	} {
		c, err := dialAs(t.Context(), one.addr, tc.role)
		if err != nil {
			t.Fatal(err)
		}
		code, err := c.CallMessage(t.Context(), tc.typ, wire.ClassMeta, tc.req, nil)
		if err != nil || code != tc.want {
			t.Errorf("%s: %v, %v, want %v", tc.name, code, err, tc.want)
		}
		c.Close()
	}
	c, err := asAdmin(t.Context(), one.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	begun := time.Now()
	for i := range maxProbes + 1 {
		code, err := c.CallMessage(t.Context(), wire.NetProbe, wire.ClassMeta, &msg.NetProbe{}, new(msg.NetProbeReply))
		if i == maxProbes && time.Since(begun) > probeFor/2 {
			t.Logf("after %v the first probe may have ended: %v", time.Since(begun), code)
		} else if err != nil || (code == fserr.OK) != (i < maxProbes) {
			t.Errorf("probe %d: %v, %v", i, code, err)
		}
	}
	var a, b fserr.Code
	for try := 0; try < 5 && a != fserr.Busy && b != fserr.Busy; try++ { // one of them comes while the other runs, if the machine does not stand still for so long
		first := make(chan fserr.Code, 2)
		for range 2 {
			go func() {
				code, _ := c.CallMessage(context.Background(), wire.NetTest, wire.ClassMeta, with(func(m *msg.NetTest) { m.Ms = 1000 }), nil)
				first <- code
			}()
		}
		a, b = <-first, <-first
	}
	if a == b || a != fserr.Busy && b != fserr.Busy {
		t.Errorf("two tests at once: %v, %v", a, b)
	}
}

// TestProbeToken: datagrams that do not begin with the token, or are short, are answered by nobody.
func TestProbeToken(t *testing.T) {
	t.Parallel()
	one := member(t, 1, nil)
	c, err := asAdmin(t.Context(), one.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	reply := new(msg.NetProbeReply)
	if code, err := c.CallMessage(t.Context(), wire.NetProbe, wire.ClassMeta, &msg.NetProbe{}, reply); err != nil || code != fserr.OK {
		t.Fatal(code, err)
	}
	u, err := net.Dial("udp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(reply.Port))))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	good := append(append([]byte{}, reply.Token...), make([]byte, 100)...)
	wrong := append([]byte{}, good...)
	wrong[3]++
	for _, b := range [][]byte{wrong, reply.Token, nil, good} {
		if _, err := u.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := u.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	in := make([]byte, 1000)
	n, err := u.Read(in)
	if err != nil || n != answerLen || in[tokenLen] != byte(len(good)) {
		t.Errorf("first answer: %d bytes %v, %v; want that to the last datagram", n, in[:n], err)
	}
}
