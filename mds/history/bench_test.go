package history

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/journal"
	"varve/mds/event"
	"varve/mds/state"
)

// generator makes a journal as a cluster makes it: images are created, get chunks and grow, are held, let go, renamed and removed.
type generator struct {
	s     *state.State
	rng   *rand.Rand
	files []file
	ino   uint64
	chunk uint64
	seq   uint64
	freed map[uint32][]uint64 // chunks that servers have still to delete
	most  int                 // files at once
}

type file struct {
	ino    uint64
	parent uint64
	name   string
	chunks uint32
	ids    []uint64
}

const (
	genDirs  = 64
	genFiles = 20000 // at most at once, unless VARVE_REPLAY_FILES says otherwise
)

func newGenerator(seed uint64) *generator {
	return &generator{s: state.New(), rng: rand.New(rand.NewPCG(seed, seed+1)), freed: map[uint32][]uint64{}, most: genFiles}
}

// envInt returns the number that the environment has under the name, or the default.
func envInt(tb testing.TB, name string, or int) int {
	v := os.Getenv(name)
	if v == "" {
		return or
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		tb.Fatalf("%s: %v", name, err)
	}
	return n
}

func (g *generator) cause() *event.Cause {
	g.seq++
	return &event.Cause{Session: 1, Seq: g.seq, Acked: g.seq - 1, Uid: 1000}
}

func (g *generator) first() []*event.Event {
	cluster := id.Cluster{1}
	out := []*event.Event{{Body: &event.Event_ClusterInit{ClusterInit: &event.ClusterInit{Uuid: cluster[:], Name: "bench", Perm: 0o755}}}}
	for n := uint32(1); n <= 4; n++ {
		out = append(out, &event.Event{Body: &event.Event_ServerAdd{ServerAdd: &event.ServerAdd{Id: n, Uuid: bytes.Repeat([]byte{byte(n)}, 16), Addr: fmt.Sprint("h", n, ":1"), Host: fmt.Sprint("h", n)}}})
	}
	out = append(out, &event.Event{Body: &event.Event_SessionOpen{SessionOpen: &event.SessionOpen{Id: 1, Host: "h", Mount: "/mnt", Nonce: make([]byte, 16)}}})
	g.ino = 1
	for n := range genDirs {
		g.ino++
		out = append(out, &event.Event{Cause: g.cause(), Body: &event.Event_Create{Create: &event.Create{
			Parent: 1, Name: []byte(fmt.Sprint("dir", n)), Ino: g.ino, Type: uint32(msg.FileType_DIRECTORY), Perm: 0o755}}})
	}
	return out
}

// next is one step of the life of a file.
func (g *generator) next() *event.Event {
	for server := uint32(1); server <= 4; server++ {
		if list := g.freed[server]; len(list) >= 256 {
			delete(g.freed, server)
			return &event.Event{Cause: &event.Cause{Reason: "deleted"}, Body: &event.Event_Purged{Purged: &event.Purged{Server: server, Chunks: list}}}
		}
	}
	ev := &event.Event{Cause: g.cause()}
	if len(g.files) == 0 || len(g.files) < g.most && g.rng.IntN(4) == 0 {
		g.ino++
		f := file{ino: g.ino, parent: 2 + g.rng.Uint64N(genDirs), name: fmt.Sprintf("vm-%08d.img", g.ino)}
		g.files = append(g.files, f)
		ev.Body = &event.Event_Create{Create: &event.Create{Parent: f.parent, Name: []byte(f.name), Ino: f.ino, Type: uint32(msg.FileType_REGULAR),
			Perm: 0o644, Uid: 1000, Gid: 1000, Want: uint32(msg.Want_WANT_WRITE)}}
		return ev
	}
	i := g.rng.IntN(len(g.files))
	f := &g.files[i]
	switch g.rng.IntN(8) {
	case 0, 1:
		g.chunk++
		ev.Body = &event.Event_ChunkAlloc{ChunkAlloc: &event.ChunkAlloc{Ino: f.ino, Norm: 3,
			Chunks: []*event.ChunkAlloc_Entry{{Index: f.chunks, Id: g.chunk, Epoch: 1, Servers: []uint32{1 + uint32(g.chunk%2), 3, 4}}}}}
		f.chunks++
		f.ids = append(f.ids, g.chunk)
	case 2, 3, 4:
		size, now := uint64(f.chunks)<<26, time.Now().UnixNano()
		ev.Body = &event.Event_SetAttr{SetAttr: &event.SetAttr{Ino: f.ino, Size: &size, Mtime: &now}}
	case 5:
		ev.Body = &event.Event_LeaseSet{LeaseSet: &event.LeaseSet{Entries: []*event.LeaseSet_Entry{{Session: 1, Ino: f.ino, Want: uint32(g.rng.IntN(3))}}}}
	case 6:
		to := fmt.Sprintf("vm-%08d-%d.img", f.ino, g.seq)
		ev.Body = &event.Event_Rename{Rename: &event.Rename{Parent: f.parent, Name: []byte(f.name), Ino: f.ino, NewParent: f.parent, NewName: []byte(to)}}
		f.name = to
	default:
		ev.Body = &event.Event_Remove{Remove: &event.Remove{Parent: f.parent, Name: []byte(f.name), Ino: f.ino}}
		for _, c := range f.ids {
			for _, server := range []uint32{1 + uint32(c%2), 3, 4} {
				g.freed[server] = append(g.freed[server], c)
			}
		}
		g.files[i] = g.files[len(g.files)-1]
		g.files = g.files[:len(g.files)-1]
	}
	return ev
}

// write appends n events, with a checkpoint after three quarters of them.
func (g *generator) write(tb testing.TB, dir string, n int) {
	j, err := journal.Open(journal.Options{Dir: dir, Cluster: id.Cluster{1}})
	if err != nil {
		tb.Fatal(err)
	}
	batch := make([]journal.Record, 0, 1024)
	flush := func() {
		if err := j.Append(batch); err != nil {
			tb.Fatal(err)
		}
		batch = batch[:0]
	}
	index := id.Index(0)
	add := func(ev *event.Event) {
		index++
		ev.Index, ev.Time = uint64(index), int64(index)*1e6
		if err := g.s.Try(ev); err != nil {
			tb.Fatal(err)
		}
		b, err := ev.MarshalVT()
		if err != nil {
			tb.Fatal(err)
		}
		if batch = append(batch, journal.Record{Index: index, Time: ev.Time, Raft: uint64(index), Payload: b}); len(batch) == cap(batch) {
			flush()
		}
	}
	for _, ev := range g.first() {
		add(ev)
	}
	for int(index) < n {
		add(g.next())
		if int(index) == n*3/4 {
			flush()
			if err := j.WriteCheckpoint(j.Last(), g.s.Write); err != nil {
				tb.Fatal(err)
			}
		}
	}
	flush()
	if err := j.Close(); err != nil {
		tb.Fatal(err)
	}
}

const rusageThread = 1 // RUSAGE_THREAD

func cpuTime(tb testing.TB, who int) time.Duration {
	var ru syscall.Rusage
	if err := syscall.Getrusage(who, &ru); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// source hides checkpoints above a limit.
type source struct {
	*Dir
	limit id.Index
}

func (s source) Checkpoint(ctx context.Context, at id.Index) (*state.State, error) {
	return s.Dir.Checkpoint(ctx, min(at, s.limit))
}

// BenchmarkReplay replays a journal of VARVE_REPLAY_EVENTS events (200,000): all of it, and from the nearest checkpoint to its end.
func BenchmarkReplay(b *testing.B) {
	n := envInt(b, "VARVE_REPLAY_EVENTS", 200000)
	dir := filepath.Join(b.TempDir(), "journal")
	g := newGenerator(1)
	g.most = envInt(b, "VARVE_REPLAY_FILES", genFiles)
	g.write(b, dir, n)
	want := g.s.Sum()
	*g = generator{}
	d, err := OpenDir(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	slack := make([]byte, 256<<20) // as the verbs have it, which replay (slackenGC in cmd/varve)
	defer runtime.KeepAlive(slack)
	for _, tc := range []struct {
		name   string
		limit  id.Index
		events int
	}{{"all", 0, n}, {"checkpoint", id.Index(n), n - n*3/4}} {
		b.Run(tc.name, func(b *testing.B) {
			runtime.LockOSThread() // the events are applied on this thread
			defer runtime.UnlockOSThread()
			var all, applying time.Duration
			for b.Loop() {
				all0, applying0 := cpuTime(b, syscall.RUSAGE_SELF), cpuTime(b, rusageThread)
				s, err := At(context.Background(), source{d, tc.limit}, id.Index(n), Hooks{})
				if err != nil {
					b.Fatal(err)
				}
				all += cpuTime(b, syscall.RUSAGE_SELF) - all0
				applying += cpuTime(b, rusageThread) - applying0
				if s.Sum() != want {
					b.Fatal("another state than the one that was recorded")
				}
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				b.ReportMetric(float64(m.Sys)/(1<<20), "MiB-sys")
			}
			b.ReportMetric(float64(tc.events)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
			// What a busy machine does not change: the CPU of everything, and of the thread that applies, which is what two free cores wait for.
			n := float64(tc.events) * float64(b.N)
			b.ReportMetric(float64(all.Nanoseconds())/n, "cpu-ns/event")
			b.ReportMetric(float64(applying.Nanoseconds())/n, "apply-ns/event")
		})
	}
}

// Replay of a generated journal gives the state that was recorded, from the start and from the checkpoint, at any index.
func TestReplayGenerated(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	g := newGenerator(3)
	const n = 20000
	g.write(t, dir, n)
	d, err := OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx := context.Background()
	s, err := At(ctx, d, n, Hooks{})
	if err != nil || s.Sum() != g.s.Sum() {
		t.Fatalf("at the end: %v, the same state %v", err, err == nil && s.Sum() == g.s.Sum())
	}
	for _, at := range []id.Index{1, 100, n / 2, n*3/4 - 1, n * 3 / 4, n*3/4 + 1, n - 1} {
		near, err := At(ctx, d, at, Hooks{})
		if err != nil {
			t.Fatal(err)
		}
		far, err := At(ctx, source{d, 0}, at, Hooks{})
		if err != nil {
			t.Fatal(err)
		}
		if near.Index() != at || near.Sum() != far.Sum() {
			t.Errorf("index %d: from the checkpoint %d, from the start %d, the same %v", at, near.Index(), far.Index(), near.Sum() == far.Sum())
		}
	}
}
