package fuse

import (
	"context"
	"fmt"
	"slices"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
)

// Saved is what another program needs to serve the mount. The numbers of descriptors are those of this process.
type Saved struct {
	Dir     string     `json:"dir"`  // resolved
	Conn    uint32     `json:"conn"` // number of the connection
	Root    bool       `json:"root"` // mounted with mount(2), else with fusermount3
	Agreed  ConnInfo   `json:"agreed"`
	Devices []int      `json:"devices"`         // descriptors of /dev/fuse; the number of each is that of its loop
	Rings   []ringSave `json:"rings,omitempty"` // of FUSE over io_uring
	Nodes   []byte     `json:"nodes"`           // see putNodes
	Last    uint64     `json:"last"`            // number given to an open file
	Files   []fileSave `json:"files"`
	Owners  []lockSave `json:"owners,omitempty"`
	Kept    []keptSave `json:"kept,omitempty"` // requests that came by /dev/fuse and are not answered
}

// fileSave is an open file.
type fileSave struct {
	Number uint64 `json:"number"`
	Ino    id.Ino `json:"ino"`
	Write  bool   `json:"write,omitempty"`
	Handle []byte `json:"handle"`
}

// lockSave is an owner of fcntl locks with the numbers of the files that it took them through.
type lockSave struct {
	Ino   id.Ino   `json:"ino"`
	Owner uint64   `json:"owner"`
	Files []uint64 `json:"files"`
}

// keptSave is a request.
type keptSave struct {
	Device int    `json:"device"` // place in Devices
	Op     uint32 `json:"op"`
	Unique uint64 `json:"unique"`
	Ino    id.Ino `json:"ino"`
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	PID    uint32 `json:"pid"`
	Fixed  []byte `json:"fixed"`
	Rest   []byte `json:"rest,omitempty"`
}

// ringSave is memory of entries of a queue.
type ringSave struct {
	Queue   int     `json:"queue"`
	Entries int     `json:"entries"`
	Payload int     `json:"payload"` // of an entry, bytes
	Addr    uintptr `json:"addr"`
	FD      int     `json:"fd"`
}

// Descriptors are those that the next program must have.
func (v *Saved) Descriptors() []int {
	all := slices.Clone(v.Devices)
	for _, r := range v.Rings {
		all = append(all, r.FD)
	}
	return all
}

// Save returns what another program needs. Preconditions: Pause has returned, and the Backend does nothing that makes the kernel forget.
func (s *Session) Save(ctx context.Context) (*Saved, error) {
	t, ok := s.via.(*loops)
	if !ok || !t.paused.Load() {
		return nil, fmt.Errorf("save a mount that is not paused: %w", fserr.Invalid)
	}
	// A thread that makes the kernel forget pages may wait for a request that nobody answers now; execve(2) would wait for it for ever.
	for !s.notes.idle() {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the kernel is writing pages back that it is to forget: %w", fserr.Timeout)
		case <-time.After(pausing):
		}
	}
	v := &Saved{Dir: s.mount.dir, Conn: s.mount.conn, Root: s.mount.root, Agreed: s.Conn(), Nodes: s.nodes.put()}
	for _, d := range t.readers {
		if err := d.raw.Control(func(fd uintptr) { v.Devices = append(v.Devices, int(fd)) }); err != nil {
			return nil, fmt.Errorf("%s: %w", devicePath, err)
		}
	}
	if t.ring != nil && !t.ring.fell.Load() {
		v.Rings = t.ring.save()
	}
	keeper := s.backend.(Restorer)
	s.files.mu.RLock()
	v.Last = s.files.last
	s.files.mu.RUnlock()
	for _, f := range s.files.all() {
		b, err := keeper.SaveHandle(f.handle)
		if err != nil {
			return nil, fmt.Errorf("open file of inode %v: %w", f.ino, err)
		}
		v.Files = append(v.Files, fileSave{Number: f.number, Ino: f.ino, Write: f.write, Handle: b})
	}
	s.owners.mu.Lock()
	for key, through := range s.owners.m {
		o := lockSave{Ino: key.ino, Owner: key.owner}
		for _, f := range through {
			o.Files = append(o.Files, f.number)
		}
		v.Owners = append(v.Owners, o)
	}
	s.owners.mu.Unlock()
	s.handing.mu.Lock()
	defer s.handing.mu.Unlock()
	for _, r := range s.handing.kept {
		if r.entry != nil {
			continue // it is in the entry's memory
		}
		v.Kept = append(v.Kept, keptSave{
			Device: slices.Index(t.readers, r.source), Op: uint32(r.op), Unique: r.unique, Ino: r.ino, UID: r.uid, GID: r.gid, PID: r.pid,
			Fixed: slices.Clone(r.fixed), Rest: slices.Clone(r.rest),
		})
	}
	return v, nil
}

// check refuses what Save never returns.
func (v *Saved) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("a saved mount of %q: %s: %w", v.Dir, fmt.Sprintf(format, args...), fserr.Invalid)
	}
	if v.Dir == "" || len(v.Devices) == 0 || len(v.Devices) > maxLoops || v.Agreed.MaxWrite != maxWrite {
		return bad("%d devices, requests of up to %d bytes", len(v.Devices), v.Agreed.MaxWrite)
	}
	if uring := v.Agreed.Transport == Uring; !uring && v.Agreed.Transport != Dev || uring != (len(v.Rings) > 0) {
		return bad("transport %q with %d rings", v.Agreed.Transport, len(v.Rings))
	}
	for _, fd := range v.Descriptors() {
		if fd < 3 {
			return bad("descriptor %d", fd)
		}
	}
	numbers := make(map[uint64]bool, len(v.Files))
	for _, f := range v.Files {
		if f.Number == 0 || f.Number > v.Last || f.Ino == 0 || numbers[f.Number] {
			return bad("open file %d of inode %v, the last is %d", f.Number, f.Ino, v.Last)
		}
		numbers[f.Number] = true
	}
	for _, o := range v.Owners {
		for _, n := range o.Files {
			if !numbers[n] {
				return bad("a lock through file %d, which is not open", n)
			}
		}
		if len(o.Files) == 0 {
			return bad("a lock on inode %v through no file", o.Ino)
		}
	}
	for _, k := range v.Kept {
		if k.Device < 0 || k.Device >= len(v.Devices) || opcode(k.Op) != opSetlkw || k.Unique == 0 || len(k.Fixed) != ops[opSetlkw].fixed || len(k.Rest) > 0 {
			return bad("a request of kind %d with %d and %d bytes", k.Op, len(k.Fixed), len(k.Rest))
		}
	}
	for _, r := range v.Rings {
		if r.Entries <= 0 || r.Entries > ringEntries || r.Payload <= 0 || r.Queue < 0 || r.Addr == 0 || r.Addr%pageSize != 0 {
			return bad("%d entries of queue %d with %d bytes at %#x", r.Entries, r.Queue, r.Payload, r.Addr)
		}
	}
	return nil
}
