package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// start runs the binary until stop, or the end of the test. ended is closed when it is over; then log is what it printed.
func (s *secured) start(args ...string) (log *bytes.Buffer, ended chan struct{}) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, binary, args...)
	log, ended = new(bytes.Buffer), make(chan struct{})
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	s.t.Cleanup(func() {
		cancel()
		<-ended
	})
	return log, ended
}

// certificates returns what list-nodes says.
func (s *secured) certificates() nodesJSON {
	s.t.Helper()
	var list nodesJSON
	if err := json.Unmarshal([]byte(must(s.t, s.dir, "-c", "./c", "list-nodes", "--json")), &list); err != nil {
		s.t.Fatal(err)
	}
	return list
}

func (s *secured) eventually(what string, fn func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(90 * time.Second); !fn(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestRotateUnderLoad: authority and keys are exchanged while a client writes and reads, and it does not notice; when its node is revoked, it ends.
func TestRotateUnderLoad(t *testing.T) {
	t.Parallel()
	s := startSecured(t)
	must(t, s.dir, "-c", "./c", "set-config", "replicas=1:1")
	must(t, s.dir, "-c", "./c", "make-cs", "-r", "cs1", "-t", "0", "-a", "127.0.0.1")
	csLog, csEnded := s.start("cs", "-r", "cs1")
	if out, errs, code := s.with(testPassword, "-c", "./other", "auth-node", "--mds", s.addr, "--node", "host2"); code != exitDone {
		t.Fatalf("exit code %d, %s%s", code, out, errs)
	}
	s.eventually("the chunk server", func() bool {
		return strings.Contains(must(t, s.dir, "-c", "./c", "stat", "--json"), `"state": "live"`)
	})
	load, loadEnded := s.start("-c", "./other", "perf", "run", "--target", "cluster:/", "--rw", "randrw", "--bs", "4k", "--qd", "2", "--jobs", "1", "--size", "4m", "--for", "10m", "--rate", "200")
	running := func() {
		t.Helper()
		select {
		case <-loadEnded:
			t.Fatalf("the load has ended:\n%s", load)
		case <-csEnded:
			t.Fatalf("the chunk server has ended:\n%s", csLog)
		default:
		}
	}
	s.eventually("the load's session", func() bool {
		running()
		var st statusJSON
		if err := json.Unmarshal([]byte(must(t, s.dir, "-c", "./c", "stat", "--json")), &st); err != nil {
			t.Fatal(err)
		}
		return len(st.Sessions) > 0 && st.Chunks > 0
	})
	must(t, s.dir, "-c", "./c", "cluster", "rotate-keys")
	must(t, s.dir, "-c", "./c", "cluster", "rotate-ca")
	s.eventually("everybody's certificates to be renewed", func() bool {
		running()
		renewed := map[string]bool{}
		for _, c := range s.certificates().Certificates {
			if c.Authority == 2 && c.Role == "node" {
				renewed[c.Node] = true
			}
		}
		return renewed["host1"] && renewed["host2"]
	})
	must(t, s.dir, "-c", "./c", "cluster", "rotate-keys")
	time.Sleep(time.Second)
	running()
	revoked := time.Now()
	must(t, s.dir, "-c", "./c", "revoke", "host2")
	s.eventually("the revoked client to be cut off", func() bool {
		var st statusJSON
		if err := json.Unmarshal([]byte(must(t, s.dir, "-c", "./c", "stat", "--json")), &st); err != nil {
			t.Fatal(err)
		}
		return len(st.Sessions) == 0
	})
	t.Logf("the session was over %v after it was revoked, three processes of this test included", time.Since(revoked).Round(time.Millisecond))
	s.eventually("the revoked client to end", func() bool {
		select {
		case <-loadEnded:
			return true
		default:
			return false
		}
	})
	select {
	case <-csEnded:
		t.Fatalf("the chunk server has ended:\n%s", csLog)
	default:
	}
	if info, err := os.Stat(filepath.Join(s.dir, "c", "trust.json")); err != nil || info.Size() == 0 {
		t.Errorf("what is known of who may speak was not kept: %v", err)
	}
}
