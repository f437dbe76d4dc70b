package event

// Recycler decodes events into the memory of those that it decoded before Recycle was called. It is for those who read millions of events, each only for a
// moment: what most events are made of is not allocated again. It belongs to one goroutine at a time. The zero value is ready for use.
type Recycler struct {
	events  pool[Event]
	causes  pool[Cause]
	creates pool[Event_Create]
	removes pool[Event_Remove]
	renames pool[Event_Rename]
	attrs   pool[Event_SetAttr]
	leases  pool[Event_LeaseSet]
	allocs  pool[Event_ChunkAlloc]
	purges  pool[Event_Purged]
}

// pool is a list of records of which the first used ones are in use.
type pool[T any] struct {
	list []*T
	used int
}

func (p *pool[T]) get(make func() *T) *T {
	if p.used == len(p.list) {
		p.list = append(p.list, make())
	}
	p.used++
	return p.list[p.used-1]
}

// Recycle takes back every event: none that Decode returned may be used any more.
func (r *Recycler) Recycle() {
	r.events.used, r.causes.used, r.creates.used, r.removes.used, r.renames.used = 0, 0, 0, 0, 0
	r.attrs.used, r.leases.used, r.allocs.used, r.purges.used = 0, 0, 0, 0
}

// Fields of Event.
const (
	fieldCause   = 3
	fieldCreate  = 20
	fieldRemove  = 22
	fieldRename  = 23
	fieldSetAttr = 24
	fieldLease   = 27
	fieldAlloc   = 40
	fieldPurged  = 45
)

// Decode returns the event of which b is the encoding, as UnmarshalVT does. It is valid until Recycle.
func (r *Recycler) Decode(b []byte) (*Event, error) {
	ev := r.events.get(func() *Event { return new(Event) })
	ev.Reset()
	cause, body := outline(b)
	if cause {
		ev.Cause = r.causes.get(func() *Cause { return new(Cause) })
		ev.Cause.Reset()
	}
	switch body {
	case fieldCreate:
		w := r.creates.get(func() *Event_Create { return &Event_Create{Create: new(Create)} })
		w.Create.empty()
		ev.Body = w
	case fieldRemove:
		w := r.removes.get(func() *Event_Remove { return &Event_Remove{Remove: new(Remove)} })
		w.Remove.empty()
		ev.Body = w
	case fieldRename:
		w := r.renames.get(func() *Event_Rename { return &Event_Rename{Rename: new(Rename)} })
		w.Rename.empty()
		ev.Body = w
	case fieldSetAttr:
		w := r.attrs.get(func() *Event_SetAttr { return &Event_SetAttr{SetAttr: new(SetAttr)} })
		w.SetAttr.empty()
		ev.Body = w
	case fieldLease:
		w := r.leases.get(func() *Event_LeaseSet { return &Event_LeaseSet{LeaseSet: new(LeaseSet)} })
		w.LeaseSet.empty()
		ev.Body = w
	case fieldAlloc:
		w := r.allocs.get(func() *Event_ChunkAlloc { return &Event_ChunkAlloc{ChunkAlloc: new(ChunkAlloc)} })
		w.ChunkAlloc.empty()
		ev.Body = w
	case fieldPurged:
		w := r.purges.get(func() *Event_Purged { return &Event_Purged{Purged: new(Purged)} })
		w.Purged.empty()
		ev.Body = w
	}
	if err := ev.UnmarshalVT(b); err != nil {
		return nil, err
	}
	return ev, nil
}

// The bodies without what they hold, but with room for it.

func (x *Create) empty() {
	name, target := x.Name[:0], x.Target[:0]
	x.Reset()
	x.Name, x.Target = name, target
}

func (x *Remove) empty() {
	name := x.Name[:0]
	x.Reset()
	x.Name = name
}

func (x *Rename) empty() {
	name, newName := x.Name[:0], x.NewName[:0]
	x.Reset()
	x.Name, x.NewName = name, newName
}

func (x *SetAttr) empty() { x.Reset() }

func (x *LeaseSet) empty() {
	entries := x.Entries[:0]
	x.Reset()
	x.Entries = entries
}

func (x *ChunkAlloc) empty() {
	chunks := x.Chunks[:0]
	x.Reset()
	x.Chunks = chunks
}

func (x *Purged) empty() {
	chunks := x.Chunks[:0]
	x.Reset()
	x.Chunks = chunks
}

// outline returns whether an encoded event has a cause, and the field of its body, 0 if it is none of those above. It need not be
// right about what cannot be decoded.
func outline(b []byte) (cause bool, body uint64) {
	for len(b) > 0 {
		tag, n := varint(b)
		if n == 0 {
			return cause, 0
		}
		b = b[n:]
		length, n := varint(b)
		if n == 0 {
			return cause, 0
		}
		b = b[n:]
		switch tag & 7 {
		case 0:
			continue
		case 2:
			if length > uint64(len(b)) {
				return cause, 0
			}
			b = b[length:]
		default:
			return cause, 0
		}
		switch field := tag >> 3; field {
		case fieldCause:
			cause = true
		case fieldCreate, fieldRemove, fieldRename, fieldSetAttr, fieldLease, fieldAlloc, fieldPurged:
			if body != 0 && body != field {
				return cause, 0 // two bodies: the last one counts, as UnmarshalVT finds
			}
			body = field
		}
	}
	return cause, body
}

// varint returns a number and how many bytes it takes; 0 bytes if it is not all there.
func varint(b []byte) (v uint64, n int) {
	for i, c := range b {
		if i == 10 {
			return 0, 0
		}
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			return v, i + 1
		}
	}
	return 0, 0
}
