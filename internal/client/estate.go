package client

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/fserr"
	"varve/internal/ledger"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const (
	// inheritTime bounds how long Dial sees to the sessions of the dead. What is left then ends with its lease.
	inheritTime = 5 * time.Second
	// maxInherits is how many it ends at once.
	maxInherits = 8
)

// estate is what this client leaves to the next one on its host, should its process die, and how many it has had from others.
type estate struct {
	heirs atomic.Int64 // sessions of dead processes that this client has ended

	mu     sync.Mutex
	nonce  []byte        // of the session being opened
	next   *ledger.Entry // its entry; nil: there is none
	now    *ledger.Entry // of the session
	silent bool          // it was told that there are no entries
}

// opening returns the nonce of the session to be opened, which is noted before anybody is asked for it.
func (e *estate) opening(c *Client) []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.nonce != nil {
		return e.nonce
	}
	secret := ledger.NewSecret()
	e.nonce = ledger.Nonce(secret)
	if c.o.Estates == "" {
		return e.nonce
	}
	var err error
	if e.next, err = ledger.Write(c.o.Estates, c.o.Cluster, secret, c.o.Mount, c.o.Mounted); err != nil && !e.silent {
		e.silent = true
		c.log.Warn("should this process be killed, whoever comes after it has to wait until its lease is over", "cause", err)
	}
	return e.nonce
}

// opened says that the session is there. The one before it was lost.
func (e *estate) opened() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.now.Remove()
	e.nonce, e.next, e.now = nil, nil, e.next
}

// end forgets the entries: they are removed if the session is over, else left to who comes next.
func (e *estate) end(over bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.next.Remove() // of a session that was never used
	if over {
		e.now.Remove()
	} else {
		e.now.Release()
	}
	e.nonce, e.next, e.now = nil, nil, nil
}

func (e *estate) keep() *ledger.Kept {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.now.Keep()
}

// adopt takes over the entry of the program before, in the same process.
func (e *estate) adopt(c *Client, k *ledger.Kept) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var err error
	if e.now, err = ledger.Adopt(k); err != nil {
		c.log.Warn("should this process be killed, whoever comes after it has to wait until its lease is over", "cause", err)
	}
}

// Inherited returns how many sessions of dead processes this client has ended.
func (c *Client) Inherited() int64 { return c.estate.heirs.Load() }

// inherit ends the sessions of processes that have died on this host, so that nobody waits for their leases.
func (c *Client) inherit(ctx context.Context) {
	if c.o.Estates == "" {
		return
	}
	dead, errs := ledger.Dead(c.o.Estates, c.o.Cluster)
	for _, err := range errs {
		c.log.Warn("not known whether a session is of a process that has died", "cause", err)
	}
	ctx, cancel := context.WithTimeout(ctx, inheritTime)
	defer cancel()
	slots := make(chan struct{}, maxInherits)
	var wg sync.WaitGroup
	for _, d := range dead {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			c.inheritOne(ctx, d)
		})
	}
	wg.Wait()
}

func (c *Client) inheritOne(ctx context.Context, d ledger.Estate) {
	begin := time.Now()
	reply := new(msg.CloseSessionReply)
	req := &msg.CloseSession{Secret: d.SecretBytes(), Mounted: d.Mounted}
	var bad *link
	var wait backoff
	for {
		l, err := c.await(ctx, nil, bad)
		if err == nil {
			var answer fserr.Code
			if answer, err = l.conn.CallMessage(ctx, wire.CloseSession, wire.ClassMeta, req, reply); err == nil {
				err = answer.Err()
			}
		}
		code := fserr.Of(err)
		switch {
		case err == nil:
			d.Remove()
			c.estate.heirs.Add(1)
			c.log.Info("the session of a process that has died on this host is over", "session", reply.Session, "pid", d.PID, "mount", d.Mount,
				"took", time.Since(begin).Round(time.Millisecond))
			return
		case ctx.Err() == nil && (code == fserr.NotLeader || errors.Is(err, wire.ErrClosed)):
			bad = l
			c.unlink(l, "")
			continue
		case code == fserr.Unavailable && wait.wait(ctx, c.ctx) == nil:
			continue
		}
		d.Release()
		c.log.Warn("the session of a process that has died on this host ends when its lease is over", "pid", d.PID, "mount", d.Mount, "cause", err)
		return
	}
}
