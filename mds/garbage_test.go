package mds

import (
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/state"
)

func (k *testChunks) has(chunk uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.chunks[chunk] != nil
}

func (k *testChunks) answers(t wire.Type, code fserr.Code) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.refuse[t] = code; code == fserr.OK {
		delete(k.refuse, t)
	}
}

// TestFilesOfFailedAllocations: a chunk file that an allocation made which came to nothing goes when its number was given out again: to a chunk on other
// servers, or to none; not before, nor from where that chunk is.
func TestFilesOfFailedAllocations(t *testing.T) {
	c := newCluster(t, 1, patient)
	cs := []*testChunks{newChunks(c), newChunks(c), newChunks(c), newChunks(c)}
	a := newClient(c)
	ino := a.create("f", true).Attr.Ino
	const far = 1000
	odd := cs[3]
	odd.halt()
	odd.mu.Lock()
	for n := uint64(1); n <= 8; n++ {
		odd.chunks[n] = &msg.ChunkInfo{Id: n, Epoch: 1}
	}
	odd.chunks[far] = &msg.ChunkInfo{Id: far, Epoch: 1}
	odd.mu.Unlock()
	odd.run()
	c.eventually("the server to be back", odd.isReady)
	// What was once looked at in vain must be looked at again.
	back := time.Now()
	c.eventually("a look at what is not known", func() bool {
		l := c.lead()
		if time.Since(back) < 3*l.s.o.UnknownGrace {
			return false
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		_, ok := l.unknown[copyKey{odd.id, far}]
		return ok
	})
	a.must(a.change(&msg.AllocChunk{Ino: ino, Count: 5}))
	member := func(n uint64) (in bool) {
		c.leader().fsm.view(func(st *state.State) {
			if x, ok := st.ChunkByID(id.ChunkID(n)); ok {
				_, in = x.Find(odd.id)
			}
		})
		return in
	}
	// The others are given out in vain.
	for _, k := range cs[:3] {
		k.answers(wire.ChunkCreate, fserr.IO)
	}
	if _, code := a.do(a.change(&msg.AllocChunk{Ino: ino, First: 10, Count: 3})); code == fserr.OK {
		t.Fatal("chunks were made where none can be")
	}
	for _, k := range cs[:3] {
		k.answers(wire.ChunkCreate, fserr.OK)
	}
	c.eventually("files of no chunk to be deleted", func() bool {
		for n := uint64(1); n <= 8; n++ {
			if odd.has(n) != member(n) {
				return false
			}
		}
		return true
	})
	if !odd.has(far) {
		t.Error("a file was deleted whose number was never given out")
	}
	// A file that cannot be deleted when its allocation fails is deleted later, without a new registration.
	odd.answers(wire.ChunkDelete, fserr.Unavailable)
	for _, k := range cs[:3] {
		k.answers(wire.ChunkCreate, fserr.IO)
	}
	if _, code := a.do(a.change(&msg.AllocChunk{Ino: ino, First: 20, Count: 1})); code == fserr.OK {
		t.Fatal("a chunk was made where none can be")
	}
	odd.answers(wire.ChunkDelete, fserr.OK)
	c.eventually("the file to be deleted", func() bool {
		odd.mu.Lock()
		defer odd.mu.Unlock()
		for n := range odd.chunks {
			known := false
			c.leader().fsm.view(func(st *state.State) { _, known = st.ChunkByID(id.ChunkID(n)) })
			if !known && n != far {
				return false
			}
		}
		return true
	})
}

// TestFilesOfAllocationsUnderWay: a file whose number an allocation that is under way has given out is none that nobody knows, however long the server has had it.
func TestFilesOfAllocationsUnderWay(t *testing.T) {
	c := newCluster(t, 1, patient)
	odd := newChunks(c)
	odd.halt()
	odd.mu.Lock()
	for n := uint64(1); n <= 3; n++ {
		odd.chunks[n] = &msg.ChunkInfo{Id: n, Epoch: 1}
	}
	odd.mu.Unlock()
	odd.run()
	c.eventually("the server to be back", odd.isReady)
	l := c.lead()
	first, second := l.allocating(), l.allocating()
	l.nextChunk.Add(2)
	third := l.allocating()
	l.nextChunk.Add(2)
	look := func(what string, want ...bool) {
		t.Helper()
		time.Sleep(3 * l.s.o.UnknownGrace) // and more
		for n, has := range want {
			if odd.has(uint64(n+1)) != has {
				t.Errorf("%s: file of chunk %d is there: %t, want %t", what, n+1, !has, has)
			}
		}
	}
	look("three allocations under way", true, true, true)
	first()
	look("one has ended", true, true, true)
	second()
	c.eventually("the files of what has ended to be deleted", func() bool { return !odd.has(1) && !odd.has(2) })
	look("the last one is under way", false, false, true)
	third()
	c.eventually("its file to be deleted", func() bool { return !odd.has(3) })
}

// TestDeleteKeepsWhoJoinsAgain: a copy is deleted up to the epoch of when that was decided, so that one which joins again before the server gets to it stays.
func TestDeleteKeepsWhoJoinsAgain(t *testing.T) {
	c := newCluster(t, 1, patient)
	k, l := newChunks(c), c.lead()
	for epoch, want := range map[uint64]bool{4: false, 5: false, 6: true} {
		k.mu.Lock()
		k.chunks[77] = &msg.ChunkInfo{Id: 77, Epoch: epoch}
		k.mu.Unlock()
		for n := k.count(wire.ChunkDelete); k.count(wire.ChunkDelete) == n; {
			l.deleteOn(k.id, []doomed{{77, 5}}, false)
		}
		if got := k.has(77); got != want {
			t.Errorf("a copy of epoch %d that goes up to epoch 5 is there: %t", epoch, got)
		}
		for n := k.count(wire.ChunkDelete); k.count(wire.ChunkDelete) == n; {
			l.deleteOn(k.id, []doomed{{77, 0}}, false)
		}
		if k.has(77) {
			t.Error("a copy that goes whatever its epoch stayed")
		}
	}
}

// TestCopiesOfChunksUnderWay: a copy of a chunk that the state does not know yet, as the garbage collector sees it, is left alone: it may have been dropped from the
// chunk a moment after that was made, and join it again before it would be deleted.
func TestCopiesOfChunksUnderWay(t *testing.T) {
	c := newCluster(t, 1, patient)
	k, l := newChunks(c), c.lead()
	settle := l.allocating()
	n := l.nextChunk.Load()
	l.nextChunk.Add(1)
	k.mu.Lock()
	k.chunks[n] = &msg.ChunkInfo{Id: n, Epoch: 1}
	k.mu.Unlock()
	l.mu.Lock()
	l.servers[k.id].stale[id.ChunkID(n)] = 1
	l.mu.Unlock()
	for range 3 {
		l.collectGarbage()
	}
	if !k.has(n) {
		t.Fatal("the copy was deleted")
	}
	settle()
	c.eventually("what came to nothing to be deleted", func() bool { return !k.has(n) })
}
