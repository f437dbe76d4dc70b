package ledger

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"

	"golang.org/x/sys/unix"
)

const (
	version     = 1
	secretBytes = 32
	nonceBytes  = 16
	maxFile     = 8 << 10
	maxMount    = 1 << 10
	// maxEntries bounds what one look at a directory reads.
	maxEntries = 1024
	// stale is how old an entry must be that is not understood before it is removed.
	stale      = 24 * time.Hour
	unfinished = "new-"
)

// Record is what an entry says.
type Record struct {
	Version int       `json:"version"`
	Cluster string    `json:"cluster"`
	Boot    string    `json:"boot"`   // the kernel's name for the time since the machine was switched on
	Secret  string    `json:"secret"` // hexadecimal, 32 bytes
	Mounted bool      `json:"mounted,omitempty"`
	PID     int       `json:"pid"` // for people, as the rest
	Mount   string    `json:"mount"`
	Opened  time.Time `json:"opened"`
}

// Entry is a locked file.
type Entry struct {
	dir, name string
	fd        int
}

// NewSecret returns what a session's nonce is made of.
func NewSecret() []byte {
	b := make([]byte, secretBytes)
	_, _ = rand.Read(b) // never fails
	return b
}

// Nonce returns the nonce of a session, nil if secret is none.
func Nonce(secret []byte) []byte {
	if len(secret) != secretBytes {
		return nil
	}
	sum := sha256.Sum256(append([]byte("varve session\x00"), secret...))
	return sum[:nonceBytes]
}

// SecretBytes returns the secret of a record that Dead returned.
func (r *Record) SecretBytes() []byte {
	b, _ := hex.DecodeString(r.Secret) // check has
	return b
}

// check refuses what Write does not write.
func (r *Record) check() error {
	b, err := hex.DecodeString(r.Secret)
	if err != nil || len(b) != secretBytes || r.Version != version || r.Boot == "" {
		return fmt.Errorf("version %d, boot %q, secret of %d bytes: %w", r.Version, r.Boot, len(b), fserr.Invalid)
	}
	return nil
}

// Write makes the entry of a client that is about to open a session: mount is for people, mounted says that a kernel keeps what the client is granted. The
// directory is made if need be.
func Write(dir string, cluster id.Cluster, secret []byte, mount string, mounted bool) (e *Entry, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("note the session in %s: %w", dir, err)
		}
	}()
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	at, err := enter(dir, true)
	if err != nil {
		return nil, err
	}
	defer unix.Close(at)
	if len(mount) > maxMount {
		mount = strings.ToValidUTF8(mount[:maxMount], "")
	}
	line, err := json.Marshal(Record{Version: version, Cluster: cluster.String(), Boot: boot, Secret: hex.EncodeToString(secret), Mounted: mounted,
		PID: os.Getpid(), Mount: mount, Opened: time.Now().UTC()})
	if err != nil {
		return nil, err
	}
	line = append(line, '\n')
	word := make([]byte, 8)
	_, _ = rand.Read(word)
	name := cluster.String() + "-" + hex.EncodeToString(word)
	fd, err := unix.Openat(at, unfinished+name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	e = &Entry{dir, name, fd}
	if err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err == nil {
		var n int
		if n, err = unix.Write(fd, line); err == nil && n < len(line) {
			err = unix.ENOSPC
		}
	}
	if err == nil {
		err = unix.Renameat(at, unfinished+name, at, name)
	}
	if err != nil {
		_ = unix.Unlinkat(at, unfinished+name, 0) // else it is swept
		e.Release()
		return nil, err
	}
	return e, nil
}

// Estate is an entry of a client that is no more, locked, and what it says.
type Estate struct {
	*Entry
	*Record
}

// Dead returns the entries of clients of the cluster that are no more. The caller ends their sessions, and calls Remove of an entry whose session is over,
// Release of another. What could not be made use of is told in errs.
func Dead(dir string, cluster id.Cluster) (dead []Estate, errs []error) {
	at, err := enter(dir, false)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, []error{fmt.Errorf("sessions in %s: %w", dir, err)}
	}
	defer unix.Close(at)
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, []error{err}
	}
	boot, err := bootID()
	if err != nil {
		return nil, []error{err}
	}
	looked := 0
	for _, n := range names {
		half := strings.HasPrefix(n.Name(), unfinished)
		if !half && !strings.HasPrefix(n.Name(), cluster.String()+"-") {
			continue
		}
		if looked++; looked > maxEntries {
			errs = append(errs, fmt.Errorf("sessions in %s: only %d of %d files were looked at", dir, maxEntries, len(names)))
			break
		}
		e, r, err := open(at, dir, n.Name(), cluster.String(), boot, half)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("session in %s: %w", filepath.Join(dir, n.Name()), err))
		case e != nil:
			dead = append(dead, Estate{e, r})
		}
	}
	return dead, errs
}

// open returns an entry that it could lock, nil if it is somebody's or gone.
func open(at int, dir, name, cluster, boot string, half bool) (*Entry, *Record, error) {
	fd, err := unix.Openat(at, name, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	e := &Entry{dir, name, fd}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		e.Release()
		return nil, nil, err
	}
	old := time.Since(time.Unix(st.Mtim.Unix())) > stale
	if half { // not locked here: its writer is about to
		if old {
			_ = unix.Unlinkat(at, name, 0)
		}
		e.Release()
		return nil, nil, nil
	}
	if err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err == nil {
		err = unix.Fstat(fd, &st)
	}
	if err != nil || st.Nlink == 0 { // its client lives, another heir has it or had it
		e.Release()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = nil
		}
		return nil, nil, err
	}
	r, err := e.read(&st)
	if err == nil && (r.Cluster != cluster || r.Boot != boot) {
		err = fmt.Errorf("is of boot %q, cluster %s: %w", r.Boot, r.Cluster, fserr.Foreign)
	}
	if err == nil {
		return e, r, nil
	}
	if old {
		e.Remove()
		return nil, nil, fmt.Errorf("removed: %w", err)
	}
	e.Release()
	return nil, nil, err
}

func (e *Entry) read(st *unix.Stat_t) (*Record, error) {
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() || st.Size > maxFile {
		return nil, fmt.Errorf("mode %#o, user %d, %d bytes: %w", st.Mode, st.Uid, st.Size, fserr.Invalid)
	}
	b := make([]byte, st.Size)
	n, err := unix.Pread(e.fd, b, 0)
	if err != nil {
		return nil, err
	}
	r := new(Record)
	if err := json.Unmarshal(b[:n], r); err != nil {
		return nil, fmt.Errorf("%w: %w", fserr.Invalid, err)
	}
	return r, r.check()
}

// Remove ends an entry whose session is over.
func (e *Entry) Remove() {
	if e == nil || e.fd < 0 {
		return
	}
	var st, named unix.Stat_t
	path := filepath.Join(e.dir, e.name)
	if unix.Fstat(e.fd, &st) == nil && unix.Lstat(path, &named) == nil && st.Dev == named.Dev && st.Ino == named.Ino {
		_ = unix.Unlink(path) // one that stays is of a session that is over, which its heir finds out
	}
	e.Release()
}

// Release leaves the entry to who comes next.
func (e *Entry) Release() {
	if e == nil || e.fd < 0 {
		return
	}
	_ = unix.Close(e.fd)
	e.fd = -1
}

// Kept is an entry that goes on in the next program of this process.
type Kept struct {
	Dir  string `json:"dir"`
	Name string `json:"name"`
	FD   int    `json:"fd"` // stays open over the execve(2), and with it the lock
}

// Keep returns what Adopt needs, nil of no entry.
func (e *Entry) Keep() *Kept {
	if e == nil || e.fd < 0 {
		return nil
	}
	return &Kept{e.dir, e.name, e.fd}
}

// Adopt returns the entry of the program before.
func Adopt(k *Kept) (*Entry, error) {
	if k == nil {
		return nil, nil
	}
	var st, named unix.Stat_t
	path := filepath.Join(k.Dir, k.Name)
	if err := errors.Join(unix.Fstat(k.FD, &st), unix.Lstat(path, &named)); err != nil {
		return nil, fmt.Errorf("entry of the session, descriptor %d: %w", k.FD, err)
	}
	if st.Dev != named.Dev || st.Ino != named.Ino {
		return nil, fmt.Errorf("entry of the session: descriptor %d is not %s: %w", k.FD, path, fserr.Invalid)
	}
	unix.CloseOnExec(k.FD)
	return &Entry{k.Dir, k.Name, k.FD}, nil
}

// enter opens the directory, which must be this user's alone.
func enter(dir string, mk bool) (int, error) {
	if mk {
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return -1, err
		}
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return -1, err
		}
	}
	at, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(at, &st); err == nil && (int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0) {
		err = fmt.Errorf("user %d, mode %#o, want user %d and 0700: %w", st.Uid, st.Mode&0o7777, os.Geteuid(), fserr.Access)
	}
	if err != nil {
		unix.Close(at)
		return -1, err
	}
	return at, nil
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(b)), nil
}
