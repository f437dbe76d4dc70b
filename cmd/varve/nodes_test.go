package main

import (
	"slices"
	"strings"
	"testing"

	"varve/internal/wire/msg"
)

func TestServersOf(t *testing.T) {
	st := &msg.StatusReply{}
	for n, host := range []string{"vm1", "vm1", "vm2", "vm03", "vm04", "host-1", "vm9"} {
		st.Servers = append(st.Servers, &msg.ChunkServer{Server: uint32(n + 1), Host: host, State: stateLive})
	}
	st.Servers[6].State = stateRetired
	for args, want := range map[string][]uint32{
		"cs3": {3}, "3": {3}, "1-3": {1, 2, 3}, "cs2-4,cs1": {1, 2, 3, 4}, "vm1": {1, 2}, "vm1-2": {1, 2, 3}, "vm03-04": {4, 5}, "host-1": {6},
		"ALL": {1, 2, 3, 4, 5, 6}, "vm2 cs1 vm2": {1, 3},
		"vm9": nil, "cs7": nil, "vm1-3": nil, "vm5": nil, "vm2-1": nil, "vm1,": nil, "cs1-99999": nil, "": nil, "cs99999999999999999999": nil,
	} {
		got, err := serversOf(st, strings.Split(args, " "))
		if (err == nil) != (want != nil) || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v; want %v", args, got, err, want)
		}
		if err != nil && exitCode(err) != exitUsage {
			t.Errorf("%q: exit code %d", args, exitCode(err))
		}
	}
}
