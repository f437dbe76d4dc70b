package state

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	"varve/mds/event"
)

// anyEvent draws an event with whatever in its fields, as far as it can be decoded. Numbers are small, so that some fit.
func anyEvent(t *rapid.T) *event.Event {
	ev := new(event.Event)
	m := ev.ProtoReflect()
	bodies := m.Descriptor().Oneofs().ByName("body").Fields()
	b := bodies.Get(rapid.IntRange(1, bodies.Len()-1).Draw(t, "kind")) // none makes the cluster again
	body := m.NewField(b)
	fillAny(t, body.Message(), 3)
	m.Set(b, body)
	ev.Time = rapid.Int64Range(-1, 1<<40).Draw(t, "time")
	if rapid.Bool().Draw(t, "caused") {
		ev.Cause = &event.Cause{Session: rapid.Uint64Range(0, 4).Draw(t, "session"), Seq: rapid.Uint64Range(0, 40).Draw(t, "seq"),
			Acked: rapid.Uint64Range(0, 30).Draw(t, "acked")}
	}
	raw, err := ev.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	ev = new(event.Event)
	if err := ev.UnmarshalVT(raw); err != nil {
		t.Fatal(err)
	}
	return ev
}

func fillAny(t *rapid.T, m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.HasPresence() && f.Message() == nil && rapid.Bool().Draw(t, "absent") || depth == 0 {
			continue
		}
		if f.IsList() {
			list := m.Mutable(f).List()
			for range rapid.IntRange(0, 3).Draw(t, "n") {
				v := list.NewElement()
				if f.Message() != nil {
					fillAny(t, v.Message(), depth-1)
				} else {
					v = anyValue(t, f)
				}
				list.Append(v)
			}
			continue
		}
		if f.Message() != nil {
			if rapid.Bool().Draw(t, "message") {
				fillAny(t, m.Mutable(f).Message(), depth-1)
			}
			continue
		}
		m.Set(f, anyValue(t, f))
	}
}

func anyValue(t *rapid.T, f protoreflect.FieldDescriptor) protoreflect.Value {
	n := rapid.Uint64Range(0, 6).Draw(t, string(f.Name()))
	if rapid.IntRange(0, 19).Draw(t, "odd") == 0 {
		n = rapid.SampledFrom([]uint64{1 << 20, 64 << 20, 65 << 20, 1<<24 - 1, 1 << 31, 1<<32 - 1, 1 << 40, 1 << 60, 1<<64 - 1}).Draw(t, "big")
	}
	text := rapid.SampledFrom([]string{"a", "b", "c", "d", "", "replicas", "2:1", "0123456789abcdef"}).Draw(t, "text")
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n%2 == 1)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(int32(n)))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(n)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(int64(n))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(text)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(text))
	}
	panic(f.Kind().String())
}

// TestAnyEvents: whatever is decoded is applied or refused with ErrMisfit, but never panics otherwise; the digest that is kept is
// the one that is counted; clones stay what they were; what is written is read again.
func TestAnyEvents(t *testing.T) {
	applied, refused := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		s := New()
		for _, ev := range []*event.Event{evInit(), evServer(1), evServer(2), evServer(3), evSession(1), evSession(2),
			evCreate(1, 2, "a", 2), evCreate(1, 3, "b", 1), evCreate(2, 4, "c", 1), evAlloc(3, 0, 1, 1, 2), evAlloc(3, 1, 2, 2)} {
			s.Apply(ev)
		}
		type view struct {
			s      *State
			sum    Sum
			digest [32]byte
		}
		var views []view
		for range rapid.IntRange(10, 60).Draw(t, "events") {
			ev := anyEvent(t)
			before := s.Clone()
			sum := before.Sum()
			if err := s.Try(ev); err != nil {
				// The clone is what was before, and goes on.
				if s = before; s.Sum() != sum {
					t.Fatalf("%v was refused and changed the clone", ev)
				}
				refused++
			} else {
				applied++
			}
			if kept, counted := s.Sum(), s.Recount(); kept != counted {
				t.Fatalf("after %v: digest kept %x, counted %x", ev, kept, counted)
			}
			if rapid.IntRange(0, 9).Draw(t, "view") == 0 {
				c := s.Clone()
				views = append(views, view{c, c.Sum(), c.Digest()})
			}
		}
		views = append(views, view{s, s.Sum(), s.Digest()})
		for _, v := range views {
			if v.s.Recount() != v.sum || v.s.Digest() != v.digest {
				t.Fatalf("the clone at %v changed", v.s.Index())
			}
			var b bytes.Buffer
			if err := v.s.Write(&b); err != nil {
				t.Fatal(err)
			}
			r, err := Read(&b)
			if err != nil || r.Sum() != v.sum || r.Digest() != v.digest {
				t.Fatalf("written and read: %v", err)
			}
		}
	})
	t.Logf("%d events applied, %d refused", applied, refused)
	if applied < refused/50 {
		t.Error("hardly any event is applied")
	}
}
