package mds

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"varve/internal/disk"
	"varve/internal/fserr"
)

// markerFile says why the server of a directory must not run any more. It is written once, before the server stops itself.
const markerFile = "stopped.json"

// Why a server stopped itself for good.
const (
	// markRemoved: its id was removed from the cluster and is retired.
	markRemoved = "removed"
	// markDiverged: it would have applied something else than the others, or has; its disk or its memory is not to be trusted.
	markDiverged = "diverged"
)

// marker is stopped.json. Versions: 1, first.
type marker struct {
	Version int    `json:"version"`
	Kind    string `json:"kind"`
	Reason  string `json:"reason"`
	Index   uint64 `json:"index"` // what it had applied
	Time    string `json:"time"`
}

// ErrStopped is why a server that stopped itself for good does not start.
var ErrStopped = errors.New("the server has stopped itself for good")

// writeMarker leaves the marker in the directory. One that is there stays.
func writeMarker(fsys disk.FS, dir string, m marker) error {
	if old, err := readMarker(fsys, dir); err != nil || old != nil {
		return err
	}
	m.Version, m.Time = 1, time.Now().UTC().Format(time.RFC3339)
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, markerFile)
	if err := writeFile(fsys, path+".new", append(b, '\n')); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := fsys.Rename(path+".new", path); err != nil {
		return err
	}
	return fsys.SyncDir(dir)
}

// readMarker returns nil if the directory has no marker.
func readMarker(fsys disk.FS, dir string) (*marker, error) {
	path := filepath.Join(dir, markerFile)
	b, err := readWhole(fsys, path, maxIdentity)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m := new(marker)
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// refusal says why a directory with the marker is not started, and what to do.
func (m *marker) refusal(dir string, d *identity) error {
	again := fmt.Sprintf("varve -c %s make-mds --rebuild -r %s", d.Name, dir)
	switch m.Kind {
	case markRemoved:
		return fmt.Errorf("%s is the directory of %v, which was removed from cluster %s (noticed %s): its id is retired and it cannot come back; "+
			"remove the directory, or make a new server of it with %s: %w: %w", dir, d.server(), d.Name, m.Time, again, ErrStopped, fserr.Retired)
	case markDiverged:
		return fmt.Errorf("%s is the directory of %v, which stopped at index %d (%s) because its metadata diverged: %s; "+
			"make it anew from another server's checkpoint with %s: %w", dir, d.server(), m.Index, m.Time, m.Reason, again, ErrStopped)
	}
	return fmt.Errorf("%s is the directory of %v, which stopped for good (%s, %s): %s; make it anew with %s: %w", dir, d.server(), m.Kind, m.Time, m.Reason, again, ErrStopped)
}

// Retired reports whether the directory is that of a server that was removed from its cluster and has noticed it.
func Retired(dir string) bool {
	m, err := readMarker(disk.OS{}, dir)
	return err == nil && m != nil && m.Kind == markRemoved
}

// readWhole reads a small file.
func readWhole(fsys disk.FS, path string, limit int64) ([]byte, error) {
	f, err := fsys.Open(path, disk.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("%s: %d bytes, limit %d", path, size, limit)
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); err != nil && !(errors.Is(err, io.EOF) && n == len(b)) {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}
