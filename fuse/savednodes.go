package fuse

import (
	"fmt"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// The inodes that the kernel refers to, as Saved.Nodes has them: 40 bytes each, little endian.
//
//	0 number u64 | 8 references u64 | 16 type u32 | 20 permissions u32 | 24 owner u32 | 28 group u32 | 32 reserved u64, zero
const nodeSize = 40

// put returns all of them.
func (t *nodes) put() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := make([]byte, 0, len(t.m)*nodeSize)
	for ino, n := range t.m {
		b = le.AppendUint64(b, uint64(ino))
		b = le.AppendUint64(b, n.lookups)
		for _, v := range [...]uint32{uint32(n.typ), n.perm, n.uid, n.gid} {
			b = le.AppendUint32(b, v)
		}
		b = le.AppendUint64(b, 0)
	}
	return b
}

// take fills the table with what put returned. The kernel is taken to believe nothing of them.
func (t *nodes) take(b []byte) error {
	if len(b)%nodeSize != 0 {
		return fmt.Errorf("saved inodes: %d bytes, want a multiple of %d: %w", len(b), nodeSize, fserr.Invalid)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for at := 0; at < len(b); at += nodeSize {
		x := b[at : at+nodeSize]
		typ := msg.FileType(le.Uint32(x[16:]))
		if _, known := msg.FileType_name[int32(typ)]; !known || le.Uint64(x) == 0 || le.Uint64(x[32:]) != 0 {
			return fmt.Errorf("saved inodes: number %d of type %d at %d: %w", le.Uint64(x), typ, at, fserr.Invalid)
		}
		t.m[id.Ino(le.Uint64(x))] = &node{
			lookups: le.Uint64(x[8:]), typ: typ, perm: le.Uint32(x[20:]), uid: le.Uint32(x[24:]), gid: le.Uint32(x[28:]),
		}
	}
	return nil
}
