package cs

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// benchEnv holds the options, as JSON, of a chunk server on a real disk that a benchmark starts as a process of its own.
const benchEnv = "VARVE_BENCH_CS"

type benchOptions struct {
	Dir      string
	Metas    []string
	Reactors int
	Memory   int64
}

func TestMain(m *testing.M) {
	if o := os.Getenv(benchEnv); o != "" {
		if err := benchProcess(o); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// benchProcess serves until its standard input ends. For every line there it prints the processor time that it has used, in
// nanoseconds, and how many objects it has allocated.
func benchProcess(options string) error {
	o := Options{Logger: quiet()}
	var given benchOptions
	if err := json.Unmarshal([]byte(options), &given); err != nil {
		return err
	}
	o.Dir, o.Metas, o.Reactors, o.Memory = given.Dir, given.Metas, given.Reactors, given.Memory
	s, err := Open(o)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	run := make(chan error, 1)
	go func() { run <- s.Run(ctx) }()
	fmt.Println(uint32(s.ID()), s.Addr(), s.dataPath)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			return err
		}
		fmt.Println(u.Utime.Nano()+u.Stime.Nano(), mallocs())
	}
	cancel()
	return <-run
}

// mallocs is how many objects were allocated in this process.
func mallocs() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs
}

var benchChunk = msg.ChunkCreate{Chunk: 7, Epoch: 1}

// benchServer is such a process.
type benchServer struct {
	id   id.ServerID
	addr string
	in   io.WriteCloser
	out  *bufio.Reader
}

func startBenchServer(b *testing.B, f *fakeLeader, reactors int) *benchServer {
	o := testOptions(f)
	o.Dir, o.Memory = b.TempDir(), DefaultMemory
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	if _, err := Init(ctx, o); err != nil {
		b.Fatal(err)
	}
	env, err := json.Marshal(benchOptions{o.Dir, o.Metas, reactors, o.Memory})
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), benchEnv+"="+string(env))
	cmd.Stderr = os.Stderr
	p := &benchServer{}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if p.in, err = cmd.StdinPipe(); err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		p.in.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	p.out = bufio.NewReader(out)
	words := strings.SplitN(p.line(b), " ", 3)
	n, err := strconv.ParseUint(words[0], 10, 32)
	if err != nil {
		b.Fatal(err)
	}
	p.id, p.addr = id.ServerID(n), words[1]
	b.Log(words[2])
	wait(b, "a heartbeat", func() (ok bool) {
		f.set(func() { ok = f.beats[uint32(p.id)] != nil })
		return ok
	})
	return p
}

func (p *benchServer) line(b *testing.B) string {
	line, err := p.out.ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// used is the processor time that the server has used, and the objects it has allocated.
func (p *benchServer) used(b *testing.B) (cpu, objects float64) {
	if _, err := fmt.Fprintln(p.in); err != nil {
		b.Fatal(err)
	}
	if _, err := fmt.Sscan(p.line(b), &cpu, &objects); err != nil {
		b.Fatal(err)
	}
	return cpu, objects
}

// BenchmarkData is one client over loopback with depth requests under way, and a server in a process of its own.
func BenchmarkData(b *testing.B) {
	for _, op := range []struct {
		name string
		typ  wire.Type
	}{{"read", wire.Read}, {"write", wire.Write}} {
		for _, size := range []int{block, 1 << 20} {
			for _, depth := range []int{1, 32} {
				for _, server := range []struct {
					name     string
					reactors int
				}{{"goroutines", -1}, {"reactors", 0}} {
					b.Run(fmt.Sprintf("server=%s/op=%s/size=%d/depth=%d", server.name, op.name, size, depth), func(b *testing.B) {
						benchData(b, server.reactors, op.typ, size, depth)
					})
				}
			}
		}
	}
}

func benchData(b *testing.B, reactors int, typ wire.Type, size, depth int) {
	f := newFakeLeader(b)
	f.set(func() { f.beatMs = 1000 })
	s := startBenchServer(b, f, reactors)
	f.must(s.id, wire.ChunkCreate, &benchChunk)
	c := dialLane(b, s.addr, 5, 0)
	p := pattern(1, size)
	const span = 32 << 20
	for off := 0; off < span; off += size {
		c.want(c.write(7, 1, uint32(off), p), fserr.OK, "fill")
	}
	bodies := make([][]byte, span/size)
	for i := range bodies {
		r := writeRequest(7, uint32(i*size), p)
		if typ == wire.Read {
			r.Sums = nil
		}
		r.Session = 5
		bodies[i] = r.Append(nil)
	}
	var data []byte
	if typ == wire.Write {
		data = p
	}
	done := make(chan *wire.Call, depth)
	b.SetBytes(int64(size))
	under, sent := 0, 0
	finish := func() {
		call := <-done
		under--
		if call.Err != nil || call.Reply.Code != fserr.OK {
			b.Fatal(call.Err, call.Reply)
		}
		call.Reply.Release()
	}
	cpu, objects := s.used(b)
	start := time.Now()
	for b.Loop() {
		if under == depth {
			finish()
		}
		i := (sent * 7919) % len(bodies)
		c.c.Start(&wire.Frame{Type: typ, Class: wire.ClassGuest, Epoch: 1, Body: bodies[i], Data: data}, done)
		sent++
		under++
	}
	for under > 0 {
		finish()
	}
	n := float64(sent)
	b.ReportMetric(n/time.Since(start).Seconds(), "ops/s")
	cpu2, objects2 := s.used(b)
	b.ReportMetric((cpu2-cpu)/n, "server-ns/op")
	b.ReportMetric((objects2-objects)/n, "server-allocs/op")
}
