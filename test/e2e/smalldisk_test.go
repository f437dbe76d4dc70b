package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/wire/msg"
)

// smallDisk mounts a filesystem of its own, as loopDisk does, of any kind.
func smallDisk(t *testing.T, size int64, mkfs ...string) string {
	t.Helper()
	dir := t.TempDir()
	image, mnt := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size), os.Mkdir(mnt, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{append(mkfs, image), {"mount", "-o", "loop", image, mnt}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("needs a loop mount: %v: %v %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", mnt).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v %s", mnt, err, out)
		}
	})
	return mnt
}

// addChunkServer makes a chunk server that the test runs itself, and starts it.
func (c *cluster) addChunkServer(dir, host string) *member {
	c.t.Helper()
	c.must(30*time.Second, "-c", c.name(), "make-cs", "-a", "127.0.0.1", "-r", dir, "-t", "0", "--host", host, "--memory", "128MiB")
	m := &member{c: c, verb: "cs", dir: dir, log: filepath.Join(c.dir, "run", host+".log")}
	c.t.Cleanup(m.kill)
	m.start("--memory", "128MiB")
	return m
}

// room is what a filesystem has free for anybody, in bytes.
func room(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// filler writes an image from its beginning, and remembers how far it came.
type filler struct {
	t    *testing.T
	f    *os.File
	seed uint64
	end  int64
}

const fillStep = 1 << 20

func newFiller(t *testing.T, path string, seed uint64) *filler {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &filler{t: t, f: f, seed: seed}
}

func (f *filler) content(off int64) []byte {
	p := make([]byte, fillStep)
	var s [32]byte
	s[0], s[1], s[2], s[3] = byte(f.seed), byte(f.seed>>8), byte(off>>20), byte(off>>28)
	rand.NewChaCha8(s).Read(p)
	return p
}

// fill writes up to limit, and reports whether that ended for want of room, which must be said promptly.
func (f *filler) fill(limit int64) (full bool) {
	f.t.Helper()
	for f.end < limit {
		begin := time.Now()
		_, err := f.f.WriteAt(f.content(f.end), f.end)
		took := time.Since(begin)
		if took > 30*time.Second {
			f.t.Errorf("a write at %d took %v: %v", f.end, took, err)
		}
		if errors.Is(err, unix.ENOSPC) {
			return true
		}
		if err != nil {
			f.t.Fatalf("write at %d: %v", f.end, err)
		}
		f.end += fillStep
	}
	return false
}

// again overwrites all that was written with something else, and flushes it.
func (f *filler) again(seed uint64) {
	f.t.Helper()
	f.seed = seed
	for off := int64(0); off < f.end; off += fillStep {
		if _, err := f.f.WriteAt(f.content(off), off); err != nil {
			f.t.Fatalf("overwrite at %d of %d on a full disk: %v", off, f.end, err)
		}
	}
	if err := f.f.Sync(); err != nil {
		f.t.Fatalf("flush on a full disk: %v", err)
	}
}

func (f *filler) verify(from int64) {
	f.t.Helper()
	p := make([]byte, fillStep)
	for off := from; off < f.end; off += fillStep {
		if _, err := f.f.ReadAt(p, off); err != nil || !bytes.Equal(p, f.content(off)) {
			f.t.Fatalf("%s at %d: %v, or other bytes than were written", f.f.Name(), off, err)
		}
	}
}

// TestSmallDisks: a cluster whose disks fill up turns what is new away at once, while images go on that are there, and gets its room back from what
// is deleted and punched, on every replica.
func TestSmallDisks(t *testing.T) {
	need(t, "mkfs.ext4", "mkfs.xfs", "mount", "umount")
	t.Parallel() // it waits more than it works
	disks := []string{smallDisk(t, 320<<20, "mkfs.ext4", "-q", "-F", "-m", "0"), smallDisk(t, 384<<20, "mkfs.xfs", "-q", "-f"), smallDisk(t, 320<<20, "mkfs.ext4", "-q", "-F", "-m", "0")}
	c := up(t, 1, 3, 1, "3:2")
	for i, d := range disks {
		c.addChunkServer(filepath.Join(d, "cs"), fmt.Sprint("small", i+1))
	}
	c.cs = 6
	c.wait(2*time.Minute, "the small servers", c.healthy)
	for _, large := range []string{"cs1", "cs2", "cs3"} {
		c.must(30*time.Second, "-c", c.name(), "rm-cs", large)
	}
	c.cs = 3
	c.wait(2*time.Minute, "three servers", c.healthy)
	mnt := c.mounts[0]
	begin := room(t, mnt)
	var were []int64
	for _, d := range disks {
		were = append(were, room(t, d))
	}
	heard := func() map[uint32]int64 { // free, as the leader knows it
		var st *msg.StatusReply
		c.wait(time.Minute, "the leader to say what is free", func() (err error) {
			st, err = c.status()
			return err
		})
		m := make(map[uint32]int64)
		for _, s := range st.Servers {
			m[s.Server] = int64(s.Free)
		}
		return m
	}
	was := heard()
	t.Logf("df says %d MiB, the disks have %d, %d and %d", begin>>20, were[0]>>20, were[1]>>20, were[2]>>20)

	// One image that is written here and there, whose holes take the last room.
	sparse := newFiller(t, filepath.Join(mnt, "sparse"), 9)
	sparse.fill(fillStep)
	var images []*filler
	for n := uint64(0); ; n++ {
		f := newFiller(t, filepath.Join(mnt, fmt.Sprint("image", n)), 100+n)
		images = append(images, f)
		if f.fill(48 << 20) {
			break
		}
		if n > 20 {
			t.Fatal("a GiB was written to disks of a third of one")
		}
	}
	written := sparse.end
	for _, f := range images {
		written += f.end
	}
	c.wait(time.Minute, "df to show what was written", func() error {
		if d := begin - room(t, mnt) - written; d < -(4<<20) || d > 16<<20 {
			return fmt.Errorf("%d MiB less free after %d MiB were written", (begin-room(t, mnt))>>20, written>>20)
		}
		return nil
	})
	t.Logf("%d images, %d MiB until no new one could begin; df says %d MiB", len(images), written>>20, room(t, mnt)>>20)
	for n := range 3 { // at once, again and again
		f := newFiller(t, filepath.Join(mnt, fmt.Sprint("new", n)), 1)
		if !f.fill(fillStep) {
			t.Errorf("a new image could begin on a full disk")
		}
	}
	if !sparse.fill(64 << 20) {
		t.Log("the holes of a chunk that was there had room")
	}
	for i, f := range images {
		f.again(200 + uint64(i))
	}
	sparse.again(10)

	// What is deleted, and what is punched, is free again on all replicas.
	last := images[len(images)-1]
	images = images[:len(images)-1]
	if err := errors.Join(os.Remove(last.f.Name()), last.f.Close(), os.Remove(images[0].f.Name()), images[0].f.Close(), os.Remove(images[1].f.Name()), images[1].f.Close()); err != nil {
		t.Fatal(err)
	}
	images = images[2:]
	const punched = 32 << 20
	if err := unix.Fallocate(int(images[0].f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, punched); err != nil {
		t.Fatal(err)
	}
	left := sparse.end - punched
	for _, g := range images {
		left += g.end
	}
	start := time.Now()
	c.wait(2*time.Minute, "room on every disk, and the cluster to be whole", func() error {
		for i, d := range disks {
			if got := were[i] - room(t, d); got > left+(8<<20) {
				return fmt.Errorf("%s holds %d MiB, images are %d: %v", d, got>>20, left>>20, c.healthy())
			}
		}
		for server, free := range heard() { // else a chunk is made without it, and is to be repaired first
			if was[server]-free > left+(32<<20) {
				return fmt.Errorf("cs%d has told of %d MiB free, at first %d", server, free>>20, was[server]>>20)
			}
		}
		return c.healthy()
	})
	t.Logf("all disks had %d MiB at most, and all replicas, after %v", (left>>20)+8, time.Since(start).Round(time.Millisecond))
	f := newFiller(t, filepath.Join(mnt, "after"), 77)
	c.wait(time.Minute, "room for a new image", func() error {
		if f.fill(16 << 20) {
			return errors.New("no space left")
		}
		return nil
	})
	images[0].verify(punched)
	for _, g := range append(images[1:], sparse, f) {
		g.verify(0)
	}
	c.checkReplicas(3)

	// And when all is gone, all is back.
	for _, g := range append(images, sparse, f) {
		if err := errors.Join(os.Remove(g.f.Name()), g.f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 3 {
		if err := os.Remove(filepath.Join(mnt, fmt.Sprint("new", n))); err != nil {
			t.Fatal(err)
		}
	}
	c.wait(2*time.Minute, "df to be what it was", func() error {
		if d := begin - room(t, mnt); d < -(1<<20) || d > 4<<20 {
			return fmt.Errorf("%d KiB less", d>>10)
		}
		return nil
	})
}
