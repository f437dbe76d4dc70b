package local

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
)

var testCluster = id.Cluster{9, 8, 7, 6, 5, 4, 3, 2, 1, 1, 2, 3, 4, 5, 6, 7}

// testBoard is a board that counts for an hour, with a seat for session 5.
func testBoard(t testing.TB, slots int) (*Board, Seat) {
	b, err := NewBoard(slots)
	if err != nil {
		t.Fatal(err)
	}
	b.steals = true
	b.Extend(Clock() + int64(time.Hour))
	return b, sit(t, b, 5)
}

func sit(t testing.TB, b *Board, s id.SessionID) Seat {
	place, stamp, err := b.Enter(s)
	if err != nil {
		t.Fatal(err)
	}
	return Seat{View: viewOf(t, b), Place: place, Stamp: stamp}
}

func viewOf(t testing.TB, b *Board) *View {
	fd, err := unix.FcntlInt(b.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	v, err := Map(os.NewFile(uintptr(fd), "board"))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// testChunk is a file of a few blocks and the checksums of a chunk.
type testChunk struct {
	t    testing.TB
	path string
	sums []uint32
}

const testBase = 8192

func newTestChunk(t testing.TB) *testChunk {
	c := &testChunk{t: t, path: filepath.Join(t.TempDir(), "chunk"), sums: make([]uint32, chunk.Blocks)}
	if err := os.WriteFile(c.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

func block(seed byte) []byte { return bytes.Repeat([]byte{seed}, chunk.BlockSize) }

func (c *testChunk) put(at uint32, p []byte) {
	f, err := os.OpenFile(c.path, os.O_WRONLY, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, testBase+int64(at)*chunk.BlockSize); err != nil {
		c.t.Fatal(err)
	}
}

func (c *testChunk) write(at uint32, seed byte) {
	c.put(at, block(seed))
	c.sums[at] = chunk.Sum(block(seed))
}

func (c *testChunk) grant(seat Seat, s *Slot) *Grant {
	f, err := os.Open(c.path)
	if err != nil {
		c.t.Fatal(err)
	}
	slot, stamp := s.Slot()
	g, err := NewGrant(seat, slot, stamp, f, testBase)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { g.Close() })
	return g
}

func take(t testing.TB, b *Board, sums []uint32) *Slot {
	s, err := b.Take(sums, func(func(first, end uint32)) {})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func read(g *Grant, first uint32, n int) ([]byte, error) {
	p := make([]byte, n*chunk.BlockSize)
	return p, doRead(g, p, first)
}

func TestRead(t *testing.T) {
	b, seat := testBoard(t, 2)
	c := newTestChunk(t)
	c.write(3, 'a')
	c.write(4, 'b')
	c.write(7, 'c')
	s := take(t, b, c.sums)
	g := c.grant(seat, s)
	p, err := read(g, 2, 6)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Join([][]byte{block(0), block('a'), block('b'), block(0), block(0), block('c')}, nil)
	if !bytes.Equal(p, want) {
		t.Fatal("wrong bytes")
	}
	expect := func(why string, first uint32, n int, want error) {
		t.Helper()
		if _, err := read(g, first, n); !errors.Is(err, want) || (want == nil) != (err == nil) {
			t.Fatalf("%s: %v, want %v", why, err, want)
		}
	}
	s.Begin(4, 6)
	expect("block 4 is being changed", 3, 2, ErrChanging)
	expect("block 5 too", 5, 1, ErrChanging)
	expect("block 3 is not", 3, 1, nil)
	s.End(4, []uint32{c.sums[4], chunk.Hole})
	expect("nothing was changed", 3, 5, nil)
	c.put(3, block('x'))
	expect("bytes that nobody announced", 3, 1, fserr.BadChecksum)
	c.put(3, block('a'))
	// A hole on the board is one whatever the disk says.
	s.Begin(4, 5)
	s.End(4, []uint32{chunk.Hole})
	if p, err := read(g, 4, 1); err != nil || !chunk.IsZero(p) {
		t.Fatal(err, "a hole does not read as zeros")
	}
	expect("past the end of the file", chunk.Blocks-1, 1, nil)
	for _, bad := range [][2]int{{chunk.Blocks, 1}, {chunk.Blocks - 1, 2}, {0, 0}} {
		expect("out of the chunk", uint32(bad[0]), bad[1], fserr.Invalid)
	}

	// What a board, a slot and a place end with.
	s.Revoke()
	s.Revoke()
	s.Begin(0, 2)
	s.End(0, []uint32{1, 2})
	expect("revoked", 3, 1, ErrRevoked)
	s = take(t, b, c.sums)
	expect("another grant of the same slot", 3, 1, ErrRevoked)
	g = c.grant(seat, s)
	expect("a new grant", 3, 1, nil)
	other := sit(t, b, 6)
	b.Fence(6)
	expect("another session was fenced", 3, 1, nil)
	if _, err := NewGrant(other, g.slot, g.stamp, open(t, c.path), testBase); !errors.Is(err, ErrPlace) {
		t.Fatal("grant of a fenced session", err)
	}
	b.Fence(5)
	expect("fenced", 3, 1, ErrPlace)
	g = c.grant(sit(t, b, 5), s)
	expect("a new place", 3, 1, nil)
	b.Leave(g.seat.Place, g.seat.Stamp-1)
	expect("another one's stamp does not leave", 3, 1, nil)
	b.Leave(g.seat.Place, g.seat.Stamp)
	expect("left", 3, 1, ErrPlace)
	g = c.grant(sit(t, b, 5), s)
	b.head[wordUntil].Store(uint64(Clock()))
	expect("lapsed", 3, 1, ErrLapsed)
	b.Extend(Clock() + int64(time.Hour))
	expect("extended", 3, 1, nil)
	b.Extend(Clock())
	expect("never shortened", 3, 1, nil)
	b.Stop()
	b.Extend(Clock() + int64(time.Hour))
	if _, err := read(g, 3, 1); err == nil || b.Until() != 0 || b.Taken() != 0 {
		t.Fatal("a stopped board counts")
	}
	if _, err := b.Take(c.sums, nil); fserr.Of(err) != fserr.Unavailable {
		t.Fatal(err)
	}
	if _, _, err := b.Enter(7); fserr.Of(err) != fserr.Unavailable {
		t.Fatal(err)
	}
}

func open(t testing.TB, path string) *os.File {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Whatever happens while the disk is read is noticed, also if it is undone.
func TestReadOvertaken(t *testing.T) {
	for name, c := range map[string]struct {
		happens func(b *Board, s *Slot, g *Grant, sums []uint32)
		want    error
	}{
		"nothing":        {func(*Board, *Slot, *Grant, []uint32) {}, nil},
		"change begins":  {func(_ *Board, s *Slot, _ *Grant, _ []uint32) { s.Begin(3, 4) }, ErrChanging},
		"change is over": {func(_ *Board, s *Slot, _ *Grant, sums []uint32) { s.Begin(3, 4); s.End(3, sums[3:4]) }, ErrChanging},
		"another block":  {func(_ *Board, s *Slot, _ *Grant, sums []uint32) { s.Begin(4, 5); s.End(4, sums[4:5]) }, nil},
		"revoked":        {func(_ *Board, s *Slot, _ *Grant, _ []uint32) { s.Revoke() }, ErrRevoked},
		"granted anew": {func(b *Board, s *Slot, _ *Grant, sums []uint32) {
			s.Revoke()
			if s, err := b.Take(sums, func(func(first, end uint32)) {}); err != nil || s.n != 0 {
				panic(err)
			}
		}, ErrRevoked},
		"fenced":         {func(b *Board, _ *Slot, _ *Grant, _ []uint32) { b.Fence(5) }, ErrPlace},
		"another's seat": {func(b *Board, _ *Slot, _ *Grant, _ []uint32) { b.Fence(5); b.Enter(6) }, ErrPlace},
		"lapsed":         {func(b *Board, _ *Slot, _ *Grant, _ []uint32) { b.head[wordUntil].Store(uint64(Clock())) }, ErrLapsed},
		"stopped":        {func(b *Board, _ *Slot, _ *Grant, _ []uint32) { b.Stop() }, ErrRevoked},
	} {
		t.Run(name, func(t *testing.T) {
			b, seat := testBoard(t, 1)
			ch := newTestChunk(t)
			ch.write(3, 'a')
			s := take(t, b, ch.sums)
			g := ch.grant(seat, s)
			seen := make([]uint64, 1)
			start, err := g.look(3, seen)
			if err != nil {
				t.Fatal(err)
			}
			c.happens(b, s, g, ch.sums)
			if err := g.lookAgain(3, seen, start); err != c.want {
				t.Errorf("%v, want %v", err, c.want)
			}
			if err := g.lookAgain(3, seen, start-int64(maxRead)-1); err == nil {
				t.Error("a read that took too long counts")
			}
		})
	}
}

func TestSlotsAndPlaces(t *testing.T) {
	b, seat := testBoard(t, 2)
	b.steals = false
	var revoked []uint64
	b.OnRevoke = func(stamp uint64) { revoked = append(revoked, stamp) }
	c := newTestChunk(t)
	first, second := take(t, b, c.sums), take(t, b, c.sums)
	if _, err := b.Take(c.sums, nil); fserr.Of(err) != fserr.NoSpace {
		t.Fatalf("a slot was taken from a chunk that had it for an instant: %v", err)
	}
	b.cells[second.n].since = time.Now().Add(-2 * Residence)
	third := take(t, b, c.sums)
	if first.Live() == false || second.Live() || !third.Live() || third.n != second.n || len(revoked) != 1 || revoked[0] != second.stamp {
		t.Fatalf("first %v, second %v, third %v; revoked %v", first.Live(), second.Live(), third.Live(), revoked)
	}
	// The chunk that lost its slot knows nothing of it and cannot disturb the one that has it.
	g := c.grant(seat, third)
	second.Begin(0, 1)
	if _, err := read(g, 0, 1); err != nil {
		t.Fatal(err)
	}
	second.End(0, []uint32{77})
	second.Revoke()
	if _, err := read(g, 0, 1); err != nil || !third.Live() {
		t.Fatal(err)
	}
	// Blocks that are being changed when the slot is taken are marked.
	third.Revoke()
	s, err := b.Take(c.sums, func(mark func(first, end uint32)) { mark(2, 4) })
	if err != nil {
		t.Fatal(err)
	}
	g = c.grant(seat, s)
	if _, err := read(g, 3, 1); !errors.Is(err, ErrChanging) {
		t.Fatal(err)
	}
	s.End(2, []uint32{0, 0})
	if _, err := read(g, 1, 3); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < Places; i++ {
		sit(t, b, id.SessionID(100+i))
	}
	if _, _, err := b.Enter(1); fserr.Of(err) != fserr.NoSpace {
		t.Fatal(err)
	}
	b.Fence(101)
	if _, _, err := b.Enter(1); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, -1, MaxSlots + 1} {
		if _, err := NewBoard(n); fserr.Of(err) != fserr.Invalid {
			t.Fatal(n, err)
		}
	}
}

// Nobody but the server can write a board or change its size, also not through the descriptor that it passes.
func TestSeals(t *testing.T) {
	b, _ := testBoard(t, 1)
	fd := int(b.file.Fd())
	if err := unix.Ftruncate(fd, 4096); err == nil {
		t.Error("a board can be made shorter")
	}
	if err := unix.Ftruncate(fd, boardSize(2)); err == nil {
		t.Error("a board can be made longer")
	}
	if _, err := unix.Pwrite(fd, []byte{1}, 0); err == nil {
		t.Error("a board can be written")
	}
	if _, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
		t.Error("a board can be mapped for writing")
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); err == nil {
		t.Error("seals can be added")
	}
}

// A reader maps no board that could hurt it.
func TestMapRefuses(t *testing.T) {
	memfd := func(size int64, seals int, head ...uint64) *os.File {
		fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "test")
		b := make([]byte, 0, 24)
		for _, w := range head {
			for i := range 8 {
				b = append(b, byte(w>>(8*i)))
			}
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
			t.Fatal(err)
		}
		return f
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	for name, f := range map[string]*os.File{
		"file":    open(t, newTestChunk(t).path),
		"shrink":  memfd(boardSize(1), unix.F_SEAL_GROW, boardMagic, 1|1<<32),
		"grow":    memfd(boardSize(1), unix.F_SEAL_SHRINK, boardMagic, 1|1<<32),
		"magic":   memfd(boardSize(1), seals, boardMagic+1, 1|1<<32),
		"version": memfd(boardSize(1), seals, boardMagic, 2|1<<32),
		"slots":   memfd(boardSize(1), seals, boardMagic, 1|2<<32),
		"none":    memfd(boardSize(1), seals, boardMagic, 1),
		"many":    memfd(boardSize(1), seals, boardMagic, 1|1<<63),
		"short":   memfd(4096, seals, boardMagic, 1|1<<32),
	} {
		if _, err := Map(f); fserr.Of(err) != fserr.Protocol {
			t.Errorf("%s: %v, want %v", name, err, fserr.Protocol)
		}
	}
	if _, err := Map(memfd(boardSize(1), seals, boardMagic, 1|1<<32)); err != nil {
		t.Error(err)
	}
}

func TestGrantRefuses(t *testing.T) {
	b, seat := testBoard(t, 1)
	c := newTestChunk(t)
	slot, stamp := take(t, b, c.sums).Slot()
	out := seat
	out.Place = Places
	for name, try := range map[string]func(f *os.File) (*Grant, error){
		"slot":  func(f *os.File) (*Grant, error) { return NewGrant(seat, slot+1, stamp, f, testBase) },
		"place": func(f *os.File) (*Grant, error) { return NewGrant(out, slot, stamp, f, testBase) },
		"stamp": func(f *os.File) (*Grant, error) { return NewGrant(seat, slot, 0, f, testBase) },
		"base":  func(f *os.File) (*Grant, error) { return NewGrant(seat, slot, stamp, f, -1) },
		"over":  func(f *os.File) (*Grant, error) { return NewGrant(seat, slot, stamp+1, f, testBase) },
	} {
		f := open(t, c.path)
		if _, err := try(f); err == nil {
			t.Errorf("%s: granted", name)
		}
		if err := f.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: the descriptor was left open", name)
		}
	}
}

// TestRegister has writers change blocks of a file, and slots come and go, while readers check that every block they read is an
// atomic register: never older than the last write that had ended, or than what another reader had read, before the read
// began.
func TestRegister(t *testing.T) {
	const blocks, readers, writers = 24, 3, 2
	b, seat := testBoard(t, 2)
	c := newTestChunk(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var (
		mu      sync.Mutex // as the store's: sums and locks of the chunk
		slot    = take(t, b, c.sums)
		locked  [blocks]bool
		started [blocks]atomic.Int64
		ended   [blocks]atomic.Int64
		seen    [blocks]atomic.Int64
		current atomic.Pointer[Grant]
		stop    atomic.Bool
		good    atomic.Int64
		refused atomic.Int64
		wg      sync.WaitGroup
	)
	contents := func(at uint32, n int64) []byte {
		if n%5 == 0 {
			return make([]byte, chunk.BlockSize)
		}
		p := make([]byte, chunk.BlockSize)
		for i := 0; i < len(p); i += 16 {
			for k := range 8 {
				p[i+k] = byte(n >> (8 * k))
			}
			p[i+8] = byte(at)
		}
		return p
	}
	current.Store(c.grant(seat, slot))
	f, err := os.OpenFile(c.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for w := range writers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(w)))
			for !stop.Load() {
				// Each writer has blocks of its own, so that writes to a block have an order.
				at := uint32(r.IntN(blocks/writers)*writers + w)
				n := started[at].Add(1)
				p := contents(at, n)
				mu.Lock()
				locked[at] = true
				slot.Begin(at, at+1)
				mu.Unlock()
				// Half a block at a time, so that torn ones can be seen.
				for _, half := range []int{0, chunk.BlockSize / 2} {
					if _, err := f.WriteAt(p[half:half+chunk.BlockSize/2], testBase+int64(at)*chunk.BlockSize+int64(half)); err != nil {
						t.Error(err)
					}
					if r.IntN(4) == 0 {
						runtime.Gosched()
					}
				}
				mu.Lock()
				if c.sums[at] = chunk.Sum(p); n%5 == 0 {
					c.sums[at] = chunk.Hole
				}
				slot.End(at, c.sums[at:at+1])
				locked[at] = false
				mu.Unlock()
				ended[at].Store(n)
			}
		})
	}
	wg.Go(func() { // takes the slot away and gives another
		for !stop.Load() {
			time.Sleep(time.Millisecond)
			mu.Lock()
			slot.Revoke()
			s, err := b.Take(c.sums, func(mark func(first, end uint32)) {
				for i, l := range locked {
					if l {
						mark(uint32(i), uint32(i)+1)
					}
				}
			})
			if err != nil {
				t.Error(err)
			} else {
				slot = s
			}
			mu.Unlock()
			n, stamp := s.Slot()
			g, err := NewGrant(seat, n, stamp, open(t, c.path), testBase)
			if err != nil {
				t.Error(err)
				return
			}
			current.Swap(g).Close()
		}
	})
	for n := range readers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(100+n)))
			p, op := make([]byte, 4*chunk.BlockSize), new(Op)
			for !stop.Load() {
				count := 1 + r.IntN(4)
				first := uint32(r.IntN(blocks - count + 1))
				var least [4]int64
				for i := range count {
					least[i] = max(ended[first+uint32(i)].Load(), seen[first+uint32(i)].Load())
				}
				err := readOp(op, current.Load(), p[:count*chunk.BlockSize], first)
				if err != nil {
					if !errors.Is(err, ErrChanging) && !errors.Is(err, ErrRevoked) && !errors.Is(err, os.ErrClosed) {
						t.Errorf("read [%d, +%d): %v", first, count, err)
					}
					refused.Add(1)
					continue
				}
				good.Add(1)
				for i := range count {
					at := first + uint32(i)
					got := p[i*chunk.BlockSize:][:chunk.BlockSize]
					most := started[at].Load()
					v := least[i]
					for v <= most && !bytes.Equal(got, contents(at, v)) {
						v++
					}
					if v > most {
						t.Errorf("block %d reads as none of writes %d to %d: % x", at, least[i], most, got[:16])
						stop.Store(true)
						continue
					}
					if v%5 == 0 {
						continue // zeros do not say which write they are of
					}
					for {
						old := seen[at].Load()
						if old >= v || seen[at].CompareAndSwap(old, v) {
							break
						}
					}
				}
			}
		})
	}
	few := func() bool { return good.Load() < 100 || refused.Load() == 0 }
	deadline := time.Now().Add(20 * time.Second)
	for !stop.Load() && (good.Load() < 3000 || refused.Load() < 50) && (time.Now().Before(deadline) || few() && time.Now().Before(deadline.Add(2*time.Minute))) {
		time.Sleep(10 * time.Millisecond)
	}
	stop.Store(true)
	wg.Wait()
	if few() {
		t.Errorf("%d reads counted, %d did not: too few to say anything", good.Load(), refused.Load())
	}
	t.Logf("%d reads counted, %d did not", good.Load(), refused.Load())
}

func TestPackets(t *testing.T) {
	l, err := Listen(testCluster, 3, socketName(t))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Listen(testCluster, 3, socketName(t)); err == nil {
		t.Fatal("two servers listen at one address")
	}
	if _, err := Dial(testCluster, 4, socketName(t)); fserr.Of(err) != fserr.Unavailable {
		t.Fatal(err)
	}
	client, err := Dial(testCluster, 3, socketName(t))
	if err != nil {
		t.Fatal(err)
	}
	nc, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	server, err := NewConn(nc)
	if err != nil {
		t.Fatal(err)
	}
	c := newTestChunk(t)
	c.write(0, 'z')
	f := open(t, c.path)
	sent := Packet{Kind: Granted, Code: fserr.Busy, Chunk: 1 << 60, Epoch: 7, Stamp: 1<<63 + 1, Place: 9, Server: 3, Session: 1 << 40, Time: -5, Cluster: testCluster}
	if err := server.Send(&sent, int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	f.Close()
	var got Packet
	file, err := client.Receive(&got)
	if err != nil || got != sent || file == nil {
		t.Fatal(got, file, err)
	}
	p := make([]byte, chunk.BlockSize)
	if _, err := file.ReadAt(p, testBase); err != nil || !bytes.Equal(p, block('z')) {
		t.Fatal("another file", err)
	}
	if _, err := file.WriteAt(p, 0); err == nil {
		t.Fatal("the descriptor can be written")
	}
	file.Close()
	if err := client.Send(&Packet{Kind: Ask, Chunk: 4}, -1); err != nil {
		t.Fatal(err)
	}
	if file, err := server.Receive(&got); err != nil || file != nil || got != (Packet{Kind: Ask, Chunk: 4}) {
		t.Fatal(got, file, err)
	}
	// What is no packet is refused, and the descriptors that came with it are closed.
	before := descriptorsOpen(t)
	refuse := func(b []byte, files int) {
		t.Helper()
		var oob []byte
		if files > 0 {
			fds := make([]int, files)
			for i := range fds {
				fds[i] = int(os.Stderr.Fd())
			}
			oob = unix.UnixRights(fds...)
		}
		if _, _, err := client.nc.WriteMsgUnix(b, oob, nil); err != nil {
			t.Fatal(err)
		}
		if file, err := server.Receive(&got); fserr.Of(err) != fserr.Protocol || file != nil {
			t.Fatalf("%d bytes and %d descriptors: %v", len(b), files, err)
		}
	}
	var good [packetSize]byte
	sent.encode(&good)
	with := func(at int, v byte) []byte {
		b := good
		b[at] = v
		return b[:]
	}
	refuse(good[:packetSize-1], 1)
	refuse(append(good[:], 0), 1)
	refuse(with(0, 0), 1)
	refuse(with(0, byte(Revoked)+1), 1)
	refuse(with(72, 2), 1)
	refuse(with(6, 1), 1)
	refuse(with(95, 1), 1)
	refuse(good[:], 2)
	refuse(good[:], maxFiles+20)
	if after := descriptorsOpen(t); after > before {
		t.Fatalf("%d descriptors are open, %d were", after, before)
	}
	client.Close()
	if _, err := server.Receive(&got); err == nil {
		t.Fatal("the end of a connection was not seen")
	}
	server.Close()
}

// socketName is an address of this test's own, whatever else runs on the machine.
func socketName(t *testing.T) string { return fmt.Sprintf("%s-%d", t.Name(), os.Getpid()) }

func descriptorsOpen(t *testing.T) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestPeers(t *testing.T) {
	for _, c := range []struct {
		peer, own uint32
		ok        bool
	}{{0, 0, true}, {0, 1000, true}, {1000, 1000, true}, {1000, 0, false}, {1001, 1000, false}, {65534, 0, false}} {
		if err := permit(c.peer, c.own); (err == nil) != c.ok || !c.ok && fserr.Of(err) != fserr.Access {
			t.Errorf("peer %d, own %d: %v", c.peer, c.own, err)
		}
	}
}

// A peer that is another user is refused before a byte is read.
func TestOtherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("connects as another user, which needs root")
	}
	l, err := Listen(testCluster, 3, socketName(t))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its user id
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 65533, ^uintptr(0)); e != 0 {
			done <- e
			return
		}
		nc, err := net.DialUnix("unixpacket", nil, name(testCluster, 3, socketName(t)))
		if err == nil {
			defer nc.Close()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	nc, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewConn(nc); fserr.Of(err) != fserr.Access {
		t.Fatal(err)
	}
}

func FuzzPacket(f *testing.F) {
	var b [packetSize]byte
	(&Packet{Kind: Ask, Chunk: 4, Epoch: 2}).encode(&b)
	f.Add(b[:])
	(&Packet{Kind: Hello, Server: 1, Session: 2, Cluster: testCluster}).encode(&b)
	f.Add(b[:])
	f.Fuzz(func(t *testing.T, in []byte) {
		var p Packet
		if p.decode(in) != nil {
			return
		}
		var out [packetSize]byte
		if p.encode(&out); !bytes.Equal(in, out[:]) {
			t.Fatalf("% x is read as %+v and written as % x", in, p, out)
		}
	})
}

func BenchmarkSlot(b *testing.B) {
	board, _ := testBoard(b, 1)
	sums := make([]uint32, chunk.Blocks)
	s := take(b, board, sums)
	for b.Loop() {
		s.Begin(7, 8)
		s.End(7, sums[7:8])
	}
}

func BenchmarkRead(b *testing.B) {
	board, seat := testBoard(b, 1)
	c := newTestChunk(b)
	c.write(3, 'a')
	g := c.grant(seat, take(b, board, c.sums))
	p, op := make([]byte, chunk.BlockSize), new(Op)
	b.ReportAllocs()
	for b.Loop() {
		if err := readOp(op, g, p, 3); err != nil {
			b.Fatal(err)
		}
	}
}

func TestReadAllocates(t *testing.T) {
	board, seat := testBoard(t, 1)
	c := newTestChunk(t)
	c.write(3, 'a')
	g := c.grant(seat, take(t, board, c.sums))
	p, op := make([]byte, chunk.BlockSize), new(Op)
	if n := testing.AllocsPerRun(100, func() {
		if err := readOp(op, g, p, 3); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("a read allocates %v times", n)
	}
}

func doRead(g *Grant, p []byte, first uint32) error { return readOp(new(Op), g, p, first) }

func readOp(op *Op, g *Grant, p []byte, first uint32) error {
	if err := g.Begin(op, p, first); err != nil {
		return err
	}
	return op.Do()
}
