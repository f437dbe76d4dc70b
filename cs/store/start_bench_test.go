package store

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"varve/cs/repl"
	"varve/internal/chunk"
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

// BenchmarkStart opens a store of 100,000 chunks and lists all of them, as a server does when it registers.
func BenchmarkStart(b *testing.B) {
	const n = 100000
	o := Options{Dir: b.TempDir(), Cluster: testCluster, SettleEvery: -1}
	sparseChunks(b, o, n)
	for b.Loop() {
		s := mustOpen(b, o)
		println("open", int(b.Elapsed().Milliseconds()))
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
		println("list", int(b.Elapsed().Milliseconds()))
		must(b, s.Close())
	}
}
