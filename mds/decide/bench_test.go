package decide

import (
	"fmt"
	"testing"

	"varve/internal/fserr"
	"varve/internal/id"

	"varve/internal/wire/msg"
)

// BenchmarkDecide decides what clients ask most, with its latches, in a directory of 1,000 files. Nothing is applied, so each round decides the same.
func BenchmarkDecide(b *testing.B) {
	w := newWorld()
	session := w.openSession()
	create := func(name string) *msg.MetaRequest {
		return &msg.MetaRequest{Op: &msg.MetaRequest_Create{Create: &msg.Create{
			Parent: uint64(id.Root), Name: []byte(name), Type: msg.FileType_REGULAR, Perm: 0o644, Exclusive: true, Open: true,
		}}}
	}
	file := uint64(0)
	for i := range 1000 {
		code, r := w.do(session, create(fmt.Sprintf("file-%04d", i)))
		if code != fserr.OK {
			b.Fatal(code)
		}
		file = r.Attr.Ino
	}
	name := []byte("file-0999") // the file
	for _, c := range []struct {
		name string
		req  *msg.MetaRequest
	}{
		{"create", create("another")},
		{"rename", &msg.MetaRequest{Op: &msg.MetaRequest_Rename{Rename: &msg.Rename{
			Parent: uint64(id.Root), Name: name, NewParent: uint64(id.Root), NewName: []byte("moved"),
		}}}},
		{"remove", &msg.MetaRequest{Op: &msg.MetaRequest_Remove{Remove: &msg.Remove{Parent: uint64(id.Root), Name: name}}}},
		{"setattr", &msg.MetaRequest{Op: &msg.MetaRequest_SetAttr{SetAttr: &msg.SetAttr{Ino: file, Size: p(uint64(1 << 20)), Flush: true}}}},
		{"alloc", &msg.MetaRequest{Op: &msg.MetaRequest_AllocChunk{AllocChunk: &msg.AllocChunk{Ino: file, Count: 1}}}},
		{"lookup", &msg.MetaRequest{Op: &msg.MetaRequest_Lookup{Lookup: &msg.Lookup{Parent: uint64(id.Root), Name: name}}}},
		{"getattr", &msg.MetaRequest{Op: &msg.MetaRequest_GetAttr{GetAttr: &msg.GetAttr{Ino: file}}}},
	} {
		b.Run("op="+c.name, func(b *testing.B) {
			c.req.Session, c.req.Cred = session, &msg.Cred{}
			if !ReadOnly(c.req) {
				c.req.Seq, c.req.Acked = w.seq+1, w.seq
			}
			env := w.env
			env.Now = w.now + 1
			ino := w.ino
			env.NextIno = func() id.Ino { return ino + 1 }
			chunk := max(w.chunk, w.s.NextChunk())
			env.NextChunk = func() id.ChunkID { return chunk + 1 }
			var out Outcome
			b.ReportAllocs()
			for b.Loop() {
				Latches(w.s, c.req)
				out = Decide(w.s, c.req, &env)
			}
			if out.Code != fserr.OK || (out.Event == nil) != ReadOnly(c.req) {
				b.Fatalf("%v, event %v", out.Code, out.Event)
			}
		})
	}
}
