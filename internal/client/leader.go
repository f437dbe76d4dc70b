package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// maxAddrs bounds the list of metadata servers.
const maxAddrs = 64

// maxCallbacks bounds callbacks answered at once. It is large because one of them may wait for the kernel to write pages
// back, and that for an answer on the same connection.
const maxCallbacks = 4096

// membersEvery is how often the list of metadata servers is refreshed.
const membersEvery = 10 * time.Second

// lastAnswers is how long callbacks have to be answered when the session is over.
const lastAnswers = 250 * time.Millisecond

func (c *Client) publish(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.link = l
	c.sess.Store(l.s)
	close(c.changed)
	c.changed = make(chan struct{})
}

// unlink forgets a connection that turned out to be useless; the keeper, who sees it end, makes another. hint is who
// may be the leader.
func (c *Client) unlink(l *link, hint string) {
	c.mu.Lock()
	if hint != "" {
		c.hint = hint
	}
	mine := c.link == l
	if mine {
		c.link = nil
	}
	c.mu.Unlock()
	l.conn.Close()
	if mine {
		c.cache.drop() // after the close: an answer that comes later was asked for earlier
	}
}

// await returns the link once there is one other than bad. With s, it fails with Stale when s is dead.
func (c *Client) await(ctx context.Context, s *session, bad *link) (*link, error) {
	dead := c.ctx
	if s != nil {
		dead = s.ctx
	}
	for {
		c.mu.Lock()
		l, changed := c.link, c.changed
		c.mu.Unlock()
		switch {
		case dead.Err() != nil:
			return nil, fserr.Stale
		case ctx.Err() != nil:
			return nil, ended(ctx)
		case l != nil && l != bad && l.s.ctx.Err() == nil:
			return l, nil
		}
		select {
		case <-changed:
		case <-dead.Done():
		case <-ctx.Done():
		}
	}
}

// keep renews the session on l until it breaks, finds the next link, and so on until Close.
func (c *Client) keep(l *link) {
	defer c.wg.Done()
	for {
		err := c.renewUntilBroken(l)
		c.unlink(l, "")
		c.dropMeta() // the leader takes the next connection for a sign that we have
		if c.ctx.Err() != nil {
			l.s.kill(fserr.Unavailable)
			return
		}
		c.standStill()
		c.log.Info("metadata connection lost", "addr", l.addr, "session", l.s.id, "err", err)
		next, err := c.connect(c.ctx, l.s, false)
		if err != nil { // only Close ends it
			l.s.kill(fserr.Unavailable)
			return
		}
		c.log.Info("metadata connection made", "addr", next.addr, "session", next.s.id)
		l = next
		c.publish(l)
	}
}

func (c *Client) renewUntilBroken(l *link) error {
	every := c.renewEvery(l.s)
	mayCache := c.cacheFor.Load() > 0
	t := time.NewTicker(every)
	defer t.Stop()
	members, renewed := time.Now(), time.Now()
	for {
		select {
		case <-l.conn.Done():
			return l.conn.Err()
		case <-l.s.ctx.Done():
			ctx, cancel := context.WithTimeout(c.ctx, lastAnswers)
			_ = untilIdle(ctx, "callbacks", func() bool { return c.serving.Load() == 0 }) // that it is over may yet have to be said
			cancel()
			return errors.New("session ended")
		case <-c.ctx.Done():
			return c.ctx.Err()
		case <-t.C:
		case <-l.s.doubts:
			if d := doubtPoll - time.Since(renewed); d > 0 { // not more often than that
				every = d
				t.Reset(d)
				continue
			}
		}
		renewed = time.Now()
		if code, err := c.renew(c.ctx, l.conn, l.s); err != nil || code != fserr.OK {
			if code == fserr.NoSession || code == fserr.Fenced {
				l.s.kill(code)
			}
			return fmt.Errorf("renew session: %w", errors.Join(err, code.Err()))
		}
		if mayCache && c.cacheFor.Load() == 0 {
			return errors.New("the leader lets nothing be cached on this connection any more, another one may")
		}
		mayCache = c.cacheFor.Load() > 0
		if e := c.renewEvery(l.s); e != every {
			every = e
			t.Reset(e)
		}
		if time.Since(members) > membersEvery {
			members = time.Now()
			ctx, cancel := context.WithTimeout(c.ctx, c.o.DialTimeout)
			c.learnMembers(ctx, l.conn)
			cancel()
		}
	}
}

func (c *Client) renew(ctx context.Context, conn *wire.Conn, s *session) (fserr.Code, error) {
	ctx, cancel := context.WithTimeout(ctx, max(s.lease/3, 100*time.Millisecond))
	defer cancel()
	at := bootTime()
	var reply msg.RenewSessionReply
	code, err := conn.CallMessage(ctx, wire.RenewSession, wire.ClassHeartbeat, &msg.RenewSession{
		Session: uint64(s.id), Local: c.localMessage(), Load: s.loadReport(), Capability: s.refused.Swap(false)}, &reply)
	if err == nil && code == fserr.OK {
		c.obeyOpening(conn, &reply)
		s.granted(reply.Capability)
		if reply.Index > s.asOf.Load() { // one renewal at a time
			s.asOf.Store(reply.Index)
		}
		s.servers.slow(reply.Slow)
		s.servers.heardOf(at, reply.Silent)
		if late := bootTime() - s.deadline.Load(); late > 0 { // before the deadline is moved: nothing begins until then
			s.lapses.Add(1)
			c.log.Info("session renewed after its lease was over: it goes on", "session", s.id, "late", time.Duration(late).Round(time.Millisecond))
		}
		if reply.LeaseMs > 0 {
			s.deadline.Store(at + int64(reply.LeaseMs)*1e6)
		} else {
			s.deadline.Store(at + int64(s.lease))
		}
		if c.o.NoCache {
			reply.CacheMs = 0
		}
		c.cacheFor.Store(int64(reply.CacheMs) * 1e6)
		if c.cache.extend(at, time.Duration(reply.CacheMs)*time.Millisecond) {
			c.log.Info("the lease of cached names and attributes was not renewed in time: dropped", "session", s.id)
			if n := c.metaNotifier(); n != nil {
				n.ForgetAllMeta()
			}
		}
	}
	return code, err
}

// renewEvery is how often the session and what is cached under it are renewed.
func (c *Client) renewEvery(s *session) time.Duration {
	if cache := time.Duration(c.cacheFor.Load()); cache > 0 {
		return min(s.renewEvery, max(cache/3, 10*time.Millisecond))
	}
	return s.renewEvery
}

// eagerFor is how long the search for a leader is quick.
const eagerFor = 10 * time.Second

// connect tries all metadata servers until one is the leader and has the session s, or a new one if s is nil or dead.
// With once, it fails at once if every server says that it belongs to another cluster.
func (c *Client) connect(ctx context.Context, s *session, once bool) (*link, error) {
	var wait backoff
	st := c.watch("a metadata leader")
	defer st.end()
	for eager := time.Now().Add(eagerFor); ; {
		if time.Now().Before(eager) {
			wait.d = min(wait.d, backoffMin) // an election takes no longer: everybody waits for this
		}
		l, err := c.tryAll(ctx, s)
		if err == nil {
			return l, nil
		}
		if once && fserr.Of(err) == fserr.WrongCluster {
			return nil, err
		}
		if werr := wait.wait(ctx, c.ctx); werr != nil {
			return nil, fmt.Errorf("%w: %w", err, werr)
		}
	}
}

func (c *Client) tryAll(ctx context.Context, s *session) (*link, error) {
	c.mu.Lock()
	queue := slices.Clone(c.addrs)
	if c.hint != "" {
		queue = append([]string{c.hint}, queue...)
	}
	c.hint = ""
	c.mu.Unlock()
	tried := make(map[string]bool)
	var errs []error
	more := c.o.More
	for len(tried) < maxAddrs && ctx.Err() == nil {
		if len(queue) == 0 && more != nil { // once
			queue, more = more(), nil
		}
		if len(queue) == 0 {
			break
		}
		addr := queue[0]
		queue = queue[1:]
		if tried[addr] {
			continue
		}
		tried[addr] = true
		l, leader, err := c.tryOne(ctx, addr, s)
		if err == nil {
			return l, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
		if leader != "" {
			queue = append([]string{leader}, queue...)
		}
	}
	c.mu.Lock() // the next round starts with another one
	c.addrs = append(c.addrs[1:], c.addrs[0])
	c.mu.Unlock()
	if len(errs) == 0 {
		return nil, ended(ctx)
	}
	err := errors.Join(errs...)
	for _, e := range errs {
		if fserr.Of(e) != fserr.WrongCluster {
			return nil, fmt.Errorf("%w: %w", fserr.Unavailable, err)
		}
	}
	return nil, err
}

func (c *Client) tryOne(ctx context.Context, addr string, s *session) (l *link, leader string, err error) {
	if s != nil && s.ctx.Err() != nil {
		s = nil
	}
	dctx, cancel := context.WithTimeout(ctx, c.o.DialTimeout)
	defer cancel()
	hello := &msg.Hello{Cluster: c.o.Cluster[:], Role: msg.Hello_CLIENT, Version: c.o.Version}
	if s != nil {
		hello.Session = uint64(s.id)
	}
	h := &callbacks{c: c}
	h.s.Store(s)
	conn, _, err := wire.DialMeta(dctx, addr, hello, h, c.trust(), wire.Options{InFlight: maxCallbacks, Class: wire.ClassMeta, Network: c.o.Network})
	if err != nil {
		return nil, "", err
	}
	conn.Mark(wire.ClassMeta)
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	leader = c.learnMembers(dctx, conn)
	if s != nil {
		code, err := c.renew(dctx, conn, s)
		switch {
		case err != nil:
			return nil, leader, err
		case code == fserr.OK:
			return &link{conn: conn, addr: addr, s: s}, "", nil
		case code != fserr.NoSession && code != fserr.Fenced:
			return nil, leader, code
		}
		s.kill(code)
	}
	s, err = c.openSession(dctx, conn)
	if err != nil {
		return nil, leader, err
	}
	h.s.Store(s)
	if code, err := c.renew(dctx, conn, s); err != nil || code != fserr.OK { // so the leader knows whose connection it is
		s.discard()
		return nil, leader, errors.Join(err, code.Err())
	}
	return &link{conn: conn, addr: addr, s: s}, "", nil
}

func (c *Client) openSession(ctx context.Context, conn *wire.Conn) (*session, error) {
	at := bootTime()
	req := &msg.OpenSession{Host: c.o.Host, Pid: pid(), Mount: c.o.Mount, Nonce: c.estate.opening(c)}
	var reply msg.OpenSessionReply
	code, err := conn.CallMessage(ctx, wire.OpenSession, wire.ClassMeta, req, &reply)
	if err == nil {
		err = code.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	if reply.Session == 0 {
		return nil, fmt.Errorf("open session: answer without a session: %w", fserr.Protocol)
	}
	c.estate.opened()
	s := newSession(c, id.SessionID(reply.Session), &reply)
	s.granted(reply.Capability)
	s.deadline.Store(at + int64(s.lease))
	c.log.Info("session opened", "session", s.id, "addr", conn.RemoteAddr())
	return s, nil
}

// learnMembers asks conn for the members, remembers them and returns the leader's address, if it is known.
func (c *Client) learnMembers(ctx context.Context, conn *wire.Conn) string {
	var reply msg.MembersReply
	code, err := conn.CallMessage(ctx, wire.Members, wire.ClassMeta, &msg.Members{Net: c.o.Told != nil}, &reply)
	if err != nil || code != fserr.OK {
		return "" // then the configured addresses have to do
	}
	if c.o.Members != nil && reply.Leader != "" { // one that knows of no leader may be one that was removed
		c.o.Members(slices.Clone(reply.Addrs))
	}
	if c.o.Told != nil {
		c.o.Told(&reply)
	}
	if a := c.auth.Load(); a != nil {
		a.keeper.Told(reply.Trust)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	known := slices.Clone(reply.Addrs)
	for _, a := range c.o.Addrs { // kept: a member may be reachable by another name only
		if !slices.Contains(known, a) {
			known = append(known, a)
		}
	}
	c.addrs = known[:min(len(known), maxAddrs)]
	return reply.Leader
}
