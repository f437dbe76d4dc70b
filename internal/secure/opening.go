package secure

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/wire"
)

// OpeningFile is in a cluster directory while the cluster, which was made without security, is being secured: what is there of credentials is shown and
// believed, and who has none is served too. auth-node writes it before the credentials; who hears that the cluster is secured removes it.
const OpeningFile = "opening"

const (
	// plainFor is for how long whoever turned out to speak no TLS is not asked again.
	plainFor  = 2 * time.Second
	maxPlain  = 1024
	asidePath = ".aborted"
	// LookEvery is how often a process that speaks plain looks for credentials.
	LookEvery = time.Second
)

// Stage is how far a process is on its way into security.
type Stage uint32

// Stages of a process. From Both it comes back to Plain if the cluster gives it up.
const (
	Plain  Stage = iota // without credentials
	Both                // it has credentials, and serves also who has none
	Closed              // who has no certificate is refused
)

// Opening is the way of a process of an insecure cluster into security, without a restart. The networks of the process share it. All methods may be called
// at once.
type Opening struct {
	dir     string
	cluster id.Cluster
	roles   []pki.Role
	log     *slog.Logger
	stage   atomic.Uint32
	creds   atomic.Pointer[pki.Credentials]
	plain   live        // connections without TLS, whoever made them
	denied  atomic.Bool // the leader has said once that the cluster has no security

	mu       sync.Mutex
	speaks   map[string]time.Time // until when an address is taken for one that speaks no TLS
	faultLog time.Time
}

// NewOpening returns one that is Plain. dir is the cluster directory, "" if there is none: then it stays so. roles: as of LoadCredentials.
func NewOpening(dir string, cluster id.Cluster, log *slog.Logger, roles ...pki.Role) *Opening {
	if log == nil {
		log = slog.Default()
	}
	if len(roles) == 0 {
		roles = []pki.Role{pki.RoleNode}
	}
	return &Opening{dir: dir, cluster: cluster, roles: roles, log: log, speaks: make(map[string]time.Time)}
}

// OpeningOf is NewOpening for a directory that has no credentials, or those of a cluster that is being secured; nil for any other: then security is not
// to be left out, and Load says what there is.
func OpeningOf(dir string, cluster id.Cluster, log *slog.Logger, roles ...pki.Role) *Opening {
	if dir == "" || pki.Secured(dir) && !IsOpening(dir) {
		return nil
	}
	return NewOpening(dir, cluster, log, roles...)
}

// IsOpening reports whether a cluster directory is of a cluster that is being secured.
func IsOpening(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, OpeningFile))
	return err == nil
}

// MarkOpening writes the mark. It comes before the credentials.
func MarkOpening(dir string) error {
	return pki.WriteFile(filepath.Join(dir, OpeningFile), []byte("this cluster is being secured: varve cluster secure --status\n"), 0o644)
}

// Unmark removes the mark.
func Unmark(dir string) error {
	if err := os.Remove(filepath.Join(dir, OpeningFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Stage returns how far the process is.
func (o *Opening) Stage() Stage {
	if o == nil {
		return Closed
	}
	return Stage(o.stage.Load())
}

// Dir returns the cluster directory.
func (o *Opening) Dir() string { return o.dir }

// Credentials returns those that the process shows, nil while it is Plain.
func (o *Opening) Credentials() *pki.Credentials {
	if o.Stage() == Plain {
		return nil
	}
	return o.creds.Load()
}

// Look looks for credentials if there were none. It returns them once, when they are first there. Without the mark the cluster is secured already, and they
// alone count.
func (o *Opening) Look() *pki.Credentials {
	if o.Stage() != Plain || o.dir == "" || !pki.Secured(o.dir) {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	opening := IsOpening(o.dir) // before the credentials: they are written later, and it is removed later
	creds, err := pki.LoadCredentials(o.dir, o.roles...)
	if err == nil && !o.cluster.IsZero() {
		err = CheckCluster(creds, o.cluster)
	}
	if err != nil {
		if time.Since(o.faultLog) > time.Minute && !errors.Is(err, pki.ErrNoCredentials) {
			o.faultLog = time.Now()
			o.log.Warn("credentials not taken", "dir", o.dir, "err", err)
		}
		return nil
	}
	if o.Stage() != Plain {
		return nil
	}
	o.creds.Store(creds)
	o.denied.Store(false)
	to := Both
	if !opening {
		to = Closed
	}
	o.stage.Store(uint32(to))
	if to == Closed {
		o.plain.endAll()
	}
	o.log.Info("credentials found: connections are authenticated from now on", "node", creds.Identity().Node, "plain_too", opening)
	return creds
}

// Told does what the leader says of the cluster: secured, and whether who has no certificate is served too. authentic: a connection with certificates on both
// ends said so, without which a process does not shut others out. It returns the new stage if that has changed. That there is no security counts when it is said
// twice in a row: who asked before it began may hear the answer after the credentials were found.
func (o *Opening) Told(secured, opening, authentic bool) (Stage, bool) {
	if o == nil || o.Stage() != Both {
		return Plain, false
	}
	none := !secured && !opening
	again := o.denied.Swap(none)
	switch {
	case secured && !opening && authentic:
		return o.Close()
	case none && again:
		return o.GiveUp()
	}
	return Both, false
}

// Close has only certificates count from now on, and ends the connections without.
func (o *Opening) Close() (Stage, bool) {
	if !o.stage.CompareAndSwap(uint32(Both), uint32(Closed)) {
		return o.Stage(), false
	}
	if err := Unmark(o.dir); err != nil {
		o.log.Warn("the mark of an opening cluster stays; remove it", "dir", o.dir, "err", err)
	}
	o.plain.endAll()
	o.log.Info("the cluster is secured: who has no certificate is refused from now on")
	return Closed, true
}

// GiveUp puts the credentials of the directory aside, of which the cluster knows nothing any more. It returns the new stage if that has changed.
func (o *Opening) GiveUp() (Stage, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	changed := o.Rest()
	if o.Stage() != Plain || o.dir == "" {
		return o.Stage(), false
	}
	if err := PutAside(o.dir); err != nil {
		o.log.Warn("credentials of a security that was given up were not put aside; remove them", "dir", o.dir, "err", err)
	}
	if changed {
		o.log.Warn("the cluster was not secured after all: connections are not authenticated")
	}
	return Plain, changed
}

// Rest has the process speak plain until it looks for credentials again. It reports whether it did not.
func (o *Opening) Rest() bool { return o.stage.CompareAndSwap(uint32(Both), uint32(Plain)) }

// PutAside renames what a cluster directory has of credentials, if its cluster was being secured. The mark goes last, so that it can be repeated.
func PutAside(dir string) error {
	if !IsOpening(dir) {
		return nil
	}
	unlock, err := pki.LockDir(dir, true)
	if err != nil {
		return err
	}
	defer unlock()
	if !IsOpening(dir) { // another process of this host was first
		return nil
	}
	var errs []error
	for _, name := range pki.CredentialFiles() {
		path := filepath.Join(dir, name)
		if err := os.Rename(path, path+asidePath); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return Unmark(dir)
}

// Watch looks for credentials until ctx ends, and hands over those that it finds.
func (o *Opening) Watch(ctx context.Context, found func(*pki.Credentials)) {
	tick := time.NewTicker(LookEvery)
	defer tick.Stop()
	for {
		if creds := o.Look(); creds != nil {
			found(creds)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// speaksPlain reports whether an address was found to speak no TLS just now.
func (o *Opening) speaksPlain(addr string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	until, ok := o.speaks[addr]
	if ok && time.Now().After(until) {
		delete(o.speaks, addr)
		return false
	}
	return ok
}

func (o *Opening) notePlain(addr string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.speaks) >= maxPlain {
		clear(o.speaks)
	}
	o.speaks[addr] = time.Now().Add(plainFor)
}

// dialOpen connects while who has no certificate counts: by TLS to who speaks it, else without.
func (n *Network) dialOpen(ctx context.Context, addr string, class wire.Class) (net.Conn, error) {
	o := n.o.Opening
	if o.Stage() == Both && !o.speaksPlain(addr) {
		c, err := n.dialTLS(ctx, addr, class)
		if err == nil || errors.Is(err, errNotReached) || ctx.Err() != nil {
			return c, err
		}
		if o.Stage() == Closed {
			return nil, err
		}
		o.notePlain(addr)
		o.log.Debug("speaks no TLS, or not to us: taken as it is while the cluster is being secured", "addr", addr, "err", err)
	}
	nc, err := n.o.Under.Dial(ctx, addr, class)
	if err != nil {
		return nil, err
	}
	if c := o.take(nc); c != nil {
		return c, nil
	}
	nc.Close()
	return nil, fmt.Errorf("%s: connected without TLS when the cluster was secured: %w", addr, fserr.Unavailable)
}

// errNotReached says that there was no connection on which a handshake could fail.
var errNotReached = errors.New("not reached")

// openTCP is a connection without TLS that was made while such ones count.
type openTCP struct {
	*net.TCPConn
	e *entry
}

// Close implements net.Conn.
func (c *openTCP) Close() error {
	c.e.gone()
	return c.TCPConn.Close()
}

// openConn is one on something else, as tests have it.
type openConn struct {
	net.Conn
	e *entry
}

// Close implements net.Conn.
func (c *openConn) Close() error {
	c.e.gone()
	return c.Conn.Close()
}

// SyscallConn implements syscall.Conn where there is a socket.
func (c *openConn) SyscallConn() (syscall.RawConn, error) {
	if sc, ok := c.Conn.(syscall.Conn); ok {
		return sc.SyscallConn()
	}
	return nil, syscall.ENOTSOCK
}

// OnSocket reports whether there is a socket to be taken over (wire.OnSocket).
func (c *openConn) OnSocket() bool { return wire.OnSocket(c.Conn) }

var (
	_ syscall.Conn = (*openTCP)(nil)
	_ syscall.Conn = (*openConn)(nil)
)

// take takes in a connection without TLS, which ends when only certificates count: nil if that is so already.
func (o *Opening) take(nc net.Conn) net.Conn {
	e := o.plain.add(pki.Identity{}, nc)
	if o.Stage() == Closed { // since it was looked at
		e.gone()
		return nil
	}
	if tcp, ok := nc.(*net.TCPConn); ok {
		return &openTCP{tcp, e}
	}
	return &openConn{nc, e}
}

// endAll ends all connections.
func (l *live) endAll() {
	l.mu.Lock()
	all := make([]*entry, 0, len(l.conns))
	for e := range l.conns {
		all = append(all, e)
	}
	l.mu.Unlock()
	for _, e := range all {
		e.end()
	}
}

// recordHandshake is the first byte of who begins a TLS handshake.
const recordHandshake = 22

// firstByte returns the first byte that comes, and leaves it in the connection that it returns.
func firstByte(nc net.Conn) (byte, net.Conn, error) {
	if err := nc.SetReadDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return 0, nc, err
	}
	var b [1]byte
	var n int
	var err error
	if sc, ok := nc.(syscall.Conn); ok {
		var rc syscall.RawConn
		if rc, err = sc.SyscallConn(); err == nil {
			rerr := rc.Read(func(fd uintptr) bool {
				n, _, err = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK)
				return err != unix.EAGAIN && err != unix.EINTR
			})
			err = errors.Join(rerr, err)
		}
	} else {
		n, err = nc.Read(b[:])
		nc = &pushedConn{Conn: nc, pushed: b[:n]}
	}
	if err == nil && n == 0 {
		err = net.ErrClosed
	}
	if err == nil {
		err = nc.SetReadDeadline(time.Time{})
	}
	return b[0], nc, err
}

// pushedConn gives back what was read from it.
type pushedConn struct {
	net.Conn
	pushed []byte
}

// Read implements net.Conn.
func (c *pushedConn) Read(b []byte) (int, error) {
	if len(c.pushed) > 0 {
		n := copy(b, c.pushed)
		c.pushed = c.pushed[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}
