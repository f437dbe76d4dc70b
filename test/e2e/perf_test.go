package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"varve/perf"
)

// load is a `varve perf run` under way.
type load struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  string // the file that its standard output is
	errs bytes.Buffer
	done chan struct{}
	err  error // of Wait, when done is closed
}

func startLoad(t *testing.T, args ...string) *load {
	t.Helper()
	l := &load{t: t, cmd: exec.Command(varveBinary, append([]string{"perf", "run", "--json"}, args...)...), done: make(chan struct{})}
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	l.out, l.cmd.Stdout, l.cmd.Stderr = out.Name(), out, &l.errs
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { l.err = l.cmd.Wait(); close(l.done) }()
	t.Cleanup(func() { l.cmd.Process.Kill(); <-l.done })
	return l
}

// printed is what it has written so far.
func (l *load) printed() []byte {
	b, err := os.ReadFile(l.out)
	if err != nil {
		l.t.Error(err)
	}
	return b
}

func (l *load) signal(s syscall.Signal) {
	l.t.Helper()
	if err := l.cmd.Process.Signal(s); err != nil {
		l.t.Error(err)
	}
}

// began waits until operations have ended: more blocks of the file were written than are under way at once. The file is new.
func (l *load) began(path string) {
	l.t.Helper()
	l.until("blocks to be written to "+path, func() bool {
		b, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			l.t.Fatal(err)
		}
		written := 0
		for block := range slices.Chunk(b, blockSize) {
			if len(bytes.Trim(block, "\x00")) > 0 {
				written++
			}
		}
		return written > 100
	})
}

// sent waits until the process has written so many bytes to sockets.
func (l *load) sent(least int64) {
	l.t.Helper()
	l.until("blocks to be sent", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", l.cmd.Process.Pid))
		if err != nil {
			l.t.Fatal(err)
		}
		_, s, _ := strings.Cut(string(b), "wchar: ")
		s, _, _ = strings.Cut(s, "\n")
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			l.t.Fatalf("%s: %v", b, err)
		}
		return n > least
	})
}

// until waits for something that the load does, which has not ended before.
func (l *load) until(what string, done func() bool) {
	l.t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		select {
		case <-l.done:
			l.t.Fatalf("perf run has ended before there were %s: %v: %s%s", what, l.err, l.printed(), &l.errs)
		default:
		}
		if time.Now().After(end) {
			l.t.Fatalf("waited a minute for %s", what)
		}
	}
}

// end waits for the load and returns what it measured, after checking its exit code.
func (l *load) end(code int) *perf.Result {
	l.t.Helper()
	select {
	case <-l.done:
	case <-time.After(90 * time.Second):
		l.t.Fatal("perf run does not end")
	}
	res := new(perf.Result)
	if err := json.Unmarshal(l.printed(), res); err != nil {
		l.t.Fatalf("%v: %s%s", err, l.printed(), &l.errs)
	}
	if got := l.cmd.ProcessState.ExitCode(); got != code {
		l.t.Errorf("exit code %d, want %d: %s", got, code, &l.errs)
	}
	return res
}

// TestPerfFaults: what happens to a target while it is under load ends up in the result, with counts and an exit code; nothing crashes or hangs.
func TestPerfFaults(t *testing.T) {
	need(t, "mkfs.ext4", "mount", "umount")
	t.Run("interrupted", func(t *testing.T) {
		dir := t.TempDir()
		l := startLoad(t, "--target", "mount:"+dir, "--rw", "randwrite", "--size", "4m", "--for", "1h")
		l.began(filepath.Join(dir, "varve-perf.0"))
		l.signal(syscall.SIGINT)
		if res := l.end(0); res.Stopped != "cancelled" || res.Total.Count == 0 || len(res.Series) == 0 {
			t.Errorf("%q, %d operations", res.Stopped, res.Total.Count)
		}
	})
	t.Run("small disk", func(t *testing.T) {
		dir := t.TempDir()
		image, mnt := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
		run := func(words ...string) {
			t.Helper()
			if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", words, err, out)
			}
		}
		if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 16<<20), os.Mkdir(mnt, 0o755)); err != nil {
			t.Fatal(err)
		}
		run("mkfs.ext4", "-q", "-F", image)
		if out, err := exec.Command("mount", "-o", "loop", image, mnt).CombinedOutput(); err != nil {
			t.Skipf("no loop devices here: %v: %s", err, out)
		}
		mounted := true
		t.Cleanup(func() {
			if mounted {
				exec.Command("umount", "-l", mnt).Run()
			}
		})
		res := startLoad(t, "--target", "mount:"+mnt, "--rw", "write", "--bs", "64k", "--size", "64m", "--jobs", "1", "--for", "60s", "--direct").end(1)
		if !strings.HasPrefix(res.Stopped, "disk full: write") || len(res.Errors) != 1 || res.Errors[0].Op != "write" || res.Errors[0].Count < 1 || res.Write == nil {
			t.Errorf("%q, %+v", res.Stopped, res.Errors)
		}
		file := filepath.Join(mnt, "varve-perf.0")
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		l := startLoad(t, "--target", "mount:"+mnt, "--rw", "randwrite", "--size", "1m", "--jobs", "1", "--qd", "4", "--for", "1h")
		l.began(file)
		run("umount", "-l", mnt)
		mounted = false
		l.signal(syscall.SIGINT)
		if res = l.end(1); len(res.Removed) != 1 || res.Total.Count == 0 {
			t.Errorf("unmounted under load: %v, %+v", res.Removed, res.Total)
		}
	})
	t.Run("cluster", func(t *testing.T) {
		c := up(t, 1, 1, 1, "1:1")
		target, file := "mount:"+c.mounts[0], filepath.Join(c.mounts[0], "varve-perf.0")
		t.Run("server killed and back", func(t *testing.T) {
			// As many operations as there are blocks, for six seconds at least.
			l := startLoad(t, "--target", target, "--rw", "randwrite", "--size", "12m", "--rate", "512", "--jobs", "1", "--qd", "4", "--for", "0", "--direct", "--max-errors", "1000000")
			l.began(file)
			c.waitRestart("cs1", c.kill("cs1"))
			<-l.done
			res := l.end(l.cmd.ProcessState.ExitCode()) // 1 if writes failed meanwhile, which the result then says
			if failed := l.cmd.ProcessState.ExitCode(); failed > 1 || failed == 1 && len(res.Errors) == 0 || res.Stuck > 0 || res.Stopped != "" {
				t.Errorf("exit code %d, %q, %+v", failed, res.Stopped, res.Errors)
			}
			writes := int64(0)
			for _, s := range res.Series {
				writes += s.Writes
			}
			if n := len(res.Series); n < 2 || writes != res.Total.Count || res.Series[n-1].Writes+res.Series[n-2].Writes == 0 {
				t.Errorf("%d writes, %+v", res.Total.Count, res.Series)
			}
		})
		t.Run("server gone", func(t *testing.T) {
			log, err := os.ReadFile(filepath.Join(c.dir, "run", "mds1.log"))
			if err != nil {
				t.Fatal(err)
			}
			_, addr, _ := strings.Cut(string(log), "cs=cs1 addr=")
			addr, _, _ = strings.Cut(addr, " ")
			endless := startLoad(t, "-c", c.name(), "--target", "cs:"+addr, "--rw", "randwrite", "--size", "4m", "--jobs", "1", "--for", "1h")
			endless.sent(1 << 20)
			pid := c.pid("cs1")
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			for n, on := 1, true; on; n++ { // two that come while it does not run are one
				endless.cmd.Process.Signal(syscall.SIGINT) // it may have ended
				select {
				case <-endless.done:
					if s, ok := endless.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGINT {
						t.Errorf("a second Ctrl-C: %v", endless.cmd.ProcessState)
					}
					on = false
				case <-time.After(300 * time.Millisecond):
					if n == 100 {
						t.Fatal("a second Ctrl-C does not end it")
					}
				}
			}
			if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			l := startLoad(t, "-c", c.name(), "--target", "cs:"+addr, "--rw", "randwrite", "--size", "4m", "--jobs", "1", "--qd", "4", "--for", "60s")
			l.sent(1 << 20)
			old := c.kill("cs1")
			res := l.end(3)
			if !res.Gone || !strings.HasPrefix(res.Stopped, "target gone") || len(res.Errors) == 0 || res.Total.Count == 0 {
				t.Errorf("%q, %+v", res.Stopped, res.Errors)
			}
			c.waitRestart("cs1", old)
		})
		t.Run("mount stands still", func(t *testing.T) {
			pid := c.pid("mount1")
			if pid == 0 {
				t.Fatal("no mount")
			}
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			l := startLoad(t, "--target", target, "--rw", "randwrite", "--size", "4m", "--jobs", "1", "--qd", "3", "--engine", "sync", "--direct", "--for", "5s", "--settle", "8s")
			l.began(file)
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			// The kernel lets a process end only when a mount has answered to what it has read, so the report comes before the end.
			for end := time.Now().Add(time.Minute); time.Now().Before(end) && !json.Valid(l.printed()); {
				time.Sleep(50 * time.Millisecond)
			}
			if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			res := l.end(1)
			if res.Stuck != 3 || len(res.StuckOps) != 3 || !strings.Contains(res.StuckOps[0].Waits, "FUSE") || !strings.Contains(res.Stopped, "did not end within 8s") {
				t.Errorf("%d stuck, %q: %v", res.Stuck, res.Stopped, res.StuckOps)
			}
		})
		t.Run("mount killed", func(t *testing.T) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			l := startLoad(t, "--target", target, "--rw", "randwrite", "--size", "4m", "--jobs", "1", "--qd", "4", "--for", "60s", "--direct")
			l.began(file)
			c.kill("mount1")
			res := l.end(3)
			if !res.Gone || !strings.HasPrefix(res.Stopped, "target gone") || len(res.Errors) == 0 || res.Total.Count == 0 {
				t.Errorf("%q, %+v", res.Stopped, res.Errors)
			}
		})
	})
}
