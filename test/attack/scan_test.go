package attack

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/wire/msg"
	"varve/test/netns"
)

// meant are all sockets at which processes of varve wait for somebody, and who is meant to come. What is not here must not be there.
var meant = []struct {
	process string // prefix of its name
	kind    string // tcp, udp, unix
	name    string // prefix of a name
	who     string
}{
	{"mds", "tcp", "", "members, by certificates; machines that join, by the password"},
	{"cs", "tcp", "", "members, by certificates"},
	{"cs", "unix", "@varve/", "mounts of the same user or root on this host, by SO_PEERCRED: descriptors of chunk files"},
	{"mount", "unix", "@varve/", "the same user or root on this host, by SO_PEERCRED: captures, the cache"},
	{"nbd", "unix", "/", "whom the socket's mode lets"},
	{"vhost", "unix", "/", "whom the socket's mode lets"},
	{"agent", "tcp", "", "who has the secret"},
}

// listening is one socket at which a process waits.
type listening struct {
	p          *process
	kind, name string
	packets    int // type of a UNIX socket
}

func (l listening) String() string { return l.p.name + " " + l.kind + " " + l.name }

// sockets returns the inodes of the sockets that a process has.
func (p *process) sockets() (map[string]bool, error) {
	all := make(map[string]bool)
	dir := fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid)
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if to, err := os.Readlink(filepath.Join(dir, n.Name())); err == nil {
			if inode, ok := strings.CutPrefix(to, "socket:["); ok {
				all[strings.TrimSuffix(inode, "]")] = true
			}
		}
	}
	return all, nil
}

// listens returns where a process waits for others, as the kernel says.
func (p *process) listens() (all []listening, err error) {
	own, err := p.sockets()
	if err != nil {
		return nil, err
	}
	table := func(kind string, each func(f []string)) error {
		f, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", p.cmd.Process.Pid, kind))
		if errors.Is(err, os.ErrNotExist) {
			return nil // no IPv6
		}
		if err != nil {
			return err
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		lines.Scan() // the heading
		for lines.Scan() {
			each(strings.Fields(lines.Text()))
		}
		return lines.Err()
	}
	for _, kind := range []string{"tcp", "tcp6", "udp", "udp6", "raw", "raw6"} {
		if err := table(kind, func(f []string) {
			if len(f) < 10 || !own[f[9]] || kind[:3] == "tcp" && f[3] != "0A" {
				return
			}
			at := strings.LastIndex(f[1], ":")
			port, err := strconv.ParseUint(f[1][at+1:], 16, 16)
			if err == nil && port != 0 {
				all = append(all, listening{p, strings.TrimSuffix(kind, "6"), fmt.Sprint(":", port), 0})
			}
		}); err != nil {
			return nil, err
		}
	}
	return all, table("unix", func(f []string) {
		if len(f) == 8 && own[f[6]] && f[3] == "00010000" {
			kind, err := strconv.ParseUint(f[4], 16, 16)
			if err == nil {
				all = append(all, listening{p, "unix", f[7], int(kind)})
			}
		}
	})
}

// more starts what else of varve listens: servers of images, and an agent that generates load.
func (c *cluster) more(t *testing.T, n int) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // so that it is the socket's mode that keeps others out
		t.Fatal(err)
	}
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("a secret of the agents, which nobody guesses"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := netns.New(t, n)
	c.others = append(c.others,
		start(t, s, "nbd", "", filepath.Join(dir, "nbd.log"), "-c", c.dir, "nbd", "--read-only", "--socket", filepath.Join(dir, "nbd.sock"), "image"),
		start(t, s, "vhost", "", filepath.Join(dir, "vhost.log"), "-c", c.dir, "vhost", "--read-only", "--socket", filepath.Join(dir, "vhost.sock"), "image"),
		start(t, s, "agent", s.Host(), filepath.Join(dir, "agent.log"), "perf", "agent", "--listen", s.Host()+":2599", "--secret-file", secret))
}

// scan looks at all sockets of all processes, as the attacker and as another user of the same host.
func (a *attacker) scan() {
	t := a.t
	var all []listening
	for _, p := range slices.Concat(a.c.servers, []*process{a.c.mounted}, a.c.others) {
		want := 0
		for _, m := range meant {
			if strings.HasPrefix(p.name, m.process) {
				want++
			}
		}
		var found []listening
		for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			var err error
			if found, err = p.listens(); err != nil {
				t.Error(err)
				break
			}
			if len(found) > 0 || want == 0 || time.Now().After(end) {
				break
			}
		}
		if len(found) == 0 && p != a.c.mounted { // a mount makes its sockets when it is asked for them
			t.Errorf("%s listens nowhere: the scan sees nothing", p.name)
		}
		all = append(all, found...)
	}
	var wg sync.WaitGroup
	for _, l := range all {
		at := slices.IndexFunc(meant, func(m struct{ process, kind, name, who string }) bool {
			return strings.HasPrefix(l.p.name, m.process) && l.kind == m.kind && strings.HasPrefix(l.name, m.name)
		})
		if at < 0 {
			t.Errorf("%v is not meant to be there", l)
			continue
		}
		t.Logf("%v: for %s", l, meant[at].who)
		switch l.kind {
		case "tcp":
			host := l.p.space.Host()
			for _, k := range a.knocks() {
				wg.Go(func() {
					if err := a.knock(host+l.name, k.sent); err != nil {
						t.Errorf("%v, which hears %s: %v", l, k.name, err)
					}
				})
			}
			wg.Go(func() {
				if err := a.knockTLS(host + l.name); err != nil {
					t.Errorf("%v, which hears TLS without a certificate: %v", l, err)
				}
			})
		case "unix":
			wg.Go(func() {
				if err := knockUnix(l); err != nil {
					t.Errorf("%v, of another user: %v", l, err)
				}
			})
		}
	}
	wg.Wait()
}

type knocking struct {
	name string
	sent []byte
}

func (a *attacker) knocks() []knocking {
	return []knocking{
		{"nothing", nil},
		{"noise", []byte("\x07\x00hello?\r\n\r\n\r\n")},
		{"a hello", hello(&msg.Hello{Role: msg.Hello_ADMIN})},
		{"raft", append([]byte("VRFT"), a.c.uuid[:]...)},
		{"HTTP", []byte("GET / HTTP/1.0\r\n\r\n")},
		{"the client of NBD", append([]byte{0, 0, 0, 3}, "IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00"...)},
	}
}

// knock says something, and wants nothing but alerts back.
func (a *attacker) knock(addr string, sent []byte) error {
	c, err := a.dial(addr)
	if err != nil {
		return err
	}
	defer c.Close()
	_, _ = c.Write(sent)
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil { // how long it may stay, the attacks of strangers see
		return err
	}
	if err := ends(c, 3); err != nil && !strings.HasPrefix(err.Error(), stays) {
		return err
	}
	return nil
}

func (a *attacker) knockTLS(addr string) error {
	for _, proto := range []string{"", secure.ProtoControl, secure.ProtoData, pki.ALPN} {
		c, err := a.dial(addr)
		if err != nil {
			return err
		}
		defer c.Close()
		conf := &tls.Config{InsecureSkipVerify: true}
		if proto != "" {
			conf.NextProtos = []string{proto}
		}
		tc := tls.Client(c, conf)
		if tc.Handshake() != nil {
			continue
		}
		if err := mute(tc, hello(&msg.Hello{Role: msg.Hello_ADMIN})); err != nil {
			return err
		}
	}
	return nil
}

// nobody is a user who has nothing to do with varve.
const nobody = 65534

// knockUnix connects to a UNIX socket as another user, and wants neither an answer nor a descriptor.
func knockUnix(l listening) error {
	var ns *os.File
	if l.p.space != nil {
		var err error
		if ns, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", l.p.cmd.Process.Pid)); err != nil {
			return err
		}
		defer ns.Close()
	}
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread goes with the goroutine
		failed <- func() error {
			if ns != nil {
				if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
					return err
				}
			}
			fd, err := unix.Socket(unix.AF_UNIX, l.packets|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}); err != nil {
				return err
			}
			// Of this thread alone, which package syscall does not do.
			if _, _, e := syscall.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); e != 0 {
				return e
			}
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: l.name})
			if errors.Is(err, unix.EACCES) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("connect: %w", err)
			}
			_, _ = unix.Write(fd, make([]byte, 64)) // it may be closed already
			b, oob := make([]byte, 1<<16), make([]byte, 1<<10)
			n, oobn, _, _, err := unix.Recvmsg(fd, b, oob, unix.MSG_CMSG_CLOEXEC)
			if oobn > 0 || n > 0 && !bytes.Contains(b[:n], []byte("may not")) {
				return fmt.Errorf("%q and %d bytes of descriptors came", b[:n], oobn)
			}
			if errors.Is(err, unix.EAGAIN) {
				return errors.New("it waits for more")
			}
			return nil // the end, or a reset
		}()
	}()
	return <-failed
}
