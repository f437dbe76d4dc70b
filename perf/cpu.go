package perf

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// ProcessCPU is the CPU time that a process of this host used while the load ran.
type ProcessCPU struct {
	PID   int           `json:"pid"`
	Name  string        `json:"name"`
	CPU   time.Duration `json:"cpu_ns"`
	PerOp time.Duration `json:"per_op_ns"` // of all but fsyncs
}

// generatorName is what the process itself is called.
const generatorName = "load generator"

// cpuNames are the programs whose processes are counted beside the generator itself: those of storage systems, so that runs on several
// can be compared.
var cpuNames = []string{
	"varve", "glusterfsd", "glusterfs", "glusterd", "ceph-osd", "ceph-mon", "ceph-mgr", "ceph-mds", "ceph-fuse", "mfsmaster", "mfschunkserver",
	"mfsmount", "qemu-nbd", "nbd-server", "nbdkit", "nfsd",
}

// cpuClock is the CPU time of processes at one moment, by pid and start, so that a pid that is used again is not taken for the old one.
type cpuClock map[[2]uint64]process

type process struct {
	name string
	used time.Duration
}

// readCPU reads the processes that count. What cannot be read is left out: other users' processes, and other systems than Linux.
func readCPU() cpuClock {
	clock := cpuClock{}
	all, err := procfs.AllProcs()
	if err != nil {
		return clock
	}
	for _, p := range all {
		stat, err := p.Stat()
		if err != nil {
			continue
		}
		name := stat.Comm
		if name == "exe" { // started as /proc/self/exe
			if path, err := p.Executable(); err == nil {
				name = filepath.Base(path)
			}
		}
		if p.PID == os.Getpid() {
			name = generatorName
		} else if !slices.Contains(cpuNames, name) {
			continue
		} else if args, err := p.CmdLine(); err == nil {
			name = commandName(args)
		}
		clock[[2]uint64{uint64(p.PID), stat.Starttime}] = process{name, time.Duration(stat.CPUTime() * float64(time.Second))}
	}
	return clock
}

// setOwn says what this process has used, which is better known than from /proc, in steps of 10 ms, and without what it took to look at all the others.
func (now cpuClock) setOwn(used time.Duration) {
	for key, p := range now {
		if key[0] == uint64(os.Getpid()) {
			now[key] = process{p.name, used}
		}
	}
}

// ownCPU is the CPU time of this process.
func ownCPU() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// runClock is the CPU time at which what is measured began.
type runClock struct {
	timer *time.Timer // nil without a ramp
	mu    sync.Mutex
	at    cpuClock
}

// again reads the processes once more at the end of the ramp, if there is one.
func (c *runClock) again(when time.Time, ramp bool) {
	if !ramp {
		return
	}
	c.timer = time.AfterFunc(time.Until(when), func() {
		at := readCPU()
		at.setOwn(ownCPU())
		c.mu.Lock()
		defer c.mu.Unlock()
		c.at = at
	})
}

func (c *runClock) stop() cpuClock {
	if c.timer != nil {
		c.timer.Stop()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

// commandName is what tells one daemon from another: the program, the verb, and the directory that it works on.
func commandName(args []string) string {
	if len(args) == 0 {
		return "?"
	}
	words := []string{filepath.Base(args[0])}
	for i, a := range args[1:] {
		switch {
		case !strings.HasPrefix(a, "-") && len(words) == 1 && i < 4:
			words = append(words, a)
		case a == "-r" && i+2 < len(args):
			words = append(words, filepath.Base(filepath.Clean(args[i+2])))
		}
	}
	return strings.Join(words[:min(len(words), 3)], " ")
}

// since returns what each process has used since an earlier moment, the most first.
func (now cpuClock) since(before cpuClock, operations int64) []ProcessCPU {
	var out []ProcessCPU
	for key, p := range now {
		old := before[key] // zero for one that started meanwhile
		used := p.used - old.used
		if used <= 0 {
			continue
		}
		x := ProcessCPU{PID: int(key[0]), Name: p.name, CPU: used}
		if operations > 0 {
			x.PerOp = used / time.Duration(operations)
		}
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b ProcessCPU) int {
		return cmp.Or(cmp.Compare(b.CPU, a.CPU), cmp.Compare(a.PID, b.PID))
	})
	return out
}

// writeCPU prints the table for people.
func (res *Result) writeCPU(b *strings.Builder) {
	if len(res.CPU) == 0 || res.Elapsed <= 0 {
		return
	}
	b.WriteString("\nCPU (cores; each operation):")
	for i, p := range res.CPU {
		if i == maxCPUShown {
			fmt.Fprintf(b, ", %d more", len(res.CPU)-i)
			break
		}
		fmt.Fprintf(b, "%s %s %.2f; %s", map[bool]string{true: "", false: ","}[i == 0], p.Name, p.CPU.Seconds()/res.Elapsed.Seconds(), ShortDuration(p.PerOp))
	}
	b.WriteString("\n")
}

// maxCPUShown is the number of processes in the text.
const maxCPUShown = 12
