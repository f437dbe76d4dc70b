package mds

import (
	"context"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// TestNetRelay: an administrator's questions about the network are handed on to the client of a session, and no others; nor does anybody else ask them.
func TestNetRelay(t *testing.T) {
	c := newCluster(t, 1, nil)
	a := newClient(c)
	ask := func(session uint64, typ wire.Type) (fserr.Code, *msg.NetRelayReply) {
		t.Helper()
		r := new(msg.NetRelayReply)
		return c.admin(wire.NetRelay, &msg.NetRelay{Session: session, Type: uint32(typ)}, r), r
	}
	if code, r := ask(uint64(a.session), wire.NetInfo); code != fserr.OK || len(r.Body) == 0 {
		t.Errorf("a question to a client: %v, %+v", code, r)
	}
	if code, r := ask(uint64(a.session)+1000, wire.NetInfo); code != fserr.NoSession || r.Detail == "" {
		t.Errorf("to a session that is not there: %v, %+v", code, r)
	}
	for _, typ := range []wire.Type{wire.Callback, wire.NetProbe, wire.NetRelay, 0} {
		if code, r := ask(uint64(a.session), typ); code != fserr.Invalid || r.Detail == "" {
			t.Errorf("request type %d: %v, %+v", typ, code, r)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	a.mu.Lock()
	conn := a.conn
	a.mu.Unlock()
	if code, err := conn.CallMessage(ctx, wire.NetRelay, wire.ClassMeta, &msg.NetRelay{Session: uint64(a.session), Type: uint32(wire.NetInfo)}, new(msg.NetRelayReply)); err != nil || code != fserr.Perm {
		t.Errorf("asked by a client: %v, %v", code, err)
	}
}
