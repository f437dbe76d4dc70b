package capture

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Names finds the paths of a mount's inodes, from outside the process that serves it.
type Names struct {
	dir   string
	dev   uint64
	known map[uint64]File
	tries map[uint64]time.Time // of inodes that were not found: when to look again
}

// againAfter is how long an inode without a name is not looked for again.
const againAfter = time.Second

// NewNames is for the mount at dir, a path without symbolic links. It holds nothing of it open, which would keep it from being unmounted.
func NewNames(dir string) (*Names, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	return &Names{dir: dir, dev: st.Dev, known: map[uint64]File{}, tries: map[uint64]time.Time{}}, nil
}

// Find returns the file of an inode that a process was using; isNew when it was found by this call. ok is false if it has no name that can be found.
func (n *Names) Find(inode uint64, pid uint32) (f File, isNew, ok bool) {
	if f, ok := n.known[inode]; ok {
		return f, false, true
	}
	if time.Now().Before(n.tries[inode]) {
		return File{}, false, false
	}
	f, ok = n.byHandle(inode)
	if !ok {
		f, ok = n.byProcess(inode, pid)
	}
	if !ok {
		n.tries[inode] = time.Now().Add(againAfter)
		return File{}, false, false
	}
	n.known[inode] = f
	delete(n.tries, inode)
	return f, true, true
}

// byHandle has the kernel find an inode that it has in memory, as every open one is, by what name_to_handle_at(2) would say of it (FILEID_INO64_GEN:
// both halves of the number, generation 0, as varve has no other). It needs CAP_DAC_READ_SEARCH.
func (n *Names) byHandle(inode uint64) (File, bool) {
	const ino64gen = 0x81
	h := make([]byte, 12)
	binary.NativeEndian.PutUint32(h, uint32(inode>>32))
	binary.NativeEndian.PutUint32(h[4:], uint32(inode))
	root, err := unix.Open(n.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return File{}, false
	}
	defer unix.Close(root)
	fd, err := unix.OpenByHandleAt(root, unix.NewFileHandle(ino64gen, h), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return File{}, false
	}
	defer unix.Close(fd)
	return n.named(fmt.Sprintf("/proc/self/fd/%d", fd), inode)
}

// byProcess looks among the open files of a process.
func (n *Names) byProcess(inode uint64, pid uint32) (File, bool) {
	const most = 4096
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return File{}, false
	}
	for _, e := range entries[:min(len(entries), most)] {
		path := filepath.Join(dir, e.Name())
		if target, err := os.Readlink(path); err != nil || !strings.HasPrefix(target, n.dir+"/") {
			continue
		}
		if f, ok := n.named(path, inode); ok {
			return f, true
		}
	}
	return File{}, false
}

// named returns the file that a link of /proc leads to, if it is the inode and has a name.
func (n *Names) named(link string, inode uint64) (File, bool) {
	target, err := os.Readlink(link)
	if err != nil {
		return File{}, false
	}
	var st unix.Stat_t
	if unix.Stat(link, &st) != nil || st.Dev != n.dev || st.Ino != inode {
		return File{}, false
	}
	path, ok := strings.CutPrefix(target, n.dir+"/")
	if !ok || path == "" || len(path) > maxPath || st.Nlink == 0 {
		return File{}, false
	}
	return File{Inode: inode, Size: max(st.Size, 0), Path: path}, true
}
