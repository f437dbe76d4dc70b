package mds

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand"
	"testing"

	"varve/internal/disk"
	"varve/internal/id"
)

// TestVotesSurviveCrashes changes term and vote, cutting the power at random operations: what was acknowledged is there, and a vote's term never
// comes with the candidate of another.
func TestVotesSurviveCrashes(t *testing.T) {
	for seed := range int64(200) {
		rng := rand.New(rand.NewSource(seed))
		d := new(disk.Faulty)
		d.MkdirAll("/m")
		cluster := id.Cluster{1, 2}
		open := func() *voteStore {
			v, err := openVotes(d, "/m/votes", cluster, votes{}, func(error) {})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			return v
		}
		v := open()
		// The newest that was acknowledged, and the one that was under way when the power went.
		var term, vote, nextTerm, nextVote uint64
		for n := range 40 {
			left := rng.Intn(6)
			off := false
			d.Inject(func(disk.Op) error {
				if left--; left < 0 && rng.Intn(3) == 0 {
					off = true
				}
				if off {
					return disk.ErrPowerOff
				}
				return nil
			})
			nextTerm, nextVote = term, vote
			if rng.Intn(2) == 0 {
				nextTerm = uint64(n + 1)
				if v.SetUint64([]byte(keyTerm), nextTerm); v.alive() == nil {
					term = nextTerm
				}
			} else {
				nextVote = uint64(n + 1)
				err := v.SetUint64([]byte(keyVoteTerm), nextVote)
				if err == nil {
					err = v.Set([]byte(keyVoteCand), fmt.Append(nil, "server of term ", nextVote))
				}
				if err == nil {
					vote = nextVote
				}
			}
			if v.alive() == nil && rng.Intn(4) > 0 {
				continue
			}
			d.Crash(rng)
			v = open()
			gotTerm, _ := v.GetUint64([]byte(keyTerm))
			gotVote, _ := v.GetUint64([]byte(keyVoteTerm))
			who, _ := v.Get([]byte(keyVoteCand))
			if gotTerm != term && gotTerm != nextTerm || gotVote != vote && gotVote != nextVote {
				t.Fatalf("seed %d: term %d vote %d, acknowledged %d and %d", seed, gotTerm, gotVote, term, vote)
			}
			if gotVote > 0 && string(who) != fmt.Sprint("server of term ", gotVote) {
				t.Fatalf("seed %d: vote of term %d for %q", seed, gotVote, who)
			}
			term, vote = gotTerm, gotVote
		}
	}
}

func TestVotesThatCannotBeWritten(t *testing.T) {
	d := new(disk.Faulty)
	d.MkdirAll("/m")
	told := 0
	v, err := openVotes(d, "/m/votes", id.Cluster{1}, votes{term: 3, voteTerm: 2, candidate: []byte("x")}, func(error) { told++ })
	if err != nil {
		t.Fatal(err)
	}
	d.SetCapacity(1) // a full disk does not matter
	if err := v.SetUint64([]byte(keyTerm), 4); err != nil || v.alive() != nil {
		t.Errorf("on a full disk: %v, %v", err, v.alive())
	}
	bad := errors.New("bad sector")
	d.Inject(func(op disk.Op) error {
		if op.Kind == disk.OpSync {
			return bad
		}
		return nil
	})
	if err := v.SetUint64([]byte(keyTerm), 5); err != nil {
		t.Errorf("Raft would end the process for %v", err)
	}
	if !errors.Is(v.alive(), bad) || told != 1 {
		t.Errorf("alive says %v, told %d times", v.alive(), told)
	}
	d.Inject(nil)
	if err := v.Set([]byte(keyVoteCand), []byte("y")); err == nil {
		t.Error("a vote was taken by a store that had failed")
	}
	if n, err := v.GetUint64([]byte("other")); !errors.Is(err, errKeyAbsent) || err.Error() != "not found" {
		t.Errorf("an unknown key: %d %v", n, err)
	}
}

func TestVotesAreDamaged(t *testing.T) {
	d := new(disk.Faulty)
	d.MkdirAll("/m")
	if _, err := openVotes(d, "/m/votes", id.Cluster{1}, votes{term: 3}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := openVotes(d, "/m/votes", id.Cluster{2}, votes{}, nil); err == nil {
		t.Error("votes of another cluster were taken")
	}
	d.Flip("/m/votes", 33)
	v, err := openVotes(d, "/m/votes", id.Cluster{1}, votes{}, nil)
	if err != nil || v.now.term != 3 {
		t.Errorf("with one slot: %v", err)
	}
	d.Flip("/m/votes", votesSlot+33)
	if _, err := openVotes(d, "/m/votes", id.Cluster{1}, votes{}, nil); err == nil {
		t.Error("votes were read from two damaged slots")
	}
}

func FuzzVotes(f *testing.F) {
	v := &voteStore{cluster: id.Cluster{1}}
	f.Add(v.encode(votes{seq: 1}))
	f.Add(v.encode(votes{seq: 9, term: 8, voteTerm: 7, candidate: []byte("127.0.0.1:2510")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < votesSlot {
			b = append(b, make([]byte, votesSlot-len(b))...)
		}
		if x, ok := v.decode(b[:votesSlot]); ok && !bytes.Equal(v.encode(x)[:votesSummed+4], b[:votesSummed+4]) {
			t.Errorf("decoded %+v encodes to something else", x)
		}
	})
}
