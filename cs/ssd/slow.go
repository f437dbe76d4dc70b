package ssd

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"varve/internal/chunk"
	"varve/internal/disk"
)

// write writes the work to the slow disk and syncs the files.
func (d *destager) write() error {
	if len(d.work) == 0 {
		return nil
	}
	files := make(map[*life]disk.File)
	err := d.writeTo(files)
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
	r := d.f.ring
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range d.work {
		if err == nil && files[w.life] != nil {
			r.index.wrote(w.block)
		}
		r.index.flags[w.block] &^= flagQueued
	}
	if err == nil {
		d.f.stats.destaged.Add(uint64(len(d.work)))
	}
	return err
}

// writeTo opens the files of the work; nil for one that is removed.
func (d *destager) writeTo(files map[*life]disk.File) error {
	var all []disk.File
	for _, w := range d.work {
		if _, ok := files[w.life]; ok {
			continue
		}
		f, err := d.open(w.life)
		if err != nil {
			return err
		}
		files[w.life] = f
		if f != nil {
			all = append(all, f)
		}
	}
	starts := d.runs()
	if err := d.together(len(starts), func(i int) error {
		end := len(d.work)
		if i+1 < len(starts) {
			end = starts[i+1]
		}
		if f := files[d.work[starts[i]].life]; f != nil {
			return d.writeRun(f, d.work[starts[i]:end])
		}
		return nil
	}); err != nil {
		return err
	}
	return d.together(len(all), func(i int) error { return all[i].Sync() })
}

// open opens the file of a life for writing. It returns nil if the file is removed, after making sure that it stays so.
func (d *destager) open(l *life) (disk.File, error) {
	path := d.f.path(l.path)
	f, err := d.f.slow.Open(path, disk.ReadWrite|disk.Direct)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EOPNOTSUPP) {
		f, err = d.f.slow.Open(path, disk.ReadWrite)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	r := d.f.ring
	r.mu.Lock()
	if err != nil && l.found {
		l.ended = true // removed before the crash
	}
	ended, going := l.ended, l.going
	r.mu.Unlock()
	switch {
	case ended: // what lies under that name, if anything, is another file
		if f != nil {
			f.Close()
		}
		return nil, d.f.slow.SyncDir(filepath.Dir(path))
	case err != nil && going:
		return nil, errGoing
	}
	return f, err
}

// runs returns where runs of the work begin that are one write each: pages of one file, in sequence, all data or all holes.
func (d *destager) runs() []int {
	starts := []int{0}
	for i := 1; i < len(d.work); i++ {
		a, b := d.work[i-1], d.work[i]
		if a.life != b.life || a.page+1 != b.page || a.hole != b.hole || i-starts[len(starts)-1] >= batchPages {
			starts = append(starts, i)
		}
	}
	return starts
}

// together calls do for 0 to n-1, in order, as many at once as the options say.
func (d *destager) together(n int, do func(i int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, min(d.f.o.Depth, n))
	for w := range errs {
		wg.Go(func() {
			for errs[w] == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				errs[w] = do(i)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// writeRun writes one run.
func (d *destager) writeRun(f disk.File, run []page) error {
	off, n := int64(run[0].page)*pageSize, len(run)*pageSize
	if run[0].hole {
		err := f.PunchHole(off, int64(n))
		if !errors.Is(err, syscall.EOPNOTSUPP) && !errors.Is(err, syscall.ENOSYS) {
			return err
		}
	}
	b := getBuffer()
	defer putBuffer(b)
	b = b[:n]
	r := d.f.ring
	for i := 0; i < len(run); {
		j := i + 1
		for j < len(run) && run[j].block == run[j-1].block+1 {
			j++
		}
		part := b[i*pageSize : j*pageSize]
		if _, err := r.f.ReadAt(part, ringOffset+int64(run[i].block)*pageSize); err != nil {
			return &journalError{fmt.Errorf("read %s: %w", name, err)}
		}
		for k, w := range run[i:j] {
			if got := chunk.Sum(part[k*pageSize : (k+1)*pageSize]); got != w.sum {
				return &journalError{fmt.Errorf("%s: offset %d: checksum want %08x, got %08x: %w", name, ringOffset+int64(w.block)*pageSize, w.sum, got, ErrDamaged)}
			}
		}
		i = j
	}
	if _, err := f.WriteAt(b, off); err != nil {
		return err
	}
	d.f.stats.destageWrites.Add(1)
	return nil
}
