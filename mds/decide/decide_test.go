package decide

import (
	"testing"

	"varve/internal/fserr"
	"varve/internal/wire/msg"
)

func appendTo(ino, seq, acked uint64) *msg.MetaRequest {
	return &msg.MetaRequest{Seq: seq, Acked: acked, Op: &msg.MetaRequest_Append{Append: &msg.Append{Ino: ino, Length: 10}}}
}

// TestOnce: a repeated request gets the first outcome, and one whose outcome is forgotten is refused.
func TestOnce(t *testing.T) {
	w := newWorld()
	s := w.openSession()
	w.do(s, &msg.MetaRequest{Seq: 1, Op: &msg.MetaRequest_Create{Create: &msg.Create{
		Parent: 1, Name: []byte("f"), Type: msg.FileType_REGULAR, Open: true,
	}}})
	w.do(s, appendTo(2, 2, 0))
	w.do(s, appendTo(2, 3, 0))
	for _, tc := range []struct {
		seq, acked uint64
		code       fserr.Code
		offset     uint64
	}{{2, 0, fserr.OK, 0}, {3, 0, fserr.OK, 10}, {4, 3, fserr.OK, 20}, {4, 3, fserr.OK, 20}, {2, 0, fserr.Protocol, 0}, {5, 5, fserr.Protocol, 0}, {0, 0, fserr.OK, 30}} {
		req := appendTo(2, tc.seq, tc.acked)
		w.seq = 6
		code, r := w.do(s, req)
		if code != tc.code || r.GetAppend().GetOffset() != tc.offset {
			t.Errorf("seq %d: %v, offset %d; want %v, %d", tc.seq, code, r.GetAppend().GetOffset(), tc.code, tc.offset)
		}
	}
	if n, _ := w.s.Inode(2); n.Size != 40 {
		t.Errorf("size %d, want 40", n.Size)
	}
}

// TestACL: the permission bits follow an access ACL, and a malformed one is refused.
func TestACL(t *testing.T) {
	entry := func(tag, perm byte) []byte { return []byte{tag, 0, perm, 0, 0, 0, 0, 0} }
	acl := func(entries ...[]byte) []byte {
		v := []byte{2, 0, 0, 0}
		for _, e := range entries {
			v = append(v, e...)
		}
		return v
	}
	for name, tc := range map[string]struct {
		v    []byte
		perm uint32
		ok   bool
	}{
		"minimal":      {acl(entry(1, 7), entry(4, 5), entry(0x20, 4)), 0o754, true},
		"mask":         {acl(entry(1, 7), entry(2, 7), entry(4, 7), entry(0x10, 1), entry(0x20, 0)), 0o710, true},
		"without mask": {acl(entry(1, 7), entry(2, 7), entry(4, 7), entry(0x20, 0)), 0, false},
		"owner twice":  {acl(entry(1, 7), entry(1, 7), entry(4, 7), entry(0x20, 0)), 0, false},
		"no other":     {acl(entry(1, 7), entry(4, 7)), 0, false},
		"bad bits":     {acl(entry(1, 8), entry(4, 7), entry(0x20, 0)), 0, false},
		"short":        {[]byte{2, 0, 0}, 0, false},
		"version":      {[]byte{3, 0, 0, 0}, 0, false},
	} {
		if perm, ok := aclPerm(tc.v); perm != tc.perm || ok != tc.ok {
			t.Errorf("%s: got %04o %v, want %04o %v", name, perm, ok, tc.perm, tc.ok)
		}
	}
}
