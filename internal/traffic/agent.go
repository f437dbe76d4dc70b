package traffic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"varve/ebpf"
	"varve/internal/wire/msg"
)

// Options of an Agent; the zero value works.
type Options struct {
	Dir    string        // of the network namespace; default Dir()
	Every  time.Duration // how often the agent looks around; default 500 ms
	Cgroup string        // whose processes' connections are watched; default the root
	Logger *slog.Logger  // default slog.Default()

	host engine // what acts; default the kernel, where there is the privilege
}

// engine is what acts on a host. One goroutine uses it.
type engine interface {
	view() (hostView, error)
	clean() (map[string]ebpf.Left, error)
	apply(plan)
	look(*Snapshot)
	close() error
}

var _ engine = (*kernel)(nil)

// Names in the directory.
const (
	lockFile   = "owner.lock"
	needPrefix = "need-"
)

// lookEvery is how often the owner writes down what was seen.
const lookEvery = time.Second

// Agent does for the servers and mounts of one process what traffic asks for.
type Agent struct {
	o   Options
	may error // why this process cannot own what is done; nil: it can

	mu      sync.Mutex
	members []*Member
	changed bool // needs, since they were written
	latest  *Snapshot

	// Of Run's goroutine.
	need  *os.File // locked: this process' needs
	lock  *os.File // locked: this process is the owner
	fault error    // of the directory
	since time.Time
	known map[string][]Need // by file, as it was read last
	wrote time.Time
}

// Member is one server or mount of the process.
type Member struct {
	a    *Agent
	need Need // guarded by a.mu
}

// New makes an agent, which does nothing before Run.
func New(o Options) *Agent {
	a := &Agent{o: o, known: map[string][]Need{}, latest: Off("the daemon has just started")}
	if a.o.Every == 0 {
		a.o.Every = 500 * time.Millisecond
	}
	if a.o.Logger == nil {
		a.o.Logger = slog.Default()
	}
	if a.o.host == nil {
		a.may = privileged()
		a.o.host = newKernel(o.Cgroup)
	}
	return a
}

// privileged says what of the privilege is missing.
func privileged() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	has := func(c int) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	if has(unix.CAP_SYS_ADMIN) && has(unix.CAP_NET_ADMIN) || has(unix.CAP_BPF) && has(unix.CAP_NET_ADMIN) {
		return nil
	}
	return errors.New("the daemons of this host run without CAP_NET_ADMIN and CAP_BPF")
}

// Join adds a server or mount that talks by addresses of this host and listens on ports.
func (a *Agent) Join(who string, addrs []netip.Addr, listen []uint16, classify string) *Member {
	m := &Member{a: a, need: Need{Who: who, Addrs: addrs, Listen: listen, Ports: listen, Classify: classify}}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.members, a.changed = append(a.members, m), true
	return m
}

// Told takes what a metadata server has told.
func (m *Member) Told(r *msg.MembersReply) {
	m.a.mu.Lock()
	defer m.a.mu.Unlock()
	m.need.take(r, time.Now())
	m.a.changed = true
}

// Move says by which addresses of this host the member talks now.
func (m *Member) Move(addrs []netip.Addr) {
	m.a.mu.Lock()
	defer m.a.mu.Unlock()
	if !slices.Equal(m.need.Addrs, addrs) {
		m.need.Addrs, m.a.changed = addrs, true
	}
}

// Leave takes the member away.
func (m *Member) Leave() {
	m.a.mu.Lock()
	defer m.a.mu.Unlock()
	m.a.members = slices.DeleteFunc(m.a.members, func(x *Member) bool { return x == m })
	m.a.changed = true
}

// Latest returns what is done on the host, and was seen.
func (a *Agent) Latest() *Snapshot {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.latest
}

// Run acts until ctx ends, and then takes off what it has put on.
func (a *Agent) Run(ctx context.Context) {
	t := time.NewTicker(a.o.Every)
	defer t.Stop()
	defer a.end()
	for {
		a.turn()
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (a *Agent) turn() {
	err := a.tellNeeds()
	if err != nil || a.lock == nil && !a.own() {
		s := Read(a.o.Dir)
		switch {
		case s.PID != 0: // another process does it
		case a.may != nil:
			s = Off(a.may.Error())
		case err != nil:
			s = Off(err.Error())
		}
		a.setLatest(s)
		return
	}
	h, err := a.o.host.view()
	if err != nil {
		a.setLatest(Off(err.Error()))
		return
	}
	a.o.host.apply(makePlan(a.allNeeds(), h))
	if time.Since(a.wrote) < lookEvery {
		return
	}
	s := &Snapshot{PID: os.Getpid(), Since: a.since, At: time.Now()}
	a.o.host.look(s)
	a.wrote = s.At
	if err := s.write(a.o.Dir); err != nil {
		a.o.Logger.Debug("what was seen of the network is not written down", "err", err)
	}
	a.setLatest(s)
}

func (a *Agent) setLatest(s *Snapshot) {
	a.mu.Lock()
	was := a.latest
	a.latest = s
	a.mu.Unlock()
	if was.Classify != s.Classify || was.Shape != s.Shape || was.Guard != s.Guard || was.Watch != s.Watch {
		level := slog.LevelDebug // nothing is done, as before
		if was.does() || s.does() {
			level = slog.LevelInfo
		}
		a.o.Logger.Log(context.Background(), level, "network of this host", "classify", s.Classify, "shape", s.Shape, "guard", s.Guard, "watch", s.Watch)
	}
}

// tellNeeds keeps this process' needs where the owner finds them.
func (a *Agent) tellNeeds() error {
	if a.fault != nil {
		return a.fault
	}
	if a.need == nil {
		if a.fault = a.makeNeed(); a.fault != nil {
			return a.fault
		}
	}
	a.mu.Lock()
	changed := a.changed
	a.changed = false
	var all []Need
	for _, m := range a.members {
		all = append(all, m.need)
	}
	a.mu.Unlock()
	if !changed {
		return nil
	}
	b, err := json.Marshal(all)
	if err != nil {
		return err
	}
	if _, err := a.need.WriteAt(b, 0); err != nil {
		return err
	}
	return a.need.Truncate(int64(len(b)))
}

// makeNeed makes the file of this process. It is locked before it has its name, so that nobody takes it for that of one that died.
func (a *Agent) makeNeed() error {
	if a.o.Dir == "" {
		dir, err := Dir()
		if err != nil {
			return err
		}
		a.o.Dir = dir
	}
	if err := errors.Join(os.MkdirAll(a.o.Dir, 0o755), trusted(a.o.Dir)); err != nil {
		return err
	}
	f, err := os.CreateTemp(a.o.Dir, ".new-")
	if err != nil {
		return err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) // the file is of mode 0600: who may read it may lock it
	if err == nil {
		name := strings.TrimPrefix(filepath.Base(f.Name()), ".new-")
		err = os.Rename(f.Name(), filepath.Join(a.o.Dir, needPrefix+name))
		a.need = f
		a.o.Logger.Debug("needs are told", "file", needPrefix+name)
		if err == nil {
			a.mu.Lock()
			a.changed = true
			a.mu.Unlock()
			return nil
		}
	}
	a.need = nil
	return errors.Join(err, os.Remove(f.Name()), f.Close())
}

// trusted refuses a directory in which another user could put something in place of what this process writes.
func trusted(dir string) error {
	for at := dir; at != "/" && at != "."; at = filepath.Dir(at) {
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
			return fmt.Errorf("%s belongs to user %d", at, st.Uid)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0 {
			return fmt.Errorf("%s may be written to by others", at)
		}
	}
	return nil
}

// own makes this process the owner, if there is none.
func (a *Agent) own() bool {
	if a.may != nil {
		return false
	}
	f, err := os.OpenFile(filepath.Join(a.o.Dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600) // who may read it may lock it, and so keep every daemon from acting
	if err != nil {
		return false
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return false
	}
	a.lock, a.since, a.wrote = f, time.Now(), time.Time{}
	left, err := a.o.host.clean()
	if err != nil {
		a.o.Logger.Debug("interfaces not cleaned", "err", err)
	}
	for name, l := range left {
		a.o.Logger.Warn("a daemon that died had left something on an interface: taken off", "interface", name, "queues", l.Queues, "filters", l.Filters)
	}
	return true
}

// allNeeds reads the files of all processes that live, and removes those of others.
func (a *Agent) allNeeds() (all []Need) {
	entries, err := os.ReadDir(a.o.Dir)
	if err != nil {
		return nil
	}
	known := map[string][]Need{}
	for _, e := range entries {
		name := e.Name()
		if !strings.HasPrefix(name, needPrefix) || len(known) == maxNeeds {
			continue
		}
		needs, live := readNeed(filepath.Join(a.o.Dir, name), a.need)
		if !live {
			continue
		}
		if needs == nil {
			needs = a.known[name] // it is being written
		}
		known[name] = needs
		all = append(all, needs...)
	}
	a.known = known
	return all
}

// readNeed reads a file whose process lives; one of a process that has died is removed. own is this process' file.
func readNeed(path string, own *os.File) (needs []Need, live bool) {
	f, err := os.Open(path)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	var mine, theirs unix.Stat_t
	same := unix.Fstat(int(own.Fd()), &mine) == nil && unix.Fstat(int(f.Fd()), &theirs) == nil && mine.Ino == theirs.Ino
	if !same && unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, false
		}
		return nil, false
	}
	b, err := io.ReadAll(io.LimitReader(f, maxNeed))
	if err != nil {
		return nil, true
	}
	if needs, err = decodeNeeds(b); err != nil {
		return nil, true
	}
	if needs == nil {
		needs = []Need{}
	}
	return needs, true
}

// end takes everything off, and lets another process own it.
func (a *Agent) end() {
	if a.lock != nil {
		if err := a.o.host.close(); err != nil {
			a.o.Logger.Warn("not everything was taken off the interfaces; varve net clean does", "err", err)
		}
		_ = os.Remove(filepath.Join(a.o.Dir, stateFile)) // there is none
		_ = a.lock.Close()
		a.lock = nil
	}
	if a.need != nil {
		_ = os.Remove(a.path()) // and if it stays, its lock is gone
		_ = a.need.Close()
		a.need = nil
	}
}

func (a *Agent) path() string {
	return filepath.Join(a.o.Dir, needPrefix+strings.TrimPrefix(filepath.Base(a.need.Name()), ".new-"))
}
