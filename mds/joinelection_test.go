package mds

import (
	"context"
	"crypto/ed25519"
	"slices"
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
	once    *sync.Once
	reached chan *Server
}

func (h *stalling) Issue(ctx context.Context, pub ed25519.PublicKey, who pki.Identity, reason string) ([][]byte, error) {
	stall := false
	h.once.Do(func() { stall = true })
	if !stall {
		return h.guard.Issue(ctx, pub, who, reason)
	}
	h.reached <- h.s
	<-h.s.ctx.Done()
	return nil, fserr.NotLeader
}

// TestJoinThroughElection: the leader dies between a node's proof and its certificate; the node gets one from the next leader, and no more than one.
func TestJoinThroughElection(t *testing.T) {
	t.Parallel()
	c := newSafeCluster(t, 3)
	reached := make(chan *Server, 1)
	var once sync.Once
	for i := range c.servers { // whoever leads by then
		s := c.at(i)
		s.o.Network.(*secure.Network).HandleJoin(pki.NewJoiner(&stalling{guard: s.guard, once: &once, reached: reached}, testLogger()))
	}
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
	case s := <-reached:
		c.kill(slices.Index(c.servers, s))
	case <-ctx.Done():
		t.Fatal("the node does not come to its certificate")
	}
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
