package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestAttributes: data that is there follows the attributes, while it can be read and written, and whatif says what a loss would mean before and after.
func TestAttributes(t *testing.T) {
	need(t)
	t.Parallel() // it waits more than it works
	c := up(t, 1, 4, 1, "2:1")
	path := filepath.Join(c.mounts[0], "disk.img")
	data := make([]byte, 70<<20) // two chunks
	r := rand.NewChaCha8([32]byte{1})
	r.Read(data)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	on := func() (all [][]string) {
		t.Helper()
		var at struct {
			Chunks []struct {
				Replicas []struct {
					Server  string
					Joining bool
				}
			}
		}
		if err := json.Unmarshal([]byte(c.must(30*time.Second, "get-attr", "--json", path)), &at); err != nil || len(at.Chunks) != 2 {
			t.Fatalf("get-attr: %v, %+v", err, at)
		}
		for _, k := range at.Chunks {
			var servers []string
			for _, x := range k.Replicas {
				if x.Joining {
					x.Server += " joining"
				}
				servers = append(servers, x.Server)
			}
			all = append(all, servers)
		}
		return all
	}
	until := func(what string, replicas int, ok func(servers []string) bool) {
		t.Helper()
		c.wait(3*time.Minute, what, func() error {
			for _, servers := range on() {
				if len(servers) != replicas || !ok(servers) {
					return fmt.Errorf("replicas are %v", on())
				}
			}
			return nil
		})
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%s: the file has changed: %v", what, err)
		}
		for i := range 50 { // through whatever moves
			b := fmt.Appendf(nil, "%s %d", what, i)
			off := r.Uint64() % uint64(len(data)-len(b))
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(b, int64(off)); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			copy(data[off:], b)
		}
	}
	settled := func(servers []string) bool {
		return !slices.ContainsFunc(servers, func(s string) bool { return strings.Contains(s, "joining") })
	}
	lose := func(servers ...string) (gone uint64, code int) {
		t.Helper()
		c.wait(3*time.Minute, "the cluster to be whole", c.healthy) // the writes through what moves may have cost a replica
		out, err := c.varve(30*time.Second, append([]string{"-c", c.name(), "--json", "whatif", "lose"}, servers...)...)
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		var v struct {
			Gone  uint64 `json:"chunks_gone"`
			Moves uint64 `json:"replicas_to_rebuild"`
		}
		if jerr := json.NewDecoder(bytes.NewReader([]byte(out))).Decode(&v); jerr != nil {
			t.Fatalf("whatif: %v\n%s", jerr, out)
		}
		if exit != nil {
			code = exit.ExitCode()
		}
		return v.Gone, code
	}
	until("two replicas", 2, settled)
	if gone, code := lose("cs4"); gone != 0 || code != 0 {
		t.Errorf("without cs4 %d chunks are gone, exit code %d", gone, code)
	}
	c.must(30*time.Second, "set-attr", c.mounts[0], "prefer=host4")
	until("a replica on host4", 2, func(servers []string) bool { return slices.Contains(servers, "cs4") })
	c.must(30*time.Second, "set-attr", c.mounts[0], "replicas=3:2")
	until("three replicas", 3, settled)
	c.must(30*time.Second, "set-attr", c.mounts[0], "replicas=1:1")
	until("one replica", 1, func(servers []string) bool { return servers[0] == "cs4" })
	if gone, code := lose("cs4"); gone != 2 || code != 4 {
		t.Errorf("without cs4 %d chunks are gone, exit code %d", gone, code)
	}
	c.must(30*time.Second, "set-attr", c.mounts[0], "replicas=inherit", "prefer=inherit")
	until("two replicas again", 2, settled)
	if gone, code := lose("host4"); gone != 0 || code != 0 {
		t.Errorf("without host4 %d chunks are gone, exit code %d", gone, code)
	}
}
