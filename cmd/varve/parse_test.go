package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/internal/client"
)

func TestClusterPath(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"main": "/etc/varve/clusters/main", "a-B_9": "/etc/varve/clusters/a-B_9", "/x/y/": "/x/y", "d/cluster": filepath.Join(wd, "d/cluster"),
		"./d": filepath.Join(wd, "d"), ".": wd, "": "", "a b": "", "a.b": "", strings.Repeat("x", 65): "",
	} {
		got, err := clusterPath(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestClusterDir(t *testing.T) {
	d := &clusterDir{path: filepath.Join(t.TempDir(), "a", "b"), name: "n", uuid: [16]byte{1, 2, 3}, mds: []string{"h:1", "i:2"}}
	if err := d.write(); err != nil {
		t.Fatal(err)
	}
	d.refresh([]string{"j:3", "h:1"})
	got, err := readClusterDir(d.path)
	if err != nil {
		t.Fatal(err)
	}
	if got.name != d.name || got.uuid != d.uuid || !slices.Equal(got.mds, []string{"j:3", "h:1"}) {
		t.Errorf("read %+v, wrote %+v", got, d)
	}
	d.refresh(nil) // a server that names nobody does not empty the list
	if got, err = readClusterDir(d.path); err != nil || len(got.mds) != 2 {
		t.Errorf("after an empty refresh: %+v, %v", got, err)
	}
}

func TestMountOptions(t *testing.T) {
	for _, tc := range []struct {
		in    string
		want  mountOptions
		fault string
	}{
		{in: "", want: mountOptions{transport: "auto"}},
		{in: "ro,_netdev,defaults,x-systemd.automount", want: mountOptions{readOnly: true, transport: "auto"}},
		{in: "transport=dev", want: mountOptions{transport: "dev"}},
		{in: "transport=uring", want: mountOptions{transport: "uring"}},
		{in: "transport=", fault: "auto, dev or uring"},
		{in: "transport=tcp", fault: "auto, dev or uring"},
		{in: "local=off", want: mountOptions{transport: "auto", noLocal: true}},
		{in: "readahead=8", want: mountOptions{transport: "auto", readAhead: 8 << 20}},
		{in: "readahead=0", want: mountOptions{transport: "auto", readAhead: -1}},
		{in: "writeback=16", want: mountOptions{transport: "auto", behind: 16 << 20}},
		{in: "writeback=on", fault: "writeback=MB"},
		{in: "readahead=-1", fault: "0 for none"},
		{in: "relay=on,relay=off", want: mountOptions{transport: "auto", relay: client.RelayNever}},
		{in: "data-tls=on", want: mountOptions{transport: "auto", dataTLS: true}},
		{in: "data-tls=yes", fault: "data-tls=on"},
		{in: "relay=maybe", fault: "relay=auto"},
		{in: "local=on,ro", want: mountOptions{transport: "auto", readOnly: true}},
		{in: "local", fault: "local=on or local=off"},
		{in: "local=far", fault: "local=on or local=off"},
		{in: "ro=1", fault: "unknown"},
		{in: "cachesize=100", fault: "go together"},
		{in: "cache=/a b,cachesize=50000", want: mountOptions{transport: "auto", cache: "/a b", cacheSize: 50000 << 20}},
		{in: "at=2026-01-01", fault: "later release"},
		{in: "sync=1", fault: "unknown"},
	} {
		got, err := parseMountOptions([]string{tc.in})
		if tc.fault != "" {
			if err == nil || !strings.Contains(err.Error(), tc.fault) || exitCode(err) != exitUsage {
				t.Errorf("%q: %v, want a usage error with %q", tc.in, err, tc.fault)
			}
		} else if err != nil || got != tc.want {
			t.Errorf("%q: %+v, %v; want %+v", tc.in, got, err, tc.want)
		}
	}
}

func TestMountSource(t *testing.T) {
	for path, want := range map[string]string{
		"/etc/varve/clusters/main": "varve://main", "/x/a b,c\\d%e#f": "varve:///x/a%20b%2Cc%5Cd%25e%23f", "/é": "varve:///%C3%A9",
	} {
		got := mountSource(path)
		back, err := sourceCluster(got)
		if got != want || back != path || err != nil {
			t.Errorf("%q: %q, want %q; back to %q, %v", path, got, want, back, err)
		}
	}
	if _, err := sourceCluster("/dev/sda"); err == nil {
		t.Error("a disk is taken for a cluster")
	}
}

func TestParseMoment(t *testing.T) {
	now := time.Date(2026, 3, 2, 12, 0, 0, 0, time.FixedZone("", 3600))
	for in, want := range map[string]string{
		"2026-03-01T12:00":          "2026-03-01T12:00:00+01:00",
		"2026-03-01 12:00:05.5":     "2026-03-01T12:00:05.5+01:00",
		"2026-03-01T12:00:00Z":      "2026-03-01T12:00:00Z",
		"2026-03-01":                "2026-03-01T00:00:00+01:00",
		"-10m":                      "2026-03-02T11:50:00+01:00",
		"1h30m ago":                 "2026-03-02T10:30:00+01:00",
		"-7d":                       "2026-02-23T12:00:00+01:00",
		"now":                       "2026-03-02T12:00:00+01:00",
		"2026-03-01T12:00:00+02:00": "2026-03-01T12:00:00+02:00",
	} {
		m, err := parseMoment(in, now)
		if got := m.time.Format(time.RFC3339Nano); err != nil || got != want {
			t.Errorf("%q: %s, %v; want %s", in, got, err, want)
		}
	}
	if m, err := parseMoment("123", now); err != nil || m.index != 123 || !m.time.IsZero() {
		t.Errorf("123: %+v, %v", m, err)
	}
	for _, in := range []string{"", "x", "-x", "--5m", "-", "12:00", "5m", "2999-01-01", "1066-10-14"} {
		if m, err := parseMoment(in, now); err == nil {
			t.Errorf("%q is taken for %+v", in, m)
		}
	}
}

func TestParseReplicas(t *testing.T) {
	for in, want := range map[string]string{
		"3:2": "3:2", "3": "3:2", "1": "1:1", "2": "2:1", "1:1": "1:1", "0": "", "2:3": "", "3:0": "", "9:1": "", "x": "", "3:": "", "-1": "", "3:2:1": "",
	} {
		p, err := parseReplicas(in)
		if want == "" {
			if err == nil {
				t.Errorf("%q is taken for %v", in, p)
			}
		} else if err != nil || replicasText(p) != want {
			t.Errorf("%q: %v, %v; want %s", in, p, err, want)
		}
	}
}

func TestShellWords(t *testing.T) {
	for _, words := range [][]string{
		{"/bin/varve", "mds", "-r", "/a b/c"}, {"/a b/varve", "x"}, {"/it's", "it's", ""}, {"one"}, {"a\\b", "c\nd", "$e"},
	} {
		line := shellJoin(words)
		first, rest, _ := cutWord(line)
		if first != shellQuote(words[0]) || rest != shellJoin(words[1:]) {
			t.Errorf("%q: cut into %q and %q", line, first, rest)
		}
	}
	if got := shellJoin([]string{"a", "it's", ""}); got != `a 'it'\''s' ''` {
		t.Errorf("quoted %s", got)
	}
}

func TestHealth(t *testing.T) {
	for _, tc := range []struct {
		s    statusJSON
		word string
		why  int
	}{
		{statusJSON{Leader: "a", ledBy: true}, "HEALTHY", 0},
		{statusJSON{}, "NO-LEADER", 1},
		{statusJSON{Leader: "a", ledBy: true, Degraded: 2}, "DEGRADED", 1},
		{statusJSON{Leader: "a", ledBy: true, Degraded: 2, UnderMin: 1}, "UNDER-MIN", 2},
		{statusJSON{Leader: "a", ledBy: true, UnderMin: 1, Servers: []serverJSON{{State: "down"}, {State: "retired"}, {State: "live"}}}, "UNDER-MIN", 2},
		{statusJSON{Leader: "a", ledBy: true, Metas: []metaJSON{{State: "unreachable"}, {State: "leader"}}}, "DEGRADED", 1},
		{statusJSON{Degraded: 1}, "NO-LEADER", 2},
		{statusJSON{Leader: "a", Servers: []serverJSON{{State: "unknown"}}}, "NO-LEADER", 1},
	} {
		if word, why := health(&tc.s); word != tc.word || len(why) != tc.why {
			t.Errorf("%+v: %s, %q; want %s for %d reasons", tc.s, word, why, tc.word, tc.why)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for v, want := range map[string]struct {
		wait time.Duration
		fast bool
	}{"wait": {0, false}, "wait:30": {30 * time.Second, false}, "fail": {10 * time.Second, true}, "fail:5": {5 * time.Second, true}} {
		wait, fast, err := parseErrors(v)
		if err != nil || wait != want.wait || fast != want.fast {
			t.Errorf("errors=%s: %v, %t, %v", v, wait, fast, err)
		}
	}
	for _, v := range []string{"", "soft", "wait:", "fail:0", "fail:-1", "wait:x", "wait:86401"} {
		if _, _, err := parseErrors(v); err == nil {
			t.Errorf("errors=%s is accepted", v)
		}
	}
}
