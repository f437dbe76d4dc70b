package ssd

import (
	"fmt"
	"io"
	"path/filepath"

	"varve/internal/disk"
)

// Dump writes a journal that is not open in a form for people: the header and every batch that counts.
func Dump(w io.Writer, fsys disk.FS, dir string) error {
	path := filepath.Join(dir, name)
	h, err := readHeader(fsys, path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	f, err := openDirect(fsys, path, disk.ReadOnly)
	if err != nil {
		return err
	}
	defer f.Close()
	fmt.Fprintf(w, "journal %v of server %v, cluster %v\n", h.journal, h.server, h.cluster)
	fmt.Fprintf(w, "ring of %d blocks, generation %d from batch %d, tail at %d (batch %d), synced below batch %d\n",
		h.blocks, h.generation, h.first, h.tail, h.tailSeq, h.durable)
	gap := func(position, blocks uint64) { fmt.Fprintf(w, "%d: %d blocks skipped\n", position, blocks) }
	position, sequence, err := newWindow(f, h.blocks).chain(&h, gap, func(b *batch) error {
		fmt.Fprintf(w, "%d: batch %d, generation %d, %d blocks, synced below batch %d\n", b.position, b.sequence, b.generation, b.blocks, b.durable)
		for _, e := range b.entries {
			file := b.files[e.file]
			switch e.kind {
			case kindEnd:
				fmt.Fprintf(w, "  end of %s (%x)\n", file.path, file.id)
			case kindHole:
				fmt.Fprintf(w, "  hole %s (%x) offset %d length %d\n", file.path, file.id, int64(e.page)*pageSize, len(e.sums)*pageSize)
			default:
				fmt.Fprintf(w, "  data %s (%x) offset %d length %d\n", file.path, file.id, int64(e.page)*pageSize, len(e.sums)*pageSize)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	fmt.Fprintf(w, "ends at %d before batch %d\n", position, sequence)
	return nil
}
