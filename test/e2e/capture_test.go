package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// capture records what a mount does until stop is called, which returns the file.
func (c *cluster) capture(mount, glob string) (stop func() string) {
	c.t.Helper()
	path := filepath.Join(c.t.TempDir(), "mount.capture")
	cmd := exec.Command(varveBinary, "perf", "capture", mount, "--path", glob, "--out", path)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	c.t.Cleanup(func() { _ = cmd.Process.Kill() }) // it has ended, normally
	c.wait(time.Minute, "the capture to begin", func() error {
		_, err := os.Stat(path) // made when the mount has agreed
		return err
	})
	return func() string {
		c.t.Helper()
		if err := cmd.Process.Signal(unix.SIGINT); err != nil {
			c.t.Fatal(err)
		}
		select {
		case err := <-ended:
			if err != nil {
				c.t.Fatalf("perf capture: %v\n%s", err, &out)
			}
		case <-time.After(30 * time.Second):
			c.t.Fatalf("perf capture goes on after SIGINT\n%s", &out)
		}
		c.t.Logf("%s", bytes.TrimSpace(out.Bytes()))
		return path
	}
}

// replayResult is what perf replay --json prints.
type replayResult struct {
	Steps    int           `json:"operations"`
	Done     int           `json:"done"`
	Length   time.Duration `json:"length_ns"`
	Wanted   time.Duration `json:"wanted_ns"`
	Elapsed  time.Duration `json:"elapsed_ns"`
	Slip     latencies     `json:"slip"`
	Recorded loads         `json:"recorded"`
	Replayed loads         `json:"replayed"`
}

type loads struct{ Total, Read, Write, Fsync struct{ Latency latencies } }

type latencies struct {
	P50 time.Duration `json:"p50_ns"`
	P99 time.Duration `json:"p99_ns"`
	Max time.Duration `json:"max_ns"`
}

// replay replays a capture, and returns an error unless all of it was done in the time that it should take, or in a share of it more or less. It may
// take longer by as much as an operation began late or took, and less by as much as one took when it was recorded: who else uses the machine decides
// that. A shorter disturbance counts only if it happens each time.
func (c *cluster) replay(path, mount string, speed, share float64) error {
	const tries = 5
	for try := 1; ; try++ {
		out, err := c.varve(5*time.Minute, "perf", "replay", path, "--target", "mount:"+mount, "--fill", "--speed", strconv.FormatFloat(speed, 'g', -1, 64), "--json")
		if err != nil {
			return fmt.Errorf("perf replay: %w\n%s", err, out)
		}
		var r replayResult
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			return fmt.Errorf("%s (%w)", out, err)
		}
		if r.Done != r.Steps || r.Steps == 0 {
			return fmt.Errorf("replay did %d of %d operations: %s", r.Done, r.Steps, out)
		}
		off := r.Elapsed.Seconds()/r.Wanted.Seconds() - 1
		c.t.Logf("replay at speed %g: %d operations of %v in %v, %+.2f %% off; late p50 %v, p99 %v; read p50 %v recorded, %v replayed; write p50 %v, %v", speed, r.Done,
			r.Length.Round(time.Millisecond), r.Elapsed.Round(time.Millisecond), 100*off, r.Slip.P50, r.Slip.P99, r.Recorded.Read.Latency.P50, r.Replayed.Read.Latency.P50,
			r.Recorded.Write.Latency.P50, r.Replayed.Write.Latency.P50)
		late := r.Slip.Max + max(r.Replayed.Total.Latency.Max, r.Replayed.Fsync.Latency.Max)
		soon := max(r.Recorded.Total.Latency.Max, r.Recorded.Fsync.Latency.Max)
		room := time.Duration(min(share, 1e3) * float64(r.Wanted))
		if r.Elapsed <= r.Wanted+room+late && r.Elapsed >= r.Wanted-room-soon {
			return nil
		}
		if try == tries {
			return fmt.Errorf("replay %d took %v, want %v within %v %%, and so it was with those before", try, r.Elapsed, r.Wanted, 100*share)
		}
	}
}

// replayBoth replays a capture as it was and at four times the speed while the test goes on; the function that it returns waits for that.
func (c *cluster) replayBoth(path, mount string) (wait func()) {
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		err = errors.Join(c.replay(path, mount, 1, 0.05), c.replay(path, mount, 4, 0.05))
	}()
	c.t.Cleanup(func() { <-done })
	return func() {
		c.t.Helper()
		<-done
		if err != nil {
			c.t.Error(err)
		}
	}
}

// TestCapture: what fio does on one mount is captured while it does it, and replayed on another, by way of the kernel and without. What fio says that
// it did is what was captured.
func TestCapture(t *testing.T) {
	need(t, "fio")
	c := up(t, 1, 2, 2, "2:1")
	sh(t, c.mounts[0], time.Minute, "mkdir vm && truncate -s 16m vm/disk.img")
	stop := c.capture(c.mounts[0], "vm/*.img")
	sh(t, c.mounts[0], time.Minute, "echo other > other.txt; fio --name=load --filename=vm/disk.img --size=16m --rw=randrw --bs=4k --ioengine=libaio --iodepth=4 --direct=1 "+
		"--rate_iops=150 --io_size=2400k --fsync=32 --output-format=json --output="+c.dir+"/fio.json")
	path := stop()
	var fio struct {
		Jobs []struct {
			Read, Write struct {
				Total int `json:"total_ios"`
			}
		}
	}
	b, err := os.ReadFile(filepath.Join(c.dir, "fio.json"))
	if err == nil {
		err = json.Unmarshal(b, &fio)
	}
	if err != nil || len(fio.Jobs) != 1 {
		t.Fatalf("%v: %s", err, b)
	}
	var shown struct {
		Kinds []struct {
			Name  string
			Count int `json:"operations"`
			Bytes int64
		}
		Files []struct{ Name string }
	}
	if err := json.Unmarshal([]byte(c.must(time.Minute, "perf", "trace", "show", path, "--json")), &shown); err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, k := range shown.Kinds {
		count[k.Name] = k.Count
	}
	if j := fio.Jobs[0]; count["read"] != j.Read.Total || count["write"] != j.Write.Total || count["fsync"] == 0 {
		t.Errorf("captured %v, fio says %+v", count, j)
	}
	if len(shown.Files) != 1 || shown.Files[0].Name != "vm/disk.img" {
		t.Errorf("files %+v", shown.Files)
	}
	if err := c.replay(path, c.mounts[1], 4, math.Inf(1)); err != nil { // half a second: whatever else runs decides how long it takes
		t.Error(err)
	}
	c.must(time.Minute, "-c", c.name(), "perf", "replay", path, "--target", "cluster:/vm", "--speed", "max")
	c.must(time.Minute, "perf", "trace", "convert", path, path+".fio", "--dir", c.mounts[1]+"/varve-replay")
	sh(t, "/", time.Minute, "fio --name=again --read_iolog="+path+".fio --ioengine=psync --replay_no_stall=1 --output="+c.dir+"/again.txt")

	// The process that serves the mount is killed while it is captured: what was written until then can be read.
	stop2 := exec.Command(varveBinary, "perf", "capture", c.mounts[0], "--out", path+".2")
	if err := stop2.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- stop2.Wait() }()
	c.wait(time.Minute, "the capture to begin", func() error { _, err := os.Stat(path + ".2"); return err })
	sh(t, c.mounts[0], time.Minute, "dd if=/dev/zero of=vm/disk.img bs=4k count=100 conv=notrunc,fsync status=none")
	writes := func() int {
		if err := json.Unmarshal([]byte(c.must(time.Minute, "perf", "trace", "show", path+".2", "--json")), &shown); err != nil {
			t.Fatal(err)
		}
		for _, k := range shown.Kinds {
			if k.Name == "write" {
				return k.Count
			}
		}
		return 0
	}
	c.wait(time.Minute, "what was captured to be in the file", func() error {
		if out, _ := c.varve(time.Minute, "perf", "trace", "show", path+".2"); !strings.Contains(out, "write") { // it may be empty as yet
			return errors.New(out)
		}
		if n := writes(); n < 100 {
			return fmt.Errorf("%d writes", n)
		}
		return nil
	})
	c.kill("mount1")
	select {
	case err := <-ended:
		if err == nil {
			t.Error("perf capture says that all is well, though the mount was killed")
		}
	case <-time.After(30 * time.Second):
		_ = stop2.Process.Kill()
		t.Fatal("perf capture goes on after the mount was killed")
	}
	if n := writes(); n != 100 {
		t.Errorf("%d writes were captured before the mount was killed, want 100", n)
	}
}
