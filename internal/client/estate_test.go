package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/internal/id"
	"varve/internal/ledger"
	"varve/internal/wire/msg"
)

// heirEnv has the address of a metadata server and a directory of entries.
const heirEnv = "VARVE_CLIENT_HEIR"

// TestMain is also the client that is killed: it writes block after block of a file and says which ones returned.
func TestMain(m *testing.M) {
	addr, dir, ok := strings.Cut(os.Getenv(heirEnv), " ")
	if !ok {
		os.Exit(m.Run())
	}
	err := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // and ends by itself if the test is no more
		defer cancel()
		c, err := Dial(ctx, Options{Cluster: testCluster, Addrs: []string{addr}, Logger: quiet(), Estates: dir})
		if err != nil {
			return err
		}
		_, f, err := c.Create(ctx, nil, &msg.Create{Parent: 1, Name: []byte("f"), Type: msg.FileType_REGULAR, Open: true})
		if err == nil {
			err = f.Truncate(ctx, 256*4096) // a size that the dead have not reported is lost
		}
		for i := int64(0); err == nil; i++ {
			if _, _, err = f.WriteAt(ctx, fill(4096, byte(i)), i%256*4096, false); err == nil {
				fmt.Println("wrote", i, f.Ino())
			}
		}
		return err
	}()
	fmt.Println("error", err)
	os.Exit(1)
}

// TestHeir: the session of a client that was killed while it wrote is ended by the next one on its host, not that of one that lives; after a goodbye nothing is left.
func TestHeir(t *testing.T) {
	w := newWorld(t, 1, 3, 3, 1)
	dir := filepath.Join(t.TempDir(), "sessions")
	lives := w.dial(t, func(o *Options) { o.Estates = dir })
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), heirEnv+"="+w.servers[0].addr+" "+dir)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var last int64
	said := bufio.NewScanner(out)
	for said.Scan() {
		var ino uint64
		if _, err := fmt.Sscanf(said.Text(), "wrote %d %d", &last, &ino); err != nil {
			t.Fatalf("it says %q", said.Text())
		}
		if last >= 300 {
			break
		}
	}
	if d := w.dial(t, func(o *Options) { o.Estates = dir }); d.Inherited() != 0 {
		t.Errorf("%d sessions of processes that live were ended", d.Inherited())
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for said.Scan() { // what returned before
		_, _ = fmt.Sscanf(said.Text(), "wrote %d", &last)
	}
	heir := w.dial(t, func(o *Options) { o.Estates = dir })
	w.mu.Lock()
	ended := slices.Clone(w.ended)
	w.mu.Unlock()
	if heir.Inherited() != 1 || len(ended) != 1 || ended[0] == 0 || ended[0] == uint64(lives.Session()) {
		t.Fatalf("%d inherited; sessions that were ended: %v", heir.Inherited(), ended)
	}
	a, err := heir.Lookup(t.Context(), nil, 1, []byte("f"))
	if err != nil {
		t.Fatal(err)
	}
	for _, cs := range w.cs {
		cs.mu.Lock()
		if !slices.Contains(cs.fenced, ended[0]) {
			t.Errorf("%v does not refuse the dead", cs.id)
		}
		cs.mu.Unlock()
	}
	f, err := heir.Open(t.Context(), nil, id.Ino(a.Ino), true, false)
	if err != nil {
		t.Fatal(err)
	}
	for i := max(0, last-255); i <= last; i++ {
		off := i % 256 * 4096
		got := make([]byte, 4096)
		if n, err := f.ReadAt(t.Context(), got, off); err != nil || n != len(got) {
			t.Fatalf("read at %d: %d, %v", off, n, err)
		}
		if want, next := fill(4096, byte(i)), fill(4096, byte(i+256)); !slices.Equal(got, want) && (i != last-255 || !slices.Equal(got, next)) {
			t.Fatalf("block %d is not as it was written last", i%256)
		}
	}
	if again := w.dial(t, func(o *Options) { o.Estates = dir }); again.Inherited() != 0 {
		t.Errorf("%d sessions were ended twice", again.Inherited())
	}
}

// TestEstateOfOneThatFailed: a client that could not say goodbye leaves its session to the next one; one that could, and one that never had a session, leave nothing.
func TestEstateOfOneThatFailed(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	dir := filepath.Join(t.TempDir(), "sessions")
	entries := func() []string {
		t.Helper()
		all, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range all {
			names = append(names, e.Name())
		}
		return names
	}
	c := w.dial(t, func(o *Options) { o.Estates = dir })
	if got := entries(); len(got) != 1 {
		t.Fatalf("entries: %v", got)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if got := entries(); len(got) != 0 {
		t.Errorf("left after a goodbye: %v", got)
	}
	c = w.dial(t, func(o *Options) { o.Estates, o.CloseTimeout = dir, 200*time.Millisecond })
	w.servers[0].stop()
	if err := c.Close(); err == nil {
		t.Error("a goodbye to nobody")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if d, err := Dial(ctx, Options{Cluster: testCluster, Addrs: []string{w.servers[0].addr}, Logger: quiet(), Estates: dir}); err == nil {
		d.Close()
		t.Error("a session of nobody")
	}
	if got := entries(); len(got) != 1 {
		t.Errorf("left: %v, want that of the one that could not say goodbye", got)
	}
	w.servers[0].start()
	if d := w.dial(t, func(o *Options) { o.Estates = dir }); d.Inherited() != 1 {
		t.Errorf("%d sessions were inherited, want 1", d.Inherited())
	}
	if got := entries(); len(got) != 1 {
		t.Errorf("entries: %v", got)
	}
}

// TestEstateGoesOn: the entry is handed over with the session, and stays locked.
func TestEstateGoesOn(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	dir := filepath.Join(t.TempDir(), "sessions")
	c := w.dial(t, func(o *Options) { o.Estates = dir })
	x, err := c.Suspend(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := x.Descriptors(); len(d) != 1 || x.Entry.FD != d[0] {
		t.Fatalf("descriptors %v of %+v", d, x.Entry)
	}
	c.estate.mu.Lock()
	c.estate.now = nil // its number is the next one's
	c.estate.mu.Unlock()
	d := w.dial(t, func(o *Options) { o.Resume, o.Estates = x, dir })
	d.Restored()
	create(t, d, "f") // so it has a connection
	if dead, errs := ledger.Dead(dir, testCluster); len(dead) != 0 || len(errs) != 0 {
		t.Errorf("entries of the dead: %v, %v", dead, errors.Join(errs...))
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left after a goodbye: %v, %v", left, err)
	}
}

// TestNoEstate: where nothing can be noted everything works as before.
func TestNoEstate(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := w.dial(t, func(o *Options) { o.Estates = filepath.Join(file, "sessions") })
	write(t, create(t, c, "f"), fill(4096, 1), 0)
}
