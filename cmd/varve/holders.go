package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// maxHeld bounds the files that are named of one process.
const maxHeld = 3

// holder is a process that uses a mount.
type holder struct {
	pid   int
	name  string
	files []string // some of them
	more  int
}

func (h holder) String() string {
	s := fmt.Sprintf("%s (pid %d): %s", h.name, h.pid, strings.Join(h.files, ", "))
	if h.more > 0 {
		s += fmt.Sprintf(" and %d more", h.more)
	}
	return s
}

// mountNumber returns the kernel's number of the mount at dir, "" if nothing is mounted there.
func mountNumber(dir string) (number string) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if w := strings.Fields(lines.Text()); len(w) > 5 && unescapeMount(w[4]) == dir {
			number = w[0] // the topmost is the last
		}
	}
	return number
}

// holders returns the processes that have files of a mount open, mapped, or as a directory of theirs. It asks the kernel's tables only, never
// the filesystem, which may be dead.
func holders(dir string) (all []holder) {
	number := mountNumber(dir)
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err != nil || pid == os.Getpid() {
			continue
		}
		h := holder{pid: pid}
		add := func(what string) {
			switch {
			case slices.Contains(h.files, what):
			case len(h.files) < maxHeld:
				h.files = append(h.files, what)
			default:
				h.more++
			}
		}
		below := func(path string) bool {
			return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
		}
		for _, link := range []string{"cwd", "root"} {
			if at, err := os.Readlink(filepath.Join(proc, link)); err == nil && below(at) {
				add(at)
			}
		}
		fds, _ := os.ReadDir(filepath.Join(proc, "fdinfo"))
		for _, fd := range fds {
			b, err := os.ReadFile(filepath.Join(proc, "fdinfo", fd.Name()))
			if err != nil || number == "" || !slices.Contains(strings.Split(string(b), "\n"), "mnt_id:\t"+number) {
				continue
			}
			if at, err := os.Readlink(filepath.Join(proc, "fd", fd.Name())); err == nil {
				add(at)
			}
		}
		if b, err := os.ReadFile(filepath.Join(proc, "maps")); err == nil && strings.Contains(string(b), dir) {
			for line := range strings.Lines(string(b)) {
				if at := strings.Index(line, "/"); at >= 0 && below(strings.TrimSpace(line[at:])) {
					add(strings.TrimSpace(line[at:]))
				}
			}
		}
		if len(h.files) == 0 {
			continue
		}
		name, _ := os.ReadFile(filepath.Join(proc, "comm")) // else it has just ended
		h.name = strings.TrimSpace(string(name))
		all = append(all, h)
	}
	return all
}

func holderLines(all []holder) string {
	var b strings.Builder
	for _, h := range all {
		fmt.Fprintf(&b, "\n  %v", h)
	}
	return b.String()
}
