package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"varve/fuse"
	"varve/internal/client"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// infoName is a directory in the root of every mount, which is made by the process that serves it: no name of it is at the metadata servers, and it is not
// listed. Its files say how the mount is.
const infoName = ".varve.info"

// infoIno is its inode; its files follow. Metadata servers count up from 1.
const infoIno id.Ino = 1<<63 - 1024

// infoFile is a file of it, whose text is made when it is opened.
type infoFile struct {
	name string
	text func() []byte
}

// info is a Backend with the directory.
type info struct {
	backend
	files []infoFile
	made  int64 // ns since 1970
}

var (
	_ fuse.Backend        = (*info)(nil)
	_ fuse.NotifierSetter = (*info)(nil)
	_ fuse.Keeper         = (*info)(nil)
	_ fuse.Restorer       = (*info)(nil)
)

func newInfo(b backend, cache *mountCache, transport func() string) *info {
	line := func(s string) []byte { return []byte(s + "\n") }
	return &info{backend: b, made: time.Now().UnixNano(), files: []infoFile{
		{"read_cache_info", func() []byte { return []byte(cache.text()) }},
		{"stat", func() []byte { return mountStat(b.Client, cache, transport()) }},
		{"version", func() []byte { return line(version) }},
	}}
}

// mountStatJSON is .varve.info/stat.
type mountStatJSON struct {
	Session   uint64            `json:"session"`
	Transport string            `json:"transport,omitempty"`
	Local     client.LocalStats `json:"local_reads"`
	Ahead     client.AheadStats `json:"read_ahead"`
	Hot       client.HotStats   `json:"reactors"`
	Inherited int64             `json:"inherited,omitempty"` // sessions of dead processes of this host that it has ended
	Stalls    []client.Stall    `json:"stalls,omitempty"`    // what operations wait for, the longest first
	ReadCache any               `json:"read_cache,omitempty"`
}

func mountStat(c *client.Client, cache *mountCache, transport string) []byte {
	v := mountStatJSON{Session: uint64(c.Session()), Transport: transport, Local: c.LocalStats(), Ahead: c.AheadStats(), Hot: c.HotStats(), Inherited: c.Inherited(), Stalls: c.Stalls()}
	if cache != nil {
		v.ReadCache = cache.c.Stats()
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return []byte(err.Error())
	}
	return append(b, '\n')
}

func (b *info) mine(ino id.Ino) bool { return ino >= infoIno && ino <= infoIno+id.Ino(len(b.files)) }

// hides reports whether a name in a directory is not the metadata servers' to know.
func (b *info) hides(parent id.Ino, name []byte) bool {
	return b.mine(parent) || parent == id.Root && string(name) == infoName
}

func (b *info) attr(ino id.Ino) *msg.Attr {
	a := &msg.Attr{Ino: uint64(ino), Type: msg.FileType_DIRECTORY, Perm: 0o555, Nlink: 2, Atime: b.made, Mtime: b.made, Ctime: b.made, Btime: b.made}
	if ino != infoIno {
		now := time.Now().UnixNano()
		a.Type, a.Perm, a.Nlink, a.Mtime, a.Ctime = msg.FileType_REGULAR, 0o444, 1, now, now
		a.Size = uint64(len(b.files[ino-infoIno-1].text()))
	}
	return a
}

func (b *info) Lookup(ctx context.Context, cred *msg.Cred, parent id.Ino, name []byte) (*msg.Attr, error) {
	if !b.hides(parent, name) {
		return b.backend.Lookup(ctx, cred, parent, name)
	}
	if parent == id.Root {
		return b.attr(infoIno), nil
	}
	for i, f := range b.files {
		if parent == infoIno && f.name == string(name) {
			return b.attr(infoIno + 1 + id.Ino(i)), nil
		}
	}
	return nil, fserr.NotExist
}

func (b *info) GetAttr(ctx context.Context, ino id.Ino) (*msg.Attr, error) {
	if b.mine(ino) {
		return b.attr(ino), nil
	}
	return b.backend.GetAttr(ctx, ino)
}

func (b *info) ReadDir(ctx context.Context, cred *msg.Cred, ino id.Ino, cookie uint64, max int, plus bool) (*msg.ReadDirReply, error) {
	if !b.mine(ino) {
		return b.backend.ReadDir(ctx, cred, ino, cookie, max, plus)
	}
	r := &msg.ReadDirReply{End: true, Parent: uint64(id.Root)}
	for i := min(cookie, uint64(len(b.files))); i < uint64(len(b.files)); i++ {
		if len(r.Entries) == max {
			r.End = false
			break
		}
		e := &msg.Dirent{Ino: uint64(infoIno) + 1 + i, Name: []byte(b.files[i].name), Type: msg.FileType_REGULAR, Cookie: i + 1}
		if plus {
			e.Attr = b.attr(infoIno + 1 + id.Ino(i))
		}
		r.Entries = append(r.Entries, e)
	}
	return r, nil
}

func (b *info) Open(ctx context.Context, cred *msg.Cred, ino id.Ino, write, trunc bool) (fuse.Handle, error) {
	switch {
	case !b.mine(ino):
		return b.backend.Open(ctx, cred, ino, write, trunc)
	case write || trunc:
		return nil, fserr.ReadOnly
	case ino == infoIno:
		return nil, fserr.IsDir
	}
	return infoHandle(b.files[ino-infoIno-1].text()), nil
}

// SaveHandle implements fuse.Restorer.
func (b *info) SaveHandle(h fuse.Handle) ([]byte, error) {
	switch h := h.(type) {
	case infoHandle:
		return h, nil
	case *client.File:
		return h.Save(), nil
	}
	return nil, fmt.Errorf("an open file of type %T: %w", h, fserr.NotSupported)
}

// RestoreHandle implements fuse.Restorer.
func (b *info) RestoreHandle(ino id.Ino, write bool, saved []byte) (fuse.Handle, error) {
	if b.mine(ino) {
		return infoHandle(saved), nil
	}
	f, err := b.Client.RestoreFile(ino, write, saved)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// What would change the directory is refused, and what it has not got.

func (b *info) Create(ctx context.Context, cred *msg.Cred, req *msg.Create) (*msg.Attr, fuse.Handle, error) {
	if b.hides(id.Ino(req.Parent), req.Name) {
		return nil, nil, fserr.ReadOnly
	}
	return b.backend.Create(ctx, cred, req)
}

func (b *info) Link(ctx context.Context, cred *msg.Cred, ino, parent id.Ino, name []byte) (*msg.Attr, error) {
	if b.hides(parent, name) || b.mine(ino) {
		return nil, fserr.ReadOnly
	}
	return b.backend.Link(ctx, cred, ino, parent, name)
}

func (b *info) Remove(ctx context.Context, cred *msg.Cred, parent id.Ino, name []byte, dir bool) error {
	if b.hides(parent, name) {
		return fserr.ReadOnly
	}
	return b.backend.Remove(ctx, cred, parent, name, dir)
}

func (b *info) Rename(ctx context.Context, cred *msg.Cred, req *msg.Rename) error {
	if b.hides(id.Ino(req.Parent), req.Name) || b.hides(id.Ino(req.NewParent), req.NewName) {
		return fserr.ReadOnly
	}
	return b.backend.Rename(ctx, cred, req)
}

func (b *info) ReadLink(ctx context.Context, ino id.Ino) ([]byte, error) {
	if b.mine(ino) {
		return nil, fserr.Invalid
	}
	return b.backend.ReadLink(ctx, ino)
}

func (b *info) SetAttr(ctx context.Context, cred *msg.Cred, req *msg.SetAttr) (*msg.Attr, error) {
	if b.mine(id.Ino(req.Ino)) {
		return nil, fserr.ReadOnly
	}
	return b.backend.SetAttr(ctx, cred, req)
}

func (b *info) GetXattr(ctx context.Context, cred *msg.Cred, ino id.Ino, name []byte) ([]byte, error) {
	if b.mine(ino) {
		return nil, fserr.NoAttr
	}
	return b.backend.GetXattr(ctx, cred, ino, name)
}

func (b *info) SetXattr(ctx context.Context, cred *msg.Cred, req *msg.SetXattr) error {
	if b.mine(id.Ino(req.Ino)) {
		return fserr.ReadOnly
	}
	return b.backend.SetXattr(ctx, cred, req)
}

func (b *info) ListXattr(ctx context.Context, cred *msg.Cred, ino id.Ino) ([][]byte, error) {
	if b.mine(ino) {
		return nil, nil
	}
	return b.backend.ListXattr(ctx, cred, ino)
}

func (b *info) RemoveXattr(ctx context.Context, cred *msg.Cred, ino id.Ino, name []byte) error {
	if b.mine(ino) {
		return fserr.ReadOnly
	}
	return b.backend.RemoveXattr(ctx, cred, ino, name)
}

func (b *info) Access(ctx context.Context, cred *msg.Cred, ino id.Ino, mask uint32) error {
	switch {
	case !b.mine(ino):
		return b.backend.Access(ctx, cred, ino, mask)
	case mask&2 != 0:
		return fserr.ReadOnly
	case mask&1 != 0 && ino != infoIno:
		return fserr.Access
	}
	return nil
}

func (b *info) Lock(ctx context.Context, req *msg.Lock) (*msg.LockReply, error) {
	if b.mine(id.Ino(req.Ino)) {
		return nil, fserr.NotSupported
	}
	return b.backend.Lock(ctx, req)
}

// Hold implements fuse.Keeper: the kernel keeps nothing of the directory.
func (b *info) Hold(parent id.Ino, name []byte, a *msg.Attr) (entry, attr time.Duration) {
	if b.apart(parent, a) {
		return 0, 0
	}
	return b.Client.Hold(parent, name, a)
}

// Unhold implements fuse.Keeper.
func (b *info) Unhold(parent id.Ino, a *msg.Attr) {
	if !b.apart(parent, a) {
		b.Client.Unhold(parent, a)
	}
}

func (b *info) apart(parent id.Ino, a *msg.Attr) bool {
	return b.mine(parent) || a != nil && b.mine(id.Ino(a.Ino))
}

// infoHandle is the text of an open file.
type infoHandle []byte

var _ fuse.Handle = infoHandle(nil)

func (h infoHandle) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fserr.Invalid
	}
	if off >= int64(len(h)) {
		return 0, nil
	}
	return copy(p, h[off:]), nil
}

func (h infoHandle) WriteAt(context.Context, []byte, int64, bool) (int, int64, error) {
	return 0, 0, fserr.BadHandle
}
func (h infoHandle) Fsync(context.Context, bool) error                     { return nil }
func (h infoHandle) Flush(context.Context) error                           { return nil }
func (h infoHandle) Fallocate(context.Context, uint32, int64, int64) error { return fserr.BadHandle }
func (h infoHandle) Seek(context.Context, int64, int) (int64, error)       { return 0, fserr.NotSupported }
func (h infoHandle) Release(context.Context) error                         { return nil }
