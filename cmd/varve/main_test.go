package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var binary string // built once

func TestMain(m *testing.M) { os.Exit(build(m)) }

func build(m *testing.M) int {
	time.Local = time.UTC // golden output
	os.Unsetenv("VARVE_CLUSTER")
	dir, err := os.MkdirTemp("", "varve-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "varve")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build varve: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// varve runs the binary and returns what it printed and its exit code.
func varve(t *testing.T, dir string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Dir = dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("varve %q: %v", args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must runs the binary and fails the test if that fails.
func must(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, errs, code := varve(t, dir, args...)
	if code != exitDone {
		t.Fatalf("varve %q: exit code %d\n%s%s", args, code, out, errs)
	}
	return out
}

// TestExitCodes runs command lines that end at once. An error is one line.
func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	gone := filepath.Join(dir, "gone")
	if err := (&clusterDir{path: gone, name: "gone", uuid: [16]byte{1}, mds: []string{"127.0.0.1:1"}}).write(); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "full", "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args string
		code int
		want string // part of standard error, or of standard output with code 0
	}{
		{"", 0, "journal"},
		{"--help", 0, "make-mds"},
		{"version", 0, "varve " + version},
		{"version --json", 0, `"version": "` + version + `"`},
		{"frobnicate", 2, "frobnicate"},
		{"version extra", 2, "extra"},
		{"stat --frob", 2, "see varve stat --help"},
		{"stat", 2, "-c NAME"},
		{"stat -c no/such", 1, "make-mds -I"},
		{"stat -c bad!name", 2, "bad!name"},
		{"stat -c " + gone, 3, "none of its 1 metadata servers answers"},
		{"list-services -c " + gone, 3, "127.0.0.1:1"},
		{"check-net -c " + gone, 3, "none of its 1 metadata servers answers"},
		{"check-net -c " + gone + " --for 1m", 2, "want 10ms to 10s"},
		{"check-net -c " + gone + " --class scrub", 2, "want guest, replication or repair"},
		{"check-net -c " + gone + " --pairs -1", 2, "--pairs -1"},
		{"discover -c bad!name", 2, "bad!name"},
		{"journal", 2, "one of the commands above"},
		{"journal cat", 2, "-r DIR"},
		{"journal cat -c " + gone, 3, "unavailable"},
		{"journal cat -r " + dir, 1, "holds no journal"},
		{"journal replay --to yesterday -r .", 2, "no index and no time"},
		{"make-mds -I -c c/new -a 127.0.0.1:7 -r m", 2, "--insecure"},
		{"make-mds -I -c c/new -a 127.0.0.1:7 -r m --password-fd 9999", 2, "--password-fd 9999"},
		{"make-mds -I -c c/new -a 127.0.0.1:7 -r m --password-fd 0 --insecure", 2, "has no password"},
		{"make-mds -c c/new -a 127.0.0.1:7 -r m --insecure", 2, "a new cluster (-I)"},
		{"auth-node -c " + gone + " --role boss --password-fd 0", 2, "node, admin or reader"},
		{"auth-node -c no/such --password-fd 0", 3, "--mds"},
		{"revoke", 2, "NODE|SERIAL is missing"},
		{"make-mds -I -c c/new -a 127.0.0.1:7", 2, "-r DIR"},
		{"make-mds -I --insecure -c c/new -a 0.0.0.0 -r m", 1, "IP that the other servers reach"},
		{"make-mds -I --insecure -c c/new -a 127.0.0.1:7 -r full", 4, "not empty"},
		{"make-mds -I --insecure -c " + gone + " -a 127.0.0.1:7 -r m", 4, "no longer find it"},
		{"make-mds -I --insecure -c c/made -a 127.0.0.1:7 -r m", 0, "varve mds -r m"},
		{"make-cs -c " + gone + " -r cs", 2, "-t TIER"},
		{"make-cs -c " + gone + " -r cs -t 4", 2, "0 to 3"},
		{"mds", 2, "-r DIR"},
		{"mds -r " + dir, 1, "not the directory of a metadata server"},
		{"cs -r " + dir, 1, "not the directory of a chunk server"},
		{"mount", 2, "DIR is missing"},
		{"mount x y", 2, "one argument too many"},
		{"mount x -o cache=/ssd", 2, "go together"},
		{"mount x -o cache=ssd,cachesize=100", 2, "absolute"},
		{"mount x -o cache=/ssd,cachesize=1", 2, "16 to"},
		{"cache stat " + dir, 2, "not on a varve mount"},
		{"cache resize x 1", 2, "16 to"},
		{"mount x -o at=12", 2, "later release"},
		{"mount x -o transport=tcp", 2, "want auto, dev or uring"},
		{"mount x -o frob", 2, "unknown"},
		{"umount " + dir, 1, "findmnt"},
		{"get-attr " + dir, 2, "not on a varve mount"},
		{"get-attr no/such", 1, "no such file"},
		{"set-attr x tier=9", 2, "0 to 3"},
		{"set-attr x failure-domain=moon", 2, "disk, host, rack"},
		{"set-attr x replicas=2:3", 2, "NORM[:MIN]"},
		{"dev up --cache /ssd", 2, "go together"},
		{"dev up --transport tcp", 2, "want auto, dev or uring"},
		{"dev up --mds 2", 2, "1, 3 or 5"},
		{"dev up --cs 1 --replicas 3:2", 2, "at least 2 chunk servers"},
		{"dev up --dir full", 4, "not empty"},
		{"dev down --dir no/such", 1, "holds no dev cluster"},
		{"dev status --dir no/such", 1, "holds no dev cluster"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			out, errs, code := varve(t, dir, strings.Fields(tc.args)...)
			got := errs
			if tc.code == exitDone {
				got = out
			} else if strings.Count(errs, "\n") != 1 || !strings.HasPrefix(errs, "varve: ") {
				t.Errorf("the error is not one line: %q", errs)
			}
			if code != tc.code || !strings.Contains(got, tc.want) {
				t.Errorf("exit code %d, want %d; %q, want it to have %q", code, tc.code, got, tc.want)
			}
		})
	}
}

// TestHelpNamesOnlyWhatWorks: verbs and flags of later releases are not listed.
func TestHelpNamesOnlyWhatWorks(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"dev", "up", "--help"}, {"mount", "--help"}, {"make-mds", "--help"}} {
		out := must(t, t.TempDir(), args...)
		for _, later := range []string{"snapshot", "completion"} {
			if strings.Contains(out, later) {
				t.Errorf("varve %q names %s:\n%s", args, later, out)
			}
		}
	}
}
