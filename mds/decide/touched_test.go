package decide

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

// Every type of event either touches what sessions may cache, or is known not to.
func TestTouchedKnowsEveryEvent(t *testing.T) {
	touches := map[protoreflect.Name]bool{"create": true, "link": true, "remove": true, "rename": true, "set_attr": true, "set_xattr": true,
		"remove_xattr": true, "lease_set": true, "policy_set": true, "chunk_alloc": true}
	none := map[protoreflect.Name]bool{
		"cluster_init": true, "session_open": true, "session_forgotten": true, "lock_set": true,
		"session_close": true, // an inode that goes with its last holder has no name
		"replica_drop":  true, "replica_join": true, "replica_sync": true, "server_lost": true, "replica_accept": true, "bad_blocks": true, "purged": true, "punch_done": true, "settled": true,
		"server_add": true, "server_update": true, "server_retire": true, "server_mode": true, "meta_add": true, "meta_remove": true, "meta_update": true,
		"config_set": true, "digest": true, "security_set": true, "cert_issue": true, "cert_revoke": true,
	}
	fields := new(event.Event).ProtoReflect().Descriptor().Oneofs().ByName("body").Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if touches[f.Name()] == none[f.Name()] {
			t.Errorf("event %s: say in Touched and here what of the attributes and names that sessions cache it changes", f.Name())
		}
		if !touches[f.Name()] {
			continue
		}
		ev := new(event.Event)
		body := ev.ProtoReflect().NewField(f).Message()
		for _, name := range []protoreflect.Name{"ino", "parent", "new_parent"} {
			if n := f.Message().Fields().ByName(name); n != nil {
				body.Set(n, protoreflect.ValueOfUint64(7))
			}
		}
		ev.ProtoReflect().Set(f, protoreflect.ValueOfMessage(body))
		if l := ev.GetLeaseSet(); l != nil {
			l.Attr = &event.SetAttr{Ino: 7}
		}
		w := newWorld()
		if attrs, _ := Touched(w.s, ev); len(attrs) == 0 {
			t.Errorf("event %s touches nothing", f.Name())
		}
	}
}

// visible is what a session may be granted to cache.
type visible struct {
	attrs map[id.Ino]*msg.Attr
	names map[id.Ino]map[string]id.Ino
}

func visibleIn(s *state.State) visible {
	v := visible{map[id.Ino]*msg.Attr{}, map[id.Ino]map[string]id.Ino{}}
	s.Inodes(0, func(n *state.Inode) bool {
		v.attrs[n.Ino] = n.Attr()
		if n.IsDir() {
			v.names[n.Ino] = map[string]id.Ino{"..": n.Parent}
			s.Dentries(n.Ino, 0, func(d *state.Dentry) bool {
				v.names[n.Ino][d.Name] = d.Ino
				return true
			})
		}
		return true
	})
	return v
}

// Whatever a random event changes of what was there, Touched has said before. What has no name is granted to nobody, so it may go unsaid.
func TestTouchedMissesNoChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		w.openSession()
		w.openSession()
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			before, old, at := w.s.Clone(), visibleIn(w.s), len(w.log)
			if rapid.IntRange(0, 9).Draw(t, "who") == 0 {
				leaderStep(t, w)
			} else {
				w.do(rapid.Uint64Range(1, 3).Draw(t, "session"), randomRequest(t, w))
			}
			var attrs, names []id.Ino
			for _, ev := range w.log[at:] {
				a, n := Touched(before, ev)
				attrs, names = append(attrs, a...), append(names, n...)
			}
			now := visibleIn(w.s)
			for ino, a := range old.attrs {
				if b := now.attrs[ino]; a.Nlink > 0 && (b == nil || !proto.Equal(a, b)) && !slices.Contains(attrs, ino) {
					t.Fatalf("%v: attributes of %v were %v and are %v: untold", w.log[at:], ino, a, b)
				}
			}
			for ino, list := range old.names {
				b := now.names[ino]
				same := len(b) == len(list)
				for name, child := range list {
					same = same && b[name] == child
				}
				if !same && !slices.Contains(names, ino) {
					t.Fatalf("%v: names in %v were %v and are %v: untold", w.log[at:], ino, list, b)
				}
			}
		}
	})
}
