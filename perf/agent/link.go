package agent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stdio is a connection made of two streams.
type stdio struct {
	io.Reader
	io.Writer
	close func() error
}

func (s stdio) Close() error { return s.close() }

// Stdio returns the connection that standard input and output are. Closing it closes in, so that who reads it is woken.
func Stdio(in io.ReadCloser, out io.Writer) io.ReadWriteCloser { return stdio{in, out, in.Close} }

// endTime is how long a command may go on after its input was closed.
const endTime = 2 * time.Second

// command starts a program whose standard input and output are the connection. It has a process group of its own, so that Ctrl-C on the terminal does
// not reach it: the agent is told.
func command(words []string) (io.ReadWriteCloser, error) {
	cmd := exec.Command(words[0], words[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	errs := new(tail)
	cmd.Stderr = errs
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &process{Reader: out, Writer: in, cmd: cmd, in: in, errs: errs}, nil
}

// process is a connection to a program.
type process struct {
	io.Reader
	io.Writer
	cmd  *exec.Cmd
	in   io.Closer
	errs *tail
	once sync.Once
}

// Close lets the program end by itself for a moment, and then kills it with what it has started.
func (p *process) Close() error {
	p.once.Do(func() {
		p.in.Close()
		timer := time.AfterFunc(endTime, func() { _ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) })
		defer timer.Stop()
		_, _ = io.Copy(io.Discard, p.Reader)
		_ = p.cmd.Wait() // why it ended is what it wrote to standard error
	})
	return nil
}

// tail keeps the end of what a program writes to its standard error.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const maxTail = 2000

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	t.b = t.b[max(len(t.b)-maxTail, 0):]
	return len(p), nil
}

// last is the last line.
func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := bytes.Split(bytes.TrimSpace(t.b), []byte("\n"))
	return string(bytes.TrimSpace(lines[len(lines)-1]))
}

// MinSecret is the least length of a secret in bytes.
const MinSecret = 32

// keyInfo separates this use of a secret from others.
const keyInfo = "varve perf agent, TLS key, version 1"

// tlsConfig is the same for both sides: each has the key that comes of the secret, and accepts nobody who has not.
func tlsConfig(secret []byte) (*tls.Config, error) {
	secret = bytes.TrimSpace(secret)
	if len(secret) < MinSecret {
		return nil, fmt.Errorf("a secret of %d bytes can be guessed: want %d or more, such as of `openssl rand -base64 32`", len(secret), MinSecret)
	}
	seed, err := hkdf.Key(sha256.New, secret, nil, keyInfo, ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	key := ed25519.NewKeyFromSeed(seed)
	public := key.Public().(ed25519.PublicKey)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
		Certificates:       []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}},
		ClientAuth:         tls.RequireAnyClientCert,
		InsecureSkipVerify: true, // names and issuers mean nothing here; VerifyConnection asks for the key
		VerifyConnection: func(c tls.ConnectionState) error {
			if len(c.PeerCertificates) == 1 {
				if theirs, ok := c.PeerCertificates[0].PublicKey.(ed25519.PublicKey); ok && theirs.Equal(public) {
					return nil
				}
			}
			return errors.New("the other side does not have the same secret")
		},
	}, nil
}

const (
	handshakeTime = 10 * time.Second
	maxSessions   = 64 // of a listening agent at once
)

// Dial connects to a listening agent that has the secret.
func Dial(ctx context.Context, addr string, secret []byte) (io.ReadWriteCloser, error) {
	c, err := tlsConfig(secret)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	return (&tls.Dialer{Config: c}).DialContext(ctx, "tcp", addr)
}

// Listen serves those who connect and have the secret until ctx ends. ready is told the address.
func Listen(ctx context.Context, addr string, secret []byte, o ServeOptions, ready func(net.Addr), failed func(error)) error {
	c, err := tlsConfig(secret)
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	ready(l.Addr())
	var sessions sync.WaitGroup
	defer sessions.Wait()
	room := make(chan struct{}, maxSessions)
	for {
		tcp, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case room <- struct{}{}:
		default:
			tcp.Close()
			continue
		}
		sessions.Go(func() {
			defer func() { <-room }()
			defer tcp.Close()
			s := tls.Server(tcp, c)
			hs, cancel := context.WithTimeout(ctx, handshakeTime)
			defer cancel()
			err := s.HandshakeContext(hs)
			if err == nil {
				err = Serve(ctx, s, o)
			}
			if err != nil && failed != nil {
				failed(fmt.Errorf("%s: %w", tcp.RemoteAddr(), err))
			}
		})
	}
}

// Host is where an agent is.
type Host struct {
	Name    string
	Command []string // starts it, its standard input and output being the connection
	Addr    string   // or it listens there
}

// ParseHosts reads hosts as people write them: ssh:[USER@]HOST, tcp:HOST:PORT, local, or a name alone where a command is told. In a command, {host} stands
// for the name; `perf agent --stdio` is added to it.
func ParseHosts(list, agentCommand, own string) ([]Host, error) {
	var out []Host
	seen := map[string]bool{}
	for word := range strings.SplitSeq(list, ",") {
		h := Host{Name: word}
		scheme, rest, found := strings.Cut(word, ":")
		template := agentCommand
		switch {
		case word == "local" || word == "":
			h.Command = []string{own}
		case found && scheme == "tcp":
			h.Addr = rest
		case found && scheme == "ssh":
			h.Name = rest
			if template == "" {
				template = "ssh -o BatchMode=yes -o ConnectTimeout=10 {host} varve"
			}
		case template == "":
			return nil, fmt.Errorf("host %q: want ssh:[USER@]HOST, tcp:HOST:PORT or local; a name alone wants --agent-command", word)
		}
		if word == "" || h.Name == "" || strings.HasPrefix(h.Name, "-") {
			return nil, fmt.Errorf("host %q in %q: want names, separated by commas", word, list)
		}
		if h.Addr == "" && h.Command == nil {
			for _, w := range strings.Fields(template) {
				h.Command = append(h.Command, strings.ReplaceAll(w, "{host}", h.Name))
			}
		}
		if h.Command != nil {
			h.Command = append(h.Command, "perf", "agent", "--stdio")
		}
		for n, base := 2, h.Name; seen[h.Name]; n++ { // the same host twice
			h.Name = fmt.Sprintf("%s#%d", base, n)
		}
		seen[h.Name] = true
		out = append(out, h)
	}
	return out, nil
}
