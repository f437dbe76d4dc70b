package event

import (
	"bytes"
	"math/rand"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// fill sets fields of m at random, some not at all.
func fill(rnd *rand.Rand, m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.ContainingOneof() != nil && !f.HasOptionalKeyword() || rnd.Intn(3) == 0 {
			continue
		}
		one := func() protoreflect.Value {
			switch f.Kind() {
			case protoreflect.BoolKind:
				return protoreflect.ValueOfBool(rnd.Intn(2) == 0)
			case protoreflect.Uint32Kind:
				return protoreflect.ValueOfUint32(rnd.Uint32())
			case protoreflect.Uint64Kind:
				return protoreflect.ValueOfUint64(rnd.Uint64())
			case protoreflect.Int64Kind:
				return protoreflect.ValueOfInt64(int64(rnd.Uint64()))
			case protoreflect.EnumKind:
				return protoreflect.ValueOfEnum(protoreflect.EnumNumber(rnd.Intn(3)))
			case protoreflect.StringKind:
				return protoreflect.ValueOfString("text"[:rnd.Intn(5)])
			case protoreflect.BytesKind:
				return protoreflect.ValueOfBytes(bytes.Repeat([]byte{byte(rnd.Intn(256))}, rnd.Intn(40)))
			}
			return protoreflect.Value{}
		}
		switch {
		case f.IsList():
			list := m.Mutable(f).List()
			for range rnd.Intn(4) {
				if f.Message() != nil {
					fill(rnd, list.AppendMutable().Message(), depth+1)
				} else {
					list.Append(one())
				}
			}
		case f.Message() != nil:
			if depth < 3 {
				fill(rnd, m.Mutable(f).Message(), depth+1)
			}
		default:
			m.Set(f, one())
		}
	}
}

// TestRecycler: whatever was decoded before, an event comes out as UnmarshalVT gives it.
func TestRecycler(t *testing.T) {
	rnd := rand.New(rand.NewSource(1))
	bodies := (&Event{}).ProtoReflect().Descriptor().Oneofs().ByName("body").Fields()
	var r Recycler
	for range 200 {
		r.Recycle()
		var want, got []*Event
		for range 100 {
			ev := new(Event)
			fill(rnd, ev.ProtoReflect(), 0)
			if f := bodies.Get(rnd.Intn(bodies.Len())); rnd.Intn(50) > 0 {
				fill(rnd, ev.ProtoReflect().Mutable(f).Message(), 0)
			}
			b, err := ev.MarshalVT()
			if err != nil {
				t.Fatal(err)
			}
			plain := new(Event)
			if err := plain.UnmarshalVT(b); err != nil {
				t.Fatal(err)
			}
			x, err := r.Decode(b)
			if err != nil {
				t.Fatal(err)
			}
			want, got = append(want, plain), append(got, x)
		}
		for i := range want {
			if !proto.Equal(want[i], got[i]) {
				t.Fatalf("got %v, want %v", got[i], want[i])
			}
		}
	}
}

// FuzzRecycler: what is no event is an error for both, and what is one is the same.
func FuzzRecycler(f *testing.F) {
	ev := &Event{Index: 1, Cause: &Cause{Session: 1}, Body: &Event_Create{Create: &Create{Parent: 1, Name: []byte("a"), Ino: 2}}}
	b, _ := ev.MarshalVT()
	f.Add(b)
	two, _ := (&Event{Body: &Event_Remove{Remove: &Remove{Name: []byte("b")}}}).MarshalVT()
	f.Add(append(b, two...))
	var r Recycler
	f.Fuzz(func(t *testing.T, b []byte) {
		plain := new(Event)
		want := plain.UnmarshalVT(b)
		r.Recycle()
		for range 2 { // the second into the memory of another
			got, err := r.Decode(b)
			if (err == nil) != (want == nil) {
				t.Fatalf("error %v, want %v", err, want)
			}
			if err == nil && !proto.Equal(got, plain) {
				t.Fatalf("got %v, want %v", got, plain)
			}
			r.Recycle()
		}
	})
}
