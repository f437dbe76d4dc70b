package readcache

import (
	"context"
	"errors"
	"fmt"

	"varve/internal/fserr"
)

// Resize changes what the cache may take up, while it is in use. What does not fit any more goes.
func (c *Cache) Resize(bytes int64) error {
	if bytes < MinBytes || bytes > MaxBytes {
		return fmt.Errorf("read cache of %d bytes, want %d to %d: %w", bytes, int64(MinBytes), int64(MaxBytes), fserr.Invalid)
	}
	c.admin.Lock()
	defer c.admin.Unlock()
	if err := c.inUse(); err != nil {
		return err
	}
	c.pause.Lock() // nothing is written meanwhile
	defer c.pause.Unlock()
	st, n := c.store.Load(), slotsFor(bytes)
	if n >= int(c.head.slots) {
		if err := c.sizeTo(st, n); err != nil {
			return fmt.Errorf("read cache %s: %w", st.dir, err)
		}
	}
	c.table.Lock()
	c.lockShards()
	was := int(c.head.slots)
	for k := range c.shards {
		if n < was {
			c.evicted.Add(uint64(c.shards[k].shrink(n / shards)))
		}
	}
	c.head.slots = uint64(n)
	// The shards get longer only with the words for it.
	w, keep := c.makeWitness()
	for k := range c.shards {
		if n > was {
			c.shards[k].grow(n / shards)
		}
	}
	c.unlockShards()
	c.table.Unlock()
	// Until both are there, header and witness do not fit together, and a crash costs what is open for writing.
	_, err := st.index.WriteAt(c.head.encode(), 0)
	if err == nil {
		err = st.index.Sync()
	}
	if err == nil && n < was {
		err = c.sizeTo(st, n)
	}
	if err != nil {
		err = fmt.Errorf("resize: %w", err)
		c.switchOff(err)
		return fmt.Errorf("read cache %s: %w", st.dir, err)
	}
	if err := keep(); err != nil {
		c.table.Lock()
		w.all[5].Store(witnessLost)
		w.kept = false
		c.table.Unlock()
	}
	c.o.Bytes = bytes
	return nil
}

func (c *Cache) inUse() error {
	c.off.RLock()
	defer c.off.RUnlock()
	switch {
	case c.closed:
		return fmt.Errorf("the read cache is closed: %w", fserr.Unavailable)
	case c.cause != nil:
		return fmt.Errorf("the read cache switched itself off (%w): %w", c.cause, fserr.Unavailable)
	}
	return nil
}

// Move moves the cache to another directory, which no cache is in, while it is in use: meanwhile nothing is put in. The old directory keeps no file of it.
func (c *Cache) Move(ctx context.Context, dir string) error {
	c.admin.Lock()
	defer c.admin.Unlock()
	if err := c.inUse(); err != nil {
		return err
	}
	old := c.store.Load()
	if dir == old.dir {
		return fmt.Errorf("the read cache is in %s: %w", dir, fserr.Invalid)
	}
	st, err := openStore(c.o.FS, dir)
	if err != nil {
		return fmt.Errorf("read cache: %w", err)
	}
	if n, err := st.index.Size(); err != nil || n > 0 {
		st.release()
		return fmt.Errorf("there is a read cache in %s already: %w", dir, fserr.Exist)
	}
	c.pause.Lock()
	defer c.pause.Unlock()
	if err := c.copyTo(ctx, old, st); err != nil {
		c.lockShards() // no record in the old place has been written since
		for k := range c.shards {
			for i := range c.shards[k].slots {
				c.shards[k].slots[i].dirty = true
			}
		}
		c.unlockShards()
		st.release()
		return errors.Join(fmt.Errorf("move the read cache to %s: %w", dir, err), Remove(c.o.FS, dir))
	}
	c.store.Store(st)
	c.o.Dir = dir
	fsys, log := c.o.FS, c.log
	_, err = old.index.WriteAt(make([]byte, headerBytes), 0) // it counts for nothing from here on
	old.onClose = func() {
		if err := Remove(fsys, old.dir); err != nil {
			log.Warn("files of the read cache were left behind", "dir", old.dir, "err", err)
		}
	}
	old.release()
	if err != nil {
		log.Warn("the read cache that was moved away is not marked so; remove it", "dir", old.dir, "err", err)
	}
	return nil
}

// copyTo copies what counts, and syncs it.
func (c *Cache) copyTo(ctx context.Context, from, to *store) error {
	if err := c.sizeTo(to, int(c.head.slots)); err != nil {
		return err
	}
	j := jobs.Get().(*job)
	defer jobs.Put(j)
	for k := range c.shards {
		s := &c.shards[k]
		for i := range s.slots {
			s.mu.Lock()
			used := s.slots[i].valid != 0
			s.slots[i].dirty = true
			s.mu.Unlock()
			if !used {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			at := int64(s.number(uint32(i))) * slotBytes
			if _, err := from.data.ReadAt(j.room, at); err != nil {
				continue // its blocks are found damaged when they are read
			}
			if _, err := to.data.WriteAt(j.room, at); err != nil {
				return err
			}
		}
	}
	c.table.Lock()
	for _, f := range c.files.list {
		if f != nil {
			f.dirty = true
		}
	}
	c.table.Unlock()
	if err := c.writeAll(to); err != nil {
		return err
	}
	if _, err := to.index.WriteAt(c.head.encode(), 0); err != nil {
		return err
	}
	return to.index.Sync()
}
