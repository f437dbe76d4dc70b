package ssd

import (
	"math/rand"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"varve/internal/disk"
)

// TestNoStall has several writers, of short and of long writes over the same pages, on a full journal before a slow disk: the long ones,
// which cannot go past the journal, are not starved by the others. Only what the slow disk takes, and what waits for it, counts as time.
func TestNoStall(t *testing.T) { synctest.Test(t, noStall) }

func noStall(t *testing.T) {
	const pages, writers = 4096, 4
	slow := &slowDisk{FS: new(disk.Faulty), seek: 2 * time.Millisecond, bandwidth: 150e6}
	b := newBench(t, new(disk.Faulty), slow, "/fast", "/slow", minRingBlocks)
	f := b.mustFile("a.chk", writers*pages*pageSize)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var longest time.Duration
	writes := 0
	began := time.Now()
	for w := range writers {
		wg.Go(func() {
			rng := rand.New(rand.NewSource(int64(w)))
			p := disk.AlignedBuffer(200 * pageSize)
			for time.Since(began) < 2*time.Second {
				n := 1
				if w == 0 {
					n = 200
				}
				start := time.Now()
				at := int64(w*pages) + rng.Int63n(int64(pages-n)) // a page has one writer at a time
				if _, err := f.WriteAt(p[:n*pageSize], at*pageSize); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				longest, writes = max(longest, time.Since(start)), writes+1
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("%d writes, the longest %v; %+v", writes, longest, b.fs.Stats())
	if longest > 3*time.Second {
		t.Errorf("a write took %v", longest)
	}
	must(t, f.Close())
	must(t, b.fs.Close())
}
