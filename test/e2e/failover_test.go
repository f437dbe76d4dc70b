package e2e

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestFailover kills the leader a few times while files are made: nothing that was acknowledged is lost, nothing is done twice, and
// somebody serves again soon. `go run ./bench failover` does it 50 times.
func TestFailover(t *testing.T) {
	need(t)
	t.Parallel() // it waits more than it works
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "run", "varve/bench", "failover", "--kills", "5", "--dir", t.TempDir())
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_, line, ok := strings.Cut(string(out), "time without service: ")
	_, worst, _ := strings.Cut(strings.TrimSpace(line), "max ")
	d, perr := time.ParseDuration(worst)
	if !ok || perr != nil {
		t.Fatalf("no result in\n%s", out)
	}
	t.Logf("time without service: %s", strings.TrimSpace(line))
	if d > maxStall {
		t.Errorf("nothing was served for %v", d)
	}
}
