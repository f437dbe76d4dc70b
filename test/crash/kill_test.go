package crash

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/cs/store"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const (
	killChunks  = 6
	killExtents = 4 // of each chunk
	killWriters = 6
	// quickStart is how long a server may take from its start until it serves, on a machine that does other things, too.
	quickStart = 10 * time.Second
)

// TestKill kills a chunk server again and again while clients write, punch and flush, while chunks are made, removed and adopted, and
// while it starts. What was acknowledged is there each time, and no block is reported as bad.
func TestKill(t *testing.T) {
	needProcesses(t)
	kills := number(t, "VARVE_KILLS", 20)
	if os.Getuid() != 0 {
		t.Log("no root: in the temporary directory, instead of on ext4 and XFS")
		killLoop(t, t.TempDir(), "", kills)
		return
	}
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run("fs="+fs, func(t *testing.T) { killLoop(t, mountImage(t, fs), "", kills) })
	}
	// With a write journal in front of the disk, on another one.
	t.Run("fs=xfs/journal", func(t *testing.T) { killLoop(t, mountImage(t, "xfs"), filepath.Join(t.TempDir(), "journal"), kills) })
}

// mountImage makes a filesystem in a file and mounts it until the test ends.
func mountImage(t *testing.T, fs string) string {
	t.Helper()
	needRoot(t, "mkfs."+fs, "mount")
	dir := t.TempDir()
	image, mnt := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	f, err := os.Create(image)
	if err == nil {
		err = errors.Join(f.Truncate(3<<30), f.Close(), os.Mkdir(mnt, 0o700))
	}
	if err != nil {
		t.Fatal(err)
	}
	mkfs := []string{"mkfs.ext4", "-q", "-F", image}
	if fs == "xfs" {
		mkfs = []string{"mkfs.xfs", "-q", "-f", image}
	}
	if out, err := exec.Command(mkfs[0], mkfs[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", mkfs, err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, mnt).CombinedOutput(); err != nil {
		t.Skipf("no %s here: mount: %v\n%s", fs, err, out)
	}
	t.Cleanup(func() { // after the servers on it are gone
		for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) { // the kernel lets go of a ring's files some time after its process
			out, err := exec.Command("umount", mnt).CombinedOutput()
			if err == nil {
				return
			}
			if time.Now().After(end) {
				t.Errorf("umount: %v\n%s", err, out)
				_ = exec.Command("umount", "-l", mnt).Run()
				return
			}
		}
	})
	return filepath.Join(mnt, "cs")
}

// killer is a server that is killed, and what its chunks should hold.
type killer struct {
	t       *testing.T
	l       *leader
	rng     *rand.Rand
	dir     string
	areas   []*area
	epochs  map[id.ChunkID]*epoch
	extra   map[id.ChunkID]bool // chunks that come and go: there for sure, or perhaps
	lastID  id.ChunkID
	seq     atomic.Uint64
	starts  []time.Duration
	there   int // sectors of unacknowledged changes that were found
	absent  int // and that were not
	writes  atomic.Int64
	flushes atomic.Int64
	early   int // kills before the server served
}

// epoch is a chunk's: acknowledged, and asked for.
type epoch struct{ acked, tried atomic.Uint64 }

func killLoop(t *testing.T, dir, journal string, kills int) {
	seed := uint64(time.Now().UnixNano())
	x := &killer{
		t: t, l: newLeader(t), rng: rand.New(rand.NewPCG(seed, 1)), dir: dir,
		epochs: map[id.ChunkID]*epoch{}, extra: map[id.ChunkID]bool{}, lastID: 1000,
	}
	makeServer(t, x.l, dir, journal)
	p, _ := x.start()
	for k := id.ChunkID(1); k <= killChunks; k++ {
		x.l.must(t, wire.ChunkCreate, &msg.ChunkCreate{Chunk: uint64(k), Epoch: 1})
		x.epochs[k] = new(epoch)
		x.epochs[k].acked.Store(1)
		x.epochs[k].tried.Store(1)
		for e := range killExtents {
			x.areas = append(x.areas, newArea(k, e))
		}
	}
	for n := range kills {
		old := p
		x.load(p)
		if x.rng.IntN(5) == 0 && n < kills-1 { // and again while it starts
			x.l.forget()
			early := startServer(t, x.config())
			time.Sleep(time.Duration(x.rng.IntN(80)) * time.Millisecond)
			early.kill()
			early.quiet.Store(true)
			x.early++
		}
		var addr string
		p, addr = x.start()
		x.verify(addr)
		if t.Failed() {
			t.Fatalf("seed %d, kill %d", seed, n+1)
		}
		old.quiet.Store(true)
	}
	x.verifyAll()
	p.stop(t)
	if journal == "" {
		x.check()
	}
	slices.Sort(x.starts)
	t.Logf("%d kills and %d before it served; %d writes, %d flushes; of %d sectors that were on their way %d were there; serving again in %v (p50), %v (longest)",
		kills, x.early, x.writes.Load(), x.flushes.Load(), x.there+x.absent, x.there,
		x.starts[len(x.starts)/2].Round(time.Millisecond), x.starts[len(x.starts)-1].Round(time.Millisecond))
	if x.starts[len(x.starts)/2] > quickStart {
		t.Errorf("half of the starts took more than %v", quickStart)
	}
}

// check looks at the store after an orderly stop.
func (x *killer) check() {
	r, err := store.Check(x.t.Context(), store.Options{Dir: x.dir, Cluster: cluster}, store.CheckOptions{})
	if err != nil || r.Count != 0 || r.Unclean != 0 || r.Chunks < killChunks {
		x.t.Errorf("check of the stopped store: %+v, %v", r, err)
	}
}

// config settles fast or slowly, with much or little room.
func (x *killer) config() serverConfig {
	c := serverConfig{Dir: x.dir}
	if x.rng.IntN(2) == 0 {
		c.SettleAfter, c.SettleEvery = 20*time.Millisecond, 10*time.Millisecond
	}
	if x.rng.IntN(3) == 0 {
		c.MaxOpen, c.MaxActive = 5, 3
	}
	return c
}

// start runs the server, waits until it serves and checks what it reported.
func (x *killer) start() (*process, string) {
	x.t.Helper()
	x.l.forget()
	p := startServer(x.t, x.config())
	addr, report := x.l.waitServing(x.t, p)
	c := dial(x.t, addr, 99)
	defer c.conn.Close()
	wait(x.t, "the server to admit requests", func() bool {
		_, err := c.read(1, id.Epoch(x.epochOf(1)), 0, 4096)
		return !errors.Is(err, fserr.Unavailable)
	})
	x.starts = append(x.starts, time.Since(p.began))
	for k, e := range x.epochs {
		have := report[k]
		if have == nil || have.Joining || have.Epoch < e.acked.Load() || have.Epoch > e.tried.Load() {
			x.t.Fatalf("chunk %v is reported as %v, want epoch %d to %d", k, have, e.acked.Load(), e.tried.Load())
		}
		e.acked.Store(have.Epoch)
	}
	for k, sure := range x.extra {
		if have := report[k]; have == nil && sure {
			x.t.Errorf("chunk %v was made and is gone", k)
		} else if have == nil {
			delete(x.extra, k)
		} else {
			x.extra[k] = true
		}
	}
	for k := range report {
		if x.epochs[k] == nil && !x.extra[k] {
			x.t.Errorf("chunk %v was removed and is there", k)
		}
	}
	return p, addr
}

func (x *killer) epochOf(k id.ChunkID) uint64 {
	if e := x.epochs[k]; e != nil {
		return e.acked.Load()
	}
	return 1
}

// load has clients and the leader change the chunks, and kills the server meanwhile.
func (x *killer) load(p *process) {
	x.l.mu.Lock()
	addr := x.l.at
	x.l.mu.Unlock()
	var work sync.WaitGroup
	for w := range killWriters {
		var mine []*area
		for i := w; i < len(x.areas); i += killWriters {
			mine = append(mine, x.areas[i])
		}
		c, seed := dial(x.t, addr, uint32(w)), x.rng.Uint64()
		work.Go(func() {
			defer c.conn.Close()
			x.write(c, rand.New(rand.NewPCG(seed, 2)), mine)
		})
	}
	seed := x.rng.Uint64()
	work.Go(func() { x.lead(rand.New(rand.NewPCG(seed, 3))) })
	time.Sleep(time.Duration(10+x.rng.IntN(200)) * time.Millisecond)
	p.kill()
	work.Wait()
}

// write changes areas until the server is gone.
func (x *killer) write(c *client, rng *rand.Rand, areas []*area) {
	for {
		a := areas[rng.IntN(len(areas))]
		e := id.Epoch(x.epochOf(a.chunk))
		from := rng.IntN(areaSectors)
		to := min(areaSectors, from+1+rng.IntN(5*sectorsPerBlock))
		if rng.IntN(3) == 0 { // whole blocks
			from, to = from&^(sectorsPerBlock-1), (to+sectorsPerBlock-1)&^(sectorsPerBlock-1)
		}
		var err error
		switch n := rng.IntN(20); {
		case n < 13:
			p := a.begin(from, to, value{seq: x.seq.Add(1)})
			err = c.write(a.chunk, e, a.offset(from), p)
		case n < 15:
			a.begin(from, to, value{seq: x.seq.Add(1), zero: true})
			err = c.punch(a.chunk, e, a.offset(from), uint32(to-from)*sectorSize)
		case n < 18:
			if err = c.flush(a.chunk, e); err == nil {
				x.flushes.Add(1)
				for _, b := range areas {
					if b.chunk == a.chunk {
						b.flush()
					}
				}
			}
			from = to
		default:
			err = x.look(c, a)
			from = to
		}
		switch {
		case err == nil:
			a.end(from, to)
			x.writes.Add(int64(min(1, to-from)))
		case errors.Is(err, fserr.StaleEpoch): // the leader was faster
			a.undo(from, to)
		case errors.Is(err, wire.ErrClosed):
			return
		default:
			x.t.Error(err)
			return
		}
	}
}

// look reads an area of which nothing is under way.
func (x *killer) look(c *client, a *area) error {
	p, err := c.read(a.chunk, id.Epoch(x.epochOf(a.chunk)), a.offset(0), areaSectors*sectorSize)
	if err == nil {
		_, _, err = a.check(p)
	}
	return err
}

// lead makes and removes chunks and raises epochs until the server is gone.
func (x *killer) lead(rng *rand.Rand) {
	for {
		var err error
		switch rng.IntN(4) {
		case 0:
			x.lastID++
			x.extra[x.lastID] = false
			if err = x.l.ask(wire.ChunkCreate, &msg.ChunkCreate{Chunk: uint64(x.lastID), Epoch: 1}); err == nil {
				x.extra[x.lastID] = true
			}
		case 1:
			for k := range x.extra {
				x.extra[k] = false
				if err = x.l.ask(wire.ChunkDelete, &msg.ChunkDelete{Chunks: []uint64{uint64(k)}}); err == nil {
					delete(x.extra, k)
				}
				break
			}
		case 2:
			k := id.ChunkID(1 + rng.IntN(killChunks))
			e := x.epochs[k]
			next := e.acked.Load() + 1
			e.tried.Store(next)
			if err = x.l.ask(wire.ChunkAdopt, &msg.ChunkAdopt{Chunk: uint64(k), Epoch: next}); err == nil {
				e.acked.Store(next)
			}
		}
		switch {
		case errors.Is(err, wire.ErrClosed), errors.Is(err, fserr.Unavailable):
			return
		case err != nil:
			x.t.Error(err)
			return
		}
		time.Sleep(time.Duration(rng.IntN(5)) * time.Millisecond)
	}
}

// verify reads all areas.
func (x *killer) verify(addr string) {
	c := dial(x.t, addr, 100)
	defer c.conn.Close()
	for _, a := range x.areas {
		p, err := c.read(a.chunk, id.Epoch(x.epochOf(a.chunk)), a.offset(0), areaSectors*sectorSize)
		if err == nil {
			var there, absent int
			there, absent, err = a.check(p)
			x.there, x.absent = x.there+there, x.absent+absent
		}
		if err != nil {
			x.t.Error(fmt.Errorf("after a kill: %w", err))
		}
	}
}

// verifyAll has the server read every block of every chunk.
func (x *killer) verifyAll() {
	x.l.mu.Lock()
	addr := x.l.at
	x.l.mu.Unlock()
	c := dial(x.t, addr, 100)
	defer c.conn.Close()
	for k := range x.epochs {
		v := new(msg.ChunkVerifyReply)
		code, err := c.conn.CallMessage(x.t.Context(), wire.ChunkVerify, wire.ClassScrub, &msg.ChunkVerify{Chunk: uint64(k)}, v)
		if err != nil || code != fserr.OK || v.Bad != 0 {
			x.t.Errorf("verify chunk %v: %v, %v, %v", k, v, code, err)
		}
	}
}
