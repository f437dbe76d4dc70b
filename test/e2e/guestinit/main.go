// Command guestinit is the first and only process of a guest that is moved between hosts: it loads the drivers of its disk, and writes and checks blocks
// of it for ever, several at once, saying on the console how far it has come. It remembers what it wrote, so that a write that was lost, torn
// or undone, on whichever host, is found at once.
package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	blockSize = 4096
	blocks    = 1024 // of each writer
	writers   = 4
	diskPath  = "/dev/vda"
)

// modules in the order in which they are loaded; those that the kernel has built in are not there.
var modules = []string{"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"}

func say(format string, args ...any) { fmt.Printf("VARVE "+format+"\n", args...) }

func main() {
	if err := run(); err != nil {
		say("bad %v", err)
	}
	select {} // the kernel panics if its first process ends
}

func run() error {
	if err := unix.Mount("dev", "/dev", "devtmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	for _, m := range modules {
		f, err := os.Open("/modules/" + m + ".ko")
		if os.IsNotExist(err) {
			continue
		}
		if err == nil {
			err = unix.FinitModule(int(f.Fd()), "", 0)
			f.Close()
		}
		if err != nil {
			return fmt.Errorf("load %s: %w", m, err)
		}
	}
	for i := 0; ; i++ {
		if _, err := os.Stat(diskPath); err == nil {
			break
		} else if i > 600 {
			return fmt.Errorf("no disk: %w", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	say("up")
	var acked, rounds atomic.Int64
	failed := make(chan error, writers)
	var all sync.WaitGroup
	for w := range writers {
		all.Add(1)
		go func() {
			defer all.Done()
			failed <- write(w, &acked, &rounds)
		}()
	}
	for {
		select {
		case err := <-failed:
			return err
		case <-time.After(200 * time.Millisecond):
			say("acked %d", acked.Load())
			say("checked %d", rounds.Load())
		}
	}
}

// write writes to random blocks of its part of the disk, and reads others; now and then it reads all of them.
func write(w int, acked, rounds *atomic.Int64) error {
	flags := unix.O_RDWR | unix.O_DIRECT
	if w%2 == 1 {
		flags |= unix.O_DSYNC
	}
	fd, err := unix.Open(diskPath, flags, 0)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	mem, err := unix.Mmap(-1, 0, 2*blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	buf, want := mem[:blockSize], mem[blockSize:]
	seqs := make([]uint64, blocks)
	check := func(b int) error {
		if _, err := unix.Pread(fd, buf, int64(w*blocks+b)*blockSize); err != nil {
			return fmt.Errorf("read block %d: %w", w*blocks+b, err)
		}
		if stamp(want, w*blocks+b, seqs[b]); seqs[b] != 0 && string(buf) != string(want) {
			return fmt.Errorf("block %d holds write %d, want %d", w*blocks+b, binary.LittleEndian.Uint64(buf[8:]), seqs[b])
		}
		return nil
	}
	for seq := uint64(1); ; seq++ {
		b := rand.IntN(blocks)
		stamp(buf, w*blocks+b, seq)
		if n, err := unix.Pwrite(fd, buf, int64(w*blocks+b)*blockSize); err != nil || n != blockSize {
			return fmt.Errorf("write block %d: %d bytes, %w", w*blocks+b, n, err)
		}
		seqs[b] = seq
		acked.Add(1)
		if err := check(rand.IntN(blocks)); err != nil {
			return err
		}
		if seq%64 == 0 {
			if err := unix.Fdatasync(fd); err != nil {
				return fmt.Errorf("flush: %w", err)
			}
		}
		if seq%200 == 0 {
			for b, s := range seqs {
				if s == 0 {
					continue
				}
				if err := check(b); err != nil {
					return err
				}
			}
			rounds.Add(1)
		}
	}
}

// stamp fills b with what says which block and which write it is.
func stamp(b []byte, block int, seq uint64) {
	x := seq*0x9e3779b97f4a7c15 + uint64(block)
	for i := 16; i < len(b); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(b[i:], x)
	}
	binary.LittleEndian.PutUint64(b[0:], uint64(block))
	binary.LittleEndian.PutUint64(b[8:], seq)
}
