package mds

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/wire"
)

// earlyHandler counts the elections that began early.
type earlyHandler struct {
	slog.Handler
	early *atomic.Int64
}

func (h earlyHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h earlyHandler) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "standing for election early") {
		h.early.Add(1)
	}
	return nil
}
func (h earlyHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h earlyHandler) WithGroup(string) slog.Handler      { return h }

// TestLeaderIsGone kills the leader: the others need not wait for their whole election time-out, and have it again afterwards.
func TestLeaderIsGone(t *testing.T) {
	var early atomic.Int64
	c := newCluster(t, 3, func(o *Options) {
		o.ElectionTimeout = time.Second
		o.Logger = slog.New(earlyHandler{testLogger().Handler(), &early})
	})
	k := newClient(c)
	for range 20 { // on a machine that stalls, the time-out may be over before
		k.create(k.c.leader().raft.String()+time.Now().String(), false) // a stream of entries is under way
		i := c.leaderIndex()
		c.kill(i)
		c.leader()
		c.start(i)
		if early.Load() > 0 {
			break
		}
	}
	if early.Load() == 0 {
		t.Error("nobody stood for election early")
	}
	c.eventually("the time-outs to be as before", func() bool {
		for _, s := range c.servers {
			if s.raft.ReloadableConfig().HeartbeatTimeout != time.Second {
				return false
			}
		}
		return true
	})
}

// TestRefused tells a port that nobody listens at from one that is only slow.
func TestRefused(t *testing.T) {
	l, err := wire.Listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{ctx: context.Background(), o: Options{Network: wire.TCP{}}}
	if s.refused(l.Addr().String()) {
		t.Error("a port with a listener is taken for gone")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if !s.refused(l.Addr().String()) {
		t.Error("a closed port is not taken for gone")
	}
}
