package state

import (
	"testing"

	"varve/internal/wire/msg"

	"pgregory.net/rapid"
)

func lk(owner uint64, write bool, start, end uint64) Lock {
	return Lock{Owner: Owner{Session: 1, Number: owner}, Write: write, Start: start, End: end}
}

func TestSetLock(t *testing.T) {
	const r, w, u = msg.LockType_READ_LOCK, msg.LockType_WRITE_LOCK, msg.LockType_UNLOCK
	for name, tc := range map[string]struct {
		have []Lock
		set  Lock
		typ  msg.LockType
		want []Lock
	}{
		"first":                {nil, lk(1, false, 0, 9), r, []Lock{lk(1, false, 0, 9)}},
		"unlock nothing":       {nil, lk(1, false, 0, 9), u, nil},
		"merge adjoining":      {[]Lock{lk(1, true, 0, 9)}, lk(1, true, 10, 19), w, []Lock{lk(1, true, 0, 19)}},
		"merge two":            {[]Lock{lk(1, true, 0, 9), lk(1, true, 20, 29)}, lk(1, true, 10, 19), w, []Lock{lk(1, true, 0, 29)}},
		"no merge of types":    {[]Lock{lk(1, true, 0, 9)}, lk(1, false, 10, 19), r, []Lock{lk(1, true, 0, 9), lk(1, false, 10, 19)}},
		"no merge of owners":   {[]Lock{lk(1, false, 0, 9)}, lk(2, false, 10, 19), r, []Lock{lk(1, false, 0, 9), lk(2, false, 10, 19)}},
		"split by unlock":      {[]Lock{lk(1, true, 0, 99)}, lk(1, false, 10, 19), u, []Lock{lk(1, true, 0, 9), lk(1, true, 20, 99)}},
		"downgrade the middle": {[]Lock{lk(1, true, 0, 99)}, lk(1, false, 10, 19), r, []Lock{lk(1, true, 0, 9), lk(1, false, 10, 19), lk(1, true, 20, 99)}},
		"upgrade all":          {[]Lock{lk(1, false, 5, 9), lk(1, true, 10, 19)}, lk(1, true, 0, LockEnd), w, []Lock{lk(1, true, 0, LockEnd)}},
		"to the end adjoins":   {[]Lock{lk(1, true, 10, LockEnd)}, lk(1, true, 0, 9), w, []Lock{lk(1, true, 0, LockEnd)}},
		"unlock the tail":      {[]Lock{lk(1, true, 0, LockEnd)}, lk(1, false, 100, LockEnd), u, []Lock{lk(1, true, 0, 99)}},
		"unlock the head":      {[]Lock{lk(1, true, 0, 99)}, lk(1, false, 0, 9), u, []Lock{lk(1, true, 10, 99)}},
		"others stay":          {[]Lock{lk(2, false, 0, 99)}, lk(1, false, 0, 99), u, []Lock{lk(2, false, 0, 99)}},
	} {
		t.Run(name, func(t *testing.T) {
			got := SetLock(tc.have, tc.set, tc.typ)
			if len(got) != len(tc.want) {
				t.Fatalf("got %+v, want %+v", got, tc.want)
			}
			for i := range got {
				if got[i] != tc.want[i] {
					t.Fatalf("got %+v, want %+v", got, tc.want)
				}
			}
		})
	}
}

func TestConflict(t *testing.T) {
	have := []Lock{lk(1, false, 0, 9), lk(2, true, 20, 29)}
	for name, tc := range map[string]struct {
		l    Lock
		want bool
	}{
		"read with read":    {lk(3, false, 0, 9), false},
		"write with read":   {lk(3, true, 9, 10), true},
		"own":               {lk(1, true, 0, 9), false},
		"read with write":   {lk(3, false, 29, LockEnd), true},
		"between":           {lk(3, true, 10, 19), false},
		"everything, write": {lk(3, true, 0, LockEnd), true},
	} {
		if _, got := Conflict(have, tc.l); got != tc.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

// TestSetLockModel compares the ranges with a byte map, one owner's lock type a byte.
func TestSetLockModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 24
		var list []Lock
		model := map[uint64]*[size]msg.LockType{1: {}, 2: {}}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			owner := rapid.Uint64Range(1, 2).Draw(t, "owner")
			typ := msg.LockType(rapid.IntRange(0, 2).Draw(t, "type"))
			a := rapid.Uint64Range(0, size-1).Draw(t, "start")
			b := rapid.Uint64Range(a, size-1).Draw(t, "end")
			list = SetLock(list, lk(owner, false, a, b), typ)
			for i := a; i <= b; i++ {
				model[owner][i] = typ
			}
		}
		got := map[uint64]*[size]msg.LockType{1: {}, 2: {}}
		for i, l := range list {
			for at := l.Start; at <= l.End; at++ {
				typ := msg.LockType_READ_LOCK
				if l.Write {
					typ = msg.LockType_WRITE_LOCK
				}
				if got[l.Owner.Number][at] != 0 {
					t.Fatalf("locks %d and another overlap: %+v", i, list)
				}
				got[l.Owner.Number][at] = typ
			}
			for _, o := range list[i+1:] {
				if o.Owner == l.Owner && o.Write == l.Write && touches(o, l) {
					t.Fatalf("not merged: %+v", list)
				}
			}
		}
		for owner, want := range model {
			if *got[owner] != *want {
				t.Fatalf("owner %d: got %v, want %v", owner, *got[owner], *want)
			}
		}
	})
}
