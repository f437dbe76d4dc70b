package links

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/test/netns"
)

const discoverPassword = "who finds it may come in"

// run runs a command of varve in the namespace of the test, with the password of the cluster on its standard input, and returns what it prints and its exit code.
func run(t *testing.T, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Getenv(netns.Binary), args...)
	cmd.Stdin = strings.NewReader(discoverPassword + "\n")
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Fatalf("varve %s: %v", strings.Join(args, " "), err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// until repeats a look until it is satisfied.
func until(t *testing.T, what string, look func() (bool, string)) {
	t.Helper()
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		ok, last := look()
		if ok {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %s", what, last)
		}
	}
}

// TestDiscover: a new node that knows a cluster's name and fingerprint joins it by multicast once that is on; one that lost its list has one again; a chunk server whose metadata server has moved
// goes on when somebody writes the new address into the list of its node; and the network between them is checked.
func TestDiscover(t *testing.T) {
	if os.Getenv(netns.Binary) == "" {
		if os.Getenv("VARVE_E2E") == "" {
			t.Skip("end-to-end tests run with VARVE_E2E=1 (make test)")
		}
		if os.Getuid() != 0 {
			t.Skip("needs root: it makes network namespaces")
		}
		netns.Again(t, 10*time.Minute)
		return
	}
	netns.Hub(t)
	dir := t.TempDir()
	cluster := filepath.Join(dir, "lake")
	m, s := netns.New(t, 1), netns.New(t, 2)
	mds := filepath.Join(dir, "mds1")
	out, code := run(t, "-c", cluster, "make-mds", "-I", "-a", m.Host()+":2510", "-r", mds, "--password-fd", "0", "--node", "host1")
	print := regexp.MustCompile(`SHA256:\S+`).FindString(out)
	if code != 0 || print == "" {
		t.Fatalf("make-mds: exit code %d: %s", code, out)
	}
	server := startProcess(t, m, dir+"/mds1.log", "mds", "-r", mds)
	far := filepath.Join(dir, "far", "lake") // the cluster's name is all that is known there
	join := []string{"-c", far, "auth-node", "--node", "far", "--password-fd", "0"}
	out, code = run(t, join...)
	if code != 3 || !strings.Contains(out, "mdns: nobody of the cluster answered") || !strings.Contains(out, "bs.list: there is no") {
		t.Errorf("without any way to find it: exit code %d: %s", code, out)
	}
	until(t, "a leader that takes settings", func() (bool, string) {
		out, code := run(t, "-c", cluster, "set-config", "net.mdns=on")
		return code == 0, out
	})
	until(t, "the new node to find the cluster, and to give no proof of the password to who only says that he is of it", func() (bool, string) {
		out, code := run(t, join...)
		return code == 4 && strings.Contains(out, "--fingerprint") && strings.Contains(out, m.Host()+":2510 by mdns"), out
	})
	until(t, "auth-node by multicast", func() (bool, string) {
		out, code := run(t, append(join, "--fingerprint", print)...)
		return code == 0, out
	})
	if err := os.Remove(filepath.Join(far, "bs.list")); err != nil {
		t.Fatal(err)
	}
	until(t, "the cluster to be found without a list", func() (bool, string) {
		out, code := run(t, "-c", far, "stat")
		return code == 0, out
	})
	if b, err := os.ReadFile(filepath.Join(far, "bs.list")); err != nil || !strings.Contains(string(b), m.Host()+":2510\n") {
		t.Errorf("the node's list is now %q, %v", b, err)
	}

	other := filepath.Join(dir, "other", "lake")
	until(t, "auth-node", func() (bool, string) {
		out, code := run(t, "-c", other, "auth-node", "--mds", m.Host(), "--node", "other", "--password-fd", "0")
		return code == 0, out
	})
	list := filepath.Join(other, "bs.list")
	at := filepath.Join(dir, "cs1")
	if out, code := run(t, "-c", cluster, "stat", "--json"); code != 0 {
		t.Fatalf("stat: exit code %d: %s", code, out)
	}
	varve(t, s, other, "make-cs", "-r", at, "-t", "0", "-a", s.Host()+":2511", "--memory", "128M")
	startProcess(t, s, dir+"/cs1.log", "-c", other, "cs", "-r", at)
	live := func() (bool, string) {
		out, _ := run(t, "-c", cluster, "stat", "--json")
		var st struct {
			CS []struct{ State string } `json:"cs"`
		}
		err := json.Unmarshal([]byte(out), &st)
		return err == nil && len(st.CS) == 1 && st.CS[0].State == "live", out
	}
	until(t, "the chunk server to serve", live)
	until(t, "check-net to find the network sound", func() (bool, string) { // it measures for 50 ms, in which this machine may stand still
		out, code := run(t, "-c", far, "check-net", "--json", "--for", "50ms")
		var report struct {
			Members []struct{ Name, Failed string }
			Pairs   []struct {
				From, To, Failed string
				BytesPerS        float64 `json:"bytes_per_s"`
				PathMTU          int     `json:"path_mtu"`
			}
		}
		if err := json.Unmarshal([]byte(out[:strings.LastIndexByte(out, '}')+1]), &report); err != nil || code > 1 {
			t.Fatalf("check-net: exit code %d, %v: %s", code, err, out)
		}
		sound := len(report.Members) == 3 && len(report.Pairs) == 6
		for _, p := range report.Pairs {
			sound = sound && p.Failed == "" && p.BytesPerS > 0 && (p.To == "this host" || p.PathMTU == 1500)
		}
		return sound, out
	})

	if err := server.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = server.Wait() // it was told to end
	startProcess(t, m, dir+"/mds1.log", "mds", "-r", mds, "-a", m.Host()+":2520")
	until(t, "the list that the metadata server keeps", func() (bool, string) {
		b, err := os.ReadFile(filepath.Join(cluster, "bs.list"))
		return err == nil && strings.Contains(string(b), m.Host()+":2520\n") && !strings.Contains(string(b), ":2510"), string(b)
	})
	if err := os.WriteFile(list, []byte("# moved\n"+m.Host()+":2520\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	until(t, "the chunk server to go on", live)
}

// startProcess starts a process in a namespace, which dies with it.
func startProcess(t *testing.T, s *netns.Space, logFile string, args ...string) *exec.Cmd {
	t.Helper()
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(os.Getenv(netns.Binary), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	s.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			if b, err := os.ReadFile(logFile); err == nil {
				t.Logf("%s:\n%s", filepath.Base(logFile), b)
			}
		}
	})
	return cmd
}
