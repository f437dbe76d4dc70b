package fuse

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/id"
	"varve/internal/wire/msg"
)

// keepFS lets the kernel keep everything for a while.
type keepFS struct {
	*memFS
	gate sync.RWMutex
	held atomic.Int64 // nanoseconds
}

var _ Keeper = (*keepFS)(nil)

func (k *keepFS) Hold(parent id.Ino, _ []byte, _ *msg.Attr) (entry, attr time.Duration) {
	k.gate.RLock()
	d := time.Duration(k.held.Load())
	if parent == 0 {
		return 0, d
	}
	return d, d
}

func (k *keepFS) Unhold(id.Ino, *msg.Attr) { k.gate.RUnlock() }

func newKeepFS(held time.Duration) *keepFS {
	k := &keepFS{memFS: newMemFS()}
	k.held.Store(int64(held))
	return k
}

// asked returns how many requests of some kinds have arrived. They are counted a little after they are answered.
func asked(s *Session, ops ...string) (n uint64) {
	for range 1000 {
		if len(s.flights.all()) == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	for _, st := range s.Stats() {
		for _, op := range ops {
			if st.Op == op {
				n += st.Count
			}
		}
	}
	return n
}

func lstat(path string) (st unix.Stat_t, err error) { return st, unix.Lstat(path, &st) }

// TestKernelKeeps counts what arrives when something is looked at again and again, and sees that the kernel forgets at once what it
// is told to.
func TestKernelKeeps(t *testing.T) { each(t, onKernelKeeps) }

func onKernelKeeps(t *testing.T, w way) {
	k := newKeepFS(time.Hour)
	s, dir := w.mount(t, k, nil)
	if !s.kernel.epochs.Load() {
		t.Skip("the kernel does not know FUSE_NOTIFY_INC_EPOCH (Linux 6.16)")
	}
	sub, file, none := filepath.Join(dir, "d"), filepath.Join(dir, "d", "f"), filepath.Join(dir, "d", "none")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(file, unix.S_IFREG|0o644, 0); err != nil {
		t.Fatal(err)
	}
	look := func(n int) {
		t.Helper()
		for range n {
			if _, err := lstat(file); err != nil {
				t.Fatal(err)
			}
			if _, err := lstat(none); !errors.Is(err, unix.ENOENT) {
				t.Fatal(err)
			}
		}
	}
	quiet := func(what string) {
		t.Helper()
		look(1)
		before := asked(s, "LOOKUP", "GETATTR", "STATX")
		look(100)
		if got := asked(s, "LOOKUP", "GETATTR", "STATX") - before; got != 0 {
			t.Errorf("%s: %d requests for what the kernel knows", what, got)
		}
	}
	quiet("at first")

	st, err := lstat(file)
	if err != nil {
		t.Fatal(err)
	}
	ino := id.Ino(st.Ino)
	k.mu.Lock()
	k.inodes[ino].attr.Perm = 0o600
	k.mu.Unlock()
	if st, _ := lstat(file); st.Mode&0o777 != 0o644 {
		t.Errorf("mode %o before the kernel was told to forget: it keeps nothing", st.Mode)
	}
	s.ForgetMeta([]id.Ino{ino}, nil)
	if st, _ := lstat(file); st.Mode&0o777 != 0o600 {
		t.Errorf("mode %o, want 600", st.Mode)
	}
	quiet("after attributes were forgotten")

	d, err := lstat(sub)
	if err != nil {
		t.Fatal(err)
	}
	k.mu.Lock()
	parent := k.inodes[id.Ino(d.Ino)]
	parent.names["none"] = parent.names["f"]
	delete(parent.names, "f")
	k.mu.Unlock()
	s.ForgetMeta(nil, []id.Ino{id.Ino(d.Ino)})
	if _, err := lstat(file); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a name that is gone: %v", err)
	}
	if got, err := lstat(none); err != nil || got.Ino != st.Ino {
		t.Errorf("a name that was made: inode %d, %v, want inode %d", got.Ino, err, st.Ino)
	}
	if err := os.Rename(none, filepath.Join(dir, "elsewhere")); err != nil {
		t.Fatal(err)
	}
	before := asked(s, "LOOKUP")
	if _, err := lstat(filepath.Join(dir, "elsewhere")); err != nil {
		t.Error(err)
	}
	if asked(s, "LOOKUP") == before {
		t.Error("after a rename to another directory the kernel believes the name that it has moved")
	}
	s.ForgetAllMeta()
	before = asked(s, "LOOKUP")
	if _, err := lstat(sub); err != nil || asked(s, "LOOKUP") == before {
		t.Errorf("after all was forgotten: %v, %d lookups", err, asked(s, "LOOKUP")-before)
	}
}

// TestKernelForgetsInTime: what the kernel was given for some time it does not use afterwards, also if nobody tells it anything.
func TestKernelForgetsInTime(t *testing.T) { each(t, onKernelForgetsInTime) }

func onKernelForgetsInTime(t *testing.T, w way) {
	k := newKeepFS(300 * time.Millisecond)
	_, dir := w.mount(t, k, nil)
	if _, err := lstat(filepath.Join(dir, "none")); !errors.Is(err, unix.ENOENT) {
		t.Fatal(err)
	}
	k.mu.Lock()
	k.inodes[9] = k.newInode(9, msg.FileType_REGULAR, 0o644)
	k.put(k.inodes[id.Root], []byte("none"), 9)
	k.mu.Unlock()
	time.Sleep(500 * time.Millisecond)
	if _, err := lstat(filepath.Join(dir, "none")); err != nil {
		t.Error(err)
	}
	k.mu.Lock()
	k.inodes[9].attr.Perm = 0o600
	k.mu.Unlock()
	time.Sleep(500 * time.Millisecond)
	if st, err := lstat(filepath.Join(dir, "none")); err != nil || st.Mode&0o777 != 0o600 {
		t.Errorf("mode %o, %v, want 600", st.Mode, err)
	}
}

// TestNoEpochs: a kernel that cannot forget names is given no time for them.
func TestNoEpochs(t *testing.T) { each(t, onNoEpochs) }

func onNoEpochs(t *testing.T, w way) {
	k := newKeepFS(time.Hour)
	s, dir := w.mount(t, k, nil)
	s.kernel.epochs.Store(false)
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		before := asked(s, "LOOKUP")
		if _, err := lstat(filepath.Join(dir, "d")); err != nil || asked(s, "LOOKUP") != before+1 {
			t.Errorf("%v, %d lookups, want 1", err, asked(s, "LOOKUP")-before)
		}
	}
	if got := asked(s, "GETATTR"); got > 2 {
		t.Errorf("%d requests for attributes, though each lookup gave them", got)
	}
}

// TestForgetWhileBusy: an operation that holds the lock of its directory, and waits for the metadata server, does not stop what the
// metadata server waits for.
func TestForgetWhileBusy(t *testing.T) { each(t, onForgetWhileBusy) }

func onForgetWhileBusy(t *testing.T, w way) {
	k := &blockFS{keepFS: newKeepFS(time.Hour), block: make(chan struct{})}
	s, dir := w.mount(t, k, nil)
	if _, err := lstat(filepath.Join(dir, "x")); !errors.Is(err, unix.ENOENT) {
		t.Fatal(err)
	}
	made := make(chan error, 1)
	go func() { made <- os.Mkdir(filepath.Join(dir, "d"), 0o755) }()
	<-k.block
	waitFor(t, "forgetting", func() error {
		s.ForgetMeta([]id.Ino{id.Root}, []id.Ino{id.Root})
		s.ForgetAllMeta()
		return nil
	})
	close(k.block)
	waitFor(t, "mkdir", func() error { return <-made })
}

// TestForgetAgain: a kernel that has been told of an inode and says that it has none is asked again, until it has or has given it up.
func TestForgetAgain(t *testing.T) {
	s, _ := fakeSession(t, newKeepFS(time.Hour))
	v := &refusingTransport{fakeTransport: s.via.(*fakeTransport), refusals: 3}
	s.via = v
	a := &msg.Attr{Ino: 7, Type: msg.FileType_REGULAR, Nlink: 1}
	s.ForgetAttrs([]id.Ino{7})
	if v.notified != 0 {
		t.Errorf("%d notifications of an inode that the kernel does not know", v.notified)
	}
	s.nodes.looked(a)
	s.ForgetAttrs([]id.Ino{7})
	if v.notified != 0 {
		t.Errorf("%d notifications of attributes that the kernel may not keep", v.notified)
	}
	s.nodes.keep(7, bootTime()+int64(time.Hour))
	s.ForgetAttrs([]id.Ino{7})
	if v.notified != 4 {
		t.Errorf("%d notifications, want 4", v.notified)
	}
	v.refusals = 1 << 30
	done := make(chan struct{})
	go func() { defer close(done); s.ForgetAttrs([]id.Ino{7}) }()
	time.Sleep(20 * time.Millisecond)
	s.nodes.forget(7, 1)
	waitFor(t, "an inode that is given up", func() error { <-done; return nil })
}

// blockFS stops in Create.
type blockFS struct {
	*keepFS
	block chan struct{}
}

func (b *blockFS) Create(ctx context.Context, cred *msg.Cred, req *msg.Create) (*msg.Attr, Handle, error) {
	b.block <- struct{}{}
	<-b.block
	return b.keepFS.Create(ctx, cred, req)
}

type refusingTransport struct {
	*fakeTransport
	notified, refusals int
}

func (r *refusingTransport) notify(int32, ...[]byte) error {
	r.notified++
	if r.refusals > 0 {
		r.refusals--
		return syscall.ENOENT
	}
	return nil
}
