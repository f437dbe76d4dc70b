package plan

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/id"
	"varve/mds/event"
	"varve/mds/state"
)

// TestWhatIf: the forecast is what then comes to pass.
func TestWhatIf(t *testing.T) {
	w := newWorld(t, 4)
	for i := range 10 {
		w.server(fmt.Sprint("h", i/2), "", 0, 400)
	}
	for range 100 {
		w.chunk(3, w.random(3)...)
	}
	w.settle(2000)
	only := w.chunk(1, 1)
	w.policy(state.Policy{Norm: 3, Min: 2})
	w.apply(&event.Event{Body: &event.Event_ReplicaDrop{ReplicaDrop: &event.ReplicaDrop{Ino: 2, Server: 0}}}) // nothing
	w.measure()
	lost := []id.ServerID{1, 2}
	f, err := WhatIf(w.s, w.views, lost, WhatIfOptions{Rate: 100 << 20, ServerRate: 1 << 40, MaxFiles: 5})
	if err != nil {
		t.Fatal(err)
	}
	had := uint64(0)
	w.each(func(_ *state.Chunk, on []*ServerView) {
		for _, v := range on {
			if v.Host == "h0" {
				had++
			}
		}
	})
	if f.Gone.Chunks != 1 || f.Gone.Bytes != chunk.Size || f.Gone.Files != 1 || len(f.Files) != 1 || f.Files[0].Ino != 2 {
		t.Errorf("gone %+v, files %+v, want chunk %v", f.Gone, f.Files, only)
	}
	if f.Lost[0].Chunks+f.Lost[1].Chunks != had || f.Hit != had || f.Moves != had-1 || f.MoveBytes != (had-1)*chunk.Size || f.Homeless != 0 || f.Shared != 0 {
		t.Errorf("of %d replicas: %+v", had, f)
	}
	if want := time.Duration(had-1) * chunk.Size * time.Second / (100 << 20); f.ETA != want || f.ByServer {
		t.Errorf("ETA %v, want %v", f.ETA, want)
	}
	before := w.joins
	w.lose(1)
	w.lose(2)
	w.budget.NoBackground = true
	w.settle(2000)
	// The file's other chunk waits for its server.
	if moved := w.joins - before; moved != int(f.Moves) {
		t.Errorf("%d replicas copied, forecast %d", moved, f.Moves)
	}
	if _, err := WhatIf(w.s, w.views, lost, WhatIfOptions{Stop: func() bool { return true }}); !errors.Is(err, ErrStopped) {
		t.Errorf("not stopped: %v", err)
	}
	// All hosts but one: nothing is apart, and there is not enough of anything.
	f, err = WhatIf(w.s, w.views, []id.ServerID{1, 2, 3, 4, 5, 6, 7, 8}, WhatIfOptions{MaxFiles: 5})
	if err != nil || f.Homeless == 0 || f.Gone.Chunks == 0 || f.UnderMin.Chunks == 0 || f.Last == 0 {
		t.Errorf("%v: %+v", err, f)
	}
}

// TestWhatIfNoRoom: what does not fit is told.
func TestWhatIfNoRoom(t *testing.T) {
	w := newWorld(t, 4)
	for i := range 4 {
		w.server(fmt.Sprint("h", i), "", 0, 33)
	}
	for range 40 {
		w.chunk(3, w.random(3)...)
	}
	w.measure()
	f, err := WhatIf(w.s, w.views, []id.ServerID{1}, WhatIfOptions{})
	if err != nil || f.Homeless == 0 || f.Homeless+f.Moves != f.Hit || f.HomelessBytes != f.Homeless*chunk.Size {
		t.Errorf("%v: %+v", err, f)
	}
}

// large builds a cluster: racks of 40 servers, chunks of files of 1,000 with 3 replicas in different racks.
func large(t testing.TB, racks, chunks int) (*state.State, []ServerView) {
	s := state.New()
	s.Suspend() // the digest is of no interest
	s.Apply(&event.Event{Body: &event.Event_ClusterInit{ClusterInit: &event.ClusterInit{Uuid: make([]byte, 16), Perm: 0o755}}})
	const perRack, perFile = 40, 1000
	servers := racks * perRack
	total := uint64(chunks) * 3 / uint64(servers) * chunk.Size * 2
	var views []ServerView
	for i := range servers {
		host, rack := fmt.Sprint("h", i/2), fmt.Sprint("r", i/perRack)
		s.Apply(&event.Event{Body: &event.Event_ServerAdd{ServerAdd: &event.ServerAdd{
			Id: uint32(i + 1), Uuid: fmt.Appendf(nil, "%16d", i), Host: host, Rack: rack}}})
		views = append(views, ServerView{ID: id.ServerID(i + 1), Host: host, Rack: rack, Total: total, Free: total, Live: true})
	}
	s.Apply(&event.Event{Body: &event.Event_PolicySet{PolicySet: &event.PolicySet{Ino: 1, Norm: 3, Min: 2, Domain: uint32(state.Rack)}}})
	r := rand.New(rand.NewPCG(1, 2))
	ev := &event.ChunkAlloc{Norm: 3}
	next := uint64(1)
	for n := 0; n < chunks; n++ {
		if n%perFile == 0 {
			ino := uint64(n/perFile + 2)
			s.Apply(&event.Event{Body: &event.Event_Create{Create: &event.Create{Parent: 1, Name: fmt.Appendf(nil, "vm%d.img", ino), Ino: ino, Type: 1}}})
			size := uint64(perFile) * chunk.Size
			s.Apply(&event.Event{Body: &event.Event_SetAttr{SetAttr: &event.SetAttr{Ino: ino, Size: &size}}})
			ev.Ino = ino
		}
		a := r.IntN(racks)
		b := (a + 1 + r.IntN(racks-1)) % racks
		c := r.IntN(racks)
		for c == a || c == b {
			c = r.IntN(racks)
		}
		on := []uint32{uint32(a*perRack + r.IntN(perRack) + 1), uint32(b*perRack + r.IntN(perRack) + 1), uint32(c*perRack + r.IntN(perRack) + 1)}
		for _, k := range on {
			views[k-1].Free -= min(views[k-1].Free, chunk.Size)
		}
		ev.Chunks = append(ev.Chunks[:0], &event.ChunkAlloc_Entry{Index: uint32(n % perFile), Id: next, Epoch: 1, Servers: on})
		next++
		s.Apply(&event.Event{Body: &event.Event_ChunkAlloc{ChunkAlloc: ev}})
	}
	return s, views
}

// cpuTime returns what the process has used.
func cpuTime(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// maxPlanning is what planning for a lost rack of 1,000 servers with 10 million chunks may take.
const maxPlanning = 10 * time.Second

// Rates of the estimate: a server with one link of 10 Gbit/s, half of which repair may have, and no other limit.
const simServerRate = 625e6

// TestLostRack: the loss of a rack is planned quickly, and every survivor has an equal share. VARVE_PLAN_CHUNKS says how many chunks
// there are, such as 10000000, which takes 3 GB and a minute; then there are 1,000 servers.
func TestLostRack(t *testing.T) {
	racks, chunks := 5, 30_000
	if v := os.Getenv("VARVE_PLAN_CHUNKS"); v != "" {
		var err error
		if chunks, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
		racks = 25
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s, views := large(t, racks, chunks)
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("%d servers, %d chunks: %.1f bytes of memory each", len(views), chunks, float64(after.HeapAlloc-before.HeapAlloc)/float64(chunks))
	var lost []id.ServerID
	for _, v := range views {
		if v.Rack == "r1" {
			lost = append(lost, v.ID)
		}
	}
	steps := uint64(0)
	start, cpu := time.Now(), cpuTime(t)
	f, err := WhatIf(s, views, lost, WhatIfOptions{ServerRate: simServerRate, Each: func(c *state.Chunk, a Action) {
		steps++
		r, ok := c.Find(a.Target)
		if ok || a.Target == a.Source || views[a.Target-1].Rack == "r1" || views[a.Source-1].Rack == "r1" || r.Joining {
			t.Fatalf("%+v for %v", a, c)
		}
		for i := range c.Len() {
			if x := c.Replica(i).Server; views[x-1].Rack == views[a.Target-1].Rack && views[x-1].Rack != "r1" {
				t.Fatalf("%+v for %v: two in %s", a, c, views[x-1].Rack)
			}
		}
	}})
	took, worked := time.Since(start), cpuTime(t)-cpu
	if err != nil || f.Gone.Chunks != 0 || f.Homeless != 0 || f.Shared != 0 || f.Moves != f.Hit || steps != f.Moves {
		t.Fatalf("%v: %+v", err, f)
	}
	if worked > maxPlanning { // what others do on this machine does not count
		t.Errorf("planned in %v of CPU, at most %v", worked, maxPlanning)
	}
	check := func(what string, of func(Share) uint64) {
		low, high, sum := ^uint64(0), uint64(0), uint64(0)
		for _, x := range f.Survivors {
			low, high, sum = min(low, of(x)), max(high, of(x)), sum+of(x)
		}
		mean := float64(sum) / float64(len(f.Survivors))
		t.Logf("%s: %.0f of each survivor, from %+.1f%% to %+.1f%%", what, mean, 100*(float64(low)/mean-1), 100*(float64(high)/mean-1))
		if float64(low) < 0.9*mean || float64(high) > 1.1*mean {
			t.Errorf("%s: %d to %d, mean %.0f", what, low, high, mean)
		}
	}
	check("replicas written", func(x Share) uint64 { return x.Chunks })
	check("replicas read", func(x Share) uint64 { return x.Reads })
	check("both", func(x Share) uint64 { return x.Chunks + x.Reads })
	limit := takes(f.MoveBytes/uint64(len(f.Survivors)), simServerRate)
	t.Logf("%d of %d chunks hit, planned in %v, %v of CPU; rebuilt in %v at %.0f MB/s a server, %v if all had the same", f.Hit, f.Chunks, took.Round(time.Millisecond), worked.Round(time.Millisecond),
		f.ETA.Round(time.Second), simServerRate/1e6, limit.Round(time.Second))

	// Step by step, as the leader asks: a call takes a moment.
	for _, k := range lost {
		views[k-1].Live, views[k-1].Lost = false, true
	}
	start, cpu = time.Now(), cpuTime(t)
	for _, k := range lost {
		s.Apply(&event.Event{Body: &event.Event_ServerLost{ServerLost: &event.ServerLost{Server: uint32(k)}}})
	}
	t.Logf("%d servers given up in %v, %v of CPU", len(lost), time.Since(start).Round(time.Millisecond), (cpuTime(t) - cpu).Round(time.Millisecond))
	start, cpu = time.Now(), cpuTime(t)
	s.ChunksOf(lost[0], func(*state.Chunk) bool { t.Fatal("a server that was given up has chunks"); return false })
	t.Logf("all chunks looked at for those of a server in %v, %v of CPU", time.Since(start).Round(time.Microsecond), (cpuTime(t) - cpu).Round(time.Microsecond))
	p := NewPlanner()
	const calls = 20
	start = time.Now()
	n := 0
	for i := range calls {
		n += len(p.Next(Input{State: s, Servers: views, Budget: Budget{Actions: 500, PerServer: 2}, Now: time.Duration(i)}).Actions)
	}
	t.Logf("a call of Next takes %v and returns %d steps", (time.Since(start) / calls).Round(time.Microsecond), n/calls)
	for _, k := range lost[1:] {
		views[k-1].Live = true
	}
	start = time.Now()
	for i := range calls {
		p.Next(Input{State: s, Servers: views, Budget: Budget{Actions: 1 << 20, PerServer: 1}, Now: time.Duration(i)})
	}
	t.Logf("with a sweep %v", (time.Since(start) / calls).Round(time.Microsecond))
}
