package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/internal/nbd"

	"golang.org/x/sys/unix"
)

const (
	heirWriters = 8
	heirBlocks  = 8 // of each writer
)

// exportWriters write to an NBD export until its server is gone, and know what was answered.
type exportWriters struct {
	mu    sync.Mutex
	acked [heirWriters * heirBlocks]uint64
	sent  [heirWriters * heirBlocks]uint64
	wg    sync.WaitGroup
}

func dialExport(t *testing.T, socket string) *nbd.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	n, err := nbd.Dial(ctx, nbd.URI{Network: "unix", Address: socket, Export: "a.img"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// start has writers begin, with numbers above from.
func (w *exportWriters) start(n *nbd.Conn, from uint64) {
	for i := range heirWriters {
		w.wg.Go(func() {
			b := make([]byte, blockSize)
			for seq := from + 1; ; seq++ {
				block := i*heirBlocks + int(seq%heirBlocks)
				stamp(b, block, seq)
				w.mu.Lock()
				w.sent[block] = seq
				w.mu.Unlock()
				if n.Do(nbd.CmdWrite, 0, uint64(block)*blockSize, b, 0) != nil {
					return
				}
				w.mu.Lock()
				w.acked[block] = seq
				w.mu.Unlock()
			}
		})
	}
}

func (w *exportWriters) writes() (n uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, seq := range w.acked {
		n = max(n, seq)
	}
	return n
}

// look reads all blocks and returns the numbers of their writes.
func (w *exportWriters) look(n *nbd.Conn) (seqs [heirWriters * heirBlocks]uint64, err error) {
	b, want := make([]byte, blockSize), make([]byte, blockSize)
	for block := range seqs {
		if err := n.Do(nbd.CmdRead, 0, uint64(block)*blockSize, b, 0); err != nil {
			return seqs, err
		}
		seq := binary.LittleEndian.Uint64(b[8:])
		seqs[block] = seq
		clear(want)
		if seq != 0 {
			stamp(want, block, seq)
		}
		if !bytes.Equal(b, want) {
			return seqs, fmt.Errorf("block %d: write %d is torn", block, seq)
		}
		if seq < w.acked[block] || seq > w.sent[block] {
			return seqs, fmt.Errorf("block %d: holds write %d, want one of %d (answered) to %d (sent)", block, seq, w.acked[block], w.sent[block])
		}
	}
	return seqs, nil
}

// fencedExport fences the session of a server. Who comes again goes on, but not to an image that somebody else was let write to meanwhile.
func (c *cluster) fencedExport(socket string, w *exportWriters) {
	c.t.Helper()
	fence := func() {
		c.t.Helper()
		var held struct{ Holders []struct{ Session int } }
		if err := json.Unmarshal([]byte(c.must(30*time.Second, "-c", c.name(), "--json", "lease", "show", "/a.img")), &held); err != nil || len(held.Holders) != 1 {
			c.t.Fatalf("a.img is held by %+v: %v", held, err)
		}
		c.must(30*time.Second, "-c", c.name(), "fence", strconv.Itoa(held.Holders[0].Session))
	}
	fence()
	if _, err := w.look(dialExport(c.t, socket)); err != nil {
		c.t.Errorf("after a fence: %v", err)
	}
	fence()
	sh(c.t, "/", time.Minute, "dd if=/dev/zero bs=4k count=1 conv=notrunc status=none of="+filepath.Join(c.mounts[0], "a.img"))
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	if n, err := nbd.Dial(ctx, nbd.URI{Network: "unix", Address: socket, Export: "a.img"}); err == nil {
		n.Close()
		c.t.Error("who was fenced came back to an image that somebody else has written to")
	} else if !strings.Contains(err.Error(), "somebody else was let write") {
		c.t.Errorf("who was fenced comes back: %v", err)
	}
}

// TestHeir: varve nbd is killed under writes, a chunk server of which stands still and has some of them yet to do. The next one on the host ends its session at once, has all that was
// answered, and nothing of the dead one comes after its first read. Then the same again, and the file is taken from the dead by hand.
func TestHeir(t *testing.T) {
	need(t)
	c := up(t, 1, 3, 1, "3:2")
	sh(t, "/", time.Minute, "truncate -s 16M "+filepath.Join(c.mounts[0], "a.img"))
	socket := filepath.Join(t.TempDir(), "s")
	var w exportWriters
	e := c.serve("nbd1", "nbd", "--socket", socket, "a.img")
	w.start(dialExport(t, socket), 0)
	answered := func(more uint64) {
		t.Helper()
		from := w.writes()
		c.wait(time.Minute, "writes to be answered", func() error {
			if n := w.writes(); n < from+more {
				return fmt.Errorf("%d of %d", n-from, more)
			}
			return nil
		})
	}
	answered(50)
	slow := c.pid("cs2")
	if err := unix.Kill(slow, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Kill(slow, unix.SIGCONT) })
	time.Sleep(100 * time.Millisecond) // for writes to be on their way to it
	e.kill()
	killed := time.Now()
	w.wg.Wait()
	go func() {
		time.Sleep(300 * time.Millisecond)
		_ = unix.Kill(slow, unix.SIGCONT)
	}()
	e = c.serve("nbd2", "nbd", "--socket", socket, "a.img")
	next := dialExport(t, socket)
	first, err := w.look(next)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("read by the next one %v after the kill", time.Since(killed).Round(time.Millisecond))
	if log, err := os.ReadFile(e.log); err != nil || !strings.Contains(string(log), "the session of a process that has died on this host is over") {
		t.Errorf("the next one does not say that it has ended the session of the dead: %v\n%s", err, log)
	}
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		again, err := w.look(next)
		if err != nil {
			t.Fatal(err)
		}
		if again != first {
			t.Fatalf("blocks changed after they were read:\n%v\n%v", first, again)
		}
	}

	w.start(next, w.writes()+heirBlocks)
	answered(50)
	e.kill()
	killed = time.Now()
	w.wg.Wait()
	out := c.must(30*time.Second, "-c", c.name(), "lease", "take", "/a.img", "--force")
	if !strings.Contains(out, "1 session fenced") {
		t.Errorf("lease take says %q", out)
	}
	t.Logf("taken %v after the kill: %s", time.Since(killed).Round(time.Millisecond), strings.TrimSpace(out))
	e = c.serve("nbd3", "nbd", "--socket", socket, "a.img")
	if _, err := w.look(dialExport(t, socket)); err != nil {
		t.Error(err)
	}
	c.fencedExport(socket, &w)
	e.stop()
	heirOfMount(t, c)
	left, err := filepath.Glob(filepath.Join("/run/varve/sessions", c.uuid().String()+"-*"))
	if err != nil || len(left) != 1 { // of the mount
		t.Errorf("entries of sessions: %v, %v", left, err)
	}
}

// inForeground mounts by a process of the test's and returns it when the mount is used.
func (c *cluster) inForeground(name, dir string) *export {
	c.t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		c.t.Fatal(err)
	}
	e := &export{c: c, log: filepath.Join(c.dir, "run", name+".log"), what: name}
	log, err := os.Create(e.log)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	e.cmd = exec.Command(varveBinary, "-c", c.name(), "mount", "-f", dir)
	e.cmd.Stdout, e.cmd.Stderr = log, log
	if err := e.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		_, _ = c.varve(30*time.Second, "umount", "--lazy", dir) // of one that has ended there may be none
		e.kill()
	})
	c.wait(time.Minute, dir+" to be mounted", func() error {
		_, err := os.Stat(filepath.Join(dir, ".varve.info"))
		return err
	})
	return e
}

// heirOfMount: the process of a mount is killed that has a file open and locked; the next mount has all that was written there, and the lock.
func heirOfMount(t *testing.T, c *cluster) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	e := c.inForeground("heir1", one)
	f, err := os.OpenFile(filepath.Join(one, "f"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := bytes.Repeat([]byte("varve"), 40000)
	if err := errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_EX), f.Truncate(int64(len(want)))); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	e.kill()
	killed := time.Now()
	e = c.inForeground("heir2", two)
	g, err := os.OpenFile(filepath.Join(two, "f"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	got := make([]byte, len(want))
	if n, err := g.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of what was written by the mount that was killed: %v", n, err)
	}
	if err := unix.Flock(int(g.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("the lock of the dead: %v", err)
	}
	t.Logf("a mount was killed, and what it had open is another's after %v", time.Since(killed).Round(time.Millisecond))
	if log, err := os.ReadFile(e.log); err != nil || !strings.Contains(string(log), "the session of a process that has died on this host is over") {
		t.Errorf("the next mount does not say that it has ended the session of the dead: %v\n%s", err, log)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	c.must(30*time.Second, "umount", two)
	_ = e.cmd.Wait()
}
