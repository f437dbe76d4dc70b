package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"varve/test/ports"
)

// secured is a metadata server of a cluster with security, in a process of its own.
type secured struct {
	t    *testing.T
	dir  string
	log  *bytes.Buffer
	addr string
}

const testPassword = "let nobody in"

// with runs the binary with a password on its standard input.
func (s *secured) with(password string, args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append(args, "--password-fd", "0")...)
	cmd.Dir = s.dir
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(password+"\nnot this\n"), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatalf("varve %q: %v", args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func startSecured(t *testing.T) *secured {
	t.Helper()
	s := &secured{t: t, dir: t.TempDir(), log: new(bytes.Buffer)}
	addr := ports.Hold(t)
	s.addr = addr
	if _, errs, code := s.with("short", "-c", "./c", "make-mds", "-I", "-a", addr, "-r", "mds1", "--node", "host1"); code != exitUsage || !strings.Contains(errs, "at least 8") {
		t.Fatalf("a short password: exit code %d, %s", code, errs)
	}
	out, errs, code := s.with(testPassword, "-c", "./c", "make-mds", "-I", "-a", addr, "-r", "mds1", "--node", "host1")
	if code != exitDone || !strings.Contains(out, "--fingerprint SHA256:") {
		t.Fatalf("exit code %d, %s%s", code, out, errs)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, binary, "mds", "-r", "mds1")
	cmd.Dir, cmd.Stderr = s.dir, s.log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		if strings.Contains(s.log.String(), testPassword) {
			t.Error("the server has logged the password")
		}
	})
	deadline := time.Now().Add(60 * time.Second)
	for {
		out, errs, code := varve(t, s.dir, "-c", "./c", "list-nodes")
		if code == exitDone {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("exit code %d, %s%s", code, out, errs)
		}
	}
}

// TestAuthNode: nodes get credentials with the password only, keep them while they are valid, and lose them when they are revoked.
func TestAuthNode(t *testing.T) {
	t.Parallel()
	s := startSecured(t)
	for name, mode := range map[string]os.FileMode{"c/node.key": 0o600, "c/admin.key": 0o600, "mds1/cluster.key": 0o600} {
		info, err := os.Stat(filepath.Join(s.dir, name))
		if err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	join := []string{"-c", "./other", "auth-node", "--mds", s.addr, "--node", "host2"}
	if out, errs, code := s.with("let everybody in", join...); code != exitFailed || !strings.Contains(errs, "wrong password") || strings.Contains(out+errs, "everybody") {
		t.Errorf("a wrong password: exit code %d, %s%s", code, out, errs)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "other", "node.crt")); err == nil {
		t.Error("a certificate for a wrong password")
	}
	if out, errs, code := s.with(testPassword, join...); code != exitDone || !strings.Contains(out, "node host2 has credentials of role node") {
		t.Fatalf("exit code %d, %s%s", code, out, errs)
	}
	before, err := os.ReadFile(filepath.Join(s.dir, "other", "node.crt"))
	if err != nil {
		t.Fatal(err)
	}
	if out := must(t, s.dir, "-c", "./other", "auth-node", "--node", "host2"); !strings.Contains(out, "already has credentials") { // asks nothing
		t.Error(out)
	}
	if out, errs, code := s.with(testPassword, "-c", "./other", "auth-node", "--role", "reader", "--node", "host2"); code != exitDone {
		t.Fatalf("exit code %d, %s%s", code, out, errs)
	}
	var list nodesJSON
	if err := json.Unmarshal([]byte(must(t, s.dir, "-c", "./other", "list-nodes", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	have := ""
	for _, c := range list.Certificates {
		have += c.Node + "/" + c.Role + " "
	}
	for _, want := range []string{"host1/node ", "host1/admin ", "host2/node ", "host2/reader "} {
		if strings.Count(have, want) != 1 {
			t.Errorf("certificates %s", have)
		}
	}
	if _, errs, code := varve(t, s.dir, "-c", "./other", "revoke", "host1"); code != exitFailed || !strings.Contains(errs, "admin") {
		t.Errorf("a node may revoke: exit code %d, %s", code, errs)
	}
	must(t, s.dir, "-c", "./c", "revoke", "host2")
	if _, errs, code := varve(t, s.dir, "-c", "./other", "stat"); code == exitDone || !strings.Contains(errs, "revoked") {
		t.Errorf("a revoked node: exit code %d, %s", code, errs)
	}
	if out, errs, code := s.with(testPassword, "-c", "./other", "auth-node", "--node", "host2"); code != exitDone || strings.Contains(out, "already") {
		t.Errorf("a revoked node comes back: exit code %d, %s%s", code, out, errs)
	}
	if after, err := os.ReadFile(filepath.Join(s.dir, "other", "node.crt")); err != nil || bytes.Equal(before, after) {
		t.Errorf("the revoked certificate is still there: %v", err)
	}
	if out, errs, code := s.with("quite another one", "-c", "./c", "cluster", "password"); code != exitDone {
		t.Fatalf("exit code %d, %s%s", code, out, errs)
	}
	must(t, s.dir, "-c", "./c", "cluster", "rotate-ca")
	if _, errs, code := varve(t, s.dir, "-c", "./c", "cluster", "rotate-ca", "--retire"); code != exitRefused || !strings.Contains(errs, "admin/host1") || !strings.Contains(errs, "node/host2") {
		t.Errorf("nodes would be cut off: exit code %d, %s", code, errs)
	}
	if _, errs, code := varve(t, s.dir, "-c", "./c", "cluster", "rotate-ca", "--retire", "--force"); code != exitRefused || !strings.Contains(errs, "auth-node --role admin --force") {
		t.Errorf("who asks would be cut off: exit code %d, %s", code, errs)
	}
	must(t, s.dir, "-c", "./c", "cluster", "rotate-keys")
	if out, errs, code := s.with("quite another one", "-c", "./other", "auth-node", "--force", "--node", "host2"); code != exitDone {
		t.Errorf("the new password, after rotations: exit code %d, %s%s", code, out, errs)
	}
	if out := must(t, s.dir, "-c", "./other", "list-nodes"); !strings.Contains(out, "revoked 2") {
		t.Errorf("%s", out)
	}
	// With one of the new generation the administrator retires the old one, and whoever has none of the new is told at once what to do.
	if out, errs, code := s.with("quite another one", "-c", "./c", "auth-node", "--role", "admin", "--force", "--node", "host1"); code != exitDone {
		t.Fatalf("exit code %d, %s%s", code, out, errs)
	}
	must(t, s.dir, "-c", "./c", "cluster", "rotate-ca", "--retire", "--force")
	if err := os.Rename(filepath.Join(s.dir, "other", "node.crt"), filepath.Join(s.dir, "other", "node.away")); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := varve(t, s.dir, "-c", "./other", "list-nodes"); code != exitUnreachable || !strings.Contains(errs, "auth-node --force") {
		t.Errorf("a retired certificate: exit code %d, %s", code, errs)
	}
}
