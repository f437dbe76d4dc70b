package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/disk"
)

// writer writes self-describing 4 KiB blocks with fsync and remembers, for each block, the last write that
// was acknowledged. One goroutine a file.
type writer struct {
	t      *testing.T
	path   string
	blocks int
	acked  []uint64 // sequence of the last acknowledged write of each block, 0: never written
	seq    uint64
	writes int
	stall  time.Duration // longest write+fsync
	cow    []uint64      // sequence of a write under way, which may or may not be there
	err    error
}

const blockSize = 4096

func newWriter(t *testing.T, path string, blocks int) *writer {
	return &writer{t: t, path: path, blocks: blocks, acked: make([]uint64, blocks), cow: make([]uint64, blocks)}
}

// stamp fills b with what says which block and which write it is, and a checksum.
func stamp(b []byte, block int, seq uint64) {
	x := seq*0x9e3779b97f4a7c15 + uint64(block)
	for i := 24; i < len(b); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(b[i:], x)
	}
	binary.LittleEndian.PutUint64(b[0:], uint64(block))
	binary.LittleEndian.PutUint64(b[8:], seq)
	binary.LittleEndian.PutUint64(b[16:], uint64(crc32.ChecksumIEEE(b[24:])))
}

// run writes until stop; some writes are direct, some a few blocks long.
func (w *writer) run(stop *atomic.Bool, wg *sync.WaitGroup) {
	defer wg.Done()
	f, err := os.OpenFile(w.path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		w.err = err
		return
	}
	defer f.Close()
	direct, err := unix.Open(w.path, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		w.err = err
		return
	}
	defer unix.Close(direct)
	rng := rand.New(rand.NewPCG(1, uint64(len(w.path))))
	buf := disk.AlignedBuffer(16 * blockSize)
	for !stop.Load() {
		first := rng.IntN(w.blocks)
		n := min(1+rng.IntN(16)*rng.IntN(2), w.blocks-first)
		w.seq++
		for i := range n {
			stamp(buf[i*blockSize:(i+1)*blockSize], first+i, w.seq)
			w.cow[first+i] = w.seq
		}
		begin := time.Now()
		off, p := int64(first)*blockSize, buf[:n*blockSize]
		if rng.IntN(2) == 0 {
			_, err = f.WriteAt(p, off)
		} else {
			_, err = unix.Pwrite(direct, p, off)
		}
		if err == nil {
			err = f.Sync()
		}
		if d := time.Since(begin); d > w.stall {
			w.stall = d
		}
		if err != nil {
			w.err = fmt.Errorf("write %d to block %d of %s: %w", w.seq, first, w.path, err)
			return
		}
		for i := range n {
			w.acked[first+i] = w.seq
			w.cow[first+i] = 0
		}
		w.writes++
	}
}

// verify compares the file with what was acknowledged.
func (w *writer) verify(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b, want := make([]byte, blockSize), make([]byte, blockSize)
	var bad []error
	for block, seq := range w.acked {
		n, err := f.ReadAt(b, int64(block)*blockSize)
		if seq == 0 && n < blockSize {
			continue // past the end
		}
		if err != nil {
			return fmt.Errorf("read block %d of %s: %w", block, path, err)
		}
		got := binary.LittleEndian.Uint64(b[8:])
		if got != seq && (got == 0 || got != w.cow[block]) {
			bad = append(bad, fmt.Errorf("block %d of %s: holds write %d, acknowledged was %d", block, path, got, seq))
			continue
		}
		clear(want)
		if got != 0 {
			stamp(want, block, got)
		}
		if string(b) != string(want) {
			bad = append(bad, fmt.Errorf("block %d of %s: write %d is torn or changed", block, path, got))
		}
		if len(bad) > 10 {
			break
		}
	}
	return errors.Join(bad...)
}
