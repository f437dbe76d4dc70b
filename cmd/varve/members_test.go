package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestSettingsAndMembers: what set-config, get-config and rm-mds answer, with their exit codes.
func TestSettingsAndMembers(t *testing.T) {
	needMounts(t)
	t.Parallel()
	dir := t.TempDir()
	devUp(t, dir, "--mount", "", "--cs", "1")
	for _, tc := range []struct {
		args string
		code int
		want string // part of what is printed, on either stream
	}{
		{"set-config repair.grace=2m", exitDone, ""},
		{"get-config repair.grace", exitDone, "2m\n"},
		{"get-config", exitDone, "default"},
		{"set-config repair.grace=", exitDone, ""},
		{"get-config repair.grace", exitDone, "1m\n"},
		{"set-config colour=red", exitUsage, "want one of journal.retention.age"},
		{"set-config replicas=9:1", exitUsage, "NORM:MIN"},
		{"set-config replicas=3:2", exitUsage, "add chunk servers first"},
		{"set-config replicas", exitUsage, "KEY=VALUE"},
		{"get-config colour", exitUsage, "want one of"},
		{"rm-mds mds1", exitRefused, "last metadata server"},
		{"rm-mds 7", exitFailed, "there is no mds7"},
		{"rm-mds cs1", exitUsage, "no metadata server"},
		{"make-mds --rebuild -r data/mds1", exitFailed, "is in use"},
		{"make-mds --rebuild -r nowhere", exitFailed, "rm-mds"},
	} {
		out, errs, code := varve(t, dir, append([]string{"-c", "data/cluster"}, strings.Fields(tc.args)...)...)
		if code != tc.code || !strings.Contains(out+errs, tc.want) {
			t.Errorf("%s: exit code %d, want %d with %q: %s%s", tc.args, code, tc.code, tc.want, out, errs)
		}
	}
	var list []settingJSON
	if err := json.Unmarshal([]byte(must(t, dir, "-c", "data/cluster", "get-config", "--json")), &list); err != nil || len(list) < 4 {
		t.Errorf("get-config --json: %v %v", list, err)
	}
}
