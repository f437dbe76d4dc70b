package cs

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

// goroutinesEnv has the tests of this package run with connections that goroutines serve, as where there is no ring.
const goroutinesEnv = "VARVE_TEST_CS_GOROUTINES"

var testReactors = func() int {
	if os.Getenv(goroutinesEnv) != "" {
		return -1
	}
	return 2
}()

// dataTests are those in which requests are served.
const dataTests = "Read|Write|Data|Cut|Lane|Fence|Rot|Forward|Shutdown|Memory|Hang|Punch|Scratch|Rebuild|Garbage|Lease|Capabilit|Durable"

// TestWithoutReactors runs the tests of requests once more without reactors.
func TestWithoutReactors(t *testing.T) {
	if testReactors < 0 {
		t.Skip("this is that run")
	}
	if testing.Short() {
		t.Skip("short")
	}
	within := time.Duration(0) // no limit, if there is none here
	if end, ok := t.Deadline(); ok {
		within = time.Until(end)
	}
	cmd := exec.Command(os.Args[0], "-test.timeout="+within.String(), "-test.run="+dataTests)
	cmd.Env = append(os.Environ(), goroutinesEnv+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
