package e2e

import (
	"context"
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
