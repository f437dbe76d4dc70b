package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func (g *guest) xattr() {
	name := g.path("f")
	must(os.WriteFile(name, nil, 0o644))
	must(unix.Setxattr(name, "user.a", []byte("value"), 0))
	wantErr(unix.Setxattr(name, "user.a", []byte("v"), unix.XATTR_CREATE), unix.EEXIST)
	wantErr(unix.Setxattr(name, "user.b", []byte("v"), unix.XATTR_REPLACE), unix.ENODATA)
	big := pattern(60000, 1)
	must(unix.Setxattr(name, "user.big", big, 0))
	n, err := unix.Getxattr(name, "user.big", nil)
	must(err)
	want(n, len(big))
	b := make([]byte, len(big))
	n, err = unix.Getxattr(name, "user.big", b)
	must(err)
	want(string(b[:n]), string(big))
	_, err = unix.Getxattr(name, "user.a", b[:2])
	wantErr(err, unix.ERANGE)
	n, err = unix.Listxattr(name, b)
	must(err)
	want(n, len("user.a")+len("user.big")+2)
	must(unix.Removexattr(name, "user.a"))
	_, err = unix.Getxattr(name, "user.a", b)
	wantErr(err, unix.ENODATA)
	wantErr(unix.Setxattr(name, "system.posix_acl_access", []byte{2, 0, 0, 0}, 0), unix.EOPNOTSUPP)
}

// space is fallocate(2), and lseek(2) for data and holes.
func (g *guest) space() {
	fd := open(g.path("f"), unix.O_RDWR|unix.O_CREAT)
	size := func() int64 {
		var st unix.Stat_t
		must(unix.Fstat(fd, &st))
		return st.Size
	}
	must(unix.Fallocate(fd, 0, 0, 1<<20))
	want(size(), 1<<20)
	must(unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 2<<20))
	want(size(), 1<<20)
	_, err := unix.Pwrite(fd, pattern(4*pageSize, 1), 16*pageSize)
	must(err)
	seek := func(off int64, whence int) int64 {
		at, err := unix.Seek(fd, off, whence)
		must(err)
		return at
	}
	want(seek(0, unix.SEEK_DATA), 16*pageSize)
	want(seek(16*pageSize, unix.SEEK_HOLE), 20*pageSize)
	_, err = unix.Seek(fd, 20*pageSize, unix.SEEK_DATA)
	wantErr(err, unix.ENXIO)
	_, err = unix.Seek(fd, 2<<20, unix.SEEK_HOLE)
	wantErr(err, unix.ENXIO)
	want(seek(0, unix.SEEK_END), 1<<20)
	must(unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 17*pageSize, pageSize))
	want(seek(16*pageSize, unix.SEEK_HOLE), 17*pageSize)
	must(unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 18*pageSize+10, 100))
	b := make([]byte, 111)
	_, err = unix.Pread(fd, b, 18*pageSize)
	must(err)
	page := pattern(4*pageSize, 1)[2*pageSize:]
	want(string(b), string(page[:10])+string(make([]byte, 100))+string(page[110:111]))
	wantErr(unix.Fallocate(fd, 0, 0, 1<<51), unix.EFBIG)
}

// attr is chmod, chown, times and what takes the setuid bit away.
func (g *guest) attr() {
	name := g.path("f")
	must(os.WriteFile(name, []byte("x"), 0o644))
	perm := func() uint32 {
		var st unix.Stat_t
		must(unix.Stat(name, &st))
		return st.Mode & 0o7777
	}
	must(os.Chmod(g.dir, 0o777))
	must(unix.Chmod(name, 0o4775))
	want(perm(), 0o4775)
	must(os.Chown(name, 1234, 5678))
	want(perm(), 0o775)
	must(unix.Chmod(name, 0o6777))
	cmd := g.self("write-as-user")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 4321, Gid: 4321}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		panic(string(out) + err.Error())
	}
	want(perm(), 0o777)
	old := time.Date(1965, 3, 4, 5, 6, 7, 89, time.UTC) // before 1970: seconds are negative
	must(os.Chtimes(name, old, old))
	st, err := os.Stat(name)
	must(err)
	want(st.ModTime().UnixNano(), old.UnixNano())
	var x unix.Statx_t
	must(unix.Statx(unix.AT_FDCWD, name, 0, unix.STATX_BTIME|unix.STATX_BASIC_STATS, &x))
	want(x.Mask&unix.STATX_BTIME != 0, true)
	want(time.Since(time.Unix(x.Btime.Sec, int64(x.Btime.Nsec))) < time.Hour, true)
	must(os.Truncate(name, 100))
	st, err = os.Stat(name)
	must(err)
	want(st.Size(), 100)
}

func (g *guest) writeAsUser() {
	fd := open(filepath.Join(g.dir, "f"), unix.O_WRONLY)
	_, err := unix.Write(fd, []byte("y"))
	must(err)
}

// interrupted runs f, which is to block, sends its thread signals that the Go runtime handles and ignores, lets
// go, and wants f to succeed: the kernel restarts a wait for a lock that we answer with EINTR. TestMount
// looks whether that happened.
func interrupted(f func() error, letGo func()) {
	thread, result := make(chan int, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		thread <- unix.Gettid()
		result <- retry(f)
	}()
	tid := <-thread
	for range 4 {
		select {
		case err := <-result:
			panic(fmt.Sprintf("did not block: %v", err))
		case <-time.After(50 * time.Millisecond):
		}
		must(unix.Tgkill(os.Getpid(), tid, unix.SIGURG))
	}
	letGo()
	select {
	case err := <-result:
		must(err)
	case <-time.After(20 * time.Second):
		panic("the lock was not granted")
	}
}

func (g *guest) flock() {
	name := g.path("f")
	a, b := open(name, unix.O_RDWR|unix.O_CREAT), open(name, unix.O_RDWR)
	must(unix.Flock(a, unix.LOCK_SH))
	must(unix.Flock(b, unix.LOCK_SH))
	wantErr(unix.Flock(b, unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
	must(unix.Flock(a, unix.LOCK_UN))
	must(unix.Flock(b, unix.LOCK_EX|unix.LOCK_NB))
	interrupted(func() error { return unix.Flock(a, unix.LOCK_EX) }, func() {
		must(unix.Close(b)) // gives the lock back
	})
	if tool, err := exec.LookPath("flock"); err == nil { // it wants EINTR when its alarm goes off
		err := exec.Command(tool, "-w", "0.2", name, "true").Run()
		var exit *exec.ExitError
		want(errors.As(err, &exit) && exit.ExitCode() == 1, true)
	}
	must(unix.Close(a))
}

// lockRange is a fcntl lock of 10 bytes.
func lockRange(fd, cmd int, typ int16, start int64) error {
	return unix.FcntlFlock(uintptr(fd), cmd, &unix.Flock_t{Type: typ, Start: start, Len: 10})
}

// ofd is locks of open files, as qemu takes them on images.
func (g *guest) ofd() {
	name := g.path("f")
	a, b := open(name, unix.O_RDWR|unix.O_CREAT), open(name, unix.O_RDWR)
	must(lockRange(a, unix.F_OFD_SETLK, unix.F_WRLCK, 100))
	wantErr(lockRange(b, unix.F_OFD_SETLK, unix.F_RDLCK, 105), unix.EAGAIN)
	must(lockRange(b, unix.F_OFD_SETLK, unix.F_RDLCK, 110))
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 1000}
	must(unix.FcntlFlock(uintptr(b), unix.F_OFD_GETLK, &l))
	want(l.Type, int16(unix.F_WRLCK))
	want(l.Start, 100)
	want(l.Len, 10)
	interrupted(func() error { return lockRange(b, unix.F_OFD_SETLKW, unix.F_WRLCK, 100) }, func() {
		must(unix.Close(a)) // the only way these locks end but by unlocking
	})
	must(lockRange(b, unix.F_OFD_SETLK, unix.F_UNLCK, 100))
}

// retry does f again while a signal, which the Go runtime sends to itself, interrupts it.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// posix is locks of processes; the other process is posixOther.
func (g *guest) posix() {
	name := g.path("f")
	a, b := open(name, unix.O_RDWR|unix.O_CREAT), open(name, unix.O_RDWR)
	must(lockRange(a, unix.F_SETLK, unix.F_WRLCK, 0))
	must(lockRange(b, unix.F_SETLK, unix.F_WRLCK, 5)) // the same owner: no conflict
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 100}
	must(unix.FcntlFlock(uintptr(b), unix.F_GETLK, &l))
	want(l.Type, int16(unix.F_UNLCK))

	cmd := g.self("posix-other")
	out, err := cmd.StdoutPipe()
	must(err)
	cmd.Stderr = os.Stderr
	must(cmd.Start())
	line := make([]byte, 8)
	_, err = out.Read(line)
	must(err)
	want(line[0], 'w') // it was refused once and now waits
	time.Sleep(100 * time.Millisecond)
	must(unix.Close(b)) // gives the locks of the process back, also those taken through a
	must(cmd.Wait())
	must(lockRange(a, unix.F_SETLK, unix.F_WRLCK, 0)) // the other has exited
}

func (g *guest) posixOther() {
	fd := open(filepath.Join(g.dir, "f"), unix.O_RDWR)
	wantErr(lockRange(fd, unix.F_SETLK, unix.F_RDLCK, 12), unix.EAGAIN)
	os.Stdout.WriteString("w")
	must(retry(func() error { return lockRange(fd, unix.F_SETLKW, unix.F_WRLCK, 0) }))
}

// mountAsUser mounts at the directory and uses it a little, without opening anything.
func (g *guest) mountAsUser() {
	s, err := Mount(context.Background(), Options{MountPoint: g.dir}, newMemFS())
	must(err)
	mounted, err := IsMounted(g.dir)
	must(err)
	want(mounted, true)
	var st unix.Stat_t
	must(unix.Stat(g.dir, &st))
	want(st.Ino, 1)
	must(s.Unmount(10 * time.Second))
	mounted, err = IsMounted(g.dir)
	must(err)
	want(mounted, false)
}

// lockQueue has many threads wait for one lock, then gives it back.
func (g *guest) lockQueue() {
	const waiters = 80
	name := g.path("locked")
	holder := open(name, unix.O_CREAT|unix.O_RDWR)
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET}
	must(unix.FcntlFlock(uintptr(holder), unix.F_OFD_SETLK, &lock))
	var waiting atomic.Int32
	var all sync.WaitGroup
	for range waiters {
		all.Go(func() {
			runtime.LockOSThread()
			var one unix.CPUSet // so that all come to one queue
			one.Set(0)
			_ = unix.SchedSetaffinity(0, &one)
			fd := open(name, unix.O_RDWR)
			mine := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET}
			waiting.Add(1)
			for {
				err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLKW, &mine)
				if err == nil {
					break
				}
				wantErr(err, unix.EINTR) // the scheduler's signals
			}
			must(unix.Close(fd))
		})
	}
	for waiting.Load() < waiters {
		time.Sleep(time.Millisecond)
	}
	_, err := io.Copy(io.Discard, os.Stdin) // until they wait in the server
	must(err)
	must(unix.Close(holder))
	all.Wait()
}

// handover uses the mount in many ways at once while it goes on in one session after another, until its input ends.
func (g *guest) handover() {
	var over atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		over.Store(true)
	}()
	fd := open(g.path("f"), unix.O_RDWR|unix.O_CREAT)
	must(unix.Unlink(g.path("f")))
	held, waits := open(g.path("l"), unix.O_RDWR|unix.O_CREAT), open(g.path("l"), unix.O_RDWR)
	must(unix.Flock(held, unix.LOCK_EX))
	dir := open(g.dir, unix.O_RDONLY|unix.O_DIRECTORY)
	var all sync.WaitGroup
	var early atomic.Bool
	early.Store(true)
	all.Go(func() {
		must(unix.Flock(waits, unix.LOCK_EX))
		want(early.Load(), false)
	})
	var users sync.WaitGroup
	for w := range 4 {
		users.Go(func() {
			for i := 0; !over.Load(); i++ {
				off := int64(w*64+i%64) * pageSize
				_, err := unix.Pwrite(fd, pattern(pageSize, w+i), off)
				must(err)
				got := make([]byte, pageSize)
				_, err = unix.Pread(fd, got, off)
				must(err)
				want(bytes.Equal(got, pattern(pageSize, w+i)), true)
				if i%16 == 0 {
					name := g.path(fmt.Sprintf("n%d", w))
					must(os.WriteFile(name, []byte(name), 0o600))
					b, err := os.ReadFile(name)
					must(err)
					want(string(b), name)
					must(os.Remove(name))
				}
			}
		})
	}
	users.Wait()
	buf := make([]byte, pageSize)
	n, err := unix.Getdents(dir, buf)
	must(err)
	_, _, names := syscall.ParseDirent(buf[:n], -1, nil)
	want(len(names), 1)
	early.Store(false)
	must(unix.Flock(held, unix.LOCK_UN))
	all.Wait()
	var st unix.Stat_t
	must(unix.Fstat(fd, &st))
	want(st.Nlink, 0)
	for _, fd := range []int{fd, held, waits, dir} {
		must(unix.Close(fd))
	}
}
