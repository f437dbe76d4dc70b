package main

import (
	"strings"
	"testing"

	"varve/internal/wire/msg"
	"varve/mds/state"
)

func TestParseAttrs(t *testing.T) {
	a, err := parseAttrs([]string{"replicas=3", "tier=0", "failure-domain=rack", "prefer=h1,h2"})
	if err != nil || a.fields != 15 || a.policy.Norm != 3 || a.policy.Min != 2 || a.policy.Tier != 1 || a.policy.Domain != uint32(state.Rack) || a.policy.Prefer != "h1,h2" {
		t.Errorf("got %+v, %v", a, err)
	}
	a, err = parseAttrs([]string{"tier=any", "prefer=inherit"})
	if err != nil || a.fields != 2|8 || a.policy.Tier != state.AnyTier || a.policy.Prefer != "" || strings.Join(a.names(), " ") != "tier prefer" {
		t.Errorf("got %+v, %v", a, err)
	}
	for _, bad := range []string{"replicas", "replicas=0", "tier=4", "tier=-1", "failure-domain=planet", "prefer=", "prefer=a,,b", "colour=red", "history=1d"} {
		if _, err := parseAttrs([]string{bad}); exitCode(err) != exitUsage {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := parseAttrs([]string{"tier=1", "tier=2"}); exitCode(err) != exitUsage {
		t.Errorf("twice: %v", err)
	}
	if got := attrsOf(&msg.Policy{Min: 1, Domain: 2}).names(); strings.Join(got, " ") != "replicas failure-domain" {
		t.Errorf("set: %v", got)
	}
	if p := (&msg.Policy{}); tierText(p) != "any" || domainText(p) != "host" {
		t.Errorf("where nothing is set: tier %s, failure-domain %s", tierText(p), domainText(p))
	}
}
