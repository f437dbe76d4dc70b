package e2e

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/test/nsx"
)

// replayed is what `varve journal replay --json` prints.
type replayed struct {
	Index  uint64 `json:"index"`
	Digest string `json:"digest"`
	Tree   []struct {
		Path  string `json:"path"`
		Type  string `json:"type"`
		Mode  string `json:"mode"`
		Nlink uint64 `json:"nlink"`
		Size  int64  `json:"size"`
	} `json:"tree"`
}

// lines returns what of the tree a mount shows too.
func (r *replayed) lines() map[string]string {
	out := make(map[string]string)
	for _, f := range r.Tree {
		size := f.Size
		if f.Type != "regular" {
			size = 0 // filesystems differ in what they say of others
		}
		out[f.Path] = fmt.Sprintf("mode %s nlink %d size %d", strings.TrimLeft(f.Mode, "0"), f.Nlink, size)
	}
	return out
}

func (c *cluster) digest(addr string, atLeast uint64) (uint64, string, error) {
	r := new(msg.StateDigestReply)
	err := c.ask(addr, &msg.Hello{Role: msg.Hello_ADMIN}, wire.StateDigest, &msg.StateDigest{AtLeast: atLeast}, r)
	return r.Index, hex.EncodeToString(r.Digest), err
}

// sameDigests expects the same state on all metadata servers at one index.
func (c *cluster) sameDigests() {
	c.t.Helper()
	c.wait(time.Minute, "all metadata servers to have the same state", func() error {
		first, digest := uint64(0), ""
		for i, addr := range c.metaAddrs() {
			index, d, err := c.digest(addr, first)
			if err != nil {
				return err
			}
			if i == 0 {
				first, digest = index, d
			} else if index != first {
				return fmt.Errorf("%s is at index %d, the first at %d", addr, index, first)
			} else if d != digest {
				c.t.Fatalf("at index %d %s has digest %s, the first %s", index, addr, d, digest)
			}
		}
		return nil
	})
}

// TestHistory notes index and digest of the live state while random namespace operations run, and expects
// the replay of each journal, live and stopped, to give the same digest at each index.
func TestHistory(t *testing.T) {
	need(t)
	c := up(t, 3, 3, 1, "3:2")
	type point struct {
		index  uint64
		digest string
		files  map[string]string
	}
	var points []point
	dir := filepath.Join(c.mounts[0], "history")
	for round := range 6 {
		if err := os.MkdirAll(filepath.Join(dir, strconv.Itoa(round)), 0o755); err != nil {
			t.Fatal(err)
		}
		err := nsx.Run(nsx.Options{Reference: t.TempDir(), Dirs: []string{filepath.Join(dir, strconv.Itoa(round))}, Ops: 150, Seed: uint64(round)})
		if err != nil {
			t.Fatal(err)
		}
		var index uint64
		var digest string
		for _, addr := range c.metaAddrs() { // a follower may not have applied the last event yet
			i, d, err := c.digest(addr, 0)
			if err != nil {
				t.Fatal(err)
			}
			if i > index {
				index, digest = i, d
			}
		}
		points = append(points, point{index: index, digest: digest, files: listing(t, c.mounts[0])})
	}
	check := func(where ...string) {
		t.Helper()
		for _, p := range points {
			args := append([]string{"journal", "replay", "--json", "--to", strconv.FormatUint(p.index, 10)}, where...)
			var r replayed
			if err := json.Unmarshal([]byte(c.must(60*time.Second, args...)), &r); err != nil {
				t.Fatal(err)
			}
			if r.Index != p.index || r.Digest != p.digest {
				t.Errorf("varve %v: digest %s at %d, the live server had %s at %d", args, r.Digest, r.Index, p.digest, p.index)
			}
			got := r.lines()
			for path := range got {
				if got[path] != p.files[path] {
					t.Fatalf("varve %v: %.200s is %q, the mount showed %q", args, path, got[path], p.files[path])
				}
			}
			if len(got) != len(p.files) {
				t.Errorf("varve %v: %d files, the mount showed %d", args, len(got), len(p.files))
			}
		}
	}
	c.sameDigests() // whoever is asked has the last point
	check("-c", c.name())
	last, middle := strconv.FormatUint(points[len(points)-1].index, 10), strconv.FormatUint(points[2].index, 10)
	questions := [][]string{
		{"cat", "--to", last}, {"cat", "--to", last, "--json", "--path", "/history/3"}, {"grep", "rename", "--from", middle, "--to", last},
		{"diff", middle, last}, {"diff", middle, last, "--json"}, {"blame", "/history/3"}, {"stats", "--to", last, "--json"},
	}
	var answers []string
	for _, q := range questions {
		answers = append(answers, c.must(60*time.Second, append([]string{"-c", c.name(), "journal"}, q...)...))
	}
	if out := c.must(60*time.Second, "-c", c.name(), "journal", "verify"); !strings.Contains(out, "3 metadata servers compared") {
		t.Errorf("journal verify of the running cluster did not compare all servers:\n%s", out)
	}
	c.must(60*time.Second, "-c", c.name(), "explain", "cs1")
	c.must(3*time.Minute, "dev", "down", "--dir", c.dir)
	for i, q := range questions {
		if got := c.must(60*time.Second, append([]string{"journal", "-r", filepath.Join(c.dir, "mds2")}, q...)...); got != answers[i] {
			t.Errorf("varve journal %v: the stopped server's journal answers %d bytes, the running cluster's %d:\n%.2000s\nand\n%.2000s", q, len(got), len(answers[i]), got, answers[i])
		}
	}
	for i := range c.mds {
		check("-r", filepath.Join(c.dir, fmt.Sprintf("mds%d", i+1)))
		c.must(60*time.Second, "journal", "verify", "-r", filepath.Join(c.dir, fmt.Sprintf("mds%d", i+1)))
	}
	t.Logf("%d points of the journal replayed on the running cluster and on %d stopped servers", len(points), c.mds)
}

// TestTail follows the journal over kills of the leader: no event is missing or printed twice.
func TestTail(t *testing.T) {
	need(t)
	t.Parallel() // it waits more than it works
	c := up(t, 3, 1, 1, "1:1")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	tail := exec.CommandContext(ctx, varveBinary, "-c", c.name(), "journal", "tail", "-f", "-n", "1", "--json")
	out, err := tail.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := tail.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = tail.Wait() // killed
	}()
	made, begun := make(chan string), make(chan struct{})
	go func() {
		defer close(made)
		in, next := bufio.NewScanner(out), uint64(0)
		in.Buffer(nil, 1<<20)
		for in.Scan() {
			var ev struct {
				Index uint64 `json:"index"`
				Kind  string `json:"kind"`
				Body  struct {
					Name string `json:"name"`
				} `json:"body"`
			}
			if err := json.Unmarshal(in.Bytes(), &ev); err != nil {
				t.Errorf("%s: %v", in.Bytes(), err)
				return
			}
			if next == 0 {
				close(begun)
			} else if ev.Index != next {
				t.Errorf("index %d follows %d", ev.Index, next-1)
			}
			next = ev.Index + 1
			if ev.Kind == "create" {
				made <- ev.Body.Name
			}
		}
	}()
	select {
	case <-begun: // what is there already; all that follows is shown
	case <-time.After(time.Minute):
		t.Fatal("the tail shows nothing")
	}
	for i := range 30 {
		name := fmt.Sprint("f", i)
		if err := os.WriteFile(filepath.Join(c.mounts[0], name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if i%10 == 5 {
			leader := c.mustLead()
			old := c.kill(leader)
			defer c.waitRestart(leader, old)
		}
		select {
		case got, ok := <-made:
			if !ok || got != name {
				t.Fatalf("the tail shows the creation of %q, want %q", got, name)
			}
		case <-time.After(time.Minute):
			t.Fatalf("the tail does not show the creation of %s", name)
		}
	}
}

// listing is the tree under a mount point, in the form of replayed.lines.
func listing(t *testing.T, mount string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(mount, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			st.Size = 0
		}
		files["/"+strings.TrimPrefix(strings.TrimPrefix(path, mount), "/")] =
			fmt.Sprintf("mode %o nlink %d size %d", st.Mode&0o7777, st.Nlink, st.Size)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
