package store

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/local"
)

// sharing is a store on the real disk with a board, and a reader's seat.
type sharing struct {
	*Store
	t     testing.TB
	board *local.Board
	seat  local.Seat
}

func openSharing(t testing.TB, o Options) *sharing {
	b, err := local.NewBoard(4)
	if err != nil {
		t.Fatal(err)
	}
	b.Extend(local.Clock() + int64(time.Hour))
	o.Dir, o.Cluster, o.Board = t.TempDir(), id.Cluster{1}, b
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	place, stamp, err := b.Enter(5)
	if err != nil {
		t.Fatal(err)
	}
	v, err := local.Map(dup(t, b.Descriptor()))
	if err != nil {
		t.Fatal(err)
	}
	return &sharing{Store: s, t: t, board: b, seat: local.Seat{View: v, Place: place, Stamp: stamp}}
}

func dup(t testing.TB, fd int) *os.File {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(n), "passed")
}

// grant is what a client makes of the answer to an ask.
func (s *sharing) grant(c id.ChunkID, e id.Epoch) (*local.Grant, error) {
	sh, err := s.Share(c, e)
	if err != nil {
		return nil, err
	}
	defer sh.File.Close()
	slot, stamp := sh.Slot.Slot()
	return local.NewGrant(s.seat, slot, stamp, dup(s.t, sh.File.Descriptor()), sh.Base)
}

func (s *sharing) must(c id.ChunkID, e id.Epoch) *local.Grant {
	s.t.Helper()
	g, err := s.grant(c, e)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { g.Close() })
	return g
}

func peek(g *local.Grant, block uint32, n int) ([]byte, error) {
	p := disk.AlignedBuffer(n * chunk.BlockSize)
	return p, doRead(g, p, block)
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestShare(t *testing.T) {
	s := openSharing(t, Options{SettleEvery: -1, MaxOpen: 2, MaxActive: 2})
	put := func(c id.ChunkID, e id.Epoch, off uint32, p []byte) {
		t.Helper()
		ok(t, s.Write(c, e, off, p, chunk.AppendSums(nil, off, p)))
	}
	ok(t, s.Create(7, 1))
	put(7, 1, 8192, bytes.Repeat([]byte{'a'}, 10000))
	g := s.must(7, 1)
	expect := func(why string, g *local.Grant, want error) {
		t.Helper()
		if _, err := peek(g, 0, 6); !errors.Is(err, want) || (want == nil) != (err == nil) {
			t.Fatalf("%s: %v, want %v", why, err, want)
		}
	}
	check := func(g *local.Grant, want []byte) {
		t.Helper()
		p, err := peek(g, 0, 6)
		ok(t, err)
		if !bytes.Equal(p, want) {
			t.Fatal("wrong bytes")
		}
	}
	want := make([]byte, 6*chunk.BlockSize)
	copy(want[8192:], bytes.Repeat([]byte{'a'}, 10000))
	check(g, want)
	put(7, 1, 12000, []byte("partial"))
	copy(want[12000:], "partial")
	ok(t, s.Punch(7, 1, 8192, 9000))
	clear(want[8192:9000])
	check(g, want)
	ok(t, s.Punch(7, 1, 4096, 12288))
	clear(want[4096:12288])
	check(g, want)

	// Settling and flushing change nothing for readers; two asks share a slot.
	ok(t, s.Flush(7, 1))
	_, err := s.settlePass(s.now(), 10)
	ok(t, err)
	check(g, want)
	if h := s.must(7, 1); h.Stamp() != g.Stamp() {
		t.Fatal("a chunk has two slots")
	}

	// While a write is done but not settled at other replicas, nobody reads it.
	p := bytes.Repeat([]byte{'b'}, chunk.BlockSize)
	ok(t, s.WriteThen(7, 1, 0, p, chunk.AppendSums(nil, 0, p), func() error {
		expect("a write is not settled", g, local.ErrChanging)
		expect("nor with another grant", s.must(7, 1), local.ErrChanging)
		s.find(7).img.slot.Revoke()
		h := s.must(7, 1)
		expect("nor with another slot", h, local.ErrChanging)
		g = h
		if _, err := peek(h, 1, 5); err != nil {
			t.Errorf("another block: %v", err)
		}
		return nil
	}))
	copy(want, p)
	check(g, want)

	// What changes the replica ends the grant before it returns.
	ok(t, s.Adopt(7, 2))
	expect("adopted", g, local.ErrRevoked)
	if _, err := s.grant(7, 1); fserr.Of(err) != fserr.StaleEpoch {
		t.Fatal(err)
	}
	g = s.must(7, 3) // an ask of a higher epoch adopts it, as a read does
	if _, epoch, _, _ := s.Table(7); epoch != 3 {
		t.Fatal("epoch", epoch)
	}
	check(g, want)
	ok(t, s.Join(7, 4))
	expect("joining", g, local.ErrRevoked)
	if _, err := s.grant(7, 4); fserr.Of(err) != fserr.NotReady {
		t.Fatal(err)
	}
	ok(t, s.Promote(7, 4))
	g = s.must(7, 4)
	check(g, want)

	// A chunk that is put out of memory loses its slot and gets another.
	ok(t, s.Flush(7, 4))
	_, err = s.settlePass(s.now(), 10)
	ok(t, err)
	for c := id.ChunkID(8); c < 12; c++ {
		ok(t, s.Create(c, 1))
		ok(t, s.Read(c, 1, 0, chunk.BlockSize, make([]byte, chunk.BlockSize), make([]uint32, 1)))
	}
	expect("put out of memory", g, local.ErrRevoked)
	g = s.must(7, 4)
	check(g, want)
	ok(t, s.Delete(7))
	expect("deleted", g, local.ErrRevoked)
	if _, err := s.grant(7, 4); fserr.Of(err) != fserr.NoChunk {
		t.Fatal(err)
	}
	ok(t, s.Create(7, 9))
	expect("made again", g, local.ErrRevoked)
	if p, err := peek(s.must(7, 9), 0, 6); err != nil || !chunk.IsZero(p) {
		t.Fatal(err)
	}
	g = s.must(7, 9)
	ok(t, s.Close())
	if _, err := peek(g, 0, 1); err == nil {
		t.Fatal("a closed store is read")
	}
	if s.board.Until() != 0 {
		t.Fatal("the board outlives the store")
	}
}

// A store that went out of service is not read any more, and one without board or descriptors shares nothing.
func TestShareEnds(t *testing.T) {
	s := openSharing(t, Options{SettleEvery: -1})
	ok(t, s.Create(7, 1))
	g := s.must(7, 1)
	_, err := peek(g, 0, 1)
	ok(t, err)
	s.fail("test", 7, errors.New("disk on fire"))
	if _, err := peek(g, 0, 1); err == nil {
		t.Fatal("a failed store is read")
	}
	if _, err := s.grant(7, 1); fserr.Of(err) != fserr.IO {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{
		"board":       {Dir: t.TempDir()},
		"descriptors": {FS: new(disk.Faulty), Dir: "/x", Board: func() *local.Board { b, err := local.NewBoard(1); ok(t, err); return b }()},
	} {
		o.Cluster, o.SettleEvery = id.Cluster{1}, -1
		s, err := Open(o)
		ok(t, err)
		ok(t, s.Create(7, 1))
		if _, err := s.Share(7, 1); fserr.Of(err) != fserr.NotSupported {
			t.Errorf("%s: %v", name, err)
		}
		ok(t, s.Close())
	}
}

// TestShareRegister has writers, punches, flushes, settling, new epochs and rebuilds go on while readers on the board check that each block is
// an atomic register, and that nothing is read while the replica joins.
func TestShareRegister(t *testing.T) {
	const blocks, writers, readers = 40, 3, 3
	s := openSharing(t, Options{SettleEvery: 3 * time.Millisecond, SettleAfter: time.Millisecond})
	const seed = uint64(1) // how the goroutines meet is chance enough
	ok(t, s.Create(7, 1))
	var (
		started, ended, seen [blocks]atomic.Int64
		epoch                atomic.Int64 // of the replica
		joined, promoted     atomic.Int64 // the last epoch at which a join has returned, a promotion has begun
		stop                 atomic.Bool
		good, refused        atomic.Int64
		paused               sync.RWMutex // writers against changes of state, so that a write has one epoch
		wg                   sync.WaitGroup
	)
	epoch.Store(1)
	contents := func(at uint32, n int64) []byte {
		p := disk.AlignedBuffer(chunk.BlockSize)
		if n%7 == 0 {
			return p
		}
		for i := 0; i < len(p); i += 16 {
			p[i], p[i+1], p[i+2], p[i+3], p[i+4] = byte(n), byte(n>>8), byte(n>>16), byte(n>>24), byte(at)
		}
		return p
	}
	for w := range writers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(w)))
			for !stop.Load() {
				at := uint32(r.IntN(blocks/writers)*writers + w)
				n := started[at].Add(1)
				p := contents(at, n)
				off := at * chunk.BlockSize
				paused.RLock()
				e := id.Epoch(epoch.Load())
				var err error
				if n%7 == 0 {
					err = s.Punch(7, e, off, off+chunk.BlockSize)
				} else if op := new(WriteOp); r.IntN(2) > 0 || !s.TryWrite(op, 7, e, off, p, chunk.AppendSums(nil, off, p)) {
					err = s.Write(7, e, off, p, chunk.AppendSums(nil, off, p))
				} else {
					m, werr := unix.Pwrite(op.FD, p, op.Offset)
					err = op.Finish(m, werr)
				}
				if err == nil && r.IntN(50) == 0 {
					err = s.Flush(7, e)
				}
				paused.RUnlock()
				if err != nil {
					t.Errorf("write %d of block %d: %v", n, at, err)
					return
				}
				ended[at].Store(n)
			}
		})
	}
	must := func(what string, err error) {
		if err != nil {
			t.Errorf("%s: %v", what, err)
			stop.Store(true)
		}
	}
	wg.Go(func() {
		r := rand.New(rand.NewPCG(seed, 50))
		for !stop.Load() {
			time.Sleep(time.Duration(1+r.IntN(5)) * time.Millisecond)
			e := epoch.Load() + 1
			paused.Lock()
			if r.IntN(2) == 0 {
				must("adopt", s.Adopt(7, id.Epoch(e)))
				epoch.Store(e)
				paused.Unlock()
				continue
			}
			must("join", s.Join(7, id.Epoch(e)))
			joined.Store(e)
			epoch.Store(e)
			paused.Unlock()
			time.Sleep(time.Duration(r.IntN(3)) * time.Millisecond)
			promoted.Store(e)
			must("promote", s.Promote(7, id.Epoch(e)))
		}
	})
	for n := range readers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(100+n)))
			p := disk.AlignedBuffer(4 * chunk.BlockSize)
			var g *local.Grant
			defer func() {
				if g != nil {
					g.Close()
				}
			}()
			for !stop.Load() {
				count := 1 + r.IntN(4)
				first := uint32(r.IntN(blocks - count + 1))
				var least [4]int64
				for i := range count {
					least[i] = max(ended[first+uint32(i)].Load(), seen[first+uint32(i)].Load())
				}
				over := promoted.Load()
				join := joined.Load()
				var err error
				if g == nil {
					if g, err = s.grant(7, id.Epoch(epoch.Load())); err != nil {
						refused.Add(1)
						continue
					}
				}
				err = doRead(g, p[:count*chunk.BlockSize], first)
				if err != nil {
					refused.Add(1)
					if !errors.Is(err, local.ErrChanging) && !errors.Is(err, local.ErrRevoked) {
						t.Errorf("read [%d, +%d): %v", first, count, err)
					}
					if errors.Is(err, local.ErrRevoked) {
						g.Close()
						g = nil
					}
					continue
				}
				good.Add(1)
				if join > over && promoted.Load() < join {
					t.Errorf("read while the replica was joining at epoch %d", join)
				}
				for i := range count {
					at := first + uint32(i)
					got := p[i*chunk.BlockSize:][:chunk.BlockSize]
					v, most := least[i], started[at].Load()
					for v <= most && !bytes.Equal(got, contents(at, v)) {
						v++
					}
					if v > most {
						t.Errorf("block %d reads as none of writes %d to %d: % x", at, least[i], most, got[:16])
						stop.Store(true)
						continue
					}
					for old := seen[at].Load(); v%7 != 0 && old < v && !seen[at].CompareAndSwap(old, v); {
						old = seen[at].Load()
					}
				}
			}
		})
	}
	enough := func() bool { return good.Load() >= 2000 && refused.Load() >= 100 && epoch.Load() >= 60 }
	least := func() bool { return good.Load() >= 50 && refused.Load() > 0 }
	for began := time.Now(); !stop.Load() && !enough() && time.Since(began) < 3*time.Minute; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > 20*time.Second && least() {
			break // a slow machine
		}
	}
	stop.Store(true)
	wg.Wait()
	if !least() {
		t.Errorf("%d reads counted, %d did not: too few to say anything", good.Load(), refused.Load())
	}
	t.Logf("%d reads counted, %d did not, %d epochs", good.Load(), refused.Load(), epoch.Load())
}

func doRead(g *local.Grant, p []byte, first uint32) error {
	op := new(local.Op)
	if err := g.Begin(op, p, first); err != nil {
		return err
	}
	return op.Do()
}
