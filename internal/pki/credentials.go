package pki

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/id"
)

// ErrNoCredentials says that a cluster directory has none that will do.
var ErrNoCredentials = errors.New("no credentials")

// Revoked tells which certificates are no longer valid though their time is not over.
type Revoked interface{ IsRevoked(serial string) bool }

// JoinServer serves connections that negotiated ALPNJoin: their client has shown no certificate. It closes conn before it returns.
type JoinServer interface {
	ServeJoin(ctx context.Context, conn *tls.Conn)
}

// Credentials is what a process shows and trusts.
type Credentials struct {
	dir   string // "" if they are not from files
	roles []Role

	check atomic.Pointer[func(Identity) error]

	mu      sync.Mutex
	loaded  loaded
	looked  time.Time // when the files were last looked at
	changed string    // sizes and times of the files that loaded came from
}

type loaded struct {
	cert *tls.Certificate
	pool *x509.CertPool
	cas  []*x509.Certificate // of pool, if it is known
	who  Identity
}

// lookEvery is how often at most the files are looked at.
const lookEvery = time.Second

// LoadCredentials reads the credentials of a cluster directory: those of the first of roles (default: node) that is there. From then on
// they follow the files.
func LoadCredentials(dir string, roles ...Role) (*Credentials, error) {
	if len(roles) == 0 {
		roles = []Role{RoleNode}
	}
	c := &Credentials{dir: dir, roles: roles, looked: time.Now(), changed: stamp(dir, roles)}
	var err error
	c.loaded, err = load(dir, roles)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// NewCredentials returns credentials that are in no file.
func NewCredentials(cert tls.Certificate, ca *x509.CertPool, cluster id.Cluster) *Credentials {
	c := &Credentials{}
	c.Replace(cert, ca, cluster)
	return c
}

// Replace exchanges credentials that are in no file.
func (c *Credentials) Replace(cert tls.Certificate, ca *x509.CertPool, cluster id.Cluster) {
	who := Identity{Cluster: cluster}
	if cert.Leaf == nil && len(cert.Certificate) > 0 {
		cert.Leaf, _ = x509.ParseCertificate(cert.Certificate[0])
	}
	if cert.Leaf != nil {
		if i, err := IdentityOf(cert.Leaf); err == nil {
			who = i
		}
	}
	c.mu.Lock()
	c.loaded = loaded{cert: &cert, pool: ca, who: who}
	c.mu.Unlock()
}

// Apart returns the credentials as they are now, in no file: what is learnt with them is forgotten with the process.
func (c *Credentials) Apart() *Credentials { return &Credentials{loaded: c.current()} }

// trust exchanges the authority's certificates of credentials that are in no file.
func (c *Credentials) trust(cas []*x509.Certificate) {
	c.mu.Lock()
	c.loaded.pool, c.loaded.cas = Pool(cas), cas
	c.mu.Unlock()
}

// exchange exchanges the certificate of credentials that are in no file.
func (c *Credentials) exchange(chain [][]byte, key ed25519.PrivateKey, who Identity) {
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return
	}
	c.mu.Lock()
	c.loaded.cert, c.loaded.who = &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}, who
	c.mu.Unlock()
}

// Dir returns the directory of the files, "" if there is none.
func (c *Credentials) Dir() string { return c.dir }

// Identity returns who the process is.
func (c *Credentials) Identity() Identity { return c.current().who }

// Certificate returns what the process shows now. The caller does not change it.
func (c *Credentials) Certificate() *tls.Certificate { return c.current().cert }

// CheckPeers makes every handshake ask f, if it is not nil, whether a peer whose certificate is sound is refused: by an error.
func (c *Credentials) CheckPeers(f func(Identity) error) {
	if f == nil {
		c.check.Store(nil)
		return
	}
	c.check.Store(&f)
}

// Refusal returns what f of CheckPeers says of a peer.
func (c *Credentials) Refusal(peer Identity) error {
	if f := c.check.Load(); f != nil {
		return (*f)(peer)
	}
	return nil
}

// CheckRevoked is CheckPeers for a list of revoked certificates.
func (c *Credentials) CheckRevoked(r Revoked) {
	c.CheckPeers(func(i Identity) error {
		if r.IsRevoked(i.Serial) {
			return RevokedError(i)
		}
		return nil
	})
}

// ErrRevoked says that a certificate was taken back.
var ErrRevoked = errors.New("certificate is revoked")

// RevokedError is what a revoked peer is refused with.
func RevokedError(i Identity) error {
	return fmt.Errorf("certificate %s of %s: %w; run auth-node there if it may come back", i.Serial, i, ErrRevoked)
}

// SignedBy reports whether the authority of a bundle has signed what the process shows, be its time over or not.
func (c *Credentials) SignedBy(bundle []byte) bool {
	l := c.current()
	cas, err := ParseBundle(bundle)
	if err != nil || l.cert == nil || l.cert.Leaf == nil {
		return false
	}
	return slices.ContainsFunc(cas, func(ca *x509.Certificate) bool { return l.cert.Leaf.CheckSignatureFrom(ca) == nil })
}

// Reload looks at the files at once.
func (c *Credentials) Reload() {
	c.mu.Lock()
	c.looked = time.Time{}
	c.mu.Unlock()
	c.current()
}

func (c *Credentials) current() loaded {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dir == "" || time.Since(c.looked) < lookEvery {
		return c.loaded
	}
	c.looked = time.Now()
	now := stamp(c.dir, c.roles)
	if now == c.changed {
		return c.loaded
	}
	// A certificate and its key are two files: between them they do not fit, and what was before stays until they do.
	if l, err := load(c.dir, c.roles); err == nil && l.who.Cluster == c.loaded.who.Cluster {
		c.loaded, c.changed = l, now
	}
	return c.loaded
}

// stamp tells whether files have changed.
func stamp(dir string, roles []Role) string {
	var b strings.Builder
	add := func(name string) {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil {
			fmt.Fprintf(&b, "%s %d %d;", name, info.Size(), info.ModTime().UnixNano())
		}
	}
	add(BundleFile)
	for _, r := range roles {
		add(r.String() + certSuffix)
		add(r.String() + keySuffix)
		add(r.String() + keySuffix + pendingSuffix)
	}
	return b.String()
}

// Has reports whether a directory has credentials of a role, sound or not.
func Has(dir string, r Role) bool {
	_, err := os.Stat(filepath.Join(dir, r.String()+certSuffix))
	return err == nil
}

// Secured reports whether a cluster directory is of a cluster with an authority: whether it has a bundle.
func Secured(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, BundleFile))
	return err == nil
}

func load(dir string, roles []Role) (loaded, error) {
	names := make([]string, len(roles))
	var forbidden error // of a key that another user may read, who may have another role
	for n, r := range roles {
		l, err := loadRole(dir, r)
		switch {
		case err != nil && errors.Is(err, fs.ErrPermission):
			forbidden = err
		case err == nil || !errors.Is(err, fs.ErrNotExist):
			return l, err
		}
		names[n] = r.String() + certSuffix
	}
	if forbidden != nil {
		return loaded{}, fmt.Errorf("%w; ask for credentials of your own in another directory, or be the user who owns these: %w", forbidden, ErrNoCredentials)
	}
	return loaded{}, fmt.Errorf("%s has no %s: %w of this node for the cluster; get them with: varve -c %s auth-node",
		dir, strings.Join(names, " or "), ErrNoCredentials, dir)
}

func loadRole(dir string, r Role) (loaded, error) {
	base := filepath.Join(dir, r.String())
	certPEM, err := readFile(base + certSuffix)
	if err != nil {
		return loaded{}, err
	}
	keyPEM, err := readKey(base, certPEM)
	if err != nil {
		return loaded{}, err
	}
	bundle, err := readFile(filepath.Join(dir, BundleFile))
	if err != nil {
		return loaded{}, err
	}
	return decode(certPEM, keyPEM, bundle, base+certSuffix, r)
}

// decode makes credentials of PEM. The certificate may be over: whoever is asked with it says so.
func decode(certPEM, keyPEM, bundle []byte, name string, r Role) (loaded, error) {
	again := "; get new ones with auth-node --force"
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return loaded{}, fmt.Errorf("%s and its key: %w%s", name, err, again)
	}
	who, err := IdentityOf(cert.Leaf)
	if err != nil {
		return loaded{}, fmt.Errorf("%s: %w%s", name, err, again)
	}
	if who.Role != r {
		return loaded{}, fmt.Errorf("%s is a certificate of role %s, want %s%s", name, who.Role, r, again)
	}
	cas, err := ParseBundle(bundle)
	if err != nil {
		return loaded{}, fmt.Errorf("%s: %w%s", filepath.Join(filepath.Dir(name), BundleFile), err, again)
	}
	return loaded{&cert, Pool(cas), cas, who}, nil
}

// Pool returns a pool of certificates.
func Pool(cas []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, ca := range cas {
		pool.AddCert(ca)
	}
	return pool
}

func readFile(path string) ([]byte, error) { return readUpTo(path, maxFile) }

func readUpTo(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s has %d bytes, limit %d", path, info.Size(), limit)
	}
	return os.ReadFile(path)
}

// EncodeKey returns a private key as PEM.
func EncodeKey(key ed25519.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
