// Package securetest makes certificates for tests, without a cluster that gives them.
//
//	ca := securetest.New(t, cluster)
//	o.Credentials = ca.Node(t, "host1")
package securetest

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"testing"
	"time"

	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/wire/msg"
)

// CA is the authority of a cluster.
type CA struct {
	cluster id.Cluster
	a       *pki.Authority
}

// New makes one.
func New(tb testing.TB, cluster id.Cluster) *CA {
	tb.Helper()
	a, err := pki.NewAuthority(cluster, time.Now())
	if err != nil {
		tb.Fatal(err)
	}
	return &CA{cluster, a}
}

// Cluster returns whose authority it is.
func (c *CA) Cluster() id.Cluster { return c.cluster }

// Node returns the credentials of a node.
func (c *CA) Node(tb testing.TB, node string) *pki.Credentials {
	tb.Helper()
	return c.Credentials(tb, pki.RoleNode, node)
}

// Credentials returns new credentials, valid for an hour.
func (c *CA) Credentials(tb testing.TB, role pki.Role, node string) *pki.Credentials {
	tb.Helper()
	return c.From(tb, role, node, time.Now(), time.Hour)
}

// From returns credentials that are valid from a time on.
func (c *CA) From(tb testing.TB, role pki.Role, node string, from time.Time, ttl time.Duration) *pki.Credentials {
	tb.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	chain, _, err := c.a.Issue(pub, pki.Identity{Role: role, Node: node}, from, from.Add(ttl))
	if err != nil {
		tb.Fatal(err)
	}
	cas, err := pki.ParseBundle(c.a.Bundle())
	if err != nil {
		tb.Fatal(err)
	}
	return pki.NewCredentials(tls.Certificate{Certificate: chain, PrivateKey: key}, pki.Pool(cas), c.cluster)
}

// Told returns a statement of who may speak as a metadata server tells it.
func (c *CA) Told(version uint64, keys []pki.CapabilityKey, revoked ...string) *msg.TrustReply {
	s := c.a.State(version, keys, revoked)
	r := &msg.TrustReply{Version: s.Version, Bundle: s.Bundle, Revoked: s.Revoked, Cross: s.Cross, Signature: s.Signature}
	for _, k := range s.Keys {
		r.Keys = append(r.Keys, &msg.TrustKey{Generation: k.Generation, Public: k.Public})
	}
	return r
}

// State returns a statement of who may speak.
func (c *CA) State(version uint64, keys []pki.CapabilityKey, revoked ...string) *pki.Statement {
	return c.a.State(version, keys, revoked)
}
