package crash

import (
	"errors"
	"fmt"
	"math/rand"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"varve/cs/repl"
	"varve/cs/store"
	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/id"
)

// logRegion is the length of one region of the activity log (cs/store/format.go).
const logRegion = 1052672

const (
	simChunks  = 3
	simExtents = 2  // of each chunk
	simBlocks  = 12 // of each extent
)

// simKind is a way in which the disk fails.
type simKind struct {
	name string
	// before is called when the store runs, after returns whether power is lost and does what comes with it.
	before func(*sim)
	crash  func(*sim)
	// strict: the disk keeps what it was asked to keep, so nothing may be lost and nothing reported.
	strict bool
	// lies: the disk lies about syncs, so an older content cannot always be told from the newest.
	lies bool
}

var simKinds = []simKind{
	{name: "power loss", strict: true, crash: func(x *sim) { x.d.Crash(x.rng) }},
	{name: "killed process", strict: true, crash: func(x *sim) { x.d.Kill() }},
	{name: "power loss, unsynced writes misdirected", crash: func(x *sim) {
		x.hits += len(x.d.Stray(x.rng, []float64{0.05, 0.3, 1}[x.rng.Intn(3)]))
		x.d.Crash(x.rng)
	}},
	{name: "a write misdirected", before: func(x *sim) { x.deceive(x.misdirect) }},
	{name: "a write misdirected, process killed", before: func(x *sim) { x.deceive(x.misdirect) }, crash: func(x *sim) { x.d.Kill() }},
	{name: "a write misdirected, power loss", before: func(x *sim) { x.deceive(x.misdirect) }, crash: func(x *sim) { x.d.Crash(x.rng) }},
	{name: "a write lost", before: func(x *sim) { x.deceive(lose) }},
	{name: "a write lost, process killed", before: func(x *sim) { x.deceive(lose) }, crash: func(x *sim) { x.d.Kill() }},
	{name: "a write lost, power loss", before: func(x *sim) { x.deceive(lose) }, crash: func(x *sim) { x.d.Crash(x.rng) }},
	{name: "syncs that lie, power loss", lies: true, before: func(x *sim) {
		left := x.rng.Intn(60)
		x.d.Deceive(func(op disk.Op) disk.Fate {
			if left--; left >= 0 || op.Kind == disk.OpWrite {
				return disk.Fate{}
			}
			x.hits++
			return disk.Fate{Lost: true}
		})
	}, crash: func(x *sim) { x.d.Crash(x.rng) }},
}

// simCount is what became of blocks.
type simCount struct {
	blocks, right int // all; of these, with what they should hold
	found         int // reported as bad when they are read, or of a chunk whose header is not readable
	notReady      int // of chunks that are not served until a better replica was looked for
	accepted      int // of these, right if there is none
	acceptedFound int // reported then
	acceptedWrong int // wrong then, and not reported
	old, foreign  int // wrong, and not reported: an earlier content of the place, any other
	faults        int // operations that the disk falsified
	example       string
}

func (c *simCount) add(o simCount) {
	c.blocks, c.right, c.found, c.notReady = c.blocks+o.blocks, c.right+o.right, c.found+o.found, c.notReady+o.notReady
	c.accepted, c.acceptedFound, c.acceptedWrong = c.accepted+o.accepted, c.acceptedFound+o.acceptedFound, c.acceptedWrong+o.acceptedWrong
	c.old, c.foreign, c.faults = c.old+o.old, c.foreign+o.foreign, c.faults+o.faults
	if c.example == "" {
		c.example = o.example
	}
}

// TestLyingDisk runs a store on disks that lose, tear, misdirect and lie, and counts what becomes of its blocks: all that is wrong has
// to be reported, by a checksum or by a chunk that is not ready.
func TestLyingDisk(t *testing.T) {
	otherwise := 3 // for the race detector, which makes it slow
	if os.Getenv("VARVE_E2E") != "" {
		otherwise = 25
	}
	seeds, from := number(t, "VARVE_SEEDS", otherwise), int64(number(t, "VARVE_SEED", 1))
	template := simTemplate(t)
	t.Logf("%-40s %7s %8s %8s %7s %9s %9s %9s %9s %5s %5s", "", "faults", "blocks", "right", "found", "not ready", "accepted", "a. found", "a. wrong", "OLD", "WRONG")
	for n, kind := range simKinds {
		var mu sync.Mutex
		var sum simCount
		var next atomic.Int64
		next.Store(from - 1)
		var work sync.WaitGroup
		for range 2 {
			work.Go(func() {
				for seed := next.Add(1); seed < from+int64(seeds); seed = next.Add(1) {
					x := &sim{d: template.d.Clone(), rng: rand.New(rand.NewSource(seed*100 + int64(n))), seq: template.seq, model: template.copyModel(), kind: kind}
					x.run()
					mu.Lock()
					if (x.count.old > 0 || x.count.foreign > 0 || kind.strict && x.count.found+x.count.acceptedFound+x.count.acceptedWrong > 0) && x.count.example == "" {
						x.count.example = fmt.Sprintf("VARVE_SEED=%d VARVE_SEEDS=1 go test ./test/crash -run TestLyingDisk -v", seed)
					}
					sum.add(x.count)
					if x.err != nil {
						t.Errorf("%s, seed %d: %v", kind.name, seed, x.err)
					}
					mu.Unlock()
				}
			})
		}
		work.Wait()
		t.Logf("%-40s %7d %8d %8d %7d %9d %9d %9d %9d %5d %5d", kind.name, sum.faults, sum.blocks, sum.right, sum.found, sum.notReady,
			sum.accepted, sum.acceptedFound, sum.acceptedWrong, sum.old, sum.foreign)
		switch {
		case sum.foreign > 0 || sum.old > 0 && !kind.lies:
			t.Errorf("%s: %d blocks were old and %d wrong, and nobody was told: %s", kind.name, sum.old, sum.foreign, sum.example)
		case kind.strict && sum.found+sum.acceptedFound+sum.acceptedWrong > 0:
			t.Errorf("%s: %d blocks were lost, or reported though nothing was wrong: %s", kind.name, sum.found+sum.acceptedFound+sum.acceptedWrong, sum.example)
		case !kind.strict && sum.faults == 0 && seeds > 20:
			t.Errorf("%s: the disk did nothing wrong", kind.name)
		}
	}
}

// sim is one run.
type sim struct {
	kind  simKind
	d     *disk.Faulty
	s     *store.Store
	rng   *rand.Rand
	seq   uint64
	model map[simBlock][][]uint64 // of each sector the contents that it may have, the last one written last; 0 is zeros
	hits  int
	count simCount
	err   error
}

type simBlock struct {
	chunk id.ChunkID
	block uint32
}

func simOptions(d *disk.Faulty) store.Options {
	return store.Options{FS: d, Dir: "/d", Cluster: cluster, MaxOpen: 3, MaxActive: 2, SettleAfter: 1, SettleEvery: -1}
}

// simTemplate is a store that was stopped in order, half of its blocks written.
func simTemplate(t *testing.T) *sim {
	x := &sim{d: new(disk.Faulty), rng: rand.New(rand.NewSource(1)), model: map[simBlock][][]uint64{}}
	var err error
	if x.s, err = store.Open(simOptions(x.d)); err != nil {
		t.Fatal(err)
	}
	for k := id.ChunkID(1); k <= simChunks; k++ {
		if err := x.s.Create(k, 1); err != nil {
			t.Fatal(err)
		}
		for e := range uint32(simExtents) {
			for b := range uint32(simBlocks) {
				at := simBlock{k, e*chunk.ExtentSize/chunk.BlockSize + b}
				x.model[at] = make([][]uint64, sectorsPerBlock)
				for i := range x.model[at] {
					x.model[at][i] = []uint64{0}
				}
			}
		}
	}
	for at := range x.model {
		if at.block%2 == 0 {
			x.write(at, 0, sectorsPerBlock)
		}
	}
	if err := errors.Join(x.err, x.s.Close()); err != nil {
		t.Fatal(err)
	}
	x.d.Kill()
	for at := range x.model {
		x.flushed(at)
	}
	return x
}

func (x *sim) copyModel() map[simBlock][][]uint64 {
	m := make(map[simBlock][][]uint64, len(x.model))
	for at, sectors := range x.model {
		m[at] = slices.Clone(sectors)
	}
	return m
}

// may notes that a sector may hold seq from now on.
func (x *sim) may(at simBlock, sector int, seq uint64) {
	x.model[at][sector] = append(slices.Clip(x.model[at][sector]), seq)
}

func (x *sim) flushed(at simBlock) {
	for i, v := range x.model[at] {
		x.model[at][i] = v[len(v)-1:]
	}
}

// write writes sectors of a block.
func (x *sim) write(at simBlock, from, to int) {
	x.seq++
	p := disk.AlignedBuffer(chunk.BlockSize)[:(to-from)*sectorSize]
	for i := from; i < to; i++ {
		fillSector(p[(i-from)*sectorSize:], at.chunk, x.sector(at, i), x.seq)
		x.may(at, i, x.seq)
	}
	off := at.block*chunk.BlockSize + uint32(from)*sectorSize
	x.failed(x.s.Write(at.chunk, 1, off, p, chunk.AppendSums(nil, off, p)))
}

func (x *sim) sector(at simBlock, i int) uint64 { return uint64(at.block)*sectorsPerBlock + uint64(i) }

// failed notes an error that an honest disk would not cause.
func (x *sim) failed(err error) {
	if err != nil && x.kind.strict {
		x.err = errors.Join(x.err, err)
	}
}

// deceive falsifies one of the writes to come.
func (x *sim) deceive(how func() disk.Fate) {
	left := x.rng.Intn(40)
	fate := disk.Fate{}
	if f := how(); left >= 0 {
		fate = f
	}
	x.d.Deceive(func(op disk.Op) disk.Fate {
		if op.Kind != disk.OpWrite {
			return disk.Fate{}
		}
		if left--; left != -1 {
			return disk.Fate{}
		}
		x.hits++
		return fate
	})
}

func lose() disk.Fate { return disk.Fate{Lost: true} }

func (x *sim) misdirect() disk.Fate {
	all := x.d.Places()
	at := all[x.rng.Intn(len(all))]
	// Most of them where it hurts: most pages are of the activity log, and few of these hold anything.
	if strings.HasSuffix(at.Path, ".log") && x.rng.Intn(4) > 0 {
		if at = all[len(all)-1-x.rng.Intn(40)]; x.rng.Intn(2) == 0 {
			at = all[slices.IndexFunc(all, func(p disk.Place) bool { return strings.HasSuffix(p.Path, ".log") })]
			at.Off = []int64{0, 4096, logRegion, logRegion + 4096}[x.rng.Intn(4)]
		}
	}
	return disk.Fate{Path: at.Path, Off: at.Off}
}

func (x *sim) run() {
	var err error
	if x.s, err = store.Open(simOptions(x.d)); err != nil {
		x.err = err
		return
	}
	all := make([]simBlock, 0, len(x.model))
	for at := range x.model {
		all = append(all, at)
	}
	slices.SortFunc(all, func(a, b simBlock) int { return int(a.chunk-b.chunk)*1e6 + int(a.block) - int(b.block) })
	deceiveAt, steps := x.rng.Intn(20), 10+x.rng.Intn(40)
	for step := range steps {
		if step == min(deceiveAt, steps-1) && x.kind.before != nil {
			x.kind.before(x)
		}
		x.step(all[x.rng.Intn(len(all))])
	}
	crashed := x.kind.crash != nil
	if crashed {
		x.d.PowerOff()
		_ = x.s.Close() // the disk is off
		x.kind.crash(x)
	} else if x.rng.Intn(2) == 0 { // look through the running store, or through one that was stopped in order
		x.failed(x.s.Close())
		crashed = true
	}
	if crashed {
		if x.s, err = store.Open(simOptions(x.d)); err != nil {
			x.count.blocks, x.count.found, x.count.faults = len(all), len(all), x.hits // the server does not start: found
			x.failed(err)
			return
		}
	}
	x.look(all)
	x.count.faults = x.hits
	x.d.PowerOff()
	_ = x.s.Close() // the disk is off
}

func (x *sim) step(at simBlock) {
	switch n := x.rng.Intn(10); {
	case n < 5:
		from := x.rng.Intn(sectorsPerBlock)
		if x.rng.Intn(2) == 0 {
			from = 0
		}
		to := sectorsPerBlock
		if x.rng.Intn(2) == 0 {
			to = from + 1 + x.rng.Intn(sectorsPerBlock-from)
		}
		x.write(at, from, to)
	case n < 6:
		for i := range sectorsPerBlock {
			x.may(at, i, 0)
		}
		off := at.block * chunk.BlockSize
		x.failed(x.s.Punch(at.chunk, 1, off, off+chunk.BlockSize))
	case n < 8:
		err := x.s.Flush(at.chunk, 1)
		if x.failed(err); err == nil {
			for b := range x.model {
				if b.chunk == at.chunk {
					x.flushed(b)
				}
			}
		}
	default:
		_, err := x.s.Settle(1 + x.rng.Intn(simChunks))
		x.failed(err)
	}
}

// look reads every block, and counts.
func (x *sim) look(all []simBlock) {
	infos, _ := x.s.List(0, 100)
	states := map[id.ChunkID]repl.State{}
	for _, i := range infos {
		states[i.ID] = i.State
	}
	unclean := map[id.ChunkID]bool{}
	for k, st := range states {
		if st == repl.Unclean {
			unclean[k] = true
			_ = x.s.Accept(k) // what fails shows when it is read
		}
	}
	p, sums := disk.AlignedBuffer(chunk.BlockSize), make([]uint32, 1)
	for _, at := range all {
		x.count.blocks++
		if st, ok := states[at.chunk]; !ok || st != repl.Serving && st != repl.Unclean {
			x.count.found++
			continue
		}
		err := x.s.Read(at.chunk, 1, at.block*chunk.BlockSize, chunk.BlockSize, p, sums)
		if err == nil && chunk.VerifySums(sums, 0, p) >= 0 {
			x.err = fmt.Errorf("block %v does not match the checksum that came with it", at)
		}
		verdict := x.judge(at, p)
		if unclean[at.chunk] {
			x.count.notReady++
			switch {
			case err != nil:
				x.count.acceptedFound++
			case verdict == nil:
				x.count.accepted++
			default:
				x.count.acceptedWrong++
			}
			continue
		}
		switch {
		case err != nil:
			x.count.found++
		case verdict == nil:
			x.count.right++
		case errors.Is(verdict, errLost):
			x.count.old++
		default:
			x.count.foreign++
		}
	}
}

// judge compares a block with what it may hold. errLost: it holds something older.
func (x *sim) judge(at simBlock, p []byte) error {
	old := false
	for i := range sectorsPerBlock {
		seq, err := readSector(p[i*sectorSize:], at.chunk, x.sector(at, i))
		if err != nil {
			return err
		}
		may := x.model[at][i]
		switch {
		case slices.Contains(may, seq):
		case seq > x.seq:
			return fmt.Errorf("write %d was never begun: %w", seq, errForeign)
		default:
			old = true
		}
	}
	if old {
		return errLost
	}
	return nil
}
