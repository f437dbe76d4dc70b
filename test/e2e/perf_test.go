package e2e

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/perf"
	"varve/perf/profile"
)

// TestPerfTargets: loads on names at the metadata servers and through a mount, while the leader is killed, do every acknowledged change once; and the
// profiles of names and of clones run on a mount, and say how its files are cloned.
func TestPerfTargets(t *testing.T) {
	need(t)
	c := up(t, 3, 1, 1, "1:1")
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	servers := "mds:" + strings.Join(c.metaAddrs(), ",")
	names := func(target string) (*perf.Result, error) {
		kind, _, _ := strings.Cut(target, ":")
		return perf.Run(ctx, perf.Options{
			Target: target, Label: kind, Metadata: "create:30,stat:10,lookup:10,list:1,rename:20,delete:30", Files: 100, Jobs: 6, QD: 2,
			Duration: soak(t, 5*time.Second), Verify: true, Seed: uint64(time.Now().UnixNano()),
		})
	}
	type outcome struct {
		target string
		res    *perf.Result
		err    error
	}
	ended := make(chan outcome, 2)
	for _, target := range []string{servers, "mount:" + c.mounts[0]} {
		go func() {
			res, err := names(target)
			ended <- outcome{target, res, err}
		}()
	}
	time.Sleep(1500 * time.Millisecond)
	leader, err := c.leader()
	if err != nil {
		t.Fatal(err)
	}
	old := c.kill(leader)
	for range cap(ended) {
		switch o := <-ended; {
		case o.err != nil:
			t.Errorf("%s: %v", o.target, o.err)
		case !o.res.OK() || o.res.Stopped != "" || o.res.Verify.ReadBack != "done" || o.res.Verify.Checked == 0:
			t.Errorf("%s: %q, %+v, %+v", o.target, o.res.Stopped, o.res.Errors, o.res.Verify)
		default:
			t.Logf("%s: %d operations, the slowest took %v when %s was killed; %d names verified", o.target, o.res.Total.Count, o.res.Total.Latency.Max, leader, o.res.Verify.Checked)
		}
	}
	c.waitRestart(leader, old)
	for _, run := range []struct {
		profile, target string
	}{{"metadata", servers}, {"metadata", "mount:" + c.mounts[0]}, {"clone-and-run", "mount:" + c.mounts[0]}} {
		p, err := profile.Find(run.profile)
		if err != nil {
			t.Fatal(err)
		}
		res, err := p.Scale(0.02, 0.02).Run(ctx, run.target, nil)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if err := res.WriteText(&b); err != nil {
			t.Fatal(err)
		}
		if !res.OK() || len(res.Phases) != len(p.Phases) {
			t.Errorf("%s on %s:\n%s", run.profile, run.target, &b)
			continue
		}
		_, summary, _ := strings.Cut(b.String(), "phase  ")
		t.Logf("%s on %s:\nphase  %s", run.profile, run.target, summary)
		if run.profile == "clone-and-run" && !strings.Contains(summary, "clone by ") {
			t.Error("it is not said how clones are made")
		}
	}
	if out, err := c.varve(30*time.Second, "perf", "run", "--target", servers+"/varve-perf-names.mds.0", "--meta", "stat", "--files", "64", "--for", "200ms"); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestCloneWays: files are cloned by sharing where the filesystem does that, and by copying where not, and the result says by which.
func TestCloneWays(t *testing.T) {
	need(t, "mkfs.xfs", "mkfs.ext4", "mount")
	for fs, want := range map[string]string{"xfs": "FICLONE", "ext4": "copy_file_range"} {
		t.Run("fs="+fs, func(t *testing.T) {
			dir := t.TempDir()
			image, mnt := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
			f, err := os.Create(image)
			if err == nil {
				err = errors.Join(f.Truncate(1<<30), f.Close(), os.Mkdir(mnt, 0o700))
			}
			if err != nil {
				t.Fatal(err)
			}
			force := map[string]string{"xfs": "-f", "ext4": "-F"}[fs]
			if out, err := exec.Command("mkfs."+fs, "-q", force, image).CombinedOutput(); err != nil {
				t.Fatalf("mkfs: %v\n%s", err, out)
			}
			if out, err := exec.Command("mount", "-o", "loop", image, mnt).CombinedOutput(); err != nil {
				t.Skipf("no %s here: mount: %v\n%s", fs, err, out)
			}
			defer func() {
				if out, err := exec.Command("umount", mnt).CombinedOutput(); err != nil {
					t.Errorf("umount: %v\n%s", err, out)
					_ = exec.Command("umount", "-l", mnt).Run()
				}
			}()
			golden := perf.Options{Target: "mount:" + mnt, Label: "golden", RW: perf.Write, BlockSize: 1 << 20, Size: 16 << 20}
			if res, err := perf.Run(t.Context(), golden); err != nil || !res.OK() {
				t.Fatalf("%v: %+v", err, res)
			}
			res, err := perf.Run(t.Context(), perf.Options{Target: "mount:" + mnt, Label: "vm", CloneOf: "golden", Jobs: 4, Verify: true})
			if err != nil || !res.OK() || res.ClonedBy != want || res.Total.Count != 4 || res.Verify.Checked != 4*4096 {
				t.Fatalf("%v: %+v", err, res)
			}
			work := perf.Options{Target: "mount:" + mnt, Label: "vm", RW: perf.RandRW, Jobs: 4, QD: 4, Size: 16 << 20, Verify: true}
			if res, err := perf.Run(t.Context(), work); err != nil || !res.OK() { // what one clone writes, no other has
				t.Fatalf("%v: %+v", err, res)
			}
			t.Logf("%s: clones of 16 MiB by %s took %v at most", fs, res.ClonedBy, res.Total.Latency.Max)
		})
	}
}
