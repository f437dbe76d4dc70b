package readcache

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/id"
)

var modelSeed = flag.Int64("seed", 0, "run the model test with this seed only")

// vault is a Keeper in memory: what it keeps survives a process, unless the machine crashes.
type vault struct {
	mu   sync.Mutex
	kept map[string][]atomic.Uint64
}

func (v *vault) Find(name string) []uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	w := v.kept[name]
	if w == nil {
		return nil
	}
	out := make([]uint64, len(w))
	for i := range w {
		out[i] = w[i].Load()
	}
	return out
}

func (v *vault) Make(name string, n int) ([]atomic.Uint64, func() error, func() error, error) {
	w := make([]atomic.Uint64, n)
	return w, func() error {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.kept[name] = w
		return nil
	}, func() error { return nil }, nil
}

func (v *vault) Forget(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.kept, name)
}

func (v *vault) crash() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.kept = map[string][]atomic.Uint64{}
}

func newVault() *vault { return &vault{kept: map[string][]atomic.Uint64{}} }

var testCluster = id.Cluster{1, 2, 3}

// quiet is for caches whose disk is meant to fail.
var quiet = slog.New(slog.DiscardHandler)

// cell is a block of a file.
type cell struct {
	ino   uint64
	chunk uint64
	block uint32
}

// contentOf is what a block holds after so many changes.
func contentOf(c cell, change uint64) []byte {
	b := disk.AlignedBuffer(chunk.BlockSize)
	for i := 0; i < len(b); i += 32 {
		binary.LittleEndian.PutUint64(b[i:], c.chunk)
		binary.LittleEndian.PutUint64(b[i+8:], uint64(c.block))
		binary.LittleEndian.PutUint64(b[i+16:], change)
		binary.LittleEndian.PutUint64(b[i+24:], uint64(i))
	}
	return b
}

// world is a cluster as a cache sees it, the host of the cache, and somebody else who writes.
type world struct {
	t       testing.TB
	rng     *rand.Rand
	disk    *disk.Faulty
	vault   *vault
	cache   *Cache
	dir     string
	size    int64
	index   uint64
	changes map[cell]uint64
	lost    map[uint64]uint64 // chunk -> lost epoch
	let     map[uint64]uint64 // inode -> who was let write last
	open    map[uint64]*handle
	copies  []*disk.Faulty
	hits    int
	reads   int
	log     []string
}

type handle struct {
	f     *File
	write bool
}

const (
	modelFiles  = 3
	modelChunks = 2
	modelBlocks = 16
)

func (w *world) note(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf(format, args...))
	if len(w.log) > 60 {
		w.log = w.log[1:]
	}
}

func (w *world) start() {
	for try := 0; ; try++ {
		c, err := Open(Options{Dir: w.dir, Bytes: w.size, Cluster: testCluster, Logger: quiet, FS: w.disk, Witness: w.vault, QueueBytes: 64 << 20})
		if err == nil {
			w.cache = c
			break
		}
		if w.disk.Inject(nil); try == 3 {
			w.t.Fatalf("open: %v", err)
		}
	}
	w.open = map[uint64]*handle{}
}

func (w *world) grant(ino uint64, write bool) *handle {
	h := w.open[ino]
	if h != nil && (h.write || !write) {
		return h
	}
	before := w.let[ino]
	w.index++
	lease := w.index
	if write {
		w.let[ino] = lease
	}
	if w.rng.Intn(10) == 0 {
		before = w.let[ino] // the answer was given again
	}
	h = &handle{f: w.cache.File(ino), write: write}
	h.f.Opened(before, max(lease, w.let[ino]), write)
	w.open[ino] = h
	w.note("grant %d write %v: before %d lease %d", ino, write, before, lease)
	return h
}

func (w *world) cell() cell {
	ino := uint64(w.rng.Intn(modelFiles) + 1)
	return cell{ino, ino*10 + uint64(w.rng.Intn(modelChunks)), uint32(w.rng.Intn(modelBlocks))}
}

func (w *world) read(c cell, n int) {
	h := w.grant(c.ino, false)
	n = min(n, slotBlocks-int(c.block%slotBlocks))
	buf := disk.AlignedBuffer(n * chunk.BlockSize)
	b := Blocks{Chunk: c.chunk, Lost: w.lost[c.chunk], First: c.block}
	var op Op
	w.reads++
	if h.f.Begin(&op, b, buf) {
		got, err := op.Do()
		if op.Finish(got, err) {
			w.hits++
			for i := range n {
				x := cell{c.ino, c.chunk, c.block + uint32(i)}
				want := contentOf(x, w.changes[x])
				if string(buf[i*chunk.BlockSize:][:chunk.BlockSize]) != string(want) {
					for _, l := range w.log {
						w.t.Log(l)
					}
					w.t.Fatalf("block %+v: got change %d, want %d", x, binary.LittleEndian.Uint64(buf[i*chunk.BlockSize+16:]), w.changes[x])
				}
			}
			return
		}
	}
	for i := range n {
		x := cell{c.ino, c.chunk, c.block + uint32(i)}
		copy(buf[i*chunk.BlockSize:], contentOf(x, w.changes[x]))
	}
	var sums []uint32
	if w.rng.Intn(2) == 0 {
		sums = chunk.AppendSums(nil, 0, buf)
	}
	h.f.Fill(b, buf, sums)
}

func (w *world) write(c cell, n int) {
	h := w.grant(c.ino, true)
	n = min(n, modelBlocks-int(c.block))
	h.f.Invalidate(Blocks{Chunk: c.chunk, Lost: w.lost[c.chunk]}, c.block*chunk.BlockSize+uint32(w.rng.Intn(100)), uint32(n*chunk.BlockSize-200))
	for i := range n {
		w.changes[cell{c.ino, c.chunk, c.block + uint32(i)}]++
	}
	w.note("write %+v +%d", c, n)
}

// settle waits for fills.
func (w *world) settle() {
	for i := 0; w.cache.queued.Load() > 0 && i < 10000; i++ {
		time.Sleep(time.Millisecond)
	}
}

func (w *world) step() {
	switch k := w.rng.Intn(1000); {
	case k < 500:
		w.read(w.cell(), 1+w.rng.Intn(4))
	case k < 650:
		w.write(w.cell(), 1+w.rng.Intn(12))
	case k < 700: // somebody else takes the file and writes
		c := w.cell()
		delete(w.open, c.ino)
		w.index++
		w.let[c.ino] = w.index
		w.changes[c]++
		w.note("else %+v at %d", c, w.index)
	case k < 730:
		delete(w.open, w.cell().ino) // the lease is given back
	case k < 740: // cut and cleared
		c := w.cell()
		h := w.grant(c.ino, true)
		h.f.Drop()
		for i := range modelBlocks {
			w.changes[cell{c.ino, c.chunk, uint32(i)}]++
		}
		w.note("cut %d", c.ino)
	case k < 745: // the servers lost power
		c := w.cell()
		w.lost[c.chunk]++
		w.changes[c]++
	case k < 850:
		w.settle()
	case k < 870 && w.rng.Intn(3) == 0:
		w.copies = append(w.copies, w.disk.Clone())
	case k < 880:
		w.size = MinBytes + int64(w.rng.Intn(4))<<20
		if err := w.cache.Resize(w.size); err != nil && w.cache.Usable() {
			w.t.Fatal(err)
		}
		w.note("resize")
	case k < 890:
		w.stop()
		w.start()
	case k < 910:
		w.note("kill")
		w.disk.Kill()
		w.ruin()
		w.start()
	case k < 925:
		w.note("power")
		w.disk.Crash(w.rng)
		w.vault.crash()
		w.ruin()
		w.start()
	case k < 930:
		_ = w.disk.Flip(filepath.Join(w.dir, []string{indexName, dataName}[w.rng.Intn(2)]), w.rng.Int63n(recordsStart+2<<20)) // not if it is gone
	case k < 935: // somebody's syncs and writes are lost or land elsewhere
		seed := w.rng.Int63()
		var mu sync.Mutex
		rng := rand.New(rand.NewSource(seed))
		data := filepath.Join(w.dir, dataName)
		w.disk.Deceive(func(op disk.Op) disk.Fate {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case rng.Intn(3) > 0:
				return disk.Fate{}
			case op.Kind == disk.OpWrite && op.Path == data && rng.Intn(2) == 0:
				return disk.Fate{Path: op.Path, Off: int64(rng.Intn(64)) * slotBytes}
			}
			return disk.Fate{Lost: true}
		})
	case k < 937:
		w.disk.Inject(func(op disk.Op) error {
			if op.Kind == disk.OpWrite {
				return errors.New("no room")
			}
			return nil
		})
	case k < 945:
		w.move()
	}
}

func (w *world) move() {
	to := map[string]string{"/a": "/b", "/b": "/a"}[w.dir]
	err := w.cache.Move(w.t.Context(), to)
	if err == nil {
		w.dir = to
		w.note("move to %s", to)
	}
}

func (w *world) stop() {
	err := w.cache.Close()
	w.note("stop: %v", err)
	w.disk.Kill() // what it might still hold
}

// ruin does to the files what nobody should.
func (w *world) ruin() {
	switch w.rng.Intn(8) {
	case 0, 1:
		if len(w.copies) > 0 { // an older copy is put in the place of all
			w.disk = w.copies[w.rng.Intn(len(w.copies))].Clone()
			if _, err := w.disk.Stat(filepath.Join(w.dir, indexName)); err != nil {
				w.dir = map[string]string{"/a": "/b", "/b": "/a"}[w.dir]
			}
			w.note("older copy of all")
		}
	case 2, 3:
		if len(w.copies) == 0 {
			return
		}
		from := w.copies[w.rng.Intn(len(w.copies))]
		name := []string{indexName, dataName}[w.rng.Intn(2)]
		w.copyFile(from, name)
		w.note("older copy of %s", name)
	case 4:
		f, err := w.disk.Open(filepath.Join(w.dir, []string{indexName, dataName}[w.rng.Intn(2)]), disk.ReadWrite)
		if err != nil {
			return // it is gone with the power
		}
		if err := f.Truncate(w.rng.Int63n(2 << 20)); err != nil {
			w.t.Fatal(err)
		}
		f.Close()
		w.note("truncated")
	}
}

func (w *world) copyFile(from *disk.Faulty, name string) {
	src, err := from.Open(filepath.Join(w.dir, name), disk.ReadOnly)
	if err != nil {
		return // the cache was elsewhere
	}
	dst, err := w.disk.Open(filepath.Join(w.dir, name), disk.ReadWrite)
	if err != nil {
		return
	}
	size, _ := src.Size()
	if err := dst.Truncate(0); err != nil {
		w.t.Fatal(err)
	}
	buf := make([]byte, 1<<20)
	zero := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(buf)) {
		n, _ := src.ReadAt(buf, off)
		if string(buf[:n]) == string(zero[:n]) {
			continue
		}
		if _, err := dst.WriteAt(buf[:n], off); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := dst.Truncate(size); err != nil {
		w.t.Fatal(err)
	}
}

// TestModel: whatever is read, written, lost, killed, ruined or put back, the cache never has what is not so.
func TestModel(t *testing.T) {
	seeds, steps := int64(3), 800
	if os.Getenv("VARVE_SOAK") != "" {
		seeds, steps = 100, 2000
	}
	base := int64(1)
	if *modelSeed != 0 {
		base, seeds = *modelSeed, 1
	}
	const enough = 20 // hits
	hits := 0
	for seed := base; seed < base+seeds || *modelSeed == 0 && hits < enough && seed < base+10*seeds; seed++ { // how many depends on how soon fills end
		w := &world{t: t, rng: rand.New(rand.NewSource(seed)), disk: new(disk.Faulty), vault: newVault(), dir: "/a", size: MinBytes,
			changes: map[cell]uint64{}, lost: map[uint64]uint64{}, let: map[uint64]uint64{}, index: 1}
		t.Logf("again with -seed %d", seed)
		w.start()
		for range steps {
			w.step()
			if len(w.copies) > 4 {
				w.copies = w.copies[1:]
			}
		}
		w.disk.Kill()
		w.cache.Close()
		hits += w.hits
		t.Logf("%d hits of %d reads", w.hits, w.reads)
	}
	if hits < enough {
		t.Errorf("%d hits in all: nothing was tested", hits)
	}
}
