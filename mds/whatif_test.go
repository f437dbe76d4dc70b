package mds

import (
	"strings"
	"testing"

	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

// TestWhatIfRefused: a question about nobody is answered with who is meant, and nobody but an administrator may ask.
func TestWhatIfRefused(t *testing.T) {
	c := newCluster(t, 1, nil)
	r := new(msg.WhatIfReply)
	if code := c.admin(wire.WhatIf, &msg.WhatIf{Servers: []uint32{7}, Hosts: []string{"h"}, Racks: []string{"r"}}, r); code != fserr.NotExist ||
		!strings.Contains(r.Detail, "cs7, or host h, or rack r") {
		t.Errorf("%v: %s", code, r.Detail)
	}
	if code := c.admin(wire.WhatIf, &msg.WhatIf{}, new(msg.WhatIfReply)); code != fserr.Invalid {
		t.Errorf("about nobody: %v", code)
	}
}

// TestLostServers: hosts, racks, rows and rooms are found by their names.
func TestLostServers(t *testing.T) {
	s := state.New()
	s.Apply(&event.Event{Body: &event.Event_ClusterInit{ClusterInit: &event.ClusterInit{Uuid: make([]byte, 16), Perm: 0o755}}})
	for i, at := range []string{"a/b/r1", "a/b/r2", "a/c/r1", "d/b/r1", "r1", ""} {
		s.Apply(&event.Event{Body: &event.Event_ServerAdd{ServerAdd: &event.ServerAdd{Id: uint32(i + 1), Uuid: []byte{byte(i)}, Host: "h", Rack: at}}})
	}
	s.Apply(&event.Event{Body: &event.Event_ServerRetire{ServerRetire: &event.ServerRetire{Id: 6}}})
	for name, want := range map[string]int{"r1": 4, "a/b/r1": 1, "a/b": 2, "a": 3, "r2": 1} {
		if got, err := lostServers(s, &msg.WhatIf{Racks: []string{name}}); err != nil || len(got) != want {
			t.Errorf("rack %s: %v, %v, want %d servers", name, got, err, want)
		}
	}
	if got, err := lostServers(s, &msg.WhatIf{Hosts: []string{"h"}}); err != nil || len(got) != 5 {
		t.Errorf("host h: %v, %v", got, err)
	}
	if _, err := lostServers(s, &msg.WhatIf{Servers: []uint32{1, 6}}); err == nil {
		t.Error("a retired server is taken for a member")
	}
}
