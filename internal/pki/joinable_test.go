package pki

import (
	"crypto/tls"
	"slices"
)

// JoinableConfig, for tests without package secure, is ServerConfig for a port at which nodes also join: clients that offer only ALPNJoin need no certificate. The caller
// must give connections that negotiated it (Joining) to a JoinServer, and nobody else.
func (c *Credentials) JoinableConfig() *tls.Config {
	cfg := c.ServerConfig()
	join := base()
	join.NextProtos = []string{ALPNJoin}
	join.GetCertificate = cfg.GetCertificate
	cfg.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Equal(h.SupportedProtos, join.NextProtos) {
			return join, nil
		}
		return nil, nil
	}
	return cfg
}

// Joining reports whether a connection is one of a node that has shown no certificate, and may only join.
func Joining(cs tls.ConnectionState) bool { return cs.NegotiatedProtocol == ALPNJoin }
