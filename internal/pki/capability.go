package pki

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	"varve/internal/id"
)

// Rights of a capability.
type Rights uint16

// Rights.
const (
	Read Rights = 1 << iota
	Write
)

// Capability is what a session may do with the chunks of a cluster, as the metadata servers say it to chunk servers through the
// client that shows it.
type Capability struct {
	Cluster    id.Cluster
	Session    id.SessionID
	Node       string // who holds the certificate that must be shown beside it
	Rights     Rights
	Generation uint32 // of the key; set by Sign
	NotBefore  time.Time
	NotAfter   time.Time
}

// ErrCapability says that a capability is not to be believed.
var ErrCapability = errors.New("capability refused")

// CapabilityKey is the public half of a key that signs capabilities.
type CapabilityKey struct {
	Generation uint32
	Public     ed25519.PublicKey
}

// Signer signs capabilities.
type Signer struct {
	cluster    id.Cluster
	generation uint32
	key        ed25519.PrivateKey
}

// NewSigner returns a signer with a fresh key, which is of a generation that is not zero.
func NewSigner(cluster id.Cluster, generation uint32) (*Signer, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key for capabilities: %w", err)
	}
	return SignerOf(cluster, generation, key), nil
}

// SignerOf returns the signer with a key.
func SignerOf(cluster id.Cluster, generation uint32, key ed25519.PrivateKey) *Signer {
	return &Signer{cluster, generation, key}
}

// Key returns what others verify with.
func (s *Signer) Key() CapabilityKey {
	return CapabilityKey{s.generation, s.key.Public().(ed25519.PublicKey)}
}

// Sign returns c as CapabilitySize bytes, signed. It sets c's cluster and generation, and makes it valid from Skew before
// NotBefore. A node's name that ValidNode refuses is a bug of the caller, and gives a capability that nobody takes.
func (s *Signer) Sign(c *Capability) []byte {
	c.Cluster, c.Generation = s.cluster, s.generation
	b := make([]byte, capBody, CapabilitySize)
	copy(b, capMagic)
	binary.LittleEndian.PutUint16(b[4:], capVersion)
	binary.LittleEndian.PutUint16(b[6:], uint16(c.Rights))
	binary.LittleEndian.PutUint32(b[8:], c.Generation)
	copy(b[16:], c.Cluster[:])
	binary.LittleEndian.PutUint64(b[32:], uint64(c.Session))
	binary.LittleEndian.PutUint64(b[40:], uint64(c.NotBefore.Add(-Skew).Unix()))
	binary.LittleEndian.PutUint64(b[48:], uint64(c.NotAfter.Unix()))
	copy(b[56:capBody], c.Node)
	return append(b, ed25519.Sign(s.key, b)...)
}

// DecodeCapability reads a capability without verifying it.
func DecodeCapability(b []byte) (*Capability, error) {
	if len(b) != CapabilitySize || string(b[:4]) != capMagic {
		return nil, fmt.Errorf("%d bytes that are no capability: %w", len(b), ErrCapability)
	}
	if v := binary.LittleEndian.Uint16(b[4:]); v != capVersion {
		return nil, fmt.Errorf("capability of version %d, known is %d: %w", v, capVersion, ErrCapability)
	}
	c := &Capability{
		Rights: Rights(binary.LittleEndian.Uint16(b[6:])), Generation: binary.LittleEndian.Uint32(b[8:]), Cluster: id.Cluster(b[16:32]),
		Session:   id.SessionID(binary.LittleEndian.Uint64(b[32:])),
		NotBefore: time.Unix(int64(binary.LittleEndian.Uint64(b[40:])), 0), NotAfter: time.Unix(int64(binary.LittleEndian.Uint64(b[48:])), 0),
	}
	name, padding, _ := bytes.Cut(b[56:capBody], []byte{0})
	c.Node = string(name)
	switch {
	case len(bytes.Trim(padding, "\x00")) != 0, binary.LittleEndian.Uint32(b[12:]) != 0, c.Rights&^(Read|Write) != 0:
		return nil, fmt.Errorf("capability with reserved bits set: %w", ErrCapability)
	case c.Generation == 0, c.Session == 0, ValidNode(c.Node) != nil:
		return nil, fmt.Errorf("capability without generation, session or node: %w", ErrCapability)
	}
	return c, nil
}

// Verifier verifies capabilities of one cluster. It asks nobody.
type Verifier struct {
	cluster id.Cluster
	keys    atomic.Pointer[map[uint32]ed25519.PublicKey]
}

// NewVerifier returns a verifier that takes what one of keys has signed.
func NewVerifier(cluster id.Cluster, keys ...CapabilityKey) *Verifier {
	v := &Verifier{cluster: cluster}
	v.SetKeys(keys)
	return v
}

// SetKeys exchanges the keys. What was signed by others is no longer taken.
func (v *Verifier) SetKeys(keys []CapabilityKey) {
	m := make(map[uint32]ed25519.PublicKey, len(keys))
	for _, k := range keys {
		if len(k.Public) == ed25519.PublicKeySize {
			m[k.Generation] = k.Public
		}
	}
	if old := v.keys.Load(); old != nil && maps.EqualFunc(*old, m, func(a, b ed25519.PublicKey) bool { return a.Equal(b) }) {
		return
	}
	v.keys.Store(&m)
}

// Knows reports whether v has the key of a generation: if not, a newer one may have been made since.
func (v *Verifier) Knows(generation uint32) bool {
	_, ok := (*v.keys.Load())[generation]
	return ok
}

// Verify returns a capability if it is one of this cluster, signed by a key that is valid, and its time is now. The caller compares
// session, node and rights.
func (v *Verifier) Verify(token []byte, now time.Time) (*Capability, error) {
	c, err := DecodeCapability(token)
	if err != nil {
		return nil, err
	}
	if c.Cluster != v.cluster {
		return nil, fmt.Errorf("capability of cluster %s, want %s: %w", c.Cluster, v.cluster, ErrCapability)
	}
	key, ok := (*v.keys.Load())[c.Generation]
	if !ok {
		return nil, fmt.Errorf("capability of session %s signed with key %d, which is not valid here (any more, or yet): %w", c.Session, c.Generation, ErrCapability)
	}
	if !ed25519.Verify(key, token[:capBody], token[capBody:]) {
		return nil, fmt.Errorf("capability of session %s has a wrong signature: %w", c.Session, ErrCapability)
	}
	if now.Before(c.NotBefore) || !now.Before(c.NotAfter) {
		return nil, fmt.Errorf("capability of session %s is valid from %s to %s, and here it is %s; if it should be, a clock is wrong: %w", c.Session,
			c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339), ErrCapability)
	}
	return c, nil
}
