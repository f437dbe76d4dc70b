package pki

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"varve/internal/id"
)

// Statement is what every member must know of who may speak, signed by the authority's newest generation: a member that was taken over
// cannot make one up. A higher version replaces a lower one.
type Statement struct {
	Version   uint64          `json:"version"`
	Bundle    []byte          `json:"bundle"` // PEM
	Keys      []CapabilityKey `json:"keys"`
	Revoked   []string        `json:"revoked"` // serial numbers, sorted
	Cross     [][]byte        `json:"cross"`   // DER, the newest generation's first: by it who knows an older one believes it
	Signature []byte          `json:"signature"`
}

// State signs what the arguments say.
func (a *Authority) State(version uint64, keys []CapabilityKey, revoked []string) *Statement {
	s := &Statement{Version: version, Bundle: a.Bundle(), Keys: keys, Revoked: slices.Sorted(slices.Values(revoked))}
	for n := len(a.gens) - 1; n > 0; n-- {
		s.Cross = append(s.Cross, a.gens[n].cross)
	}
	s.Signature = ed25519.Sign(a.last().key, s.signed(a.cluster))
	return s
}

// signed is what the signature covers.
func (s *Statement) signed(cluster id.Cluster) []byte {
	b := append([]byte("varve trust 1\x00"), cluster[:]...)
	le := binary.LittleEndian
	b = le.AppendUint64(b, s.Version)
	b = append(le.AppendUint32(b, uint32(len(s.Bundle))), s.Bundle...)
	b = le.AppendUint32(b, uint32(len(s.Keys)))
	for _, k := range s.Keys {
		b = le.AppendUint32(b, k.Generation)
		b = append(le.AppendUint32(b, uint32(len(k.Public))), k.Public...)
	}
	b = le.AppendUint32(b, uint32(len(s.Revoked)))
	for _, r := range s.Revoked {
		b = append(le.AppendUint32(b, uint32(len(r))), r...)
	}
	return b
}

// verify returns the bundle's certificates if the statement is one of an authority that pool trusts.
func (s *Statement) verify(cluster id.Cluster, pool *x509.CertPool) ([]*x509.Certificate, error) {
	cas, err := ParseBundle(s.Bundle)
	if err != nil {
		return nil, err
	}
	for _, ca := range cas {
		if !isAuthority(ca) { // whoever has a certificate could sign with its key, and name it, or one that he has made, among those of the authority
			return nil, fmt.Errorf("statement %d of who may speak names a certificate of %.100q as one of the authority: %w", s.Version, ca.Subject.CommonName, ErrUntrusted)
		}
	}
	newest := cas[0]
	pub, ok := newest.PublicKey.(ed25519.PublicKey)
	if !ok || !ed25519.Verify(pub, s.signed(cluster), s.Signature) {
		return nil, fmt.Errorf("statement %d of who may speak has a wrong signature: %w", s.Version, ErrUntrusted)
	}
	options := x509.VerifyOptions{Roots: pool, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, CurrentTime: newest.NotBefore}
	leaf := newest
	for n, der := range s.Cross {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		options.Intermediates.AddCert(c)
		if k, ok := c.PublicKey.(ed25519.PublicKey); n == 0 && ok && k.Equal(pub) {
			leaf = c
		}
	}
	if _, err := newest.Verify(options); err != nil {
		if _, err = leaf.Verify(options); err != nil {
			return nil, fmt.Errorf("statement %d of who may speak is signed by an authority that is not known here: %w: %w", s.Version, ErrUntrusted, err)
		}
	}
	return cas, nil
}

// isAuthority reports whether a certificate is one that may sign others.
func isAuthority(c *x509.Certificate) bool {
	return c.BasicConstraintsValid && c.IsCA && c.KeyUsage&x509.KeyUsageCertSign != 0
}

// Trust is what a process knows of who may speak, beside its credentials. It is safe for concurrent use.
type Trust struct {
	cluster  id.Cluster
	dir      string // "" if it is in no file
	creds    *Credentials
	verifier *Verifier
	revoked  atomic.Pointer[map[string]bool]
	version  atomic.Uint64

	mu     sync.Mutex
	notify []func(revoked func(serial string) bool)
}

var _ Revoked = (*Trust)(nil)

// trustFile is a Statement in a cluster directory, so that who starts while no metadata server answers knows what it knew.
const trustFile = "trust.json"

// OpenTrust returns what the cluster directory of creds has, or nothing yet, and has every handshake of creds look at it. What an authority signed that
// is not trusted any more counts for nothing: it is from before this node joined anew, and is asked for again.
func OpenTrust(creds *Credentials) (*Trust, error) {
	t := &Trust{cluster: creds.Identity().Cluster, dir: creds.Dir(), creds: creds}
	t.verifier = NewVerifier(t.cluster)
	t.revoked.Store(new(map[string]bool))
	creds.CheckRevoked(t)
	if t.dir == "" {
		return t, nil
	}
	path := filepath.Join(t.dir, trustFile)
	b, err := readUpTo(path, maxTrust)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	s := new(Statement)
	if err == nil {
		err = json.Unmarshal(b, s)
	}
	if err == nil {
		_, err = s.verify(t.cluster, creds.current().pool)
	}
	if errors.Is(err, ErrUntrusted) {
		return t, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w; remove it, and it is asked for again", path, err)
	}
	t.adopt(s)
	return t, nil
}

// Version returns that of the newest statement, 0 if there is none.
func (t *Trust) Version() uint64 { return t.version.Load() }

// IsRevoked implements Revoked.
func (t *Trust) IsRevoked(serial string) bool { return (*t.revoked.Load())[serial] }

// Verifier returns what verifies capabilities. It follows the statements.
func (t *Trust) Verifier() *Verifier { return t.verifier }

// Notify has f told after each change which certificates are revoked, so that it can end their connections.
func (t *Trust) Notify(f func(revoked func(serial string) bool)) {
	t.mu.Lock()
	t.notify = append(t.notify, f)
	t.mu.Unlock()
	f(t.IsRevoked)
}

// maxTrust bounds trust.json, in bytes: 65,536 revoked certificates, and the rest.
const maxTrust = 4 << 20

// Learn takes over a statement, if it is newer and the authority's. What it says of the bundle is written into the cluster directory.
func (t *Trust) Learn(s *Statement) error {
	t.mu.Lock()
	if s.Version <= t.version.Load() {
		t.mu.Unlock()
		return nil
	}
	cas, err := s.verify(t.cluster, t.creds.current().pool)
	if err == nil && t.dir != "" {
		err = t.write(s)
	}
	if err != nil {
		t.mu.Unlock()
		return err
	}
	t.adopt(s)
	notify := slices.Clone(t.notify)
	t.mu.Unlock()
	if t.dir == "" {
		t.creds.trust(cas)
	} else {
		t.creds.Reload()
	}
	for _, f := range notify {
		f(t.IsRevoked)
	}
	return nil
}

// write writes the files. The statement comes last, so that it is asked for again if it breaks off.
func (t *Trust) write(s *Statement) error {
	old, err := readFile(filepath.Join(t.dir, BundleFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !bytes.Equal(old, s.Bundle) {
		if err := WriteBundle(t.dir, s.Bundle); err != nil {
			return err
		}
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return WriteFile(filepath.Join(t.dir, trustFile), b, 0o644)
}

func (t *Trust) adopt(s *Statement) {
	m := make(map[string]bool, len(s.Revoked))
	for _, r := range s.Revoked {
		m[r] = true
	}
	t.revoked.Store(&m)
	t.verifier.SetKeys(s.Keys)
	t.version.Store(s.Version)
}

// issuedByNewest reports whether the newest generation, which is the first of a bundle, signed what the process shows.
func (l loaded) issuedByNewest() bool {
	if l.cert == nil || l.cert.Leaf == nil || len(l.cas) == 0 {
		return true
	}
	return bytes.Equal(l.cert.Leaf.AuthorityKeyId, l.cas[0].SubjectKeyId)
}
