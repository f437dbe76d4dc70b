package attack

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// hello is the first frame of who speaks without a handshake.
func hello(m *msg.Hello) []byte {
	body, err := m.MarshalVT()
	if err != nil {
		panic(err)
	}
	return wire.AppendRequest(nil, wire.Hello, wire.ClassMeta, 0, 1, body, 0, 0)
}

// attack is something that must be refused: do returns what was not.
type attack struct {
	name string
	do   func(addr string) error
}

// strangers are the attacks of who has no certificate, or one that is good for nothing.
func (a *attacker) strangers() []attack {
	var all []attack
	frame := hello(&msg.Hello{Cluster: a.c.uuid[:], Role: msg.Hello_ADMIN, Version: "attacker"})
	noise := make([]byte, 64<<10)
	_, _ = rand.Read(noise)
	noise[0] = 7 // no TLS, no frame
	for _, x := range []struct {
		name string
		sent []byte
	}{
		{"nothing", nil},
		{"a hello without a handshake", frame},
		{"a hello that asks what cluster this is", hello(&msg.Hello{Role: msg.Hello_ADMIN})},
		{"a hello of a chunk server", hello(&msg.Hello{Cluster: a.c.uuid[:], Role: msg.Hello_CHUNK_SERVER, Server: 1})},
		{"a hello and a request", append(bytes.Clone(frame), wire.AppendRequest(nil, wire.Status, wire.ClassMeta, 0, 2, nil, 0, 0)...)},
		{"raft", append([]byte("VRFT"), a.c.uuid[:]...)},
		{"raft's entries", append([]byte("VRFA"), a.c.uuid[:]...)},
		{"HTTP", []byte("GET /metrics HTTP/1.1\r\nHost: prey\r\n\r\n")},
		{"noise", noise},
		{"half of a record's header", []byte{22, 3, 1}},
		{"a record longer than there are", append([]byte{22, 3, 1, 0xff, 0xff}, noise...)},
		{"records of nothing", bytes.Repeat([]byte{22, 3, 1, 0, 0}, 9000)},
		{"a ClientHello without end", clientHelloWithoutEnd()},
		{"an alert", []byte{21, 3, 3, 0, 2, 2, 40}},
	} {
		all = append(all, attack{x.name, func(addr string) error {
			c, err := a.dial(addr)
			if err != nil {
				return err
			}
			defer c.Close()
			_, _ = c.Write(x.sent) // the server may have had enough
			return ends(c, 3)
		}})
	}
	handshake := func(name string, conf *tls.Config) {
		conf.InsecureSkipVerify = true
		all = append(all, attack{name, func(addr string) error {
			c, err := a.dial(addr)
			if err != nil {
				return err
			}
			defer c.Close()
			tc := tls.Client(c, conf.Clone())
			if err := tc.Handshake(); err != nil {
				return nil // refused
			}
			return mute(tc, frame)
		}})
	}
	for _, protos := range [][]string{nil, {secure.ProtoControl}, {secure.ProtoData}, {secure.ProtoSealed}, {secure.ProtoDataTLS}, {pki.ALPN}, {"h2"}, {secure.ProtoJoin, secure.ProtoControl}} {
		handshake(fmt.Sprintf("TLS without a certificate, ALPN %q", protos), &tls.Config{NextProtos: protos})
	}
	handshake("TLS 1.2 without a certificate", &tls.Config{NextProtos: []string{secure.ProtoControl}, MaxVersion: tls.VersionTLS12})
	now := time.Now()
	node := pki.Identity{Role: pki.RoleNode, Node: ownNode}
	good := issue(a.t, a.c.secrets.Authority, node, now, now.Add(time.Hour))
	handshake("TLS 1.2 with a good certificate", &tls.Config{NextProtos: []string{secure.ProtoControl}, MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{good}})
	for _, protos := range [][]string{nil, {pki.ALPN}, {"h2"}} {
		handshake(fmt.Sprintf("a good certificate, ALPN %q", protos), &tls.Config{NextProtos: protos, Certificates: []tls.Certificate{good}})
	}
	other, err := pki.NewAuthority(id.Cluster{0xee, 1}, now)
	if err != nil {
		a.t.Fatal(err)
	}
	same, err := pki.NewAuthority(a.c.uuid, now)
	if err != nil {
		a.t.Fatal(err)
	}
	for name, cert := range map[string]tls.Certificate{
		"another cluster":                     issue(a.t, other, node, now, now.Add(time.Hour)),
		"an authority that says it is ours":   issue(a.t, same, node, now, now.Add(time.Hour)),
		"an hour that is over":                issue(a.t, a.c.secrets.Authority, node, now.Add(-3*time.Hour), now.Add(-2*time.Hour)),
		"tomorrow":                            issue(a.t, a.c.secrets.Authority, node, now.Add(24*time.Hour), now.Add(25*time.Hour)),
		"itself":                              forged(a.t, nil, a.c.uuid, "node", ownNode),
		"a node that signs as an authority":   forged(a.t, &good, a.c.uuid, "admin", "attacker"),
		"a role that there is not, by a node": forged(a.t, &good, a.c.uuid, "root", "attacker"),
	} {
		for _, proto := range []string{secure.ProtoControl, secure.ProtoData} {
			handshake("a certificate of "+name+" for "+proto, &tls.Config{NextProtos: []string{proto}, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				return &cert, nil
			}})
		}
	}
	stolen := good
	stolen.PrivateKey = issue(a.t, same, node, now, now.Add(time.Hour)).PrivateKey
	handshake("a good certificate and another key", &tls.Config{NextProtos: []string{secure.ProtoControl}, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &stolen, nil
	}})
	all = append(all, attack{"bytes of a good connection, again", func(addr string) error { return a.replay(good, addr) }})
	return all
}

// clientHelloWithoutEnd is a handshake message that announces more than there may be, in many records.
func clientHelloWithoutEnd() []byte {
	record := append([]byte{22, 3, 1, 0x20, 0}, make([]byte, 0x2000)...)
	all := bytes.Clone(record)
	copy(all[5:], []byte{1, 0, 0xff, 0xff})
	for range 12 {
		all = append(all, record...)
	}
	return all
}

// forged makes a certificate that by signed, or itself.
func forged(t *testing.T, by *tls.Certificate, cluster id.Cluster, role, node string) tls.Certificate {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1 << 60), Subject: pkix.Name{CommonName: "attacker"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{{Scheme: "varve", Host: cluster.String(), Path: "/" + role + "/" + node}}, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
	}
	parent, signer := template, any(key)
	out := tls.Certificate{PrivateKey: key}
	if by != nil {
		if parent, err = x509.ParseCertificate(by.Certificate[0]); err != nil {
			t.Fatal(err)
		}
		signer = by.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, signer)
	if err != nil {
		t.Fatal(err)
	}
	out.Certificate = [][]byte{der}
	if by != nil {
		out.Certificate = append(out.Certificate, by.Certificate...)
	}
	return out
}

// tap keeps what is sent.
type tap struct {
	net.Conn
	mu   sync.Mutex
	sent []byte
}

func (r *tap) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent = append(r.sent, b...)
	return r.Conn.Write(b)
}

// replay sends again what a good connection sent, its hello too.
func (a *attacker) replay(good tls.Certificate, addr string) error {
	for _, proto := range []string{secure.ProtoControl, secure.ProtoData} {
		c, err := a.dial(addr)
		if err != nil {
			return err
		}
		defer c.Close()
		t := &tap{Conn: c}
		tc := tls.Client(t, &tls.Config{NextProtos: []string{proto}, InsecureSkipVerify: true, Certificates: []tls.Certificate{good}})
		if err := tc.Handshake(); err != nil {
			return fmt.Errorf("the good connection: %w", err)
		}
		if proto == secure.ProtoControl {
			if _, err := tc.Write(hello(&msg.Hello{Cluster: a.c.uuid[:], Role: msg.Hello_CLIENT})); err != nil {
				return err
			}
		}
		again, err := a.dial(addr)
		if err != nil {
			return err
		}
		defer again.Close()
		_, _ = again.Write(t.sent)
		// It answers a ClientHello as it always does, with what only the maker of that could read; then comes an alert.
		b, err := io.ReadAll(io.LimitReader(again, 1<<16))
		if err != nil {
			continue // reset
		}
		if len(b) > 3000 {
			return fmt.Errorf("%s: %d bytes came back", proto, len(b))
		}
	}
	return nil
}
