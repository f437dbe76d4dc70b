package attack

import (
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/pki"
	"varve/internal/secure"
)

// floodEnv has a process of this test do nothing but flood: kind, addresses to send to, addresses to send from, for how long.
const floodEnv = "VARVE_FLOOD"

// TestMain has the attacker's processes flood.
func TestMain(m *testing.M) {
	if spec := os.Getenv(floodEnv); spec != "" {
		if err := runFlood(spec); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// floods are the kinds. Each function does one thing to one server from one address until its time is over, and returns what it did.
var floods = []struct {
	name    string
	workers int
	do      func(f *flood, n int, to, from string) (tried, served int)
}{
	{"connect and close", 8, (*flood).storm},
	{"connect and say nothing", 1500, (*flood).silent},
	{"a byte a second", 600, (*flood).drip},
	{"hellos without certificates", 8, (*flood).hellos},
	{"hellos whose answer is not read", 400, (*flood).unread},
	{"wrong passwords", 16, (*flood).passwords},
	{"attempts to join that stop half way", 200, (*flood).joinsHeld},
	{"half-open connections", 2, (*flood).halfOpen},
}

type flood struct {
	end time.Time
}

// flood starts the attacker's process, at the lowest priority since it has the machine in common with those whom it attacks. wait returns what it said.
func (a *attacker) flood(kind string, to, from []string, limit time.Duration) (wait func() string) {
	a.t.Helper()
	cmd := exec.Command("nice", "-n", "19", os.Args[0])
	cmd.Env = append(os.Environ(), floodEnv+"="+strings.Join([]string{kind, strings.Join(to, ","), strings.Join(from, ","), limit.String()}, ";"), "GOMAXPROCS=1")
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	var err error
	a.s.Do(func() { err = cmd.Start() })
	if err != nil {
		a.t.Fatal(err)
	}
	stop := time.AfterFunc(limit+3*time.Minute, func() { _ = cmd.Process.Kill() })
	return func() string {
		err := cmd.Wait()
		stop.Stop()
		if err != nil {
			a.t.Errorf("flood of %s: %v: %s", kind, err, out.String())
		}
		return strings.TrimSpace(out.String())
	}
}

func runFlood(spec string) error {
	p := strings.Split(spec, ";")
	if len(p) != 4 {
		return fmt.Errorf("%s=%q", floodEnv, spec)
	}
	to, from := strings.Split(p[1], ","), strings.Split(p[2], ",")
	limit, err := time.ParseDuration(p[3])
	if err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 16384, Max: 16384}); err != nil {
		return err
	}
	f := &flood{end: time.Now().Add(limit)}
	for _, kind := range floods {
		if kind.name != p[0] {
			continue
		}
		var tried, served atomic.Int64
		var wg sync.WaitGroup
		for n := range kind.workers {
			wg.Go(func() {
				for i := n; time.Now().Before(f.end); i++ {
					x, y := kind.do(f, i, to[i%len(to)], from[i%len(from)])
					tried.Add(int64(x))
					served.Add(int64(y))
				}
			})
		}
		wg.Wait()
		fmt.Printf("%d attempts, %d of which a server began to serve\n", tried.Load(), served.Load())
		return nil
	}
	return fmt.Errorf("no flood of %q", p[0])
}

func (f *flood) dial(to, from string) (*net.TCPConn, bool) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Deadline: f.end}
	c, err := d.Dial("tcp", to)
	if err != nil {
		time.Sleep(5 * time.Millisecond)
		return nil, false
	}
	_ = c.SetDeadline(f.end)
	_ = c.(*net.TCPConn).SetLinger(0)
	return c.(*net.TCPConn), true
}

func (f *flood) storm(_ int, to, from string) (int, int) {
	c, ok := f.dial(to, from)
	if ok {
		c.Close()
	}
	return 1, 0
}

// until waits until the server ends the connection.
func until(c net.Conn) {
	_, _ = io.Copy(io.Discard, c)
}

func (f *flood) silent(_ int, to, from string) (int, int) {
	c, ok := f.dial(to, from)
	if !ok {
		return 1, 0
	}
	defer c.Close()
	begin := time.Now()
	until(c)
	if time.Since(begin) > time.Second {
		return 1, 1
	}
	time.Sleep(10 * time.Millisecond)
	return 1, 0
}

// clientHello is what a client sends first.
var clientHello = sync.OnceValue(func() []byte {
	a, b := net.Pipe()
	go func() {
		_ = tls.Client(a, &tls.Config{NextProtos: []string{secure.ProtoControl}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}).Handshake()
	}()
	buf := make([]byte, 1<<12)
	n, _ := b.Read(buf)
	a.Close()
	b.Close()
	return buf[:n]
})

func (f *flood) drip(n int, to, from string) (int, int) {
	c, ok := f.dial(to, from)
	if !ok {
		return 1, 0
	}
	defer c.Close()
	served := 0
	for _, b := range clientHello() {
		if _, err := c.Write([]byte{b}); err != nil {
			return 1, served
		}
		served = 1
		time.Sleep(min(time.Second, time.Until(f.end)))
	}
	return 1, served
}

func (f *flood) hellos(n int, to, from string) (int, int) {
	c, ok := f.dial(to, from)
	if !ok {
		return 1, 0
	}
	defer c.Close()
	proto := []string{secure.ProtoControl, secure.ProtoData}[n%2]
	tc := tls.Client(c, &tls.Config{NextProtos: []string{proto}, InsecureSkipVerify: true})
	if tc.Handshake() != nil {
		return 1, 0
	}
	var b [1]byte
	_, _ = tc.Read(b[:])
	return 1, 1
}

func (f *flood) unread(n int, to, from string) (int, int) {
	c, ok := f.dial(to, from)
	if !ok {
		return 1, 0
	}
	defer c.Close()
	_ = c.SetReadBuffer(1)
	for range 3 {
		if _, err := c.Write(clientHello()); err != nil {
			return 1, 0
		}
	}
	time.Sleep(min(time.Second, time.Until(f.end)))
	return 1, 1
}

// joinFirst begins an attempt to join, and returns what the server answers, "" if nothing.
func joinFirst(tc *tls.Conn) string {
	_, csr, err := pki.NewKey()
	if err != nil {
		return ""
	}
	nonce := make([]byte, 32)
	first, err := json.Marshal(map[string]any{"version": 1, "role": "admin", "node": "attacker", "nonce": nonce, "csr": csr})
	if err != nil {
		return ""
	}
	if _, err := tc.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(first))), first...)); err != nil {
		return ""
	}
	return joinRead(tc)
}

func joinRead(tc *tls.Conn) string {
	var head [4]byte
	if _, err := io.ReadFull(tc, head[:]); err != nil {
		return ""
	}
	b := make([]byte, min(binary.LittleEndian.Uint32(head[:]), 1<<16))
	if _, err := io.ReadFull(tc, b); err != nil {
		return ""
	}
	return string(b)
}

func (f *flood) join(to, from string) (*tls.Conn, bool) {
	c, ok := f.dial(to, from)
	if !ok {
		return nil, false
	}
	tc := tls.Client(c, pki.JoinConfig())
	if tc.Handshake() != nil {
		c.Close()
		return nil, false
	}
	return tc, true
}

func (f *flood) passwords(_ int, to, from string) (int, int) {
	tc, ok := f.join(to, from)
	if !ok {
		return 1, 0
	}
	defer tc.Close()
	if !strings.Contains(joinFirst(tc), `"salt"`) {
		return 1, 0
	}
	proof, _ := json.Marshal(map[string]any{"proof": make([]byte, 32)})
	_, _ = tc.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(proof))), proof...))
	if strings.Contains(joinRead(tc), `"chain"`) {
		panic("a wrong password was right")
	}
	return 1, 1
}

func (f *flood) joinsHeld(n int, to, from string) (int, int) {
	tc, ok := f.join(to, from)
	if !ok {
		time.Sleep(20 * time.Millisecond)
		return 1, 0
	}
	defer tc.Close()
	switch n % 3 {
	case 0: // says nothing
	case 1:
		_, _ = tc.Write([]byte{0xff, 0xff, 0, 0, '{'})
	case 2:
		if joinFirst(tc) == "" {
			return 1, 0
		}
	}
	until(tc)
	return 1, 1
}

func randomPort() uint16 { return uint16(1024 + rand.IntN(60000)) }
