package discover

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func writeList(t *testing.T, addrs ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bs.list")
	if err := os.WriteFile(path, FormatList("lake", addrs), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFindOrder(t *testing.T) {
	z := zone{srv: map[string][]dnsmessage.SRVResource{"_varve._tcp.lake.": {target("mds2.", 2510, 1)}}}
	var asked atomic.Int64
	o := Options{Name: "lake", UUID: lake, List: writeList(t, "10.0.0.1"), Resolver: z.resolver(t), MDNSPort: -1, Limit: 20 * time.Second, head: 20 * time.Second,
		Check: func(context.Context, string) error { asked.Add(1); return nil }}
	r, err := Find(t.Context(), o)
	if err != nil || r.Way != ByList || !slices.Equal(r.Addrs, []string{"10.0.0.1:2510"}) || len(r.Tried) != 1 || asked.Load() != 1 {
		t.Errorf("both there: %+v, %v, %d asked", r, err, asked.Load())
	}
	o.All = true
	if r, err = Find(t.Context(), o); err != nil || r.Way != ByList || len(r.Tried) != 2 || !slices.Equal(r.Tried[1].Good(), []string{"mds2:2510"}) {
		t.Errorf("all ways: %+v, %v", r, err)
	}
	o.All = false
	refused := errors.New("connection refused")
	o.Check = func(_ context.Context, addr string) error {
		if addr == "10.0.0.1:2510" {
			return refused
		}
		return nil
	}
	if r, err = Find(t.Context(), o); err != nil || r.Way != ByDNS || !slices.Equal(r.Addrs, []string{"mds2:2510"}) || len(r.Tried) != 2 {
		t.Errorf("nobody on the list answers: %+v, %v", r, err)
	}
	o.Failed = map[string]error{"10.0.0.1:2510": refused}
	o.Check = func(_ context.Context, addr string) error {
		if addr == "10.0.0.1:2510" {
			t.Error("one that had just failed was asked again")
		}
		return errors.New("of another cluster")
	}
	_, err = Find(t.Context(), o)
	var all *Error
	if !errors.As(err, &all) || !errors.Is(err, refused) {
		t.Fatalf("nobody answers: %v", err)
	}
	const want = "no metadata server of cluster lake found; bs.list: 10.0.0.1:2510: connection refused; dns: mds2:2510: of another cluster"
	if err.Error() != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
}

// TestFindAtHome: where a cluster is that is on this host alone, no other is asked.
func TestFindAtHome(t *testing.T) {
	z := zone{srv: map[string][]dnsmessage.SRVResource{"_varve._tcp.lake.": {target("mds2.", 2510, 1)}}}
	o := Options{Name: "lake", List: writeList(t, "127.0.0.1", "[::1]:7"), Resolver: z.resolver(t), MDNSPort: -1, Limit: 20 * time.Second,
		Check: func(context.Context, string) error { return errors.New("connection refused") }}
	if r, err := Find(t.Context(), o); err == nil || len(r.Tried) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	o.List = writeList(t, "127.0.0.1", "10.0.0.1")
	if r, err := Find(t.Context(), o); err == nil || len(r.Tried) != 2 {
		t.Errorf("with one that is elsewhere: %+v, %v", r, err)
	}
}

func TestFindNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bs.list")
	o := Options{Name: "lake", List: path, Resolver: (&zone{}).resolver(t), MDNSPort: -1, Limit: 20 * time.Second}
	_, err := Find(t.Context(), o)
	want := "no metadata server of cluster lake found; bs.list: there is no " + path + ": file does not exist; dns: _varve._tcp.lake: no such record, _varve._tcp: no such record"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if _, err := Find(t.Context(), Options{}); err == nil {
		t.Error("without a name and a UUID something is looked for")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Find(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
}

// TestFindSlow: neither a dead DNS server nor addresses that do not answer keep Find for longer than its limit.
func TestFindSlow(t *testing.T) {
	begun := time.Now()
	o := Options{Name: "lake", List: writeList(t, numbered(MaxServers)...), Resolver: (&zone{dead: true}).resolver(t), MDNSPort: -1, Limit: 200 * time.Millisecond,
		Check: func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }}
	_, err := Find(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "and 58 more") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
}

// TestSource: who edits the list of a running server is heard, and what DNS says is found in the background.
func TestSource(t *testing.T) {
	z := zone{srv: map[string][]dnsmessage.SRVResource{"_varve._tcp.lake.": {target("mds2.", 2510, 1)}}}
	path := writeList(t, "10.0.0.1")
	s := NewSource(Options{Name: "lake", UUID: lake, List: path, Resolver: z.resolver(t), MDNSPort: -1, Limit: 20 * time.Second}, slog.New(slog.NewTextHandler(io.Discard, nil)))
	defer s.Close()
	until := func(want ...string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			got := s.More()
			if slices.Equal(got, want) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("knows %q, want %q", got, want)
			}
		}
	}
	until("10.0.0.1:2510", "mds2:2510")
	if _, err := UpdateList(path, "lake", []string{"10.0.0.7:1"}); err != nil {
		t.Fatal(err)
	}
	until("10.0.0.7:1", "mds2:2510")
	if err := os.WriteFile(path, []byte("half a li ne"), 0o644); err != nil {
		t.Fatal(err)
	}
	until("mds2:2510")
}

func TestMatches(t *testing.T) {
	o := Options{Name: "lake", UUID: lake}
	for _, tc := range []struct {
		name, uuid string
		ok         bool
	}{
		{"lake", "", true}, {"", lake.String(), true}, {"lake", lake.String(), true}, {"sea", lake.String(), true},
		{"sea", "", false}, {"lake", elsewhere, false}, {"lake", "garbage", false}, {"la\x1bke", "", false},
	} {
		err := o.matches(tc.name, tc.uuid)
		if (err == nil) != tc.ok {
			t.Errorf("%q %q: %v", tc.name, tc.uuid, err)
		}
		if err != nil && strings.ContainsRune(err.Error(), '\x1b') {
			t.Errorf("%q %q: what a stranger sent is shown as it is: %q", tc.name, tc.uuid, err)
		}
	}
	if err := (&Options{Name: "lake"}).matches("lake", elsewhere); err != nil {
		t.Errorf("with the UUID not known: %v", err)
	}
}

var _ Resolver = (*net.Resolver)(nil)
