package pki

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"

	"varve/internal/id"
)

// A metadata server shows whoever connects that it is one, and not any node that is found at an address where one was, or says in the network that it is: with a key that
// signs capabilities, which only metadata servers have, it signs keying material of the TLS connection (RFC 9266). Such a greeting is the key's generation (4
// bytes, little-endian) and the signature (64).
const (
	greetingSize = 4 + ed25519.SignatureSize
	greetingText = "varve metadata server 1\x00" // begins otherwise than a capability
)

// ErrGreeting says that whoever answers is no metadata server, and ErrUnknownKey that it may be one with a key that is newer than what is known here.
var (
	ErrGreeting   = errors.New("not a metadata server")
	ErrUnknownKey = errors.New("greeted with a key that is not known here")
)

func greeted(cluster id.Cluster, material []byte) []byte {
	return append(append([]byte(greetingText), cluster[:]...), material...)
}

// Greet returns a metadata server's greeting on the connection with the keying material.
func (s *Signer) Greet(material []byte) []byte {
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, greetingSize), s.generation)
	return append(b, ed25519.Sign(s.key, greeted(s.cluster, material))...)
}

// VerifyGreeting returns nil for what Greet has made on the same connection, with a key that is known.
func (v *Verifier) VerifyGreeting(greeting, material []byte) error {
	if len(greeting) != greetingSize {
		return fmt.Errorf("greeting of %d bytes, want %d: %w", len(greeting), greetingSize, ErrGreeting)
	}
	generation := binary.LittleEndian.Uint32(greeting)
	key, ok := (*v.keys.Load())[generation]
	if !ok {
		return fmt.Errorf("key %d: %w", generation, ErrUnknownKey)
	}
	if !ed25519.Verify(key, greeted(v.cluster, material), greeting[4:]) {
		return fmt.Errorf("greeting with key %d has a wrong signature: %w", generation, ErrGreeting)
	}
	return nil
}
