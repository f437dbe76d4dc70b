package pki

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/internal/id"
)

// full is usual as it is outside of these tests, which stretch passwords many times.
var full = usual

func TestMain(m *testing.M) {
	usual = stretch{Passes: 2, Memory: 64, Threads: 1}
	os.Exit(m.Run())
}

// TestStretch: what is done outside of tests is what RFC 9106 recommends, and takes a known password to known keys.
func TestStretch(t *testing.T) {
	if full != (stretch{3, 64 << 10, 4}) {
		t.Errorf("%+v", full)
	}
	client, server := full.keys([]byte(goodPassword), []byte("0123456789abcdef"))
	again, _ := full.keys([]byte(goodPassword+"x"), []byte("0123456789abcdef"))
	if fmt.Sprintf("%x", client) != "19421d6623a8d7005ffa012c08085fce5d0ae31aaf4b6d7f527e2ef52e8ae176" || bytes.Equal(client, server) || bytes.Equal(client, again) {
		t.Errorf("client key %x", client)
	}
}

const goodPassword = "correct horse"

// joinHost is a metadata server that gives certificates to whoever joins.
type joinHost struct {
	secrets *Secrets
	creds   *Credentials
	addr    string
	joiner  *Joiner

	mu      sync.Mutex
	follows string // the leader, if this server does not lead
	fail    error  // of the next Issue
	issued  []Identity
	opening bool // until the next Issue
}

func (h *joinHost) JoinSecrets() (*Secrets, string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.follows != "" {
		return nil, h.follows
	}
	return h.secrets, h.addr
}

func (h *joinHost) JoinOpening() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.opening
}

func (h *joinHost) JoinCluster() (id.Cluster, string) { return testCluster, "test" }

func (h *joinHost) Issue(_ context.Context, pub ed25519.PublicKey, who Identity, _ string) ([][]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	chain, who, err := h.secrets.Authority.IssueNow(pub, who, time.Now(), 0)
	if err != nil {
		return nil, err
	}
	h.issued = append(h.issued, who)
	h.opening = false
	if err := h.fail; err != nil { // it was given, and the answer is lost
		h.fail = nil
		return nil, err
	}
	return chain, nil
}

func testSecrets(t *testing.T) *Secrets {
	t.Helper()
	v, err := NewPasswordVerifier([]byte(goodPassword))
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSecrets(testCluster, v, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func startJoinHost(t *testing.T, s *Secrets) *joinHost {
	t.Helper()
	creds, err := s.Authority.Credentials(Identity{Role: RoleNode, Node: "mds"}, time.Now(), 0)
	if err != nil {
		t.Fatal(err)
	}
	h := &joinHost{secrets: s, creds: creds}
	h.joiner = NewJoiner(h, slog.New(slog.DiscardHandler))
	h.addr = listen(t, func(nc net.Conn) { h.joiner.ServeJoin(t.Context(), tls.Server(nc, creds.JoinableConfig())) })
	return h
}

// listen gives each connection to fn until the test ends.
func listen(t *testing.T, fn func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer nc.Close()
				stop := context.AfterFunc(t.Context(), func() { nc.Close() })
				defer stop()
				fn(nc)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

func joinRequest(password string, addrs ...string) JoinRequest {
	return JoinRequest{Addrs: addrs, Password: []byte(password), Role: RoleAdmin, Node: "n1", Cluster: testCluster}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestJoin(t *testing.T) {
	h := startJoinHost(t, testSecrets(t))
	follower := startJoinHost(t, h.secrets)
	follower.follows = h.addr
	r := joinRequest(goodPassword, follower.addr)
	r.Fingerprint = h.secrets.Authority.Fingerprint()
	j, err := Join(testContext(t), r)
	if err != nil {
		t.Fatal(err)
	}
	if j.Identity.Role != RoleAdmin || j.Identity.Node != "n1" || j.Identity.Cluster != testCluster || j.Name != "test" {
		t.Errorf("%+v", j.Identity)
	}
	dir := t.TempDir()
	if err := j.Write(dir); err != nil {
		t.Fatal(err)
	}
	c, err := LoadCredentials(dir, RoleAdmin)
	if err != nil {
		t.Fatal(err)
	}
	if _, cerr, serr := shake(t, c.ClientConfig(), h.creds.ServerConfig()); cerr != nil || serr != nil {
		t.Errorf("with what was got: %v, %v", cerr, serr)
	}
}

func TestJoinRefused(t *testing.T) {
	h := startJoinHost(t, testSecrets(t))
	other := testSecrets(t)
	for _, tc := range []struct {
		name   string
		change func(*JoinRequest)
		want   string
	}{
		{"wrong password", func(r *JoinRequest) { r.Password = []byte(goodPassword + "x") }, "wrong password"},
		{"wrong cluster", func(r *JoinRequest) { r.Cluster = id.Cluster{9} }, "want 09000000"},
		{"wrong fingerprint", func(r *JoinRequest) { r.Fingerprint = other.Authority.Fingerprint() }, "has the fingerprint"},
		{"bad name", func(r *JoinRequest) { r.Node = "a/b" }, "node name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := joinRequest(goodPassword, h.addr)
			tc.change(&r)
			if _, err := Join(testContext(t), r); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("want %q, got %v", tc.want, err)
			}
		})
	}
	if len(h.issued) != 0 {
		t.Errorf("certificates were given: %+v", h.issued)
	}
}

// TestJoinSaidByStrangers: what somebody says who is not of the cluster reaches no terminal as it is, and he makes a node neither hurry nor take much memory.
func TestJoinSaidByStrangers(t *testing.T) {
	creds := credentials(t, authority(t, id.Cluster{6}), RoleNode, "x")
	var mu sync.Mutex
	asked := 0
	stranger := func(answer func() joinChallenge) string {
		return listen(t, func(nc net.Conn) {
			c := tls.Server(nc, creds.JoinableConfig())
			var first joinFirst
			if _, err := readMessage(c, &first); err != nil {
				return
			}
			mu.Lock()
			asked++
			mu.Unlock()
			_, _ = writeMessage(c, answer())
		})
	}
	refusing := stranger(func() joinChallenge {
		return joinChallenge{Refusal: refusal{Detail: "\x1b]0;owned\a\r\nvarve: done\u202e" + strings.Repeat("x", 60_000), Final: true}}
	})
	_, err := Join(testContext(t), joinRequest(goodPassword, refusing))
	if err == nil || strings.ContainsAny(err.Error(), "\x1b\a\r\n\u202e") || len(err.Error()) > 1000 || !strings.Contains(err.Error(), "varve: done") {
		t.Errorf("what a stranger said: %.200q", err)
	}
	var addrs [2]string
	other := func(n int) func() joinChallenge {
		return func() joinChallenge {
			mu.Lock()
			defer mu.Unlock()
			return joinChallenge{Refusal: refusal{Detail: "not here", Leader: addrs[n]}}
		}
	}
	one, two := stranger(other(1)), stranger(other(0))
	mu.Lock()
	asked, addrs = 0, [2]string{one, two}
	mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	begin, ended := time.Now(), make(chan error, 1)
	go func() {
		_, err := Join(ctx, joinRequest(goodPassword, one))
		ended <- err
	}()
	const enough = 5 * (joinSent + 1)
	n := 0
	for end := begin.Add(time.Minute); n < enough && time.Now().Before(end); time.Sleep(time.Millisecond) {
		mu.Lock()
		n = asked
		mu.Unlock()
	}
	took := time.Since(begin)
	if most := int(took/joinPause+1) * (joinSent + 1); n > most || n < enough {
		t.Errorf("asked %d times in %v, want at most %d", n, took, most)
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("joined")
	}
	for _, much := range []stretch{{usual.Passes, 1 << 20, 1}, {1 << 20, usual.Memory, 1}, {usual.Passes, usual.Memory, 255}} {
		if err := much.check(); err == nil {
			t.Errorf("%+v is done for whoever asks", much)
		}
	}
}

// A certificate whose answer was lost, or whose leader was replaced between proof and certificate, is the same one.
func TestJoinAnswerLost(t *testing.T) {
	h := startJoinHost(t, testSecrets(t))
	h.fail = errors.New("leadership lost")
	j, err := Join(testContext(t), joinRequest(goodPassword, h.addr))
	if err != nil {
		t.Fatal(err)
	}
	if len(h.issued) != 2 || h.issued[0].Serial != h.issued[1].Serial || h.issued[1].Serial != j.Identity.Serial {
		t.Errorf("given %+v, got %+v", h.issued, j.Identity)
	}
}

// TestJoinWhileOpening: who joins a cluster that is being secured is told so, though that is given up before it has its certificate: its directory is not to say that
// the cluster is secured.
func TestJoinWhileOpening(t *testing.T) {
	h := startJoinHost(t, testSecrets(t))
	h.mu.Lock()
	h.opening = true
	h.mu.Unlock()
	for _, want := range []bool{true, false} {
		j, err := Join(testContext(t), joinRequest(goodPassword, h.addr))
		if err != nil {
			t.Fatal(err)
		}
		if j.Opening != want {
			t.Errorf("opening: %v, want %v", j.Opening, want)
		}
	}
}

func TestJoinFinalRefusal(t *testing.T) {
	h := startJoinHost(t, testSecrets(t))
	h.fail = fmt.Errorf("too many certificates: %w", ErrRefused)
	if _, err := Join(testContext(t), joinRequest(goodPassword, h.addr)); err == nil || !strings.Contains(err.Error(), "too many certificates") {
		t.Errorf("got %v", err)
	}
}

// Somebody between a node and a server, with a TLS connection to either, gets neither a certificate nor the node's trust, though he
// passes on every message as it is.
func TestJoinManInTheMiddle(t *testing.T) {
	h := startJoinHost(t, testSecrets(t))
	mallory, err := NewAuthority(testCluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	creds, err := mallory.Credentials(Identity{Role: RoleNode, Node: "mds"}, time.Now(), 0)
	if err != nil {
		t.Fatal(err)
	}
	addr := listen(t, func(nc net.Conn) {
		down := tls.Server(nc, creds.JoinableConfig())
		up, err := tls.Dial("tcp", h.addr, JoinConfig())
		if err != nil {
			t.Error(err)
			return
		}
		defer up.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(up, down)
			up.Close()
		}()
		_, _ = io.Copy(down, up)
		down.Close()
		<-done
	})
	if _, err := Join(testContext(t), joinRequest(goodPassword, addr)); !errors.Is(err, ErrPassword) {
		t.Errorf("the relayed proof: %v", err)
	}
	r := joinRequest(goodPassword, addr)
	r.Fingerprint = h.secrets.Authority.Fingerprint()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	time.Sleep(firstDelay) // the source had a wrong password
	if _, err := Join(ctx, r); !errors.Is(err, ErrUntrusted) {
		t.Errorf("with a fingerprint: %v", err)
	}
	if len(h.issued) != 0 {
		t.Errorf("certificates were given: %+v", h.issued)
	}
}

// A server that does not know the password is not believed, whatever it sends.
func TestJoinImpostor(t *testing.T) {
	s := testSecrets(t)
	liar, err := NewPasswordVerifier([]byte("some other password"))
	if err != nil {
		t.Fatal(err)
	}
	h := startJoinHost(t, s)
	addr := listen(t, func(nc net.Conn) {
		c := tls.Server(nc, h.creds.JoinableConfig())
		var first joinFirst
		if _, err := readMessage(c, &first); err != nil {
			return
		}
		_, _ = writeMessage(c, joinChallenge{Cluster: testCluster.String(), Bundle: string(s.Authority.Bundle()), Nonce: newNonce(), Salt: liar.Salt, Stretch: liar.Stretch})
		var p joinProof
		_, _ = readMessage(c, &p)
		_, _ = writeMessage(c, joinResult{Answer: make([]byte, keySize)})
		_, _ = io.Copy(io.Discard, c)
	})
	if _, err := Join(testContext(t), joinRequest(goodPassword, addr)); !errors.Is(err, ErrUntrusted) {
		t.Errorf("got %v", err)
	}
	cheap := listen(t, func(nc net.Conn) {
		c := tls.Server(nc, h.creds.JoinableConfig())
		var first joinFirst
		if _, err := readMessage(c, &first); err != nil {
			return
		}
		_, _ = writeMessage(c, joinChallenge{Cluster: testCluster.String(), Bundle: string(s.Authority.Bundle()), Nonce: newNonce(), Salt: liar.Salt,
			Stretch: stretch{Passes: 1, Memory: 8, Threads: 1}})
		_, _ = io.Copy(io.Discard, c)
	})
	if _, err := Join(testContext(t), joinRequest(goodPassword, cheap)); !errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), "not to be trusted") {
		t.Errorf("a server that wants less work: %v", err)
	}
}

// A proof that was seen is of no use on another connection, nor on the same one.
func TestJoinReplay(t *testing.T) {
	h := startJoinHost(t, testSecrets(t))
	now := time.Now() // for those who count attempts: a machine that stands still is not a delay that was waited for
	h.joiner.limit.mu.Lock()
	h.joiner.limit.now = func() time.Time { return now }
	h.joiner.limit.mu.Unlock()
	_, csr, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	client, _ := usual.keys([]byte(goodPassword), h.secrets.Password.Salt)
	first := joinFirst{Version: joinVersion, Role: "node", Node: "n1", Nonce: newNonce(), CSR: csr}
	var seen joinProof
	for n := range 3 {
		c, err := tls.Dial("tcp", h.addr, JoinConfig())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		firstRaw, err := writeMessage(c, first)
		if err != nil {
			t.Fatal(err)
		}
		var ch joinChallenge
		raw, err := readMessage(c, &ch)
		if err != nil {
			t.Fatal(err)
		}
		if ch.Refusal.is() { // the second attempt was counted
			if n < 2 || ch.Refusal.Again <= 0 {
				t.Fatalf("attempt %d: %+v", n, ch.Refusal)
			}
			return
		}
		if n == 0 {
			state := c.ConnectionState()
			channel, err := state.ExportKeyingMaterial(exportLabel, nil, exportSize)
			if err != nil {
				t.Fatal(err)
			}
			seen.Proof, _ = prove(client, nil, exchange(firstRaw, raw, channel))
		}
		if _, err := writeMessage(c, seen); err != nil {
			t.Fatal(err)
		}
		var result joinResult
		if _, err := readMessage(c, &result); err != nil {
			t.Fatal(err)
		}
		if got := len(result.Chain) > 0; got != (n == 0) {
			t.Errorf("attempt %d: certificate %v, %+v", n, got, result.Refusal)
		}
	}
	t.Error("a wrong password is not followed by a delay")
}

func TestLimiter(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := newLimiter(func() time.Time { return now })
	a, b := netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("10.0.0.2/32")
	var turns []*turn
	for range maxFromSource {
		x, wait := l.begin(a, func() {})
		if x == nil {
			t.Fatalf("wait %v", wait)
		}
		turns = append(turns, x)
	}
	if x, _ := l.begin(a, func() {}); x != nil {
		t.Error("more at once from one source than may be")
	}
	if x, _ := l.begin(b, func() {}); x == nil {
		t.Error("another source is kept out")
	} else {
		x.end()
	}
	for _, x := range turns {
		x.end()
	}
	var waits []time.Duration
	for range 12 {
		now = now.Add(maxDelay)
		x, wait := l.begin(a, func() {})
		if x == nil {
			t.Fatalf("kept out for more than %v: %v", maxDelay, wait)
		}
		waits = append(waits, x.failed())
		x.end()
		if x, wait := l.begin(a, func() {}); x != nil || wait <= 0 || wait > maxDelay {
			t.Errorf("right after a wrong password: wait %v", wait)
		}
	}
	if waits[0] != firstDelay || waits[1] != 2*firstDelay || waits[11] != maxDelay {
		t.Errorf("delays %v", waits)
	}
	now = now.Add(forgetAfter + maxDelay)
	x, _ := l.begin(a, func() {})
	if x == nil || x.failed() != firstDelay {
		t.Error("wrong passwords are not forgotten")
	}
	x.end()
	// Many sources together.
	n := 0
	for i := range 1000 {
		if x, _ := l.begin(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 32), func() {}); x != nil {
			x.end()
			n++
		}
	}
	if n > totalBurst {
		t.Errorf("%d attempts of many sources at once, limit %d", n, totalBurst)
	}
	for i := range maxSources + 500 {
		now = now.Add(totalEvery)
		if x, _ := l.begin(netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), 32), func() {}); x != nil {
			x.end()
		}
	}
	if len(l.sources) > maxSources {
		t.Errorf("%d sources remembered, limit %d", len(l.sources), maxSources)
	}
	if source("[fe80::1%eth0]:5") != source("[fe80::2]:6") || source("10.0.0.1:5") != source("[::ffff:10.0.0.1]:5") || source("junk") != (netip.Prefix{}) {
		t.Error("sources are told apart wrongly")
	}
}

func TestSealedSecrets(t *testing.T) {
	s := testSecrets(t)
	if err := errors.Join(s.Authority.Rotate(time.Now()), s.RotateSigner(), s.RotateSigner()); err != nil {
		t.Fatal(err)
	}
	key, err := NewClusterKey()
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := s.Seal(key, 7)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Unseal(sealed, key, testCluster, 7)
	if err != nil || got.Authority.Generation() != 2 || got.Signer().generation != 3 || len(got.Signers) != maxSigners ||
		!bytes.Equal(got.Password.Stored, s.Password.Stored) || !got.Signer().key.Equal(s.Signer().key) {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, secret := range [][]byte{key[:], s.Signer().key.Seed(), s.Authority.last().key.Seed(), s.Password.Stored, s.Password.Server} {
		if bytes.Contains(sealed, secret) || bytes.Contains(sealed, []byte(fmt.Sprintf("%x", secret))) {
			t.Error("the sealed record shows a secret")
		}
	}
	other, _ := NewClusterKey()
	for name, open := range map[string]func() error{
		"another key":     func() error { _, err := Unseal(sealed, other, testCluster, 7); return err },
		"another cluster": func() error { _, err := Unseal(sealed, key, id.Cluster{3}, 7); return err },
		"another version": func() error { _, err := Unseal(sealed, key, testCluster, 8); return err },
		"cut off":         func() error { _, err := Unseal(sealed[:len(sealed)-1], key, testCluster, 7); return err },
		"short":           func() error { _, err := Unseal(sealed[:10], key, testCluster, 7); return err },
		"other format": func() error {
			b := bytes.Clone(sealed)
			b[4]++
			_, err := Unseal(b, key, testCluster, 7)
			return err
		},
	} {
		if err := open(); !errors.Is(err, ErrSealed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	back, err := DecodeClusterKey(key.Encode())
	if err != nil || back != key {
		t.Errorf("the key's file: %v", err)
	}
	if _, err := DecodeClusterKey([]byte("deadbeef")); err == nil || strings.Contains(err.Error(), "deadbeef") {
		t.Errorf("a short key: %v", err)
	}
}

func TestPasswordRules(t *testing.T) {
	for p, ok := range map[string]bool{"": false, "1234567": false, "12345678": true, "ääääääää": true, "ääääääa": false, strings.Repeat("x", MaxPassword+1): false} {
		if err := CheckPassword([]byte(p)); (err == nil) != ok || err != nil && p != "" && strings.Contains(err.Error(), p) {
			t.Errorf("%.20q: %v", p, err)
		}
	}
}

// A statement is believed by who knows its authority, or one that signed that; nobody else can make one.
func TestTrust(t *testing.T) {
	a := authority(t, testCluster)
	old := credentials(t, a, RoleNode, "n1")
	trust, err := OpenTrust(old)
	if err != nil {
		t.Fatal(err)
	}
	var told []bool
	trust.Notify(func(revoked func(string) bool) { told = append(told, revoked("aa")) })
	signer, err := NewSigner(testCluster, 1)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := a.Rotate(time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	keys := []CapabilityKey{signer.Key()}
	if err := trust.Learn(a.State(5, keys, []string{"bb", "aa"})); err != nil {
		t.Fatal(err)
	}
	if !trust.IsRevoked("aa") || trust.IsRevoked("cc") || trust.Version() != 5 || !trust.Verifier().Knows(1) || fmt.Sprint(told) != "[false true]" {
		t.Errorf("version %d, told %v", trust.Version(), told)
	}
	if err := trust.Learn(a.State(4, nil, nil)); err != nil || !trust.IsRevoked("aa") {
		t.Errorf("an older statement: %v", err)
	}
	twin := authority(t, testCluster)
	if err := trust.Learn(twin.State(9, keys, nil)); !errors.Is(err, ErrUntrusted) {
		t.Errorf("of another authority: %v", err)
	}
	forged := a.State(9, keys, []string{"aa"})
	forged.Revoked = nil
	if err := trust.Learn(forged); !errors.Is(err, ErrUntrusted) || !trust.IsRevoked("aa") {
		t.Errorf("a changed statement: %v", err)
	}
	// The new generation's certificates are shown without the cross certificates once the older ones are gone.
	a.Retire(a.Generation())
	if err := trust.Learn(a.State(6, keys, nil)); err != nil {
		t.Fatal(err)
	}
	if _, cerr, serr := shake(t, credentials(t, a, RoleNode, "n2").ClientConfig(), old.ServerConfig()); cerr == nil {
		t.Errorf("a retired server is still trusted: %v", serr)
	}
}

// TestTrustOfMembers: who has a certificate, of whatever role, cannot make a statement with its key.
func TestTrustOfMembers(t *testing.T) {
	a := authority(t, testCluster)
	_, evil, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range []Role{RoleNode, RoleAdmin, RoleReader} {
		member := credentials(t, a, role, "n2").Certificate()
		key := member.PrivateKey.(ed25519.PrivateKey)
		own := EncodeChain(member.Certificate[:1])
		// A certificate of an authority that the member has made, beside its own or behind it.
		made := &x509.Certificate{SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
			BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, Subject: pkix.Name{CommonName: "made"}}
		self, err := x509.CreateCertificate(rand.Reader, made, made, evil.Public(), evil)
		if err != nil {
			t.Fatal(err)
		}
		below, err := x509.CreateCertificate(rand.Reader, made, member.Leaf, evil.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		for name, forged := range map[string]struct {
			key    ed25519.PrivateKey
			bundle []byte
			cross  [][]byte
		}{
			"its own":              {key, own, nil},
			"its own, and another": {key, append(bytes.Clone(own), EncodeChain([][]byte{self})...), nil},
			"made":                 {evil, EncodeChain([][]byte{self}), member.Certificate[:1]},
			"made, below its own":  {evil, EncodeChain([][]byte{below}), [][]byte{below, member.Certificate[0]}},
			"the real one behind":  {key, append(bytes.Clone(own), a.Bundle()...), nil},
		} {
			trust, err := OpenTrust(credentials(t, a, RoleNode, "n1"))
			if err != nil {
				t.Fatal(err)
			}
			s := &Statement{Version: 9, Bundle: forged.bundle, Keys: []CapabilityKey{{1, evil.Public().(ed25519.PublicKey)}}, Cross: forged.cross}
			s.Signature = ed25519.Sign(forged.key, s.signed(testCluster))
			if err := trust.Learn(s); !errors.Is(err, ErrUntrusted) || trust.Version() != 0 || trust.Verifier().Knows(1) {
				t.Errorf("statement of a %v, %s: %v, version %d", role, name, err, trust.Version())
			}
		}
	}
}

// TestTrustFileOfRetired: a node that was off while the authority it knew was retired joins anew, and starts with what it has kept of before.
func TestTrustFileOfRetired(t *testing.T) {
	a := authority(t, testCluster)
	dir := t.TempDir()
	join := func() *Credentials {
		t.Helper()
		key, csr, err := NewKey()
		if err != nil {
			t.Fatal(err)
		}
		pub, err := ReadCSR(csr)
		if err != nil {
			t.Fatal(err)
		}
		chain, _, err := a.IssueNow(pub, Identity{Role: RoleNode, Node: "n1"}, time.Now(), 0)
		if err := errors.Join(err, WriteBundle(dir, a.Bundle()), WriteCredentials(dir, EncodeChain(chain), key)); err != nil {
			t.Fatal(err)
		}
		c, err := LoadCredentials(dir)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	trust, err := OpenTrust(join())
	if err == nil {
		err = trust.Learn(a.State(3, nil, []string{"aa"}))
	}
	if err == nil {
		err = a.Rotate(time.Now())
	}
	if err != nil {
		t.Fatal(err)
	}
	a.Retire(a.Generation())
	again, err := OpenTrust(join())
	if err != nil || again.Version() != 0 {
		t.Fatalf("what a retired authority has signed: %v", err)
	}
	if err := again.Learn(a.State(2, nil, []string{"bb"})); err != nil || !again.IsRevoked("bb") {
		t.Fatalf("the newest statement: %v", err)
	}
	if last, err := OpenTrust(join()); err != nil || last.Version() != 2 {
		t.Errorf("after that: %v", err)
	}
}

func TestTrustFile(t *testing.T) {
	a := authority(t, testCluster)
	dir := t.TempDir()
	key, csr, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := ReadCSR(csr)
	if err != nil {
		t.Fatal(err)
	}
	chain, who, err := a.IssueNow(pub, Identity{Role: RoleNode, Node: "n1"}, time.Now(), 0)
	if err := errors.Join(err, WriteBundle(dir, a.Bundle()), WriteCredentials(dir, EncodeChain(chain), key)); err != nil {
		t.Fatal(err)
	}
	c, err := LoadCredentials(dir)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := OpenTrust(c)
	if err == nil {
		err = trust.Learn(a.State(3, nil, []string{who.Serial}))
	}
	if err != nil {
		t.Fatal(err)
	}
	c2, err := LoadCredentials(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := OpenTrust(c2)
	if err != nil || again.Version() != 3 || !again.IsRevoked(who.Serial) {
		t.Fatalf("%v", err)
	}
	if _, cerr, serr := shake(t, c.ClientConfig(), c2.ServerConfig()); cerr == nil || serr == nil {
		t.Errorf("a revoked certificate was let in after a restart: %v, %v", cerr, serr)
	}
}

// A keeper renews when the time has come, or the authority has a new generation, and the same files serve several.
func TestKeeper(t *testing.T) {
	a := authority(t, testCluster)
	dir := t.TempDir()
	key, csr, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	pub, _ := ReadCSR(csr)
	chain, first, err := a.IssueNow(pub, Identity{Role: RoleNode, Node: "n1"}, time.Now().Add(-40*time.Minute), time.Hour)
	if err := errors.Join(err, WriteBundle(dir, a.Bundle()), WriteCredentials(dir, EncodeChain(chain), key)); err != nil {
		t.Fatal(err)
	}
	version, given := uint64(1), 0
	ask := func(_ context.Context, known uint64, csr []byte) (s *Statement, chain [][]byte, err error) {
		if known < version {
			s = a.State(version, nil, nil)
		}
		if csr != nil {
			pub, err := ReadCSR(csr)
			if err != nil {
				return nil, nil, err
			}
			given++
			if chain, _, err = a.IssueNow(pub, Identity{Role: RoleNode, Node: "n1"}, time.Now(), 0); err != nil {
				return nil, nil, err
			}
		}
		return s, chain, nil
	}
	var keepers []*Keeper
	for range 2 {
		c, err := LoadCredentials(dir)
		if err != nil {
			t.Fatal(err)
		}
		trust, err := OpenTrust(c)
		if err != nil {
			t.Fatal(err)
		}
		keepers = append(keepers, NewKeeper(trust, ask, slog.New(slog.DiscardHandler)))
	}
	round := func() {
		t.Helper()
		for _, k := range keepers {
			if err := k.Once(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	round()
	if given != 1 || keepers[1].Credentials.Identity().Serial == first.Serial {
		t.Errorf("%d certificates given, the second process has %+v", given, keepers[1].Credentials.Identity())
	}
	if round(); given != 1 {
		t.Errorf("renewed though it is not due: %d", given)
	}
	if err := a.Rotate(time.Now()); err != nil {
		t.Fatal(err)
	}
	version++
	if round(); given != 2 {
		t.Errorf("%d certificates given after a rotation", given)
	}
	a.Retire(a.Generation())
	version++
	if round(); given != 2 || keepers[0].Credentials.Identity() != keepers[1].Credentials.Identity() {
		t.Errorf("%d certificates given", given)
	}
}

func TestKeeperIsWoken(t *testing.T) {
	a := authority(t, testCluster)
	trust, err := OpenTrust(credentials(t, a, RoleNode, "n1"))
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan uint64, 16)
	k := NewKeeper(trust, func(_ context.Context, known uint64, _ []byte) (*Statement, [][]byte, error) {
		asked <- known
		return a.State(known+1, nil, nil), nil, nil
	}, slog.New(slog.DiscardHandler))
	k.Every = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); k.Run(ctx) }()
	<-asked
	deadline := time.Now().Add(20 * time.Second)
	for trust.Version() != 1 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	k.Told(2)
	select {
	case known := <-asked:
		if known != 1 {
			t.Errorf("asked for what is newer than %d", known)
		}
	case <-time.After(20 * time.Second):
		t.Error("not asked")
	}
	cancel()
	<-done
}

func FuzzMessages(f *testing.F) {
	for _, m := range []any{joinFirst{Version: 1, Role: "node", Node: "n", Nonce: newNonce()}, joinChallenge{Stretch: usual}, joinProof{}, joinResult{}, refusal{Detail: "x"}} {
		var b bytes.Buffer
		if _, err := writeMessage(&b, m); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, m := range []any{new(joinFirst), new(joinChallenge), new(joinProof), new(joinResult), new(Statement)} {
			raw, err := readMessage(bytes.NewReader(b), m)
			if err == nil && len(raw) != int(binary.LittleEndian.Uint32(b)) {
				t.Fatalf("%d bytes of %d", len(raw), len(b))
			}
		}
		_, _ = ReadCSR(b)
		_, _ = DecodeVerifier(b)
		_, _ = Unseal(b, ClusterKey{}, testCluster, 1)
		var s Statement
		if json.Unmarshal(b, &s) == nil {
			_, _ = s.verify(testCluster, Pool(nil))
		}
	})
}
