package sim

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"varve/internal/boottime"
	"varve/internal/planted"
)

// Runs are made in processes of their own, one thread each: a bubble of package testing/synctest ends only when all its goroutines have, and Raft
// leaves some behind that nobody answers any more; a run that hangs or panics is known by its seed; and two processes use two cores.
const (
	childEnv = "VARVE_SIM_CHILD" // FROM:COUNT:BUG, for a process that makes runs
	seedEnv  = "VARVE_SIM_SEED"  // the seed to run alone, with its story
	seedsEnv = "VARVE_SIM_SEEDS" // how many seeds
	countEnv = "VARVE_SIM_COUNT" // how often, with VARVE_SIM_SEED
	fromEnv  = "VARVE_SIM_FROM"  // the first
	allEnv   = "VARVE_SIM_ALL"   // tell the story of runs that find nothing, too
	coverEnv = "VARVE_SIM_COVER" // list what runs came to, and how many of them
	cpuEnv   = "VARVE_SIM_CPU"   // file for a CPU profile of the process
)

// defaultFor is how long the runs that are made by default may take: a busy machine makes fewer of them. One process's runs are ended in any case.
const defaultFor = 32 * time.Second

// hang is after how much real time a run that has not ended is taken for hanging: virtual time does not go on.
const hang = 2 * time.Minute

func number(t *testing.T, name string, otherwise uint64) uint64 {
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestChild makes runs, and prints what became of them. It is what the other tests start.
func TestChild(t *testing.T) {
	spec := os.Getenv(childEnv)
	if spec == "" {
		t.Skip("no test by itself")
	}
	var from, count uint64
	var bug string
	if _, err := fmt.Sscanf(strings.ReplaceAll(spec, ":", " "), "%d %d %s", &from, &count, &bug); err != nil {
		t.Fatalf("%s: %v", spec, err)
	}
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(400)
	if name := os.Getenv(cpuEnv); name != "" {
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	boottime.Replace(func() time.Duration { return time.Duration(time.Now().UnixNano()) })
	out := bufio.NewWriter(os.Stdout)
	say := func(what string, v any) {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(out, "%s %s\n", what, b)
		out.Flush()
	}
	synctest.Test(t, func(t *testing.T) {
		tp := NewTemplates(dir)
		for seed := from; seed < from+count; seed++ {
			say("begin", seed)
			var story bytes.Buffer
			o := Options{Seed: seed, Log: &story, All: os.Getenv(allEnv) != "", meddle: bugs[bug], incline: inclined[bug]}
			if o.meddle == nil {
				o.meddle = inclining[bug]
			}
			o.Begin = func() {
				//lint:ignore SA1019 for what Raft draws; child sets GODEBUG so that it has an effect
				rand.Seed(int64(seed))
				planted.Set(bug)
			}
			planted.Set("")
			if os.Getenv(seedEnv) == "" {
				o.Log = nil
			}
			r, err := Run(t.Context(), tp, o)
			if err != nil {
				say("error", err.Error())
				break
			}
			if story.Len() > 0 {
				fmt.Fprint(out, "story\n", story.String(), "end of story\n")
			}
			say("report", r)
		}
		say("done", nil)
		pprof.StopCPUProfile()
		_ = os.RemoveAll(dir)
		os.Exit(0) // out of the bubble
	})
}

// child makes runs in a process of its own, and tells each report as it comes. Findings of the process itself become a report's.
func child(t *testing.T, from, count uint64, bug string, report func(*Report)) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestChild$", "-test.timeout=0")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d:%d:%s", childEnv, from, count, bug), "GODEBUG=randseednop=0,asyncpreemptoff=1",
		"TMPDIR="+t.TempDir()) // the process ends without its clean-up
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Error(err)
		return
	}
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return
	}
	watch := time.AfterFunc(hang, func() { _ = cmd.Process.Signal(syscall.SIGQUIT) }) // prints all stacks
	defer watch.Stop()
	seed, done, story := from, false, false
	var rest []string
	lines := bufio.NewScanner(pipe)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		line := lines.Text()
		if story && line != "end of story" {
			fmt.Println(line)
			continue
		}
		what, body, _ := strings.Cut(line, " ")
		switch what {
		case "begin":
			watch.Reset(hang)
			if err := json.Unmarshal([]byte(body), &seed); err != nil {
				t.Error(err)
			}
		case "story":
			story = true
		case "end":
			story = false
		case "error":
			t.Errorf("seed %d: %s", seed, body)
		case "report":
			r := new(Report)
			if err := json.Unmarshal([]byte(body), r); err != nil {
				t.Errorf("seed %d: %v", seed, err)
				continue
			}
			report(r)
		case "done":
			done = true
		default:
			rest = append(rest, line)
		}
	}
	if err := cmd.Wait(); err != nil || !done {
		report(&Report{Seed: seed, Findings: []string{fmt.Sprintf("the process ended: %v\n%s\n%s", err, strings.Join(rest, "\n"), stderr.String())}})
	}
}

// replay is the line that runs a seed alone.
func replay(seed uint64) string {
	return fmt.Sprintf("%s=%d go test ./internal/sim -run 'TestSeeds$' -count 1 -v", seedEnv, seed)
}

// TestSeeds makes 2,000 runs by default, or as many as there is time for, or as VARVE_SIM_SEEDS says. It tells how many different conditions they met, and
// with VARVE_SIM_COVER=1 which.
func TestSeeds(t *testing.T) {
	from, seeds := number(t, fromEnv, 1), number(t, seedsEnv, defaultSeeds)
	if os.Getenv(seedEnv) != "" {
		for range number(t, countEnv, 1) {
			child(t, number(t, seedEnv, 1), 1, "none", func(r *Report) {
				t.Logf("%+v", *r)
				for _, f := range r.Findings {
					t.Error(f)
				}
			})
		}
		return
	}
	const each = 50 // seeds of one process
	enough := time.Now().Add(defaultFor)
	if os.Getenv(seedsEnv) != "" {
		enough = time.Now().Add(24 * time.Hour)
	}
	var (
		mu    sync.Mutex
		wg    sync.WaitGroup
		next  = from
		n     int
		sum   counts
		cover = make(map[string]int) // how many runs came to it
		came  int
		start = time.Now()
		bad   int
	)
	for range max(1, runtime.NumCPU()) {
		wg.Go(func() {
			for {
				mu.Lock()
				first := next
				count := min(each, from+seeds-next)
				next += count
				mu.Unlock()
				if count == 0 || time.Now().After(enough) {
					return
				}
				child(t, first, count, "none", func(r *Report) {
					mu.Lock()
					defer mu.Unlock()
					n++
					sum.add(r.Counts)
					came += len(r.Cover)
					for c := range r.Cover {
						cover[c]++
					}
					if len(r.Findings) > 0 {
						if bad++; bad <= 20 {
							t.Errorf("seed %d (%s):\n\t%s\n\t%s", r.Seed, r.Config, strings.Join(r.Findings, "\n\t"), replay(r.Seed))
						}
					}
				})
			}
		})
	}
	wg.Wait()
	t.Logf("%d different conditions were met, %.0f by a run", len(cover), float64(came)/float64(max(n, 1)))
	if os.Getenv(coverEnv) != "" {
		for _, c := range slices.Sorted(maps.Keys(cover)) {
			t.Logf("%6d %s", cover[c], c)
		}
	}
	t.Logf("%d runs in %v, %.1f a second: %+v; %d found something", n, time.Since(start).Round(time.Millisecond), float64(n)/time.Since(start).Seconds(), sum, bad)
}
