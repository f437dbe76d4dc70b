// Command diskguest is the first process of a guest that tests disks: it loads the drivers, does what the kernel's command line says with each disk it finds, says
// so on the console, and powers off.
package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Words on the command line: diskguest.disks=vda,vdb and diskguest.vda=write,check,trim,zeros,loop.
func main() {
	say("begins")
	if err := run(); err != nil {
		say("failed: %v", err)
	} else {
		say("clean")
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	time.Sleep(time.Minute)
}

func say(format string, args ...any) { fmt.Printf("VARVE "+format+"\n", args...) }

func run() error {
	for dir, kind := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs"} {
		_ = os.MkdirAll(dir, 0o755)
		if err := unix.Mount(kind, dir, kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", kind, err)
		}
	}
	for _, m := range []string{"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"} {
		f, err := os.Open(filepath.Join("/modules", m+".ko"))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", m, err)
		}
	}
	words := map[string][]string{}
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	for _, w := range strings.Fields(string(b)) {
		if k, v, ok := strings.Cut(w, "="); ok {
			words[strings.TrimPrefix(k, "diskguest.")] = strings.Split(v, ",")
		}
	}
	var disks []*disk
	for _, name := range words["disks"] {
		d, err := open(name)
		if err != nil {
			return err
		}
		disks = append(disks, d)
	}
	for _, d := range disks {
		for _, do := range words[d.name] {
			begin := time.Now()
			if err := d.do(do); err != nil {
				return fmt.Errorf("%s of %s: %w", do, d.name, err)
			}
			say("done %s %s %v", do, d.name, time.Since(begin).Round(time.Millisecond))
		}
	}
	return nil
}

// disk is a disk, without the kernel's cache.
type disk struct {
	name string
	f    *os.File
	size int64
	buf  []byte
}

// most is as large as requests are.
const most = 256 << 10

func open(name string) (*disk, error) {
	path := "/dev/" + name
	for range 600 { // disks come by and by
		if _, err := os.Stat(path); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	d := &disk{name: name, f: os.NewFile(uintptr(fd), path)}
	if d.size, err = d.f.Seek(0, 2); err != nil {
		return nil, err
	}
	if d.buf, err = unix.Mmap(-1, 0, most, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
		return nil, err
	}
	say("disk %s %d", name, d.size)
	return d, nil
}

// pattern fills p with what belongs at off in a round.
func pattern(p []byte, off int64, round uint64) {
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], (uint64(off)+uint64(i))*0x9E3779B97F4A7C15^round)
	}
}

// sizes of requests, which lie one after the other; 512 bytes are part of a block.
var sizes = []int64{4096, 512, 65536, 3584, 256 << 10, 8192, 131072}

// span is how much of each disk is written.
const span = 8 << 20

func (d *disk) do(what string) error {
	switch what {
	case "write":
		return d.pass(func(p []byte, off int64) error {
			pattern(p, off, 1)
			_, err := d.f.WriteAt(p, off)
			return err
		}, true)
	case "check":
		return d.pass(func(p []byte, off int64) error {
			if _, err := d.f.ReadAt(p, off); err != nil {
				return err
			}
			want := make([]byte, len(p))
			pattern(want, off, 1)
			if !bytes.Equal(p, want) {
				return fmt.Errorf("the %d bytes at %d are not what was written", len(p), off)
			}
			return nil
		}, false)
	case "trim":
		r := [2]uint64{0, span}
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, d.f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&r))); e != 0 {
			return e
		}
		return d.f.Sync()
	case "zeros":
		r := [2]uint64{span, 1 << 20}
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, d.f.Fd(), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&r))); e != 0 {
			return e
		}
		p := d.buf[:4096]
		if _, err := d.f.ReadAt(p, span); err != nil {
			return err
		}
		if slices.Max(p) != 0 {
			return errors.New("no zeros")
		}
		return nil
	case "loop":
		return d.loop()
	}
	return fmt.Errorf("what is %q", what)
}

func (d *disk) pass(f func(p []byte, off int64) error, sync bool) error {
	n := 0
	for off := int64(0); off < span; n++ {
		k := min(sizes[n%len(sizes)], span-off)
		if err := f(d.buf[:k], off); err != nil {
			return err
		}
		off += k
	}
	if sync {
		return d.f.Sync()
	}
	return nil
}

// loop writes records, each in its place and in the next round over it, flushes each, and says which is acknowledged; when it is done it reads the last of each back.
func (d *disk) loop() error {
	const places, rounds = 64, 40
	p := d.buf[:4096]
	for n := range uint64(places * rounds) {
		off := int64(16<<20) + int64(n%places)*4096
		pattern(p, off, n)
		if _, err := d.f.WriteAt(p, off); err != nil {
			return fmt.Errorf("record %d: %w", n, err)
		}
		if n%8 == 0 {
			if err := d.f.Sync(); err != nil {
				return fmt.Errorf("flush after record %d: %w", n, err)
			}
			say("acked %d %s", n, d.name)
		}
	}
	want := make([]byte, 4096)
	for i := range uint64(places) {
		off := int64(16<<20) + int64(i)*4096
		pattern(want, off, places*(rounds-1)+i)
		if _, err := d.f.ReadAt(p, off); err != nil {
			return err
		}
		if !bytes.Equal(p, want) {
			return fmt.Errorf("record %d is not what was written last", i)
		}
	}
	return nil
}
