package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrUntrusted says that a peer's certificate is none of this cluster's authority.
var ErrUntrusted = errors.New("certificate is not trusted")

// ClientConfig returns what a connection to a server of the cluster is made with: the server must show a certificate of role node of
// the same cluster. Changes of the credentials count for handshakes that begin after them.
func (c *Credentials) ClientConfig() *tls.Config {
	cfg := base()
	// The name of a host says nothing: VerifyConnection does all that is left out here, with the bundle as it is then.
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(cs tls.ConnectionState) error { return c.verify(cs, RoleNode) }
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.current().cert, nil }
	return cfg
}

// ServerConfig returns what a server accepts connections with: the client must show a certificate of the same cluster, of any role.
func (c *Credentials) ServerConfig() *tls.Config {
	cfg := base()
	cfg.ClientAuth = tls.RequireAnyClientCert // verified by VerifyConnection, with the bundle as it is then
	cfg.VerifyConnection = func(cs tls.ConnectionState) error { return c.verify(cs, RoleNode, RoleAdmin, RoleReader) }
	cfg.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current().cert, nil }
	return cfg
}

// JoinConfig is what a node connects with that has no certificate and knows nobody's: it trusts the server's only when that has
// proved that it knows the password.
func JoinConfig() *tls.Config {
	cfg := base()
	cfg.NextProtos = []string{ALPNJoin}
	cfg.InsecureSkipVerify = true
	return cfg
}

func base() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{ALPN},
		SessionTicketsDisabled: true, // each handshake shows and verifies certificates
	}
}

func (c *Credentials) verify(cs tls.ConnectionState, roles ...Role) error {
	l := c.current()
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the peer has shown no certificate")
	}
	if cs.NegotiatedProtocol != ALPN {
		return fmt.Errorf("the peer speaks %.40q, want %q", cs.NegotiatedProtocol, ALPN)
	}
	who, err := verifyChain(l.pool, cs.PeerCertificates, time.Now())
	if err != nil {
		return err
	}
	if who.Cluster != l.who.Cluster {
		return fmt.Errorf("peer %s is of cluster %s, want %s: %w", who, who.Cluster, l.who.Cluster, ErrUntrusted)
	}
	if !slices.Contains(roles, who.Role) {
		return fmt.Errorf("peer %s has the role %s, which no server has: %w", who, who.Role, ErrUntrusted)
	}
	return c.Refusal(who)
}

// verifyChain verifies certificates that a peer has shown, its own first.
func verifyChain(pool *x509.CertPool, certs []*x509.Certificate, now time.Time) (Identity, error) {
	if len(certs) > maxGenerations+1 {
		return Identity{}, fmt.Errorf("peer shows %d certificates, limit %d", len(certs), maxGenerations+1)
	}
	leaf := certs[0]
	who, err := IdentityOf(leaf)
	if err != nil {
		return Identity{}, err
	}
	if leaf.IsCA {
		return Identity{}, fmt.Errorf("peer %s shows the certificate of an authority: %w", who, ErrUntrusted)
	}
	between := x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err == nil {
		return who, nil
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		if now.Before(leaf.NotBefore) {
			return Identity{}, fmt.Errorf("certificate of %s is valid from %s only, and here it is %s: one of the clocks is wrong by more than an hour",
				who, leaf.NotBefore.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
		}
		return Identity{}, fmt.Errorf("certificate of %s was valid until %s, and here it is %s: run auth-node on %s, or set the clock that is wrong",
			who, leaf.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339), who.Node)
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return Identity{}, fmt.Errorf("certificate of %s is signed by no authority of this cluster known here: %w", who, ErrUntrusted)
	}
	return Identity{}, fmt.Errorf("certificate of %s: %w: %w", who, ErrUntrusted, err)
}
