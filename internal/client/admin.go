package client

import (
	"context"
	"errors"
	"fmt"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// Admin is a connection to one metadata server without a session: for the commands that look at a cluster.
type Admin struct {
	conn    *wire.Conn
	Cluster id.Cluster // whose member answered
	Name    string
}

// DialAdmin connects to the first of addrs that answers. A zero cluster accepts any. network may be nil: wire.TCP.
func DialAdmin(ctx context.Context, network wire.Network, cluster id.Cluster, addrs []string) (*Admin, error) {
	hello := &msg.Hello{Role: msg.Hello_ADMIN}
	if !cluster.IsZero() {
		hello.Cluster = cluster[:]
	}
	var errs []error
	for _, addr := range addrs {
		conn, reply, err := wire.Dial(ctx, addr, hello, nil, wire.Options{Class: wire.ClassMeta, Network: network})
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", addr, err))
			continue
		}
		a := &Admin{conn: conn, Name: reply.Name}
		copy(a.Cluster[:], reply.Cluster)
		return a, nil
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("no metadata server address: %w", fserr.Invalid)
	}
	return nil, errors.Join(errs...)
}

// Close ends the connection.
func (a *Admin) Close() error { return a.conn.Close() }

// Addr returns the address of the server.
func (a *Admin) Addr() string { return a.conn.RemoteAddr() }

func ask(ctx context.Context, conn *wire.Conn, t wire.Type, req, reply wire.Message) error {
	code, err := conn.CallMessage(ctx, t, wire.ClassMeta, req, reply)
	if err != nil {
		return err
	}
	return code.Err()
}

// Status returns what the server knows of the cluster.
func (a *Admin) Status(ctx context.Context) (*msg.StatusReply, error) {
	r := new(msg.StatusReply)
	return r, ask(ctx, a.conn, wire.Status, &msg.Status{}, r)
}

// StateDigest returns the digest of the server's state at an index of at least atLeast.
func (a *Admin) StateDigest(ctx context.Context, atLeast id.Index) (*msg.StateDigestReply, error) {
	r := new(msg.StateDigestReply)
	return r, ask(ctx, a.conn, wire.StateDigest, &msg.StateDigest{AtLeast: uint64(atLeast)}, r)
}

// Members returns the metadata servers.
func (a *Admin) Members(ctx context.Context) (*msg.MembersReply, error) {
	r := new(msg.MembersReply)
	return r, ask(ctx, a.conn, wire.Members, &msg.Members{}, r)
}

// JournalRead returns raw records, or a piece of a checkpoint.
func (a *Admin) JournalRead(ctx context.Context, req *msg.JournalRead) (*msg.JournalReadReply, []byte, error) {
	return journalRead(ctx, a.conn, req)
}

func journalRead(ctx context.Context, conn *wire.Conn, req *msg.JournalRead) (*msg.JournalReadReply, []byte, error) {
	body, err := req.MarshalVT()
	if err != nil {
		return nil, nil, err
	}
	f, err := conn.Call(ctx, &wire.Frame{Type: wire.JournalRead, Class: wire.ClassMeta, Body: body})
	if err != nil {
		return nil, nil, err
	}
	defer f.Release()
	if f.Code != fserr.OK {
		return nil, nil, fmt.Errorf("journal read from %d: %w", req.From, f.Code)
	}
	r := new(msg.JournalReadReply)
	if err := r.UnmarshalVT(f.Body); err != nil {
		return nil, nil, fmt.Errorf("journal read from %d: %w: %w", req.From, fserr.Protocol, err)
	}
	return r, append([]byte(nil), f.Data...), nil
}

// SetConfig sets a setting of the cluster.
func (c *Client) SetConfig(ctx context.Context, key, value string) error {
	return c.admin(ctx, func(a *Admin) error {
		return ask(ctx, a.conn, wire.SetConfig, &msg.SetConfig{Key: key, Value: value}, nil)
	})
}

// admin asks the leader, following it when it changes.
func (c *Client) admin(ctx context.Context, f func(a *Admin) error) error {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	var bad *link
	for {
		l, err := c.await(ctx, nil, bad)
		if err != nil {
			return err
		}
		err = f(&Admin{conn: l.conn, Cluster: c.o.Cluster, Name: c.o.Name})
		switch {
		case errors.Is(err, wire.ErrClosed) && ctx.Err() == nil:
		case fserr.Of(err) == fserr.NotLeader:
		default:
			return err
		}
		c.unlink(l, "")
		bad = l
	}
}

// Status returns what the leader knows of the cluster.
func (c *Client) Status(ctx context.Context) (r *msg.StatusReply, err error) {
	err = c.admin(ctx, func(a *Admin) error { r, err = a.Status(ctx); return err })
	return r, err
}

// StateDigest returns the digest of the leader's state at an index of at least atLeast.
func (c *Client) StateDigest(ctx context.Context, atLeast id.Index) (r *msg.StateDigestReply, err error) {
	err = c.admin(ctx, func(a *Admin) error { r, err = a.StateDigest(ctx, atLeast); return err })
	return r, err
}

// Members returns the metadata servers.
func (c *Client) Members(ctx context.Context) (r *msg.MembersReply, err error) {
	err = c.admin(ctx, func(a *Admin) error { r, err = a.Members(ctx); return err })
	return r, err
}

// JournalRead returns raw records, or a piece of a checkpoint, from the leader.
func (c *Client) JournalRead(ctx context.Context, req *msg.JournalRead) (r *msg.JournalReadReply, data []byte, err error) {
	err = c.admin(ctx, func(a *Admin) error { r, data, err = a.JournalRead(ctx, req); return err })
	return r, data, err
}

// Session returns the session of the moment, for people.
func (c *Client) Session() id.SessionID { return c.sess.Load().id }
