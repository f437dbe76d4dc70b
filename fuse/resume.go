package fuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
)

// Resume goes on with a mount that another program has saved, before it executed this one. It takes the descriptors over, also when it fails; then execve(2) of a program that can go on is still possible, as
// nothing was read from them.
func Resume(opts Options, backend Backend, v *Saved) (*Session, error) {
	opts, err := opts.complete()
	if err == nil {
		err = v.check()
	}
	if err != nil {
		return nil, err
	}
	keeper, ok := backend.(Restorer)
	if !ok {
		return nil, fmt.Errorf("go on with the mount %s: its open files cannot be restored: %w", v.Dir, fserr.NotSupported)
	}
	opts.MountPoint, opts.Loops = v.Dir, len(v.Devices)
	s := newSession(opts, backend)
	s.mount = mountID{dir: v.Dir, conn: v.Conn, root: v.Root}
	s.conn.Store(&v.Agreed)
	s.transport, s.why = v.Agreed.Transport, v.Agreed.Why
	s.readyOnce.Do(func() { close(s.ready) })
	if err := s.nodes.take(v.Nodes); err != nil {
		return nil, err
	}
	s.files.last = v.Last
	for _, f := range v.Files {
		h, err := keeper.RestoreHandle(f.Ino, f.Write, f.Handle)
		if err != nil {
			return nil, fmt.Errorf("go on with the mount %s: %w", v.Dir, err)
		}
		one := &file{handle: h, ino: f.Ino, write: f.Write, number: f.Number}
		one.know()
		s.files.m[f.Number] = one
	}
	for _, o := range v.Owners {
		for _, n := range o.Files {
			if err := s.owners.add(context.Background(), ownerOf{o.Ino, o.Owner}, s.files.m[n]); err != nil {
				return nil, err
			}
		}
	}
	t, err := resumeLoops(s, v)
	if err != nil {
		return nil, fmt.Errorf("go on with the mount %s: %w", v.Dir, err)
	}
	s.via, s.threads = t, len(t.all)
	for _, k := range v.Kept {
		r := newRequest()
		r.via, r.source, r.began = t.device, t.readers[k.Device], time.Now()
		r.header = header{op: opcode(k.Op), unique: k.Unique, ino: k.Ino, uid: k.UID, gid: k.GID, pid: k.PID}
		n := copy(r.small[:], k.Fixed)
		r.fixed = r.small[:n:n]
		s.again(r)
	}
	s.listenCaptures()
	go s.run()
	s.findEpochs() // which also has the kernel forget names: this process does not know what it was told
	s.log.Info("going on with a mount", "transport", s.Conn().Transport, "files", len(v.Files), "inodes", s.nodes.size(), "waits", len(v.Kept))
	return s, nil
}

// resumeLoops is newLoops for a mount that was saved.
func resumeLoops(s *Session, v *Saved) (*loops, error) {
	cpus := 0
	if len(v.Rings) > 0 {
		list, err := os.ReadFile(possibleCPUs)
		if err != nil {
			return nil, err
		}
		if cpus, err = parseCPUs(string(list)); err != nil {
			return nil, err
		}
	}
	// The first descriptor makes the transport, the others are put in the places of the clones that it would make.
	t, err := loopsWith(s, cpus, func(n int) (*device, error) {
		if n != len(v.Devices) {
			return nil, fmt.Errorf("%d reactors for %d descriptors: %w", n, len(v.Devices), fserr.Invalid)
		}
		d := &device{log: s.log}
		for _, fd := range v.Devices {
			one, err := newDescriptor(fd, unpolled)
			if err != nil {
				return nil, errors.Join(err, unix.EBADF)
			}
			d.readers = append(d.readers, one)
		}
		return d, nil
	})
	if err != nil {
		return nil, err
	}
	if t.ring != nil {
		if err := t.ring.take(v.Rings); err != nil {
			return nil, err
		}
	}
	return t, nil
}
