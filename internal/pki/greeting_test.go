package pki

import (
	"bytes"
	"errors"
	"testing"

	"varve/internal/id"
)

// TestGreeting: it counts with its key, in its cluster, on its connection, and as a whole.
func TestGreeting(t *testing.T) {
	signer := func(cluster id.Cluster, generation uint32) *Signer {
		s, err := NewSigner(cluster, generation)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	good := signer(testCluster, 3)
	v := NewVerifier(testCluster, good.Key())
	material := []byte("of the connection")
	g := good.Greet(material)
	changed := bytes.Clone(g)
	changed[40] ^= 1
	for name, x := range map[string]struct {
		greeting, material []byte
		want               error
	}{
		"good":               {g, material, nil},
		"another connection": {g, []byte("of another one"), ErrGreeting},
		"another key":        {signer(testCluster, 3).Greet(material), material, ErrGreeting},
		"a newer key":        {signer(testCluster, 4).Greet(material), material, ErrUnknownKey},
		"another cluster":    {SignerOf(id.Cluster{9}, 3, good.key).Greet(material), material, ErrGreeting},
		"changed":            {changed, material, ErrGreeting},
		"half":               {g[:20], material, ErrGreeting},
		"none":               {nil, material, ErrGreeting},
		"a capability":       {good.Sign(&Capability{Session: 1, Node: "n"}), material, ErrGreeting},
	} {
		if err := v.VerifyGreeting(x.greeting, x.material); !errors.Is(err, x.want) {
			t.Errorf("%s: %v, want %v", name, err, x.want)
		}
	}
}
