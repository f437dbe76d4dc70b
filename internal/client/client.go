package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/boottime"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/latency"
	"varve/internal/netcheck"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// Client is one mount's session with a cluster.
type Client struct {
	o        Options
	log      *slog.Logger
	local    map[string]struct{} // this host's addresses, to prefer a replica on it
	notifier atomic.Pointer[Notifier]
	sess     atomic.Pointer[session] // of the last link
	cache    metaCache
	cacheFor atomic.Int64 // ns: the cache lease that the leader gives

	localReads     localCounts
	aheadStats     aheadCounts
	damage         toldDamage
	behindBytes    atomic.Int64     // memory of what was written behind
	reads, changes latency.Recorder // how long reads took; writes, punches and flushes
	disk           localDisk
	stalls         stalls
	patience       patience
	last           lastKnown
	uplink         uplink
	start          time.Time
	hot            hotStats
	seats          [maxSeats]atomic.Pointer[seat]
	suspension
	estate estate

	ctx    context.Context // ends when Close gives up waiting
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	link    *link         // nil while there is no leader
	changed chan struct{} // closed, and made anew, when link changes
	addrs   []string      // known metadata servers
	hint    string        // who is said to be the leader
	closed  bool

	auth    atomic.Pointer[auth] // nil: the cluster is insecure
	shown   atomic.Int64         // bootTime of the last connection that was made to show a certificate
	net     *netcheck.Member     // made when it is first asked for
	netOnce sync.Once
}

// link is a connection to the leader and the session it serves.
type link struct {
	conn *wire.Conn
	addr string
	s    *session
}

// Dial finds the leader and opens a session. It tries until ctx ends or Options.StartTimeout has passed; a wrong
// cluster fails at once. With Options.Resume it returns at once, and goes on with that session when Restored was called and there is a leader.
func Dial(ctx context.Context, o Options) (*Client, error) {
	o.defaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("client options: %w", err)
	}
	c := &Client{o: o, log: o.Logger, local: localAddrs(), changed: make(chan struct{}), addrs: append([]string(nil), o.Addrs...), start: time.Now()}
	c.cache.init(o.CacheEntries)
	c.disk.log = o.Logger
	c.stalls.init(o.Logger)
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if o.Notifier != nil {
		c.SetNotifier(o.Notifier)
	}
	if err := c.openTrust(); err != nil {
		c.cancel()
		return nil, err
	}
	if c.o.Bonds != nil {
		c.background(c.keepSpread)
	}
	if o.Resume != nil {
		c.estate.adopt(c, o.Resume.Entry)
		s := c.restore(o.Resume)
		c.resumed, c.complete = s, make(chan struct{})
		c.sess.Store(s)
		c.wg.Add(2)
		go c.resume(s)
		go c.tick()
		return c, nil
	}
	dctx, cancel := context.WithTimeout(ctx, o.StartTimeout)
	defer cancel()
	l, err := c.connect(dctx, nil, true)
	if err != nil {
		c.cancel()
		c.wg.Wait()
		c.estate.end(true) // nothing was done under a session that may be there
		return nil, fmt.Errorf("connect to cluster %s by %v: %w", o.Name, o.Addrs, err)
	}
	c.publish(l)
	c.wg.Add(2)
	go c.keep(l)
	go c.tick()
	c.inherit(ctx)
	return c, nil
}

// sinceStart is the time on the monotonic clock since the client was made.
func (c *Client) sinceStart() time.Duration { return time.Since(c.start) }

// SetNotifier sets who is told of invalidations; nil for nobody.
func (c *Client) SetNotifier(n Notifier) {
	if n == nil {
		c.notifier.Store(nil)
		return
	}
	c.notifier.Store(&n)
}

// releaseWaiter returns who is told of invalidations if he waits for releases, else nil.
func (c *Client) releaseWaiter() ReleaseWaiter {
	n := c.notifier.Load()
	if n == nil {
		return nil
	}
	w, _ := (*n).(ReleaseWaiter)
	return w
}

// invalidate makes the kernel forget, now or soon.
func (c *Client) invalidate(ino id.Ino, off, length int64) {
	if n := c.notifier.Load(); n != nil {
		(*n).InvalidateInode(ino, off, length)
	}
}

// invalidateNow makes the kernel forget before it returns, or ctx ends: then it does soon.
func (c *Client) invalidateNow(ctx context.Context, ino id.Ino, off, length int64) {
	n := c.notifier.Load()
	if n == nil {
		return
	}
	w, ok := (*n).(WaitNotifier)
	if !ok {
		(*n).InvalidateInode(ino, off, length)
		return
	}
	_ = w.InvalidateInodeWait(ctx, ino, off, length) // it fails only with ctx
}

// Close reports sizes, ends the session and waits for everything the client started. Files still open are dead
// afterwards. It takes at most Options.CloseTimeout, also when the cluster is gone.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	l := c.link
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(c.ctx, c.o.CloseTimeout)
	defer cancel()
	var err error
	if l != nil {
		// A session that says goodbye leaves equal replicas behind, with their size; of one that expires they are settled.
		if err = l.s.flushAll(ctx); err == nil {
			err = l.s.settled(ctx)
		}
		if err == nil {
			err = l.s.flushAll(ctx)
		}
		if err == nil {
			_, err = l.conn.CallMessage(ctx, wire.CloseSession, wire.ClassMeta, &msg.CloseSession{Session: uint64(l.s.id)}, nil)
		}
	} else {
		err = fmt.Errorf("no leader to say goodbye to: %w", fserr.Unavailable)
	}
	c.mu.Lock() // so that background starts nothing afterwards
	c.cancel()
	c.mu.Unlock()
	c.wg.Wait()
	c.estate.end(err == nil)
	c.disk.close()
	if n, on := c.uplink.count(); n > 0 {
		c.log.Info("large writes went through one replica, which sent them on", "writes", n, "preferred", on)
	}
	if st := c.HotStats(); st.Reads+st.Writes > 0 {
		c.log.Info("requests went on without a goroutine", "reads", st.Reads, "writes", st.Writes, "flushes", st.Flushes,
			"reads_left", st.ReadsLeft, "writes_left", st.WritesLeft, "flushes_left", st.FlushesLeft)
	}
	if st := c.LocalStats(); st.Reads > 0 {
		c.log.Info("was read from servers on this host without the network", "reads", st.Reads, "bytes", st.Bytes, "changing", st.Changing,
			"lapsed", st.Lapsed, "revoked", st.Revoked, "damaged", st.Damaged, "failed", st.Failed)
	}
	if err != nil {
		return fmt.Errorf("close session: %w", err)
	}
	return nil
}

// background runs f on a goroutine that Close waits for. After Close it does not, and reports false.
func (c *Client) background(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return false
	}
	c.wg.Go(f)
	return true
}

// tick reports sizes and watches the session's lease.
func (c *Client) tick() {
	defer c.wg.Done()
	t := time.NewTicker(c.o.FlushEvery)
	defer t.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-t.C:
		}
		s := c.sess.Load()
		if s.ctx.Err() != nil {
			continue
		}
		s.watchLease(c.o.FlushEvery)
		ctx, cancel := context.WithTimeout(c.ctx, max(c.o.FlushEvery, time.Second))
		if err := s.flushAll(ctx); err != nil && ctx.Err() == nil && s.ctx.Err() == nil {
			c.log.Warn("reporting file sizes failed, will try again", "err", err)
		}
		cancel()
	}
}

// backoff doubles from 20 ms to 1 s.
type backoff struct{ d time.Duration }

const (
	backoffMin = 20 * time.Millisecond
	backoffMax = time.Second
)

// wait sleeps for the next interval; it returns early, with the reason, when one of the contexts ends.
func (b *backoff) wait(ctx, other context.Context) error {
	b.d = min(max(2*b.d, backoffMin), backoffMax)
	t := time.NewTimer(b.d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ended(ctx)
	case <-other.Done():
		return fserr.Stale
	}
}

// ended returns the outcome of an operation whose context has ended.
func ended(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", fserr.Timeout, ctx.Err())
	}
	return fmt.Errorf("%w: %w", fserr.Interrupted, ctx.Err())
}

// bootTime returns nanoseconds of the clock that also runs while the host sleeps, so that leases end meanwhile.
func bootTime() int64 {
	return int64(boottime.Now())
}

func localAddrs() map[string]struct{} {
	m := map[string]struct{}{"localhost": {}, "127.0.0.1": {}, "::1": {}}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return m // then no replica is preferred
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			m[n.IP.String()] = struct{}{}
		}
	}
	return m
}

// opLock is a mutex whose waiters give up when their context ends.
type opLock chan struct{}

func newOpLock() opLock { return make(opLock, 1) }

func (l opLock) lock(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	default:
	}
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ended(ctx)
	}
}

// try locks if it need not wait.
func (l opLock) try() bool {
	select {
	case l <- struct{}{}:
		return true
	default:
		return false
	}
}

func (l opLock) unlock() { <-l }
