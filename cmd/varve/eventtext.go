package main

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"varve/internal/wire/msg"
	"varve/mds/event"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// eventJSON is one event as `journal cat --json` prints it, one object a line.
type eventJSON struct {
	Index uint64         `json:"index"`
	Time  string         `json:"time"`
	Kind  string         `json:"kind"`
	What  string         `json:"what"`
	Paths []string       `json:"paths,omitempty"` // that it is about, as they were
	Cause causeJSON      `json:"cause"`
	Body  map[string]any `json:"body"`
}

type causeJSON struct {
	Session uint64 `json:"session,omitempty"`
	Seq     uint64 `json:"seq,omitempty"`
	UID     uint32 `json:"uid"`
	Reason  string `json:"reason,omitempty"`
}

func newEventJSON(ev *event.Event, what string, paths []string) eventJSON {
	c := ev.GetCause()
	e := eventJSON{
		Index: ev.Index, Time: time.Unix(0, ev.Time).UTC().Format(time.RFC3339Nano), Kind: event.Kind(ev), What: what, Paths: paths,
		Cause: causeJSON{c.GetSession(), c.GetSeq(), c.GetUid(), c.GetReason()}, Body: map[string]any{},
	}
	if body := eventBody(ev); body != nil {
		e.Body = messageMap(body)
	}
	return e
}

// eventBody returns the message of the event's kind, nil if it has none that this release knows.
func eventBody(ev *event.Event) protoreflect.Message {
	m := ev.ProtoReflect()
	f := m.WhichOneof(m.Descriptor().Oneofs().ByName("body"))
	if f == nil {
		return nil
	}
	return m.Get(f).Message()
}

func messageMap(m protoreflect.Message) map[string]any {
	out := map[string]any{}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if !f.IsList() {
			out[string(f.Name())] = valueAny(f, v)
			return true
		}
		items := make([]any, v.List().Len())
		for i := range items {
			items[i] = valueAny(f, v.List().Get(i))
		}
		out[string(f.Name())] = items
		return true
	})
	return out
}

func valueAny(f protoreflect.FieldDescriptor, v protoreflect.Value) any {
	if f.Kind() == protoreflect.MessageKind {
		return messageMap(v.Message())
	}
	return valueOf(f, v)
}

// namedValue reports whether an integer or bytes field is shown as a word rather than as it is.
func namedValue(f protoreflect.FieldDescriptor) bool {
	switch f.Name() {
	case "type", "want", "perm", "uuid", "digest", "nonce":
		return true
	}
	return false
}

// valueOf returns a scalar as a person wants to see it: permissions in octal, types by name, names as text.
func valueOf(f protoreflect.FieldDescriptor, v protoreflect.Value) any {
	switch f.Kind() {
	case protoreflect.EnumKind:
		if e := f.Enum().Values().ByNumber(v.Enum()); e != nil {
			return strings.ToLower(string(e.Name()))
		}
		return strconv.Itoa(int(v.Enum()))
	case protoreflect.BytesKind:
		if b := v.Bytes(); !namedValue(f) && utf8.Valid(b) {
			return string(b)
		}
		return "0x" + hex.EncodeToString(v.Bytes())
	case protoreflect.Uint32Kind:
		n := uint32(v.Uint())
		switch {
		case f.Name() == "perm":
			return fmt.Sprintf("%04o", n)
		case f.Name() == "want":
			return strings.ToLower(strings.TrimPrefix(msg.Want(n).String(), "WANT_"))
		case f.Name() == "type" && f.Parent().Name() == "LockSet":
			return strings.ToLower(msg.LockType(n).String())
		case f.Name() == "type":
			return typeText(msg.FileType(n))
		}
	}
	return v.Interface()
}

// typeText is the type of a file in one word.
func typeText(t msg.FileType) string { return strings.ToLower(t.String()) }

func printable(b []byte) bool {
	if !utf8.Valid(b) {
		return false
	}
	for _, r := range string(b) {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}
