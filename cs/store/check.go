package store

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"varve/cs/repl"
	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/id"
)

// MaxFaults is the number of faults that a Report holds; more are only counted.
const MaxFaults = 1000

// Report is what Check found.
type Report struct {
	Chunks  int
	Blocks  int // holes left out
	Unclean int // chunks with active extents, of which a mismatch is not a fault
	Count   int // of faults
	// Faults holds one sentence each, at most MaxFaults.
	Faults []string
}

func (r *Report) fault(format string, args ...any) {
	r.Count++
	if len(r.Faults) < MaxFaults {
		r.Faults = append(r.Faults, fmt.Sprintf(format, args...))
	}
}

// Check reads every chunk of a store that is not open and reports what is wrong. It changes nothing.
// The error is for what kept it from checking.
func Check(o Options) (Report, error) {
	o, err := o.withDefaults()
	if err != nil {
		return Report{}, err
	}
	unlock, err := o.FS.Lock(filepath.Join(o.Dir, "lock"))
	if err != nil {
		return Report{}, err
	}
	defer unlock()
	var r Report
	f, err := o.FS.Open(filepath.Join(o.Dir, "active.log"), disk.ReadOnly)
	if err != nil {
		return Report{}, err
	}
	g, err := readActivity(f)
	if err = errors.Join(err, f.Close()); err != nil {
		r.fault("%v", err)
	}
	for i := range 256 {
		dir := filepath.Join(o.Dir, "chunks", fmt.Sprintf("%02x", i))
		files, err := o.FS.ReadDir(dir)
		if err != nil {
			return r, err
		}
		for _, f := range files {
			var c id.ChunkID
			if _, err := fmt.Sscanf(f.Name(), "%016x.chk", (*uint64)(&c)); err == nil {
				if err := checkChunk(o, filepath.Join(dir, f.Name()), c, g.active[c], &r); err != nil {
					return r, err
				}
			}
		}
	}
	return r, nil
}

// checkChunk verifies one chunk file outside its active extents.
func checkChunk(o Options, path string, c id.ChunkID, active extents, r *Report) error {
	f, err := o.FS.Open(path, disk.ReadOnly)
	if err != nil {
		return err
	}
	defer f.Close()
	r.Chunks++
	if active != 0 {
		r.Unclean++
	}
	st := &stage{buf: disk.AlignedBuffer(stageSize)}
	b := st.buf[:metaSize]
	if _, err := f.ReadAt(b, 0); err != nil {
		r.fault("%s: header: %v", path, err)
		return nil
	}
	h, err := newestHeader(b)
	if err == nil {
		err = h.check(o.Cluster, c)
	}
	if err != nil {
		r.fault("%s: header: %v", path, err)
		return nil
	}
	im := &image{f: f}
	for i := range uint32(chunk.Extents) {
		page := b[tableOffset+i*pageSize:][:pageSize]
		decodePage(im.sums[i*pageSums:(i+1)*pageSums], page)
		if sum := chunk.Sum(page); sum != h.pages[i] && !active.has(i) {
			r.fault("%s: table page %d: checksum want %08x, got %08x", path, i, h.pages[i], sum)
		}
	}
	for i := range uint32(chunk.Extents) {
		if active.has(i) {
			continue
		}
		err := im.each(st, i, func(block uint32, data []byte) {
			want, got := im.sums[block], chunk.Sum(data)
			if want == chunk.Hole && chunk.IsZero(data) {
				return
			}
			if r.Blocks++; want != got {
				r.fault("%s: block %d: checksum want %08x, got %08x", path, block, want, got)
			}
		})
		if err != nil {
			r.fault("%s: extent %d: %v", path, i, err)
		}
	}
	return nil
}

// Dump writes a chunk file or an activity log in a form for people. It verifies no data.
func Dump(w io.Writer, path string) error {
	b, err := readUpTo(path, 2*regionSize)
	if err != nil {
		return err
	}
	if strings.HasSuffix(path, ".log") {
		return dumpActivity(w, b)
	}
	return dumpChunk(w, b)
}

func readUpTo(path string, n int64) ([]byte, error) {
	f, err := disk.OS{}.Open(path, disk.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.NewSectionReader(f, 0, n))
}

func dumpActivity(w io.Writer, b []byte) error {
	if len(b) < 2*regionSize {
		return fmt.Errorf("%d bytes, want %d: %w", len(b), 2*regionSize, ErrCorrupt)
	}
	for i := range 2 {
		g, err := decodeRegion(b[i*regionSize : (i+1)*regionSize])
		if err != nil {
			fmt.Fprintf(w, "region %d: %v\n", i, err)
			continue
		}
		fmt.Fprintf(w, "region %d: cluster %v generation %d records %d active chunks %d\n",
			i, g.cluster, g.generation, g.records, len(g.active))
		ids := make([]id.ChunkID, 0, len(g.active))
		for c := range g.active {
			ids = append(ids, c)
		}
		slices.Sort(ids)
		for _, c := range ids {
			fmt.Fprintf(w, "  chunk %v extents %016b\n", c, g.active[c])
		}
	}
	return nil
}

func dumpChunk(w io.Writer, b []byte) error {
	if len(b) < metaSize {
		return fmt.Errorf("%d bytes, want at least %d: %w", len(b), metaSize, ErrCorrupt)
	}
	for i, name := range [2]string{"A", "B"} {
		h, err := decodeHeader(b[i*slotSize : (i+1)*slotSize])
		if err != nil {
			fmt.Fprintf(w, "slot %s: %v\n", name, err)
			continue
		}
		fmt.Fprintf(w, "slot %s: sequence %d cluster %v chunk %v epoch %v state %v\n",
			name, h.sequence, h.cluster, h.chunk, h.rec.Epoch, stateOnDisk(h.rec.State))
	}
	h, err := newestHeader(b)
	if err != nil {
		return err
	}
	var sums [pageSums]uint32
	for i := range uint32(chunk.Extents) {
		page := b[tableOffset+i*pageSize:][:pageSize]
		decodePage(sums[:], page)
		used := 0
		for _, sum := range sums {
			if sum != chunk.Hole {
				used++
			}
		}
		verdict := "ok"
		if got := chunk.Sum(page); got != h.pages[i] {
			verdict = fmt.Sprintf("checksum want %08x, got %08x", h.pages[i], got)
		}
		if used > 0 || verdict != "ok" {
			fmt.Fprintf(w, "extent %2d: %d of %d blocks written, table page %s\n", i, used, pageSums, verdict)
		}
	}
	return nil
}

// stateOnDisk names a recorded state as the next start would find it.
func stateOnDisk(st repl.State) repl.State { return repl.Restart(repl.Record{State: st}, false).State }
