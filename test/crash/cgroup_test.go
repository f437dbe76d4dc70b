package crash

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// memGroup is a cgroup with a limit of memory, of either version.
type memGroup struct {
	dir string
	v2  bool
}

// newMemGroup makes a cgroup below this process's own, or skips the test and says why that is not possible. It is removed when the test
// ends, when nothing runs in it any more.
func newMemGroup(t *testing.T, limit int64) *memGroup {
	t.Helper()
	g, err := findMemGroup()
	if err == nil {
		g.dir = filepath.Join(g.dir, fmt.Sprintf("varve-crash-%d", os.Getpid()))
		err = os.Mkdir(g.dir, 0o755)
	}
	if err != nil {
		t.Skipf("no cgroup with a limit of memory can be made here: %v", err)
	}
	t.Cleanup(func() {
		for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			if err := os.Remove(g.dir); err == nil || time.Now().After(end) {
				if err != nil {
					t.Error(err)
				}
				return
			}
		}
	})
	name := "memory.limit_in_bytes"
	if g.v2 {
		name = "memory.max"
	}
	if err := os.WriteFile(filepath.Join(g.dir, name), []byte(strconv.FormatInt(limit, 10)), 0); err != nil {
		t.Skipf("no limit of memory can be set here: %v", err)
	}
	return g
}

// findMemGroup returns the cgroup of this process in the hierarchy that has the memory controller.
func findMemGroup() (*memGroup, error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	paths := map[string]string{} // of controller "" (version 2) and "memory"
	for line := range strings.Lines(string(own)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		for c := range strings.SplitSeq(f[1], ",") {
			paths[c] = f[2]
		}
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer mounts.Close()
	var reasons error
	for s := bufio.NewScanner(mounts); s.Scan(); {
		before, after, _ := strings.Cut(s.Text(), " - ")
		at, kind := strings.Fields(before), strings.Fields(after)
		if len(at) < 5 || len(kind) < 3 {
			continue
		}
		switch {
		case kind[0] == "cgroup2":
			dir := filepath.Join(at[4], paths[""])
			if err := enableMemory(dir); err != nil {
				reasons = errors.Join(reasons, err)
				continue
			}
			return &memGroup{dir: dir, v2: true}, nil
		case kind[0] == "cgroup" && strings.Contains(","+kind[2]+",", ",memory,"):
			return &memGroup{dir: filepath.Join(at[4], paths["memory"])}, nil
		}
	}
	return nil, errors.Join(errors.New("no hierarchy with the memory controller is mounted"), reasons)
}

// enableMemory gives the children of a cgroup the memory controller.
func enableMemory(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	if !strings.Contains(" "+strings.TrimSpace(string(b))+" ", " memory ") {
		return fmt.Errorf("%s has no memory controller", dir)
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory"), 0)
}

// enter is what to put before a command so that it runs in the cgroup.
func (g *memGroup) enter() []string {
	return []string{"sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, g.dir}
}

// numbers reads a file of lines "name value", or of a single value, which has the name "".
func (g *memGroup) numbers(name string) map[string]int64 {
	m := map[string]int64{}
	b, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		return m
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		n, err := strconv.ParseInt(f[len(f)-1], 10, 64)
		if err != nil {
			continue
		}
		if len(f) == 1 {
			m[""] = n
		} else {
			m[f[0]] = n
		}
	}
	return m
}

// kills is how many processes the kernel killed in the cgroup for want of memory.
func (g *memGroup) kills() int64 {
	if g.v2 {
		return g.numbers("memory.events")["oom_kill"]
	}
	return g.numbers("memory.oom_control")["oom_kill"]
}

// pressed is how often the limit was hit.
func (g *memGroup) pressed() int64 {
	if g.v2 {
		return g.numbers("memory.events")["max"]
	}
	return g.numbers("memory.failcnt")[""]
}
