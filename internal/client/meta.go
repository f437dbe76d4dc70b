package client

import (
	"context"
	"errors"
	"fmt"

	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// changes reports whether the operation changes state, and so needs a sequence number.
func changes(req *msg.MetaRequest) bool {
	switch op := req.Op.(type) {
	case *msg.MetaRequest_Lookup, *msg.MetaRequest_GetAttr, *msg.MetaRequest_ReadDir, *msg.MetaRequest_ReadLink,
		*msg.MetaRequest_GetXattr, *msg.MetaRequest_ListXattr, *msg.MetaRequest_Access, *msg.MetaRequest_StatFs,
		*msg.MetaRequest_GetLayout, *msg.MetaRequest_GetPolicy:
		return false
	case *msg.MetaRequest_Lock:
		return !op.Lock.Test
	}
	return true
}

// do asks the leader, whoever that is, until there is an outcome or ctx ends. With s it is asked under that session
// only and fails with Stale when the session is dead; without, under the one of the moment. A change whose fate is
// unknown when its session is lost fails with IO: asking again under another session could do it twice.
func (c *Client) do(ctx context.Context, s *session, req *msg.MetaRequest) (*msg.MetaReply, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	st := c.watch("the metadata leader", "op", opName{req})
	defer st.end()
	var (
		cur     *session // whose seq is in req
		bad     *link
		unknown bool // an earlier attempt may have been carried out
		wait    backoff
	)
	defer func() {
		if req.Seq > 0 {
			cur.finish(req.Seq)
		}
	}()
	for {
		l, err := c.await(ctx, s, bad)
		if err != nil {
			return nil, err
		}
		if cur != l.s {
			if s != nil && l.s != s {
				return nil, fserr.Stale
			}
			if req.Seq > 0 {
				cur.finish(req.Seq)
				req.Seq = 0
				if unknown {
					return nil, fmt.Errorf("session lost while a change was under way: %w", fserr.IO)
				}
			}
			cur = l.s
			req.Session = uint64(cur.id)
			if changes(req) {
				req.Seq = cur.begin()
			}
		}
		req.Acked = cur.ackedUpTo()
		reply := new(msg.MetaReply)
		code, err := l.conn.CallMessage(ctx, wire.Meta, wire.ClassMeta, req, reply)
		if err != nil {
			switch {
			case ctx.Err() != nil:
				return nil, ended(ctx)
			case fserr.Of(err) == fserr.Protocol && !errors.Is(err, wire.ErrClosed):
				return nil, err // an answer that cannot be decoded; the next would be no better
			}
			unknown = true
			c.unlink(l, "")
			bad = l
			continue
		}
		switch code {
		case fserr.OK:
			return reply, nil
		case fserr.NotLeader:
			c.unlink(l, reply.Leader)
			bad = l
		case fserr.Unavailable, fserr.Timeout:
			unknown = unknown || code == fserr.Timeout
			if err := wait.wait(ctx, cur.ctx); err != nil && (s != nil || ctx.Err() != nil) {
				return nil, err
			}
		case fserr.NoSession, fserr.Fenced:
			cur.kill(code)
			bad = l
		default:
			if reply.Detail != "" {
				return nil, fmt.Errorf("%s: %w", reply.Detail, code)
			}
			return nil, code
		}
	}
}

// current returns the session of the moment, waiting for one if need be.
func (c *Client) current(ctx context.Context) (*session, error) {
	l, err := c.await(ctx, nil, nil)
	if err != nil {
		return nil, err
	}
	return l.s, nil
}

// opName names a request in a log, when it comes to that.
type opName struct{ req *msg.MetaRequest }

func (o opName) String() string { return fmt.Sprintf("%T", o.req.Op) }
