package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/id"
)

// MaxFaults is the number of faults that a Report holds; more are only counted.
const MaxFaults = 1000

// Report is what Check found.
type Report struct {
	Chunks     int    `json:"chunks"`
	Blocks     int64  `json:"blocks"` // verified; holes left out
	Allocated  int64  `json:"allocated_bytes"`
	Unclean    int    `json:"unclean"`          // chunks with active extents, in which a mismatch is no fault
	Skipped    int    `json:"active_extents"`   // not verified
	Quarantine int    `json:"quarantined"`      // blocks that were known to be bad
	Healthy    int    `json:"quarantined_good"` // of these, such as match their checksum now
	Retired    string `json:"retired,omitempty"`
	Count      int    `json:"fault_count"`
	// Faults are in the order of their paths, at most MaxFaults.
	Faults []Fault `json:"faults"`
}

// Fault is one thing that is wrong.
type Fault struct {
	Path  string     `json:"path"`
	Chunk id.ChunkID `json:"chunk,omitempty"`
	Block int        `json:"block"` // -1: not of one block
	Text  string     `json:"text"`
}

func (f Fault) String() string {
	if f.Block >= 0 {
		return fmt.Sprintf("%s: block %d: %s", f.Path, f.Block, f.Text)
	}
	return f.Path + ": " + f.Text
}

// CheckOptions say how to check. The zero value works.
type CheckOptions struct {
	// Jobs is the number of chunks that are read at once. Default: 4.
	Jobs int
	// Progress is told how many of how many chunks are done and how many bytes of them were read; calls do not overlap.
	Progress func(done, total int, bytes int64)
}

const defaultJobs = 4

// check is one run of Check.
type check struct {
	o      Options
	active map[id.ChunkID]extents
	all    bool // the activity log is gone: everything is active
	bad    map[id.ChunkID]map[uint32]BadBlock

	mu     sync.Mutex
	report Report
	done   int
	bytes  int64
}

// Check reads every chunk of a store that is not open and reports what is wrong. It changes nothing. The error is for what kept it
// from checking.
func Check(ctx context.Context, o Options, co CheckOptions) (Report, error) {
	o, err := o.withDefaults()
	if err != nil {
		return Report{}, err
	}
	if _, err := o.FS.Stat(filepath.Join(o.Dir, "chunks")); err != nil {
		return Report{}, fmt.Errorf("%s holds no chunks: %w", o.Dir, err)
	}
	unlock, err := o.FS.Lock(filepath.Join(o.Dir, "lock"))
	if err != nil {
		return Report{}, err
	}
	defer unlock()
	k := &check{o: o, report: Report{Faults: []Fault{}}}
	if err := k.logs(); err != nil {
		return k.report, err
	}
	chunks, strays, err := listChunks(o.FS, o.Dir)
	if err != nil {
		return k.report, err
	}
	for _, path := range strays {
		k.fault(Fault{Path: path, Block: -1, Text: "not a chunk file"})
	}
	err = k.chunks(ctx, chunks, co)
	for c, m := range k.bad {
		if _, ok := slices.BinarySearch(chunks, c); !ok {
			k.fault(Fault{Path: filepath.Join(o.Dir, quarantineName), Chunk: c, Block: -1, Text: fmt.Sprintf("lists %d blocks of chunk %v, which is not there", len(m), c)})
		}
	}
	slices.SortFunc(k.report.Faults, func(a, b Fault) int { return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Block, b.Block)) })
	return k.report, err
}

// logs reads the files beside the chunks.
func (k *check) logs() error {
	path := filepath.Join(k.o.Dir, "active.log")
	f, err := k.o.FS.Open(path, disk.ReadOnly)
	if err != nil {
		return err
	}
	g, err := readActivity(f)
	if err = errors.Join(err, f.Close()); err != nil {
		k.fault(Fault{Path: path, Block: -1, Text: err.Error()})
		k.all = true
	} else if g.cluster != k.o.Cluster {
		k.fault(Fault{Path: path, Block: -1, Text: fmt.Sprintf("is of cluster %v, want %v", g.cluster, k.o.Cluster)})
	}
	if g.gap {
		k.fault(Fault{Path: path, Block: -1, Text: fmt.Sprintf("record %d is damaged, and there are records behind it", g.records)})
	}
	k.active = g.active
	rest, err := readRest(k.o.FS, k.o.Dir, k.o.Cluster)
	if errors.Is(err, ErrCorrupt) {
		k.fault(Fault{Path: filepath.Join(k.o.Dir, restName), Block: -1, Text: err.Error()})
		k.all = true
	} else if err != nil {
		return err
	}
	for _, c := range rest {
		if k.active == nil {
			k.active = make(map[id.ChunkID]extents)
		}
		k.active[c] = allExtents
	}
	path = filepath.Join(k.o.Dir, quarantineName)
	list, _, err := readQuarantine(k.o.FS, path, k.o.Cluster)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.fault(Fault{Path: path, Block: -1, Text: err.Error()})
	}
	k.bad = make(map[id.ChunkID]map[uint32]BadBlock)
	for _, b := range list {
		if k.bad[b.Chunk] == nil {
			k.bad[b.Chunk] = make(map[uint32]BadBlock)
		}
		k.bad[b.Chunk][b.Block] = b
		k.report.Quarantine++
	}
	path = filepath.Join(k.o.Dir, labelName)
	l, gone, err := readLabel(k.o.FS, path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		k.fault(Fault{Path: path, Block: -1, Text: err.Error()})
	default:
		if err := l.belongs(&k.o); err != nil {
			return err
		}
		at, err := disk.Identify(k.o.FS, k.o.Dir)
		if err != nil {
			return err
		}
		if err := l.moved(k.o.Dir, at); err != nil {
			k.fault(Fault{Path: path, Block: -1, Text: err.Error()})
		}
	}
	if gone != nil {
		k.report.Retired = gone.Cause
		k.fault(Fault{Path: path, Block: -1, Text: "the disk was retired: " + gone.Cause})
	}
	return nil
}

// chunks checks all, some at once.
func (k *check) chunks(ctx context.Context, all []id.ChunkID, co CheckOptions) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var work sync.WaitGroup
	for range min(cmp.Or(max(co.Jobs, 0), defaultJobs), len(all)) {
		work.Go(func() {
			st := &stage{buf: disk.AlignedBuffer(stageSize)}
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(all) {
					return
				}
				n, err := k.chunk(ctx, all[i], st)
				if err != nil {
					cancel(err)
				}
				k.mu.Lock()
				k.done++
				k.bytes += n
				if co.Progress != nil {
					co.Progress(k.done, len(all), k.bytes)
				}
				k.mu.Unlock()
			}
		})
	}
	work.Wait()
	return context.Cause(ctx)
}

func (k *check) fault(f Fault) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.report.Count++
	if len(k.report.Faults) < MaxFaults {
		k.report.Faults = append(k.report.Faults, f)
	}
}

// chunk verifies one chunk file outside its active extents and returns how many bytes it read.
func (k *check) chunk(ctx context.Context, c id.ChunkID, st *stage) (read int64, err error) {
	path := (&Store{o: k.o}).pathOf(c)
	bad := func(block int, format string, args ...any) {
		k.fault(Fault{Path: path, Chunk: c, Block: block, Text: fmt.Sprintf(format, args...)})
	}
	f, err := openAround(k.o, path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("%s went away: is a server running? %w", path, err)
	}
	if err != nil {
		if disk.Medium(err) {
			bad(-1, "%v", err)
			return 0, nil
		}
		return 0, err
	}
	defer f.Close()
	active := k.active[c]
	if k.all {
		active = allExtents
	}
	allocated := int64(-1)
	if fi, err := k.o.FS.Stat(path); err == nil {
		if n, ok := disk.Allocated(fi); ok {
			allocated = n
		}
		if fi.Size() != fileSize {
			bad(-1, "%d bytes long, want %d", fi.Size(), fileSize)
		}
	}
	k.mu.Lock()
	k.report.Chunks++
	k.report.Allocated += max(allocated, 0)
	if active != 0 {
		k.report.Unclean++
	}
	k.mu.Unlock()
	b := st.buf[:metaSize]
	if _, err := f.ReadAt(b, 0); err != nil {
		bad(-1, "header: %v", err)
		return 0, nil
	}
	h, err := newestHeader(b)
	if err == nil {
		err = h.check(k.o.Cluster, c)
	}
	if err != nil {
		bad(-1, "header: %v", err)
		return metaSize, nil
	}
	var sums [chunk.Blocks]uint32
	used := int64(0)
	for i := range uint32(chunk.Extents) {
		page := b[tableOffset+i*pageSize:][:pageSize]
		decodePage(sums[i*pageSums:(i+1)*pageSums], page)
		if sum := chunk.Sum(page); sum != h.pages[i] && !active.has(i) {
			bad(-1, "table page %d: checksum want %08x, got %08x", i, h.pages[i], sum)
		}
	}
	for _, sum := range sums {
		if sum != chunk.Hole {
			used++
		}
	}
	// Holes are read only if the file takes up more than its table says.
	thorough := allocated < 0 || allocated > dataOffset+used*chunk.BlockSize
	v := verifier{k: k, f: f, st: st, sums: &sums, listed: k.bad[c], bad: bad}
	for i := range uint32(chunk.Extents) {
		if ctx.Err() != nil {
			break
		}
		page := sums[i*pageSums : (i+1)*pageSums]
		switch {
		case active.has(i):
			v.skipped++
		case thorough || slices.ContainsFunc(page, func(sum uint32) bool { return sum != chunk.Hole }):
			v.extent(i)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.report.Blocks += v.blocks
	k.report.Skipped += v.skipped
	k.report.Healthy += v.healthy
	return metaSize + v.read, nil
}

// verifier compares the blocks of one chunk with its table.
type verifier struct {
	k      *check
	f      disk.File
	st     *stage
	sums   *[chunk.Blocks]uint32
	listed map[uint32]BadBlock
	bad    func(block int, format string, args ...any)

	blocks, read     int64
	skipped, healthy int
}

func (v *verifier) extent(i uint32) {
	for off := i * chunk.ExtentSize; off < (i+1)*chunk.ExtentSize; off += stageSize {
		first := off / chunk.BlockSize
		v.read += stageSize
		if _, err := v.f.ReadAt(v.st.buf, place(first)); err == nil {
			for n := uint32(0); n < stageSize/chunk.BlockSize; n++ {
				v.block(first+n, v.st.buf[n*chunk.BlockSize:][:chunk.BlockSize])
			}
			continue
		}
		for n := uint32(0); n < stageSize/chunk.BlockSize; n++ {
			b := v.st.buf[n*chunk.BlockSize:][:chunk.BlockSize]
			if _, err := v.f.ReadAt(b, place(first+n)); err != nil {
				v.blocks++
				v.bad(int(first+n), "%v%s", err, v.known(first+n))
				continue
			}
			v.block(first+n, b)
		}
	}
}

func (v *verifier) block(at uint32, data []byte) {
	want, got := v.sums[at], chunk.Sum(data)
	_, listed := v.listed[at]
	if want == chunk.Hole && !listed && chunk.IsZero(data) {
		return
	}
	v.blocks++
	switch {
	case want == got && listed:
		v.healthy++
	case want != got:
		v.bad(int(at), "checksum want %08x, got %08x%s", want, got, v.known(at))
	}
}

func (v *verifier) known(at uint32) string {
	if b, ok := v.listed[at]; ok {
		return fmt.Sprintf(" (in quarantine since %s)", b.Since.UTC().Format("2006-01-02 15:04:05 UTC"))
	}
	return ""
}

// openAround opens a file for reading around the page cache, if its filesystem can.
func openAround(o Options, path string) (disk.File, error) {
	if o.Buffered {
		return o.FS.Open(path, disk.ReadOnly)
	}
	f, err := o.FS.Open(path, disk.ReadOnly|disk.Direct)
	if err == nil {
		return f, nil
	}
	if errors.Is(err, fs.ErrNotExist) || disk.Medium(err) {
		return nil, err
	}
	return o.FS.Open(path, disk.ReadOnly)
}
