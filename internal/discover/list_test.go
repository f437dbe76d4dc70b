package discover

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestParseList(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		want     []string
		err      string
	}{
		{"as Virtuozzo's", "10.0.0.1:2510\n10.0.0.2:2511\n", []string{"10.0.0.1:2510", "10.0.0.2:2511"}, ""},
		{"comments, blanks, twice", "# all\n\n 10.0.0.1:2510 # first\n10.0.0.1\n", []string{"10.0.0.1:2510"}, ""},
		{"names and IPv6", "mds1.example.com\n[fe80::1%eth0]:7\nfd00::1\n", []string{"mds1.example.com:2510", "[fe80::1%eth0]:7", "[fd00::1]:2510"}, ""},
		{"CRLF, no end of line", "10.0.0.1:2510\r\n10.0.0.2:2510", []string{"10.0.0.1:2510", "10.0.0.2:2510"}, ""},
		{"empty", "", nil, ""},
		{"no port", "10.0.0.1:\n", nil, "line 1: address"},
		{"port 0", "\n10.0.0.1:0", nil, "line 2: address"},
		{"too large a port", "10.0.0.1:65536", nil, "line 1: address"},
		{"two on a line", "10.0.0.1 10.0.0.2", nil, "line 1: address"},
		{"control characters", "10.0.0.1\x1b[31m", nil, "line 1: address"},
		{"two ports", "host:1:2", nil, "line 1: address"},
		{"no number", "ok\nhost:port", nil, "line 2: address"},
		{"one, often", strings.Repeat("h:1\n", 200), []string{"h:1"}, ""},
		{"too many", strings.Join(numbered(MaxServers+1), "\n"), nil, "line 65: more than 64 servers"},
		{"as many as may be", strings.Join(numbered(MaxServers), "\n"), numbered(MaxServers), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ParseList([]byte(tc.in))
			if tc.err == "" && (err != nil || !slices.Equal(got, tc.want)) {
				t.Errorf("got %q, %v, want %q", got, err, tc.want)
			}
			if tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("got %q, %v, want an error with %q", got, err, tc.err)
			}
		})
	}
}

func numbered(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("10.0.1.%d:2510", i))
	}
	return out
}

func TestUpdateList(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bs.list")
	update := func(members ...string) (bool, error) { return UpdateList(path, "lake", members) }
	if changed, err := update("10.0.0.1:2510", "10.0.0.2"); err != nil || !changed {
		t.Fatalf("new list: changed %v, %v", changed, err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := update("10.0.0.2:2510", "10.0.0.1:2510", "10.0.0.1:2510"); err != nil || changed {
		t.Errorf("the same members in another order: changed %v, %v", changed, err)
	}
	for name, members := range map[string][]string{"nobody": nil, "too many": numbered(MaxServers + 1), "no address": {"10.0.0.3:2510", "::bad::"}} {
		if changed, err := update(members...); err == nil || changed {
			t.Errorf("%s: changed %v, %v, want an error", name, changed, err)
		}
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("the list is now %q, %v", after, err)
	}
	if changed, err := update("10.0.0.3:2510"); err != nil || !changed {
		t.Errorf("other members: changed %v, %v", changed, err)
	}
	if got, err := ReadList(path); err != nil || !slices.Equal(got, []string{"10.0.0.3:2510"}) {
		t.Errorf("read %q, %v", got, err)
	}
	if err := os.WriteFile(path, []byte("this is no list at all"), 0o644); err != nil {
		t.Fatal(err)
	}
	if changed, err := update("10.0.0.3:2510"); err != nil || !changed {
		t.Errorf("over garbage: changed %v, %v", changed, err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestUpdateListWhole: who reads while others write always sees a whole list.
func TestUpdateListWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bs.list")
	lists := [][]string{numbered(1), numbered(MaxServers)}
	if _, err := UpdateList(path, "lake", lists[0]); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for i := range 20 {
				if _, err := UpdateList(path, "lake", lists[(i+w)%2]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 200 {
		got, err := ReadList(path)
		if err != nil || len(got) != 1 && len(got) != MaxServers {
			t.Errorf("read %d servers, %v", len(got), err)
		}
	}
	wg.Wait()
}

func TestReadListBounds(t *testing.T) {
	dir := t.TempDir()
	for name, tc := range map[string]struct{ content, want string }{
		"empty":   {"# nobody\n", "names no server"},
		"large":   {strings.Repeat("#\n", maxList), "more than"},
		"garbage": {"\x00\x01", "line 1"},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(tc.content), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadList(path); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want an error with %q and the path", name, err, tc.want)
		}
	}
	if _, err := ReadList(filepath.Join(dir, "none")); err == nil || !strings.Contains(err.Error(), "there is no ") {
		t.Errorf("missing: %v", err)
	}
}
