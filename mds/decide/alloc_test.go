package decide

import (
	"testing"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// TestAllocWithoutServers: a leader that no chunk server has registered with yet knows of no free byte anywhere. That is no lack
// of space: a write then waits. It is one when the live servers would do and none has room.
func TestAllocWithoutServers(t *testing.T) {
	w := newWorld()
	session := w.openSession()
	code, reply := w.do(session, &msg.MetaRequest{Op: &msg.MetaRequest_Create{Create: &msg.Create{
		Parent: 1, Name: []byte("f"), Type: msg.FileType_REGULAR, Perm: 0o644, Open: true}}})
	if code != fserr.OK {
		t.Fatal(code)
	}
	alloc := func() fserr.Code {
		code, _ := w.do(session, &msg.MetaRequest{Op: &msg.MetaRequest_AllocChunk{AllocChunk: &msg.AllocChunk{Ino: reply.Attr.Ino, Count: 1}}})
		return code
	}
	place := w.env.Place
	w.env.Place = func(id.Ino, uint32, int) []id.ServerID { return nil }
	w.env.Space = func(int) (uint64, uint64) { return 0, 0 }
	for v := range id.ServerID(4) {
		w.dead[v+1] = true
	}
	if got := alloc(); got != fserr.Unavailable {
		t.Errorf("no server has registered: %v, want %v", got, fserr.Unavailable)
	}
	clear(w.dead)
	if got := alloc(); got != fserr.NoSpace {
		t.Errorf("all servers are full: %v, want %v", got, fserr.NoSpace)
	}
	w.env.Place = place
	if got := alloc(); got != fserr.OK {
		t.Errorf("all is well: %v", got)
	}
}
