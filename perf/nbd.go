package perf

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"

	"varve/internal/nbd"

	"golang.org/x/sys/unix"
)

// device is a connection to an export of an NBD server. Each job has one of its own if the server says that several see the same; else they share one.
type device struct {
	conn  *nbd.Conn
	users atomic.Int32 // jobs
}

// nbdURI returns the URI of a target, which may be written with nbd: before it or without.
func nbdURI(kind, path, whole string) (string, bool) {
	switch {
	case (kind == "nbd" || kind == "nbd+unix") && strings.HasPrefix(path, "//"):
		return whole, true
	case kind == "nbd" && path != "":
		return path, true
	}
	return "", false
}

// openDevice connects a job; first is the file of the job before it, if there is one.
func openDevice(ctx context.Context, uri string, job int, o *Options, first *file) (*file, error) {
	if first != nil && !first.device.conn.MultiConn() {
		first.device.users.Add(1)
		return &file{fd: -1, device: first.device, path: uri, base: int64(job) * o.Size}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	u, err := nbd.ParseURI(uri)
	if err != nil {
		return nil, err
	}
	conn, err := nbd.Dial(ctx, u)
	if err != nil {
		return nil, err
	}
	if err := fits(&conn.Export, o); err != nil {
		conn.Close()
		return nil, err
	}
	d := &device{conn: conn}
	d.users.Store(1)
	return &file{fd: -1, device: d, path: uri, base: int64(job) * o.Size}, nil
}

// fits returns why the load cannot be done on an export.
func fits(e *nbd.Export, o *Options) error {
	switch need := uint64(o.Size) * uint64(o.allJobs()); {
	case need > e.Size:
		return fmt.Errorf("the export has %d bytes, and %s of %d bytes want %d", e.Size, o.jobs(), o.Size, need)
	case o.BlockSize%int64(e.Least) != 0:
		return fmt.Errorf("block size %d: the server wants a multiple of %d", o.BlockSize, e.Least)
	case o.BlockSize > int64(e.Most):
		return fmt.Errorf("block size %d: the server takes at most %d", o.BlockSize, e.Most)
	case o.RW.writes() && e.Flags&nbd.ReadOnly != 0:
		return fmt.Errorf("the export: %w", unix.EROFS)
	case o.Share.Hosts > 1 && e.Flags&nbd.CanMultiConn == 0:
		return fmt.Errorf("the server does not say that several connections see the same, which %d hosts want: %w", o.Share.Hosts, unix.ENOTSUP)
	case o.FsyncEvery > 0 && e.Flags&nbd.CanFlush == 0:
		return fmt.Errorf("the server does not flush: %w", unix.ENOTSUP)
	}
	return nil
}

// close ends the connection when the last job is done with it.
func (d *device) close() error {
	if d.users.Add(-1) > 0 {
		return nil
	}
	return d.conn.Close()
}

// transfer reads or writes all of p at off of the export.
func (d *device) transfer(kind opKind, p []byte, off int64) error {
	command := nbd.CmdRead
	if kind == opWrite {
		command = nbd.CmdWrite
	}
	for len(p) > 0 {
		n := min(len(p), int(d.conn.Export.Most))
		if err := d.conn.Do(command, 0, uint64(off), p[:n], 0); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// sync flushes, where the server can: fits has seen to it that nobody asked for more.
func (d *device) sync() error {
	if d.conn.Export.Flags&nbd.CanFlush == 0 {
		return nil
	}
	return d.conn.Do(nbd.CmdFlush, 0, 0, nil, 0)
}
