package state

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"varve/internal/wire/msg"
	"varve/mds/event"
)

// newer adds a field that this version does not know to an encoded message.
func newer(b []byte, text string) []byte {
	return protowire.AppendString(protowire.AppendTag(bytes.Clone(b), 2000, protowire.BytesType), text)
}

// TestNewerFields: what a newer version said in fields that are not known here is kept as it is, wherever it stands, and the rest of
// the event applies.
func TestNewerFields(t *testing.T) {
	create := &event.Create{Parent: 1, Name: []byte("x"), Ino: 50, Type: uint32(msg.FileType_REGULAR), Perm: 0o600}
	body, err := create.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	cause, err := (&event.Cause{Session: 1, Seq: 9, Acked: 2}).MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	var raw []byte
	raw = protowire.AppendVarint(protowire.AppendTag(raw, 2, protowire.VarintType), 77)
	raw = protowire.AppendBytes(protowire.AppendTag(raw, 3, protowire.BytesType), newer(cause, "in the cause"))
	raw = protowire.AppendBytes(protowire.AppendTag(raw, 20, protowire.BytesType), newer(body, "in the body"))
	raw = newer(raw, "in the event")
	ev := new(event.Event)
	if err := ev.UnmarshalVT(raw); err != nil {
		t.Fatal(err)
	}
	s, old := sample(t), sample(t)
	play(t, s, ev)
	plain := evCreate(1, 50, "x", msg.FileType_REGULAR)
	plain.Time, plain.GetCreate().Perm = 77, 0o600
	plain.Cause = &event.Cause{Session: 1, Seq: 9, Acked: 2}
	play(t, old, plain)
	if s.Sum() != old.Sum() {
		t.Error("fields of a newer version change what the event does")
	}
	out, err := ev.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"in the cause", "in the body", "in the event"} {
		if !bytes.Contains(out, []byte(text)) {
			t.Errorf("the field %s is lost in the journal", text)
		}
	}
}

// TestNewerEvent: an event of a kind that is not known here is never passed over.
func TestNewerEvent(t *testing.T) {
	raw := protowire.AppendBytes(protowire.AppendTag(nil, 900, protowire.BytesType), []byte{8, 1})
	ev := new(event.Event)
	if err := ev.UnmarshalVT(raw); err != nil {
		t.Fatal(err)
	}
	s := sample(t)
	err := s.Try(ev)
	if !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "newer version") {
		t.Errorf("got %v", err)
	}
	if err := sample(t).Try(evRemove(1, 99, "none")); !errors.Is(err, ErrMisfit) || errors.Is(err, ErrUnknown) {
		t.Errorf("an event that does not fit: %v", err)
	}
}

// TestOlderEvents: the first journal has none of the fields that came later, and they mean what was so before.
func TestOlderEvents(t *testing.T) {
	s := play(t, New(), decodeBatch(t, goldens(t)["every-event-1"])...)
	n, ok := s.Inode(3)
	if !ok || n.Perm() != 0o644 || !slices.Equal(n.Xattrs(), []Xattr{{"user.b", "z"}}) {
		t.Errorf("an xattr without a perm changed the mode, or is lost: %+v", n)
	}
}
