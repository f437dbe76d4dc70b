package traffic

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/client"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const (
	fileSize = 48 << 20
	readers  = 4 // peers that read from each server at full blast, for repair and for rebalancing each
	depth    = 4 // reads of each that are under way
)

// figures are what a phase of TestSaturation has measured.
type figures struct {
	name          string
	reads, writes []time.Duration // of guests, 4 KiB
	took          time.Duration
	blast         float64 // Mbit/s out of all chunk servers that are not guests' data
	silent        int64   // ms, the longest that a chunk server was not heard from
	notLive       int     // looks at which one was not live
	looks         int
	stood         time.Duration // the longest that this process, which had only to wake up, had to wait for a processor
}

// TestSaturation: peers read for repair and rebalancing as fast as they get it, and every server scrubs, until the links of all chunk servers are full. It prints how guests and heartbeats
// fare with one queue a link, and with classes that share it. VARVE_TRAFFIC is how long the second lasts; no heartbeat may be lost in it.
func TestSaturation(t *testing.T) {
	long := soak(t)
	if !begin(t, 10*time.Minute+long) {
		return
	}
	link := 60
	if s := os.Getenv("VARVE_TRAFFIC_MBIT"); s != "" {
		var err error
		if link, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	short, last := 1500*time.Millisecond, 2500*time.Millisecond
	if long > 0 {
		short, last = min(long, 20*time.Second), long
	}
	c := newCluster(t, 3, nil)
	cl := c.dial(client.RelayNever)
	f := c.create(cl, "image")
	c.write(f, 0, fileSize)
	chunk, epoch := c.chunk(cl, f)
	var all []figures

	// One queue a link, as a host without varve's classes has it: as long as a link of a host is by default, 1,000 frames.
	c.set("net.classify", "off")
	bucket := fmt.Sprintf("root tbf rate %dmbit burst 32kb limit 1500kb", link)
	c.links("qdisc add dev e " + bucket)
	all = append(all, c.phase("links idle", short, f))
	stop := c.blast(chunk, epoch)
	all = append(all, c.phase("full, one queue", short, f))
	stop()

	// Classes. What one queue has done to the cluster is over first, and does not count.
	c.links("qdisc del dev e root")
	c.eventually("the cluster to be whole again", 2*time.Minute, func() bool {
		st, err := c.status()
		return err == nil && c.live() == len(c.spaces) && st.Degraded == 0 && st.Joining == 0
	})
	chunk, epoch = c.chunk(cl, f)
	earlier := c.lost()
	c.set("net.classify", "auto")
	c.set("net.shape.link", strconv.Itoa(link)+"M")
	c.set("net.shape", "on")
	for _, s := range c.spaces {
		c.eventually("queues", 30*time.Second, func() bool { return c.host(s).Shape == "on" })
	}
	stop = c.blast(chunk, epoch)
	shared := c.phase("full, classes", last, f)
	for try := 1; try < 5 && shared.blast < float64(3*link)/4; try++ { // who fills the links was kept from it by a busy machine
		shared = c.phase("full, classes", last, f)
	}
	all = append(all, shared)
	stop()

	t.Logf("links of %d Mbit/s out of 3 chunk servers, 4 KiB reads and writes of one guest in turns, 3 replicas, %s", link, load())
	t.Logf("| links | guest reads/s | read p50 | read p99 | write p50 | write p99 | all but guests, Mbit/s | longest silence | looks at which a server was not live |")
	t.Logf("| --- | --: | --: | --: | --: | --: | --: | --: | --: |")
	for _, x := range all {
		t.Logf("| %s, %v | %.0f | %s | %s | %s | %s | %.0f | %d ms | %d of %d |", x.name, x.took.Round(time.Second), float64(len(x.reads))/x.took.Seconds(),
			quantile(x.reads, 0.5), quantile(x.reads, 0.99), quantile(x.writes, 0.5), quantile(x.writes, 0.99), x.blast, x.silent, x.notLive, x.looks)
	}
	classes := all[2]
	wrong := t.Errorf
	lost := slices.DeleteFunc(c.lost(), func(line string) bool { return slices.Contains(earlier, line) })
	if stood := max(all[0].stood, all[1].stood, classes.stood); stood > time.Second {
		wrong = func(format string, args ...any) {
			t.Logf("the machine stood still for %v, which is no matter of links: "+format, append([]any{stood.Round(time.Millisecond)}, args...)...)
		}
	}
	if got := classes.blast; got < float64(3*link)/4 {
		wrong("the links were not full: %.0f Mbit/s of 3 times %d", got, link)
	}
	if classes.notLive > 0 {
		wrong("with classes a chunk server was not live at %d of %d looks", classes.notLive, classes.looks)
	}
	var drops uint64
	for _, s := range c.spaces {
		for _, i := range c.host(s).Interfaces {
			for _, q := range i.Queues {
				if q.Class == "heartbeat" {
					drops += q.Drops
				}
			}
		}
	}
	t.Logf("heartbeats that queues dropped: %d; servers that were missed, or lost their leader: %d; a process that had only to wake up waited %v at the longest for a processor",
		drops, len(lost), max(all[0].stood, all[1].stood, classes.stood).Round(time.Millisecond))
	if drops > 0 {
		wrong("%d heartbeats were dropped by queues", drops)
	}
	for _, line := range lost {
		wrong("%s", line)
	}
}

// lost returns what logs say of servers that were missed, or that lost their leader.
func (c *cluster) lost() []string {
	lost := append(c.log("mds1", "not heard from"), c.log("mds1", "given up")...)
	for n := range c.spaces {
		lost = append(lost, c.log(fmt.Sprint("cs", n+1), "leader lost")...)
	}
	return lost
}

// links has tc run in the namespace of every chunk server.
func (c *cluster) links(line string) {
	c.t.Helper()
	for _, s := range c.spaces {
		s.Do(func() { tc(c.t, line) })
	}
}

func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "load not known"
	}
	return "load " + strings.Join(strings.Fields(string(b))[:3], " ")
}

func quantile(d []time.Duration, q float64) string {
	if len(d) == 0 {
		return "-"
	}
	slices.Sort(d)
	return fmt.Sprintf("%.1f ms", float64(d[min(int(q*float64(len(d))), len(d)-1)].Microseconds())/1000)
}

// chunk returns the first chunk of a file.
func (c *cluster) chunk(cl *client.Client, f *client.File) (chunk, epoch uint64) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	p, err := cl.GetPolicy(ctx, f.Ino())
	if err != nil || len(p.Chunks) == 0 {
		c.t.Fatalf("chunks of the file: %v, %v", p, err)
	}
	return p.Chunks[0].Id, p.Chunks[0].Epoch
}

// blast has peers read from every chunk server as rebuilds do, until stop, and every server scrub again and again.
func (c *cluster) blast(chunk, epoch uint64) (stop func()) {
	c.t.Helper()
	st, err := c.status()
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i, s := range c.spaces {
		addr := s.Host() + ":2511"
		for n := range 2 * readers {
			lane, class := uint32(2), wire.ClassRepair // as package cs has them
			if n%2 == 1 {
				lane, class = 3, wire.ClassRebalance
			}
			hello := &msg.Hello{Cluster: st.Cluster, Role: msg.Hello_CHUNK_SERVER, Server: uint32(1000 + 100*i + n), Lane: lane}
			conn, _, err := wire.Dial(ctx, addr, hello, nil, wire.Options{Class: class})
			if err != nil {
				c.t.Fatal(err)
			}
			for d := range depth {
				wg.Go(func() {
					for off := uint32(d) << 20; ctx.Err() == nil; off = (off + depth<<20) % fileSize {
						req := wire.DataRequest{Chunk: id.ChunkID(chunk), Offset: off, Length: 1 << 20}
						r, err := conn.Call(ctx, &wire.Frame{Type: wire.Read, Class: class, Epoch: id.Epoch(epoch), Body: req.Append(nil)})
						if err != nil {
							return
						}
						r.Release()
					}
				})
			}
			context.AfterFunc(ctx, func() { _ = conn.Close() })
		}
		wg.Go(func() { scrub(ctx, addr, st.Cluster) })
	}
	return func() { cancel(); wg.Wait() }
}

// scrub has a server read all it has, again and again.
func scrub(ctx context.Context, addr string, cluster []byte) {
	conn, _, err := wire.Dial(ctx, addr, &msg.Hello{Role: msg.Hello_ADMIN, Cluster: cluster}, nil, wire.Options{Class: wire.ClassMeta})
	if err != nil {
		return
	}
	defer conn.Close()
	for ctx.Err() == nil {
		_, _ = conn.CallMessage(ctx, wire.Scrub, wire.ClassMeta, &msg.Scrub{Rate: 1 << 30, SetRate: true, Begin: true}, &msg.Empty{}) // a pass may be under way
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// sentOut returns what each namespace of a chunk server has sent, as its kernel counts it, in bytes.
func (c *cluster) sentOut() (sum uint64) {
	for _, s := range c.spaces {
		s.Do(func() {

			b, err := os.ReadFile(filepath.Join("/proc", "thread-self", "net", "dev"))
			if err != nil {
				return
			}
			for line := range strings.Lines(string(b)) {
				if fields := strings.Fields(line); len(fields) > 9 && fields[0] == "e:" {
					n, _ := strconv.ParseUint(fields[9], 10, 64) // the kernel's own number
					sum += n
				}
			}
		})
	}
	return sum
}

// phase has a guest work for a while, and looks after heartbeats meanwhile.
func (c *cluster) phase(name string, limit time.Duration, f *client.File) figures {
	c.t.Helper()
	x := figures{name: name}
	time.Sleep(500 * time.Millisecond) // until what fills the links does
	var over atomic.Bool
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		for ; !over.Load(); time.Sleep(100 * time.Millisecond) {
			st, err := c.status()
			if err != nil {
				continue
			}
			x.looks++
			live := 0
			for _, s := range st.Servers {
				if s.State == "live" {
					live++
				}
				x.silent = max(x.silent, s.HeardMs)
			}
			if live != len(c.spaces) {
				x.notLive++
			}
		}
	}()
	standing := make(chan struct{})
	go func() {
		defer close(standing)
		for !over.Load() {
			at := time.Now()
			time.Sleep(50 * time.Millisecond)
			x.stood = max(x.stood, time.Since(at)-50*time.Millisecond)
		}
	}()
	before := c.sentOut()
	ctx, cancel := context.WithTimeout(c.t.Context(), limit+time.Minute)
	defer cancel()
	b := make([]byte, 4096)
	start := time.Now()
	var guest uint64
	for n := 0; time.Since(start) < limit; n++ {
		off := rand.Int64N(fileSize/4096) * 4096
		began := time.Now()
		if n%2 == 0 {
			if _, err := f.ReadAt(ctx, b, off); err != nil {
				c.t.Fatalf("%s: read: %v", name, err)
			}
			x.reads, guest = append(x.reads, time.Since(began)), guest+4096
		} else {
			if _, _, err := f.WriteAt(ctx, b, off, false); err != nil {
				c.t.Fatalf("%s: write: %v", name, err)
			}
			x.writes = append(x.writes, time.Since(began))
		}
	}
	x.took = time.Since(start)
	x.blast = (float64(c.sentOut()-before) - float64(guest)) * 8 / 1e6 / x.took.Seconds()
	over.Store(true)
	<-looked
	<-standing
	return x
}
