package client

import (
	"context"
	"fmt"
	"time"

	"varve/internal/fserr"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// auth is what a client knows of who may speak.
type auth struct {
	keeper *pki.Keeper
	cancel context.CancelFunc
}

// openTrust has the client's connections follow what the cluster says of who may speak, and its certificate renewed, until Close. In a cluster without
// security it looks whether that changes.
func (c *Client) openTrust() error {
	creds := c.o.Credentials
	if c.o.opening != nil {
		c.background(func() { c.o.opening.Watch(c.ctx, c.adopt) })
		creds = c.o.opening.Credentials()
	}
	if creds == nil {
		return nil
	}
	return c.follow(creds)
}

// creds returns those that the client shows, nil if it has none.
func (o *Options) creds() *pki.Credentials {
	if o.opening != nil {
		return o.opening.Credentials()
	}
	return o.Credentials
}

// adopt takes credentials that have turned up.
func (c *Client) adopt(creds *pki.Credentials) {
	if err := c.follow(creds); err != nil {
		c.log.Warn("who may speak is not known", "err", err)
	}
	if c.o.opening.Stage() == secure.Closed {
		c.endPlain()
	}
}

// endPlain ends the connections on reactors that were made without certificates. The others the network ends.
func (c *Client) endPlain() {
	if s := c.sess.Load(); s != nil {
		s.servers.endHot(func(serial string) bool { return serial == "" })
	}
}

func (c *Client) follow(creds *pki.Credentials) error {
	t, err := pki.OpenTrust(creds)
	if err != nil {
		return err
	}
	t.Notify(func(revoked func(serial string) bool) {
		if n, ok := c.o.Network.(*secure.Network); ok {
			n.EndIf(func(i pki.Identity) bool { return revoked(i.Serial) })
		}
		// Those on reactors, which the network does not know any more.
		if s := c.sess.Load(); s != nil {
			s.servers.endHot(revoked)
		}
	})
	ctx, cancel := context.WithCancel(c.ctx)
	a := &auth{pki.NewKeeper(t, c.askTrust, c.log), cancel}
	if old := c.auth.Swap(a); old != nil {
		old.cancel()
	}
	if !c.background(func() { a.keeper.Run(ctx) }) {
		cancel()
	}
	return nil
}

// endHot ends the connections on reactors of servers whose certificates are revoked.
func (p *pool) endHot(revoked func(serial string) bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, srv := range p.all {
		for i := range srv.hot {
			if h := srv.hot[i].Load(); h != nil {
				if c := h.cur.Load(); c != nil && revoked(c.peer) {
					c.shut()
				}
			}
		}
	}
}

// trust returns what metadata servers have to show that they are such by, nil if they need not: the cluster has no security, or not for everybody yet.
func (c *Client) trust() *pki.Trust {
	if a := c.auth.Load(); a != nil && c.o.opening.Stage() == secure.Closed {
		return a.keeper.Trust
	}
	return nil
}

// showAgainEach is how often a client that has a certificate tries to show it to the leader.
const showAgainEach = 5 * time.Second

// obeyOpening does what the leader says of a cluster that is being secured: by a new connection to it this client shows its certificate.
func (c *Client) obeyOpening(conn *wire.Conn, reply *msg.RenewSessionReply) {
	op := c.o.opening
	if op == nil || op.Stage() != secure.Both {
		return
	}
	_, authentic := conn.Peer()
	if stage, changed := op.Told(reply.Trust > 0, reply.Opening, authentic); changed {
		if stage == secure.Closed {
			c.endPlain()
		} else if a := c.auth.Load(); a != nil {
			c.auth.Store(nil)
			a.cancel()
		}
		return
	}
	now := bootTime()
	if last := c.shown.Load(); reply.Opening && !authentic && now-last > showAgainEach.Nanoseconds() && c.shown.CompareAndSwap(last, now) {
		c.log.Info("the leader is connected to anew, with a certificate")
		conn.Close()
	}
}

// askTrust is a pki.Asker.
func (c *Client) askTrust(ctx context.Context, known uint64, csr []byte) (*pki.Statement, [][]byte, error) {
	c.mu.Lock()
	l := c.link
	c.mu.Unlock()
	if l == nil {
		return nil, nil, fmt.Errorf("no leader: %w", fserr.Unavailable)
	}
	return wire.AskTrust(ctx, l.conn, known, csr)
}
