package client

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/iouring/reactor"
)

// tokens is the capability of a world. Its lock is taken last: chunk servers compare with their own lock held, and the leader
// takes theirs with the world's held.
type tokens struct {
	mu    sync.Mutex
	valid string // what chunk servers take; "": the cluster is insecure
	stale bool   // the leader gives out another one, but to who asks for one
}

// given is what the leader gives out, wanted says whether another one was asked for.
func (k *tokens) given(wanted bool) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stale && !wanted {
		return ""
	}
	return k.valid
}

func (k *tokens) taken() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.valid
}

func (w *world) setValid(token string, stale bool) {
	w.tokens.mu.Lock()
	defer w.tokens.mu.Unlock()
	w.tokens.valid, w.tokens.stale = token, stale
}

// show takes what a session shows. Preconditions: mu is held.
func (s *fakeCS) show(session uint64, token []byte) fserr.Code {
	if want := s.w.tokens.taken(); want != string(token) {
		return fserr.NoCapability
	}
	if s.shown == nil {
		s.shown = map[uint64]string{}
	}
	s.shown[session] = string(token)
	return fserr.OK
}

// TestCapabilityRefused: servers that do not take a session's capability any more get another one, no request fails for it, and no replica is dropped; also
// where the leader gives a new one only to who says that the last was refused, and on reactors.
func TestCapabilityRefused(t *testing.T) {
	for _, on := range []string{"goroutine", "reactor"} {
		t.Run(on, func(t *testing.T) {
			w := newWorld(t, 1, 3, 3, 2)
			w.setValid("one", false)
			c := w.dial(t, func(o *Options) { o.Patience = 20 * time.Second })
			f := create(t, c, "a")
			if on == "reactor" {
				sit(t, c, reactor.Auto)
			}
			for n := range 3 {
				w.setValid(fmt.Sprint("token", n), n%2 == 0)
				want := fill(8192, byte(n))
				write(t, f, want, 0)
				w.setValid(fmt.Sprint("other", n), n%2 == 1)
				if !bytes.Equal(read(t, f, 0, 8192), want) {
					t.Fatalf("round %d: content differs", n)
				}
				if err := f.Fsync(t.Context(), false); err != nil {
					t.Fatal(err)
				}
			}
			if n := w.count("drop"); n != 0 {
				t.Errorf("%d replicas were dropped", n)
			}
		})
	}
}
