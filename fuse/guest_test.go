package fuse

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// guest is the process that uses a mount. Its failures are panics, which guestMain turns into an exit code.
type guest struct{ dir string }

type scenario struct {
	name string
	auto bool // run by TestMount, in a directory of its own
	run  func(g *guest)
}

var scenarios []scenario

func init() {
	scenarios = []scenario{
		{"data", true, (*guest).data}, {"direct", true, (*guest).direct}, {"mmap", true, (*guest).mmap},
		{"append", true, (*guest).appends}, {"names", true, (*guest).names}, {"readdir", true, (*guest).readdir},
		{"xattr", true, (*guest).xattr}, {"space", true, (*guest).space}, {"flock", true, (*guest).flock},
		{"ofd", true, (*guest).ofd}, {"posix", true, (*guest).posix}, {"attr", true, (*guest).attr}, {"parallel", true, (*guest).parallel},
		{"posix-other", false, (*guest).posixOther}, {"stall", false, (*guest).stall}, {"mapped", false, (*guest).mapped},
		{"mount-as-user", false, (*guest).mountAsUser}, {"make", false, (*guest).make}, {"write-as-user", false, (*guest).writeAsUser},
		{"capture", false, (*guest).capture}, {"sized", false, (*guest).sized},
		{"handover", false, (*guest).handover},
		{"lock-queue", false, (*guest).lockQueue},
	}
}

func guestMain(name, dir string) (code int) {
	defer func() {
		if p := recover(); p != nil {
			var pcs [8]uintptr
			frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
			for f, more := frames.Next(); more; f, more = frames.Next() {
				if strings.Contains(f.File, "guest") {
					fmt.Printf("%s:%d ", filepath.Base(f.File), f.Line)
				}
			}
			fmt.Println(p)
			code = 1
		}
	}()
	syscall.Umask(0o022)
	for _, s := range scenarios {
		if s.name == name {
			s.run(&guest{dir})
			return 0
		}
	}
	fmt.Println("no scenario", name)
	return 2
}

func (g *guest) path(name string) string { return filepath.Join(g.dir, name) }

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func want[T comparable](got, want T) {
	if got != want {
		panic(fmt.Sprintf("got %v, want %v", got, want))
	}
}

func wantErr(err, want error) {
	if !errors.Is(err, want) {
		panic(fmt.Sprintf("got error %v, want %v", err, want))
	}
}

func open(name string, flags int) int {
	fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0o666)
	if err != nil {
		panic(fmt.Sprintf("open %s: %v", name, err))
	}
	return fd
}

func pattern(n, seed int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8 + seed)
	}
	return b
}

func (g *guest) data() {
	name := g.path("f")
	b := pattern(5<<20+123, 1)
	must(os.WriteFile(name, b, 0o644))
	got, err := os.ReadFile(name)
	must(err)
	want(bytes.Equal(got, b), true)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	must(err)
	_, err = f.WriteAt([]byte("hello"), 4090)
	must(err)
	copy(b[4090:], "hello")
	must(f.Sync())
	must(f.Truncate(5000))
	got, err = os.ReadFile(name)
	must(err)
	want(bytes.Equal(got, b[:5000]), true)
	must(f.Truncate(9000))
	got, err = os.ReadFile(name)
	must(err)
	want(bytes.Equal(got, append(b[:5000:5000], make([]byte, 4000)...)), true)

	must(os.Remove(name)) // unlinked while open
	_, err = f.ReadAt(got[:100], 0)
	must(err)
	want(bytes.Equal(got[:100], b[:100]), true)
	_, err = f.WriteAt([]byte("still there"), 0)
	must(err)
	st, err := f.Stat()
	must(err)
	want(st.Size(), 9000)
	want(st.Sys().(*syscall.Stat_t).Nlink, 0)
	must(f.Close())
	_, err = os.Stat(name)
	wantErr(err, os.ErrNotExist)

	must(os.WriteFile(name, []byte("one"), 0o644)) // O_CREAT and O_TRUNC of what exists
	must(os.WriteFile(name, []byte("2"), 0o644))
	got, err = os.ReadFile(name)
	must(err)
	want(string(got), "2")
	_, err = unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o600)
	wantErr(err, unix.EEXIST)

	src, dst := open(name, unix.O_RDONLY), open(g.path("copy"), unix.O_RDWR|unix.O_CREAT)
	n, err := unix.CopyFileRange(src, nil, dst, nil, 1, 0)
	must(err)
	want(n, 1)
}

func (g *guest) direct() {
	fd := open(g.path("f"), unix.O_RDWR|unix.O_CREAT|unix.O_DIRECT)
	b := pageAligned(maxWrite)
	copy(b, pattern(len(b), 3))
	n, err := unix.Pwrite(fd, b, 0)
	must(err)
	want(n, len(b))
	must(unix.Fdatasync(fd))
	got := pageAligned(len(b))
	n, err = unix.Pread(fd, got, 0)
	must(err)
	want(n, len(b))
	want(bytes.Equal(got, b), true)
	n, err = unix.Pread(fd, got, int64(len(b)))
	must(err)
	want(n, 0)
	must(unix.Close(fd))
}

func (g *guest) mmap() {
	const size = 64 * pageSize
	name := g.path("f")
	must(os.WriteFile(name, pattern(size, 1), 0o644))
	fd := open(name, unix.O_RDWR)
	m, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(err)
	want(bytes.Equal(m, pattern(size, 1)), true)
	copy(m[10*pageSize+5:], "mapped")
	must(unix.Msync(m, unix.MS_SYNC))
	b := make([]byte, 6)
	other := open(name, unix.O_RDONLY)
	_, err = unix.Pread(other, b, 10*pageSize+5)
	must(err)
	want(string(b), "mapped")
	_, err = unix.Pwrite(fd, []byte("written"), 20*pageSize) // seen through the mapping
	must(err)
	want(string(m[20*pageSize:20*pageSize+7]), "written")
	copy(m[30*pageSize:], "late") // reaches the file without msync, by reading through another descriptor or munmap
	must(unix.Munmap(m))
	must(unix.Close(fd))
	_, err = unix.Pread(other, b[:4], 30*pageSize)
	must(err)
	want(string(b[:4]), "late")

	private, err := unix.Mmap(other, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	must(err)
	private[0] ^= 1
	must(unix.Munmap(private))
}

func (g *guest) appends() {
	name := g.path("f")
	var all sync.WaitGroup
	const writers, each = 4, 50
	for w := range writers {
		all.Go(func() {
			f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
			must(err)
			for range each {
				_, err := f.WriteString(strings.Repeat(string(rune('a'+w)), 9) + "\n")
				must(err)
			}
			must(f.Close())
		})
	}
	all.Wait()
	b, err := os.ReadFile(name)
	must(err)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	want(len(lines), writers*each)
	for _, l := range lines {
		want(l, strings.Repeat(l[:1], 9))
	}
	fd := open(name, unix.O_WRONLY|unix.O_APPEND)
	_, err = unix.Pwrite(fd, []byte("end"), 0) // Linux appends all the same
	must(err)
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0)
	must(err)
	_, err = unix.Pwrite(fd, []byte("start"), 0)
	must(err)
	b, err = os.ReadFile(name)
	must(err)
	want(string(b[:5]), "start")
	want(string(b[len(b)-3:]), "end")
}

func (g *guest) names() {
	a, b := g.path("a"), g.path("b")
	must(os.WriteFile(a, []byte("A"), 0o644))
	must(os.WriteFile(b, []byte("B"), 0o644))
	rename := func(flags uint) error { return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, flags) }
	wantErr(rename(unix.RENAME_NOREPLACE), unix.EEXIST)
	wantErr(rename(unix.RENAME_WHITEOUT), unix.EINVAL)
	must(rename(unix.RENAME_EXCHANGE))
	got, err := os.ReadFile(a)
	must(err)
	want(string(got), "B")
	must(rename(0))
	_, err = os.Stat(a)
	wantErr(err, os.ErrNotExist)
	got, err = os.ReadFile(b)
	must(err)
	want(string(got), "B")

	must(os.Symlink("some/where", g.path("s")))
	target, err := os.Readlink(g.path("s"))
	must(err)
	want(target, "some/where")
	must(unix.Mkfifo(g.path("fifo"), 0o640))
	st, err := os.Lstat(g.path("fifo"))
	must(err)
	want(st.Mode(), os.ModeNamedPipe|0o640)
	must(unix.Mknod(g.path("dev"), unix.S_IFCHR|0o600, int(unix.Mkdev(300, 70000))))
	var raw unix.Stat_t
	must(unix.Stat(g.path("dev"), &raw))
	want(raw.Rdev, unix.Mkdev(300, 70000))
	must(os.Link(b, g.path("hard")))
	must(unix.Stat(b, &raw))
	want(raw.Nlink, 2)
	must(os.Mkdir(g.path("d"), 0o777))
	st, err = os.Stat(g.path("d"))
	must(err)
	want(st.Mode(), os.ModeDir|0o755)
	wantErr(unix.Rmdir(b), unix.ENOTDIR)
	wantErr(unix.Unlink(g.path("d")), unix.EISDIR)
	must(os.WriteFile(g.path("d/x"), nil, 0o600))
	wantErr(unix.Rmdir(g.path("d")), unix.ENOTEMPTY)
	wantErr(os.WriteFile(g.path(strings.Repeat("n", 256)), nil, 0o600), unix.ENAMETOOLONG)
	must(os.WriteFile(g.path(strings.Repeat("n", 255)), nil, 0o600))
	var fs unix.Statfs_t
	must(unix.Statfs(g.dir, &fs))
	want(fs.Blocks*uint64(fs.Bsize), 1<<40)
	want(fs.Bavail*uint64(fs.Bsize), 1<<39)
	want(fs.Namelen, 255)
}

// readdir lists 10,000 entries while others come and go; every one that stays must be seen exactly once.
func (g *guest) readdir() {
	const n = 3000
	for i := range n {
		must(unix.Mknod(g.path(fmt.Sprintf("file-%05d", i)), unix.S_IFREG|0o600, 0))
	}
	var stop atomic.Bool
	var all sync.WaitGroup
	all.Go(func() {
		for i := 1; i < n && !stop.Load(); i += 2 { // the odd ones go, and new ones come
			must(os.Remove(g.path(fmt.Sprintf("file-%05d", i))))
			must(unix.Mknod(g.path(fmt.Sprintf("new-%05d", i)), unix.S_IFREG|0o600, 0))
		}
	})
	for _, look := range []bool{false, true} {
		seen := make(map[string]int)
		d, err := os.Open(g.dir)
		must(err)
		for {
			names, err := d.Readdirnames(100)
			for _, name := range names {
				seen[name]++
				if look {
					_, _ = os.Lstat(g.path(name))
				}
			}
			if err != nil {
				break
			}
		}
		must(d.Close())
		for i := 0; i < n; i += 2 {
			want(seen[fmt.Sprintf("file-%05d", i)], 1)
		}
		for name, count := range seen {
			if count != 1 {
				panic(name + " seen more than once")
			}
		}
	}
	stop.Store(true)
	all.Wait()

	fd := open(g.dir, unix.O_RDONLY|unix.O_DIRECTORY) // "." and "..", and going back to a place
	buf := make([]byte, 32<<10)
	k, err := unix.Getdents(fd, buf)
	must(err)
	var names []string
	_, _, names = syscall.ParseDirent(buf[:k], -1, names)
	first := le.Uint16(buf[16:])
	want(string(bytes.TrimRight(buf[19:first], "\x00")), ".")
	second := buf[first:]
	want(string(bytes.TrimRight(second[19:le.Uint16(second[16:])], "\x00")), "..")
	_, err = unix.Seek(fd, int64(le.Uint64(second[8:])), unix.SEEK_SET)
	must(err)
	k, err = unix.Getdents(fd, buf)
	must(err)
	var again []string
	_, _, again = syscall.ParseDirent(buf[:k], 1, again)
	want(again[0], names[0])
}

func (g *guest) parallel() {
	fd := open(g.path("f"), unix.O_RDWR|unix.O_CREAT)
	var all sync.WaitGroup
	for w := range 8 {
		all.Go(func() {
			for i := range 64 {
				off := int64(w*64+i) * pageSize
				_, err := unix.Pwrite(fd, pattern(pageSize, w+i), off)
				must(err)
				got := make([]byte, pageSize)
				_, err = unix.Pread(fd, got, off)
				must(err)
				want(bytes.Equal(got, pattern(pageSize, w+i)), true)
			}
		})
	}
	all.Wait()
}

// make makes a file of two pages of the letter a.
func (g *guest) make() {
	must(os.WriteFile(g.path("f"), bytes.Repeat([]byte("a"), 2*pageSize), 0o600))
}

func (g *guest) stall() {
	fd := open(g.path("stall"), unix.O_RDWR|unix.O_CREAT)
	_, err := unix.Read(fd, make([]byte, 10))
	fmt.Println("read:", err)
}

// mapped maps the file "f" and answers each byte of its input with the first bytes of two pages.
func (g *guest) mapped() {
	fd := open(g.path("f"), unix.O_RDWR)
	m, err := unix.Mmap(fd, 0, 2*pageSize, unix.PROT_READ, unix.MAP_SHARED)
	must(err)
	for b := make([]byte, 1); ; {
		if n, _ := os.Stdin.Read(b); n == 0 {
			return
		}
		fmt.Printf("%c%c", m[0], m[pageSize])
	}
}

// self is a command that runs another scenario in this guest's directory.
func (g *guest) self(name string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), guestEnv+"="+name)
	return cmd
}

// sized makes the file that fio reads and writes.
func (g *guest) sized() {
	fd := open(g.path("f"), unix.O_CREAT|unix.O_WRONLY)
	must(unix.Ftruncate(fd, 1<<30))
	must(unix.Close(fd))
}
