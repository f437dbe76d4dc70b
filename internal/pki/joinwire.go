package pki

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
)

// Joining is four messages on a TLS connection that negotiated ALPNJoin, each a length of 4 bytes, little-endian, and JSON:
//
//	node                                   metadata server
//	  joinFirst      role, name, nonce, csr  ->
//	                                         <-  joinChallenge   nonce, salt, work, bundle; or whom to ask instead
//	  joinProof      knows the password      ->
//	                                         <-  joinResult      knows it too; the certificate
//
// Proof and answer are those of SCRAM (RFC 5802) with Argon2id in the place of PBKDF2, over both first messages as they were sent, and
// over keying material exported from the TLS connection (RFC 9266): on another connection they prove nothing. What the challenge holds is
// believed once the answer is right.
const (
	joinVersion = 1
	maxMessage  = 64 << 10 // bytes of a message
	exportLabel = "EXPORTER-Channel-Binding"
	exportSize  = 32
)

type joinFirst struct {
	Version int    `json:"version"`
	Role    string `json:"role"`
	Node    string `json:"node"`
	Nonce   []byte `json:"nonce"`
	CSR     []byte `json:"csr"` // PKCS #10, DER
}

type joinChallenge struct {
	Refusal refusal `json:"refusal,omitzero"`
	Cluster string  `json:"cluster,omitempty"` // UUID
	Name    string  `json:"name,omitempty"`
	Bundle  string  `json:"bundle,omitempty"` // PEM
	Nonce   []byte  `json:"nonce,omitempty"`
	Salt    []byte  `json:"salt,omitempty"`
	Stretch stretch `json:"stretch,omitzero"`
}

type joinProof struct {
	Proof []byte `json:"proof"`
}

type joinResult struct {
	Refusal refusal  `json:"refusal,omitzero"`
	Answer  []byte   `json:"answer,omitempty"`
	Chain   [][]byte `json:"chain,omitempty"` // DER
	// Opening: the cluster is being secured, and serves who has no certificate too.
	Opening bool `json:"opening,omitempty"`
}

// refusal says why it does not go on, and what may be done.
type refusal struct {
	Detail string        `json:"detail,omitempty"`
	Leader string        `json:"leader,omitempty"` // ask there
	Again  time.Duration `json:"again,omitempty"`  // ask again after this
	Final  bool          `json:"final,omitempty"`  // nobody else will say otherwise
}

func (r refusal) is() bool { return r != refusal{} }

// Bounds of a refusal, in bytes.
const (
	maxDetail = 400
	maxLeader = 300
)

// plain returns what of a refusal may be shown to a person: whoever answers may have sent it, and a terminal obeys what it is sent.
func (r refusal) plain() refusal {
	r.Detail = printable(r.Detail, maxDetail)
	if r.Leader != printable(r.Leader, maxLeader) {
		r.Leader = ""
	}
	return r
}

// printable returns the beginning of a text, with what a terminal might obey left out.
func printable(s string, most int) string {
	s = strings.ToValidUTF8(s[:min(len(s), most)], "")
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
}

func writeMessage(w io.Writer, m any) ([]byte, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if len(b) > maxMessage {
		return nil, fmt.Errorf("message of %d bytes, limit %d", len(b), maxMessage)
	}
	_, err = w.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...))
	return b, err
}

// readMessage reads a message into m, and returns it as it came. Room is taken as bytes come, not as they are announced.
func readMessage(r io.Reader, m any) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > maxMessage {
		return nil, fmt.Errorf("message of %d bytes, limit %d", n, maxMessage)
	}
	b, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(b) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	return b, json.Unmarshal(b, m)
}

func newNonce() []byte {
	b := make([]byte, nonceSize)
	rand.Read(b) // never fails
	return b
}

// NewKey makes a private key, and the request for its certificate. Who the certificate is for is not in the request: who gives it
// knows that better.
func NewKey() (ed25519.PrivateKey, []byte, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	return key, csr, err
}

// maxCSR bounds a request for a certificate, in bytes.
const maxCSR = 4 << 10

// ReadCSR returns the public key of a request, whose sender has its private half.
func ReadCSR(der []byte) (ed25519.PublicKey, error) {
	if len(der) > maxCSR {
		return nil, fmt.Errorf("request for a certificate of %d bytes, limit %d", len(der), maxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("request for a certificate: %w", err)
	}
	pub, ok := csr.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("request for a certificate: the key is not an Ed25519 key")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("request for a certificate: %w", err)
	}
	return pub, nil
}
