package readcache

import (
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/disk"
)

// bed is a cache on a disk that can be ruined.
type bed struct {
	t     testing.TB
	disk  *disk.Faulty
	vault *vault
	c     *Cache
	size  int64
}

func newBed(t testing.TB) *bed {
	b := &bed{t: t, disk: new(disk.Faulty), vault: newVault(), size: MinBytes}
	b.open()
	t.Cleanup(func() { b.disk.Kill(); b.c.Close() }) // what fails was of no use any more
	return b
}

func (b *bed) open() {
	b.t.Helper()
	c, err := Open(Options{Dir: "/c", Bytes: b.size, Cluster: testCluster, Logger: quiet, FS: b.disk, Witness: b.vault})
	if err != nil {
		b.t.Fatal(err)
	}
	b.c = c
}

// again kills the process and starts another one.
func (b *bed) again() {
	b.t.Helper()
	b.settle()
	b.disk.Kill()
	b.open()
}

func (b *bed) settle() {
	b.t.Helper()
	for end := time.Now().Add(time.Minute); b.c.queued.Load() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatal("fills do not end")
		}
	}
}

// recorded waits until the records of files are written too.
func (b *bed) recorded() {
	b.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		b.c.table.Lock()
		dirty := false
		for _, f := range b.c.files.byIno {
			dirty = dirty || f.dirty
		}
		b.c.table.Unlock()
		if !dirty {
			b.c.pause.Lock() // what took the last one has written it
			defer b.c.pause.Unlock()
			return
		}
		if time.Now().After(end) {
			b.t.Fatal("records of files are not written")
		}
	}
}

// get returns what the cache has of a block, or nil.
func get(f *File, c cell) []byte {
	buf := disk.AlignedBuffer(chunk.BlockSize)
	var op Op
	if !f.Begin(&op, Blocks{Chunk: c.chunk, First: c.block}, buf) {
		return nil
	}
	n, err := op.Do()
	if !op.Finish(n, err) {
		return nil
	}
	return buf
}

func (b *bed) want(f *File, c cell, change uint64, hit bool) {
	b.t.Helper()
	got := get(f, c)
	if (got != nil) != hit {
		b.t.Errorf("block %+v: hit %v, want %v", c, got != nil, hit)
	}
	if got != nil && string(got) != string(contentOf(c, change)) {
		b.t.Errorf("block %+v is not what it was after change %d", c, change)
	}
}

func fill(f *File, c cell, change uint64) {
	f.Fill(Blocks{Chunk: c.chunk, First: c.block}, contentOf(c, change), nil)
}

func invalidate(f *File, c cell) {
	f.Invalidate(Blocks{Chunk: c.chunk}, c.block*chunk.BlockSize, chunk.BlockSize)
}

var one, two = cell{1, 10, 3}, cell{2, 20, 3}

func TestSurvivesRestartAndCrash(t *testing.T) {
	b := newBed(t)
	writer, reader := b.c.File(1), b.c.File(2)
	writer.Opened(0, 5, true)
	reader.Opened(0, 6, false)
	fill(writer, one, 1)
	fill(reader, two, 1)
	b.settle()
	b.want(writer, one, 1, true)

	// A crash of the process.
	b.recorded()
	b.again()
	writer, reader = b.c.File(1), b.c.File(2)
	writer.Opened(5, 7, true)
	reader.Opened(4, 8, false)
	b.want(writer, one, 1, true)
	b.want(reader, two, 1, true)

	// A stop in order.
	if err := b.c.Close(); err != nil {
		t.Fatal(err)
	}
	b.open()
	writer, reader = b.c.File(1), b.c.File(2)
	writer.Opened(7, 9, true)
	reader.Opened(4, 10, false)
	b.want(writer, one, 1, true)
	b.want(reader, two, 1, true)

	// A crash of the machine: what was held for writing begins anew.
	b.recorded()
	for name := range map[string]bool{indexName: true, dataName: true} {
		f, err := b.disk.Open(filepath.Join("/c", name), disk.ReadWrite)
		if err != nil || f.Sync() != nil {
			t.Fatal(err)
		}
	}
	b.vault.crash()
	b.again()
	writer, reader = b.c.File(1), b.c.File(2)
	writer.Opened(9, 11, true)
	reader.Opened(4, 12, false)
	b.want(writer, one, 1, false)
	b.want(reader, two, 1, true)
}

func TestSomebodyElseWrote(t *testing.T) {
	b := newBed(t)
	f := b.c.File(1)
	f.Opened(0, 5, false)
	fill(f, one, 1)
	b.settle()
	f = b.c.File(1)
	f.Opened(5, 6, false)
	b.want(f, one, 1, true)
	f.Opened(7, 8, false) // at 7 somebody was let write
	b.want(f, one, 1, false)
	fill(f, one, 2)
	b.settle()
	b.want(f, one, 2, true)
	f.Opened(0, 9, false) // nobody knows
	b.want(f, one, 2, false)
}

// TestOlderCopy: what a copy of the disk from before a change holds does not come back, though the process that made it died without a word.
func TestOlderCopy(t *testing.T) {
	for _, refill := range []bool{false, true} {
		b := newBed(t)
		f := b.c.File(1)
		f.Opened(0, 5, true)
		fill(f, one, 1)
		b.settle()
		b.recorded()
		old := b.disk.Clone()
		invalidate(f, one)
		b.want(f, one, 1, false)
		if refill {
			fill(f, one, 2)
			b.settle()
		}
		b.disk.Kill()
		b.disk = old
		b.open()
		f = b.c.File(1)
		f.Opened(5, 6, true)
		b.want(f, one, 0, false)
	}
}

// TestDroppedBeforeItIsWritten: a file that was cut has nothing, though its record says otherwise.
func TestDroppedBeforeItIsWritten(t *testing.T) {
	b := newBed(t)
	f := b.c.File(1)
	f.Opened(0, 5, true)
	fill(f, one, 1)
	b.settle()
	b.recorded()
	b.disk.Deceive(func(op disk.Op) disk.Fate { return disk.Fate{Lost: op.Kind == disk.OpWrite} })
	f.Drop()
	b.recorded()
	b.again()
	f = b.c.File(1)
	f.Opened(5, 6, true)
	b.want(f, one, 1, false)
}

// TestWriteOvertakesFill: what is changed while it is being put in is not in.
func TestWriteOvertakesFill(t *testing.T) {
	b := newBed(t)
	f := b.c.File(1)
	f.Opened(0, 5, true)
	reached, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	b.disk.Inject(func(op disk.Op) error {
		if op.Kind == disk.OpWrite && op.Path == "/c/"+dataName {
			once.Do(func() {
				close(reached)
			})
		}
		return nil
	})
	fill(f, one, 1)
	<-reached
	invalidate(f, one)
	close(goOn)
	b.settle()
	if got := get(f, one); got != nil {
		b.want(f, one, 0, false)
	}
	// A queue that waits.
	b.disk.Inject(nil)
	b.c.pause.Lock()
	fill(f, two, 1)
	invalidate(f, two)
	b.c.pause.Unlock()
	b.settle()
	b.want(f, two, 1, false)
	if b.c.overtaken.Load() == 0 {
		t.Error("nothing was overtaken")
	}
}

func TestFullDisk(t *testing.T) {
	b := newBed(t)
	f := b.c.File(1)
	f.Opened(0, 5, true)
	fill(f, one, 1)
	b.settle()
	b.recorded()
	b.disk.Inject(func(op disk.Op) error {
		if op.Kind == disk.OpWrite {
			return errors.New("no room")
		}
		return nil
	})
	fill(f, two, 1)
	b.settle()
	if b.c.Usable() || b.c.Cause() == nil {
		t.Error("a full disk did not switch the cache off")
	}
	b.want(f, one, 1, false)
	fill(f, one, 1)
	invalidate(f, one) // which nobody could note on the disk
	b.disk.Kill()
	b.open()
	f = b.c.File(1)
	f.Opened(5, 6, true)
	b.want(f, one, 1, false)
	if err := b.c.Close(); err != nil {
		t.Error(err)
	}
	b.open()
}

func TestDamage(t *testing.T) {
	b := newBed(t)
	f := b.c.File(1)
	f.Opened(0, 5, false)
	fill(f, one, 1)
	b.settle()
	s := &b.c.shards[key{one.chunk, generation(f.era.Load(), 0), 0}.hash()%shards]
	at := int64(s.number(s.small.head))*slotBytes + int64(one.block)*chunk.BlockSize
	if err := b.disk.Flip("/c/"+dataName, at+77); err != nil {
		t.Fatal(err)
	}
	b.want(f, one, 1, false)
	if b.c.Stats().Damaged != 1 {
		t.Errorf("stats: %+v", b.c.Stats())
	}
	fill(f, one, 1)
	b.settle()
	b.want(f, one, 1, true)
	b.disk.Inject(func(op disk.Op) error {
		if op.Kind == disk.OpRead {
			return errors.New("broken")
		}
		return nil
	})
	for range maxReadErrors {
		b.want(f, one, 1, false)
		fill(f, one, 1)
		b.settle()
	}
	if b.c.Usable() {
		t.Error("a broken disk did not switch the cache off")
	}
}

// TestShared: chunks that never change are there once, whoever has them.
func TestShared(t *testing.T) {
	b := newBed(t)
	golden, clone := b.c.File(1), b.c.File(2)
	golden.Opened(0, 5, false)
	clone.Opened(0, 6, true)
	at := Blocks{Chunk: 77, First: 8}
	c := cell{0, 77, 8}
	golden.fill(Shared, at, contentOf(c, 1), nil)
	b.settle()
	var op Op
	buf := disk.AlignedBuffer(chunk.BlockSize)
	if !clone.begin(&op, Shared, at, buf) {
		t.Fatal("a clone does not find what its origin has read")
	}
	if n, err := op.Do(); !op.Finish(n, err) || string(buf) != string(contentOf(c, 1)) {
		t.Error("and reads something else")
	}
	if n := b.c.Stats().UsedSlots; n != 1 {
		t.Errorf("%d slots, want 1", n)
	}
}

func TestOneProcess(t *testing.T) {
	b := newBed(t)
	if _, err := Open(Options{Dir: "/c", Bytes: MinBytes, Cluster: testCluster, Logger: quiet, FS: b.disk, Witness: b.vault}); err == nil {
		t.Error("two processes use one cache")
	}
}

func TestAnotherCluster(t *testing.T) {
	b := newBed(t)
	f := b.c.File(1)
	f.Opened(0, 5, false)
	fill(f, one, 1)
	b.settle()
	if err := b.c.Close(); err != nil {
		t.Fatal(err)
	}
	other := testCluster
	other[0]++
	c, err := Open(Options{Dir: "/c", Bytes: MinBytes, Cluster: other, Logger: quiet, FS: b.disk, Witness: b.vault})
	if err != nil {
		t.Fatal(err)
	}
	f = c.File(1)
	f.Opened(5, 5, false)
	b.want(f, one, 1, false)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	b.open()
}

// TestManyFiles: beyond what the cache knows, those that are not read are forgotten.
func TestManyFiles(t *testing.T) {
	b := newBed(t)
	f := b.c.File(1)
	f.Opened(0, 5, false)
	fill(f, one, 1)
	b.settle()
	for ino := uint64(2); ino < 2*maxFiles+2; ino++ {
		b.c.File(ino).Opened(0, 5, false)
		if ino%1000 == 0 {
			f.Hit(1)
		}
	}
	b.want(f, one, 1, true)
	for ino := uint64(2*maxFiles + 2); ino < 5*maxFiles; ino++ {
		b.c.File(ino)
	}
	b.want(f, one, 1, false)
	f.Opened(5, 6, true)
	fill(f, one, 1)
	f.Drop()
	invalidate(f, one)
	b.settle()
	b.want(f, one, 1, false)
}

// TestResizeKeepsWhatFits: a smaller cache has all that fits into it, also after a crash.
func TestResizeKeepsWhatFits(t *testing.T) {
	b := newBed(t)
	b.size = 4 * MinBytes
	if err := b.c.Resize(b.size); err != nil {
		t.Fatal(err)
	}
	f := b.c.File(1)
	f.Opened(0, 5, true)
	const n = 200
	at := func(i int) cell { return cell{1, 10, uint32(i * slotBlocks)} }
	for i := range n {
		fill(f, at(i), 1)
		b.settle()
	}
	b.size = MinBytes
	if err := b.c.Resize(b.size); err != nil {
		t.Fatal(err)
	}
	check := func(before, now uint64) {
		t.Helper()
		f := b.c.File(1)
		f.Opened(before, now, true)
		hits := 0
		for i := range n {
			if got := get(f, at(i)); got != nil {
				hits++
				b.want(f, at(i), 1, true)
			}
		}
		if hits < n*95/100 { // shards are not filled evenly
			t.Errorf("%d of %d blocks are left", hits, n)
		}
	}
	check(5, 5)
	if err := b.c.Close(); err != nil {
		t.Fatal(err)
	}
	b.disk.Kill()
	b.open()
	check(5, 6)
}
