package client

import (
	"bytes"
	"context"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if f() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("not in time: %s", what)
}

func (in *inode) state() (mode msg.Mode, want msg.Want) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.mode, in.want
}

// notifier writes a dirty page back when it is told to forget, as the kernel does with mapped files.
type notifier struct {
	mu    sync.Mutex
	calls []id.Ino
	back  func()
}

func (n *notifier) InvalidateInode(ino id.Ino, off, length int64) {
	n.mu.Lock()
	n.calls = append(n.calls, ino)
	back := n.back
	n.back = nil
	n.mu.Unlock()
	if back != nil {
		back()
	}
}

func (n *notifier) InvalidateEntry(id.Ino, []byte) {}

func TestFollowsTheLeader(t *testing.T) {
	w := newWorld(t, 3, 1, 1, 1)
	w.leader = 2
	c := w.dial(t, func(o *Options) { o.Addrs = o.Addrs[:1] })
	create(t, c, "a")
	s := c.Session()
	for i := range 3 {
		w.mu.Lock()
		w.leader = i
		w.mu.Unlock()
		create(t, c, "b"+string(rune('0'+i)))
		if got := c.Session(); got != s {
			t.Fatalf("session %v, want %v", got, s)
		}
	}
	w.mu.Lock()
	w.leader = 0
	w.mu.Unlock()
	w.servers[2].stop()
	create(t, c, "c")
	if _, err := c.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := DialAdmin(t.Context(), nil, id.Cluster{9}, []string{w.servers[0].addr}); fserr.Of(err) != fserr.WrongCluster {
		t.Fatal(err)
	}
	a, err := DialAdmin(t.Context(), nil, id.Cluster{}, []string{w.servers[2].addr, w.servers[0].addr})
	if err != nil || a.Cluster != testCluster {
		t.Fatal(err)
	}
	defer a.Close()
	if m, err := a.Members(t.Context()); err != nil || len(m.Addrs) != 3 {
		t.Fatalf("members %v, %v", m, err)
	}
}

func TestWrongClusterFailsAtOnce(t *testing.T) {
	w := newWorld(t, 1, 0, 1, 1)
	start := time.Now()
	_, err := Dial(t.Context(), Options{Cluster: id.Cluster{9}, Addrs: []string{w.servers[0].addr}, Logger: quiet()})
	if fserr.Of(err) != fserr.WrongCluster || time.Since(start) > 20*time.Second {
		t.Fatalf("%v after %v", err, time.Since(start))
	}
	_, err = Dial(t.Context(), Options{Addrs: []string{"nowhere"}, Lanes: 99})
	for _, want := range []string{"uuid", "nowhere", "Lanes"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("options error %v does not name %s", err, want)
		}
	}
}

func TestLostAnswerIsAskedAgainWithTheSameSeq(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, nil)
	for i := range 5 {
		w.mu.Lock()
		w.loseNext = 1
		w.mu.Unlock()
		create(t, c, string(rune('a'+i))) // with O_EXCL: a second execution would fail
	}
	if n := w.count("create"); n != 5 {
		t.Fatalf("%d creations", n)
	}
	s := c.sess.Load()
	eventually(t, "all outcomes acknowledged", func() bool {
		s.seqMu.Lock()
		defer s.seqMu.Unlock()
		return s.acked == s.seq && len(s.done) == 0
	})
}

func TestRequestsWaitForALeader(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, nil)
	w.servers[0].stop()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.GetAttr(ctx, 1); fserr.Of(err) != fserr.Timeout {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := c.Lookup(context.Background(), nil, 1, []byte("x"))
		done <- err
	}()
	time.Sleep(100 * time.Millisecond)
	w.servers[0].start()
	if err := <-done; fserr.Of(err) != fserr.NotExist {
		t.Fatal(err)
	}
}

func TestSessionLossKillsHandles(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	write(t, f, fill(4096, 1), 0)
	if err := f.Fsync(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	old := c.Session()
	w.expire(uint64(old))
	// A write under the fenced session must not be done under the next one, whoever notices first.
	if _, _, err := f.WriteAt(t.Context(), fill(4096, 2), 0, false); fserr.Of(err) != fserr.Stale {
		t.Fatalf("write under a lost session: %v", err)
	}
	g := open(t, c, f, true)
	if c.Session() == old {
		t.Fatal("session is the old one")
	}
	if !bytes.Equal(read(t, g, 0, 4096), fill(4096, 1)) {
		t.Fatal("content differs")
	}
	write(t, g, fill(4096, 3), 0)
	for name, err := range map[string]error{
		"fsync": f.Fsync(t.Context(), false), "flush": f.Flush(t.Context()), "fallocate": f.Fallocate(t.Context(), 0, 0, 1),
		"truncate": f.Truncate(t.Context(), 0),
	} {
		if fserr.Of(err) != fserr.Stale {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := f.ReadAt(t.Context(), make([]byte, 1), 0); fserr.Of(err) != fserr.Stale {
		t.Error(err)
	}
	if err := f.Release(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRecallReportsSizeAndWritesBack(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	n := &notifier{}
	c1 := w.dial(t, func(o *Options) { o.Notifier, o.FlushEvery = n, time.Hour })
	c2 := w.dial(t, func(o *Options) { o.FlushEvery = time.Hour })
	f1 := create(t, c1, "a")
	write(t, f1, fill(4096, 1), 0)
	if mode, _ := f1.in.state(); mode != msg.Mode_EXCLUSIVE_WRITE {
		t.Fatalf("mode %v", mode)
	}
	if attr, err := c2.GetAttr(t.Context(), f1.Ino()); err != nil || attr.Size != 4096 {
		t.Fatalf("size asked for by another mount: %v, %v", attr, err)
	}
	page := fill(4096, 7)
	n.mu.Lock()
	n.back = func() { // into a new chunk, so that the metadata server is needed for it
		if _, _, err := f1.WriteAt(context.Background(), page, chunk.Size, false); err != nil {
			t.Error(err)
		}
	}
	n.mu.Unlock()
	f2 := open(t, c2, f1, true)
	if got := read(t, f2, chunk.Size, 8192); !bytes.Equal(got, page) {
		t.Fatalf("%d bytes of what was written back during the recall", len(got))
	}
	if mode, want := f1.in.state(); mode != msg.Mode_SHARED_WRITE || want != msg.Want_WANT_WRITE {
		t.Fatalf("mode %v, want %v", mode, want)
	}
	if len(n.calls) == 0 {
		t.Fatal("nobody was told to drop caches")
	}
}

func TestSharedWrites(t *testing.T) {
	w := newWorld(t, 1, 3, 3, 1)
	n := &notifier{}
	c1, c2 := w.dial(t, func(o *Options) { o.Notifier = n }), w.dial(t, nil)
	f1 := create(t, c1, "a")
	f2 := open(t, c2, f1, true)
	for i := range 5 {
		p := fill(5000, byte(i))
		write(t, f1, p, int64(i*5000))
		if !bytes.Equal(read(t, f2, int64(i*5000), 6000), p) {
			t.Fatalf("write %d is not seen on the other mount", i)
		}
		q := fill(100, byte(i+100))
		write(t, f2, q, int64(i*5000+2000))
		if !bytes.Equal(read(t, f1, int64(i*5000+2000), 100), q) {
			t.Fatalf("write %d back is not seen", i)
		}
	}
	if w.cs[1].ordered < 10 || w.cs[2].ordered+w.cs[3].ordered != 0 {
		t.Fatalf("ordered by %d, %d, %d", w.cs[1].ordered, w.cs[2].ordered, w.cs[3].ordered)
	}
	var wg sync.WaitGroup
	base := int64(24000 + 1000)
	for k, f := range []*File{f1, f2} {
		wg.Go(func() {
			for range 20 {
				if _, _, err := f.WriteAt(context.Background(), bytes.Repeat([]byte{byte(k + 1)}, 64), 0, true); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got := read(t, f1, base, 1<<20)
	counts := map[byte]int{}
	for len(got) >= 64 {
		if got[0] != got[63] {
			t.Fatal("appends overlap")
		}
		counts[got[0]]++
		got = got[64:]
	}
	if counts[1] != 20 || counts[2] != 20 || len(got) != 0 {
		t.Fatalf("appends %v, %d bytes left", counts, len(got))
	}
	// The first replica cannot reach the third.
	w.cs[3].set(func() { w.cs[3].before = func(wire.Type, *wire.DataRequest) fserr.Code { return fserr.IO } })
	write(t, f2, fill(4096, 9), 0)
	if r := w.replicas(f1.Ino(), 0); len(r) != 2 || r[1] != 2 {
		t.Fatalf("replicas %v", r)
	}
	// And then the first goes away.
	w.cs[1].stop()
	write(t, f1, fill(4096, 10), 0)
	if !bytes.Equal(read(t, f2, 0, 4096), fill(4096, 10)) {
		t.Fatal("content differs after the change of the first replica")
	}
	w.cs[2].set(func() { w.cs[2].before = nil })
	size := uint64(100)
	if _, err := c2.SetAttr(t.Context(), nil, &msg.SetAttr{Ino: uint64(f2.Ino()), Size: &size}); err != nil {
		t.Fatal(err)
	}
	if got := read(t, f1, 0, 4096); len(got) != 100 {
		t.Fatalf("%d bytes after the other mount truncated", len(got))
	}
}

// The other mount truncates when a write is on the replicas and not yet reported.
// TestSharedWriteIsNotRepeatedForAReplica: between a shared write and its report a replica joins, and another mount overwrites the block. The
// first write must not be done again, over the second. (Found by internal/sim.)
func TestSharedWriteIsNotRepeatedForAReplica(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	c1, c2 := w.dial(t, nil), w.dial(t, nil)
	f1 := create(t, c1, "a")
	f2 := open(t, c2, f1, true)
	want := fill(4096, 2)
	var begun atomic.Bool
	w.setBefore(func(req *msg.MetaRequest) (fserr.Code, bool) {
		if req.GetWriteDone() != nil && !begun.Swap(true) {
			w.call(uint64(c1.Session()), &msg.Callback{Kind: msg.Callback_LAYOUT, Ino: uint64(f1.Ino()), Members: true})
			write(t, f2, want, 0)
		}
		return fserr.OK, false
	})
	write(t, f1, fill(4096, 1), 0)
	if !bytes.Equal(read(t, f2, 0, 4096), want) {
		t.Fatal("an earlier write was done again over a later one")
	}
}

func TestSharedWriteOutlivesATruncate(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	c1, c2 := w.dial(t, nil), w.dial(t, nil)
	f1 := create(t, c1, "a")
	write(t, f1, fill(4096, 1), 0)
	f2 := open(t, c2, f1, true)
	var once sync.Once
	w.setBefore(func(req *msg.MetaRequest) (fserr.Code, bool) {
		if req.GetWriteDone() != nil {
			once.Do(func() {
				if _, err := c2.SetAttr(context.Background(), nil, &msg.SetAttr{Ino: uint64(f2.Ino()), Size: new(uint64)}); err != nil {
					t.Error(err)
				}
			})
		}
		return fserr.OK, false
	})
	want := fill(4096, 2)
	write(t, f1, want, 4096)
	if !bytes.Equal(read(t, f2, 4096, 4096), want) {
		t.Fatal("a write that returned is not in the file")
	}
	if !bytes.Equal(read(t, f1, 0, 4096), make([]byte, 4096)) {
		t.Fatal("what was cut off is back")
	}
}

func TestHoleFilledByAnotherMount(t *testing.T) {
	w := newWorld(t, 1, 2, 2, 1)
	c1, c2 := w.dial(t, nil), w.dial(t, nil)
	f1 := create(t, c1, "a")
	f2 := open(t, c2, f1, true)
	write(t, f1, fill(10, 1), 2*chunk.Size)
	if got := read(t, f1, chunk.Size, 4096); !chunk.IsZero(got) || len(got) != 4096 {
		t.Fatal("hole does not read as zeros")
	}
	want := fill(4096, 2)
	write(t, f2, want, chunk.Size)
	if !bytes.Equal(read(t, f1, chunk.Size, 4096), want) {
		t.Fatal("what another mount put into a hole is not seen")
	}
}

func TestInterruptedTruncateEnds(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	want := fill(8192, 1)
	write(t, f, want, 0)
	out := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.setBefore(func(req *msg.MetaRequest) (fserr.Code, bool) {
		if set := req.GetSetAttr(); set != nil && !set.Flush {
			cancel()
			<-out
		}
		return 0, false
	})
	if err := f.Truncate(ctx, 100); fserr.Of(err) != fserr.Interrupted {
		t.Fatal(err)
	}
	close(out)
	if got := read(t, f, 0, 8192); !bytes.Equal(got, want[:100]) {
		t.Fatalf("%d bytes", len(got))
	}
	if err := f.Truncate(t.Context(), 8192); err != nil {
		t.Fatal(err)
	}
	if got := read(t, f, 0, 8192); !chunk.IsZero(got[100:]) {
		t.Fatal("what was cut off came back")
	}
}

// lockedPage is a notifier whose kernel cannot drop pages while it writes, as with two mounts that write to one page.
type lockedPage struct {
	notifier
	waits atomic.Int32
}

func (n *lockedPage) InvalidateInodeWait(ctx context.Context, ino id.Ino, off, length int64) error {
	if length == 0 {
		return nil
	}
	n.waits.Add(1)
	<-ctx.Done()
	return ctx.Err()
}

func TestInvalidationsOfTwoWritersDoNotDeadlock(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	n1, n2 := &lockedPage{}, &lockedPage{}
	c1, c2 := w.dial(t, func(o *Options) { o.Notifier = n1 }), w.dial(t, func(o *Options) { o.Notifier = n2 })
	f1 := create(t, c1, "a")
	f2 := open(t, c2, f1, true)
	var wg sync.WaitGroup
	for _, f := range []*File{f1, f2} {
		wg.Go(func() {
			if _, _, err := f.WriteAt(context.Background(), fill(100, 1), 0, false); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n1.waits.Load() == 0 || n2.waits.Load() == 0 {
		t.Fatal("pages were not to be dropped")
	}
}

func TestUpgrade(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c1, c2 := w.dial(t, nil), w.dial(t, nil)
	f1 := create(t, c1, "a")
	f2 := open(t, c2, f1, true)
	write(t, f2, fill(10000, 1), 0)
	if err := f2.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.expire(uint64(c2.Session()))
	in := w.inode(uint64(f1.Ino()))
	w.call(uint64(c1.Session()), &msg.Callback{Kind: msg.Callback_UPGRADE, Ino: uint64(f1.Ino()), Lease: in.leases[uint64(c1.Session())], Mode: msg.Mode_EXCLUSIVE_WRITE})
	eventually(t, "mode is exclusive again", func() bool { m, _ := f1.in.state(); return m == msg.Mode_EXCLUSIVE_WRITE })
	_, end, err := f1.WriteAt(t.Context(), fill(10, 1), 0, true)
	if err != nil || end != 10010 {
		t.Fatalf("append ended at %d, %v", end, err)
	}
}

func TestLeaseIsKeptAndGivenBack(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	// The sizes are not reported meanwhile: a file counts as in use as long.
	c := w.dial(t, func(o *Options) { o.IdleLeases, o.FlushEvery = 2, time.Hour })
	var files []*File
	for i := range 5 {
		f := create(t, c, string(rune('a'+i)))
		write(t, f, fill(10, 1), 0)
		files = append(files, f)
		if err := f.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "idle leases over the limit are released", func() bool { return w.count("release") == 3 })
	opens := w.count("open")
	g := open(t, c, files[4], true)
	if w.count("open") != opens {
		t.Fatal("a kept lease was asked for again")
	}
	if got := read(t, g, 0, 100); len(got) != 10 {
		t.Fatalf("%d bytes", len(got))
	}
	open(t, c, files[0], true)
	if w.count("open") != opens+1 {
		t.Fatal("a released lease was not asked for")
	}
	// An idle lease is given up when it is called back.
	c2 := w.dial(t, nil)
	open(t, c2, files[3], true)
	if m, _ := files[3].in.state(); m != msg.Mode_MODE_NONE {
		t.Fatalf("mode %v of an idle file that was called back", m)
	}
	// The last close of a removed file releases it.
	if err := c.Remove(t.Context(), nil, 1, []byte("e"), false); err != nil {
		t.Fatal(err)
	}
	n := w.count("release")
	if err := g.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "lease of a removed file is released", func() bool { return w.count("release") == n+1 })
}

func TestSizeIsReportedInTheBackground(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	write(t, f, fill(777, 1), 0)
	eventually(t, "size reported", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.inodes[uint64(f.Ino())].attr.Size == 777
	})
	m := int64(12345)
	if _, err := c.SetAttr(t.Context(), nil, &msg.SetAttr{Ino: uint64(f.Ino()), Mtime: &m}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(150 * time.Millisecond)
	if a, err := c.GetAttr(t.Context(), f.Ino()); err != nil || a.Mtime != m {
		t.Fatalf("modification time %v, %v", a, err)
	}
}

func TestLayoutCallbackWaitsForWrites(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	write(t, f, fill(4096, 1), 0)
	in, out := make(chan struct{}), make(chan struct{})
	w.cs[1].set(func() {
		w.cs[1].before = func(t wire.Type, _ *wire.DataRequest) fserr.Code {
			if t == wire.Write {
				close(in)
				<-out
			}
			return fserr.OK
		}
	})
	wrote := make(chan error, 1)
	go func() {
		_, _, err := f.WriteAt(context.Background(), fill(4096, 2), 0, false)
		wrote <- err
	}()
	<-in
	called := make(chan struct{})
	go func() {
		w.call(uint64(c.Session()), &msg.Callback{Kind: msg.Callback_LAYOUT, Ino: uint64(f.Ino())})
		close(called)
	}()
	select {
	case <-called:
		t.Fatal("answered while a write was under way")
	case <-time.After(50 * time.Millisecond):
	}
	close(out)
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	<-called
	if _, known := f.in.lookup(0); known {
		t.Fatal("layout is still known")
	}
}

func TestLocks(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	c := w.dial(t, nil)
	lock := func(owner uint64, typ msg.LockType, wait bool, ctx context.Context) error {
		_, err := c.Lock(ctx, &msg.Lock{Ino: 5, Owner: owner, Type: typ, Wait: wait})
		return err
	}
	if err := lock(1, msg.LockType_WRITE_LOCK, false, t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := lock(2, msg.LockType_WRITE_LOCK, false, t.Context()); fserr.Of(err) != fserr.Again {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := lock(2, msg.LockType_WRITE_LOCK, true, ctx); fserr.Of(err) != fserr.Timeout {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- lock(2, msg.LockType_WRITE_LOCK, true, context.Background()) }()
	if err := lock(1, msg.LockType_UNLOCK, false, t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestCloseLeavesNothingBehind(t *testing.T) {
	before := runtime.NumGoroutine()
	func() {
		w := newWorld(t, 2, 2, 2, 2)
		c := w.dial(t, func(o *Options) { o.CloseTimeout = 300 * time.Millisecond })
		f := create(t, c, "a")
		write(t, f, fill(4096, 1), 0)
		for _, m := range w.servers {
			m.stop()
		}
		w.cs[1].stop()
		go f.WriteAt(context.Background(), fill(4096, 1), 0, false) // waits for a leader to drop the replica
		time.Sleep(50 * time.Millisecond)
		start := time.Now()
		c.Close()
		if d := time.Since(start); d > 20*time.Second {
			t.Fatalf("close took %v with the cluster gone", d)
		}
		w.cs[2].stop()
	}()
	eventually(t, "goroutines ended", func() bool { return runtime.NumGoroutine() <= before+1 })
}
