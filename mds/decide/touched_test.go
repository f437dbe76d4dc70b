package decide

import (
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"varve/mds/event"
)

// Every type of event either touches what sessions may cache, or is known not to.
func TestTouchedKnowsEveryEvent(t *testing.T) {
	touches := map[protoreflect.Name]bool{"create": true, "link": true, "remove": true, "rename": true, "set_attr": true, "set_xattr": true,
		"remove_xattr": true, "lease_set": true, "policy_set": true, "chunk_alloc": true}
	none := map[protoreflect.Name]bool{
		"cluster_init": true, "session_open": true, "session_forgotten": true, "lock_set": true,
		"session_close": true, // an inode that goes with its last holder has no name
		"replica_drop":  true, "replica_join": true, "replica_sync": true, "server_lost": true, "purged": true, "punch_done": true, "settled": true,
		"server_add": true, "server_update": true, "server_retire": true, "meta_add": true, "meta_remove": true, "meta_update": true,
		"config_set": true, "digest": true,
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
