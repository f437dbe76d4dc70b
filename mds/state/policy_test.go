package state

import (
	"bytes"
	"strings"
	"testing"

	"varve/internal/wire/msg"
	"varve/mds/event"
)

func TestPolicyParts(t *testing.T) {
	set := func(p *event.PolicySet) *event.Event { return &event.Event{Body: &event.Event_PolicySet{PolicySet: p}} }
	s := play(t, New(), evInit(), evServer(1), evServer(2), evCreate(1, 2, "d", msg.FileType_DIRECTORY), evCreate(2, 3, "f", msg.FileType_REGULAR),
		evAlloc(3, 0, 1, 1, 2), set(&event.PolicySet{Ino: 1, Tier: 3, Prefer: "a"}), set(&event.PolicySet{Ino: 2, Norm: 2, Domain: uint32(Room)}),
		set(&event.PolicySet{Ino: 3, Prefer: "b,c"}))
	got := s.Policy(3)
	if got != (Policy{Norm: 2, Min: 2, Tier: 3, Domain: Room, Prefer: "b,c"}) {
		t.Errorf("file has %+v", got)
	}
	if tier, ok := got.OnTier(); tier != 2 || !ok || got.Level() != Room || len(got.Prefers()) != 2 {
		t.Errorf("tier %d %v, level %v, prefers %v", tier, ok, got.Level(), got.Prefers())
	}
	play(t, s, set(&event.PolicySet{Ino: 3, Tier: AnyTier, Prefer: PreferNone}))
	if got = s.Policy(3); got.Prefers() != nil {
		t.Errorf("prefers %v, though it says none", got.Prefers())
	}
	if _, ok := got.OnTier(); ok {
		t.Error("a tier, though it says any")
	}
	var b bytes.Buffer
	if err := s.Write(&b); err != nil {
		t.Fatal(err)
	}
	again, err := Read(bytes.NewReader(b.Bytes()))
	if err != nil || again.Sum() != s.Sum() || again.Policy(2) != s.Policy(2) || again.Policy(3) != s.Policy(3) {
		t.Errorf("read back: %v, %+v", err, again)
	}
}

// TestPolicyKeepsNorms: a change of the tier alone leaves the chunks as they are, as no older event did.
func TestPolicyKeepsNorms(t *testing.T) {
	s := play(t, New(), evInit(), evServer(1), evCreate(1, 2, "f", msg.FileType_REGULAR), evAlloc(2, 0, 1, 1))
	before, _ := s.ChunkByID(1)
	play(t, s, &event.Event{Body: &event.Event_PolicySet{PolicySet: &event.PolicySet{Ino: 2, Tier: 1}}})
	if after, _ := s.ChunkByID(1); after != before {
		t.Errorf("chunk %+v became %+v", before, after)
	}
}

func TestPolicyValid(t *testing.T) {
	for _, p := range []Policy{{Tier: AnyTier}, {Domain: Room}, {Prefer: "a"}, {Prefer: PreferNone}, {Min: 2}, {Norm: 3, Min: 3}} {
		if !p.Valid() {
			t.Errorf("%+v is not valid", p)
		}
	}
	for _, p := range []Policy{{Tier: AnyTier + 1}, {Domain: Room + 1}, {Prefer: "a,,b"}, {Prefer: "a,a"}, {Prefer: "a b"}, {Prefer: "a,none"},
		{Prefer: strings.Repeat("x,", 16) + "x"}, {Prefer: strings.Repeat("x", maxPreferBytes+1)}, {Norm: 1, Min: 2}, {Norm: MaxReplicas + 1}} {
		if p.Valid() {
			t.Errorf("%+v is valid", p)
		}
	}
	for d := Disk; d <= Room; d++ {
		if got, ok := ParseDomain(d.String()); got != d || !ok {
			t.Errorf("%v becomes %v", d, got)
		}
	}
	if _, ok := ParseDomain("planet"); ok {
		t.Error("a planet is a domain")
	}
	if _, ok := ParseDomain(""); ok {
		t.Error("nothing is a domain")
	}
}
