package e2e

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/test/nsx"
)

// replayed is what `varve journal replay --json` prints.
type replayed struct {
	Index  uint64 `json:"index"`
	Digest string `json:"digest"`
}

func (c *cluster) digest(addr string, atLeast uint64) (uint64, string, error) {
	r := new(msg.StateDigestReply)
	err := ask(addr, &msg.Hello{Role: msg.Hello_ADMIN}, wire.StateDigest, &msg.StateDigest{AtLeast: atLeast}, r)
	return r.Index, hex.EncodeToString(r.Digest), err
}

// sameDigests expects the same state on all metadata servers at one index.
func (c *cluster) sameDigests() {
	c.t.Helper()
	c.wait(30*time.Second, "all metadata servers to have the same state", func() error {
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
		files  map[string]bool
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
		index, digest, err := c.digest(c.metaAddrs()[round%3], 0)
		if err != nil {
			t.Fatal(err)
		}
		points = append(points, point{index: index, digest: digest, files: listing(t, dir)})
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
		}
	}
	check("-c", c.name())
	c.must(60*time.Second, "dev", "down", "--dir", c.dir)
	for i := range c.mds {
		check("-r", filepath.Join(c.dir, fmt.Sprintf("mds%d", i+1)))
		c.must(60*time.Second, "journal", "verify", "-r", filepath.Join(c.dir, fmt.Sprintf("mds%d", i+1)))
	}
	t.Logf("%d points of the journal replayed on the running cluster and on %d stopped servers", len(points), c.mds)
}

func listing(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files := make(map[string]bool)
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		files[path] = true
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
