package main

import (
	"strings"
	"testing"

	"varve/mds/event"
	"varve/mds/state"
)

// TestCheckServers: each server's digest is compared at its own index, two at one index both, and the one that differs is named.
func TestCheckServers(t *testing.T) {
	s := state.New()
	s.Apply(&event.Event{Body: &event.Event_ClusterInit{ClusterInit: &event.ClusterInit{Uuid: make([]byte, 16), Name: "c"}}})
	sum, sha := s.Sum(), s.Digest()
	good := []serverDigest{{"a:1", 1, sum[:]}, {"b:1", 1, sha[:]}, {"c:1", 2, []byte("of a later state")}}
	if n, err := checkServers(s, good); n != 2 || err != nil {
		t.Errorf("compared %d, %v; want 2 and no error", n, err)
	}
	bad := append(good, serverDigest{"d:1", 1, make([]byte, len(sum))})
	if _, err := checkServers(s, bad); err == nil || !strings.Contains(err.Error(), "server d:1") || !strings.Contains(err.Error(), "--rebuild") {
		t.Errorf("a server that differs: %v", err)
	}
}
