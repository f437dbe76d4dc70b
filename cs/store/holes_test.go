package store

import (
	"math/rand"
	"os"
	"testing"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
)

// A disk that loses the mark of an extent loses what the table would have said of blocks that were holes: they do not read as zeros.
func TestFalseHoles(t *testing.T) {
	d := new(disk.Faulty)
	o := testOptions(d, "/d")
	s := mustOpen(t, o)
	must(t, s.Create(7, 1))
	must(t, write(s, 7, 1, 0, random(rand.New(rand.NewSource(1)), 2*chunk.BlockSize)))
	must(t, s.Close())
	s = mustOpen(t, o)
	d.Deceive(func(op disk.Op) disk.Fate {
		return disk.Fate{Lost: op.Kind == disk.OpWrite && op.Path == "/d/active.log"}
	})
	lost := uint32(chunk.ExtentSize + 5*chunk.BlockSize)
	must(t, write(s, 7, 1, lost, random(rand.New(rand.NewSource(2)), 3*chunk.BlockSize)))
	must(t, s.Flush(7, 1))
	d.Kill()
	s = mustOpen(t, o)
	for i := range uint32(3) {
		_, err := read(s, 7, 1, lost+i*chunk.BlockSize, chunk.BlockSize)
		wantCode(t, err, fserr.BadChecksum)
	}
	for _, off := range []uint32{0, lost - chunk.BlockSize, lost + 3*chunk.BlockSize, 10 * chunk.BlockSize} {
		_, err := read(s, 7, 1, off, chunk.BlockSize)
		must(t, err)
	}
	must(t, write(s, 7, 1, lost, make([]byte, 3*chunk.BlockSize)))
	_, err := read(s, 7, 1, lost, 3*chunk.BlockSize)
	must(t, err)
	must(t, s.Close())
}

// The same on a real filesystem, which says where its data is.
func TestFalseHolesOnDisk(t *testing.T) {
	o := testOptions(disk.OS{}, t.TempDir())
	s := mustOpen(t, o)
	must(t, s.Create(7, 1))
	must(t, write(s, 7, 1, 0, random(rand.New(rand.NewSource(1)), chunk.Size)))
	must(t, s.Punch(7, 1, chunk.ExtentSize, 3*chunk.ExtentSize))
	must(t, s.Create(8, 1)) // nothing but holes
	path := s.pathOf(7)
	must(t, s.Close())
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	at := uint32(chunk.ExtentSize + 9*chunk.BlockSize)
	_, err = f.WriteAt([]byte{1}, dataOffset+int64(at)+77)
	must(t, err)
	must(t, f.Close())
	s = mustOpen(t, o)
	_, err = read(s, 7, 1, at, chunk.BlockSize)
	wantCode(t, err, fserr.BadChecksum)
	for _, off := range []uint32{at - chunk.BlockSize, at + chunk.BlockSize, 0, 4 * chunk.ExtentSize} {
		_, err := read(s, 7, 1, off, chunk.BlockSize)
		must(t, err)
	}
	_, err = read(s, 8, 1, 0, chunk.BlockSize)
	must(t, err)
	must(t, s.Close())
}
