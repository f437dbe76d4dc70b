// Command guest is the first and only process of a virtual machine under test. It loads the modules that it was given, writes to the
// machine's disk for a while, reads back what it wrote, and says on the console how that went.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/disk"
)

const (
	blockSize = 4096
	blocks    = 4096 // of the disk that are used
)

func main() {
	say := func(format string, args ...any) { fmt.Printf("VARVE "+format+"\n", args...) }
	d, err := prepare()
	if err == nil {
		say("booted")
		err = d.work(say)
	}
	if err != nil {
		say("failed: %v", err)
	} else {
		say("verified: %d writes, %d flushes, %d reads, longest wait %v", d.writes, d.flushes, d.reads, d.longest.Round(time.Millisecond))
	}
	_ = unix.IoctlSetInt(1, unix.TCSBRK, 1) // waits until the console, which is slow, has said all
	err = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	say("no power off: %v", err)
	select {}
}

// load is the disk and what it must hold.
type load struct {
	fd       int
	seconds  int
	newest   [blocks]uint64 // the write that each block holds
	writes   int
	flushes  int
	reads    int
	longest  time.Duration
	buf, got []byte
}

// prepare mounts what is needed, loads the modules in the order of their names, and opens the disk.
func prepare() (*load, error) {
	for _, m := range []struct{ kind, dir string }{{"proc", "/proc"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return nil, err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	modules, err := os.ReadDir("/modules")
	if err != nil {
		return nil, err
	}
	for _, m := range modules {
		f, err := os.Open("/modules/" + m.Name())
		if err != nil {
			return nil, err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("load %s: %w", m.Name(), err)
		}
		f.Close() // nothing was written to it
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	d := &load{buf: disk.AlignedBuffer(16 * blockSize), got: disk.AlignedBuffer(blockSize)}
	for _, word := range strings.Fields(string(line)) {
		if s, ok := strings.CutPrefix(word, "varve.seconds="); ok {
			if d.seconds, err = strconv.Atoi(s); err != nil {
				return nil, err
			}
		}
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if d.fd, err = unix.Open("/dev/vda", unix.O_RDWR|unix.O_DIRECT, 0); err == nil || time.Now().After(end) {
			return d, err
		}
	}
}

// stamp fills a block with what says which block and which write it is.
func stamp(b []byte, block int, seq uint64) {
	x := seq*0x9e3779b97f4a7c15 + uint64(block)
	for i := 24; i < len(b); i += 8 {
		x = x*6364136223846793005 + 1442695040888963407
		binary.LittleEndian.PutUint64(b[i:], x)
	}
	binary.LittleEndian.PutUint64(b, uint64(block))
	binary.LittleEndian.PutUint64(b[8:], seq)
	binary.LittleEndian.PutUint64(b[16:], uint64(crc32.ChecksumIEEE(b[24:])))
}

// timed runs an operation and notes how long it took.
func (d *load) timed(f func() error) error {
	begin := time.Now()
	err := f()
	d.longest = max(d.longest, time.Since(begin))
	return err
}

// work writes, flushes and reads at random, and in the end reads everything.
func (d *load) work(say func(string, ...any)) error {
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	next := time.Now()
	for end := next.Add(time.Duration(d.seconds) * time.Second); time.Now().Before(end); {
		var err error
		switch rng.IntN(4) {
		case 0, 1:
			n := 1 + rng.IntN(16)*rng.IntN(2)
			err = d.write(rng.IntN(blocks-n+1), n)
		case 2:
			err = d.timed(func() error { return unix.Fdatasync(d.fd) })
			d.flushes++
		case 3:
			err = d.check(rng.IntN(blocks))
		}
		if err != nil {
			return err
		}
		if time.Now().After(next) {
			say("alive: %d writes", d.writes)
			next = time.Now().Add(time.Second)
		}
	}
	for block := range blocks {
		if err := d.check(block); err != nil {
			return err
		}
	}
	return d.timed(func() error { return unix.Fdatasync(d.fd) })
}

func (d *load) write(block, n int) error {
	d.writes++
	for i := range n {
		stamp(d.buf[i*blockSize:(i+1)*blockSize], block+i, uint64(d.writes))
	}
	err := d.timed(func() error {
		m, err := unix.Pwrite(d.fd, d.buf[:n*blockSize], int64(block)*blockSize)
		if err == nil && m != n*blockSize {
			err = fmt.Errorf("%d of %d bytes written", m, n*blockSize)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("write %d blocks at block %d: %w", n, block, err)
	}
	for i := range n {
		d.newest[block+i] = uint64(d.writes)
	}
	return nil
}

// check reads a block and compares it with what was written last.
func (d *load) check(block int) error {
	d.reads++
	err := d.timed(func() error {
		n, err := unix.Pread(d.fd, d.got, int64(block)*blockSize)
		if err == nil && n != blockSize {
			err = fmt.Errorf("%d bytes", n)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read block %d: %w", block, err)
	}
	want := d.buf[:blockSize]
	clear(want)
	if d.newest[block] > 0 {
		stamp(want, block, d.newest[block])
	}
	if string(d.got) != string(want) {
		return fmt.Errorf("block %d holds block %d of write %d, want write %d", block,
			binary.LittleEndian.Uint64(d.got), binary.LittleEndian.Uint64(d.got[8:]), d.newest[block])
	}
	return nil
}
