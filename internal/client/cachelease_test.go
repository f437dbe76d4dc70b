package client

import (
	"context"
	"errors"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// metaNotes is a notifier that remembers what it was told.
type metaNotes struct {
	notifier
	all   chan struct{}
	meta  func()
	attrs chan []id.Ino
}

func (n *metaNotes) ForgetMeta(_, _ []id.Ino) {
	if n.meta != nil {
		n.meta()
	}
}

func (n *metaNotes) ForgetAttrs(inos []id.Ino) {
	select {
	case n.attrs <- inos:
	default:
	}
}

func (n *metaNotes) ForgetAllMeta() {
	select {
	case n.all <- struct{}{}:
	default:
	}
}

func newMetaNotes() *metaNotes {
	return &metaNotes{all: make(chan struct{}, 100), attrs: make(chan []id.Ino, 100)}
}

// TestDroppedBeforeReconnect: what was granted on a connection is dropped, here and in the kernel, before another one is made.
func TestDroppedBeforeReconnect(t *testing.T) {
	w := newWorld(t, 2, 0, 1, 1)
	tr := newTree(w)
	n := newMetaNotes()
	c := w.dial(t, func(o *Options) { o.Notifier = n })
	other := w.dial(t, nil)
	dir := id.Ino(mkdir(t, c, 1, "d").Ino)
	f := must2(t)(mknod(c, dir, "f"))
	late := newReading(t, w, c, dir)
	w.mu.Lock()
	w.leader = 1
	old := w.sessions[uint64(c.Session())].conn
	w.mu.Unlock()
	tr.mu.Lock() // the new leader knows of no grants
	clear(tr.attrs)
	clear(tr.names)
	tr.mu.Unlock()
	old.Close()
	within(t, "the kernel's copy to be dropped", n.all)
	eventually(t, "another connection", func() bool { return c.cache.usable() })
	chmod(t, other, f.Ino, 0o640)
	late()
	if got := must2(t)(c.GetAttr(t.Context(), id.Ino(f.Ino))); got.Perm != 0o640 {
		t.Errorf("mode %o, want 640", got.Perm)
	}
	tr.equal(t, c, dir)
}

// newReading puts an answer into the cache that was asked for now, later.
func newReading(t *testing.T, w *world, c *Client, dir id.Ino) (arrive func()) {
	start := c.cache.now()
	stale := &msg.Attr{Ino: uint64(dir), Type: msg.FileType_DIRECTORY, Perm: 0o111, Nlink: 2}
	return func() { c.cache.learnAttr(stale, 1<<40, start) }
}

// TestCacheLeaseEnds: without renewals nothing is used, and what was held before does not come back with a later one.
func TestCacheLeaseEnds(t *testing.T) {
	w := newWorld(t, 1, 0, 1, 1)
	tr := newTree(w)
	w.cacheMs = 300
	n := newMetaNotes()
	c := w.dial(t, func(o *Options) { o.Notifier = n })
	dir := id.Ino(mkdir(t, c, 1, "d").Ino)
	f := must2(t)(mknod(c, dir, "f"))
	if entry, attr := c.Hold(dir, []byte("f"), f); entry > 300*time.Millisecond || attr > 300*time.Millisecond {
		t.Errorf("the kernel may keep a name for %v and attributes for %v, though the lease is 300ms", entry, attr)
	}
	c.Unhold(dir, f)
	w.mu.Lock()
	w.deaf = true
	w.mu.Unlock()
	eventually(t, "the lease to end", func() bool { return !c.cache.usable() })
	tr.mu.Lock() // as a leader does that waits no longer
	tr.nodes[f.Ino].attr.Perm = 0o640
	clear(tr.attrs)
	clear(tr.names)
	tr.mu.Unlock()
	if got := must2(t)(c.GetAttr(t.Context(), id.Ino(f.Ino))); got.Perm != 0o640 {
		t.Errorf("mode %o after the lease, want 640", got.Perm)
	}
	if entry, attr := c.Hold(dir, []byte("f"), f); entry != 0 || attr != 0 {
		t.Errorf("after the lease the kernel may keep a name for %v and attributes for %v", entry, attr)
	}
	c.Unhold(dir, f)
	w.mu.Lock()
	w.deaf = false
	w.mu.Unlock()
	eventually(t, "the lease to be renewed", func() bool { return c.cache.usable() })
	if got := must2(t)(c.Lookup(t.Context(), checked, dir, []byte("f"))); got.Perm != 0o640 {
		t.Errorf("mode %o after the lease was renewed, want 640", got.Perm)
	}
}

// TestHold: what is about to be written to the kernel is kept by it only if it is what is held, and a callback waits until it is written.
func TestHold(t *testing.T) {
	w := newWorld(t, 1, 0, 1, 1)
	newTree(w)
	a, b := w.dial(t, nil), w.dial(t, nil)
	dir := id.Ino(mkdir(t, a, 1, "d").Ino)
	f := must2(t)(mknod(a, dir, "f"))
	entry, attr := a.Hold(dir, []byte("f"), f)
	if entry <= 0 || attr <= 0 {
		t.Errorf("a name may be kept for %v and attributes for %v", entry, attr)
	}
	done := make(chan error, 1)
	perm := uint32(0o640)
	go func() {
		_, err := b.SetAttr(context.Background(), checked, &msg.SetAttr{Ino: f.Ino, Perm: &perm})
		done <- err
	}()
	select {
	case <-done:
		t.Error("changed while the answer to the kernel was being written")
	case <-time.After(50 * time.Millisecond):
	}
	a.Unhold(dir, f)
	if err := within(t, "the change", done); err != nil {
		t.Fatal(err)
	}
	if entry, attr := a.Hold(dir, []byte("f"), f); entry != 0 || attr != 0 {
		t.Errorf("an old answer may be kept: the name for %v, attributes for %v", entry, attr)
	}
	a.Unhold(dir, f)
	if entry, _ := a.Hold(dir, []byte("none"), nil); entry <= 0 {
		t.Error("that a name is not in a directory which is known may not be kept")
	}
	a.Unhold(dir, nil)
	must2(t)(mknod(b, dir, "none"))
	if entry, _ := a.Hold(dir, []byte("none"), nil); entry != 0 {
		t.Error("that a name is not there may be kept, though it is")
	}
	a.Unhold(dir, nil)
}

// TestAbandonedChange: a change whose caller has gone is seen to its end, and until then nothing that it may have changed is served.
func TestAbandonedChange(t *testing.T) {
	w := newWorld(t, 1, 0, 1, 1)
	tr := newTree(w)
	c := w.dial(t, nil)
	dir := id.Ino(mkdir(t, c, 1, "d").Ino)
	must2(t)(mknod(c, dir, "f"))
	stopped, goOn := stopAnswer(w, func(r *msg.MetaRequest) bool { return r.GetRemove() != nil })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	name := []byte("f")
	go func() { done <- c.Remove(ctx, checked, dir, name, false) }()
	within(t, "the request", stopped)
	if _, err := c.Lookup(t.Context(), checked, dir, []byte("f")); fserr.Of(err) != fserr.NotExist {
		t.Errorf("the name while its removal is under way: %v", err)
	}
	cancel()
	if err := within(t, "the caller", done); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	copy(name, "new") // the caller uses its buffer again
	s := c.cache.shard(dir)
	ended := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.busy[dir] == nil || s.busy[dir].attr == 0
	}
	before := tr.count("getattr")
	// The change is asked about again, which the leader may answer by now.
	if _, err := c.GetAttr(t.Context(), dir); err != nil || tr.count("getattr") == before && !ended() {
		t.Errorf("attributes of the directory were not asked for: %v", err)
	}
	close(goOn)
	eventually(t, "the change to end", ended)
	tr.equal(t, c, dir)
	if got := tr.count("remove"); got != 1 {
		t.Errorf("carried out %d times", got)
	}
}

// TestUncheckedAsksTheLeader: the cache checks no rights, so whoever was not checked by the kernel is sent to the leader.
func TestUncheckedAsksTheLeader(t *testing.T) {
	w := newWorld(t, 1, 0, 1, 1)
	tr := newTree(w)
	c := w.dial(t, nil)
	dir := id.Ino(mkdir(t, c, 1, "d").Ino)
	for _, cred := range []*msg.Cred{nil, {Uid: 1000, Gid: 1000, Groups: []uint32{5}}} {
		before := tr.count("lookup")
		if _, err := c.Lookup(t.Context(), cred, 1, []byte("d")); err != nil || tr.count("lookup") != before+1 {
			t.Errorf("%v: %v, %d lookups asked for, want 1", cred, err, tr.count("lookup")-before)
		}
		before = tr.count("readdir")
		if _, err := c.ReadDir(t.Context(), cred, dir, 0, 10, false); err != nil || tr.count("readdir") != before+1 {
			t.Errorf("%v: %v, %d readdirs asked for, want 1", cred, err, tr.count("readdir")-before)
		}
	}
}

// TestReadAhead: looking up one name after the other fetches the directory in pages.
func TestReadAhead(t *testing.T) {
	w := newWorld(t, 1, 0, 1, 1)
	tr := newTree(w)
	maker := w.dial(t, nil)
	dir := id.Ino(mkdir(t, maker, 1, "d").Ino)
	const n = 2000
	for i := range n {
		must2(t)(mknod(maker, dir, string(rune('a'+i%26))+time.Duration(i).String()))
	}
	names := listNames(t, maker, dir, 1000)
	c := w.dial(t, nil)
	fetching := func() bool {
		shard := c.cache.shard(dir)
		shard.mu.Lock()
		defer shard.mu.Unlock()
		r := shard.m[dir]
		return r != nil && r.names != nil && r.names.ahead.running
	}
	for _, name := range names {
		must2(t)(c.Lookup(t.Context(), checked, dir, []byte(name)))
		if fetching() { // else, on a busy machine, many names are asked for before the page that has them is there
			eventually(t, "the page", func() bool { return !fetching() })
		}
	}
	if l, r := tr.count("lookup"), tr.count("readdir"); l > n/4 || r > 3*n/tr.page {
		t.Errorf("%d lookups and %d readdirs for %d names", l, r, n)
	}
	before := tr.count("lookup") + tr.count("getattr")
	eventually(t, "the directory to be known", func() bool { return c.cache.readDir(dir, 0, 1) != nil })
	for _, name := range names {
		must2(t)(c.Lookup(t.Context(), checked, dir, []byte(name)))
	}
	if got := tr.count("lookup") + tr.count("getattr"); got > before+n/100 {
		t.Errorf("%d requests for what is known", got-before)
	}
}
