package client

import "varve/internal/wire/msg"

// seenWriters is what the metadata servers said of who was let write to a file: indexes of events.
type seenWriters struct {
	asked  bool   // it was opened under this session
	before uint64 // the last time that anybody was, before this session was granted it first; 0: not known
	last   uint64 // the last time, as far as this session was told
}

// granted takes the answer to an Open. The caller holds inode.mu.
func (w *seenWriters) granted(o *msg.OpenReply) {
	if !w.asked {
		w.asked, w.before = true, o.WritableBefore
	}
	w.last = max(w.last, o.Lease, o.Writable)
}

// Lost reports whether the session that opened the file was lost: nothing succeeds any more.
func (f *File) Lost() bool { return f.in.s.ctx.Err() != nil }

// Taken reports whether another session may have been let write to the file since the last of some opens of it, of this client, of which the sessions were
// lost. Who has kept what he read by them, as a guest does, must not go on then: he would write over what somebody else has written.
func (f *File) Taken(lost []*File) bool {
	last := uint64(0)
	for _, old := range lost {
		if old.in.ino == f.in.ino {
			old.in.mu.Lock()
			last = max(last, old.in.seen.last)
			// Who writes alone is asked before anybody else is let. The metadata servers forget of files that were granted long ago when that was.
			if old.in.seen.last > 0 && old.in.mode == msg.Mode_EXCLUSIVE_WRITE {
				last = max(last, old.in.s.asOf.Load())
			}
			old.in.mu.Unlock()
		}
	}
	f.in.mu.Lock()
	defer f.in.mu.Unlock()
	return last > 0 && (f.in.seen.before == 0 || f.in.seen.before > last)
}
