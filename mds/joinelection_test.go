package mds

import (
	"context"
	"crypto/ed25519"
	"sync"
	"testing"

	"varve/internal/fserr"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/mds/state"
)

// stalling is a leader that is killed when a node has shown that it knows the password, and before it has its certificate.
type stalling struct {
	*guard
	once    sync.Once
	reached chan struct{}
}

func (h *stalling) Issue(context.Context, ed25519.PublicKey, pki.Identity, string) ([][]byte, error) {
	h.once.Do(func() { close(h.reached) })
	<-h.s.ctx.Done()
	return nil, fserr.NotLeader
}

// TestJoinThroughElection: the leader dies between a node's proof and its certificate; the node gets one from the next leader, and no more than one.
func TestJoinThroughElection(t *testing.T) {
	t.Parallel()
	c := newSafeCluster(t, 3)
	i := c.leaderIndex()
	s := c.at(i)
	h := &stalling{guard: s.guard, reached: make(chan struct{})}
	s.o.Network.(*secure.Network).HandleJoin(pki.NewJoiner(h, testLogger()))
	joined := make(chan *pki.Joined, 1)
	ctx := c.context()
	go func() {
		j, err := pki.Join(ctx, pki.JoinRequest{Addrs: c.addrs, Password: []byte(testPassword), Role: pki.RoleNode, Node: "late", Cluster: c.cluster, Fingerprint: c.fingerprint})
		if err != nil {
			t.Error(err)
		}
		joined <- j
	}()
	select {
	case <-h.reached:
	case <-ctx.Done():
		t.Fatal("the node does not come to its certificate")
	}
	c.kill(i)
	j := <-joined
	if j == nil {
		return
	}
	certs := 0
	c.leader().fsm.view(func(st *state.State) {
		st.Certs(func(x *state.Cert) bool {
			if x.Node == "late" {
				certs++
				if x.Serial != j.Identity.Serial {
					t.Errorf("certificate %s is recorded, want %s", x.Serial, j.Identity.Serial)
				}
			}
			return true
		})
	})
	if certs != 1 {
		t.Errorf("%d certificates of the node", certs)
	}
}
