package vhost

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/block"
	"varve/internal/block/blocktest"
	"varve/iouring/reactor"
)

// image is an image in memory.
type image struct {
	f     *blocktest.File
	seats *blocktest.Seats // nil: nothing begins on a loop
	mu    sync.Mutex
	opens int
}

func (m *image) Size(context.Context) (int64, error) {
	n := 0
	m.f.Data(func(p []byte) { n = len(p) })
	return int64(n), nil
}

func (m *image) Open(ctx context.Context, _ bool) (block.OpenFile, int64, error) {
	m.mu.Lock()
	m.opens++
	m.mu.Unlock()
	n, err := m.Size(ctx)
	if m.seats != nil {
		return hotFile{&blocktest.Hot{File: m.f, Seats: m.seats}}, n, err
	}
	return file{m.f}, n, err
}

type file struct{ *blocktest.File }

func (f file) Inherit(block.OpenFile) { f.Heir() }

type hotFile struct{ *blocktest.Hot }

func (f hotFile) Inherit(block.OpenFile) { f.Heir() }

// rig is a server under test.
type rig struct {
	*Server
	t     *testing.T
	m     *image
	path  string
	loops []*block.Loop
	stop  func()
}

const mib = 1 << 20

func serve(t *testing.T, m *image, kind reactor.Kind, change func(*Options)) *rig {
	t.Helper()
	r := &rig{t: t, m: m, path: filepath.Join(t.TempDir(), "s")}
	o := block.LoopOptions{Threads: 2, Kind: kind}
	if m.seats != nil {
		o.Host = m.seats
	}
	var err error
	if r.loops, err = block.StartLoops(o); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	so := Options{Image: m, Loops: r.loops, Listener: l, Logger: slog.New(slog.DiscardHandler), Queues: 2, Serial: "serial"}
	if change != nil {
		change(&so)
	}
	if r.Server, err = Start(so); err != nil {
		t.Fatal(err)
	}
	r.stop = sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := r.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := block.CloseLoops(ctx, r.loops); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

// each runs a test on a ring and on epoll, with operations that begin on loops and without.
func each(t *testing.T, size int, fn func(t *testing.T, r *rig)) {
	for name, v := range map[string]struct {
		kind reactor.Kind
		hot  bool
	}{"ring": {}, "epoll": {kind: reactor.Poll}, "ring, on loops": {hot: true}, "epoll, on loops": {kind: reactor.Poll, hot: true}} {
		t.Run(name, func(t *testing.T) {
			m := &image{f: blocktest.New(size)}
			if v.hot {
				m.seats = &blocktest.Seats{}
			}
			fn(t, serve(t, m, v.kind, nil))
		})
	}
}

// guest is a machine and its driver: memory, a front end, and queues.
type guest struct {
	t        testing.TB
	c        *net.UnixConn
	h        channel
	mem      []byte
	fd       int
	features uint64
	queues   []*ring
	inflight int // descriptor, -1: none
	desc     inflightDesc
}

const (
	ringSize = 16
	memSize  = 4 * mib
	userBase = 0x7f0000000000 // where the front end has the memory
	guestLow = 0x1000         // where the guest has it
	ringArea = 64 << 10       // of each queue: its rings, then indirect tables and heads of requests
	dataArea = 512 << 10      // of the guest's memory, from here on
	testAll  = featVersion1 | featProtocol | featFlush | featDiscard | featWriteZeroes | featBlockSize | featSegMax | featSizeMax
)

// ring is the driver's side of a queue.
type ring struct {
	g          *guest
	index      int
	base       int // in memory
	kick, call int
	availIdx   uint16
	usedIdx    uint16
	slot       int
}

func newGuest(t testing.TB, features uint64) *guest {
	t.Helper()
	g := &guest{t: t, features: features, inflight: -1}
	var err error
	if g.fd, err = unix.MemfdCreate("guest", unix.MFD_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(g.fd, memSize); err != nil {
		t.Fatal(err)
	}
	if g.mem, err = unix.Mmap(g.fd, 0, memSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		q := &ring{g: g, index: i, base: i * ringArea}
		for _, fd := range []*int{&q.kick, &q.call} {
			if *fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
				t.Fatal(err)
			}
		}
		g.queues = append(g.queues, q)
	}
	t.Cleanup(func() {
		if g.c != nil {
			g.c.Close()
		}
		_ = unix.Munmap(g.mem)
		_ = unix.Close(g.fd)
		for _, q := range g.queues {
			_ = unix.Close(q.kick)
			_ = unix.Close(q.call)
		}
		if g.inflight >= 0 {
			_ = unix.Close(g.inflight)
		}
	})
	return g
}

func (g *guest) say(r request, flags uint32, body []byte, fds ...int) error {
	b := le.AppendUint32(nil, uint32(r))
	b = le.AppendUint32(b, flagVersion|flags)
	b = append(le.AppendUint32(b, uint32(len(body))), body...)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err := g.c.WriteMsgUnix(b, rights, nil)
	return err
}

// ask sends a request and returns its answer.
func (g *guest) ask(r request, body []byte, fds ...int) message {
	g.t.Helper()
	if err := g.say(r, 0, body, fds...); err != nil {
		g.t.Fatal(err)
	}
	return g.answer(r)
}

func (g *guest) answer(r request) message {
	g.t.Helper()
	m, err := g.h.read()
	if err != nil || m.request != r || m.flags&flagReply == 0 {
		g.t.Fatalf("answer to %d: %+v, %v", r, m, err)
	}
	return m
}

// must sends a request that has no answer of its own, and returns whether it was done.
func (g *guest) must(r request, body []byte, fds ...int) bool {
	g.t.Helper()
	if err := g.say(r, flagNeedReply, body, fds...); err != nil {
		g.t.Fatal(err)
	}
	return le.Uint64(g.answer(r).body) == 0
}

func u64(v uint64) []byte          { return le.AppendUint64(nil, v) }
func state(i int, v uint32) []byte { return le.AppendUint32(le.AppendUint32(nil, uint32(i)), v) }

// connect begins the protocol.
func (g *guest) connect(path string) {
	g.t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		g.t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		g.t.Fatal(err)
	}
	g.c, g.h = c, channel{c: c}
	if m := g.ask(getFeatures, nil); le.Uint64(m.body)&g.features != g.features {
		g.t.Fatalf("features %#x are offered, want %#x", le.Uint64(m.body), g.features)
	}
	if m := g.ask(getProtocolFeatures, nil); le.Uint64(m.body) != protoOffered {
		g.t.Fatalf("features of the protocol %#x", m.body)
	}
	if err := g.say(setProtocolFeatures, 0, u64(protoOffered)); err != nil {
		g.t.Fatal(err)
	}
	if !g.must(setOwner, nil) || !g.must(setFeatures, u64(g.features)) {
		g.t.Fatal("owner and features were refused")
	}
}

// table is the payload of setMemTable: two regions of the memory, side by side in the guest.
func (g *guest) table() []byte {
	b := le.AppendUint64(nil, 2)
	for _, r := range []region{{guestLow, mib, userBase, 0}, {guestLow + mib, memSize - mib, userBase + mib, mib}} {
		for _, v := range []uint64{r.guest, r.size, r.user, r.offset} {
			b = le.AppendUint64(b, v)
		}
	}
	return b
}

// begin sets memory and queues going. base is where the available ring is read from.
func (g *guest) begin() {
	g.t.Helper()
	if !g.tryBegin() {
		g.t.Fatal("the queues were refused")
	}
}

// tryBegin reports whether they go.
func (g *guest) tryBegin() bool {
	g.t.Helper()
	if g.inflight < 0 {
		m := g.ask(getInflightFD, inflightDesc{queues: 2, queueSize: ringSize}.append(nil))
		g.desc, _ = decodeInflight(m.body)
		g.inflight = m.fds[0]
	}
	ok := g.must(setInflightFD, g.desc.append(nil), g.inflight) && g.must(setMemTable, g.table(), g.fd, g.fd)
	for _, q := range g.queues {
		ok = ok && g.must(setVringNum, state(q.index, ringSize)) && g.must(setVringBase, state(q.index, uint32(q.usedIdx))) &&
			g.must(setVringAddr, q.addrs(g.features&featLogAll != 0)) && g.must(setVringCall, u64(uint64(q.index)), q.call) &&
			g.must(setVringKick, u64(uint64(q.index)), q.kick) && g.must(setVringEnable, state(q.index, 1))
	}
	return ok
}

// addrs is the payload of setVringAddr.
func (q *ring) addrs(logged bool) []byte {
	flags := uint32(0)
	if logged {
		flags = ringLogged
	}
	addr := state(q.index, flags)
	for _, off := range []int{0, 0x2000, 0x1000} { // descriptors, used, available
		addr = le.AppendUint64(addr, uint64(userBase+q.base+off))
	}
	return le.AppendUint64(addr, uint64(guestLow+q.base+0x2000))
}

func (q *ring) desc() []byte  { return q.g.mem[q.base:] }
func (q *ring) avail() []byte { return q.g.mem[q.base+0x1000:] }
func (q *ring) used() []byte  { return q.g.mem[q.base+0x2000:] }

// put writes a descriptor of a table.
func put(table []byte, i int, addr uint64, n uint32, flags, next uint16) {
	p := table[i*descSize:]
	le.PutUint64(p, addr)
	le.PutUint32(p[8:], n)
	le.PutUint16(p[12:], flags)
	le.PutUint16(p[14:], next)
}

// piece is memory of a request, by its place in the guest's memory.
type piece struct{ off, n int }

// submit makes a request of a head, pieces of data and a status, with an indirect table or without, and says so. It returns its slot.
func (q *ring) submit(kind uint32, at uint64, data []piece, indirect bool) int {
	q.g.t.Helper()
	slot := q.slot % 4 // each has four descriptors, and one more word of memory for head and status
	q.slot++
	place := q.base + 0x3000 + slot*0x1000 // head, status, then the indirect table
	p := q.g.mem[place:]
	le.PutUint32(p, kind)
	le.PutUint32(p[4:], 0)
	le.PutUint64(p[8:], at)
	p[16] = 0xff
	in := uint16(0)
	if kind == blkIn || kind == blkGetID {
		in = descWrite
	}
	table, first := q.desc(), slot*4
	if indirect {
		table, first = p[64:], 0
		put(q.desc(), slot*4, uint64(guestLow+place+64), uint32(descSize*(len(data)+2)), descIndirect, 0)
	} else if len(data) > 2 {
		q.g.t.Fatal("too many pieces for a chain of four")
	}
	i := first
	put(table, i, uint64(guestLow+place), blkHead, descNext, uint16(i+1))
	for _, d := range data {
		i++
		put(table, i, uint64(guestLow+d.off), uint32(d.n), descNext|in, uint16(i+1))
	}
	put(table, i+1, uint64(guestLow+place+16), 1, descWrite, 0)
	q.offer(uint16(slot * 4))
	return slot
}

// offer puts a head into the available ring and kicks.
func (q *ring) offer(head uint16) {
	le.PutUint16(q.avail()[4+2*int(q.availIdx%ringSize):], head)
	q.availIdx++
	flags := load32(q.avail(), 0) & 0xffff
	store32(q.avail(), 0, flags|uint32(q.availIdx)<<16)
	var one [8]byte
	one[0] = 1
	if _, err := unix.Write(q.kick, one[:]); err != nil {
		q.g.t.Fatal(err)
	}
}

// wait waits until another request has ended, and returns its head and how much was written.
func (q *ring) wait() (head, n uint32) {
	q.g.t.Helper()
	for deadline := time.Now().Add(time.Minute); uint16(load32(q.used(), 0)>>16) == q.usedIdx; time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			q.g.t.Fatal("a request does not end")
		}
	}
	p := q.used()[4+8*int(q.usedIdx%ringSize):]
	q.usedIdx++
	return le.Uint32(p), le.Uint32(p[4:])
}

func (q *ring) status(slot int) byte { return q.g.mem[q.base+0x3000+slot*0x1000+16] }

// do carries one request out and returns its status and what was written.
func (q *ring) do(kind uint32, at uint64, indirect bool, data ...piece) (byte, uint32) {
	q.g.t.Helper()
	slot := q.submit(kind, at, data, indirect)
	head, n := q.wait()
	if head != uint32(slot*4) {
		q.g.t.Fatalf("head %d has ended, want %d", head, slot*4)
	}
	return q.status(slot), n
}

// called returns whether the device has interrupted since the last time.
func (q *ring) called() bool {
	var b [8]byte
	n, _ := unix.Read(q.call, b[:])
	return n == 8
}
