package netcheck

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// Target is a member to be checked.
type Target struct {
	Name   string // mds1, cs3
	Server uint32 // its number
	Addr   string // at which who runs the check reaches it
	Data   string // at which others reach it for the class of the tests; default Addr
	Down   string // the cluster says that it is not there, and why
	// Session, if set, is that of a client. It listens nowhere: the leader asks it (RunOptions.Relay), and it connects in tests of either way.
	Session uint64
}

// RunOptions of Run. Dial is needed.
type RunOptions struct {
	Targets []Target
	// Dial makes a control connection of an administrator to a member.
	Dial func(ctx context.Context, addr string) (*wire.Conn, error)
	// Relay has the leader ask a client. It is needed if there are any among Targets.
	Relay func(ctx context.Context, session uint64, t wire.Type, req, reply wire.Message) (fserr.Code, error)
	// Self, if set, is this host, from which and to which is measured too, as a client: how it connects, and how it presents itself.
	Self func() (wire.Network, *msg.Hello)

	For   time.Duration // of each test; default 1 s, at most MaxTest
	Rate  uint64        // bytes/s that a test sends at most; 0: no limit
	Class wire.Class    // of the tests between members; default ClassRepair
	Pairs int           // at most; 0: all
	NoMTU bool          // paths are not probed

	// Progress is told how many tests have ended, one call at a time.
	Progress func(done, all int)
	Wall     func() time.Time // default time.Now
}

// SelfName is what this host is called in a report.
const SelfName = "this host"

const (
	atOnce       = 16              // members that are asked at once
	testsAtOnce  = 64              // tests at once
	pingTimeout  = 2 * time.Second // for a member to show that it is there
	watchEvery   = time.Second     // how often that is looked at while it measures
	clockSamples = 8
)

// node is a member while it is checked.
type node struct {
	t    Target
	conn *wire.Conn // nil: it does not answer, or it is this host
	self bool

	mu   sync.Mutex
	gone string // why it does not answer any more
}

// client reports whether others connect to it: not to clients.
func (n *node) client() bool { return n.self || n.t.Session != 0 }

// ask asks the member itself, or has it asked.
func (c *run) ask(ctx context.Context, n *node, t wire.Type, req, reply wire.Message) (fserr.Code, error) {
	if n.t.Session != 0 {
		return c.o.Relay(ctx, n.t.Session, t, req, reply)
	}
	return n.conn.CallMessage(ctx, t, wire.ClassMeta, req, reply)
}

func (n *node) fail(why string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gone = cmp.Or(n.gone, why)
}

func (n *node) failed() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gone
}

// run is one Run.
type run struct {
	o     RunOptions
	nodes []*node
	r     *Report
	hosts []string
}

// Run asks all members and measures pairs of them. It fails only if ctx ends; what else fails is in the report.
func Run(ctx context.Context, o RunOptions) (*Report, error) {
	begun := time.Now()
	o.For = min(cmp.Or(o.For, time.Second), MaxTest)
	o.Class = cmp.Or(o.Class, wire.ClassRepair)
	if o.Wall == nil {
		o.Wall = time.Now
	}
	c := &run{o: o, r: &Report{Pairs: []Pair{}, Problems: []Problem{}, Rate: o.Rate}}
	for _, t := range o.Targets {
		t.Data = cmp.Or(t.Data, t.Addr)
		c.nodes = append(c.nodes, &node{t: t})
	}
	defer func() {
		for _, n := range c.nodes {
			if n.conn != nil {
				n.conn.Close()
			}
		}
	}()
	c.r.Members = make([]Node, len(c.nodes), len(c.nodes)+1)
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i := range c.nodes {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			c.meet(ctx, c.nodes[i], &c.r.Members[i])
		})
	}
	wg.Wait()
	if o.Self != nil {
		c.addSelf()
	}
	c.place()
	if err := c.measureAll(ctx); err != nil {
		return nil, err
	}
	for i, n := range c.nodes {
		c.r.Members[i].Failed = cmp.Or(c.r.Members[i].Failed, n.failed())
	}
	c.r.TookMS = time.Since(begun).Milliseconds()
	Judge(c.r)
	return c.r, ctx.Err()
}

// meet connects to a member and asks it about itself and its clock.
func (c *run) meet(ctx context.Context, n *node, out *Node) {
	out.Name, out.Addr = n.t.Name, n.t.Addr
	if n.t.Down != "" {
		n.fail(n.t.Down)
		return
	}
	if n.t.Session == 0 {
		dctx, cancel := context.WithTimeout(ctx, dialTimeout)
		conn, err := c.o.Dial(dctx, n.t.Addr)
		cancel()
		if err != nil {
			n.fail("does not answer: " + err.Error())
			return
		}
		n.conn = conn
	}
	info := new(msg.NetInfoReply)
	ictx, cancel := context.WithTimeout(ctx, dialTimeout)
	code, err := c.ask(ictx, n, wire.NetInfo, &msg.NetInfo{}, info)
	cancel()
	switch {
	case err != nil:
		n.fail("does not answer: " + err.Error())
		return
	case code == fserr.NotSupported || code == fserr.Protocol:
		n.fail("is of a version that cannot be checked: upgrade it")
		return
	case code != fserr.OK:
		n.fail("refuses: " + code.Error())
		return
	}
	if n.t.Session != 0 {
		out.Addr = info.Addr
	}
	out.Host, out.Interface, out.MTU, out.SpeedMbit, out.Duplex, out.State = info.Host, info.Interface, info.Mtu, info.SpeedMbit, info.Duplex, info.State
	out.Warnings, out.Off = info.Warnings, info.WarningsOff
	for range clockSamples {
		c.clock(ctx, n, out)
	}
}

// clock exchanges time stamps once, and keeps what is more certain than before (RFC 5905 section 8).
func (c *run) clock(ctx context.Context, n *node, out *Node) {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	reply := new(msg.NetEchoReply)
	t0, begun := c.o.Wall(), time.Now()
	code, err := c.ask(ctx, n, wire.NetEcho, &msg.NetEcho{}, reply)
	t3 := t0.Add(time.Since(begun)) // not moved by who sets the clock meanwhile
	if err != nil || code != fserr.OK || reply.Received == 0 || reply.Sent < reply.Received {
		return
	}
	doubt := max((t3.Sub(t0).Nanoseconds()-(reply.Sent-reply.Received))/2, 1)
	if !out.Clock || doubt < out.DoubtNS {
		out.Clock, out.DoubtNS = true, doubt
		out.ClockNS = ((reply.Received - t0.UnixNano()) + (reply.Sent - t3.UnixNano())) / 2
	}
}

func (c *run) addSelf() {
	n := &node{t: Target{Name: SelfName}, self: true}
	out := Node{Name: SelfName, Clock: true}
	out.Host = New(Options{}).host
	for _, other := range c.nodes { // the address by which it reaches the others
		if other.conn != nil {
			out.Addr = other.conn.LocalAddr()
			break
		}
	}
	i := interfaceOf(out.Addr)
	out.Interface, out.MTU, out.SpeedMbit, out.Duplex, out.State = i.name, i.mtu, i.speed, i.duplex, i.state
	if out.Addr == "" {
		n.fail("reaches no member")
	}
	c.nodes, c.r.Members = append(c.nodes, n), append(c.r.Members, out)
}

// place finds which members share a host: by address, since names of hosts are given by people.
func (c *run) place() {
	c.hosts = make([]string, len(c.nodes))
	for i, n := range c.nodes {
		if n.failed() != "" {
			continue
		}
		c.hosts[i] = n.t.Data
		if n.client() {
			c.hosts[i] = c.r.Members[i].Addr
		}
		if ip, ok := ipOf(c.hosts[i]); ok {
			c.hosts[i] = ip.String()
		}
	}
}

// measureAll measures pairs, as many at once as there are hosts for, each of which takes part in one at a time.
func (c *run) measureAll(ctx context.Context) error {
	left, all := choose(c.hosts, c.o.Pairs, func(p pair) bool { return !c.nodes[p.from].client() || !c.nodes[p.to].client() })
	c.r.Possible = all
	total, done := len(left), 0
	progress := func() {
		if c.o.Progress != nil {
			c.o.Progress(done, total)
		}
	}
	progress()
	busy := map[string]bool{}
	type outcome struct {
		p   pair
		out Pair
	}
	ended := make(chan outcome, testsAtOnce)
	for running := 0; len(left) > 0 || running > 0; {
		if i := next(left, c.hosts, busy); i >= 0 && running < testsAtOnce && ctx.Err() == nil {
			p := left[i]
			left = slices.Delete(left, i, i+1)
			busy[c.hosts[p.from]], busy[c.hosts[p.to]] = true, true
			running++
			go func() { ended <- outcome{p, c.measure(ctx, p)} }()
			continue
		}
		if running == 0 {
			break // ctx has ended
		}
		o := <-ended
		running--
		delete(busy, c.hosts[o.p.from])
		delete(busy, c.hosts[o.p.to])
		if o.out.apart > 0 {
			c.r.Members[o.out.apart-1].Apart = "its certificate lets it measure nothing"
			c.r.Possible--
		} else {
			c.r.Pairs = append(c.r.Pairs, o.out)
		}
		done++
		progress()
	}
	slices.SortFunc(c.r.Pairs, func(a, b Pair) int { return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to)) })
	return ctx.Err()
}

// measure has one pair measured.
func (c *run) measure(ctx context.Context, p pair) Pair {
	from, to := c.nodes[p.from], c.nodes[p.to]
	out := Pair{From: from.t.Name, To: to.t.Name, from: p.from, to: p.to}
	for _, n := range []*node{from, to} {
		if why := n.failed(); why != "" {
			out.Failed = n.t.Name + " " + why
			return out
		}
	}
	var r *msg.NetTestReply
	var err error
	if from.self || to.self {
		r = c.ownTest(ctx, from, to)
	} else {
		r, err = c.order(ctx, from, to)
	}
	switch {
	case fserr.Of(err) == fserr.Denied && to.t.Session != 0:
		out.apart = p.to + 1
		return out
	case fserr.Of(err) == fserr.Denied && from.t.Session != 0:
		out.apart = p.from + 1
		return out
	case err != nil:
		out.Failed = err.Error()
	case r.Failed != "":
		out.Failed = r.Failed
	}
	if out.Failed != "" && ctx.Err() == nil {
		c.ping(ctx, from)
		c.ping(ctx, to)
	}
	if r == nil {
		return out
	}
	if r.TookNs > 0 {
		out.BytesPerS = float64(r.Bytes) / (float64(r.TookNs) / 1e9)
	}
	out.LeastUS, out.MedianUS, out.P99US = float64(r.LeastNs)/1e3, float64(r.MedianNs)/1e3, float64(r.P99Ns)/1e3
	out.TCP, out.Segments, out.Retransmits = r.Tcp, r.Segments, r.Retransmitted
	out.PathMTU, out.LocalMTU, out.MTUBy, out.Hole = r.PathMtu, r.LocalMtu, r.MtuBy, r.Hole
	return out
}

// order has a member measure the way to another.
func (c *run) order(ctx context.Context, from, to *node) (*msg.NetTestReply, error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.For+drainFor+probeFor+2*dialTimeout)
	defer cancel()
	by, req := from, &msg.NetTest{Addr: to.t.Data, Server: to.t.Server, Class: uint32(c.o.Class), Ms: uint32(max(c.o.For.Milliseconds(), 1)), Rate: c.o.Rate, Mtu: !c.o.NoMTU}
	switch {
	case to.t.Session != 0: // who connects is the client
		by, req.Addr, req.Server, req.Pull, req.Mtu = to, from.t.Addr, from.t.Server, true, false
	case from.t.Session != 0:
		req.Addr = to.t.Addr
	}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		c.watch(ctx, cancel, by)
	}()
	defer func() { cancel(); <-watched }()
	r := new(msg.NetTestReply)
	code, err := c.ask(ctx, by, wire.NetTest, req, r)
	if err == nil && code == fserr.Busy {
		err = fmt.Errorf("%s is measuring for somebody else: %w", by.t.Name, code)
	} else if err == nil {
		err = code.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", by.t.Name, err)
	}
	return r, nil
}

// ownTest measures between this host and a member, either way.
func (c *run) ownTest(ctx context.Context, from, to *node) *msg.NetTestReply {
	network, hello := c.o.Self()
	w := way{network: network, hello: hello, addr: to.t.Addr, class: wire.ClassGuest, span: c.o.For, rate: c.o.Rate, mtu: !c.o.NoMTU && from.self}
	if to.self {
		w.addr, w.pull = from.t.Addr, true
	}
	return measure(ctx, w)
}

// watch gives up a test whose member does not answer any more.
func (c *run) watch(ctx context.Context, cancel func(), n *node) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchEvery):
		}
		if c.ping(ctx, n); n.failed() != "" {
			cancel()
			return
		}
	}
}

// ping finds out whether a member still answers.
func (c *run) ping(ctx context.Context, n *node) {
	if n.self || n.failed() != "" {
		return
	}
	pctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	reply := new(msg.NetEchoReply)
	if code, err := c.ask(pctx, n, wire.NetEcho, &msg.NetEcho{}, reply); (err != nil || n.t.Session != 0 && code != fserr.OK) && ctx.Err() == nil {
		n.fail("stopped answering while it was measured")
	}
}
