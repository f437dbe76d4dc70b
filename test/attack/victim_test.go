package attack

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/disk"
)

const (
	blockSize    = 4096
	victimBlocks = 2048
	flushEvery   = 16
)

// victim writes blocks that say which write they are to a file of the mount, with direct I/O, and reads them again.
type victim struct {
	path  string
	fd    int
	acked []uint64 // the last write of each block; 0: none
	seq   uint64

	mu   sync.Mutex
	took []time.Duration // since the last look
	err  error

	stop chan struct{}
	done chan struct{}
}

func newVictim(dir string) (*victim, error) {
	v := &victim{path: filepath.Join(dir, "image"), acked: make([]uint64, victimBlocks), stop: make(chan struct{}), done: make(chan struct{})}
	var err error
	v.fd, err = unix.Open(v.path, unix.O_RDWR|unix.O_CREAT|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
	return v, err
}

// fill makes b the block that a write writes.
func fill(b []byte, block int, seq uint64) {
	x := seq*0x9e3779b97f4a7c15 + uint64(block) | 1
	for i := 16; i < len(b); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(b[i:], x)
	}
	binary.LittleEndian.PutUint64(b, uint64(block))
	binary.LittleEndian.PutUint64(b[8:], seq)
}

func (v *victim) run() {
	defer close(v.done)
	b, want := disk.AlignedBuffer(blockSize), make([]byte, blockSize)
	rng := rand.New(rand.NewPCG(8, 8))
	for n := 0; ; n++ {
		select {
		case <-v.stop:
			return
		default:
		}
		block := rng.IntN(victimBlocks)
		begin := time.Now()
		var err error
		if n%2 == 0 {
			v.seq++
			fill(b, block, v.seq)
			if _, err = unix.Pwrite(v.fd, b, int64(block)*blockSize); err == nil {
				v.acked[block] = v.seq
			}
			if err == nil && n%flushEvery == 0 {
				err = unix.Fdatasync(v.fd)
			}
		} else {
			err = v.check(b, want, block)
		}
		v.mu.Lock()
		v.took = append(v.took, time.Since(begin))
		v.err = err
		v.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// check reads a block and compares it with what was written last.
func (v *victim) check(b, want []byte, block int) error {
	n, err := unix.Pread(v.fd, b, int64(block)*blockSize)
	if err != nil {
		return fmt.Errorf("read block %d: %w", block, err)
	}
	clear(b[n:])
	clear(want)
	if v.acked[block] != 0 {
		fill(want, block, v.acked[block])
	}
	if string(b) != string(want) {
		return fmt.Errorf("block %d has the bytes of write %d, and write %d was the last one", block, binary.LittleEndian.Uint64(b[8:]), v.acked[block])
	}
	return nil
}

// pace is how the victim did.
type pace struct {
	rate          float64 // operations/s
	p50, p99, max time.Duration
}

func (p pace) String() string {
	return fmt.Sprintf("%.0f ops/s, p50 %v, p99 %v, max %v", p.rate, p.p50.Round(time.Microsecond), p.p99.Round(10*time.Microsecond), p.max.Round(time.Millisecond))
}

// look returns how the victim did while f ran.
func (v *victim) look(f func()) (pace, error) {
	v.mu.Lock()
	v.took = v.took[:0]
	v.mu.Unlock()
	begin := time.Now()
	f()
	v.mu.Lock()
	defer v.mu.Unlock()
	p := pace{rate: float64(len(v.took)) / time.Since(begin).Seconds()}
	if v.err != nil {
		return p, v.err
	}
	if len(v.took) == 0 {
		return p, nil
	}
	all := slices.Clone(v.took)
	slices.Sort(all)
	p.p50, p.p99, p.max = all[len(all)/2], all[len(all)*99/100], all[len(all)-1]
	return p, nil
}

// begun waits until the victim has written and read.
func (v *victim) begun(limit time.Duration) error {
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		v.mu.Lock()
		n, err := len(v.took), v.err
		v.mu.Unlock()
		if err != nil || n >= 2 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("the victim does nothing for %v", limit)
		}
	}
}

// end stops the victim, and verifies all that it has written.
func (v *victim) end() error {
	close(v.stop)
	<-v.done
	defer unix.Close(v.fd)
	if v.err != nil {
		return v.err
	}
	b, want := disk.AlignedBuffer(blockSize), make([]byte, blockSize)
	for block := range v.acked {
		if err := v.check(b, want, block); err != nil {
			return err
		}
	}
	if names, err := os.ReadDir(filepath.Dir(v.path)); err != nil || len(names) != 1 {
		return fmt.Errorf("the mount has %v, want one file: %v", names, err)
	}
	return nil
}
