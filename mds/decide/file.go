package decide

import (
	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

const (
	openLayout = 256      // chunks of the layout that comes with an open
	maxLayout  = 4096     // chunks of any other; the reply says how many it covers
	maxAlloc   = 256      // chunks that one request allocates
	maxDrop    = 64 << 10 // chunks that one event drops a replica from; the rest is dropped when it is met
	maxIndex   = chunk.MaxFileSize / chunk.Size
)

// Layout returns the chunks of the file in [first, first+count), of which at most 4096 are looked at. Its version
// is the state's index, which rises whenever the layout changes.
func Layout(s *state.State, env *Env, ino id.Ino, first, count uint32) *msg.LayoutReply {
	p := s.Policy(ino)
	r := &msg.LayoutReply{
		Version: uint64(s.Index()), First: first, Count: min(count, maxLayout), Min: p.Min, Norm: p.Norm,
	}
	s.Chunks(ino, first, r.Count, func(c *state.Chunk) bool {
		x := &msg.Chunk{Index: c.Index(), Id: uint64(c.ID), Epoch: uint64(c.Epoch()), Lost: uint64(s.Lost(c.ID)),
			Replicas: make([]*msg.Replica, c.Len())}
		for i := range x.Replicas {
			m := c.Replica(i)
			addr, _ := env.Servers(m.Server)
			x.Replicas[i] = &msg.Replica{Server: uint32(m.Server), Joining: m.Joining, Addr: addr}
		}
		r.Chunks = append(r.Chunks, x)
		return true
	})
	return r
}

func openReply(s *state.State, env *Env, n *state.Inode, session id.SessionID) *msg.OpenReply {
	if !n.IsRegular() {
		return &msg.OpenReply{}
	}
	l, _ := s.Lease(n.Ino, session)
	return &msg.OpenReply{
		Mode: s.Mode(n.Ino, session), Lease: uint64(l.Index), Layout: Layout(s, env, n.Ino, 0, openLayout),
		Writable: uint64(s.Writable(n.Ino)),
	}
}

// regular returns the inode, which has to be a regular file.
func (d *decider) regular(ino uint64) (*state.Inode, fserr.Code) {
	n, code := d.inode(ino)
	switch {
	case code != fserr.OK:
		return nil, code
	case n.IsDir():
		return nil, fserr.IsDir
	case !n.IsRegular():
		return nil, fserr.Invalid
	}
	return n, fserr.OK
}

// writable returns the regular file, which the session has to hold for writing.
func (d *decider) writable(ino uint64) (*state.Inode, fserr.Code) {
	n, code := d.regular(ino)
	if code == fserr.OK && !d.holds(n, msg.Want_WANT_WRITE) {
		return nil, fserr.Stale
	}
	return n, code
}

func (d *decider) open(op *msg.Open) Outcome {
	n, code := d.inode(op.Ino)
	mask := op.Mask & 7
	if op.Want == msg.Want_WANT_WRITE || op.Trunc {
		mask |= MayWrite
	}
	switch {
	case code != fserr.OK:
		return fail(code, "")
	case op.Want < msg.Want_WANT_READ || op.Want > msg.Want_WANT_WRITE || op.Trunc && op.Want != msg.Want_WANT_WRITE:
		return fail(fserr.Invalid, "")
	case n.IsDir() && mask&MayWrite != 0:
		return fail(fserr.IsDir, "")
	case !d.may(n, mask):
		return fail(fserr.Access, "")
	case !n.IsRegular():
		return d.nothing(n.Ino) // nothing to hold
	case d.req.Session == 0:
		return fail(fserr.Protocol, "only a session can hold a file")
	}
	var attr *event.SetAttr
	if op.Trunc && (n.Size > 0 || n.Chunks() > 0) {
		attr = &event.SetAttr{Ino: op.Ino, Size: new(uint64), Mtime: &d.env.Now}
		if d.cred.GetUid() != 0 {
			killPriv(n, attr)
		}
	}
	return d.grant(n, op.Want, attr)
}

// grant gives the session n for want; attr (or nil) is changed in the same event.
func (d *decider) grant(n *state.Inode, want msg.Want, attr *event.SetAttr) Outcome {
	if d.req.Session == 0 || attr == nil && d.holds(n, want) {
		return d.nothing(n.Ino)
	}
	if l, ok := d.s.Lease(n.Ino, id.SessionID(d.req.Session)); ok {
		want = max(want, l.Want)
	}
	return d.changes(&event.Event{Body: &event.Event_LeaseSet{LeaseSet: &event.LeaseSet{
		Attr: attr, Entries: []*event.LeaseSet_Entry{{Session: d.req.Session, Ino: uint64(n.Ino), Want: uint32(want)}},
		Writers: true,
	}}})
}

func (d *decider) release(op *msg.Release) Outcome {
	l, ok := d.s.Lease(id.Ino(op.Ino), id.SessionID(d.req.Session))
	// A release of an older lease crossed with an open: what was granted since stays.
	if !ok || op.Lease != 0 && op.Lease != uint64(l.Index) || op.Keep >= l.Want || op.Keep < 0 {
		return d.nothing(id.Ino(op.Ino))
	}
	return d.changes(&event.Event{Body: &event.Event_LeaseSet{LeaseSet: &event.LeaseSet{
		Entries: []*event.LeaseSet_Entry{{Session: d.req.Session, Ino: op.Ino, Want: uint32(op.Keep)}},
	}}})
}

func (d *decider) getLayout(op *msg.GetLayout) Outcome {
	n, code := d.regular(op.Ino)
	if code != fserr.OK {
		return fail(code, "")
	}
	return d.answer(n, &msg.MetaReply{Result: &msg.MetaReply_Layout{Layout: Layout(d.s, d.env, n.Ino, op.First, op.Count)}})
}

func (d *decider) allocChunk(op *msg.AllocChunk) Outcome {
	n, code := d.writable(op.Ino)
	switch {
	case code != fserr.OK:
		return fail(code, "")
	case op.Count == 0 || op.Count > maxAlloc:
		return fail(fserr.Invalid, "count")
	case uint64(op.First)+uint64(op.Count) > maxIndex:
		return fail(fserr.FileTooBig, "")
	}
	p := d.s.Policy(n.Ino)
	ev := &event.ChunkAlloc{Ino: op.Ino, Norm: p.Norm}
	for i := op.First; i < op.First+op.Count; i++ {
		if _, ok := d.s.Chunk(n.Ino, i); ok {
			continue
		}
		servers := d.env.Place(n.Ino, i, int(p.Norm))
		if len(servers) < int(p.Min) {
			if d.live() >= int(p.Min) {
				return fail(fserr.NoSpace, "the live chunk servers have no room for another chunk")
			}
			return fail(fserr.Unavailable, "fewer live chunk servers than the policy's minimum")
		}
		e := &event.ChunkAlloc_Entry{Index: i, Id: uint64(d.env.NextChunk()), Epoch: 1}
		for _, v := range servers {
			e.Servers = append(e.Servers, uint32(v))
		}
		ev.Chunks = append(ev.Chunks, e)
	}
	if len(ev.Chunks) == 0 {
		return d.nothing(n.Ino)
	}
	return d.changes(&event.Event{Body: &event.Event_ChunkAlloc{ChunkAlloc: ev}})
}

// live counts the chunk servers that are live.
func (d *decider) live() int {
	n := 0
	d.s.Servers(func(r *state.Server) bool {
		if _, live := d.env.Servers(r.ID); live && !r.Retired {
			n++
		}
		return true
	})
	return n
}

func (d *decider) dropReplica(op *msg.DropReplica) Outcome {
	n, code := d.regular(op.Ino)
	if code != fserr.OK {
		return fail(code, "")
	}
	c, ok := d.s.ChunkByID(id.ChunkID(op.Chunk))
	if !ok || c.Ino != n.Ino {
		return fail(fserr.StaleEpoch, "the chunk is gone")
	}
	server := id.ServerID(op.Server)
	r, ok := c.Find(server)
	least := int(d.s.Policy(n.Ino).Min)
	switch {
	case !ok:
		return d.nothing(n.Ino)
	case uint64(c.Epoch()) != op.Epoch:
		return fail(fserr.StaleEpoch, "")
	case !droppable(c, r, least):
		return fail(fserr.TooFew, "")
	}
	ev := &event.ReplicaDrop{Ino: op.Ino, Server: op.Server}
	add := func(c *state.Chunk) {
		ev.Chunks = append(ev.Chunks, &event.ReplicaDrop_Entry{Index: c.Index(), Epoch: uint64(c.Epoch()) + 1})
	}
	add(c)
	d.s.Chunks(n.Ino, 0, maxIndex, func(o *state.Chunk) bool {
		if r, ok := o.Find(server); ok && o.ID != c.ID && droppable(o, r, least) {
			add(o)
		}
		return len(ev.Chunks) < maxDrop
	})
	out := d.changes(&event.Event{Body: &event.Event_ReplicaDrop{ReplicaDrop: ev}})
	out.Event.Cause.Reason = op.Reason
	return out
}

// droppable reports whether the replica r of c may go: a joining one always, another if least remain in sync.
func droppable(c *state.Chunk, r state.Replica, least int) bool {
	return r.Joining || c.InSync()-1 >= max(least, 1)
}

// end returns off+n, or false if that is beyond the largest file.
func end(off, n uint64) (uint64, bool) {
	return off + n, off <= chunk.MaxFileSize && n <= chunk.MaxFileSize-off
}

// mtime returns the later of n's and the given time, which is now if it is 0.
func (d *decider) mtime(n *state.Inode, given int64) int64 {
	if given == 0 {
		given = d.env.Now
	}
	return max(given, n.Mtime)
}

func (d *decider) writeDone(op *msg.WriteDone) Outcome {
	n, code := d.writable(op.Ino)
	if code != fserr.OK {
		return fail(code, "")
	}
	size, ok := end(op.Offset, op.Length)
	if !ok {
		return fail(fserr.FileTooBig, "")
	}
	ev := &event.SetAttr{Ino: op.Ino}
	if size > n.Size && op.Length > 0 && !op.Punch {
		ev.Size = &size
	}
	if t := d.mtime(n, op.Mtime); t != n.Mtime {
		ev.Mtime = &t
	}
	return d.attrChanges(n, ev)
}

func (d *decider) append(op *msg.Append) Outcome {
	n, code := d.writable(op.Ino)
	if code != fserr.OK {
		return fail(code, "")
	}
	off := n.Size
	if d.alone(n) {
		// The answer to the recall by which the session leaves off writing alone is still on its way: until it is here nobody else is granted
		// anything, so that the file ends where the session says.
		off = max(off, op.Size)
	}
	size, ok := end(off, op.Length)
	if !ok {
		return fail(fserr.FileTooBig, "")
	}
	t := d.mtime(n, op.Mtime)
	return d.changes(&event.Event{Body: &event.Event_SetAttr{SetAttr: &event.SetAttr{
		Ino: op.Ino, Size: &size, Mtime: &t, Offset: &off,
	}}})
}

func (d *decider) punchDone(op *msg.PunchDone) Outcome {
	n, code := d.regular(op.Ino)
	if code != fserr.OK {
		return fail(code, "")
	}
	if _, ok := n.Punch(); !ok {
		return d.nothing(n.Ino)
	}
	return d.changes(&event.Event{Body: &event.Event_PunchDone{PunchDone: &event.PunchDone{Ino: op.Ino}}})
}
