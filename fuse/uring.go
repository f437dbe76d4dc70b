package fuse

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/id"
	"varve/iouring"
	"varve/iouring/reactor"
)

// uring is FUSE over io_uring beside loops: requests come as completions on the loops' rings, straight into memory that belongs to an entry of a queue, and
// an answer is a submission that completes with the next request. The kernel puts a request into the queue of the processor that its caller runs on, and
// a queue belongs to the loop that runs there. FORGET and INTERRUPT come by /dev/fuse all the same, which the first loop reads, as does all that comes
// before every queue has an entry. If the kernel refuses the queues, all loops read /dev/fuse.
//
// An entry is taken for as long as its request is served, by a wait for a lock also. So a queue that has few left gets more, as many as requests may be under
// way: with a fixed number, waits for locks could take all entries, and the unlock would wait behind them.
//
// Memory: the payload of an entry is as long as the largest request, mapped and touched only as far as requests need it. The kernel takes the entry that was
// given back last, so that what is touched is what is under way. It is unmapped when the kernel has ended every command and nobody serves a request.
type uring struct {
	t      *loops
	queues []*ringQueue // by number
	fell   atomic.Bool  // back to /dev/fuse
	depth  int          // entries of a queue at first
	most   int          // at last
	size   int          // of a payload
	kept   []keptRegion // of the program that served the mount before
}

var _ replier = (*uring)(nil)

// ringQueue belongs to the thread of its loop.
type ringQueue struct {
	u       *uring
	d       *devLoop
	number  int
	entries int // that the kernel has taken, or may yet refuse
	refused int
	busy    int // of the entries, those whose request is being served
	full    bool
	held    []*ringEntry // whose requests came during a pause
	memory  []ringRegion
}

// ringEntry is in turn with the kernel (its command is under way), and with who serves its request.
type ringEntry struct {
	q       *ringQueue
	op      reactor.Op
	raw     iouring.Raw
	head    []byte
	payload []byte
	command [ringCommandSize]byte
	answer  reactor.Task // the commit of a goroutine
	unique  uint64       // of the request
	lost    func()       // of the answer under way
	known   bool         // the kernel has taken it
}

const (
	ringDepth   = 32
	ringEntries = 3 << 10 // of all queues of a loop: as many operations may be under way, with room for others
	ringOps     = 4 << 10
)

// newUring prepares the queues, one for each processor that the machine may ever have.
func newUring(t *loops, cpus int) *uring {
	u := &uring{t: t, depth: ringDepth, size: maxWrite}
	if t.s.opts.ringPayload > 0 {
		u.size = t.s.opts.ringPayload
	}
	owner := make(map[int]int)
	for i, set := range processors(len(t.all)) {
		for _, cpu := range set {
			owner[cpu] = i
		}
	}
	loads := make([]int, len(t.all))
	for number := range cpus {
		i, ok := owner[number]
		if !ok {
			i = number % len(t.all)
		}
		loads[i]++
		d := t.all[i]
		q := &ringQueue{u: u, d: d, number: number}
		d.queues = append(d.queues, q)
		u.queues = append(u.queues, q)
	}
	u.most = min(ringEntries/max(1, maxOf(loads)), t.s.opts.MaxRequests)
	u.depth = max(1, min(u.depth, u.most))
	return u
}

func maxOf(list []int) (most int) {
	for _, n := range list {
		most = max(most, n)
	}
	return most
}

// register gives the kernel the first entries of all queues, after INIT. From then on until each queue has one, it holds requests back.
func (u *uring) register() {
	for _, d := range u.t.all {
		d.l.Do(func() {
			for _, q := range d.queues {
				if err := q.grow(u.depth); err != nil {
					u.fallBack(err)
				}
			}
		})
	}
}

// fallBack lets all requests come by /dev/fuse, and other loops help the first one with it.
func (u *uring) fallBack(cause error) {
	if u.fell.CompareAndSwap(false, true) {
		s := u.t.s
		s.log.Warn("the kernel does not take the queues of FUSE over io_uring; going on with "+devicePath, "cause", cause)
		c := s.Conn()
		c.Transport, c.Why = Dev, fmt.Sprintf("FUSE over io_uring was refused: %v", cause)
		s.conn.Store(&c)
	}
}

// grow adds n entries.
func (q *ringQueue) grow(n int) error {
	r, err := newRegion(n * (q.u.size + ringHeaderStride))
	if err != nil {
		return err
	}
	r.entries = n
	for _, e := range q.add(r) {
		e.submit()
	}
	return nil
}

// add makes the entries that are in r.
func (q *ringQueue) add(r ringRegion) []*ringEntry {
	u, n, memory := q.u, r.entries, r.mem
	q.memory = append(q.memory, r)
	heads := memory[n*u.size:]
	all := make([]*ringEntry, n)
	for i := range n {
		e := &ringEntry{
			q: q, payload: memory[i*u.size : (i+1)*u.size : (i+1)*u.size],
			head: heads[i*ringHeaderStride:][:ringHeaderSize:ringHeaderSize],
		}
		e.op.Done, e.answer.Run = e.done, e.commit
		le.PutUint16(e.command[16:], uint16(q.number))
		e.raw = iouring.Raw{
			SQE: iouring.SQE{Opcode: iouring.OpUringCmd, Off: ringRegister}, File: iouring.FD(q.d.fd),
			Vec: [][]byte{e.head, e.payload}, Cmd: e.command[:],
		}
		q.entries++
		all[i] = e
	}
	return all
}

// submit gives the entry to the kernel.
func (e *ringEntry) submit() {
	d := e.q.d
	d.pending.Add(1)
	d.l.Raw(&e.op, &e.raw)
}

// done is told that the kernel has given the entry back: with a request, or for good.
func (e *ringEntry) done(_ int, err error) {
	q := e.q
	u, d := q.u, q.d
	d.pending.Add(-1)
	switch {
	case u.t.closing.Load(), err == unix.ENOTCONN, err == unix.ECONNABORTED:
		// The connection has ended, which the reader of /dev/fuse finds out too.
	case err != nil && e.known:
		if e.lost != nil {
			go e.lost()
		}
		u.t.fail(fmt.Errorf("FUSE over io_uring: queue %d: the kernel does not take an answer: %w", q.number, err))
	case err != nil:
		if q.refused++; q.refused == q.entries {
			u.fallBack(fmt.Errorf("queue %d: %w", q.number, err))
		} else if !q.full {
			q.full = true
			d.s.log.Warn("the kernel takes no more entries", "queue", q.number, "entries", q.entries-q.refused, "cause", err)
		}
	default:
		e.known, e.lost = true, nil
		q.busy++
		if u.t.paused.Load() {
			q.held = append(q.held, e)
			return
		}
		d.arrived(e)
		q.look()
	}
}

// look adds entries if few are left.
func (q *ringQueue) look() {
	has := q.entries - q.refused
	if has-q.busy > has/4 || q.full || q.u.t.closing.Load() {
		return
	}
	n := min(has, q.u.most-q.entries)
	if n <= 0 {
		q.full = true
		q.d.s.log.Warn("a queue of requests has as many entries as it may have", "queue", q.number, "entries", has)
		return
	}
	if err := q.grow(n); err != nil {
		q.full = true
		q.d.s.log.Warn("no memory for more entries", "queue", q.number, "entries", has, "cause", err)
	}
}

// arrived takes the request of an entry.
func (d *devLoop) arrived(e *ringEntry) {
	r := newRequest()
	r.via, r.entry = d.t.ring, e
	h := e.head
	r.header = header{
		op: opcode(le.Uint32(h[4:])), unique: le.Uint64(h[8:]), ino: id.Ino(le.Uint64(h[16:])),
		uid: le.Uint32(h[24:]), gid: le.Uint32(h[28:]), pid: le.Uint32(h[32:]),
	}
	e.unique = le.Uint64(h[ringCommitID:])
	extensions := int(le.Uint16(h[36:])) * 8
	n := int(le.Uint32(h[ringPayloadSize:]))
	if n > len(e.payload) || extensions > n {
		d.s.log.Error("request refused", "op", r.op.String(), "payload", n, "extensions", extensions)
		_ = r.via.send(r, syscall.EIO, 0)
		r.free()
		return
	}
	// What is short is copied, since the answer goes to the same places.
	fixed := 0
	if r.op < opLimit {
		fixed = copy(r.small[:], h[ringOpIn:][:ops[r.op].fixed])
	}
	r.fixed, r.rest = r.small[:fixed:fixed], e.payload[:n-extensions]
	if len(r.rest) <= len(r.small)-fixed {
		r.rest = r.small[fixed : fixed+copy(r.small[fixed:], r.rest)]
	}
	s := d.s
	if s.atOnce(r) || s.begin(d.loop, r) {
		return
	}
	if s.budget.try(r.cost) {
		s.spawn(r)
		return
	}
	s.enter()
	go func() { // the entry bounds them
		defer s.leave()
		if s.budget.take(r.cost, s.saturated) {
			s.spawn(r)
		} else {
			s.refuse(r)
		}
	}()
}

// room implements replier: what is short is copied by send.
func (u *uring) room(r *request, n int) []byte {
	if n <= len(r.answer) {
		r.frame = r.answer[:n]
	} else {
		r.frame = r.entry.payload[:n]
	}
	return r.frame
}

// send implements replier. Only the loop's thread may commit, so other threads have it do so; whether the kernel takes the answer turns out
// later.
func (u *uring) send(r *request, errno syscall.Errno, n int) error {
	e := r.entry
	if errno != 0 || r.frame == nil {
		n = 0
	}
	if n > 0 && n <= len(r.answer) {
		copy(e.payload, r.frame[:n])
	}
	le.PutUint32(e.head, uint32(outHeaderSize+n))
	le.PutUint32(e.head[4:], uint32(-int32(errno)))
	le.PutUint64(e.head[8:], r.unique)
	le.PutUint32(e.head[ringPayloadSize:], uint32(n))
	if errno == 0 {
		e.lost = r.lost
	}
	if r.hot.loop != nil {
		e.commit()
		return nil
	}
	if !e.q.d.l.Post(&e.answer) {
		return reactor.ErrClosed
	}
	return nil
}

// commit submits the answer on the loop's thread.
func (e *ringEntry) commit() {
	if e.q.u.t.closing.Load() {
		return // there is nobody to take it
	}
	e.q.busy--
	le.PutUint64(e.head[ringCommitID:], 0) // a header with one holds a request, see adopt
	le.PutUint64(e.command[8:], e.unique)
	e.raw.SQE.Off, e.raw.Vec = ringCommit, nil
	e.submit()
}

// ended waits until the kernel has ended all commands and nobody serves a request, so that memory and rings may go.
func (u *uring) ended(within time.Duration) error {
	s := u.t.s
	for end := time.Now().Add(within); ; time.Sleep(time.Millisecond) {
		pending := int64(0)
		for _, d := range u.t.all {
			pending += d.pending.Load()
		}
		serving := len(s.flights.all()) + len(s.hotUnderWay())
		if pending == 0 && serving == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the kernel has %d entries, %d requests are being served", pending, serving)
		}
	}
}

// free unmaps the memory.
func (u *uring) free() {
	for _, q := range u.queues {
		for _, r := range q.memory {
			r.free()
		}
		q.memory = nil
	}
}

// early are the requests that INTERRUPT came for before they did, as it comes by another way. The kernel does not say so again.
type early struct {
	n  atomic.Int32
	mu sync.Mutex
	m  map[uint64]time.Time
}

const (
	maxEarly  = 4096
	keepEarly = 10 * time.Second // those of requests that had been answered
)

func (t *early) add(unique uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m = make(map[uint64]time.Time)
	}
	if len(t.m) < maxEarly {
		t.m[unique] = time.Now()
	}
	t.n.Store(int32(len(t.m)))
}

// take reports whether the request was interrupted.
func (t *early) take(unique uint64) bool {
	if t.n.Load() == 0 {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.m[unique]
	delete(t.m, unique)
	t.n.Store(int32(len(t.m)))
	return ok
}

// expire forgets the old ones.
func (t *early) expire() {
	if t.n.Load() == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for unique, at := range t.m {
		if time.Since(at) > keepEarly {
			delete(t.m, unique)
		}
	}
	t.n.Store(int32(len(t.m)))
}
