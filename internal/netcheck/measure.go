package netcheck

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const (
	dialTimeout = 3 * time.Second
	// echoes is how many small messages are sent for the latency, in echoShare of the time at most.
	echoes    = 40
	echoShare = 4
	// warmShare is the part of the time, 1 in so many, whose data does not count: TCP finds out what the way carries.
	warmShare = 5
	// window is how many frames are under way; each is worth frameTime of what came through so far.
	window    = 8
	frameTime = 5 * time.Millisecond
	// minFrame and maxFrame bound their data, in bytes.
	minFrame, maxFrame = 8 << 10, 512 << 10
	// drainFor is how long the last answers are waited for.
	drainFor = 2 * time.Second
)

// way is what is to be measured.
type way struct {
	network wire.Network
	hello   *msg.Hello
	addr    string
	server  *uint32 // that is expected there; nil: any
	class   wire.Class
	span    time.Duration
	rate    uint64 // bytes/s at most; 0: no limit
	mtu     bool
	pull    bool // data comes from there
}

// tap keeps the socket of the connection that is made.
type tap struct {
	wire.Network
	mu sync.Mutex
	nc net.Conn
}

// Dial implements wire.Network.
func (t *tap) Dial(ctx context.Context, addr string, class wire.Class) (net.Conn, error) {
	nc, err := t.Network.Dial(ctx, addr, class)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.nc = nc
	return nc, err
}

func (t *tap) info() (*unix.TCPInfo, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.nc == nil {
		return nil, false
	}
	return tcpInfo(t.nc)
}

// measure measures one way. What fails is said in the reply.
func measure(ctx context.Context, w way) *msg.NetTestReply {
	r := new(msg.NetTestReply)
	if w.network == nil {
		w.network = wire.TCP{}
	}
	t := &tap{Network: w.network}
	dctx, cancel := context.WithTimeout(ctx, dialTimeout)
	c, hello, err := wire.Dial(dctx, w.addr, w.hello, nil, wire.Options{Class: w.class, Network: t})
	cancel()
	if err != nil {
		r.Failed = "connect: " + err.Error()
		return r
	}
	defer c.Close()
	if w.server != nil && hello.Server != *w.server {
		r.Failed = fmt.Sprintf("%s answers as the server %d, want %d", w.addr, hello.Server, *w.server)
		return r
	}
	c.Mark(w.class)
	r.Local = c.LocalAddr()
	ctx, cancel = context.WithTimeout(ctx, w.span+drainFor+probeFor+dialTimeout)
	defer cancel()
	if err := w.latency(ctx, c, r); err != nil {
		r.Failed = "small messages: " + err.Error()
		return r
	}
	if w.mtu {
		w.path(ctx, c, t, r)
	}
	before, _ := t.info()
	err = w.throughput(ctx, c, r)
	if info, ok := t.info(); ok && before != nil && !w.pull { // the other end knows of what it sent
		r.Tcp, r.Retransmitted = true, uint64(info.Total_retrans-before.Total_retrans)
		r.Segments = uint64(info.Data_segs_out - before.Data_segs_out)
	}
	if err != nil {
		r.Failed = "data: " + err.Error()
	}
	return r
}

func (w *way) echo(data, answer int) (*wire.Frame, error) {
	body, err := (&msg.NetEcho{Answer: uint32(answer)}).MarshalVT()
	if err != nil {
		return nil, err
	}
	return &wire.Frame{Type: wire.NetEcho, Class: w.class, Body: body, Data: filler()[:data]}, nil
}

func (w *way) latency(ctx context.Context, c *wire.Conn, r *msg.NetTestReply) error {
	begun := time.Now()
	var took []time.Duration
	for n := range echoes + 1 {
		f, err := w.echo(0, 0)
		if err != nil {
			return err
		}
		ectx, cancel := context.WithTimeout(ctx, drainFor)
		sent := time.Now()
		reply, err := c.Call(ectx, f)
		cancel()
		if err != nil {
			return err
		}
		d, code := time.Since(sent), reply.Code
		reply.Release()
		if code != fserr.OK {
			return fmt.Errorf("an echo is refused: %w", code)
		}
		if n > 0 { // the first finds nothing prepared
			took = append(took, d)
		}
		if n > 2 && time.Since(begun) > w.span/echoShare {
			break
		}
	}
	slices.Sort(took)
	r.Echoes, r.LeastNs, r.MedianNs = uint32(len(took)), took[0].Nanoseconds(), took[len(took)/2].Nanoseconds()
	r.P99Ns = took[len(took)*99/100].Nanoseconds()
	return nil
}

// Ways in which a path's MTU is found out.
const (
	byProbe   = "UDP datagrams with DF"
	byTCPInfo = "TCP_INFO of the kernel"
)

func (w *way) path(ctx context.Context, c *wire.Conn, t *tap, r *msg.NetTestReply) {
	p, err := pathMTU(ctx, c, w.class, time.Duration(r.MedianNs))
	if err == nil {
		r.PathMtu, r.LocalMtu, r.MtuBy, r.Hole = uint32(p.mtu), uint32(p.local), byProbe, p.mtu < p.local && !p.told
		return
	}
	if info, ok := t.info(); ok {
		r.PathMtu, r.MtuBy = info.Pmtu, byTCPInfo+": "+err.Error()
		r.LocalMtu = interfaceOf(c.LocalAddr()).mtu
		return
	}
	r.MtuBy = "not found out: " + err.Error()
}

// throughput sends data, or has it sent, and counts what arrives after a while to warm up.
func (w *way) throughput(ctx context.Context, c *wire.Conn, r *msg.NetTestReply) error {
	begun := time.Now()
	warm, end := begun.Add(w.span/warmShare), begun.Add(w.span)
	done := make(chan *wire.Call, window)
	var all, counted uint64 // bytes that arrived; after the warm-up
	var from, last time.Time
	size, most, flying := minFrame, maxFrame, 0
	if w.rate > 0 {
		most = int(min(uint64(float64(w.rate)*frameTime.Seconds()), maxFrame))
	}
	sent := false
	var next time.Time // when the rate allows another frame
	timer := time.NewTimer(w.span + drainFor)
	defer timer.Stop()
	take := func(call *wire.Call) error {
		flying--
		if call.Err != nil {
			return call.Err
		}
		code := call.Reply.Code
		call.Reply.Release()
		if code != fserr.OK {
			return fmt.Errorf("refused: %w", code)
		}
		now := time.Now()
		all += uint64(call.Tag)
		if now.After(warm) {
			if from.IsZero() {
				from = now // what came by now was on its way before
			} else {
				counted += uint64(call.Tag)
			}
		}
		last = now
		// A frame is worth frameTime of what came through. It grows by steps, since the first ones may have found a bucket full of tokens.
		size = max(min(int(float64(all)/now.Sub(begun).Seconds()*frameTime.Seconds()), 2*size, most), minFrame)
		return nil
	}
	for {
		now := time.Now()
		sending := now.Before(end) || !sent // however late it is
		if !sending && flying == 0 {
			break
		}
		if sending && flying < window && !now.Before(next) {
			data, answer := size, 0
			if w.pull {
				data, answer = 0, size
			}
			f, err := w.echo(data, answer)
			if err != nil {
				return err
			}
			sent = true
			call := c.Start(f, done)
			call.Tag = size // nobody else looks at it
			flying++
			if w.rate > 0 {
				if next.Before(now.Add(-frameTime)) { // what a pause has left is not made up for
					next = now
				}
				next = next.Add(time.Duration(float64(size) / float64(w.rate) * float64(time.Second)))
			}
			continue
		}
		var pause <-chan time.Time
		if sending && flying < window {
			pause = time.After(time.Until(next))
		}
		select {
		case call := <-done:
			if err := take(call); err != nil {
				return err
			}
		case <-pause:
		case <-timer.C:
			r.Bytes, r.TookNs = all, time.Since(begun).Nanoseconds()
			return fmt.Errorf("%d of %d frames did not arrive within %v of the end", flying, window, drainFor)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if counted == 0 || last.Sub(from) < w.span/4 {
		counted, from = all, begun // slow: all of it counts
	}
	r.Bytes, r.TookNs = counted, max(last.Sub(from).Nanoseconds(), 1)
	if counted == 0 {
		return errors.New("nothing arrived")
	}
	return nil
}
