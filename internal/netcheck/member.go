package netcheck

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"time"

	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// Options of a member. Network, Hello and Addr are needed.
type Options struct {
	Network wire.Network
	// Hello is how it presents itself to another.
	Hello func() *msg.Hello
	// Addr is where it listens, IP:PORT.
	Addr string
	// Client: it listens nowhere, and is asked by the leader.
	Client bool
	// Wall is its clock. Default: time.Now.
	Wall func() time.Time
	// Warnings, if set, says what is wrong with an interface, or why that is not known.
	Warnings func(iface string) (warnings []string, off string)
	Logger   *slog.Logger // default slog.Default()
}

const (
	// MaxTest bounds one test.
	MaxTest = 10 * time.Second
	// maxAnswer bounds the data of an answer to an echo.
	maxAnswer = 1 << 20
	// maxProbes bounds the probes that are answered at once, and probeFor how long each is.
	maxProbes = 8
	probeFor  = 5 * time.Second
)

// filler is what is sent: it does not compress.
var filler = sync.OnceValue(func() []byte {
	b := make([]byte, maxAnswer)
	x := uint64(0x9e3779b97f4a7c15)
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x >> 32)
	}
	return b
})

// Member is a server's part.
type Member struct {
	o      Options
	host   string
	busy   chan struct{} // one place: held by the test that runs
	probes chan struct{}
}

// New returns that of a server.
func New(o Options) *Member {
	if o.Wall == nil {
		o.Wall = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	host, _ := os.Hostname()
	return &Member{o: o, host: host, busy: make(chan struct{}, 1), probes: make(chan struct{}, maxProbes)}
}

// Serve answers NetInfo, NetEcho, NetProbe and NetTest of a peer in a role.
func (m *Member) Serve(ctx context.Context, c *wire.Conn, f *wire.Frame, role msg.Hello_Role) {
	came := m.o.Wall()
	var code fserr.Code
	var reply wire.Message
	var data []byte
	switch f.Type {
	case wire.NetInfo:
		reply = m.info(came)
	case wire.NetEcho:
		req := new(msg.NetEcho)
		if req.UnmarshalVT(f.Body) != nil || req.Answer > maxAnswer {
			code = fserr.Protocol
			break
		}
		data = filler()[:req.Answer]
		reply = &msg.NetEchoReply{Received: came.UnixNano(), Sent: m.o.Wall().UnixNano()}
	case wire.NetProbe:
		if m.o.Client {
			code = fserr.NotSupported
			break
		}
		reply, code = m.openProbe(c, role)
	case wire.NetTest:
		reply, code = m.order(ctx, c, f, role)
	default:
		code = fserr.Protocol
	}
	if code != fserr.OK {
		_ = c.Reply(f, code, nil, nil) // a lost connection needs no answer
		return
	}
	body, err := reply.MarshalVT()
	if err != nil {
		_ = c.Reply(f, fserr.Protocol, nil, nil)
		return
	}
	_ = c.Reply(f, fserr.OK, body, data)
}

func (m *Member) info(came time.Time) *msg.NetInfoReply {
	r := &msg.NetInfoReply{Host: m.host, Addr: m.o.Addr, Received: came.UnixNano()}
	i := interfaceOf(m.o.Addr)
	r.Interface, r.Mtu, r.SpeedMbit, r.Duplex, r.State = i.name, i.mtu, i.speed, i.duplex, i.state
	switch {
	case m.o.Warnings == nil:
		r.WarningsOff = "this server does not look at its interfaces"
	case i.name == "":
		r.WarningsOff = "no interface has the address " + m.o.Addr
	default:
		r.Warnings, r.WarningsOff = m.o.Warnings(i.name)
	}
	r.Sent = m.o.Wall().UnixNano()
	return r
}

// order measures the way to another member, for an administrator alone: nobody else may have a server send so much.
func (m *Member) order(ctx context.Context, c *wire.Conn, f *wire.Frame, role msg.Hello_Role) (wire.Message, fserr.Code) {
	req := new(msg.NetTest)
	switch {
	case role != msg.Hello_ADMIN:
		return nil, fserr.Perm
	case req.UnmarshalVT(f.Body) != nil || req.Addr == "" || req.Class >= uint32(wire.ClassScrub) || req.Ms == 0 || req.Ms > uint32(MaxTest.Milliseconds()):
		return nil, fserr.Protocol
	}
	if m.o.Client && wire.Class(req.Class) < wire.ClassRepair {
		req.Class = uint32(wire.ClassRepair) // a client's own traffic goes first
	}
	select {
	case m.busy <- struct{}{}:
		defer func() { <-m.busy }()
	default:
		return nil, fserr.Busy
	}
	m.o.Logger.Info("measuring the network on an administrator's order", "to", req.Addr, "for_ms", req.Ms, "by", c.RemoteAddr())
	return measure(ctx, way{network: m.o.Network, hello: m.o.Hello(), addr: req.Addr, server: &req.Server, class: wire.Class(req.Class),
		span: time.Duration(req.Ms) * time.Millisecond, rate: req.Rate, mtu: req.Mtu, pull: req.Pull}), fserr.OK
}
