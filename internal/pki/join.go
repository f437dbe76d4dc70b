package pki

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"varve/internal/id"
)

// ErrPassword says that the password is wrong.
var ErrPassword = errors.New("wrong password")

// ErrSilent says that no metadata server has answered as one.
var ErrSilent = errors.New("no metadata server of a cluster with security answers")

// JoinRequest is what a node asks for. Addrs, Password, Role and Node are needed.
type JoinRequest struct {
	Addrs       []string // of metadata servers, host:port
	Password    []byte
	Role        Role
	Node        string
	Cluster     id.Cluster // that is expected; zero: any
	Fingerprint string     // of the authority, as make-mds -I prints it; "": the password alone says that it is the right cluster
	Dial        func(ctx context.Context, addr string) (net.Conn, error)
	Waiting     func(why string, wait time.Duration) // told before each pause; nil: nobody
}

// Joined is what a node has got.
type Joined struct {
	Identity Identity
	Name     string // of the cluster
	Key      ed25519.PrivateKey
	Chain    []byte // PEM
	Bundle   []byte // PEM
	Opening  bool   // the cluster is being secured, and serves who has no certificate too
}

// Write puts the credentials into a cluster directory.
func (j *Joined) Write(dir string) error {
	return errors.Join(WriteBundle(dir, j.Bundle), WriteCredentials(dir, j.Chain, j.Key))
}

const (
	joinAttempt = 40 * time.Second
	joinPause   = 300 * time.Millisecond
	joinSent    = 3                // times that it is sent to a leader without a pause
	joinSilence = 15 * time.Second // after which nobody is asked any more, if nobody has answered
)

// Join proves to a metadata server that the password is known, and gets a certificate. It asks until it has an answer that is final, or ctx
// ends; all the time for the same key, so that a certificate whose answer was lost is the same one.
func Join(ctx context.Context, r JoinRequest) (*Joined, error) {
	if err := ValidNode(r.Node); err != nil {
		return nil, err
	}
	if len(r.Addrs) == 0 {
		return nil, errors.New("no address of a metadata server is known")
	}
	if r.Dial == nil {
		r.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}
	}
	key, csr, err := NewKey()
	if err != nil {
		return nil, err
	}
	var failures []string
	var next []string
	sent := 0 // on, one after another
	heard := time.Now()
	for ctx.Err() == nil {
		if len(next) == 0 {
			if time.Since(heard) > joinSilence {
				return nil, fmt.Errorf("%w: %s", ErrSilent, strings.Join(failures, "; "))
			}
			next = slices.Clone(r.Addrs)
			failures = failures[:0]
		}
		addr := next[0]
		next = next[1:]
		joined, no, err := r.attempt(ctx, addr, key, csr)
		if err == nil {
			heard = time.Now()
		}
		switch {
		case err == nil && !no.is():
			return joined, nil
		case err != nil && errors.Is(err, ErrUntrusted), errors.Is(err, ErrPassword):
			return nil, fmt.Errorf("%s: %w", addr, err)
		case err != nil:
			failures = append(failures, fmt.Sprintf("%s: %v", addr, err))
		case no.Final:
			return nil, fmt.Errorf("%s: %s", addr, no.Detail)
		case no.Leader != "" && no.Leader != addr && !slices.Contains(next, no.Leader):
			next = append([]string{no.Leader}, next...)
			if sent++; sent <= joinSent {
				continue
			}
			sent = 0 // two that take each other for the leader
		default:
			sent = 0
			failures = append(failures, fmt.Sprintf("%s: %s", addr, no.Detail))
		}
		wait := joinPause
		if no.Again > 0 && len(next) == 0 {
			wait = min(no.Again, maxDelay)
		}
		if r.Waiting != nil && wait > joinPause {
			r.Waiting(no.Detail, wait)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
	return nil, fmt.Errorf("no metadata server has taken this node in (%s): %w", strings.Join(failures, "; "), ctx.Err())
}

// attempt asks one server.
func (r *JoinRequest) attempt(ctx context.Context, addr string, key ed25519.PrivateKey, csr []byte) (*Joined, refusal, error) {
	ctx, cancel := context.WithTimeout(ctx, joinAttempt)
	defer cancel()
	nc, err := r.Dial(ctx, addr)
	if err != nil {
		return nil, refusal{}, err
	}
	defer nc.Close()
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	c := tls.Client(nc, JoinConfig())
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, refusal{}, fmt.Errorf("no metadata server of a cluster with security answers there: %w", err)
	}
	cs := c.ConnectionState()
	first, err := writeMessage(c, joinFirst{Version: joinVersion, Role: r.Role.String(), Node: r.Node, Nonce: newNonce(), CSR: csr})
	if err != nil {
		return nil, refusal{}, err
	}
	var ch joinChallenge
	challenge, err := readMessage(c, &ch)
	if err != nil || ch.Refusal.is() {
		return nil, ch.Refusal.plain(), err
	}
	cas, err := r.believe(&ch, cs)
	if err != nil {
		return nil, refusal{}, err
	}
	channel, err := cs.ExportKeyingMaterial(exportLabel, nil, exportSize)
	if err != nil {
		return nil, refusal{}, err
	}
	said := exchange(first, challenge, channel)
	client, server := ch.Stretch.keys(r.Password, ch.Salt)
	proof, answer := prove(client, server, said)
	if _, err := writeMessage(c, joinProof{Proof: proof}); err != nil {
		return nil, refusal{}, err
	}
	var result joinResult
	if _, err := readMessage(c, &result); err != nil {
		return nil, refusal{}, err
	}
	result.Refusal = result.Refusal.plain()
	if result.Answer == nil && result.Refusal.is() {
		if result.Refusal.Final {
			return nil, result.Refusal, ErrPassword
		}
		return nil, result.Refusal, nil
	}
	if !hmac.Equal(result.Answer, answer) {
		return nil, refusal{}, fmt.Errorf("the server does not know the cluster's password, so it is not one of the cluster: %w", ErrUntrusted)
	}
	if result.Refusal.is() {
		return nil, result.Refusal, nil
	}
	joined, err := r.receive(&ch, cs, cas, key, result.Chain)
	if err == nil {
		joined.Opening = result.Opening
	}
	return joined, refusal{}, err
}

// believe looks at a challenge, before anything is made of the password.
func (r *JoinRequest) believe(ch *joinChallenge, cs tls.ConnectionState) ([]*x509.Certificate, error) {
	if len(ch.Nonce) != nonceSize || len(ch.Salt) != saltSize {
		return nil, fmt.Errorf("the server's challenge is not one: %w", ErrUntrusted)
	}
	if err := ch.Stretch.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrUntrusted)
	}
	cluster, err := id.ParseCluster(ch.Cluster)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrUntrusted)
	}
	if !r.Cluster.IsZero() && cluster != r.Cluster {
		return nil, fmt.Errorf("a metadata server of cluster %s (%.64q), want %s: %w", cluster, ch.Name, r.Cluster, ErrUntrusted)
	}
	cas, err := ParseBundle([]byte(ch.Bundle))
	if err != nil {
		return nil, fmt.Errorf("the authority's certificates: %w: %w", err, ErrUntrusted)
	}
	if r.Fingerprint == "" {
		return cas, nil
	}
	for _, ca := range cas {
		if !strings.EqualFold(Fingerprint(ca), r.Fingerprint) {
			continue
		}
		if _, err := verifyServer(Pool([]*x509.Certificate{ca}), cs, cluster); err != nil {
			return nil, fmt.Errorf("the server is not one of the cluster with the given fingerprint: %w", err)
		}
		return cas, nil
	}
	return nil, fmt.Errorf("no authority of the server's has the fingerprint %s (the newest has %s): %w", r.Fingerprint, Fingerprint(cas[0]), ErrUntrusted)
}

// verifyServer verifies who the other end of a connection is that JoinConfig made.
func verifyServer(pool *x509.CertPool, cs tls.ConnectionState, cluster id.Cluster) (Identity, error) {
	who, err := verifyChain(pool, cs.PeerCertificates, time.Now())
	if err == nil && (who.Role != RoleNode || who.Cluster != cluster) {
		err = fmt.Errorf("peer %s of cluster %s: %w", who, who.Cluster, ErrUntrusted)
	}
	return who, err
}

// receive looks at what was got.
func (r *JoinRequest) receive(ch *joinChallenge, cs tls.ConnectionState, cas []*x509.Certificate, key ed25519.PrivateKey, chain [][]byte) (*Joined, error) {
	cluster, err := id.ParseCluster(ch.Cluster)
	if err != nil {
		return nil, err
	}
	if _, err := verifyServer(Pool(cas), cs, cluster); err != nil {
		return nil, err
	}
	who, err := CheckChain(chain, key, cas)
	if err != nil {
		return nil, err
	}
	if who.Cluster != cluster || who.Role != r.Role || who.Node != r.Node {
		return nil, fmt.Errorf("got a certificate of %s, asked for %s/%s", who, r.Role, r.Node)
	}
	return &Joined{Identity: who, Name: ch.Name, Key: key, Chain: EncodeChain(chain), Bundle: []byte(ch.Bundle)}, nil
}

// CheckChain returns who a certificate (DER, cross certificates behind it) is for, if it belongs to the key and the authority signed it.
func CheckChain(chain [][]byte, key ed25519.PrivateKey, cas []*x509.Certificate) (Identity, error) {
	if len(chain) == 0 || len(chain) > maxGenerations+1 {
		return Identity{}, fmt.Errorf("got %d certificates, want 1 to %d", len(chain), maxGenerations+1)
	}
	certs := make([]*x509.Certificate, len(chain))
	for n, der := range chain {
		var err error
		if certs[n], err = x509.ParseCertificate(der); err != nil {
			return Identity{}, fmt.Errorf("the certificate that came: %w", err)
		}
	}
	if pub, ok := certs[0].PublicKey.(ed25519.PublicKey); !ok || !pub.Equal(key.Public()) {
		return Identity{}, errors.New("the certificate that came is for another key")
	}
	return verifyChain(Pool(cas), certs, time.Now())
}
