package client

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"varve/internal/fserr"
	"varve/internal/id"
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
//
// What the answer grants goes into the cache, also what a change has made of what is there.
func (c *Client) do(ctx context.Context, s *session, req *msg.MetaRequest) (*msg.MetaReply, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	a := question{c: c, s: s, req: req}
	if !changes(req) {
		var f *reading
		if op := req.GetReadDir(); op != nil {
			f = c.cache.beginReading(id.Ino(op.Ino))
			defer c.cache.endReading(f)
		}
		reply, err := a.ask(ctx)
		a.learn(reply, err, f)
		return reply, err
	}
	ch := c.cache.changeOf(req)
	c.cache.begin(ch)
	reply, err := a.ask(ctx)
	if err != nil && a.open && ctx.Err() != nil && len(ch.attrs) > 0 {
		// It may yet be carried out, and nobody would call us back for that: see it to its end.
		own, decodeErr := cloneRequest(req)
		for i := range ch.names {
			ch.names[i].name = slices.Clone(ch.names[i].name) // it is the caller's
		}
		if decodeErr == nil && c.background(func() {
			rest := a
			rest.req, rest.s = own, a.cur
			reply, err := rest.ask(a.cur.ctx)
			rest.finish()
			c.ended(ch, own, reply, err, &rest)
		}) {
			return nil, err
		}
	}
	a.finish()
	c.ended(ch, req, reply, err, &a)
	if err == nil {
		a.learnOpen(reply)
	}
	return reply, err
}

// ended puts the outcome of a change of our own into the cache, and has the kernel forget what it changed.
func (c *Client) ended(ch *change, req *msg.MetaRequest, reply *msg.MetaReply, err error, a *question) {
	result := changeDone
	switch {
	case err == nil:
	case a.open || fserr.Of(err) == fserr.Protocol:
		result = changeUnknown
	default:
		result = changeRefused
	}
	if stale := c.cache.end(ch, req, reply, result); len(stale) > 0 {
		c.forgetAttrs(stale)
	}
}

func cloneRequest(req *msg.MetaRequest) (*msg.MetaRequest, error) {
	b, err := req.MarshalVT()
	if err != nil {
		return nil, err
	}
	own := new(msg.MetaRequest)
	return own, own.UnmarshalVT(b)
}

// question is a request on its way to an outcome.
type question struct {
	c   *Client
	s   *session // the only one to ask under, or nil
	req *msg.MetaRequest

	cur     *session // whose seq is in req
	unknown bool     // an earlier attempt may have been carried out
	open    bool     // sent, and no outcome of it is known
	start   uint64   // when it was last sent
}

// finish says that nobody will ask for the outcome any more.
func (a *question) finish() {
	if a.req.Seq > 0 {
		a.cur.finish(a.req.Seq)
	}
}

// ask returns the answer also with an error that is an outcome.
func (a *question) ask(ctx context.Context) (*msg.MetaReply, error) {
	var (
		c, req = a.c, a.req
		bad    *link
		wait   backoff
	)
	st := c.watch("the metadata leader", "op", opName{req})
	defer st.end()
	for {
		l, err := c.await(ctx, a.s, bad)
		if err != nil {
			return nil, err
		}
		if a.cur != l.s {
			if a.s != nil && l.s != a.s {
				return nil, fserr.Stale
			}
			if req.Seq > 0 {
				a.cur.finish(req.Seq)
				req.Seq = 0
				a.open = false // the session that could carry it out is gone
				if a.unknown {
					return nil, fmt.Errorf("session lost while a change was under way: %w", fserr.IO)
				}
			}
			a.cur = l.s
			req.Session = uint64(a.cur.id)
			if changes(req) {
				req.Seq = a.cur.begin()
			}
		}
		req.Acked = a.cur.ackedUpTo()
		reply := new(msg.MetaReply)
		a.start, a.open = c.cache.now(), true
		code, err := l.conn.CallMessage(ctx, wire.Meta, wire.ClassMeta, req, reply)
		if err != nil {
			switch {
			case ctx.Err() != nil:
				return nil, ended(ctx)
			case fserr.Of(err) == fserr.Protocol && !errors.Is(err, wire.ErrClosed):
				return nil, err // an answer that cannot be decoded; the next would be no better
			}
			a.unknown = true
			c.unlink(l, "")
			bad = l
			continue
		}
		a.open = a.unknown
		switch code {
		case fserr.OK:
			a.open = false
			return reply, nil
		case fserr.NotLeader:
			c.unlink(l, reply.Leader)
			bad = l
		case fserr.Unavailable, fserr.Timeout:
			a.unknown = a.unknown || code == fserr.Timeout
			a.open = a.unknown
			if err := wait.wait(ctx, a.cur.ctx); err != nil && (a.s != nil || ctx.Err() != nil) {
				return nil, err
			}
		case fserr.NoSession, fserr.Fenced:
			a.cur.kill(code)
			bad = l
		default:
			a.open = false
			if reply.Detail != "" {
				return reply, fmt.Errorf("%s: %w", reply.Detail, code)
			}
			return reply, code
		}
	}
}

// learn keeps what the answer to a question grants, unless nothing is ever answered from it.
func (a *question) learn(reply *msg.MetaReply, err error, f *reading) {
	if a.c.o.NoCache || reply == nil || reply.Grant == nil || err != nil && fserr.Of(err) != fserr.NotExist {
		return
	}
	m := &a.c.cache
	if reply.Grant.Attr && reply.Attr != nil && err == nil {
		m.learnAttr(reply.Attr, reply.Index, a.start)
	}
	switch op := a.req.Op.(type) {
	case *msg.MetaRequest_Lookup:
		switch name := op.Lookup.Name; {
		case !reply.Grant.Names || string(name) == "." || string(name) == "..":
		case err != nil:
			m.learnName(id.Ino(op.Lookup.Parent), name, nil, a.start)
		case reply.Attr != nil:
			d := &msg.Dirent{Ino: reply.Attr.Ino, Type: reply.Attr.Type, Name: slices.Clone(name)}
			m.learnName(id.Ino(op.Lookup.Parent), name, d, a.start)
		}
	case *msg.MetaRequest_ReadDir:
		r := reply.GetReadDir()
		if reply.Grant.Entries {
			for _, e := range r.GetEntries() {
				if e.Attr != nil && !e.Once {
					m.learnAttr(e.Attr, reply.Index, a.start)
				}
			}
		}
		if reply.Grant.Names && r != nil {
			m.learnPage(f, op.ReadDir.Cookie, r, a.start)
		}
	}
	if m.total.Load() > m.limit {
		m.trim()
	}
}

// learnOpen keeps the attributes that an answer to Open grants.
func (a *question) learnOpen(reply *msg.MetaReply) {
	if a.req.GetOpen() != nil && reply.Grant.GetAttr() && reply.Attr != nil {
		a.c.cache.learnAttr(reply.Attr, reply.Index, a.start)
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
