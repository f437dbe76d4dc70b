package client

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

var checked = &msg.Cred{Checked: true}

func mkdir(t *testing.T, c *Client, parent id.Ino, name string) *msg.Attr {
	t.Helper()
	a, _, err := c.Create(t.Context(), checked, &msg.Create{Parent: uint64(parent), Name: []byte(name), Type: msg.FileType_DIRECTORY, Perm: 0o755, Exclusive: true})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func mknod(c *Client, parent id.Ino, name string) (*msg.Attr, error) {
	a, _, err := c.Create(context.Background(), checked, &msg.Create{Parent: uint64(parent), Name: []byte(name), Type: msg.FileType_FIFO, Perm: 0o644, Exclusive: true})
	return a, err
}

func must(t *testing.T, a *msg.Attr, err error) *msg.Attr {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func listNames(t *testing.T, c *Client, dir id.Ino, max int) []string {
	t.Helper()
	var names []string
	for cookie := uint64(0); ; {
		r, err := c.ReadDir(t.Context(), checked, dir, cookie, max, false)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range r.Entries {
			if e.Cookie <= cookie {
				t.Fatalf("cookie %d after %d", e.Cookie, cookie)
			}
			cookie = e.Cookie
			names = append(names, string(e.Name))
		}
		if r.End {
			return names
		}
	}
}

// TestCreateCostsOneRoundTrip: in a directory of its own a session asks for nothing but the creates.
func TestCreateCostsOneRoundTrip(t *testing.T) {
	w := newWorld(t, 1, 0, 1, 1)
	tr := newTree(w)
	c := w.dial(t, nil)
	dir := id.Ino(mkdir(t, c, 1, "d").Ino)
	var want []string
	const n = 500
	for i := range n {
		name := fmt.Sprint("f", i)
		if _, err := c.Lookup(t.Context(), checked, dir, []byte(name)); fserr.Of(err) != fserr.NotExist {
			t.Fatalf("%s: %v", name, err)
		}
		a, err := mknod(c, dir, name)
		must(t, a, err)
		if got := must2(t)(c.Lookup(t.Context(), checked, dir, []byte(name))); got != a {
			t.Fatalf("%v, want the one created", got)
		}
		if d := must2(t)(c.GetAttr(t.Context(), dir)); d.Mtime != a.Ctime {
			t.Fatalf("directory modified at %d, want %d", d.Mtime, a.Ctime)
		}
		want = append(want, name)
	}
	if got := listNames(t, c, dir, 64); !slices.Equal(got, want) {
		t.Fatalf("%d names listed, want %d in order", len(got), n)
	}
	for i := range n {
		if i%3 > 0 {
			if err := c.Remove(t.Context(), checked, dir, []byte(want[i]), false); err != nil {
				t.Fatal(err)
			}
		}
	}
	left := 0
	for i, name := range listNames(t, c, dir, 7) {
		if name != want[3*i] {
			t.Fatalf("%s listed, want %s", name, want[3*i])
		}
		left++
	}
	if left != (n+2)/3 {
		t.Fatalf("%d names left, want %d", left, (n+2)/3)
	}
	if l, g, r := tr.count("lookup"), tr.count("getattr"), tr.count("readdir"); l+g+r != 0 {
		t.Errorf("%d lookups, %d getattrs, %d readdirs asked for, want none", l, g, r)
	}
	if got := tr.count("create"); got != n+1 {
		t.Errorf("%d creates, want %d", got, n+1)
	}
}

func must2(t *testing.T) func(*msg.Attr, error) *msg.Attr {
	t.Helper()
	return func(a *msg.Attr, err error) *msg.Attr {
		t.Helper()
		return must(t, a, err)
	}
}

// TestCallbackDrops: what another session changes is asked for again, and nothing else.
func TestCallbackDrops(t *testing.T) {
	w := newWorld(t, 1, 0, 1, 1)
	tr := newTree(w)
	a, b := w.dial(t, nil), w.dial(t, nil)
	dir := id.Ino(mkdir(t, a, 1, "d").Ino)
	f := must2(t)(mknod(a, dir, "f"))
	perm := uint32(0o600)
	if _, err := b.SetAttr(t.Context(), checked, &msg.SetAttr{Ino: f.Ino, Perm: &perm}); err != nil {
		t.Fatal(err)
	}
	if got := must2(t)(a.Lookup(t.Context(), checked, dir, []byte("f"))); got.Perm != 0o600 {
		t.Errorf("mode %o, want 600", got.Perm)
	}
	if _, err := mknod(b, dir, "g"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Lookup(t.Context(), checked, dir, []byte("g")); err != nil {
		t.Errorf("what the other made: %v", err)
	}
	if err := b.Remove(t.Context(), checked, dir, []byte("f"), false); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Lookup(t.Context(), checked, dir, []byte("f")); fserr.Of(err) != fserr.NotExist {
		t.Errorf("what the other removed: %v", err)
	}
	must2(t)(a.Lookup(t.Context(), checked, dir, []byte("g")))
	before := tr.count("lookup")
	for range 10 { // both are known now
		_, _ = a.Lookup(t.Context(), checked, dir, []byte("f"))
		must2(t)(a.Lookup(t.Context(), checked, dir, []byte("g")))
	}
	if got := tr.count("lookup"); got != before {
		t.Errorf("%d lookups asked for, want none", got-before)
	}
	if got := listNames(t, a, dir, 10); !slices.Equal(got, []string{"g"}) {
		t.Errorf("listed %q", got)
	}
}

// stopAnswer holds back the answer to the first request that is like what match says.
func stopAnswer(w *world, match func(*msg.MetaRequest) bool) (stopped, goOn chan struct{}) {
	stopped, goOn = make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.mu.Lock()
	defer w.mu.Unlock()
	w.delay = func(req *msg.MetaRequest) {
		if !match(req) {
			return
		}
		once.Do(func() { close(stopped); <-goOn })
	}
	return stopped, goOn
}

func isLookup(name string) func(*msg.MetaRequest) bool {
	return func(r *msg.MetaRequest) bool { return string(r.GetLookup().GetName()) == name }
}

func within[T any](t *testing.T, what string, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(time.Minute):
		t.Fatal("not in time: ", what)
	}
	return v
}

// TestLateAnswers: an answer that was made before something happened, and arrives after it, is not kept.
func TestLateAnswers(t *testing.T) {
	for _, c := range []struct {
		name  string
		match func(*msg.MetaRequest) bool
		ask   func(c *Client, dir id.Ino, f *msg.Attr)
		then  func(t *testing.T, own, other *Client, dir id.Ino, f *msg.Attr)
	}{
		{"lookup, then removed here", isLookup("f"), lookupF, func(t *testing.T, own, _ *Client, dir id.Ino, _ *msg.Attr) {
			if err := own.Remove(t.Context(), checked, dir, []byte("f"), false); err != nil {
				t.Fatal(err)
			}
		}},
		{"lookup, then removed there", isLookup("f"), lookupF, func(t *testing.T, _, other *Client, dir id.Ino, _ *msg.Attr) {
			if err := other.Remove(t.Context(), checked, dir, []byte("f"), false); err != nil {
				t.Fatal(err)
			}
		}},
		{"lookup, then renamed here", isLookup("f"), lookupF, func(t *testing.T, own, _ *Client, dir id.Ino, _ *msg.Attr) {
			if err := own.Rename(t.Context(), checked, &msg.Rename{Parent: uint64(dir), Name: []byte("f"), NewParent: 1, NewName: []byte("x")}); err != nil {
				t.Fatal(err)
			}
		}},
		{"lookup of nothing, then made here", isLookup("new"), func(c *Client, dir id.Ino, _ *msg.Attr) {
			_, _ = c.Lookup(context.Background(), checked, dir, []byte("new"))
		}, func(t *testing.T, own, _ *Client, dir id.Ino, _ *msg.Attr) { must2(t)(mknod(own, dir, "new")) }},
		{"lookup of nothing, then made there", isLookup("new"), func(c *Client, dir id.Ino, _ *msg.Attr) {
			_, _ = c.Lookup(context.Background(), checked, dir, []byte("new"))
		}, func(t *testing.T, _, other *Client, dir id.Ino, _ *msg.Attr) { must2(t)(mknod(other, dir, "new")) }},
		{"getattr, then changed here", func(r *msg.MetaRequest) bool { return r.GetGetAttr() != nil }, func(c *Client, _ id.Ino, f *msg.Attr) {
			_, _ = c.GetAttr(context.Background(), id.Ino(f.Ino))
		}, func(t *testing.T, own, _ *Client, _ id.Ino, f *msg.Attr) { chmod(t, own, f.Ino, 0o640) }},
		{"getattr, then changed there", func(r *msg.MetaRequest) bool { return r.GetGetAttr() != nil }, func(c *Client, _ id.Ino, f *msg.Attr) {
			_, _ = c.GetAttr(context.Background(), id.Ino(f.Ino))
		}, func(t *testing.T, _, other *Client, _ id.Ino, f *msg.Attr) { chmod(t, other, f.Ino, 0o640) }},
		{"readdir, then changed here", func(r *msg.MetaRequest) bool { return r.GetReadDir() != nil }, func(c *Client, dir id.Ino, _ *msg.Attr) {
			_, _ = c.ReadDir(context.Background(), checked, dir, 0, 100, false)
		}, changeNames(true)},
		{"readdir, then changed there", func(r *msg.MetaRequest) bool { return r.GetReadDir() != nil }, func(c *Client, dir id.Ino, _ *msg.Attr) {
			_, _ = c.ReadDir(context.Background(), checked, dir, 0, 100, false)
		}, changeNames(false)},
		{"readdir with attributes, then changed here", func(r *msg.MetaRequest) bool { return r.GetReadDir() != nil }, func(c *Client, dir id.Ino, _ *msg.Attr) {
			_, _ = c.ReadDir(context.Background(), checked, dir, 0, 100, true)
		}, func(t *testing.T, own, _ *Client, _ id.Ino, f *msg.Attr) { chmod(t, own, f.Ino, 0o640) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 1, 0, 1, 1)
			tr := newTree(w)
			own, other := w.dial(t, nil), w.dial(t, nil)
			dir := id.Ino(mkdir(t, other, 1, "d").Ino)
			f := must2(t)(mknod(other, dir, "f"))
			must2(t)(mknod(other, dir, "g"))
			stopped, goOn := stopAnswer(w, c.match)
			done := make(chan struct{})
			go func() { defer close(done); c.ask(own, dir, f) }()
			within(t, "the request", stopped)
			c.then(t, own, other, dir, f)
			close(goOn)
			within(t, "the answer", done)
			tr.equal(t, own, dir)
		})
	}
}

func lookupF(c *Client, dir id.Ino, _ *msg.Attr) {
	_, _ = c.Lookup(context.Background(), checked, dir, []byte("f"))
}

func chmod(t *testing.T, c *Client, ino uint64, perm uint32) {
	t.Helper()
	must2(t)(c.SetAttr(t.Context(), checked, &msg.SetAttr{Ino: ino, Perm: &perm}))
}

func changeNames(here bool) func(t *testing.T, own, other *Client, dir id.Ino, f *msg.Attr) {
	return func(t *testing.T, own, other *Client, dir id.Ino, _ *msg.Attr) {
		c := other
		if here {
			c = own
		}
		must2(t)(mknod(c, dir, "new"))
		if err := c.Remove(t.Context(), checked, dir, []byte("f"), false); err != nil {
			t.Fatal(err)
		}
		if err := c.Rename(t.Context(), checked, &msg.Rename{Parent: uint64(dir), Name: []byte("g"), NewParent: uint64(dir), NewName: []byte("h")}); err != nil {
			t.Fatal(err)
		}
	}
}

// equal compares what a client says of a directory with what is there.
func (t *tree) equal(tt testing.TB, c *Client, dir id.Ino) {
	tt.Helper()
	t.mu.Lock()
	d := t.nodes[uint64(dir)]
	var want []*msg.Dirent
	names := []string{"f", "g", "h", "new", "x"}
	if d != nil {
		want = t.list(d, &msg.ReadDir{Max: 1 << 20}, 0).Entries
		for n := range d.names {
			names = append(names, n)
		}
	}
	attrs := map[string]*msg.Attr{}
	for _, e := range want {
		attrs[string(e.Name)] = t.attr(e.Ino)
	}
	t.mu.Unlock()
	if d == nil {
		return
	}
	for _, n := range names {
		a, err := c.Lookup(context.Background(), checked, dir, []byte(n))
		switch w := attrs[n]; {
		case w == nil && fserr.Of(err) != fserr.NotExist:
			tt.Errorf("%s: %v, %v, but it is not there", n, a, err)
		case w != nil && (err != nil || !proto.Equal(a, w)):
			tt.Errorf("%s: %v, %v, want %v", n, a, err, w)
		case w != nil:
			if a, err := c.GetAttr(context.Background(), id.Ino(w.Ino)); err != nil || !proto.Equal(a, w) {
				tt.Errorf("%s: attributes %v, %v, want %v", n, a, err, w)
			}
		}
	}
	var got []*msg.Dirent
	for cookie, end := uint64(0), false; !end; {
		r, err := c.ReadDir(context.Background(), checked, dir, cookie, 3, false)
		if err != nil {
			tt.Fatal(err)
		}
		got, end = append(got, r.Entries...), r.End
		if len(r.Entries) > 0 {
			cookie = r.Entries[len(r.Entries)-1].Cookie
		}
	}
	if !slices.EqualFunc(got, want, func(a, b *msg.Dirent) bool {
		return a.Ino == b.Ino && string(a.Name) == string(b.Name) && a.Cookie == b.Cookie && a.Type == b.Type
	}) {
		tt.Errorf("listed %v, want %v", got, want)
	}
}

// TestCacheModel does random operations on three clients, one after the other and then at once, and compares what they say with
// what is there: after each operation, and after they have ended.
func TestCacheModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w := newWorld(t, 1, 0, 1, 1)
	tr := newTree(w)
	tr.page = 4
	var clients []*Client
	for i := range 3 {
		clients = append(clients, w.dial(t, func(o *Options) {
			if i == 2 {
				o.CacheEntries = 10 // evicts all the time
			}
		}))
	}
	dirs := []id.Ino{1}
	for i := range 3 {
		dirs = append(dirs, id.Ino(mkdir(t, clients[i%2], 1, fmt.Sprint("dir", i)).Ino))
	}
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range 1500 {
		randomOp(r, clients[r.IntN(3)], dirs)
		tr.equal(t, clients[r.IntN(3)], dirs[r.IntN(len(dirs))])
		if t.Failed() {
			t.Fatalf("after %d operations", i+1)
		}
	}
	for range 10 {
		var all sync.WaitGroup
		for i := range 9 {
			r := rand.New(rand.NewPCG(seed, r.Uint64()))
			all.Go(func() {
				for range 60 {
					randomOp(r, clients[i%3], dirs)
				}
			})
		}
		all.Wait()
		for _, c := range clients {
			for _, d := range dirs {
				tr.equal(t, c, d)
			}
			if n := c.cache.wild.Load(); n != 0 {
				t.Errorf("%d changes are said to be under way", n)
			}
			for i := range c.cache.shards {
				s := &c.cache.shards[i]
				s.mu.Lock()
				for ino, b := range s.busy { // a directory may be being read ahead
					if b.attr > 0 || len(b.names) > 0 {
						t.Errorf("inode %v is said to be busy: %+v", ino, b)
					}
				}
				s.mu.Unlock()
			}
		}
		if t.Failed() {
			return
		}
	}
	if clients[0].cache.total.Load() == 0 {
		t.Error("nothing is held, so nothing was tested")
	}
}

func randomOp(r *rand.Rand, c *Client, dirs []id.Ino) {
	ctx := context.Background()
	dir, other := dirs[r.IntN(len(dirs))], dirs[r.IntN(len(dirs))]
	name, to := fmt.Appendf(nil, "n%d", r.IntN(12)), fmt.Appendf(nil, "n%d", r.IntN(12))
	switch r.IntN(10) {
	case 0, 1, 2:
		_, _ = mknod(c, dir, string(name))
	case 3, 4:
		_ = c.Remove(ctx, checked, dir, name, false)
	case 5:
		_ = c.Rename(ctx, checked, &msg.Rename{Parent: uint64(dir), Name: name, NewParent: uint64(other), NewName: to})
	case 6:
		if a, err := c.Lookup(ctx, checked, dir, name); err == nil {
			perm := uint32(r.IntN(0o777))
			_, _ = c.SetAttr(ctx, checked, &msg.SetAttr{Ino: a.Ino, Perm: &perm})
		}
	case 7:
		_, _ = c.ReadDir(ctx, checked, dir, uint64(r.IntN(20)), 1+r.IntN(10), r.IntN(2) == 0)
	case 8:
		_, _ = c.GetAttr(ctx, dir)
	default:
		_, _ = c.Lookup(ctx, checked, dir, name)
	}
}
