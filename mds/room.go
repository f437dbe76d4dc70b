package mds

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"varve/internal/disk"
	"varve/internal/fserr"
)

// diskState is how much room a server's disk has, as StatusReply and MetaServer name it.
type diskState string

const (
	diskOK diskState = ""
	// diskLow: less than the margin is free. A leader refuses changes of clients and hands over to a server that has room.
	diskLow diskState = "low"
	// diskFull: a write has failed for want of room, or the next one may. The reserve is given up; no events are appended any more.
	diskFull diskState = "full"
)

const (
	reserveFile  = "reserve"
	reserveShare = 64 // of the disk
	minReserve   = 1 << 20
	maxReserve   = 16 << 20
	marginShare  = 32 // of the disk
	minMargin    = 4 << 20
	maxMargin    = 64 << 20
	roomPeriod   = 200 * time.Millisecond
	reserveChunk = 1 << 20 // bytes of the reserve written at once
)

// room watches the free space of a server's disk. It keeps a file of zeros, the reserve, that is removed when the disk is full: so there is
// room to go on with what needs none of the clients' events, such as votes, elections, changes of members and the journal of what is
// committed. The reserve is made again when there is room.
type room struct {
	fs      disk.FS
	dir     string
	reserve int64 // bytes; negative: no reserve and no margins
	margin  int64

	mu    sync.Mutex // of changes
	state atomic.Value
	free  atomic.Uint64
}

// newRoom looks at the disk for the first time. reserve is Options.Reserve.
func newRoom(fsys disk.FS, dir string, reserve int64) (*room, error) {
	sp, err := fsys.Space(dir)
	if err != nil {
		return nil, err
	}
	r := &room{fs: fsys, dir: dir, reserve: reserve}
	r.state.Store(diskOK)
	switch {
	case reserve == 0:
		r.reserve = min(max(int64(sp.Total/reserveShare), minReserve), maxReserve)
		r.margin = min(max(int64(sp.Total/marginShare), minMargin), maxMargin)
	case reserve > 0:
		r.margin = 2 * reserve
	}
	r.look()
	return r, nil
}

func (r *room) now() diskState { return r.state.Load().(diskState) }

// look finds out how much is free and does what follows from that. It returns the state before and after.
func (r *room) look() (before, after diskState) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before = r.now()
	sp, err := r.fs.Space(r.dir)
	if err != nil || r.reserve < 0 {
		return before, before // an error shows at the next write
	}
	free := int64(min(sp.Free, 1<<62))
	r.free.Store(uint64(free))
	plenty := free >= r.margin+r.reserve
	switch {
	case before == diskFull && !plenty:
		after = diskFull
	case free < min(max(r.reserve/4, minReserve), r.reserve):
		after = diskFull
		r.giveUp()
	case free < r.margin, before == diskLow && free < r.margin+r.margin/4:
		after = diskLow
	default:
		after = diskOK
	}
	if after == diskOK && plenty && !r.kept() && r.keep() != nil {
		after = before
	}
	r.state.Store(after)
	return before, after
}

// ranOut notes that a write has failed for want of room.
func (r *room) ranOut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reserve >= 0 {
		r.giveUp()
		r.state.Store(diskFull)
	}
}

func (r *room) path() string { return filepath.Join(r.dir, reserveFile) }

// kept reports whether the reserve is there in full.
func (r *room) kept() bool {
	info, err := r.fs.Stat(r.path())
	return err == nil && info.Size() >= r.reserve
}

// giveUp frees the reserve.
func (r *room) giveUp() {
	_ = r.fs.Remove(r.path()) // if that fails there is none, or nothing can be done about it
}

// keep makes the reserve. Its bytes are written, since a hole would reserve nothing.
func (r *room) keep() error {
	f, err := r.fs.Open(r.path(), disk.ReadWrite|disk.Create)
	if err != nil {
		return err
	}
	zeros := make([]byte, reserveChunk)
	for at := int64(0); at < r.reserve && err == nil; at += reserveChunk {
		_, err = f.WriteAt(zeros[:min(reserveChunk, r.reserve-at)], at)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		r.giveUp()
	}
	return err
}

// isFull reports whether err is of a disk without room.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, fserr.NoSpace)
}

// errNoRoom is why events are not appended while the disk is full.
var errNoRoom = fmt.Errorf("the disk of the metadata server is full: %w", fserr.NoSpace)
