package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/test/ports"
)

// TestLostJournal takes the write journal away from a chunk server that has a replica of everything: the server does not start
// without it, with --lost-journal every chunk of it is rebuilt from the others while they are written to, and no acknowledged byte is lost.
func TestLostJournal(t *testing.T) {
	need(t)
	t.Parallel() // it waits more than it works
	c := up(t, 1, 2, 1, "3:2")
	dir, journal := filepath.Join(t.TempDir(), "cs"), filepath.Join(t.TempDir(), "journal")
	c.must(30*time.Second, "-c", c.name(), "make-cs", "-r", dir, "-t", "1", "-a", ports.Hold(t), "--host", "third", "-j", journal, "-s", "64")
	m := &member{c: c, verb: "cs", dir: dir, log: filepath.Join(c.dir, "run", "third.log")}
	t.Cleanup(m.kill)
	m.start()
	c.cs++
	c.wait(time.Minute, "the third chunk server", c.healthy)

	var stop atomic.Bool
	var wg sync.WaitGroup
	writers := []*writer{newWriter(t, filepath.Join(c.mounts[0], "a"), 2000), newWriter(t, filepath.Join(c.mounts[0], "b"), 64<<20/blockSize+512)}
	for _, w := range writers {
		wg.Add(1)
		go w.run(&stop, &wg)
	}
	defer wg.Wait()
	defer stop.Store(true)
	time.Sleep(3 * time.Second)
	m.kill()
	if err := os.Rename(journal, journal+".lost"); err != nil {
		t.Fatal(err)
	}
	m.start()
	if code := m.ends(); code == 0 {
		t.Error("the server ended without an error though its journal is missing")
	}
	if b, err := os.ReadFile(m.log); err != nil || !strings.Contains(string(b), "--lost-journal") {
		t.Errorf("without its journal the server does not say what to do: %v\n%s", err, tail(string(b), 1000))
	}
	m.start("--lost-journal")
	c.wait(3*time.Minute, "the cluster to be whole without the journal", c.healthy)
	time.Sleep(time.Second)
	stop.Store(true)
	wg.Wait()
	writes := 0
	for _, w := range writers {
		if w.err != nil {
			t.Errorf("the mount failed: %v", w.err)
		}
		if err := w.verify(w.path); err != nil {
			t.Error(err)
		}
		writes += w.writes
	}
	c.checkReplicas(3)
	t.Logf("%d write+fsync acknowledged around the loss", writes)
}
