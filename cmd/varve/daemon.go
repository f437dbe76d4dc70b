package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// A process in the background is this program started again, in a session of its own, with descriptor 3 as the way back:
// it writes "ready", and what to print, when it does what it is for, or "failed CODE text" if it never will. An
// end without either is a crash; its log says more.
const (
	readyEnv = "VARVE_READY_FD"
	readyFD  = 3
	logLimit = 64 << 20 // bytes of a log after which a new one is begun
)

var tellParent struct {
	sync.Once
	pipe *os.File // nil: nobody waits
}

func init() {
	if os.Getenv(readyEnv) == strconv.Itoa(readyFD) {
		syscall.CloseOnExec(readyFD)
		tellParent.pipe = os.NewFile(readyFD, "ready")
	}
	os.Unsetenv(readyEnv)
}

// signalReady tells the process that started this one in the background, if one did, that it is ready.
func signalReady(text string) { tell("ready\n" + text) }

// signalFailed tells it that it has failed.
func signalFailed(err error) { tell(fmt.Sprintf("failed %d\n%s", exitCode(err), oneLine(err))) }

func tell(s string) {
	tellParent.Do(func() {
		if tellParent.pipe != nil {
			_, _ = io.WriteString(tellParent.pipe, s) // a parent that has gone does not care
			tellParent.pipe.Close()
		}
	})
}

// startDaemon starts this program with args in the background and returns what it said when it was ready.
func startDaemon(ctx context.Context, args []string, logFile string) (string, error) {
	log, err := openLog(logFile)
	if err != nil {
		return "", err
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	cmd := selfCommand(args)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w}
	cmd.Env = append(os.Environ(), readyEnv+"="+strconv.Itoa(readyFD))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return "", fmt.Errorf("start a process in the background: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	b, err := io.ReadAll(io.LimitReader(r, 1<<20))
	if err != nil {
		return "", err
	}
	head, text, _ := strings.Cut(string(b), "\n")
	if head == "ready" {
		return text, cmd.Process.Release()
	}
	_ = cmd.Wait() // its outcome is in the pipe or the log
	var code int
	if n, err := fmt.Sscanf(head, "failed %d", &code); n == 1 && err == nil {
		return "", &exitError{code, errors.New(text)}
	}
	return "", fmt.Errorf("the process in the background ended at once; see %s: %s", logFile, lastLine(logFile))
}

// selfCommand is this program with other arguments. It is found also when its file was replaced or removed meanwhile.
func selfCommand(args []string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = programPath()
	return cmd
}

// programPath is the path of this program, for people and scripts.
func programPath() string {
	if p, err := os.Executable(); err == nil {
		return strings.TrimSuffix(p, " (deleted)")
	}
	return os.Args[0]
}

// openLog opens a log to append to. One that has grown over the limit is kept as .old.
func openLog(path string) (*os.File, error) {
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Size() > logLimit {
		if err := os.Rename(path, path+".old"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
}

// lastLine returns the last line of a log, for an error message.
func lastLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return "no log"
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > 8<<10 {
		_, _ = f.Seek(-8<<10, io.SeekEnd)
	}
	last := "the log is empty"
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if s := strings.TrimSpace(sc.Text()); s != "" {
			last = s
		}
	}
	return last
}
