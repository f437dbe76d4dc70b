package nbdserver_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"varve/internal/nbd"
	"varve/internal/nbd/nbdserver"
	"varve/test/ports"
)

// authority makes certificates for tests.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	n    int64
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, n: 1}
	a.key = a.newKey()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

// dir makes a directory of credentials, of a server or a client.
func (a *authority) dir(who string) string {
	dir, key := a.t.TempDir(), a.newKey()
	a.n++
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(a.n), Subject: pkix.Name{CommonName: who}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for name, b := range map[string]*pem.Block{
		"ca-cert.pem": {Type: "CERTIFICATE", Bytes: a.cert.Raw}, who + "-cert.pem": {Type: "CERTIFICATE", Bytes: der}, who + "-key.pem": {Type: "PRIVATE KEY", Bytes: secret},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return dir
}

// serveTLS adds a socket for TLS, and returns its address, which is nobody else's until the test ends.
func serveTLS(t *testing.T, a *authority, c config, negotiation time.Duration) (*server, string) {
	t.Helper()
	l, err := net.Listen("tcp", ports.Hold(t))
	if err != nil {
		t.Fatal(err)
	}
	conf, err := nbdserver.LoadTLS(a.dir("server"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	c.change = func(o *nbdserver.Options) { o.Secured, o.TLS, o.Negotiation = []net.Listener{l}, conf, negotiation }
	return serve(t, c), l.Addr().String()
}

// TestTLSPrograms: the programs of libnbd and qemu get on with the server by TLS, and get nothing without.
func TestTLSPrograms(t *testing.T) {
	a := newAuthority(t)
	_, addr := serveTLS(t, a, config{size: 8 * mib}, time.Minute)
	host, port, _ := net.SplitHostPort(addr)
	good, foreign := a.dir("client"), newAuthority(t).dir("client")
	qemu := func(dir string) []string {
		return []string{"qemu-io", "--object", "tls-creds-x509,id=t,endpoint=client,dir=" + dir, "--image-opts", "-c", "write -P 7 0 1M", "-c", "read -P 7 0 1M", "-c", "write -z 1M 3M", "-c", "read -P 0 1M 3M", "-c", "flush",
			fmt.Sprintf("driver=nbd,host=%s,port=%s,export=disk,tls-creds=t", host, port)}
	}
	for _, c := range []struct {
		args []string
		fine bool
	}{
		{qemu(good), true},
		{[]string{"nbdinfo", "nbds://" + addr + "/disk?tls-certificates=" + good}, true},
		{[]string{"nbdcopy", "nbds://" + addr + "/disk?tls-certificates=" + good, "null:"}, true},
		{qemu(foreign), false},
		{[]string{"nbdinfo", "nbd://" + addr + "/disk"}, false},
		{[]string{"nbdinfo", "nbds://" + addr + "/disk?tls-certificates=" + foreign}, false},
	} {
		path, err := exec.LookPath(c.args[0])
		if err != nil {
			t.Logf("no %s (packages qemu-utils, libnbd-bin)", c.args[0])
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		out, err := exec.CommandContext(ctx, path, c.args[1:]...).CombinedOutput()
		cancel()
		if fine := err == nil && !bytes.Contains(out, []byte("verification failed")); fine != c.fine {
			t.Errorf("%q: %v, want success: %t\n%s", c.args, err, c.fine, out)
		}
	}
}

// TestTLSHostile: who does not begin TLS, or not as it should be, is hung up on, and others are served meanwhile.
func TestTLSHostile(t *testing.T) {
	a := newAuthority(t)
	s, addr := serveTLS(t, a, config{size: mib}, 5*time.Second)
	goFlags := []byte{0, 0, 0, 3}
	option := func(o nbd.Option, data []byte) []byte { return nbd.AppendOption(nil, o, data) }
	for name, said := range map[string][]byte{
		"nothing":              nil,
		"garbage":              bytes.Repeat([]byte{0x5a}, 4096),
		"the flags alone":      goFlags,
		"export before TLS":    append(bytes.Clone(goFlags), option(nbd.OptExportName, []byte("disk"))...),
		"too long an option":   append(bytes.Clone(goFlags), option(nbd.OptGo, make([]byte, nbd.MaxOption+1))...),
		"options without end":  append(bytes.Clone(goFlags), bytes.Repeat(option(nbd.OptList, nil), 100)...),
		"TLS that is not":      append(append(bytes.Clone(goFlags), option(nbd.OptStartTLS, nil)...), bytes.Repeat([]byte{0x5a}, 600)...),
		"half a TLS handshake": append(append(bytes.Clone(goFlags), option(nbd.OptStartTLS, nil)...), 22, 3, 1, 2, 0),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			if _, err := nc.Write(said); err != nil {
				t.Log(err) // it hung up already
			}
			_ = nc.SetReadDeadline(time.Now().Add(30 * time.Second))
			got, err := io.ReadAll(io.LimitReader(nc, 1<<20))
			if e, ok := err.(net.Error); ok && e.Timeout() {
				t.Errorf("not hung up on; said %q", got)
			}
			if bytes.Contains(got, []byte("disk")) {
				t.Errorf("told of an export without TLS: %q", got)
			}
		})
	}
	t.Run("others meanwhile", func(t *testing.T) {
		t.Parallel()
		c := s.dial("disk")
		if c.Export.Size != mib {
			t.Errorf("size %d", c.Export.Size)
		}
	})
}

// TestTLSShutdown: a server ends in order with clients in every state.
func TestTLSShutdown(t *testing.T) {
	a := newAuthority(t)
	s, addr := serveTLS(t, a, config{size: mib}, time.Minute)
	silent, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	dir := a.dir("client")
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "client-cert.pem"), filepath.Join(dir, "client-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := nc.Write(nbd.AppendOption([]byte{0, 0, 0, 3}, nbd.OptStartTLS, nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(nc, make([]byte, nbd.GreetingSize+nbd.AnswerSize)); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	tc := tls.Client(nc, &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", Certificates: []tls.Certificate{cert}})
	if _, err := tc.Write(nbd.AppendOption(nil, nbd.OptList, nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(tc, make([]byte, nbd.AnswerSize)); err != nil {
		t.Fatal(err)
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadAll(tc); err != nil {
		t.Log(err)
	}
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Error("it listens on")
	}
}
