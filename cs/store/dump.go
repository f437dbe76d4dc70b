package store

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"varve/cs/repl"
	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// Dump writes one of the store's files in a form for people. It verifies no data.
func Dump(w io.Writer, path string) error {
	b, err := readUpTo(path, max(2*regionSize, 2*badRegionSize))
	if err != nil {
		return err
	}
	switch base := filepath.Base(path); {
	case base == "active.log":
		return dumpActivity(w, b)
	case base == labelName:
		return dumpLabel(w, b)
	case base == quarantineName:
		return dumpQuarantine(w, b)
	case strings.HasSuffix(base, ".chk"):
		return dumpChunk(w, b)
	}
	return fmt.Errorf("%s is none of the files of a store: active.log, label, quarantine, or a chunk (.chk)", path)
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
		for _, c := range slices.Sorted(maps.Keys(g.active)) {
			fmt.Fprintf(w, "  chunk %v extents %016b\n", c, g.active[c])
		}
	}
	return nil
}

func dumpLabel(w io.Writer, b []byte) error {
	if len(b) < labelSize {
		return fmt.Errorf("%d bytes, want %d: %w", len(b), labelSize, ErrCorrupt)
	}
	if gone := decodeRetirement(b[slotSize:]); gone != nil {
		fmt.Fprintf(w, "retired %s: %s\n", gone.Time.Format("2006-01-02 15:04:05 UTC"), gone.Cause)
	}
	l, err := decodeLabel(b)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "cluster %v server %s\nmade on %s %s, inode %d, mount point %t\n", l.cluster, hex.EncodeToString(l.server[:]),
		l.at.Type, uuidString(l.at.UUID), l.at.Inode, l.at.Mount)
	return nil
}

func dumpQuarantine(w io.Writer, b []byte) error {
	if len(b) < 2*badRegionSize {
		return fmt.Errorf("%d bytes, want %d: %w", len(b), 2*badRegionSize, ErrCorrupt)
	}
	for i := range 2 {
		c, g, list, err := decodeBad(b[i*badRegionSize : (i+1)*badRegionSize])
		if err != nil {
			fmt.Fprintf(w, "region %d: %v\n", i, err)
			continue
		}
		fmt.Fprintf(w, "region %d: cluster %v generation %d bad blocks %d\n", i, c, g, len(list))
		for _, b := range list {
			fmt.Fprintf(w, "  chunk %v block %d since %s: %v\n", b.Chunk, b.Block, b.Since.Format("2006-01-02 15:04:05 UTC"), b.Cause)
		}
	}
	return nil
}

func dumpChunk(w io.Writer, b []byte) error {
	if len(b) < metaSize {
		return fmt.Errorf("%d bytes, want at least %d: %w", len(b), metaSize, ErrCorrupt)
	}
	d := describe(b)
	d.print(w)
	return d.err
}

// stateOnDisk names a recorded state as the next start would find it.
func stateOnDisk(st repl.State) repl.State { return repl.Restart(repl.Record{State: st}, false).State }

// ChunkDump is what a chunk's file holds.
type ChunkDump struct {
	Path      string       `json:"path"`
	Chunk     id.ChunkID   `json:"chunk"`
	Allocated int64        `json:"allocated_bytes"`
	Running   bool         `json:"running"` // a server has the store open: what is here may be changing
	Slots     [2]SlotDump  `json:"slots"`
	Current   string       `json:"current,omitempty"` // the slot that counts, A or B
	Extents   []ExtentDump `json:"extents"`           // those with data, a mark or a fault
	Bad       []BadBlock   `json:"bad"`
	Table     []BlockDump  `json:"table,omitempty"` // runs of blocks, if asked for

	err error
}

// SlotDump is one slot of the header.
type SlotDump struct {
	Error    string   `json:"error,omitempty"`
	Sequence uint64   `json:"sequence"`
	Cluster  string   `json:"cluster"`
	Chunk    string   `json:"chunk"`
	Epoch    id.Epoch `json:"epoch"`
	State    string   `json:"state"`
}

// ExtentDump is one extent of a chunk.
type ExtentDump struct {
	Extent  int    `json:"extent"`
	Written int    `json:"blocks_written"`
	Page    string `json:"table_page"` // ok, or what is wrong
	Active  bool   `json:"active"`
}

// BlockDump is a run of blocks of one kind.
type BlockDump struct {
	First uint32 `json:"first"`
	Count uint32 `json:"count"`
	Hole  bool   `json:"hole"`
	Sum   string `json:"sum,omitempty"` // of a single block
}

// describe decodes the start of a chunk file.
func describe(b []byte) *ChunkDump {
	d := &ChunkDump{Extents: []ExtentDump{}, Bad: []BadBlock{}}
	for i := range 2 {
		h, err := decodeHeader(b[i*slotSize : (i+1)*slotSize])
		if err != nil {
			d.Slots[i].Error = err.Error()
			continue
		}
		d.Slots[i] = SlotDump{
			Sequence: h.sequence, Cluster: h.cluster.String(), Chunk: h.chunk.String(), Epoch: h.rec.Epoch, State: stateOnDisk(h.rec.State).String(),
		}
	}
	var h header
	h, d.err = newestHeader(b)
	if d.err == nil {
		d.Current = "A"
		if d.Slots[0].Error != "" || d.Slots[1].Error == "" && d.Slots[1].Sequence > d.Slots[0].Sequence {
			d.Current = "B"
		}
		d.Chunk = h.chunk
	}
	var sums [pageSums]uint32
	for i := range uint32(chunk.Extents) {
		page := b[tableOffset+i*pageSize:][:pageSize]
		decodePage(sums[:], page)
		e := ExtentDump{Extent: int(i), Page: "ok"}
		for _, sum := range sums {
			if sum != chunk.Hole {
				e.Written++
			}
		}
		if got := chunk.Sum(page); d.err == nil && got != h.pages[i] {
			e.Page = fmt.Sprintf("checksum want %08x, got %08x", h.pages[i], got)
		}
		if e.Written > 0 || e.Page != "ok" {
			d.Extents = append(d.Extents, e)
		}
	}
	return d
}

func (d *ChunkDump) print(w io.Writer) {
	for i, name := range [2]string{"A", "B"} {
		if s := d.Slots[i]; s.Error != "" {
			fmt.Fprintf(w, "slot %s: %s\n", name, s.Error)
		} else {
			fmt.Fprintf(w, "slot %s: sequence %d cluster %s chunk %s epoch %v state %s\n", name, s.Sequence, s.Cluster, s.Chunk, s.Epoch, s.State)
		}
	}
	for _, e := range d.Extents {
		active := ""
		if e.Active {
			active = ", active"
		}
		fmt.Fprintf(w, "extent %2d: %d of %d blocks written, table page %s%s\n", e.Extent, e.Written, pageSums, e.Page, active)
	}
}

// DumpOptions say what DumpChunk shows beside header and extents.
type DumpOptions struct {
	// Table shows every run of blocks and, of single blocks, the checksum.
	Table bool
	// From and To are the bytes of the chunk that are shown in hexadecimal, each block after what its checksum says of it.
	From, To uint32
}

// DumpChunk describes one chunk of a store, and writes what o asks for to w, unless that is nil. A store that is open is only read.
func DumpChunk(w io.Writer, o Options, c id.ChunkID, do DumpOptions) (*ChunkDump, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if do.From > do.To || do.To > chunk.Size {
		return nil, fmt.Errorf("bytes from %d to %d: a chunk has %d: %w", do.From, do.To, chunk.Size, fserr.Invalid)
	}
	path := (&Store{o: o}).pathOf(c)
	f, err := openAround(o, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w: %w", path, fserr.NoChunk, err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st := &stage{buf: disk.AlignedBuffer(stageSize)}
	b := st.buf[:metaSize]
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("%s: header: %w", path, err)
	}
	d := describe(b)
	d.Path = path
	d.addContext(o, c)
	if w != nil {
		fmt.Fprintf(w, "%s\n", path)
		if d.Running {
			fmt.Fprintln(w, "a server has the store open: what follows may be changing")
		}
		d.print(w)
		fmt.Fprintf(w, "%d bytes allocated\n", d.Allocated)
		for _, b := range d.Bad {
			fmt.Fprintf(w, "block %d is bad since %s: %v\n", b.Block, b.Since.Format("2006-01-02 15:04:05 UTC"), b.Cause)
		}
	}
	sums := make([]uint32, chunk.Blocks)
	decodePage(sums, b[tableOffset:])
	if do.Table {
		d.Table = runs(sums)
		if w != nil {
			for _, r := range d.Table {
				fmt.Fprintln(w, r)
			}
		}
	}
	if w != nil && do.To > do.From {
		err = dumpData(w, f, st, sums, do.From, do.To)
	}
	return d, errors.Join(err, d.err)
}

// addContext adds what the files beside the chunks say of it.
func (d *ChunkDump) addContext(o Options, c id.ChunkID) {
	if unlock, err := o.FS.Lock(filepath.Join(o.Dir, "lock")); err != nil {
		d.Running = true
	} else {
		unlock()
	}
	if fi, err := o.FS.Stat(d.Path); err == nil {
		d.Allocated, _ = disk.Allocated(fi)
	}
	if f, err := o.FS.Open(filepath.Join(o.Dir, "active.log"), disk.ReadOnly); err == nil {
		if g, err := readActivity(f); err == nil {
			for i := range d.Extents {
				d.Extents[i].Active = g.active[c].has(uint32(d.Extents[i].Extent))
			}
		}
		f.Close()
	}
	list, _, _ := readQuarantine(o.FS, filepath.Join(o.Dir, quarantineName), o.Cluster)
	for _, b := range list {
		if b.Chunk == c {
			d.Bad = append(d.Bad, b)
		}
	}
}

// runs joins neighbouring holes, and neighbouring blocks with data, of which a single one tells its checksum.
func runs(sums []uint32) []BlockDump {
	var all []BlockDump
	for b, sum := range sums {
		hole := sum == chunk.Hole
		if n := len(all); n > 0 && all[n-1].Hole == hole {
			all[n-1].Count++
			all[n-1].Sum = ""
			continue
		}
		r := BlockDump{First: uint32(b), Count: 1, Hole: hole}
		if !hole {
			r.Sum = fmt.Sprintf("%08x", sum)
		}
		all = append(all, r)
	}
	return all
}

func (r BlockDump) String() string {
	what := "data"
	if r.Hole {
		what = "hole"
	}
	if r.Count == 1 {
		return strings.TrimSpace(fmt.Sprintf("block %d: %s %s", r.First, what, r.Sum))
	}
	return fmt.Sprintf("blocks %d to %d: %s", r.First, r.First+r.Count-1, what)
}

// dumpData writes the bytes [from, to) of the chunk.
func dumpData(w io.Writer, f disk.File, st *stage, sums []uint32, from, to uint32) error {
	b := st.buf[:chunk.BlockSize]
	for at := from; at < to; {
		block := at / chunk.BlockSize
		end := min(to, (block+1)*chunk.BlockSize)
		if _, err := f.ReadAt(b, place(block)); err != nil {
			fmt.Fprintf(w, "block %d: %v\n", block, err)
			at = end
			continue
		}
		verdict := "checksum ok"
		switch got := chunk.Sum(b); {
		case sums[block] == chunk.Hole && chunk.IsZero(b):
			verdict = "hole"
		case got != sums[block]:
			verdict = fmt.Sprintf("checksum want %08x, got %08x", sums[block], got)
		}
		fmt.Fprintf(w, "block %d, bytes %d to %d of the chunk: %s\n", block, at, end-1, verdict)
		if _, err := io.WriteString(w, hexLines(b[at%chunk.BlockSize:][:end-at], at)); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// hexLines is hex.Dump with the offsets of the chunk.
func hexLines(b []byte, off uint32) string {
	var out strings.Builder
	for i := 0; i < len(b); i += 16 {
		line := hex.Dump(b[i:min(i+16, len(b))])
		fmt.Fprintf(&out, "%08x%s", off+uint32(i), line[8:])
	}
	return out.String()
}
