package store

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"varve/cs/repl"
	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/id"
)

// sparseChunks makes chunk files with a header and nothing else, as n chunks that were created and never written to look
// but for the tables, which are holes here so that 100,000 of them fit on a laptop.
func sparseChunks(tb testing.TB, o Options, n int) {
	tb.Helper()
	s := mustOpen(tb, o)
	must(tb, s.Close())
	h := header{cluster: o.Cluster, rec: repl.Record{Epoch: 1, State: repl.Serving}, sequence: 1}
	var zero [pageSize]byte
	for i := range h.pages {
		h.pages[i] = chunk.Sum(zero[:])
	}
	b := make([]byte, slotSize)
	for c := id.ChunkID(1); c <= id.ChunkID(n); c++ {
		h.chunk = c
		h.encode(b)
		f, err := os.OpenFile(filepath.Join(o.Dir, "chunks", fmt.Sprintf("%02x", uint8(c)), c.String()+".chk"), os.O_RDWR|os.O_CREATE, 0o600)
		must(tb, err)
		must(tb, f.Truncate(fileSize))
		_, err = f.WriteAt(b, 0)
		must(tb, err)
		must(tb, f.Close())
	}
}

// BenchmarkStart opens a store of 100,000 chunks and lists all of them, as a server does when it registers: after a clean stop, after
// SIGKILL, and when it must read every header since there is no index.
func BenchmarkStart(b *testing.B) {
	const n = 100000
	o := Options{Dir: b.TempDir(), Cluster: testCluster, SettleEvery: -1, ScrubRate: -1}
	sparseChunks(b, o, n)
	for _, after := range []string{"first", "stop", "kill"} {
		b.Run("chunks=100000/after="+after, func(b *testing.B) {
			var open, list float64
			for b.Loop() {
				if after == "first" {
					must(b, removeIndex(disk.OS{}, o.Dir))
				}
				start := time.Now()
				s := mustOpen(b, o)
				open += time.Since(start).Seconds()
				got := 0
				for after, more := id.ChunkID(0), true; more; {
					var infos []Info
					infos, more = s.List(after, 4096)
					got += len(infos)
					after = infos[len(infos)-1].ID
				}
				if got != n {
					b.Fatalf("%d chunks listed, want %d", got, n)
				}
				list += time.Since(start).Seconds()
				if after != "kill" {
					must(b, s.Close())
					continue
				}
				must(b, s.Adopt(id.ChunkID(b.N%n+1), id.Epoch(time.Now().Unix())))
				close(s.stop)
				s.settler.Wait()
				for _, e := range s.open {
					must(b, e.img.f.Close())
				}
				must(b, s.closeFiles())
				must(b, s.unlock())
			}
			b.ReportMetric(open/float64(b.N)*1e3, "ms-open/op")
			b.ReportMetric(list/float64(b.N)*1e3, "ms-listed/op")
		})
	}
}
