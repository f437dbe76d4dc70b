package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestParseLoss(t *testing.T) {
	r, err := parseLoss([]string{"cs3", "4", "node1", "rack=r1", "room=x", "host=cs9"})
	if err != nil || len(r.Servers) != 2 || r.Servers[0] != 3 || r.Servers[1] != 4 || strings.Join(r.Hosts, " ") != "node1 cs9" || strings.Join(r.Racks, " ") != "r1 x" {
		t.Errorf("got %+v, %v", r, err)
	}
	for _, bad := range []string{"", "rack=", "colour=red"} {
		if _, err := parseLoss([]string{bad}); exitCode(err) != exitUsage {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestPrintWhatIf(t *testing.T) {
	var out bytes.Buffer
	a := &app{out: &out}
	v := &whatIfJSON{Lost: []lostJSON{{"cs1", "h", "", 3, 3 << 26}}, Gone: 1, GoneBytes: 1 << 26, GoneFiles: 1, UnderMin: 2, UnderMinFiles: 2, Last: 2, Moves: 2,
		MoveBytes: 2 << 26, Homeless: 1, HomelessBytes: 1 << 26, Shared: 1, ETAMS: 61_000, Rate: 1 << 20, Degraded: true,
		Survivors: []survivor{{"cs2", "h2", "", 0, true, 2, 2 << 26, 0, 1 << 40}}, Files: []lostFile{{5, "", 1 << 30, 1, 1 << 26, 0}}, FilesLeftOut: 3}
	for range maxSurvivors {
		v.Survivors = append(v.Survivors, survivor{Server: "cs9", ReadBytes: 1})
	}
	if err := a.printWhatIf(v); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"cs1: 3 replicas, 192 MiB", "1 chunk of 1 file, 64 MiB; 2 chunks would have one", "to 2 chunks of 2 files", "2 replicas, 128 MiB",
		"for 1 replica, 64 MiB", "1 replica would share", "1m1s, all repair together at 1.0 MiB/s", "too few replicas already", "and 1 more chunk servers", "inode 5", "and 3 files more"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	// What is printed first is the server that gets most.
	if rows := strings.Split(out.String(), "FREE AFTER\n"); len(rows) != 2 || !strings.HasPrefix(rows[1], "cs2 ") {
		t.Errorf("printed\n%s", out.String())
	}
}
