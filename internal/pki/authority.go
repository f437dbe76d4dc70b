package pki

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"varve/internal/id"
)

// Authority is the certificate authority of a cluster, with its private keys: one or more generations, of which the newest signs.
//
// A generation that replaces another one is signed by that one too (the cross certificate), and whoever shows a certificate of the
// new one shows this as well. So those who know only the old one trust the new one's certificates at once.
type Authority struct {
	cluster id.Cluster
	gens    []generation // by rising number
}

type generation struct {
	number uint32
	key    ed25519.PrivateKey
	cert   *x509.Certificate // signed by itself
	cross  []byte            // DER: the same key, signed by the generation before; nil for the first
}

// NewAuthority makes the authority of a new cluster.
func NewAuthority(cluster id.Cluster, now time.Time) (*Authority, error) {
	a := &Authority{cluster: cluster}
	return a, a.Rotate(now)
}

// Generation returns the number of the generation that signs.
func (a *Authority) Generation() uint32 { return a.last().number }

// Oldest returns the number of the oldest generation that is trusted.
func (a *Authority) Oldest() uint32 { return a.gens[0].number }

func (a *Authority) last() *generation { return &a.gens[len(a.gens)-1] }

// Rotate adds a generation, which signs from now on; the older ones are still trusted.
func (a *Authority) Rotate(now time.Time) error {
	if len(a.gens) >= maxGenerations {
		return fmt.Errorf("the cluster trusts %d generations of its authority already; let the oldest go first (cluster rotate-ca --retire)", len(a.gens))
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("make the authority's key: %w", err)
	}
	g := generation{number: 1, key: key}
	if len(a.gens) > 0 {
		g.number = a.last().number + 1
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return err
	}
	keyID := sha256.Sum256(spki)
	t := &x509.Certificate{
		SerialNumber: serialNumber(SerialOf(spki)),
		Subject:      pkix.Name{CommonName: fmt.Sprintf("varve %s CA %d", a.cluster, g.number)},
		NotBefore:    now.Add(-Skew).Truncate(time.Second), NotAfter: now.Add(authorityValidFor).Truncate(time.Second),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
		SubjectKeyId: keyID[:20],
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, pub, key)
	if err != nil {
		return fmt.Errorf("make the authority's certificate: %w", err)
	}
	if g.cert, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	if len(a.gens) > 0 {
		if g.cross, err = x509.CreateCertificate(rand.Reader, t, a.last().cert, pub, a.last().key); err != nil {
			return fmt.Errorf("sign the authority's new certificate with the old one: %w", err)
		}
	}
	a.gens = append(a.gens, g)
	return nil
}

// Retire takes the trust from all generations below number, and reports whether there were any.
func (a *Authority) Retire(number uint32) bool {
	n := 0
	for n < len(a.gens)-1 && a.gens[n].number < number {
		n++
	}
	a.gens = append([]generation(nil), a.gens[n:]...)
	return n > 0
}

// Issue makes a certificate for a public key, valid from Skew before from until until. The result is what the holder shows: DER of
// the certificate, and of cross certificates behind it. The same arguments give the same certificate.
func (a *Authority) Issue(pub crypto.PublicKey, who Identity, from, until time.Time) ([][]byte, Identity, error) {
	who.Cluster = a.cluster
	if err := who.check(); err != nil {
		return nil, Identity{}, err
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, Identity{}, fmt.Errorf("public key of %s: %w", who, err)
	}
	g := a.last()
	if until.After(g.cert.NotAfter) {
		until = g.cert.NotAfter
	}
	who.Serial, who.NotAfter = SerialOf(spki), until.UTC().Truncate(time.Second)
	t := &x509.Certificate{
		SerialNumber: serialNumber(who.Serial),
		Subject:      pkix.Name{CommonName: who.Role.String() + " " + who.Node},
		NotBefore:    from.Add(-Skew).Truncate(time.Second), NotAfter: who.NotAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:        []*url.URL{who.uri()}, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, g.cert, pub, g.key)
	if err != nil {
		return nil, Identity{}, fmt.Errorf("make the certificate of %s: %w", who, err)
	}
	chain := [][]byte{der}
	for n := len(a.gens) - 1; n > 0; n-- { // to the oldest that is trusted
		chain = append(chain, a.gens[n].cross)
	}
	return chain, who, nil
}

// IssueNow is Issue from now on for ttl (ValidFor if zero).
func (a *Authority) IssueNow(pub crypto.PublicKey, who Identity, now time.Time, ttl time.Duration) ([][]byte, Identity, error) {
	if ttl <= 0 {
		ttl = ValidFor
	}
	return a.Issue(pub, who, now, now.Add(ttl))
}

// Bundle returns the certificates of all generations as PEM, the newest first.
func (a *Authority) Bundle() []byte {
	var b []byte
	for n := len(a.gens) - 1; n >= 0; n-- {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: a.gens[n].cert.Raw})...)
	}
	return b
}

// Fingerprint returns that of the newest generation, as auth-node --fingerprint takes it.
func (a *Authority) Fingerprint() string { return Fingerprint(a.last().cert) }

const fingerprintPrefix = "SHA256:"

// Fingerprint returns the SHA-256 of a certificate, SHA256: and 64 hexadecimal digits.
func Fingerprint(cert *x509.Certificate) string {
	h := sha256.Sum256(cert.Raw)
	return fingerprintPrefix + hex.EncodeToString(h[:])
}

type generationJSON struct {
	Number uint32 `json:"number"`
	Seed   []byte `json:"seed"`
	Cert   []byte `json:"cert"`
	Cross  []byte `json:"cross,omitempty"`
}

// MarshalJSON returns the authority with its private keys: to be sealed, never to be written as it is.
func (a *Authority) MarshalJSON() ([]byte, error) {
	gens := make([]generationJSON, len(a.gens))
	for n, g := range a.gens {
		gens[n] = generationJSON{g.number, g.key.Seed(), g.cert.Raw, g.cross}
	}
	return json.Marshal(gens)
}

// UnmarshalAuthority reads what MarshalJSON wrote for the same cluster.
func UnmarshalAuthority(cluster id.Cluster, b []byte) (*Authority, error) {
	var gens []generationJSON
	if err := json.Unmarshal(b, &gens); err != nil {
		return nil, fmt.Errorf("the cluster's authority: %w", err)
	}
	if len(gens) == 0 || len(gens) > maxGenerations {
		return nil, fmt.Errorf("the cluster's authority has %d generations, want 1 to %d", len(gens), maxGenerations)
	}
	a := &Authority{cluster: cluster}
	for n, g := range gens {
		cert, err := x509.ParseCertificate(g.Cert)
		if err != nil {
			return nil, fmt.Errorf("generation %d of the cluster's authority: %w", g.Number, err)
		}
		if len(g.Seed) != ed25519.SeedSize || n > 0 && g.Number <= gens[n-1].Number {
			return nil, fmt.Errorf("generation %d of the cluster's authority has a key of %d bytes, or is out of order", g.Number, len(g.Seed))
		}
		key := ed25519.NewKeyFromSeed(g.Seed)
		if pub, ok := cert.PublicKey.(ed25519.PublicKey); !ok || !pub.Equal(key.Public()) {
			return nil, fmt.Errorf("generation %d of the cluster's authority: certificate and key do not belong together", g.Number)
		}
		a.gens = append(a.gens, generation{g.Number, key, cert, g.Cross})
	}
	return a, nil
}

func serialNumber(serial string) *big.Int {
	n, _ := new(big.Int).SetString(serial, 16)
	return n
}

const pemCertificate = "CERTIFICATE"

// ParseBundle reads PEM certificates: at least one, at most 2×maxGenerations.
func ParseBundle(b []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for len(b) > 0 {
		block, rest := pem.Decode(b)
		if block == nil {
			break
		}
		b = rest
		if block.Type != pemCertificate {
			return nil, fmt.Errorf("a %.40q where only certificates are expected", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if len(certs) == 2*maxGenerations {
			return nil, errors.New("too many certificates in one file")
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("holds no certificate")
	}
	return certs, nil
}

// EncodeChain returns DER certificates as PEM.
func EncodeChain(chain [][]byte) []byte {
	var b []byte
	for _, der := range chain {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der})...)
	}
	return b
}
