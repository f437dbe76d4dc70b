package pki

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"
)

// MinPassword and MaxPassword bound a cluster's password: characters at least, bytes at most.
const (
	MinPassword = 8
	MaxPassword = 1024
)

// CheckPassword says what is wrong with a new password.
func CheckPassword(p []byte) error {
	switch n := utf8.RuneCount(p); {
	case n < MinPassword:
		return fmt.Errorf("the password has %d characters, and must have at least %d: whoever reaches a metadata server may try some", n, MinPassword)
	case len(p) > MaxPassword:
		return fmt.Errorf("the password has %d bytes, limit %d", len(p), MaxPassword)
	}
	return nil
}

// stretch says how a password is made a key by Argon2id (RFC 9106): passes over how much memory, by how many threads.
type stretch struct {
	Passes  uint32 `json:"passes"`
	Memory  uint32 `json:"memory"` // KiB
	Threads uint8  `json:"threads"`
}

// usual is the second of the options that RFC 9106, section 4, recommends: 64 MiB, 0.1 to 0.3 s.
var usual = stretch{Passes: 3, Memory: 64 << 10, Threads: 4}

// Bounds of what a client does for a server that it does not know yet. Whoever could have it do less than usual could try passwords
// faster, and whoever could have it do much more could stop it.
const (
	maxPasses  = 8
	maxMemory  = 256 << 10 // KiB
	maxThreads = 16
	saltSize   = 16
	keySize    = sha256.Size
	nonceSize  = 32
)

func (s stretch) check() error {
	if s.Passes < usual.Passes || s.Memory < usual.Memory || s.Threads == 0 || s.Passes > maxPasses || s.Memory > maxMemory || s.Threads > maxThreads {
		return fmt.Errorf("the server asks for %d passes over %d KiB by %d threads, want at least %d over %d KiB: it is not to be trusted",
			s.Passes, s.Memory, s.Threads, usual.Passes, usual.Memory)
	}
	return nil
}

// Verifier of a password, as in SCRAM (RFC 5802, section 3): who has it can verify a proof of the password, and prove that it verifies, but
// not prove the password. It is kept in the sealed record.
type PasswordVerifier struct {
	Stretch stretch `json:"stretch"`
	Salt    []byte  `json:"salt"`
	Stored  []byte  `json:"stored"` // H(client key)
	Server  []byte  `json:"server"`
}

// NewPasswordVerifier makes the verifier of a password, with a salt of its own.
func NewPasswordVerifier(password []byte) (*PasswordVerifier, error) {
	if err := CheckPassword(password); err != nil {
		return nil, err
	}
	v := &PasswordVerifier{Stretch: usual, Salt: make([]byte, saltSize)}
	if _, err := rand.Read(v.Salt); err != nil {
		return nil, err
	}
	client, server := v.Stretch.keys(password, v.Salt)
	stored := sha256.Sum256(client)
	v.Stored, v.Server = stored[:], server
	return v, nil
}

// DecodeVerifier reads a verifier as JSON, which is how it travels and is sealed.
func DecodeVerifier(b []byte) (*PasswordVerifier, error) {
	v := new(PasswordVerifier)
	if len(b) > maxMessage {
		return nil, fmt.Errorf("password's verifier of %d bytes", len(b))
	}
	if err := json.Unmarshal(b, v); err != nil {
		return nil, fmt.Errorf("password's verifier: %w", err)
	}
	return v, v.check()
}

func (v *PasswordVerifier) check() error {
	if len(v.Salt) != saltSize || len(v.Stored) != keySize || len(v.Server) != keySize {
		return errors.New("password's verifier is not one: wrong lengths")
	}
	return v.Stretch.check()
}

// keys returns the client's and the server's key.
func (s stretch) keys(password, salt []byte) (client, server []byte) {
	salted := argon2.IDKey(password, salt, s.Passes, s.Memory, s.Threads, keySize)
	return mac(salted, []byte("varve client key")), mac(salted, []byte("varve server key"))
}

// prove returns what shows in one exchange that the password is known, and what the server will show.
func prove(client, server, exchange []byte) (proof, answer []byte) {
	stored := sha256.Sum256(client)
	return xor(client, mac(stored[:], exchange)), mac(server, exchange)
}

// verify reports whether proof shows in the exchange that the password is known. Its time does not depend on what is wrong.
func (v *PasswordVerifier) verify(proof, exchange []byte) bool {
	if len(proof) != keySize {
		return false
	}
	client := xor(proof, mac(v.Stored, exchange))
	stored := sha256.Sum256(client)
	return hmac.Equal(stored[:], v.Stored)
}

// answer returns what shows the client that the server knows the verifier.
func (v *PasswordVerifier) answer(exchange []byte) []byte { return mac(v.Server, exchange) }

func mac(key, message []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(message)
	return h.Sum(nil)
}

func xor(a, b []byte) []byte {
	out := make([]byte, len(a))
	for n := range a {
		out[n] = a[n] ^ b[n]
	}
	return out
}

// exchange returns all that two ends said before the proof, and what tells their TLS connection from every other one.
func exchange(first, second, channel []byte) []byte {
	b := []byte("varve join 1\x00")
	for _, part := range [][]byte{first, second, channel} {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(part)))
		b = append(b, part...)
	}
	return b
}

// Encode returns the verifier as it travels to a metadata server, and DecodeVerifier reads it.
func (v *PasswordVerifier) Encode() ([]byte, error) { return json.Marshal(v) }
