package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
)

// fillDisk takes every byte that the filesystem of a directory gives, as another program would.
func fillDisk(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "ballast"))
	must(t, err)
	defer f.Close()
	b := make([]byte, 1<<20)
	for len(b) >= 512 {
		if _, err := f.Write(b); err == nil {
			continue
		} else if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		b = b[:len(b)/2]
	}
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// On a filesystem without a free byte new blocks are turned away, blocks that are there can be rewritten, flushed and settled, and
// punching makes room. No store fails for it.
func TestFullFilesystem(t *testing.T) {
	for _, typ := range []string{"ext4", "xfs"} {
		for _, buffered := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/buffered=%t", typ, buffered), func(t *testing.T) {
				dir, umount, _ := mounted(t, typ, 320<<20)
				o := testOptions(disk.OS{}, filepath.Join(dir, "cs"))
				o.Buffered, o.Reserve = buffered, -1
				s := mustOpen(t, o)
				rng := rand.New(rand.NewSource(1))
				// Scattered blocks, so that each is an extent of its own in the filesystem's eyes.
				const blocks = 400
				where := rng.Perm(chunk.Blocks)[:blocks]
				must(t, s.Create(1, 1))
				for _, b := range where {
					must(t, write(s, 1, 1, uint32(b)*chunk.BlockSize, random(rng, chunk.BlockSize)))
				}
				must(t, s.Flush(1, 1))
				fillDisk(t, dir)
				model := map[int][]byte{}
				for round := range 2 {
					for _, b := range where {
						p := random(rng, chunk.BlockSize)
						must(t, write(s, 1, 1, uint32(b)*chunk.BlockSize, p))
						model[b] = p
					}
					must(t, s.Flush(1, 1))
					if _, err := s.Settle(10); err != nil {
						t.Fatalf("round %d: settle: %v", round, err)
					}
				}
				must(t, s.Adopt(1, 2))
				wantCode(t, s.Create(2, 1), fserr.NoSpace)
				var err error
				for b := uint32(0); b < chunk.Blocks && err == nil; b++ {
					if model[int(b)] == nil {
						if err = write(s, 1, 2, b*chunk.BlockSize, random(rng, chunk.BlockSize)); err == nil {
							model[int(b)] = nil // there was a last free block
						}
					}
				}
				if !buffered || err != nil { // what the page cache has promised it keeps
					wantCode(t, err, fserr.NoSpace)
				}
				must(t, s.Punch(1, 2, 0, 8<<20))
				must(t, s.Flush(1, 2))
				for b, p := range model {
					if p == nil || b*chunk.BlockSize < 8<<20 {
						continue
					}
					got, err := read(s, 1, 2, uint32(b)*chunk.BlockSize, chunk.BlockSize)
					must(t, err)
					if !bytes.Equal(got, p) {
						t.Fatalf("block %d is not what was written to the full disk", b)
					}
				}
				must(t, s.Close())
				if r, err := Check(t.Context(), o, CheckOptions{}); err != nil || r.Count != 0 {
					t.Fatalf("%+v %v", r, err)
				}
				umount()
			})
		}
	}
}

// BenchmarkFirstWrite tells what a first write to a block costs, beside one to a block that fallocate has reserved and one that is there.
func BenchmarkFirstWrite(b *testing.B) {
	for _, what := range []string{"hole", "reserved", "written"} {
		b.Run("4k/into="+what, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "f")
			f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_DIRECT, 0o600)
			if err != nil {
				b.Skip(err)
			}
			defer f.Close()
			p := disk.AlignedBuffer(chunk.BlockSize)
			fresh := func() {
				must(b, f.Truncate(0))
				must(b, f.Truncate(chunk.Size))
				if what != "hole" {
					must(b, syscall.Fallocate(int(f.Fd()), 0, 0, chunk.Size))
				}
				if what == "written" {
					all := disk.AlignedBuffer(1 << 20)
					for off := int64(0); off < chunk.Size; off += 1 << 20 {
						_, err := f.WriteAt(all, off)
						must(b, err)
					}
				}
				must(b, f.Sync())
			}
			n := uint32(chunk.Blocks)
			for b.Loop() {
				if n == chunk.Blocks {
					b.StopTimer()
					fresh()
					n = 0
					b.StartTimer()
				}
				_, err := f.WriteAt(p, int64(n*7919%chunk.Blocks)*chunk.BlockSize)
				must(b, err)
				n++
			}
		})
	}
}
