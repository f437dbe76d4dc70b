package nbdserver

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"varve/internal/block"
	"varve/internal/fserr"
	"varve/internal/nbd"
)

// export is an image that clients see. Its methods may be called at once, and block.
type export struct {
	s                 *Server
	name, description string
	image             block.Image
	readOnly          bool

	opening sync.Mutex // one open or release at a time; held while the cluster is asked

	mu   sync.Mutex
	open *opened // nil: nobody uses it
	all  map[*opened]struct{}
	dead []block.OpenFile // given back with their session lost: what was not flushed of them is to be inherited
	lost []block.OpenFile // the newest whose session was lost, and which may have been used by who comes again; at most one
	bad  bool             // the image is somebody else's since
	err  error            // of the last flush when it was given back
}

// opened is one open of an image, which all of its connections share.
type opened struct {
	e    *export
	file block.OpenFile
	disk *block.Disk
	size int64
	over chan struct{} // closed when it was given back

	// Guarded by export.mu.
	users int // connections that are there, or have requests under way
	live  int // of these: whose clients have not gone
}

// acquire opens the image, or shares the open that is there, but not one whose clients have all gone and have left something under way: that ends first, so that
// nobody begins with an image that is still changed by who was there before.
func (e *export) acquire(ctx context.Context) (*opened, error) {
	for {
		o, before, err := e.enter(ctx)
		if before == nil {
			return o, err
		}
		select {
		case <-before.over:
		case <-ctx.Done():
			return nil, fmt.Errorf("requests of clients that have gone are still under way; come again later: %w", fserr.Timeout)
		}
	}
}

// enter is acquire that does not wait for the clients before, but returns their open, as the second.
func (e *export) enter(ctx context.Context) (*opened, *opened, error) {
	e.opening.Lock()
	defer e.opening.Unlock()
	e.mu.Lock()
	old := e.open
	if old != nil && !old.disk.Dead() && !lost(old.file) {
		defer e.mu.Unlock()
		if old.live == 0 {
			return nil, old, nil
		}
		old.users++
		old.live++
		return old, nil, nil
	}
	bad := e.bad
	before := e.lost
	if old != nil { // its session was lost
		before = []block.OpenFile{old.file}
	}
	e.mu.Unlock()
	if bad {
		return nil, nil, block.ErrTaken
	}
	file, size, err := e.image.Open(ctx, e.readOnly)
	if err != nil {
		return nil, nil, err
	}
	if g, ok := file.(block.Guarded); ok && !e.readOnly && g.Taken(before) {
		e.mu.Lock()
		e.bad = true
		e.mu.Unlock()
		return nil, nil, errors.Join(block.ErrTaken, file.Release(ctx))
	}
	o := &opened{e: e, file: file, size: size, disk: block.NewDisk(file), over: make(chan struct{}), users: 1, live: 1}
	e.mu.Lock()
	defer e.mu.Unlock()
	for dead := range e.all {
		// What clients were told is written, and is not flushed, is still to be: they may be the same ones, and flush now.
		file.Inherit(dead.file)
	}
	for _, dead := range e.dead {
		file.Inherit(dead)
	}
	e.dead, e.lost = nil, nil
	if e.all == nil {
		e.all = map[*opened]struct{}{}
	}
	e.open = o
	e.all[o] = struct{}{}
	return o, nil, nil
}

// leave notes that one of its clients has gone.
func (o *opened) leave() {
	o.e.mu.Lock()
	o.live--
	o.e.mu.Unlock()
}

// lost reports whether the session behind an open is over.
func lost(file block.OpenFile) bool {
	g, ok := file.(block.Guarded)
	return ok && g.Lost()
}

// release ends a connection's use of an open. The last one flushes it and gives the image back.
func (o *opened) release() {
	e := o.e
	e.mu.Lock()
	o.users--
	last := o.users == 0
	e.mu.Unlock()
	if !last {
		return
	}
	e.opening.Lock()
	defer e.opening.Unlock()
	defer close(o.over)
	e.mu.Lock()
	if e.open == o {
		e.open = nil
	}
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	o.disk.Close()
	var err error
	if o.disk.Wrote() {
		err = o.file.Fsync(ctx, false)
	}
	if rerr := o.file.Release(ctx); err == nil {
		err = rerr
	}
	e.mu.Lock()
	delete(e.all, o)
	e.err = err
	if fserr.Of(err) == fserr.Stale {
		e.dead = append(e.dead, o.file)
	}
	if lost(o.file) && e.open == nil {
		e.lost = []block.OpenFile{o.file}
	}
	e.mu.Unlock()
	if err != nil {
		e.s.log.Warn("an image was not given back in order; what its clients had flushed is safe", "export", e.name, "err", err)
	}
}

// cut has everything that waits for the cluster end with an error.
func (e *export) cut() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for o := range e.all {
		o.disk.Cancel()
	}
}

func (e *export) failed() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil {
		return fmt.Errorf("export %q: %w", e.name, e.err)
	}
	return nil
}

// offer is what clients are told of the export. size is less than 0 if it is not known.
func (e *export) offer(size int64, structured bool) *nbd.Export {
	f := nbd.HasFlags | nbd.CanFlush | nbd.CanFUA | nbd.CanCache | nbd.CanMultiConn
	if e.readOnly {
		f |= nbd.ReadOnly
	} else {
		f |= nbd.CanTrim | nbd.CanZero | nbd.CanFastZero
	}
	if structured {
		f |= nbd.CanDF
	}
	return &nbd.Export{Size: uint64(size), Flags: f, Least: 1, Preferred: block.BlockSize, Most: nbd.MaxPayload}
}

// errno turns the outcome of an operation into the protocol's.
func errno(err error) nbd.Errno {
	if err == nil {
		return 0
	}
	switch fserr.Of(err) {
	case fserr.NoSpace, fserr.FileTooBig:
		return nbd.ENOSPC
	case fserr.ReadOnly, fserr.Perm, fserr.Access, fserr.BadHandle:
		return nbd.EPERM
	case fserr.NotSupported:
		return nbd.ENOTSUP
	case fserr.Invalid:
		return nbd.EINVAL
	}
	return nbd.EIO
}
