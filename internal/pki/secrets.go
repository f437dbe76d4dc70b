package pki

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"varve/internal/id"
)

// ClusterKey opens the sealed record. Every metadata server has it in a file of its own directory, and it is in no log.
type ClusterKey [32]byte

// NewClusterKey makes one.
func NewClusterKey() (k ClusterKey, err error) {
	_, err = rand.Read(k[:])
	return k, err
}

// Encode returns the key as the text of its file.
func (k ClusterKey) Encode() []byte { return []byte(hex.EncodeToString(k[:]) + "\n") }

// DecodeClusterKey reads what Encode wrote. An error does not hold what was read.
func DecodeClusterKey(b []byte) (k ClusterKey, err error) {
	raw, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(raw) != len(k) {
		return ClusterKey{}, fmt.Errorf("cluster key: want %d hexadecimal digits", 2*len(k))
	}
	return ClusterKey(raw), nil
}

// ErrSealed says that a sealed record does not open with the cluster key at hand.
var ErrSealed = errors.New("the sealed record does not open with this cluster key")

// Secrets are the private halves of who may speak, which the metadata servers share.
type Secrets struct {
	Authority *Authority
	Signers   []*Signer // of capabilities, by rising generation; the last one signs
	Password  *PasswordVerifier
}

// maxSigners is how many keys for capabilities are valid at once: the current one and that before it.
const maxSigners = 2

// NewSecrets makes those of a new cluster.
func NewSecrets(cluster id.Cluster, password *PasswordVerifier, now time.Time) (*Secrets, error) {
	a, err := NewAuthority(cluster, now)
	if err != nil {
		return nil, err
	}
	s := &Secrets{Authority: a, Password: password}
	return s, s.RotateSigner()
}

// Signer returns who signs capabilities now.
func (s *Secrets) Signer() *Signer { return s.Signers[len(s.Signers)-1] }

// RotateSigner makes a new key for capabilities. The one before it stays valid.
func (s *Secrets) RotateSigner() error {
	next := uint32(1)
	if n := len(s.Signers); n > 0 {
		next = s.Signers[n-1].generation + 1
	}
	signer, err := NewSigner(s.Authority.cluster, next)
	if err != nil {
		return err
	}
	s.Signers = append(append([]*Signer(nil), s.Signers[max(0, len(s.Signers)-maxSigners+1):]...), signer)
	return nil
}

// CapabilityKeys returns the public halves.
func (s *Secrets) CapabilityKeys() []CapabilityKey {
	keys := make([]CapabilityKey, len(s.Signers))
	for n, x := range s.Signers {
		keys[n] = x.Key()
	}
	return keys
}

type secretsJSON struct {
	Authority json.RawMessage   `json:"authority"`
	Signers   []signerJSON      `json:"signers"`
	Password  *PasswordVerifier `json:"password"`
}

type signerJSON struct {
	Generation uint32 `json:"generation"`
	Seed       []byte `json:"seed"`
}

// A sealed record is
//
//	offset size
//	 0     4    magic "VSEC"
//	 4     4    version of the format, 1, little-endian
//	 8     12   nonce, random
//	20     -    AES-256-GCM of the secrets as JSON; additional data: the 8 bytes before the nonce, the cluster's UUID, the record's version (8 bytes)
const (
	sealMagic   = "VSEC"
	sealVersion = 1
	sealHeader  = 8
	maxSealed   = 256 << 10
)

// Seal encrypts the secrets, as version of the cluster's record.
func (s *Secrets) Seal(key ClusterKey, version uint64) ([]byte, error) {
	authority, err := s.Authority.MarshalJSON()
	if err != nil {
		return nil, err
	}
	v := secretsJSON{Authority: authority, Password: s.Password}
	for _, x := range s.Signers {
		v.Signers = append(v.Signers, signerJSON{x.generation, x.key.Seed()})
	}
	plain, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	b := binary.LittleEndian.AppendUint32([]byte(sealMagic), sealVersion)
	nonce := make([]byte, aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	data := sealData(b, s.Authority.cluster, version)
	return aead.Seal(append(b, nonce...), nonce, plain, data), nil
}

// Unseal opens what Seal made with the same key, cluster and version.
func Unseal(sealed []byte, key ClusterKey, cluster id.Cluster, version uint64) (*Secrets, error) {
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	if len(sealed) < sealHeader+aead.NonceSize() || len(sealed) > maxSealed || string(sealed[:4]) != sealMagic {
		return nil, fmt.Errorf("%d bytes that are no sealed record: %w", len(sealed), ErrSealed)
	}
	if v := binary.LittleEndian.Uint32(sealed[4:]); v != sealVersion {
		return nil, fmt.Errorf("sealed record of format %d, known is %d; upgrade this server: %w", v, sealVersion, ErrSealed)
	}
	head, rest := sealed[:sealHeader], sealed[sealHeader:]
	plain, err := aead.Open(nil, rest[:aead.NonceSize()], rest[aead.NonceSize():], sealData(head, cluster, version))
	if err != nil {
		return nil, fmt.Errorf("version %d of cluster %s: %w", version, cluster, ErrSealed)
	}
	var v secretsJSON
	if err := json.Unmarshal(plain, &v); err != nil {
		return nil, fmt.Errorf("sealed record: %w: %w", err, ErrSealed)
	}
	s := &Secrets{Password: v.Password}
	if s.Authority, err = UnmarshalAuthority(cluster, v.Authority); err != nil {
		return nil, err
	}
	if v.Password == nil || len(v.Signers) == 0 || len(v.Signers) > maxSigners {
		return nil, fmt.Errorf("sealed record with %d keys for capabilities: %w", len(v.Signers), ErrSealed)
	}
	if err := v.Password.check(); err != nil {
		return nil, err
	}
	for _, x := range v.Signers {
		if len(x.Seed) != ed25519.SeedSize || x.Generation == 0 {
			return nil, fmt.Errorf("sealed record with a damaged key for capabilities: %w", ErrSealed)
		}
		s.Signers = append(s.Signers, SignerOf(cluster, x.Generation, ed25519.NewKeyFromSeed(x.Seed)))
	}
	return s, nil
}

func sealData(head []byte, cluster id.Cluster, version uint64) []byte {
	b := append(append([]byte(nil), head[:sealHeader]...), cluster[:]...)
	return binary.LittleEndian.AppendUint64(b, version)
}

func newAEAD(key ClusterKey) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
