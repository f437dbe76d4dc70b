package mds

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/wire/msg"
	"varve/mds/event"
)

// proposals is many goroutines that propose events to the leader of a cluster of one, each the next when the last is applied.
type proposals struct {
	t    *testing.T
	l    *leadership
	ino  atomic.Uint64
	dirs uint64
}

func (x *proposals) propose(ev *event.Event) {
	err := x.l.propose(ev, "load")
	for end := time.Now().Add(time.Minute); errors.Is(err, errNotProposed) && time.Now().Before(end); {
		err = x.l.propose(ev, "load") // Raft waits for a busy disk
	}
	if err != nil {
		x.t.Error(err)
	}
}

func (x *proposals) create() uint64 {
	ino := x.ino.Add(1)
	x.propose(&event.Event{Body: &event.Event_Create{Create: &event.Create{
		Parent: 2 + ino%x.dirs, Name: fmt.Appendf(nil, "vm-%08d-disk0.qcow2", ino), Ino: ino, Type: uint32(msg.FileType_REGULAR), Perm: 0o644}}})
	x.propose(&event.Event{Body: &event.Event_ChunkAlloc{ChunkAlloc: &event.ChunkAlloc{
		Ino: ino, Norm: 1, Chunks: []*event.ChunkAlloc_Entry{{Id: ino, Epoch: 1, Servers: []uint32{1}}}}}})
	return ino
}

// run has n goroutines call fn until stop says so, and returns how long each call took.
func (x *proposals) run(n int, stop func() bool, fn func(seed uint64)) []time.Duration {
	var mu sync.Mutex
	var all []time.Duration
	var wg sync.WaitGroup
	for g := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var own []time.Duration
			for i := uint64(0); !stop() && !x.t.Failed(); i++ {
				start := time.Now()
				fn(uint64(g)*1_000_003 + i*7919)
				own = append(own, time.Since(start))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, own...)
		}()
	}
	wg.Wait()
	slices.Sort(all)
	return all
}

// liveHeap follows the bytes that each collection found in use; done returns the most.
func liveHeap() (done func() uint64) {
	quit, most := make(chan struct{}), make(chan uint64)
	go func() {
		sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		high := uint64(0)
		for {
			metrics.Read(sample)
			high = max(high, sample[0].Value.Uint64())
			select {
			case <-quit:
				most <- high
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() uint64 { close(quit); return <-most }
}

func at(all []time.Duration, share float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	return all[min(int(float64(len(all))*share), len(all)-1)]
}

// TestCheckpointUnderLoad measures what a checkpoint costs those who work meanwhile: the tail of the time that an event takes, and the memory.
// VARVE_CHECKPOINT_FILES says how many files there are; without it a small state is written once, for the sake of correctness.
func TestCheckpointUnderLoad(t *testing.T) {
	files, _ := strconv.Atoi(os.Getenv("VARVE_CHECKPOINT_FILES"))
	measure := files > 0
	if !measure {
		files = 2000
	}
	c := newCluster(t, 1, func(o *Options) {
		o.SnapshotEntries, o.SnapshotInterval, o.ElectionTimeout = 1<<40, time.Hour, 2*time.Second
	})
	s := c.leader()
	x := &proposals{t: t, l: s.lead.Load(), dirs: 100}
	x.propose(&event.Event{Body: &event.Event_ServerAdd{ServerAdd: &event.ServerAdd{Id: 1, Uuid: make([]byte, 16), Addr: "127.0.0.1:1", Host: "h"}}})
	x.ino.Store(1)
	for i := range x.dirs {
		x.propose(&event.Event{Body: &event.Event_Create{Create: &event.Create{
			Parent: 1, Name: fmt.Append(nil, "d", i), Ino: x.ino.Add(1), Type: uint32(msg.FileType_DIRECTORY), Perm: 0o755}}})
	}
	x.run(512, func() bool { return x.ino.Load() >= uint64(files) }, func(uint64) { x.create() })
	// Some make a file and remove it again, so that the state stays as large as it is; others set attributes of any.
	work := func(seed uint64) {
		if seed%4 == 0 {
			ino := x.create()
			x.propose(&event.Event{Body: &event.Event_Remove{Remove: &event.Remove{
				Parent: 2 + ino%x.dirs, Name: fmt.Appendf(nil, "vm-%08d-disk0.qcow2", ino), Ino: ino}}})
			x.propose(&event.Event{Body: &event.Event_Purged{Purged: &event.Purged{Server: 1, Chunks: []uint64{ino}}}})
			return
		}
		size := seed % (1 << 20)
		x.propose(&event.Event{Body: &event.Event_SetAttr{SetAttr: &event.SetAttr{Ino: x.dirs + 2 + seed%uint64(files-int(x.dirs)-600), Mtime: new(int64), Size: &size}}})
	}
	runtime.GC()
	rounds := 1
	if measure {
		rounds = 5
	}
	var ratios, growth []float64
	for range rounds {
		var over atomic.Bool
		heap := liveHeap()
		if measure {
			time.AfterFunc(4*time.Second, func() { over.Store(true) })
		} else {
			over.Store(true)
		}
		without := x.run(64, over.Load, work)
		low := heap()
		over.Store(false)
		heap = liveHeap()
		start := time.Now()
		took := make(chan time.Duration)
		go func() {
			if err := s.raft.Snapshot().Error(); err != nil {
				t.Errorf("snapshot: %v", err)
			}
			over.Store(true)
			took <- time.Since(start)
		}()
		with := x.run(64, over.Load, work)
		d := <-took
		high := heap()
		ratios = append(ratios, float64(at(with, .99))/float64(max(at(without, .99), 1)))
		growth = append(growth, 100*(float64(high)/float64(max(low, 1))-1))
		t.Logf("%d files: checkpoint %v; events: %d/s without, %d/s with; p50 %v and %v; p99 %v and %v (%.2f times); live heap %d and %d MiB (%+.1f %%)",
			x.ino.Load(), d.Round(time.Millisecond), len(without)/4, int(float64(len(with))/d.Seconds()), at(without, .5), at(with, .5),
			at(without, .99), at(with, .99), ratios[len(ratios)-1], low>>20, high>>20, growth[len(growth)-1])
	}
	slices.Sort(ratios)
	slices.Sort(growth)
	t.Logf("median: p99 %.2f times, live heap %+.1f %%", ratios[rounds/2], growth[rounds/2])
	points, err := s.journal.Checkpoints()
	if err != nil || len(points) == 0 {
		t.Fatalf("no checkpoint: %v", err)
	}
}

func TestSnapshotInterval(t *testing.T) {
	for _, x := range []struct{ least, took, want time.Duration }{
		{50 * time.Millisecond, 500 * time.Millisecond, 50 * time.Millisecond},
		{30 * time.Second, 1500 * time.Millisecond, 30 * time.Second},
		{30 * time.Second, 6 * time.Second, 2 * time.Minute},
		{30 * time.Second, time.Hour, maxSnapshotInterval},
		{time.Hour, time.Minute, time.Hour},
	} {
		if got := snapshotInterval(x.least, x.took); got != x.want {
			t.Errorf("at least %v, took %v: %v, want %v", x.least, x.took, got, x.want)
		}
	}
}

// TestPacedGivesUp: a checkpoint does not keep a server from stopping.
func TestPacedGivesUp(t *testing.T) {
	quit := make(chan struct{})
	close(quit)
	p := newPaced(io.Discard, quit)
	p.last = time.Now().Add(-time.Hour) // the block took long
	if _, err := p.Write(make([]byte, 1<<18)); !errors.Is(err, errStopping) {
		t.Errorf("got %v", err)
	}
}
