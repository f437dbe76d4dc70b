package client

import (
	"context"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// TestNetQuestions: the leader asks a client about its network. A client opens no port for it.
func TestNetQuestions(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, nil)
	var conn *wire.Conn
	eventually(t, "a connection of the session", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		s := w.sessions[uint64(c.Session())]
		if s != nil {
			conn = s.conn
		}
		return conn != nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	info := new(msg.NetInfoReply)
	if code, err := conn.CallMessage(ctx, wire.NetInfo, wire.ClassMeta, &msg.NetInfo{}, info); err != nil || code != fserr.OK || info.Interface != "lo" || info.Mtu == 0 {
		t.Errorf("%v, %v, %+v", code, err, info)
	}
	if code, err := conn.CallMessage(ctx, wire.NetProbe, wire.ClassMeta, &msg.NetProbe{}, nil); err != nil || code == fserr.OK {
		t.Errorf("a client was to open a port: %v, %v", code, err)
	}
}
