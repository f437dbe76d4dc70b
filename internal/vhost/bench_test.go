package vhost

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkServer reads and writes 4 KiB at random places of the image that a running server has at VARVE_VHOST=SOCKET, which it overwrites, as a guest that
// waits for interrupts would; VARVE_VHOST_PID is the server's process, whose CPU is counted.
//
//	varve -c NAME vhost --socket /tmp/s images/scratch.img &
//	VARVE_VHOST=/tmp/s VARVE_VHOST_PID=$! go test ./internal/vhost -run x -bench Server -benchtime 50000x
func BenchmarkServer(b *testing.B) {
	socket := os.Getenv("VARVE_VHOST")
	if socket == "" {
		b.Skip("VARVE_VHOST names no socket of a server")
	}
	for _, kind := range []uint32{blkIn, blkOut} {
		for _, depth := range []int{1, 4} { // what four heads hold
			b.Run(fmt.Sprintf("%s/depth=%d", map[uint32]string{blkIn: "read", blkOut: "write"}[kind], depth), func(b *testing.B) {
				g := newGuest(b, testAll|featEventIndex)
				g.queues = g.queues[:1]
				g.connect(socket)
				defer g.c.Close()
				m := g.ask(getConfig, append(le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, 0), 8), 0), make([]byte, 8)...))
				blocks := int64(min(le.Uint64(m.body[12:])/8, 1<<17))
				g.begin()
				q := g.queues[0]
				begun := make([]time.Time, 4)
				took := make([]time.Duration, 0, b.N)
				poll := []unix.PollFd{{Fd: int32(q.call), Events: unix.POLLIN}}
				submit := func() {
					begun[q.slot%4] = time.Now()
					q.submit(kind, uint64(rand.Int64N(blocks)*8), []piece{{dataArea + q.slot%4*4096, 4096}}, false)
				}
				before := cpuTicks()
				b.ResetTimer()
				n := 0
				for ; n < min(depth, b.N); n++ {
					submit()
				}
				for len(took) < b.N {
					le.PutUint16(q.avail()[4+2*ringSize:], q.usedIdx)
					for uint16(load32(q.used(), 0)>>16) == q.usedIdx {
						if _, err := unix.Poll(poll, 10_000); err != nil && err != unix.EINTR {
							b.Fatal(err)
						}
						q.called()
					}
					head, _ := q.wait()
					if s := q.status(int(head / 4)); s != statusOK {
						b.Fatalf("status %d", s)
					}
					took = append(took, time.Since(begun[head/4]))
					if n < b.N {
						q.slot = int(head / 4)
						submit()
						n++
					}
				}
				b.StopTimer()
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-µs")
				b.ReportMetric(float64(cpuTicks()-before)*1e4/float64(b.N), "server-µs/op")
			})
		}
	}
}

// cpuTicks is the CPU time of the server in hundredths of a second.
func cpuTicks() int {
	p, err := os.ReadFile("/proc/" + os.Getenv("VARVE_VHOST_PID") + "/stat")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(p[strings.LastIndexByte(string(p), ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return user + system
}
