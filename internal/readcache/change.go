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
	if n < int(c.head.slots) {
		c.gather(st, n)
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
	err := c.writeAll(st)
	// Until both are there, header and witness do not fit together, and a crash costs what is open for writing.
	if err == nil {
		_, err = st.index.WriteAt(c.head.encode(), 0)
	}
	if err == nil {
		err = st.index.Sync()
	}
	if err == nil && n < was {
		st.shorten(int64(n) * slotBytes)
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

// gather moves what is in slots from n on to free ones below, as far as there are any. Preconditions: nothing is written meanwhile.
func (c *Cache) gather(st *store, n int) {
	j := jobs.Get().(*job)
	defer jobs.Put(j)
	for k := range c.shards {
		s := &c.shards[k]
		s.mu.Lock()
		var free []uint32
		for i := s.free; i != none; i = s.slots[i].next {
			if int(i) < n/shards {
				free = append(free, i)
			}
		}
		s.mu.Unlock()
		for i := n / shards; i < len(s.slots) && len(free) > 0; i++ {
			s.mu.Lock()
			used := s.slots[i].valid != 0
			s.mu.Unlock()
			if !used {
				continue
			}
			to := free[len(free)-1]
			free = free[:len(free)-1]
			if _, err := st.data.ReadAt(j.room, int64(s.number(uint32(i)))*slotBytes); err != nil {
				continue
			}
			if err := st.lay(s.number(to)); err != nil {
				return
			}
			if _, err := st.data.WriteAt(j.room, int64(s.number(to))*slotBytes); err != nil {
				return // what is not moved goes
			}
			s.mu.Lock()
			if x := s.slots[i]; x.valid != 0 {
				s.drop(uint32(i))
				s.takeFree(to)
				s.slots[to] = slot{key: x.key, version: c.version.Add(1), valid: x.valid, freq: x.freq, sums: x.sums, dirty: true}
				s.enqueue(to, x.queue)
				s.link(to)
				s.witness(to).Store(s.slots[to].version<<slotBlocks | uint64(x.valid))
			}
			s.mu.Unlock()
		}
	}
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
			to.pass(at + slotBytes)
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
