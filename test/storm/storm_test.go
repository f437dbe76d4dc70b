package storm

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/test/netns"
	"varve/test/replicas"
)

const (
	usual = 12 * time.Second // of troubles, without VARVE_SOAK
	brief = 3 * time.Second  // of a stop or a cut at most, without VARVE_SOAK
	long  = 9 * time.Second  // with it: longer than a chunk server goes on without its leader
	// stall bounds how long an operation may take on a busy machine. What was longest is published.
	stall = 60 * time.Second
)

// trouble happens to one server and is over when do returns.
type trouble struct {
	name string
	do   func(c *cluster, s *server)
}

// troubles are all there are; stops and cuts last up to longest.
func troubles(longest time.Duration) []trouble {
	all := []trouble{
		{"killed", func(c *cluster, s *server) {
			c.kill(s)
			time.Sleep(rand.N(2 * time.Second))
			c.start(s)
		}},
		{"stopped", func(c *cluster, s *server) {
			for _, sig := range []unix.Signal{unix.SIGSTOP, unix.SIGCONT} {
				if err := s.cmd.Process.Signal(sig); err != nil {
					c.t.Errorf("%v to %s: %v", sig, s.name, err)
				}
				if sig == unix.SIGSTOP {
					time.Sleep(rand.N(longest))
				}
			}
		}},
	}
	for _, x := range netns.Cuts {
		all = append(all, trouble{x.Name, func(c *cluster, s *server) {
			x.Down(c.t, s.space)
			time.Sleep(rand.N(longest))
			x.Up(c.t, s.space)
		}})
	}
	return all
}

// app is something that people run, until ctx ends, or is killed when test ends. It returns what it did, for people.
type app struct {
	name string
	run  func(ctx, test context.Context, dir string) (string, error)
}

// fio writes at random with its own checksums, and verifies.
func fio(ctx, test context.Context, dir string) (string, error) {
	rounds, worst := 0, time.Duration(0)
	for ; ctx.Err() == nil; rounds++ {
		cmd := exec.CommandContext(test, "fio", "--name=v", "--filename="+filepath.Join(dir, "fio"), "--size=24m", "--bsrange=4k-64k", "--rw=randwrite", "--direct=1",
			"--ioengine=io_uring", "--iodepth=8", "--fsync=16", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0", "--output-format=json")
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("round %d: %w: %s", rounds, err, out)
		}
		var r struct {
			Jobs []struct {
				Error int `json:"error"`
				Read  struct {
					Lat struct{ Max float64 } `json:"clat_ns"`
				} `json:"read"`
				Write struct {
					Lat struct{ Max float64 } `json:"clat_ns"`
				} `json:"write"`
			} `json:"jobs"`
		}
		if err := json.Unmarshal(out, &r); err != nil || len(r.Jobs) != 1 || r.Jobs[0].Error != 0 {
			return "", fmt.Errorf("round %d: fio said %s (%v)", rounds, out, err)
		}
		worst = max(worst, time.Duration(r.Jobs[0].Read.Lat.Max), time.Duration(r.Jobs[0].Write.Lat.Max))
	}
	if worst > stall {
		return "", fmt.Errorf("an operation took %v", worst)
	}
	return fmt.Sprintf("%d rounds of 24 MiB written and verified, longest operation %v", rounds, worst.Round(time.Millisecond)), nil
}

// sqlite commits transactions, and in the end has all of them.
func sqlite(ctx, test context.Context, dir string) (string, error) {
	db := filepath.Join(dir, "db")
	sql := func(s string) (string, error) {
		out, err := exec.CommandContext(test, "sqlite3", "-bail", db, s).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("sqlite3: %w: %s", err, out)
		}
		return strings.TrimSpace(string(out)), err
	}
	if _, err := sql("pragma journal_mode=wal; create table t(id integer primary key, v blob);"); err != nil {
		return "", err
	}
	n, worst := 0, time.Duration(0)
	for ctx.Err() == nil {
		n++
		begin := time.Now()
		if _, err := sql(fmt.Sprintf("pragma synchronous=full; begin; insert into t values(%d, randomblob(3000)); update t set v=randomblob(500) where id%%7=%d; commit;", n, n%7)); err != nil {
			return "", fmt.Errorf("transaction %d: %w", n, err)
		}
		worst = max(worst, time.Since(begin))
	}
	out, err := sql("pragma integrity_check; select count(*) from t;")
	if err != nil || out != "ok\n"+strconv.Itoa(n) {
		return "", fmt.Errorf("%d transactions were committed, the database says %q: %v", n, out, err)
	}
	return fmt.Sprintf("%d transactions, longest %v", n, worst.Round(time.Millisecond)), nil
}

// TestStorm lets one trouble after another happen to one server at a time, while fio, sqlite and a virtual machine work.
func TestStorm(t *testing.T) {
	if os.Getenv("VARVE_E2E") == "" {
		t.Skip("end-to-end tests run with VARVE_E2E=1 (make e2e)")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes network namespaces, and mounts")
	}
	for _, p := range []string{"ip", "fio", "sqlite3"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("the command %s is missing", p)
		}
	}
	d, longest := usual, brief
	if s := os.Getenv("VARVE_SOAK"); s != "" {
		var err error
		if d, err = time.ParseDuration(s); err != nil {
			t.Fatalf("VARVE_SOAK=%s: %v", s, err)
		}
		longest = long
	}
	if os.Getenv(netns.Binary) == "" {
		netns.Again(t, d+10*time.Minute)
		return
	}
	vm, missing := newMachine(t)
	c := newCluster(t, 3, 4)
	watch := &probe{worst: make(map[string]time.Duration), all: make(map[string]time.Duration)}
	apps := []app{{"probe", watch.run}, {"fio", fio}, {"sqlite", sqlite}}
	if vm == nil {
		t.Log("without a virtual machine:", missing)
	} else {
		image := filepath.Join(c.mount, "image")
		if err := os.WriteFile(image, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(image, 64<<20); err != nil {
			t.Fatal(err)
		}
		apps = append(apps, app{"guest", func(_, test context.Context, _ string) (string, error) { return vm.run(test, image, d) }})
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	says, errs := make([]string, len(apps)), make([]error, len(apps))
	failed := make(chan struct{}, len(apps))
	for i, a := range apps {
		wg.Go(func() {
			if says[i], errs[i] = a.run(ctx, t.Context(), c.mount); errs[i] != nil {
				failed <- struct{}{}
			}
		})
	}
	counts, all := make(map[string]int), troubles(longest)
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for n, end := 0, time.Now().Add(d); time.Now().Before(end) && len(failed) == 0 && !t.Failed(); n++ {
		// Every kind comes to both kinds of servers.
		x, s := all[n/2%len(all)], c.servers[rand.IntN(len(c.servers)-c.chunk)]
		if n%2 == 0 {
			s = c.servers[len(c.servers)-1-rand.IntN(c.chunk)]
		}
		began := time.Now()
		x.do(c, s)
		counts[x.name]++
		over := time.Now()
		c.wait(90*time.Second, fmt.Sprintf("the cluster to be whole after %s was %s", s.name, x.name), c.healthy)
		whole := time.Since(over)
		time.Sleep(300 * time.Millisecond) // what still waited is told
		t.Logf("%s %s for %v, whole after another %v; %s", s.name, x.name, over.Sub(began).Round(10*time.Millisecond), whole.Round(10*time.Millisecond), watch.take())
	}
	cancel()
	wg.Wait()
	for i, a := range apps {
		if errs[i] != nil {
			t.Errorf("%s: %v", a.name, errs[i])
		} else {
			t.Logf("%s: %s", a.name, says[i])
		}
	}
	t.Logf("troubles: %v", counts)
	c.wait(90*time.Second, "the cluster to be whole", c.healthy)
	// A copy of a file that was deleted while its server was away goes a minute after a new leader has heard of it.
	c.wait(150*time.Second, "replicas to be equal", func() error {
		st, err := c.status()
		if err != nil {
			return err
		}
		chunks, blocks, err := replicas.Compare(st, 3, nil)
		if err == nil {
			t.Logf("%d chunks with 3 equal replicas each, %d blocks verified", chunks, blocks)
		}
		return err
	})
}
