package disk

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand"
	"path/filepath"
	"syscall"
	"testing"
)

func put(t *testing.T, d *Faulty, path string, p []byte, off int64) File {
	t.Helper()
	f, err := d.Open(path, ReadWrite|Create)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
	return f
}

func get(t *testing.T, d *Faulty, path string, n int) []byte {
	t.Helper()
	f, err := d.Open(path, ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, n)
	f.ReadAt(b, 0)
	return b
}

func newDisk(t *testing.T) *Faulty {
	d := new(Faulty)
	if err := d.MkdirAll("/d"); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestFaultyCrashKeepsWhatWasSynced(t *testing.T) {
	torn, lost, kept, gone := false, false, false, false
	for seed := range int64(100) {
		d := newDisk(t)
		f := put(t, d, "/d/a", bytes.Repeat([]byte{1}, 8192), 0)
		if err := errors.Join(f.Sync(), d.SyncDir("/d")); err != nil {
			t.Fatal(err)
		}
		put(t, d, "/d/a", bytes.Repeat([]byte{2}, 4096), 4096)
		put(t, d, "/d/b", []byte{3}, 0)
		d.Crash(rand.New(rand.NewSource(seed)))
		b := get(t, d, "/d/a", 8192)
		if !bytes.Equal(b[:4096], bytes.Repeat([]byte{1}, 4096)) {
			t.Fatalf("seed %d: synced bytes are lost", seed)
		}
		ones := bytes.Count(b[4096:], []byte{1})
		if ones%512 != 0 || ones+bytes.Count(b[4096:], []byte{2}) != 4096 {
			t.Fatalf("seed %d: torn inside a sector", seed)
		}
		torn, lost, kept = torn || ones > 0 && ones < 4096, lost || ones == 4096, kept || ones == 0
		if _, err := d.Stat("/d/b"); errors.Is(err, fs.ErrNotExist) {
			gone = true
		}
		if _, err := f.ReadAt(b, 0); !errors.Is(err, ErrPowerOff) {
			t.Fatalf("seed %d: a handle outlived the crash: %v", seed, err)
		}
	}
	if !torn || !lost || !kept || !gone {
		t.Fatalf("over all seeds: torn %t, lost %t, kept %t, name lost %t", torn, lost, kept, gone)
	}
}

func TestFaultyIsDeterministic(t *testing.T) {
	state := func() []byte {
		d := newDisk(t)
		for i := range int64(20) {
			put(t, d, "/d/a", bytes.Repeat([]byte{byte(i)}, 3000), i*1000)
		}
		if err := d.SyncDir("/d"); err != nil {
			t.Fatal(err)
		}
		d.Crash(rand.New(rand.NewSource(7)))
		return get(t, d, "/d/a", 30000)
	}
	if !bytes.Equal(state(), state()) {
		t.Fatal("the same seed, another result")
	}
}

func TestFaultyRenameIsAtomic(t *testing.T) {
	for seed := range int64(40) {
		d := newDisk(t)
		put(t, d, "/d/a", []byte("old"), 0).Sync()
		d.SyncDir("/d")
		put(t, d, "/d/a.new", []byte("new"), 0).Sync()
		if err := d.Rename("/d/a.new", "/d/a"); err != nil {
			t.Fatal(err)
		}
		d.Crash(rand.New(rand.NewSource(seed)))
		if b := get(t, d, "/d/a", 3); string(b) != "old" && string(b) != "new" {
			t.Fatalf("seed %d: %q", seed, b)
		}
	}
}

func TestFaultyCapacity(t *testing.T) {
	d := newDisk(t)
	d.SetCapacity(3 * 4096)
	f := put(t, d, "/d/a", make([]byte, 4096), 0)
	n, err := f.WriteAt(make([]byte, 4*4096), 0)
	if n != 3*4096 || !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(n, err)
	}
	if _, err := f.WriteAt(make([]byte, 3*4096), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.PunchHole(0, 4096); err != nil || d.Used() != 2*4096 {
		t.Fatal(err, d.Used())
	}
	if err := d.Remove("/d/a"); err != nil || d.Used() != 0 {
		t.Fatal(err, d.Used())
	}
}

func TestFaultyInjectLocksAndDirect(t *testing.T) {
	d := newDisk(t)
	f := put(t, d, "/d/a", []byte("x"), 0)
	d.Inject(func(op Op) error {
		if op.Kind == OpSync {
			return syscall.EIO
		}
		return nil
	})
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if _, err := d.Lock("/d/lock"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Lock("/d/lock"); err == nil {
		t.Fatal("locked twice")
	}
	d.Kill()
	if _, err := d.Lock("/d/lock"); err != nil {
		t.Fatal(err)
	}
	if string(get(t, d, "/d/a", 1)) != "x" {
		t.Fatal("the death of a process lost a write")
	}
	g, err := d.Open("/d/a", ReadWrite|Direct)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.WriteAt(AlignedBuffer(4096)[:512], 0); !errors.Is(err, syscall.EINVAL) {
		t.Fatal(err)
	}
	if _, err := g.WriteAt(AlignedBuffer(4096), 0); err != nil {
		t.Fatal(err)
	}
	d.PowerOff()
	if _, err := d.Stat("/d/a"); !errors.Is(err, ErrPowerOff) {
		t.Fatal(err)
	}
}

func TestFaultyDeceives(t *testing.T) {
	d := newDisk(t)
	a, b := put(t, d, "/d/a", bytes.Repeat([]byte{1}, 8192), 0), put(t, d, "/d/b", bytes.Repeat([]byte{2}, 8192), 0)
	if err := errors.Join(a.Sync(), b.Sync(), d.SyncDir("/d")); err != nil {
		t.Fatal(err)
	}
	fate := Fate{}
	d.Deceive(func(op Op) Fate {
		if op.Kind == OpWrite && op.Path == "/d/a" || op.Kind == OpSync {
			return fate
		}
		return Fate{}
	})
	three := bytes.Repeat([]byte{3}, 4096)
	fate = Fate{Lost: true}
	if n, err := a.WriteAt(three, 0); n != len(three) || err != nil || get(t, d, "/d/a", 1)[0] != 1 {
		t.Errorf("lost write: %d, %v", n, err)
	}
	fate = Fate{Path: "/d/b", Off: 4096}
	if n, err := a.WriteAt(three, 0); n != len(three) || err != nil || get(t, d, "/d/a", 1)[0] != 1 || get(t, d, "/d/b", 8192)[4096] != 3 {
		t.Errorf("misdirected write: %d, %v", n, err)
	}
	fate = Fate{Lost: true}
	if err := b.Sync(); err != nil {
		t.Fatal(err)
	}
	twin := d.Clone()
	lost := 0
	for seed := range int64(40) {
		c := twin.Clone()
		c.Crash(rand.New(rand.NewSource(seed)))
		if get(t, c, "/d/b", 8192)[4096] == 2 {
			lost++
		}
	}
	if lost == 0 {
		t.Error("a sync that the disk lied about kept the write in 40 crashes")
	}
	d.Deceive(nil)
	if err := b.Sync(); err != nil {
		t.Fatal(err)
	}
	d.Crash(rand.New(rand.NewSource(1)))
	if get(t, d, "/d/b", 8192)[4096] != 3 {
		t.Error("a real sync after the lie lost the write")
	}
	if get(t, twin, "/d/a", 1)[0] != 1 || twin.Used() != d.Used() {
		t.Errorf("clone: %d bytes used, the original %d", twin.Used(), d.Used())
	}
}

func TestFaultyStrays(t *testing.T) {
	hit := map[Place]bool{}
	for seed := range int64(60) {
		rng := rand.New(rand.NewSource(seed))
		d := newDisk(t)
		a, b := put(t, d, "/d/a", bytes.Repeat([]byte{1}, 8192), 0), put(t, d, "/d/b", bytes.Repeat([]byte{2}, 8192), 0)
		if err := errors.Join(a.Sync(), b.Sync(), d.SyncDir("/d")); err != nil {
			t.Fatal(err)
		}
		put(t, d, "/d/a", bytes.Repeat([]byte{3}, 4096), 0)
		landed := d.Stray(rng, 1)
		d.Crash(rng)
		if len(landed) != 1 || get(t, d, landed[0].Path, 8192)[landed[0].Off] != 3 {
			t.Fatalf("seed %d: %v", seed, landed)
		}
		hit[landed[0]] = true
		if at := landed[0]; (at != Place{"/d/a", 0}) && get(t, d, "/d/a", 1)[0] != 1 {
			t.Fatalf("seed %d: the write is also where it should be", seed)
		}
	}
	if len(hit) != 4 {
		t.Errorf("landed in %d of 4 pages", len(hit))
	}
}

func TestNextData(t *testing.T) {
	d := newDisk(t)
	path := filepath.Join(t.TempDir(), "a")
	for name, open := range map[string]func() (File, error){
		"faulty": func() (File, error) { return d.Open("/d/a", ReadWrite|Create) },
		"os":     func() (File, error) { return OS{}.Open(path, ReadWrite|Create) },
	} {
		f, err := open()
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(1 << 20); err != nil {
			t.Fatal(err)
		}
		for _, off := range []int64{64 << 10, 68 << 10, 512 << 10} {
			if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 4096), off); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range [][3]int64{{0, 64 << 10, 72 << 10}, {66 << 10, 66 << 10, 72 << 10}, {72 << 10, 512 << 10, 516 << 10}} {
			from, to, err := f.(DataFinder).NextData(c[0])
			if from == 0 && name == "os" {
				t.Skip("the filesystem does not know where its data is")
			}
			if from != c[1] || to != c[2] || err != nil {
				t.Errorf("%s: next data from %d: %d to %d, %v, want %d to %d", name, c[0], from, to, err, c[1], c[2])
			}
		}
		if _, _, err := f.(DataFinder).NextData(516 << 10); err != io.EOF {
			t.Errorf("%s: behind the last data: %v", name, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}
