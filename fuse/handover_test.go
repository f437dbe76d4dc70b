package fuse

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// TestSavedNodes: the table comes back as it was, and garbage is refused.
func TestSavedNodes(t *testing.T) {
	var a, b nodes
	a.init()
	for ino := uint64(2); ino < 500; ino++ {
		at := &msg.Attr{Ino: ino, Type: msg.FileType(1 + ino%3), Perm: uint32(ino) & 0o7777, Uid: uint32(ino) * 3, Gid: uint32(ino) * 5}
		for range ino % 7 {
			a.looked(at)
		}
	}
	saved := a.put()
	b.init()
	if err := b.take(saved); err != nil {
		t.Fatal(err)
	}
	if a.size() != b.size() {
		t.Errorf("%d inodes, want %d", b.size(), a.size())
	}
	for ino := id.Ino(1); ino < 500; ino++ {
		want, known := a.get(ino)
		if got, ok := b.get(ino); ok != known || got != want {
			t.Errorf("inode %d: %v %v, want %v %v", ino, got, ok, want, known)
		}
	}
	for name, spoil := range map[string]func(b []byte) []byte{
		"torn":         func(b []byte) []byte { return b[:len(b)-1] },
		"number 0":     func(b []byte) []byte { clear(b[:8]); return b },
		"type unknown": func(b []byte) []byte { b[16] = 200; return b },
		"reserved":     func(b []byte) []byte { b[39] = 1; return b },
	} {
		var c nodes
		c.init()
		if err := c.take(spoil(bytes.Clone(saved))); !errors.Is(err, fserr.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSavedCheck: what Save never returns is refused before anything is done.
func TestSavedCheck(t *testing.T) {
	good := func() *Saved {
		return &Saved{
			Dir: "/mnt", Agreed: ConnInfo{MaxWrite: maxWrite, Transport: Dev}, Devices: []int{7, 8}, Last: 3,
			Files:  []fileSave{{Number: 1, Ino: 2}, {Number: 3, Ino: 2}},
			Owners: []lockSave{{Ino: 2, Owner: 9, Files: []uint64{3}}},
			Kept:   []keptSave{{Device: 1, Op: uint32(opSetlkw), Unique: 4, Fixed: make([]byte, ops[opSetlkw].fixed)}},
		}
	}
	if err := good().check(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(v *Saved){
		"no directory":     func(v *Saved) { v.Dir = "" },
		"no device":        func(v *Saved) { v.Devices = nil },
		"too many devices": func(v *Saved) { v.Devices = make([]int, maxLoops+1) },
		"standard input":   func(v *Saved) { v.Devices[0] = 0 },
		"other requests":   func(v *Saved) { v.Agreed.MaxWrite = 4096 },
		"by goroutines":    func(v *Saved) { v.Agreed.Transport = Readers },
		"rings of none":    func(v *Saved) { v.Rings = []ringSave{{Entries: 1, Payload: 1, Addr: pageSize, FD: 9}} },
		"no rings":         func(v *Saved) { v.Agreed.Transport = Uring },
		"ring at 0": func(v *Saved) {
			v.Agreed.Transport, v.Rings = Uring, []ringSave{{Entries: 1, Payload: 1, FD: 9}}
		},
		"file 0":           func(v *Saved) { v.Files[0].Number = 0 },
		"file twice":       func(v *Saved) { v.Files[0].Number = 3 },
		"file of later":    func(v *Saved) { v.Last = 2 },
		"file of no inode": func(v *Saved) { v.Files[0].Ino = 0 },
		"lock by nobody":   func(v *Saved) { v.Owners[0].Files = nil },
		"lock by stranger": func(v *Saved) { v.Owners[0].Files[0] = 2 },
		"request of none":  func(v *Saved) { v.Kept[0].Device = 2 },
		"request to write": func(v *Saved) { v.Kept[0].Op = uint32(opWrite) },
		"request cut off":  func(v *Saved) { v.Kept[0].Fixed = v.Kept[0].Fixed[1:] },
		"no request":       func(v *Saved) { v.Kept[0].Unique = 0 },
	} {
		v := good()
		spoil(v)
		if err := v.check(); !errors.Is(err, fserr.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := Resume(Options{MountPoint: "/mnt"}, newMemFS(), v); err == nil {
			t.Errorf("%s: resumed", name)
		}
	}
}

// restorable is a hotFS whose handles can go on elsewhere in this process.
type restorable struct {
	*hotFS
	saved []Handle
}

func (m *restorable) SaveHandle(h Handle) ([]byte, error) {
	m.saved = append(m.saved, h)
	return le.AppendUint32(nil, uint32(len(m.saved)-1)), nil
}

func (m *restorable) RestoreHandle(_ id.Ino, _ bool, saved []byte) (Handle, error) {
	return m.saved[le.Uint32(saved)], nil
}

func noPoke(string, map[int]int) error { return fserr.NotSupported }

// TestHandover: a mount goes on in another Session, as if that were another process's, while it is used: what is read is what was written, no call fails, and waits for locks go on.
func TestHandover(t *testing.T) {
	needKernel(t)
	m := newHotFS()
	r := &restorable{hotFS: m}
	dir := t.TempDir()
	s, err := Mount(t.Context(), Options{MountPoint: dir, Transport: Dev, Loops: testLoops, AllowOther: true, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}, r)
	if err != nil {
		t.Fatal(err)
	}
	var all []*Session
	defer func() {
		if err := s.Unmount(10 * time.Second); err != nil {
			t.Error(err)
		}
		for _, old := range all { // their descriptors say that the mount is gone
			old.Continue()
			select {
			case <-old.Done():
			case <-time.After(20 * time.Second):
				t.Error("a session that was gone on for does not end")
			}
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const span = 1500 * time.Millisecond
	begun, used := time.Now(), make(chan string, 1)
	cmd := guestCommand(ctx, "handover", dir)
	using, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		out, err := cmd.CombinedOutput()
		if err != nil {
			out = fmt.Appendf(out, "%v", err)
		}
		used <- string(out)
	}()
	for round := 0; ; round++ {
		select {
		case failed := <-used:
			if failed != "" {
				t.Error(failed)
			}
			t.Logf("%d rounds", round)
			return
		case <-time.After(20 * time.Millisecond):
		}
		if round >= 6 && time.Since(begun) > span {
			_ = using.Close() // again and again: then the guest ends
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if err := s.Pause(ctx, noPoke); err != nil {
			t.Fatal(err)
		}
		if err := s.Pause(ctx, noPoke); !errors.Is(err, fserr.Busy) {
			t.Errorf("paused twice: %v", err)
		}
		if round%3 == 2 { // for nothing
			s.Continue()
			cancel()
			continue
		}
		v, err := s.Save(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		w := new(Saved)
		if err := json.Unmarshal(b, w); err != nil {
			t.Fatal(err)
		}
		for i, fd := range w.Devices {
			if w.Devices[i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); err != nil {
				t.Fatal(err)
			}
		}
		next, err := Resume(Options{MountPoint: dir, AllowOther: true, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}, r, w)
		if err != nil {
			t.Fatal(err)
		}
		all, s = append(all, s), next
	}
}

// TestPauseGivesUp: a request that does not end is named, and the mount goes on.
func TestPauseGivesUp(t *testing.T) {
	needKernel(t)
	m := newHotFS()
	dir := t.TempDir()
	s, err := Mount(t.Context(), Options{MountPoint: dir, Transport: Dev, Loops: testLoops, AllowOther: true, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}, &restorable{hotFS: m})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Unmount(10 * time.Second)
	stuck := make(chan struct{})
	f := &flight{op: opMkdir, started: time.Now()}
	s.flights.add(1, f)
	s.enter()
	go func() { <-stuck; s.flights.remove(1); s.leave() }()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := s.Pause(ctx, noPoke); !errors.Is(err, fserr.Timeout) || !bytes.Contains([]byte(err.Error()), []byte("1 MKDIR")) {
		t.Errorf("paused with a request under way: %v", err)
	}
	if _, err := s.Save(t.Context()); !errors.Is(err, fserr.Invalid) {
		t.Errorf("saved without a pause: %v", err)
	}
	close(stuck)
	runGuest(t, "data", dir)
}
