package mds

import (
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/state"
)

func mkdir(k *testClient, parent uint64, name string) *msg.MetaReply {
	k.c.t.Helper()
	return k.must(k.change(&msg.Create{Parent: parent, Name: []byte(name), Type: msg.FileType_DIRECTORY, Perm: 0o755}))
}

func mknod(parent uint64, name string) *msg.Create {
	return &msg.Create{Parent: parent, Name: []byte(name), Type: msg.FileType_REGULAR, Perm: 0o644, Exclusive: true}
}

// forgets has the client answer META callbacks with wait, and returns what it is called back for.
func (k *testClient) forgets(wait func(*msg.Callback)) {
	k.answer(func(cb *msg.Callback) *msg.CallbackReply {
		if cb.Kind == msg.Callback_META && wait != nil {
			wait(cb)
		}
		return &msg.CallbackReply{Keep: msg.Want_WANT_NONE}
	})
}

func TestGrants(t *testing.T) {
	c := newCluster(t, 1, patient)
	a := newClient(c)
	made := mkdir(a, 1, "d")
	d := made.Attr.Ino
	if g := made.Grant; !g.GetAttr() || !g.GetNames() || !g.GetNewNames() {
		t.Errorf("mkdir grants %v", g)
	}
	if len(made.Touched) != 1 || made.Touched[0].Ino != 1 || made.Touched[0].Nlink != 3 {
		t.Errorf("mkdir touched %v, want the parent with 3 links", made.Touched)
	}
	f := a.must(a.change(mknod(d, "f")))
	if !f.Grant.GetAttr() || !f.Grant.GetNames() || f.Grant.GetNewNames() {
		t.Errorf("create grants %v", f.Grant)
	}
	if g := a.must(a.read(&msg.GetAttr{Ino: f.Attr.Ino})).Grant; !g.GetAttr() || g.GetNames() {
		t.Errorf("getattr grants %v", g)
	}
	if g := a.must(a.read(&msg.Lookup{Parent: d, Name: []byte("f")})).Grant; !g.GetAttr() || !g.GetNames() {
		t.Errorf("lookup grants %v", g)
	}
	r, code := a.do(a.read(&msg.Lookup{Parent: d, Name: []byte("none")}))
	if code != fserr.NotExist || !r.Grant.GetNames() {
		t.Errorf("lookup of nothing: %v, grants %v", code, r.Grant)
	}
	if r, code := a.do(a.read(&msg.Lookup{Parent: f.Attr.Ino, Name: []byte("x")})); code == fserr.OK || r.Grant != nil {
		t.Errorf("lookup below a file: %v, grants %v", code, r.Grant)
	}
	list := a.must(a.read(&msg.ReadDir{Ino: d, Max: 100, Plus: true}))
	if !list.Grant.GetNames() || !list.Grant.GetEntries() || list.GetReadDir().Entries[0].Once {
		t.Errorf("readdir grants %v, entries %v", list.Grant, list.GetReadDir().Entries)
	}
	g := a.must(a.change(mknod(d, "g")))
	moved := a.must(a.change(&msg.Rename{Parent: d, Name: []byte("f"), NewParent: d, NewName: []byte("g")}))
	gone := map[uint64]bool{} // without links
	for _, a := range moved.Touched {
		gone[a.Ino] = a.Nlink == 0
	}
	if want := map[uint64]bool{d: false, g.Attr.Ino: true}; !moved.Grant.GetNames() || !maps.Equal(gone, want) {
		t.Errorf("rename over %d grants %v and touched %v, want the parent, and that the other is gone", g.Attr.Ino, moved.Grant, moved.Touched)
	}
	if n := a.calls(msg.Callback_META); n != 0 {
		t.Errorf("the only client was called back %d times", n)
	}
}

func TestChangeWaitsForTheCallback(t *testing.T) {
	c := newCluster(t, 1, patient)
	a, b := newClient(c), newClient(c)
	d := mkdir(a, 1, "d").Attr.Ino
	for _, tc := range []struct {
		name   string
		change func(i int) any
		names  bool
	}{
		{"create", func(i int) any { return mknod(d, fmt.Sprint("f", i)) }, true},
		{"chmod", func(int) any { perm := uint32(0o700); return &msg.SetAttr{Ino: d, Perm: &perm} }, false},
		{"remove", func(int) any { return &msg.Remove{Parent: d, Name: []byte("f0")} }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			entered, let := make(chan *msg.Callback, 4), make(chan struct{})
			a.forgets(func(cb *msg.Callback) {
				entered <- cb
				<-let
			})
			if g := a.must(a.read(&msg.GetAttr{Ino: d})).Grant; !g.GetAttr() {
				t.Fatalf("getattr grants %v", g)
			}
			if g := a.must(a.read(&msg.ReadDir{Ino: d, Max: 10})).Grant; !g.GetNames() {
				t.Fatalf("readdir grants %v", g)
			}
			before := c.leader().fsm.index()
			done := make(chan struct{})
			go func() {
				defer close(done)
				b.must(b.change(tc.change(0)))
			}()
			cb := <-entered
			if len(cb.Attrs) == 0 || cb.Attrs[0] != d || (len(cb.Names) > 0) != tc.names {
				t.Errorf("called back for attributes of %v and names of %v", cb.Attrs, cb.Names)
			}
			time.Sleep(50 * time.Millisecond)
			if at := c.leader().fsm.index(); at != before {
				t.Errorf("index %d before the answer, want %d: the change was committed", at, before)
			}
			if g := a.must(a.read(&msg.GetAttr{Ino: d})).Grant; g.GetAttr() {
				t.Error("granted while it is being changed")
			}
			close(let)
			<-done
			a.forgets(nil)
			if g := a.must(a.read(&msg.GetAttr{Ino: d})).Grant; !g.GetAttr() {
				t.Error("not granted after the change")
			}
		})
	}
}

func TestWrittenFileIsNotGranted(t *testing.T) {
	c := newCluster(t, 1, patient)
	a, b := newClient(c), newClient(c)
	a.answer(func(cb *msg.Callback) *msg.CallbackReply { return &msg.CallbackReply{Keep: msg.Want_WANT_WRITE} })
	made := a.create("f", true)
	if !made.Grant.GetAttr() {
		t.Errorf("the only writer is granted %v", made.Grant)
	}
	if g := b.must(b.read(&msg.Lookup{Parent: 1, Name: []byte("f")})).Grant; g.GetAttr() || !g.GetNames() {
		t.Errorf("another is granted %v", g)
	}
	list := b.must(b.read(&msg.ReadDir{Ino: 1, Max: 10, Plus: true})).GetReadDir().Entries
	if len(list) != 1 || !list[0].Once {
		t.Errorf("entries %v", list)
	}
	free := a.create("g", false)
	if g := b.must(b.read(&msg.GetAttr{Ino: free.Attr.Ino})).Grant; !g.GetAttr() {
		t.Errorf("a file that nobody writes: %v", g)
	}
	n := b.calls(msg.Callback_META)
	a.must(a.change(&msg.Open{Ino: free.Attr.Ino, Want: msg.Want_WANT_WRITE}))
	if b.calls(msg.Callback_META) != n+1 {
		t.Error("the other was not called back before a writer came")
	}
	b.must(b.change(&msg.Open{Ino: free.Attr.Ino, Want: msg.Want_WANT_WRITE}))
	for _, k := range []*testClient{a, b} {
		if g := k.must(k.read(&msg.GetAttr{Ino: free.Attr.Ino})).Grant; g.GetAttr() {
			t.Error("granted while two write")
		}
	}
}

func TestDeadClientDelaysByItsCacheLease(t *testing.T) {
	const lease = 2 * time.Second
	c := newCluster(t, 1, func(o *Options) { o.SessionLease, o.CacheLease = time.Minute, lease })
	a, b := newClient(c), newClient(c)
	d := mkdir(b, 1, "d").Attr.Ino
	a.must(a.read(&msg.ReadDir{Ino: d, Max: 10}))
	a.close()
	x := c.lead().grants.cacher(a.session)
	x.mu.Lock()
	until := x.until
	x.mu.Unlock()
	b.must(b.change(mknod(d, "f")))
	if left := until - bootNow(); left > 0 {
		t.Errorf("the change was done %v before the cache lease of the dead client was over", left)
	}
	c.eventually("a change that waits for nobody", func() bool {
		begin := time.Now()
		b.must(b.change(mknod(d, fmt.Sprint("g", begin.UnixNano()))))
		return time.Since(begin) < lease
	})
}

// A client that renews and does not answer loses its lease, and gets a new one by connecting again.
func TestSilentClientMayCacheNothing(t *testing.T) {
	const lease = time.Second
	c := newCluster(t, 1, func(o *Options) { o.SessionLease, o.CacheLease = time.Minute, lease })
	a, b := newClient(c), newClient(c)
	d := mkdir(b, 1, "d").Attr.Ino
	a.must(a.read(&msg.ReadDir{Ino: d, Max: 10}))
	stuck := make(chan struct{})
	a.forgets(func(*msg.Callback) { <-stuck })
	defer close(stuck)
	a.mu.Lock()
	conn := a.conn
	a.mu.Unlock()
	b.must(b.change(mknod(d, "f")))
	c.eventually("the silent client's connection to be closed", func() bool { return conn.Err() != nil })
	c.eventually("a new connection", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.conn != nil && a.conn != conn && a.conn.Err() == nil
	})
	a.forgets(nil)
	c.eventually("grants again", func() bool { return a.must(a.read(&msg.GetAttr{Ino: d})).Grant.GetAttr() })
}

func TestNewLeaderWaitsForUnknownSessions(t *testing.T) {
	const lease = 3 * time.Second
	c := newCluster(t, 3, func(o *Options) { o.SessionLease, o.CacheLease = time.Minute, lease })
	a, b := newClient(c), newClient(c)
	d := mkdir(b, 1, "d").Attr.Ino
	a.must(a.read(&msg.ReadDir{Ino: d, Max: 10}))
	// Both live: they connect, and nothing waits.
	c.kill(c.leaderIndex())
	begin := time.Now()
	b.must(b.change(mknod(d, "f")))
	t.Logf("a change after the leader was killed took %v", time.Since(begin).Round(time.Millisecond))
	for i := range c.servers {
		if c.servers[i] == nil {
			c.start(i)
		}
	}
	// One is dead, and the new leader does not know what it holds.
	a.must(a.read(&msg.ReadDir{Ino: d, Max: 10}))
	a.close()
	c.kill(c.leaderIndex())
	since := c.lead().since
	b.must(b.change(mknod(d, "g")))
	if now := bootNow(); now-since < lease {
		t.Errorf("the change was done %v after the election, want more than %v", now-since, lease)
	}
}

func TestGrantLimit(t *testing.T) {
	c := newCluster(t, 1, patient)
	a := newClient(c)
	d := mkdir(a, 1, "d").Attr.Ino
	l := c.lead()
	x := l.grants.cacher(a.session)
	x.count.Store(maxSessionGrants)
	f := a.must(a.change(mknod(d, "f")))
	if f.Grant.GetAttr() {
		t.Error("granted beyond the limit")
	}
	c.eventually("grants to be called back", func() bool { return a.calls(msg.Callback_META) > 0 })
}

func TestGrantTable(t *testing.T) {
	g := newGrants(time.Minute, time.Second, bootNow())
	g.wildUntil = 0
	g.bind(1)
	g.bind(2)
	one, two := g.cacher(1), g.cacher(2)
	k := attrKey(7)
	first, again := g.grant(one, k), g.grant(one, k)
	if !first || !again || !g.grant(two, k) || one.count.Load() != 1 {
		t.Fatal("not granted")
	}
	hold := g.begin(1, []grantKey{k})
	if len(hold) != 1 || hold[0].h.c != two {
		t.Fatalf("to call back: %v", hold)
	}
	g.drop(k, hold[0].h)
	if g.grant(two, k) {
		t.Error("granted to another while it is changed")
	}
	if !g.grant(one, k) {
		t.Error("not granted to the one that changes it")
	}
	if hold := g.begin(2, []grantKey{k}); len(hold) != 1 || hold[0].h.c != one {
		t.Errorf("to call back for a second change: %v", hold)
	}
	if g.grant(one, k) {
		t.Error("granted while another changes it too")
	}
	g.end(2, []grantKey{k})
	g.end(1, []grantKey{k})
	if !g.grant(two, k) {
		t.Error("not granted after the changes")
	}
	g.bind(2) // all void
	if over, _ := two.over(1); !over || two.count.Load() != 0 {
		t.Error("grants of an earlier connection count")
	}
	g.sweep()
	if n := g.total.Load(); n != 1 {
		t.Errorf("%d grants left, want 1", n)
	}
	g.gone(1, true)
	g.sweep()
	for i := range g.shards {
		if len(g.shards[i].holders) > 0 || len(g.shards[i].changing) > 0 {
			t.Error("something is left")
		}
	}
}

// cachingClient keeps what it is granted, as the rules say, and checks that it was true at some moment of each read.
type cachingClient struct {
	*testClient
	mu    sync.Mutex
	gen   uint64 // callbacks so far
	attrs map[uint64]uint32
}

func (k *cachingClient) forget(cb *msg.Callback) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gen++
	for _, ino := range cb.Attrs {
		delete(k.attrs, ino)
	}
}

// perm reads the mode of a file, from the cache if it is there.
func (k *cachingClient) perm(ino uint64) (uint32, bool) {
	k.mu.Lock()
	p, ok := k.attrs[ino]
	gen := k.gen
	k.mu.Unlock()
	if ok {
		return p, true
	}
	r := k.must(k.testClient.read(&msg.GetAttr{Ino: ino}))
	k.mu.Lock()
	defer k.mu.Unlock()
	if r.Grant.GetAttr() && k.gen == gen {
		k.attrs[ino] = r.Attr.Perm
	}
	return r.Attr.Perm, false
}

// Each file's mode is a counter that one client counts up and the others read: nobody may read less than what was written before
// the read began, or more than what was being written when it ended.
func TestCachedReadsAreNotStale(t *testing.T) {
	c := newCluster(t, 1, func(o *Options) { o.SessionLease = time.Minute })
	const files, readers = 4, 3
	w := newClient(c)
	var inos [files]uint64
	var lock sync.Mutex
	var done, begun [files]uint32
	for i := range inos {
		inos[i] = w.must(w.change(mknod(1, fmt.Sprint("f", i)))).Attr.Ino
		perm := uint32(0)
		w.must(w.change(&msg.SetAttr{Ino: inos[i], Perm: &perm}))
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var cached, asked [readers]atomic.Int64
	for n := range readers {
		k := &cachingClient{testClient: newClient(c), attrs: make(map[uint64]uint32)}
		k.forgets(k.forget)
		wg.Go(func() {
			for i := n; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				f := i % files
				lock.Lock()
				low := done[f]
				lock.Unlock()
				got, hit := k.perm(inos[f])
				lock.Lock()
				high := begun[f]
				lock.Unlock()
				if got < low || got > high {
					t.Errorf("file %d: read %d, want %d to %d; from the cache: %v", f, got, low, high, hit)
					return
				}
				if hit {
					cached[n].Add(1)
					time.Sleep(50 * time.Microsecond)
				} else {
					asked[n].Add(1)
				}
			}
		})
	}
	for i := range 400 {
		f := i % files
		lock.Lock()
		begun[f]++
		perm := begun[f]
		lock.Unlock()
		w.must(w.change(&msg.SetAttr{Ino: inos[f], Perm: &perm}))
		lock.Lock()
		done[f] = perm
		lock.Unlock()
	}
	for n := range readers {
		c.eventually("a reader to have read from its cache and at the server", func() bool { return t.Failed() || cached[n].Load() > 0 && asked[n].Load() > 0 })
	}
	close(stop)
	wg.Wait()
	for n := range readers {
		t.Logf("reader %d: %d reads from the cache, %d at the server", n, cached[n].Load(), asked[n].Load())
	}
}

// Two sessions that create in one directory take it from each other all the time, and both go on.
func TestTwoCreateInOneDirectory(t *testing.T) {
	c := newCluster(t, 1, func(o *Options) { o.SessionLease = time.Minute })
	a, b := newClient(c), newClient(c)
	d := mkdir(a, 1, "d").Attr.Ino
	var wg sync.WaitGroup
	for n, k := range []*testClient{a, b} {
		wg.Go(func() {
			for i := range 50 {
				k.must(k.read(&msg.GetAttr{Ino: d}))
				k.must(k.change(mknod(d, fmt.Sprintf("%d-%d", n, i))))
			}
		})
	}
	wg.Wait()
	for n, k := range []*testClient{a, b} { // one may have been done before the other began
		for _, x := range []*testClient{a, b} {
			x.must(x.read(&msg.GetAttr{Ino: d}))
		}
		k.must(k.change(mknod(d, fmt.Sprint("last-", n))))
	}
	count := 0
	c.leader().fsm.view(func(st *state.State) {
		st.Dentries(id.Ino(d), 0, func(*state.Dentry) bool { count++; return true })
	})
	if count != 102 {
		t.Errorf("%d names, want 102", count)
	}
	if a.calls(msg.Callback_META) == 0 || b.calls(msg.Callback_META) == 0 {
		t.Error("nobody was called back")
	}
}

func TestRenewalSaysHowLongToCache(t *testing.T) {
	c := newCluster(t, 1, nil)
	a := newClient(c)
	reply := new(msg.RenewSessionReply)
	a.mu.Lock()
	conn := a.conn
	a.mu.Unlock()
	code, err := conn.CallMessage(t.Context(), wire.RenewSession, wire.ClassHeartbeat, &msg.RenewSession{Session: uint64(a.session)}, reply)
	want := c.options(0).withDefaults().CacheLease.Milliseconds()
	if err != nil || code != fserr.OK || int64(reply.CacheMs) != want {
		t.Errorf("renewal: %v, %v, cache %d ms, want %d", code, err, reply.CacheMs, want)
	}
	if now := c.leader().fsm.index(); reply.Index == 0 || reply.Index > uint64(now) {
		t.Errorf("renewal as of event %d, the leader is at %d", reply.Index, now)
	}
	if at := c.leader().fsm.openAsOf(a.session + 1); at != 0 {
		t.Errorf("a session that there is not was open at %d", at)
	}
}

// A file without a name goes with its last holder. Nobody is called back for that, so nobody may be granted it.
func TestRemovedFileIsNotGranted(t *testing.T) {
	c := newCluster(t, 1, patient)
	a, b := newClient(c), newClient(c)
	ino := a.create("f", false).Attr.Ino
	a.must(a.change(&msg.Open{Ino: ino, Want: msg.Want_WANT_READ}))
	a.answer(func(*msg.Callback) *msg.CallbackReply { return &msg.CallbackReply{Keep: msg.Want_WANT_READ} })
	a.must(a.change(&msg.Remove{Parent: 1, Name: []byte("f")}))
	r := b.must(b.read(&msg.GetAttr{Ino: ino}))
	if r.Attr.GetNlink() != 0 || r.Grant.GetAttr() {
		t.Errorf("attributes %v, granted %v", r.Attr, r.Grant)
	}
}

// A session has one connection: when an older hello of it is handled late, the newer connection ends, so that the client makes another,
// and callbacks reach it again.
func TestLateHelloEndsTheOtherConnection(t *testing.T) {
	c := newCluster(t, 1, patient)
	a, b := newClient(c), newClient(c)
	a.must(a.read(&msg.GetAttr{Ino: 1}))
	a.mu.Lock()
	used := a.conn
	a.mu.Unlock()
	late, err := a.dial()
	if err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	if a.conn == late {
		a.conn = used
	}
	a.mu.Unlock()
	late.Close()
	c.eventually("the connection in use to end", func() bool { return used.Err() != nil })
	c.eventually("a connection to call back on", func() bool {
		conn := c.leader().clients.get(a.session)
		return conn != nil && conn.Err() == nil
	})
	if g := a.must(a.read(&msg.GetAttr{Ino: 1})).Grant; !g.GetAttr() {
		t.Fatalf("granted %v", g)
	}
	n := a.calls(msg.Callback_META)
	b.create("g", false)
	if a.calls(msg.Callback_META) != n+1 {
		t.Error("the session was not called back on its new connection")
	}
}
