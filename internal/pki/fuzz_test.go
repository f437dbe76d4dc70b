package pki

import (
	"crypto/ed25519"
	"crypto/x509"
	"testing"
	"time"
)

// FuzzCSR: whatever a machine sends as a request for a certificate is refused, or is one whose sender has the private key.
func FuzzCSR(f *testing.F) {
	_, csr, err := NewKey()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr)
	f.Add(csr[:len(csr)/2])
	f.Add([]byte{0x30, 0x80})
	f.Add(make([]byte, maxCSR+1))
	f.Fuzz(func(t *testing.T, der []byte) {
		pub, err := ReadCSR(der)
		if err != nil {
			return
		}
		req, err := x509.ParseCertificateRequest(der)
		if err != nil || len(pub) != ed25519.PublicKeySize || req.CheckSignature() != nil {
			t.Errorf("%d bytes were taken for a request: %v", len(der), err)
		}
	})
}

// FuzzCertificate: of the certificates that a peer may show only those are believed that the authority has signed, byte for byte, and what they name is
// what the bytes say.
func FuzzCertificate(f *testing.F) {
	now := time.Unix(1_800_000_000, 0)
	a, err := NewAuthority(testCluster, now)
	if err != nil {
		f.Fatal(err)
	}
	pub, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		f.Fatal(err)
	}
	good := make(map[string]bool)
	for _, who := range []Identity{{Role: RoleNode, Node: "n1"}, {Role: RoleAdmin, Node: "a"}, {Role: RoleReader, Node: "r.x_y-1"}} {
		chain, _, err := a.IssueNow(pub, who, now, time.Hour)
		if err != nil {
			f.Fatal(err)
		}
		good[string(chain[0])] = true
		f.Add(chain[0], []byte(nil))
		f.Add(chain[0], chain[0])
		f.Add(chain[0][:len(chain[0])-1], chain[0])
	}
	cas, err := ParseBundle(a.Bundle())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(cas[0].Raw, []byte{})
	pool := Pool(cas)
	f.Fuzz(func(t *testing.T, first, second []byte) {
		leaf, err := x509.ParseCertificate(first)
		if err != nil {
			return
		}
		certs := []*x509.Certificate{leaf}
		if more, err := x509.ParseCertificate(second); err == nil {
			certs = append(certs, more)
		}
		if who, err := IdentityOf(leaf); err == nil {
			again, err := ParseURI(leaf.URIs[0].String())
			if err != nil || again.Role != who.Role || again.Node != who.Node || again.Cluster != who.Cluster {
				t.Errorf("%v is %v: %v", who, again, err)
			}
		}
		if who, err := verifyChain(pool, certs, now); err == nil && !good[string(first)] {
			t.Errorf("a certificate that was not issued is believed: %v", who)
		}
	})
}

// FuzzUnseal: nothing but what was sealed opens.
func FuzzUnseal(f *testing.F) {
	v := &PasswordVerifier{Salt: make([]byte, saltSize), Stretch: usual, Stored: make([]byte, keySize), Server: make([]byte, keySize)}
	s, err := NewSecrets(testCluster, v, time.Unix(1_800_000_000, 0))
	if err != nil {
		f.Fatal(err)
	}
	key, err := NewClusterKey() // another one in each process that fuzzes
	if err != nil {
		f.Fatal(err)
	}
	sealed, err := s.Seal(key, 7)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed, uint64(7))
	f.Add(sealed[:40], uint64(7))
	f.Add(sealed, uint64(8))
	f.Add([]byte(sealMagic), uint64(0))
	f.Fuzz(func(t *testing.T, b []byte, version uint64) {
		if _, err := Unseal(b, key, testCluster, version); err == nil && (string(b) != string(sealed) || version != 7) {
			t.Error("something else opened")
		}
	})
}
