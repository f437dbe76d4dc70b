package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// pidFile is where a process says who it is; empty: nowhere.
type pidFile string

func (p *pidFile) flag(cmd *cobra.Command) {
	cmd.Flags().StringVar((*string)(p), "pid-file", "", "write the process id there")
	_ = cmd.Flags().MarkHidden("pid-file")
}

func (p pidFile) write() error {
	if p == "" {
		return nil
	}
	return replaceFile(string(p), fmt.Appendln(nil, os.Getpid()))
}

// remove removes the file if it still is this process's.
func (p pidFile) remove() {
	if p != "" && p.read() == os.Getpid() {
		os.Remove(string(p))
	}
}

// read returns the process id in the file, 0 if there is none.
func (p pidFile) read() int {
	b, err := readSmall(string(p))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0
	}
	return pid
}

// process returns the process id in the file if that process lives and was started with these arguments (the first, the
// program's name, aside): numbers of processes are used again.
func (p pidFile) process(args string) int {
	pid := p.read()
	if pid == 0 || !alive(pid) {
		return 0
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return 0
	}
	words := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
	_, want, _ := cutWord(args)
	if shellJoin(words[1:]) != want {
		return 0
	}
	return pid
}

// alive reports whether a process exists and is no zombie.
func alive(pid int) bool {
	if err := unix.Kill(pid, 0); err != nil && !errors.Is(err, unix.EPERM) {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	_, after, ok := strings.Cut(string(b), ") ")
	return !ok || !strings.HasPrefix(after, "Z")
}

// shellQuote returns s so that a shell reads it as one word.
func shellQuote(s string) string {
	plain := s != "" && strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./,:=+@%", r))
	}) < 0
	if plain {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func shellJoin(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = shellQuote(w)
	}
	return strings.Join(quoted, " ")
}

// cutWord splits what shellJoin made after its first word.
func cutWord(s string) (first, rest string, ok bool) {
	quoted, escaped := false, false
	for i, r := range s {
		switch {
		case escaped:
			escaped = false
		case r == '\\' && !quoted:
			escaped = true
		case r == '\'':
			quoted = !quoted
		case r == ' ' && !quoted:
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}
