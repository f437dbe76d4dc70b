package records

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/cpu"

	"varve/internal/invariant"
)

// ErrForged is that a record is not the next one that the other end sealed.
var ErrForged = errors.New("a record is not what the peer sealed")

// Fast reports whether this machine has instructions for AES-GCM. Without them it is slow, and the time that it takes tells of the key: then TLS has
// another cipher.
func Fast() bool {
	return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ && cpu.X86.HasSSE41 && cpu.X86.HasSSSE3 || cpu.ARM64.HasAES && cpu.ARM64.HasPMULL
}

// half is one direction.
type half struct {
	aead   cipher.AEAD
	secret []byte
	iv     [ivSize]byte
	nonce  [ivSize]byte // here and not on a stack: it is handed to an interface
	number uint64       // of the next record
	each   uint64       // records for a key
	dead   bool
}

// init begins with a first secret, which it copies.
func (h *half) init(secret []byte) error {
	h.each = keyRecords
	h.secret = append([]byte(nil), secret...)
	return h.key()
}

// key makes key and IV of the secret, and the next secret.
func (h *half) key() error {
	b, err := hkdf.Expand(sha256.New, h.secret, infoKey, keySize+ivSize)
	if err != nil {
		return fmt.Errorf("key of records: %w", err)
	}
	next, err := hkdf.Expand(sha256.New, h.secret, infoNext, secretSize)
	if err != nil {
		return fmt.Errorf("key of records: %w", err)
	}
	block, err := aes.NewCipher(b[:keySize])
	if err != nil {
		return fmt.Errorf("key of records: %w", err)
	}
	if h.aead, err = cipher.NewGCM(block); err != nil {
		return fmt.Errorf("key of records: %w", err)
	}
	copy(h.iv[:], b[keySize:])
	clear(b)
	clear(h.secret)
	h.secret = next
	return nil
}

// next makes nonce that of the next record, whose key aead is then. Invariant: no nonce is used twice with a key, since number only grows.
func (h *half) next() error {
	if h.number > 0 && h.number%h.each == 0 {
		if err := h.key(); err != nil {
			return err
		}
	}
	h.nonce = h.iv
	tail := h.nonce[ivSize-8:]
	binary.BigEndian.PutUint64(tail, binary.BigEndian.Uint64(tail)^h.number)
	h.number++
	return nil
}

// Sealer makes records of what is sent. There must be one alone for a direction of a connection: a copy would use its nonces again.
type Sealer struct{ half }

// Seal appends records with p to dst, which has room for sealedSize(len(p)) bytes and does not overlap with p unless p is where the first content goes.
func (s *Sealer) Seal(dst, p []byte) ([]byte, error) {
	if s.dead {
		return dst, ErrForged
	}
	for len(p) > 0 {
		n := min(len(p), MaxContent)
		if err := s.next(); err != nil {
			s.dead = true
			return dst, err
		}
		at := len(dst)
		dst = dst[:at+headerSize]
		putHeader(dst[at:], n)
		dst = s.aead.Seal(dst, s.nonce[:], p[:n], dst[at:])
		p = p[n:]
	}
	return dst, nil
}

// sealedSize is the length of the records with n bytes.
func sealedSize(n int) int { return n + (n+MaxContent-1)/MaxContent*overhead }

// Opener gives what is in records that were received.
type Opener struct{ half }

// Open verifies and decrypts the next record, rec, whose header contentOf has looked at, to the begin of dst, which has room for its content and either does
// not overlap with rec or is where that has its content. If it fails, dst holds nothing of the record, and every later call fails too.
func (o *Opener) Open(dst, rec []byte) error {
	n := len(rec) - overhead
	if n > len(dst) {
		invariant.Failf("record with %d bytes opened into %d", n, len(dst))
	}
	if o.dead || n <= 0 || n != contentOf(rec) {
		o.dead = true
		return ErrForged
	}
	if err := o.next(); err != nil {
		o.dead = true
		return err
	}
	if _, err := o.aead.Open(dst[:0:n], o.nonce[:], rec[headerSize:], rec[:headerSize]); err != nil {
		o.dead = true
		return ErrForged
	}
	return nil
}

// Pair is what one end of a connection seals and opens with.
type Pair struct {
	out *Sealer
	in  *Opener
}

// NewPair makes the pair of who connected (client), or of the other end, of MaterialSize bytes that only the two know and that are used for nothing else. It
// wipes them.
func NewPair(material []byte, client bool) (Pair, error) {
	if len(material) != MaterialSize {
		return Pair{}, fmt.Errorf("keying material of %d bytes, want %d", len(material), MaterialSize)
	}
	defer clear(material)
	send, receive := material[:secretSize], material[secretSize:]
	if !client {
		send, receive = receive, send
	}
	p := Pair{new(Sealer), new(Opener)}
	return p, errors.Join(p.out.init(send), p.in.init(receive))
}
