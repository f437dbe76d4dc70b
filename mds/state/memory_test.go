package state

import (
	"os"
	"runtime"
	"strconv"
	"testing"
)

// maxFileBytes is what a file with one chunk and one name of 24 bytes may take in memory.
const maxFileBytes = 250

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what finalizers and the table of replica sets held on to
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestMemory bounds the memory of a file. VARVE_MEMORY_FILES says how many there are, such as 10000000, for which it takes 3 GB.
func TestMemory(t *testing.T) {
	n := uint64(200_000)
	if raceDetector {
		n = 20_000
	}
	if v := os.Getenv("VARVE_MEMORY_FILES"); v != "" {
		var err error
		if n, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	before := heap()
	s := files(n)
	bytes := float64(heap()-before) / float64(n)
	t.Logf("%d files: %.1f bytes each", n, bytes)
	if bytes > maxFileBytes {
		t.Errorf("a file takes %.1f bytes, at most %d", bytes, maxFileBytes)
	}
	runtime.KeepAlive(s)
}
