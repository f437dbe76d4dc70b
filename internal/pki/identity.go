package pki

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"varve/internal/id"
)

// Role says what the holder of a certificate may do.
type Role uint8

// Roles. Zero is none.
const (
	RoleNode   Role = 1 + iota // runs servers and mounts
	RoleAdmin                  // may change the cluster
	RoleReader                 // may look at status, events and files
)

var roleNames = [...]string{RoleNode: "node", RoleAdmin: "admin", RoleReader: "reader"}

// Valid reports whether r is a role.
func (r Role) Valid() bool { return r >= RoleNode && r <= RoleReader }

func (r Role) String() string {
	if r.Valid() {
		return roleNames[r]
	}
	return fmt.Sprintf("role(%d)", uint8(r))
}

// ParseRole reads what String writes.
func ParseRole(s string) (Role, error) {
	for r := RoleNode; r <= RoleReader; r++ {
		if roleNames[r] == s {
			return r, nil
		}
	}
	return 0, fmt.Errorf("role %q: want node, admin or reader", s)
}

// Identity is who the holder of a certificate is.
type Identity struct {
	Cluster  id.Cluster
	Role     Role
	Node     string
	Serial   string // lower-case hexadecimal, 32 digits
	NotAfter time.Time
}

func (i Identity) String() string { return i.Role.String() + "/" + i.Node }

// ValidNode says what is wrong with a node's name.
func ValidNode(name string) error {
	ok := len(name) > 0 && len(name) <= maxNodeName
	for n := 0; ok && n < len(name); n++ {
		c := name[n]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		ok = alnum || n > 0 && (c == '.' || c == '_' || c == '-')
	}
	if !ok {
		return fmt.Errorf("node name %q: want 1 to %d of A-Z a-z 0-9 . _ -, the first a letter or digit", name, maxNodeName)
	}
	return nil
}

func (i Identity) check() error {
	if i.Cluster.IsZero() {
		return errors.New("identity without a cluster")
	}
	if !i.Role.Valid() {
		return fmt.Errorf("identity of %q without a role", i.Node)
	}
	return ValidNode(i.Node)
}

func (i Identity) uri() *url.URL {
	return &url.URL{Scheme: scheme, Host: i.Cluster.String(), Path: "/" + i.Role.String() + "/" + i.Node}
}

// ParseURI reads the name in a certificate. Only the form that is in format.go is taken, so that two names are equal only if
// their bytes are.
func ParseURI(s string) (Identity, error) {
	bad := func(err error) (Identity, error) {
		return Identity{}, fmt.Errorf("certificate's name %.200q: want %s://CLUSTER/ROLE/NODE: %w", s, scheme, err)
	}
	rest, ok := strings.CutPrefix(s, scheme+"://")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 {
		return bad(errors.New("not of this form"))
	}
	cluster, err := id.ParseCluster(parts[0])
	if err != nil {
		return bad(err)
	}
	role, err := ParseRole(parts[1])
	if err != nil {
		return bad(err)
	}
	i := Identity{Cluster: cluster, Role: role, Node: parts[2]}
	if err := i.check(); err != nil {
		return bad(err)
	}
	if i.uri().String() != s {
		return bad(errors.New("not in canonical form"))
	}
	return i, nil
}

// IdentityOf returns who a certificate names. It verifies nothing.
func IdentityOf(cert *x509.Certificate) (Identity, error) {
	if len(cert.URIs) != 1 || len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses) != 0 {
		return Identity{}, fmt.Errorf("certificate of %.100q is not one of a varve cluster: it must name its holder by one URI", cert.Subject.CommonName)
	}
	i, err := ParseURI(cert.URIs[0].String())
	if err != nil {
		return Identity{}, err
	}
	if i.Serial, err = serialString(cert.SerialNumber); err != nil {
		return Identity{}, err
	}
	i.NotAfter = cert.NotAfter
	return i, nil
}

// PeerIdentity returns who is at the other end of a connection whose handshake verified it, as those of Credentials do.
func PeerIdentity(cs tls.ConnectionState) (Identity, error) {
	if !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
		return Identity{}, errors.New("the peer has shown no certificate")
	}
	return IdentityOf(cs.PeerCertificates[0])
}

// SerialOf returns the serial number that the certificate for a public key has: a hash of its SubjectPublicKeyInfo.
func SerialOf(spki []byte) string {
	h := sha256.Sum256(append([]byte("varve certificate serial\x00"), spki...))
	h[0] = h[0]&0x7f | 0x40 // positive, and of a fixed length, as RFC 5280 wants it
	return hex.EncodeToString(h[:16])
}

func serialString(n *big.Int) (string, error) {
	if n == nil || n.Sign() <= 0 || n.BitLen() > 128 {
		return "", errors.New("certificate's serial number is not one of a varve cluster: want 128 bits")
	}
	return fmt.Sprintf("%032x", n), nil
}

// ParseSerial reads a serial number as a person may write it, with or without colons.
func ParseSerial(s string) (string, error) {
	h := strings.ToLower(strings.ReplaceAll(s, ":", ""))
	if b, err := hex.DecodeString(h); err != nil || len(b) != 16 {
		return "", fmt.Errorf("serial number %.80q: want 32 hexadecimal digits", s)
	}
	return h, nil
}
