package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"varve/fuse"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/readcache"

	"golang.org/x/sys/unix"
)

// mountCache is the read cache of a mount, and the socket by which it is asked to change. nil: there is none.
type mountCache struct {
	c   *readcache.Cache
	log *slog.Logger

	l    *net.UnixListener
	ctx  context.Context // of what is asked for
	stop context.CancelFunc
	wg   sync.WaitGroup
}

// openCache opens the cache that the mount options name. A mount goes without one that cannot be used, unless somebody else uses it.
func openCache(spec *mountSpec, cluster id.Cluster, log *slog.Logger) *mountCache {
	if spec.cache == "" {
		return nil
	}
	c, err := readcache.Open(readcache.Options{Dir: spec.cache, Bytes: spec.cacheSize, Cluster: cluster, Logger: log})
	if err != nil {
		log.Error("going on without the read cache", "err", err)
		return nil
	}
	return &mountCache{c: c, log: log}
}

func (m *mountCache) cache() *readcache.Cache {
	if m == nil {
		return nil
	}
	return m.c
}

func (m *mountCache) text() string {
	if m == nil {
		return "no read cache; mount with -o cache=DIR,cachesize=MB\n"
	}
	v := m.c.Stats()
	return v.Text()
}

// cacheSocket is the name of the socket of the mount whose device number has this minor.
func cacheSocket(minor uint32) *net.UnixAddr {
	return &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("@varve/mount/%d/cache", minor)}
}

// cacheRequest is a line of JSON that asks for something; cacheAnswer is the answer.
type cacheRequest struct {
	Do    string `json:"do"` // stat, resize or move
	Bytes int64  `json:"bytes,omitempty"`
	Dir   string `json:"dir,omitempty"`
}

type cacheAnswer struct {
	Code  fserr.Code       `json:"code"`
	Error string           `json:"error,omitempty"`
	Stats *readcache.Stats `json:"stats,omitempty"`
}

const (
	cacheGreet    = 5 * time.Second // for a request to come
	maxCacheAsked = 4               // at once
	maxCacheLine  = 16 << 10
)

// serve answers on the socket of the mount at dir, until close.
func (m *mountCache) serve(dir string) {
	if m == nil {
		return
	}
	m.ctx, m.stop = context.WithCancel(context.Background())
	minor, err := minorOf(dir)
	if err == nil {
		m.l, err = fuse.Listen(func() (*net.UnixListener, error) { return net.ListenUnix("unix", cacheSocket(minor)) })
	}
	if err != nil {
		m.log.Warn("the read cache cannot be changed while mounted", "cause", err)
		return
	}
	room := make(chan struct{}, maxCacheAsked)
	m.wg.Go(func() {
		for {
			nc, err := m.l.AcceptUnix()
			if err != nil {
				return // closed
			}
			select {
			case room <- struct{}{}:
			default:
				nc.Close()
				continue
			}
			m.wg.Go(func() {
				defer func() { nc.Close(); <-room }()
				m.answer(nc)
			})
		}
	})
}

func minorOf(dir string) (uint32, error) {
	mounts, err := fuse.Mounts()
	if err != nil {
		return 0, err
	}
	for i := len(mounts) - 1; i >= 0; i-- { // the last is on top
		if mounts[i].Dir == dir {
			return mounts[i].Minor, nil
		}
	}
	return 0, fmt.Errorf("%s is not among the mounts: %w", dir, fserr.NotExist)
}

// answer serves one connection: one request.
func (m *mountCache) answer(nc *net.UnixConn) {
	_ = nc.SetReadDeadline(time.Now().Add(cacheGreet))
	var req cacheRequest
	a := cacheAnswer{}
	err := samePeer(nc)
	if err == nil {
		var line []byte
		if line, err = bufio.NewReaderSize(nc, maxCacheLine).ReadSlice('\n'); err == nil {
			err = json.Unmarshal(line, &req)
		}
	}
	if err == nil {
		_ = nc.SetReadDeadline(time.Time{})
		ctx, cancel := context.WithCancel(m.ctx)
		defer cancel()
		m.wg.Go(func() { // who asked has gone
			var b [1]byte
			_, _ = nc.Read(b[:])
			cancel()
		})
		err = m.do(ctx, req)
	}
	if err != nil {
		a.Code, a.Error = fserr.Of(err), oneLine(err)
	}
	v := m.c.Stats()
	a.Stats = &v
	_ = nc.SetWriteDeadline(time.Now().Add(cacheGreet))
	_ = json.NewEncoder(nc).Encode(a) // who asked may have gone
	_ = nc.CloseRead()
}

func (m *mountCache) do(ctx context.Context, req cacheRequest) error {
	switch req.Do {
	case "stat":
		return nil
	case "resize":
		return m.c.Resize(req.Bytes)
	case "move":
		if !filepath.IsAbs(req.Dir) {
			return fmt.Errorf("directory %q is not absolute: %w", req.Dir, fserr.Invalid)
		}
		return m.c.Move(ctx, req.Dir)
	}
	return fmt.Errorf("asked to %q: %w", req.Do, fserr.NotSupported)
}

// samePeer refuses a peer of another user, unless it is root.
func samePeer(nc *net.UnixConn) error {
	rc, err := nc.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	err = rc.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, cerr); err != nil {
		return err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("user %d may not change the cache of a mount of user %d: %w", cred.Uid, os.Geteuid(), fserr.Access)
	}
	return nil
}

// hangUp ends the socket: the name is another mount's as soon as this one has ended.
func (m *mountCache) hangUp() {
	if m != nil && m.l != nil {
		_ = m.l.Close()
	}
}

// close ends the socket and the cache, after the client was closed.
func (m *mountCache) close() {
	if m == nil {
		return
	}
	if m.stop != nil {
		m.stop()
	}
	m.hangUp()
	m.wg.Wait()
	st := m.c.Stats()
	m.log.Info("read cache", "hits", st.Hits, "misses", st.Misses, "percent", fmt.Sprintf("%.1f", readcache.Ratio(st.Hits, st.Misses)),
		"filled", st.Filled, "damaged", st.Damaged)
	if err := m.c.Close(); err != nil {
		m.log.Warn("the read cache was not closed in order", "err", err)
	}
}

// rest closes the cache as close does, for the next program to find it in order. This one goes on without it, should it have to.
func (m *mountCache) rest() {
	if m == nil {
		return
	}
	if err := m.c.Close(); err != nil {
		m.log.Warn("the read cache was not closed in order", "err", err)
	}
}

// askCache asks the process that serves a mount for something about its cache.
func askCache(ctx context.Context, mount fuse.MountInfo, req cacheRequest) (*readcache.Stats, error) {
	nc, err := net.DialUnix("unix", nil, cacheSocket(mount.Minor))
	if err != nil {
		return nil, fmt.Errorf("%s has no read cache, or its process is of another network namespace: %w", mount.Dir, err)
	}
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { _ = nc.Close() })()
	if err := samePeer(nc); err != nil {
		return nil, err
	}
	var a cacheAnswer
	if err = json.NewEncoder(nc).Encode(req); err == nil {
		err = json.NewDecoder(nc).Decode(&a)
	}
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, fmt.Errorf("%s: %w", mount.Dir, err)
	case a.Error != "":
		return a.Stats, fmt.Errorf("%s: %s", mount.Dir, a.Error)
	}
	return a.Stats, nil
}

// readCaches asks the mounts of a cluster on this host for what they say of their read caches. Those that do not answer, or belong to others, are left out.
func readCaches(ctx context.Context, cluster string) map[string]*readcache.Stats {
	ctx, cancel := context.WithTimeout(ctx, cacheGreet)
	defer cancel()
	mounts, err := fuse.Mounts()
	if err != nil {
		return nil
	}
	all := map[string]*readcache.Stats{}
	for _, m := range mounts {
		if m.Source != mountSource(cluster) {
			continue
		}
		if st, err := askCache(ctx, m, cacheRequest{Do: "stat"}); err == nil {
			all[m.Dir] = st
		}
	}
	return all
}
