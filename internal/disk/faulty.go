package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Faulty is a disk in memory for tests, with the semantics of a page cache: what was not synced can be
// lost. Crash loses power, Kill ends the process, Inject makes operations fail, SetCapacity fills the
// disk, Flip rots a bit, Deceive and Stray lose and misdirect what was reported as done.
//
// After Crash a file holds what was synced and, of what was not, any subset of the 512-byte sectors of
// its writes and any subset of its other changes; a directory holds what SyncDir put there and a prefix
// of its later changes. With one goroutine and one seed the result is always the same.
//
// A write that would go beyond the capacity stops at a page and fails with ENOSPC, as on a filesystem
// that allocates by page; pages that are there can always be written. The zero value is an empty disk
// without limit, ready for use. All methods may be called at once.
type Faulty struct {
	mu       sync.Mutex
	live     map[string]*node // by clean path, as processes see it
	stable   map[string]*node // as SyncDir left it
	pending  map[string][]entryOp
	names    map[string]map[string]bool // of live by directory; nil: not known
	locks    map[string]bool
	capacity int64
	used     int64 // bytes of the pages of live nodes
	inject   func(Op) error
	deceive  func(Op) Fate
	ops      int
	off      bool
	boot     int // counts Crash and Kill: handles of an earlier one are dead
	identity Identity
}

var _ FS = (*Faulty)(nil)

// ErrPowerOff is what every operation gets between PowerOff and Crash, and every handle from before.
var ErrPowerOff = errors.New("power is off")

// Op is one operation on a Faulty disk, as Inject sees it.
type Op struct {
	Kind OpKind
	Path string
	Off  int64
	Len  int
	N    int // how many operations there were before it
}

// OpKind is the kind of an Op.
type OpKind string

// The kinds of operations that Inject sees.
const (
	OpOpen     OpKind = "open"
	OpRead     OpKind = "read"
	OpWrite    OpKind = "write"
	OpTruncate OpKind = "truncate"
	OpPunch    OpKind = "punch"
	OpSync     OpKind = "sync"
	OpRename   OpKind = "rename"
	OpRemove   OpKind = "remove"
	OpMkdir    OpKind = "mkdir"
	OpSyncDir  OpKind = "syncdir"
)

const (
	pageSize   = 4096
	sectorSize = 512
)

// page is the bytes of a page. If they are shared with another content, they are copied before they are changed.
type page struct {
	b      *[pageSize]byte
	shared bool
}

// zeroPage is what a page holds that was made and not written yet.
var zeroPage [pageSize]byte

// content is the bytes of a file; a page that is not there is zeros.
type content struct {
	pages  map[int64]page
	size   int64
	shared bool // another content has the same map, which is copied before it is changed
}

// node is a file or a directory. A file that was removed lives on as long as it is open.
type node struct {
	dir     bool
	live    content
	stable  content
	changes []change // since the last sync, in order
}

// change is a write of data or of whole pages at off, a punch of [off, off+n), or a truncate to n.
type change struct {
	kind  OpKind
	off   int64
	n     int64
	data  []byte
	pages []*[pageSize]byte // never changed
}

// entryOp is a change of one directory: names that go and come.
type entryOp struct {
	remove string // full paths; "" for none
	add    string
	node   *node
}

// SetCapacity limits the bytes that files may take up, in units of pages. Zero is no limit.
func (d *Faulty) SetCapacity(bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.capacity = bytes
}

// Used returns the bytes that files take up.
func (d *Faulty) Used() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.used
}

// Inject has fn called before every operation, which fails with the error that fn returns. fn must
// not use the disk. Nil ends it.
func (d *Faulty) Inject(fn func(Op) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inject = fn
}

// PowerOff makes every operation fail from now on until Crash.
func (d *Faulty) PowerOff() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off = true
}

// Crash loses power and brings it back: of what was not synced rng decides what is there.
func (d *Faulty) Crash(rng *rand.Rand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.init()
	for _, dir := range slices.Sorted(maps.Keys(d.pending)) {
		ops := d.pending[dir]
		d.applyEntries(ops[:rng.Intn(len(ops)+1)])
	}
	clear(d.pending)
	seen := make(map[*node]bool)
	for _, path := range slices.Sorted(maps.Keys(d.stable)) {
		if parent := filepath.Dir(path); parent != path && parent != "." && d.stable[parent] == nil {
			delete(d.stable, path)
			continue
		}
		if n := d.stable[path]; !seen[n] {
			seen[n] = true
			n.crash(rng)
		}
	}
	d.live = maps.Clone(d.stable)
	d.names = nil
	d.used = 0
	for n := range seen {
		d.used += int64(len(n.live.pages)) * pageSize
	}
	d.restart()
}

// Kill ends every process that uses the disk: nothing is lost, locks are dropped, handles are dead.
func (d *Faulty) Kill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.restart()
}

func (d *Faulty) restart() {
	clear(d.locks)
	d.boot++
	d.off = false
	d.inject, d.deceive = nil, nil
}

// Flip inverts one bit of the byte at off of a file, on the disk and in the cache.
func (d *Faulty) Flip(path string, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.live[filepath.Clean(path)]
	if n == nil {
		return &fs.PathError{Op: "flip", Path: path, Err: fs.ErrNotExist}
	}
	n.settle()
	for _, c := range [2]*content{&n.live, &n.stable} {
		var b [1]byte
		c.read(b[:], off)
		b[0] ^= 1 << (off % 8)
		c.write(b[:], off)
	}
	return nil
}

func (d *Faulty) init() {
	if d.live == nil {
		d.live, d.stable = make(map[string]*node), make(map[string]*node)
		d.pending, d.locks = make(map[string][]entryOp), make(map[string]bool)
	}
}

// enter counts an operation and asks whether it fails.
func (d *Faulty) enter(kind OpKind, path string, off int64, n int) error {
	d.init()
	op := Op{Kind: kind, Path: path, Off: off, Len: n, N: d.ops}
	d.ops++
	if d.off {
		return &fs.PathError{Op: string(kind), Path: path, Err: ErrPowerOff}
	}
	if d.inject != nil {
		if err := d.inject(op); err != nil {
			return &fs.PathError{Op: string(kind), Path: path, Err: err}
		}
		if d.off {
			return &fs.PathError{Op: string(kind), Path: path, Err: ErrPowerOff}
		}
	}
	return nil
}

func (d *Faulty) change(dir string, op entryOp) {
	if op.remove != "" {
		delete(d.live, op.remove)
		delete(d.names[filepath.Dir(op.remove)], filepath.Base(op.remove))
	}
	if op.add != "" {
		d.live[op.add] = op.node
		d.name(op.add)
	}
	d.pending[dir] = append(d.pending[dir], op)
}

func (d *Faulty) applyEntries(ops []entryOp) {
	for _, op := range ops {
		if op.remove != "" {
			delete(d.stable, op.remove)
		}
		if op.add != "" {
			d.stable[op.add] = op.node
		}
	}
}

// Open implements FS. The parent must be a directory.
func (d *Faulty) Open(path string, flag Flag) (File, error) {
	path = filepath.Clean(path)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter(OpOpen, path, 0, 0); err != nil {
		return nil, err
	}
	n := d.live[path]
	var cause error
	switch parent := d.live[filepath.Dir(path)]; {
	case n != nil && flag&Create != 0 && flag&Exclusive != 0:
		cause = fs.ErrExist
	case n != nil && n.dir:
		cause = syscall.EISDIR
	case n == nil && (flag&Create == 0 || parent == nil || !parent.dir):
		cause = fs.ErrNotExist
	case n == nil:
		n = &node{live: content{pages: make(map[int64]page)}, stable: content{pages: make(map[int64]page)}}
		d.change(filepath.Dir(path), entryOp{add: path, node: n})
	}
	if cause != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: cause}
	}
	return &faultyFile{d: d, n: n, path: path, flag: flag, boot: d.boot}, nil
}

// Rename implements FS. Both names must be in one directory, and no directory can be renamed.
func (d *Faulty) Rename(from, to string) error {
	from, to = filepath.Clean(from), filepath.Clean(to)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter(OpRename, from, 0, 0); err != nil {
		return err
	}
	n := d.live[from]
	switch {
	case n == nil:
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	case n.dir || filepath.Dir(from) != filepath.Dir(to):
		return &fs.PathError{Op: "rename", Path: from, Err: syscall.EXDEV}
	}
	if old := d.live[to]; old != nil && old != n {
		d.used -= int64(len(old.live.pages)) * pageSize
	}
	d.change(filepath.Dir(to), entryOp{remove: from, add: to, node: n})
	return nil
}

// Remove implements FS.
func (d *Faulty) Remove(path string) error {
	path = filepath.Clean(path)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter(OpRemove, path, 0, 0); err != nil {
		return err
	}
	n := d.live[path]
	if n == nil {
		return &fs.PathError{Op: "remove", Path: path, Err: fs.ErrNotExist}
	}
	if n.dir && len(d.children(path)) > 0 {
		return &fs.PathError{Op: "remove", Path: path, Err: syscall.ENOTEMPTY}
	}
	d.used -= int64(len(n.live.pages)) * pageSize
	d.change(filepath.Dir(path), entryOp{remove: path})
	return nil
}

// MkdirAll implements FS. The first tree that is made is on the disk at once.
func (d *Faulty) MkdirAll(path string) error {
	path = filepath.Clean(path)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter(OpMkdir, path, 0, 0); err != nil {
		return err
	}
	var missing []string
	for p := path; d.live[p] == nil; p = filepath.Dir(p) {
		missing = append(missing, p)
		if p == filepath.Dir(p) {
			break
		}
	}
	if n := d.live[path]; n != nil && !n.dir {
		return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
	}
	first := len(d.stable) == 0
	for _, p := range slices.Backward(missing) {
		op := entryOp{add: p, node: &node{dir: true}}
		d.change(filepath.Dir(p), op)
		if first {
			d.applyEntries([]entryOp{op})
		}
	}
	return nil
}

// name notes a path in names.
func (d *Faulty) name(path string) {
	dir := filepath.Dir(path)
	if d.names == nil || dir == path {
		return
	}
	if d.names[dir] == nil {
		d.names[dir] = make(map[string]bool)
	}
	d.names[dir][filepath.Base(path)] = true
}

func (d *Faulty) children(dir string) []string {
	if d.names == nil {
		d.names = make(map[string]map[string]bool)
		for p := range d.live {
			d.name(p)
		}
	}
	return slices.Sorted(maps.Keys(d.names[dir]))
}

// ReadDir implements FS.
func (d *Faulty) ReadDir(path string) ([]fs.DirEntry, error) {
	path = filepath.Clean(path)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter(OpRead, path, 0, 0); err != nil {
		return nil, err
	}
	if n := d.live[path]; n == nil || !n.dir {
		return nil, &fs.PathError{Op: "readdir", Path: path, Err: fs.ErrNotExist}
	}
	var all []fs.DirEntry
	for _, name := range d.children(path) {
		all = append(all, fs.FileInfoToDirEntry(d.live[filepath.Join(path, name)].info(name)))
	}
	return all, nil
}

// Stat implements FS.
func (d *Faulty) Stat(path string) (fs.FileInfo, error) {
	path = filepath.Clean(path)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter(OpRead, path, 0, 0); err != nil {
		return nil, err
	}
	n := d.live[path]
	if n == nil {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: fs.ErrNotExist}
	}
	return n.info(filepath.Base(path)), nil
}

// SyncDir implements FS.
func (d *Faulty) SyncDir(path string) error {
	path = filepath.Clean(path)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter(OpSyncDir, path, 0, 0); err != nil {
		return err
	}
	if n := d.live[path]; n == nil || !n.dir {
		return &fs.PathError{Op: "syncdir", Path: path, Err: fs.ErrNotExist}
	}
	if d.fate(OpSyncDir, path, 0, 0).Lost {
		return nil
	}
	d.applyEntries(d.pending[path])
	delete(d.pending, path)
	return nil
}

// Space implements FS.
func (d *Faulty) Space(string) (Space, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	total := d.capacity
	if total == 0 {
		total = 1 << 40
	}
	return Space{Total: uint64(total), Free: uint64(max(0, total-d.used))}, nil
}

// Lock implements FS.
func (d *Faulty) Lock(path string) (func() error, error) {
	path = filepath.Clean(path)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter(OpOpen, path, 0, 0); err != nil {
		return nil, err
	}
	if d.locks[path] {
		return nil, fmt.Errorf("%s: already in use by another process: %w", path, syscall.EWOULDBLOCK)
	}
	d.locks[path] = true
	boot := d.boot
	return func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.boot == boot {
			delete(d.locks, path)
		}
		return nil
	}, nil
}

// faultyInfo is what a file was when it was asked about.
type faultyInfo struct {
	name            string
	dir             bool
	size, allocated int64
}

// info describes a node. Preconditions: d.mu is held.
func (n *node) info(name string) faultyInfo {
	return faultyInfo{name: name, dir: n.dir, size: n.live.size, allocated: int64(len(n.live.pages)) * pageSize}
}

func (i faultyInfo) Name() string { return i.name }
func (i faultyInfo) Size() int64  { return i.size }
func (i faultyInfo) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o700
	}
	return 0o600
}
func (i faultyInfo) ModTime() time.Time { return time.Time{} }
func (i faultyInfo) IsDir() bool        { return i.dir }
func (i faultyInfo) Sys() any           { return faultySys{i.allocated} }

type faultyFile struct {
	d    *Faulty
	n    *node
	path string
	flag Flag
	boot int
}

// enter checks the handle and what Direct demands.
func (f *faultyFile) enter(kind OpKind, p []byte, off int64) error {
	if f.boot != f.d.boot {
		return &fs.PathError{Op: string(kind), Path: f.path, Err: ErrPowerOff}
	}
	if err := f.d.enter(kind, f.path, off, len(p)); err != nil {
		return err
	}
	if kind != OpRead && kind != OpSync && f.flag&ReadWrite == 0 {
		return &fs.PathError{Op: string(kind), Path: f.path, Err: syscall.EBADF}
	}
	if f.flag&Direct != 0 && len(p) > 0 && (off%pageSize != 0 || len(p)%pageSize != 0 || !alignedAddress(p)) {
		return &fs.PathError{Op: string(kind), Path: f.path, Err: syscall.EINVAL}
	}
	return nil
}

func (f *faultyFile) ReadAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.enter(OpRead, p, off); err != nil {
		return 0, err
	}
	n := int(min(int64(len(p)), max(0, f.n.live.size-off)))
	f.n.live.read(p[:n], off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *faultyFile) WriteAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.enter(OpWrite, p, off); err != nil {
		return 0, err
	}
	switch x := f.d.fate(OpWrite, f.path, off, len(p)); {
	case x.Lost:
		return len(p), nil
	case x.Path != "":
		f.d.astray(x, p)
		return len(p), nil
	}
	room := len(p)
	for at := off / pageSize; at <= (off+int64(len(p))-1)/pageSize; at++ {
		if _, ok := f.n.live.pages[at]; ok {
			continue
		}
		if f.d.capacity > 0 && f.d.used+pageSize > f.d.capacity {
			room = int(max(0, at*pageSize-off))
			break
		}
		f.n.live.alone()
		f.n.live.pages[at] = page{b: &zeroPage, shared: true}
		f.d.used += pageSize
	}
	f.n.write(p[:room], off)
	if room < len(p) {
		return room, &fs.PathError{Op: "write", Path: f.path, Err: syscall.ENOSPC}
	}
	return room, nil
}

func (f *faultyFile) Truncate(size int64) error {
	return f.alter(change{kind: OpTruncate, n: size})
}

func (f *faultyFile) PunchHole(off, n int64) error {
	return f.alter(change{kind: OpPunch, off: off, n: n})
}

func (f *faultyFile) alter(c change) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.enter(c.kind, nil, c.off); err != nil {
		return err
	}
	f.d.used -= int64(len(f.n.live.pages)) * pageSize
	f.n.do(c)
	f.d.used += int64(len(f.n.live.pages)) * pageSize
	return nil
}

func (f *faultyFile) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.enter(OpSync, nil, 0); err != nil {
		return err
	}
	if !f.d.fate(OpSync, f.path, 0, 0).Lost {
		f.n.settle()
	}
	return nil
}

func (f *faultyFile) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return f.n.live.size, nil
}

func (f *faultyFile) Close() error { return nil }

// do makes a change that is not synced.
func (n *node) do(c change) {
	n.live.apply(c)
	n.changes = append(n.changes, c)
}

// write does a write that is not synced: whole pages are kept once, for what is live, what is to be stable, and the change.
func (n *node) write(p []byte, off int64) {
	for len(p) > 0 {
		m := min(int64(len(p)), pageSize-off%pageSize)
		if m < pageSize {
			n.do(change{kind: OpWrite, off: off, data: slices.Clone(p[:m])})
		} else {
			m = int64(len(p)) / pageSize * pageSize
			c := change{kind: OpWrite, off: off, pages: make([]*[pageSize]byte, 0, m/pageSize)}
			for at := int64(0); at < m; at += pageSize {
				b := (*[pageSize]byte)(p[at:])
				if *b == zeroPage {
					c.pages = append(c.pages, &zeroPage)
					continue
				}
				own := new([pageSize]byte)
				*own = *b
				c.pages = append(c.pages, own)
			}
			n.do(c)
		}
		p, off = p[m:], off+m
	}
}

// settle makes all changes stable.
func (n *node) settle() {
	for _, c := range n.changes {
		n.stable.apply(c)
	}
	n.changes = nil
}

// crash keeps a random subset of the changes since the last sync.
func (n *node) crash(rng *rand.Rand) {
	if n.dir {
		return
	}
	// Most of it, some of it, hardly anything: how long ago the cache was last written back.
	keep := []float64{0, 0.1, 0.5, 0.9, 1}[rng.Intn(5)]
	for _, c := range n.changes {
		if c.kind != OpWrite {
			if rng.Float64() < keep {
				n.stable.apply(c)
			}
			continue
		}
		for _, data := range c.parts() {
			for len(data) > 0 {
				m := min(int64(len(data)), sectorSize-c.off%sectorSize)
				if rng.Float64() < keep {
					n.stable.apply(change{kind: OpWrite, off: c.off, data: data[:m]})
				}
				c.off, data = c.off+m, data[m:]
			}
		}
	}
	n.changes = nil
	n.live = n.stable.clone()
}

// parts returns what a write holds, one piece after the other.
func (c *change) parts() [][]byte {
	if c.pages == nil {
		return [][]byte{c.data}
	}
	all := make([][]byte, len(c.pages))
	for i, p := range c.pages {
		all[i] = p[:]
	}
	return all
}

func (c *content) apply(ch change) {
	c.alone()
	switch ch.kind {
	case OpWrite:
		for i, p := range ch.pages {
			c.pages[ch.off/pageSize+int64(i)] = page{b: p, shared: true}
		}
		c.size = max(c.size, ch.off+int64(len(ch.pages))*pageSize)
		c.write(ch.data, ch.off)
	case OpPunch:
		c.zero(ch.off, ch.n)
	case OpTruncate:
		if ch.n < c.size {
			c.zero(ch.n, c.size-ch.n)
		}
		c.size = ch.n
	}
}

func (c *content) read(b []byte, off int64) {
	for len(b) > 0 {
		in := off % pageSize
		m := min(int64(len(b)), pageSize-in)
		if p, ok := c.pages[off/pageSize]; ok {
			copy(b[:m], p.b[in:])
		} else {
			clear(b[:m])
		}
		b, off = b[m:], off+m
	}
}

// alone makes the map c's own.
func (c *content) alone() {
	if !c.shared {
		return
	}
	pages := make(map[int64]page, len(c.pages)+1)
	for at, p := range c.pages {
		pages[at] = page{b: p.b, shared: true}
	}
	c.pages, c.shared = pages, false
}

func (c *content) write(b []byte, off int64) {
	if len(b) == 0 {
		return
	}
	c.alone()
	c.size = max(c.size, off+int64(len(b)))
	for len(b) > 0 {
		m := copy(c.own(off / pageSize)[off%pageSize:], b)
		b, off = b[m:], off+int64(m)
	}
}

// own returns the bytes of a page, which is made if it is missing, to change them.
func (c *content) own(at int64) *[pageSize]byte {
	p, ok := c.pages[at]
	if ok && !p.shared {
		return p.b
	}
	b := new([pageSize]byte)
	if ok {
		*b = *p.b
	}
	c.pages[at] = page{b: b}
	return b
}

// zero makes [off, off+n) zero and gives back the pages that lie in it.
func (c *content) zero(off, n int64) {
	c.alone()
	end := off + n
	for at := range c.pages {
		from, to := max(off, at*pageSize), min(end, (at+1)*pageSize)
		switch {
		case from >= to:
		case to-from == pageSize:
			delete(c.pages, at)
		default:
			clear(c.own(at)[from-at*pageSize : to-at*pageSize])
		}
	}
}
