package cs

import (
	"context"
	"errors"
	"slices"
	"testing"

	"varve/internal/fserr"
	"varve/internal/wire/msg"
)

// TestFinderMore: a server that reaches none of the metadata servers that it knows tries those that it is told of, and no others once it has found one.
func TestFinderMore(t *testing.T) {
	f := newFakeLeader(t)
	calls := 0
	var more []string
	n := &finder{cluster: testCluster, logger: quiet(), more: func() []string { calls++; return more }}
	n.learn([]string{"127.0.0.1:1", "127.0.0.1:2"}) // nobody listens there
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	reg := &msg.RegisterServer{Addr: "127.0.0.1:3", Uuid: make([]byte, 16)}
	if _, err := n.find(ctx, nil, reg); !errors.Is(err, fserr.Unavailable) || calls != 1 {
		t.Fatalf("with nobody else: %v, asked %d times", err, calls)
	}
	more = []string{"127.0.0.1:2", f.addr()}
	l, err := n.find(ctx, nil, reg)
	if err != nil || calls != 2 || l.addr != f.addr() {
		t.Fatalf("%+v, %v, asked %d times", l, err, calls)
	}
	l.conn.Close()
	if known := n.known(); !slices.Contains(known, f.addr()) || known[0] != f.addr() {
		t.Errorf("knows %q", known)
	}
	if l, err = n.find(ctx, nil, reg); err != nil || calls != 2 {
		t.Fatalf("%v, asked %d times", err, calls)
	}
	l.conn.Close()
}
