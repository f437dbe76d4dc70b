package wire

import (
	"bufio"
	"errors"
	"fmt"

	"varve/internal/fserr"
)

// ErrNeedsCertificate says that the peer speaks to nobody who shows no certificate.
var ErrNeedsCertificate = errors.New("the cluster is secured, and this node has shown no certificate; get one with: varve -c NAME auth-node")

// needsCertificate is the TLS record of the fatal alert certificate_required (RFC 8446, 6.2), which a server of a secured cluster answers to who speaks
// plainly.
var needsCertificate = [...]byte{21, 3, 3, 0, 2, 2, 116}

// NeedsCertificate returns what to send to who speaks plainly to a server that asks for certificates. See IsPlain.
func NeedsCertificate() []byte { return needsCertificate[:] }

// IsPlain reports whether the first bytes of a connection are those of this protocol, or of Raft beside it, without TLS.
func IsPlain(first []byte) bool { return len(first) >= 2 && first[0] == 'V' && first[1] == 'R' }

// lookForAlert returns an error if what comes is a TLS alert.
func lookForAlert(br *bufio.Reader) error {
	if b, err := br.Peek(1); err == nil && b[0] == needsCertificate[0] {
		return fmt.Errorf("%w: %w", ErrNeedsCertificate, fserr.Unavailable)
	}
	return nil
}
