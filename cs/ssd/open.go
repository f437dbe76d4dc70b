package ssd

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"varve/internal/disk"
	"varve/internal/fserr"
)

// Create makes a journal in Options.Dir. It does nothing if that journal is there already, and refuses with fserr.Exist if there is
// another one. What an interrupted Create left is made anew.
func Create(o Options) error { return create(o, false) }

// Replace is Create for a server whose journal is lost: an older journal of the same server is replaced.
func Replace(o Options) error { return create(o, true) }

func create(o Options, replace bool) error {
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	if o.Bytes < MinBytes || o.Bytes > MaxBytes {
		return fmt.Errorf("a journal of %d bytes, want %d to %d: %w", o.Bytes, MinBytes, MaxBytes, fserr.Invalid)
	}
	if err := o.Fast.MkdirAll(o.Dir); err != nil {
		return err
	}
	unlock, err := o.Fast.Lock(filepath.Join(o.Dir, "lock"))
	if err != nil {
		return err
	}
	err = build(o, replace)
	return errors.Join(err, unlock())
}

// build makes the file: under another name, synced, renamed.
func build(o Options, replace bool) error {
	path := filepath.Join(o.Dir, name)
	h, err := readHeader(o.Fast, path)
	switch {
	case err == nil && h.journal == o.Journal && h.server == o.Server && h.cluster == o.Cluster:
		return nil
	case err == nil && (h.server != o.Server || !replace):
		return fmt.Errorf("%s is the journal of another server (%v) already: give each server a directory of its own: %w", path, h.server, fserr.Exist)
	case errors.Is(err, errInvalid):
		return fmt.Errorf("%s is there already and cannot be read (%w): move it away, or give another directory: %w", path, err, fserr.Exist)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	for _, old := range []string{path + ".new", path} {
		if err := o.Fast.Remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	blocks := uint64(o.Bytes-ringOffset) / pageSize
	size := ringOffset + blocks*pageSize
	if sp, err := o.Fast.Space(o.Dir); err != nil {
		return err
	} else if sp.Free < size {
		return fmt.Errorf("%s: %d bytes are free, the journal needs %d: %w", o.Dir, sp.Free, size, fserr.NoSpace)
	}
	f, err := openDirect(o.Fast, path+".new", disk.ReadWrite|disk.Create)
	if err != nil {
		return err
	}
	h = header{journal: o.Journal, server: o.Server, cluster: o.Cluster, blocks: blocks, number: 1, tailSeq: 1, first: 1, durable: 1}
	err = fillFile(f, &h, int64(size))
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("make %s: %w", path, err), o.Fast.Remove(path+".new"))
	}
	if err := o.Fast.Rename(path+".new", path); err != nil {
		return err
	}
	if err := o.Fast.SyncDir(o.Dir); err != nil {
		return err
	}
	return o.Fast.SyncDir(filepath.Dir(filepath.Clean(o.Dir)))
}

// fillFile writes the header and zeros behind it.
func fillFile(f disk.File, h *header, size int64) error {
	b := disk.AlignedBuffer(1 << 20)
	h.encode(b)
	for off := int64(0); off < size; off += int64(len(b)) {
		if _, err := f.WriteAt(b[:min(int64(len(b)), size-off)], off); err != nil {
			return err
		}
		if off == 0 {
			clear(b[:pageSize])
		}
	}
	return f.Sync()
}

// openDirect opens a file past the page cache where the filesystem can.
func openDirect(fsys disk.FS, path string, flag disk.Flag) (disk.File, error) {
	f, err := fsys.Open(path, flag|disk.Direct)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EOPNOTSUPP) {
		return fsys.Open(path, flag)
	}
	return f, err
}

// readHeader reads the header of a journal.
func readHeader(fsys disk.FS, path string) (header, error) {
	f, err := fsys.Open(path, disk.ReadOnly)
	if err != nil {
		return header{}, err
	}
	defer f.Close()
	b := make([]byte, 2*pageSize)
	if _, err := f.ReadAt(b, 0); err != nil {
		return header{}, fmt.Errorf("header: %w: %w", errInvalid, err)
	}
	return newestHeader(b)
}

// Open opens a journal, replays it and begins to destage. It answers ErrLost if the journal is not there or is not the server's, and
// ErrDamaged if it has lost what it had acknowledged.
func Open(o Options) (*FS, error) {
	o, err := o.withDefaults()
	if o.Root == "" {
		err = errors.Join(err, errors.New("journal: no root given"))
	}
	if err != nil {
		return nil, err
	}
	path := filepath.Join(o.Dir, name)
	if _, err := o.Fast.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not there: is its disk mounted? %w", path, ErrLost)
	}
	unlock, err := o.Fast.Lock(filepath.Join(o.Dir, "lock"))
	if err != nil {
		return nil, err
	}
	f, err := open(o, path)
	if err != nil {
		return nil, errors.Join(err, unlock())
	}
	f.unlock = unlock
	if !o.ReadOnly {
		f.work.Go(f.destager.run)
	}
	return f, nil
}

func open(o Options, path string) (*FS, error) {
	h, err := readHeader(o.Fast, path)
	if errors.Is(err, errInvalid) {
		return nil, fmt.Errorf("%s has no valid header: %w: %w", path, err, ErrDamaged)
	}
	if err == nil {
		err = belongs(o, path, h)
	}
	if err != nil {
		return nil, err
	}
	flag := disk.ReadWrite
	if o.ReadOnly {
		flag = disk.ReadOnly
	}
	back, err := openDirect(o.Fast, path, flag)
	if err != nil {
		return nil, err
	}
	r := &ring{
		f: back, id: h.journal, generation: h.generation + 1, blocks: h.blocks, head: h, page: disk.AlignedBuffer(pageSize),
		index: newIndex(h.blocks), freed: make(chan struct{}), buf: disk.AlignedBuffer(batchBlocks * pageSize),
	}
	r.done.L, r.syncDone.L = &r.queueMu, &r.syncMu
	f := &FS{
		o: o, slow: o.Slow, ring: r, files: make(map[string]*file), ghosts: make(map[string][]*life), names: make(map[string]names),
		wake: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	f.destager.f, f.destager.brings = f, make(chan bringRequest)
	f.destager.speed.Store(firstSpeed)
	r.onFailed = f.failed
	if err = f.replay(path); err == nil && !o.ReadOnly {
		err = f.begin()
	}
	if err != nil {
		return nil, errors.Join(err, back.Close())
	}
	return f, nil
}

// belongs checks that a journal is the server's, and no copy of an older time.
func belongs(o Options, path string, h header) error {
	switch {
	case h.server != o.Server || h.cluster != o.Cluster:
		return fmt.Errorf("%s belongs to another server (%v of cluster %v, not %v of %v): %w", path, h.server, h.cluster, o.Server, o.Cluster, ErrLost)
	case h.journal != o.Journal:
		return fmt.Errorf("%s is the journal %v, and this server's is %v: it was given another one since: %w", path, h.journal, o.Journal, ErrLost)
	case h.generation < o.Generation:
		return fmt.Errorf("%s is of start %d, and the server has started %d times with it: it is an old copy: %w", path, h.generation, o.Generation, ErrLost)
	case h.generation > o.Generation+1:
		return fmt.Errorf("%s is of start %d, and the server knows of %d only: its directory is an old copy, and the journal goes with a newer one: %w",
			path, h.generation, o.Generation, ErrLost)
	}
	return nil
}

// begin makes a new generation. The server's side follows: the journal may be one ahead of it after a crash, never more.
func (f *FS) begin() error {
	r := f.ring
	commit := f.o.Commit
	if commit == nil {
		commit = func(uint64) error { return nil }
	}
	if r.head.generation > f.o.Generation {
		if err := commit(r.head.generation); err != nil {
			return err
		}
	}
	// What replay took may not have been synced by the process that wrote it.
	if err := r.f.Sync(); err != nil {
		return fmt.Errorf("sync the journal: %w", err)
	}
	r.written.Store(r.sequence)
	r.durable.Store(r.sequence)
	h := r.head
	h.generation, h.first, h.durable = r.generation, r.sequence, r.sequence
	if err := r.writeHeader(h); err != nil {
		return err
	}
	return commit(r.generation)
}

// failed reports that the FS went out of service.
func (f *FS) failed(err error) {
	f.o.Logger.Error("write journal is out of service: what was flushed may be only there, so the server must stop; repair the disk or "+
		"replace this server", "dir", f.o.Dir, "err", err)
	if f.o.Failed != nil {
		f.o.Failed(err)
	}
}
