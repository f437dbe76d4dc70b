package mds

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/planes"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// fullPause is how often a server that has no room to start looks for some.
const fullPause = time.Second

// Serve runs the server of a directory until ctx ends, then stops it in order within stop. A disk that fills up ends a run, since a store
// that could not write is not trusted: it is opened anew, in the room that the reserve gave back. If even that is gone, the server says
// that it is full to whoever asks, and goes on when there is room.
func Serve(ctx context.Context, o Options, stop time.Duration) error {
	return serve(ctx, o, stop, func(*Server) {})
}

// serve tells opened about each run.
func serve(ctx context.Context, o Options, stop time.Duration, opened func(*Server)) error {
	o = o.withDefaults()
	for {
		err := serveOnce(ctx, o, stop, opened)
		if err == nil || ctx.Err() != nil || !isFull(err) {
			return err
		}
		o.Logger.Error("metadata server turned away by its full disk; make room there", "dir", o.Dir, "err", err)
		_ = o.FS.Remove(filepath.Join(o.Dir, reserveFile)) // room to start in; if there is none, the next run says so
		if !waitFull(ctx, o) {
			return nil
		}
	}
}

// serveOnce is one run of the server.
func serveOnce(ctx context.Context, o Options, stop time.Duration, opened func(*Server)) error {
	s, err := Open(o)
	if err != nil {
		return err
	}
	opened(s)
	ended := make(chan error, 1)
	go func() { ended <- s.Run() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stop)
	defer cancel()
	return s.Shutdown(sctx)
}

// waitFull waits until the disk has room to start in, and answers meanwhile that it has not. It reports false if ctx ended.
func waitFull(ctx context.Context, o Options) bool {
	roomy := func() bool {
		sp, err := o.FS.Space(o.Dir)
		return err == nil && sp.Free >= minReserve
	}
	if sleep(ctx, fullPause/4); roomy() {
		return ctx.Err() == nil
	}
	d, err := readIdentity(o.FS, o.Dir)
	if err != nil {
		return sleep(ctx, fullPause)
	}
	sctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := d.secure(&o); err != nil {
		o.Logger.Warn("not answering while full", "err", err)
		return sleep(ctx, fullPause)
	}
	if l, err := listen(sctx, &o, d); err == nil {
		w := &wire.Server{Accept: (&fullServer{o: o, d: d}).accept, Logger: o.Logger}
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := w.Serve(l); err != nil {
				o.Logger.Debug("not answering while full", "err", err)
			}
		}()
		defer func() {
			l.Close()
			w.Close()
			<-done
		}()
	}
	for sleep(ctx, fullPause) {
		if roomy() {
			o.Logger.Info("there is room again, metadata server starts", "dir", o.Dir)
			return true
		}
	}
	return false
}

// fullServer answers for a server whose disk has no room to start in.
type fullServer struct {
	o Options
	d *identity
}

func (s *fullServer) accept(_ *wire.Conn, hello *msg.Hello) (wire.Handler, *msg.HelloReply, fserr.Code) {
	cluster := s.d.cluster()
	reply := &msg.HelloReply{Cluster: cluster[:], Version: version, Server: s.d.Server, Name: s.d.Name}
	if len(hello.Cluster) != 0 && string(hello.Cluster) != string(cluster[:]) {
		return nil, reply, fserr.WrongCluster
	}
	return s, reply, fserr.OK
}

// Serve implements wire.Handler.
func (s *fullServer) Serve(_ context.Context, c *wire.Conn, f *wire.Frame) {
	cluster := s.d.cluster()
	var err error
	switch f.Type {
	case wire.Status:
		sp, _ := s.o.FS.Space(s.o.Dir) // for people
		err = c.ReplyMessage(f, fserr.OK, &msg.StatusReply{Name: s.d.Name, Cluster: cluster[:], Answering: s.d.Server, Disk: string(diskFull), DiskFree: sp.Free,
			Metas: []*msg.MetaServer{{Server: s.d.Server, Addr: s.d.Addr, State: "follower", Voter: true, Disk: string(diskFull), DiskFree: sp.Free}}})
	case wire.Members:
		err = c.ReplyMessage(f, fserr.OK, &msg.MembersReply{Name: s.d.Name, Cluster: cluster[:], Addrs: append([]string{s.d.book().Addr(planes.Client)}, s.d.Peers...)})
	default:
		err = c.ReplyMessage(f, fserr.NotLeader, nil)
	}
	if err != nil {
		s.o.Logger.Debug("answer not sent", "peer", c.RemoteAddr(), "err", err)
	}
}

// InUse reports whether a process uses the directory.
func InUse(dir string) (bool, error) {
	unlock, err := disk.OS{}.Lock(filepath.Join(dir, "lock"))
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look whether %s is in use: %w", dir, err)
	}
	return false, unlock()
}
