package state

// Most files have one chunk, so first chunks are in a table by inode, which is small and quick; the others are in a tree.

// setChunk puts c in its place in the file, and returns what was there.
func (s *State) setChunk(c *Chunk) (*Chunk, bool) {
	if c.Index() == 0 {
		return s.heads.Put(uint64(c.Ino), c)
	}
	return s.chunks.ReplaceOrInsert(c)
}

func (s *State) unsetChunk(c *Chunk) {
	if c.Index() == 0 {
		s.heads.Delete(uint64(c.Ino))
	} else {
		s.chunks.Delete(c)
	}
}

// eachChunk calls fn for each chunk, by inode and index, until fn returns false.
func (s *State) eachChunk(fn func(*Chunk) bool) {
	var next *Chunk // of those that are no first chunks
	s.chunks.Ascend(func(c *Chunk) bool { next = c; return false })
	more := true
	// others calls fn for what comes before limit, or for all that is left.
	others := func(limit *Chunk) bool {
		if next == nil || limit != nil && !lessAt(next, limit) {
			return more
		}
		from := next
		next = nil
		s.chunks.AscendGreaterOrEqual(from, func(c *Chunk) bool {
			if limit != nil && !lessAt(c, limit) {
				next = c
				return false
			}
			more = fn(c)
			return more
		})
		return more
	}
	s.heads.Ascend(0, func(c *Chunk) bool {
		more = others(c) && fn(c)
		return more
	})
	if more {
		others(nil)
	}
}
