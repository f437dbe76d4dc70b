package client

import (
	"sync/atomic"
	"testing"
	"time"
)

// TestMore: a client whose metadata servers have all moved goes on with those that it is told of, with the same session.
func TestMore(t *testing.T) {
	w := newWorld(t, 1, 0, 1, 1)
	var where atomic.Value
	where.Store([]string(nil))
	c := w.dial(t, func(o *Options) {
		o.More = func() []string { return where.Load().([]string) }
	})
	old, session := w.servers[0], c.sess.Load().id
	old.stop()
	moved := &fakeMDS{w: w, n: 0}
	moved.start()
	w.mu.Lock()
	w.servers[0] = moved
	w.mu.Unlock()
	time.Sleep(20 * time.Millisecond) // it looks for a leader and knows of none
	where.Store([]string{old.addr, moved.addr})
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c.mu.Lock()
		l := c.link
		c.mu.Unlock()
		if l != nil && l.addr == moved.addr {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the client has not found the server where it is now")
		}
	}
	if s := c.sess.Load().id; s != session {
		t.Errorf("session %v, was %v", s, session)
	}
}
