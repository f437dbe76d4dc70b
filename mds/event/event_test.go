package event

import (
	"testing"
)

// TestKind: every body has a name of its own.
func TestKind(t *testing.T) {
	seen := map[string]string{}
	fields := (&Event{}).ProtoReflect().Descriptor().Oneofs().ByName("body").Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		e := &Event{}
		m := e.ProtoReflect()
		m.Set(f, m.NewField(f))
		k := Kind(e)
		if other, twice := seen[k]; twice || k == "none" {
			t.Errorf("%s: kind %q, also of %q", f.Name(), k, other)
		}
		seen[k] = string(f.Name())
	}
}
