package e2e

import (
	"hash/fnv"
	"os"
	"testing"
)

// way is how the mounts of a test's cluster work.
type way struct {
	transport string // dev or uring
	cache     bool   // with a read cache
}

const uringSwitch = "/sys/module/fuse/parameters/enable_uring"

// wayOf chooses for a test, by its name, so that each of the four ways is used by about as many tests. VARVE_TRANSPORT=dev|uring and VARVE_CACHE=0|1 have all
// tests use one: `make ways` runs the suite in all four.
func wayOf(t *testing.T) way {
	h := fnv.New32a()
	h.Write([]byte(t.Name()))
	n := h.Sum32()
	w := way{transport: "dev", cache: n&2 != 0}
	if n&1 != 0 {
		w.transport = "uring"
	}
	if s := os.Getenv("VARVE_TRANSPORT"); s != "" {
		w.transport = s
	}
	if s := os.Getenv("VARVE_CACHE"); s != "" {
		w.cache = s == "1"
	}
	if w.transport == "uring" {
		if err := os.WriteFile(uringSwitch, []byte("Y"), 0); err != nil {
			t.Logf("no FUSE over io_uring here, /dev/fuse instead: %v", err)
			w.transport = "dev"
		}
	}
	return w
}
