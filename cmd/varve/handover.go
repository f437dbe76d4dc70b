package main

import (
	"bytes"
	bin "encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"strconv"
	"time"

	"varve/fuse"
	"varve/internal/boottime"
	"varve/internal/client"
	"varve/internal/fserr"

	"golang.org/x/sys/unix"
)

// What one program tells the next that serves the same mount, in shared memory whose descriptor stays open over execve(2). Little endian:
//
//	0 "VRVHAND" and a zero | 8 version u32 | 12 CRC32C of the body u32 | 16 length of the body u64 | 24 reserved u64, zero | 32 body, JSON
//
// Version 1: the first. A body may get fields that an older program does without; what it must not do without gets another version. A program says by --trial which
// versions it reads, so that the one which serves the mount does not end for one that cannot go on. Nothing of this survives the process.
const (
	handoverMagic   = "VRVHAND\x00"
	handoverVersion = 1
	handoverHeader  = 32
	maxHandover     = 1 << 30
)

// handoverEnv has the number of the descriptor, in the environment of the next program.
const handoverEnv = "VARVE_HANDOVER_FD"

// handover is the body.
type handover struct {
	Version string            `json:"version"`        // of the program that wrote it
	Times   int               `json:"times"`          // how often the mount has gone on in another program, with this one
	Paused  int64             `json:"paused"`         // boot time, ns: since then nobody was answered
	Old     int               `json:"old"`            // descriptor of the program that wrote it
	Name    string            `json:"name"`           // its path
	Args    []string          `json:"args"`           // of both
	Back    string            `json:"back,omitempty"` // why it goes on again: the next one could not
	Helper  int               `json:"helper,omitempty"`
	Client  *client.Suspended `json:"client"`
	Mount   *fuse.Saved       `json:"mount"`
}

// write puts h into new shared memory and returns its descriptor.
func (h *handover) write() (int, error) {
	body, err := json.Marshal(h)
	if err != nil {
		return -1, err
	}
	b := make([]byte, handoverHeader, handoverHeader+len(body))
	copy(b, handoverMagic)
	bin.LittleEndian.PutUint32(b[8:], handoverVersion)
	bin.LittleEndian.PutUint32(b[12:], crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
	bin.LittleEndian.PutUint64(b[16:], uint64(len(body)))
	b = append(b, body...)
	fd, err := unix.MemfdCreate("varve-handover", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("memory for the next program: %w", err)
	}
	for at := 0; at < len(b); {
		n, err := unix.Pwrite(fd, b[at:], int64(at))
		if err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("memory for the next program: %d bytes: %w", len(b), err)
		}
		at += n
	}
	return fd, nil
}

// readHandover returns what is in the shared memory, or an error that says what is wrong with it.
func readHandover(fd int) (*handover, error) {
	bad := func(format string, args ...any) (*handover, error) {
		return nil, fmt.Errorf("the state of the mount that the program before has left: %s: %w", fmt.Sprintf(format, args...), fserr.Invalid)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return bad("descriptor %d: %v", fd, err)
	}
	if st.Size < handoverHeader || st.Size > maxHandover {
		return bad("%d bytes, want %d to %d", st.Size, handoverHeader, maxHandover)
	}
	b := make([]byte, st.Size)
	for at := 0; at < len(b); {
		n, err := unix.Pread(fd, b[at:], int64(at))
		if err != nil || n == 0 {
			return bad("read at %d: %d bytes, %v", at, n, err)
		}
		at += n
	}
	le := bin.LittleEndian
	version, sum, length := le.Uint32(b[8:]), le.Uint32(b[12:]), le.Uint64(b[16:])
	body := b[handoverHeader:]
	switch {
	case string(b[:8]) != handoverMagic:
		return bad("begins with %q, want %q", b[:8], handoverMagic)
	case version != handoverVersion:
		return bad("version %d, want %d", version, handoverVersion)
	case length != uint64(len(body)) || le.Uint64(b[24:]) != 0:
		return bad("%d bytes in a body of %d", len(body), length)
	case crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)) != sum:
		return bad("checksum %#x, want %#x", crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)), sum)
	}
	h := new(handover)
	d := json.NewDecoder(bytes.NewReader(body))
	if err := d.Decode(h); err != nil {
		return bad("%v", err)
	}
	if h.Client == nil || h.Mount == nil || h.Times < 1 || h.Old < 3 {
		return bad("parts of it are missing")
	}
	return h, nil
}

// receiveHandover returns what the program before has left to this one, nil if there was none.
func receiveHandover() (*handover, error) {
	v := os.Getenv(handoverEnv)
	if v == "" {
		return nil, nil
	}
	os.Unsetenv(handoverEnv)
	fd, err := strconv.Atoi(v)
	if err != nil || fd < 3 {
		return nil, fmt.Errorf("%s=%q: want the number of a descriptor: %w", handoverEnv, v, fserr.Invalid)
	}
	h, err := readHandover(fd)
	if err != nil {
		return nil, err
	}
	unix.Close(fd)
	for _, fd := range h.descriptors() {
		unix.CloseOnExec(fd)
	}
	if h.Helper > 0 {
		go func() { _, _ = unix.Wait4(h.Helper, nil, 0, nil) }() // a child of this process, which does not know it
	}
	return h, nil
}

// descriptors are those that must stay open over execve(2).
func (h *handover) descriptors() []int {
	return append(append(h.Mount.Descriptors(), h.Client.Descriptors()...), h.Old)
}

// execute replaces this program by the one at path, which goes on with h. It returns only if that cannot be.
func (h *handover) execute(path, name string) error {
	fd, err := h.write()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	all := append(h.descriptors(), fd)
	for _, one := range all {
		if _, err := unix.FcntlInt(uintptr(one), unix.F_SETFD, 0); err != nil {
			return errors.Join(fmt.Errorf("keep descriptor %d open: %w", one, err), closeAllOnExec(all))
		}
	}
	env := append(os.Environ(), handoverEnv+"="+strconv.Itoa(fd))
	err = unix.Exec(path, append([]string{name}, h.Args...), env)
	return errors.Join(fmt.Errorf("execute %s: %w", path, err), closeAllOnExec(all))
}

func closeAllOnExec(all []int) error {
	for _, fd := range all {
		unix.CloseOnExec(fd)
	}
	return nil
}

// goBack has the program go on that served the mount before this one, which cannot, and says why. It returns only if that cannot either, or if there was none.
func (h *handover) goBack(cause error) error {
	if h == nil {
		return cause
	}
	if h.Back != "" {
		return fmt.Errorf("%w; and before that: %s", cause, h.Back)
	}
	h.Back = oneLine(cause)
	return errors.Join(cause, h.execute("/proc/self/fd/"+strconv.Itoa(h.Old), h.Name))
}

// pause is for how long nobody has been answered.
func (h *handover) pause() time.Duration { return boottime.Now() - time.Duration(h.Paused) }

// openSelf returns a descriptor of this program, by which it can be executed when its file is gone.
func openSelf() (int, error) {
	fd, err := unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /proc/self/exe: %w", err)
	}
	return fd, nil
}
