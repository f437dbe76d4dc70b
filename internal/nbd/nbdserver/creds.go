package nbdserver

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
)

// Files of a directory of TLS credentials, by the names that qemu and libnbd use.
const (
	caFile   = "ca-cert.pem"
	certFile = "server-cert.pem"
	keyFile  = "server-key.pem"
)

// LoadTLS returns what TLS needs of a directory with ca-cert.pem, server-cert.pem and server-key.pem: only clients with a certificate of that authority are let
// in. The files are read again for each client, so that certificates can be replaced; while they cannot be read, those that were read last count.
func LoadTLS(dir string, log *slog.Logger) (*tls.Config, error) {
	c, err := readTLS(dir)
	if err != nil {
		return nil, err
	}
	var last atomic.Pointer[tls.Config]
	last.Store(c)
	return &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := readTLS(dir)
		if err != nil {
			log.Warn("TLS credentials cannot be read, going on with the last ones", "dir", dir, "err", err)
			return last.Load(), nil
		}
		last.Store(c)
		return c, nil
	}}, nil
}

func readTLS(dir string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, certFile), filepath.Join(dir, keyFile))
	if err != nil {
		return nil, fmt.Errorf("certificate and key of the server (%s, %s in %s): %w", certFile, keyFile, dir, err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, caFile))
	if err != nil {
		return nil, fmt.Errorf("certificate of the authority whose clients are let in: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: holds no certificate", filepath.Join(dir, caFile))
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, SessionTicketsDisabled: true,
	}, nil
}
