package main

import (
	"context"
	"fmt"
	"path"
	"strings"
	"sync"

	"varve/internal/block"
	"varve/internal/client"
	"varve/internal/fserr"
	"varve/internal/hot"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// image is a file of the cluster that is served as a disk. Whoever serves it is root.
type image struct {
	c    *client.Client
	path string // from the cluster's root, without the / before it
}

// imageCred is who opens images.
var imageCred = &msg.Cred{Checked: true}

// imageFile is a client's file as servers of block protocols want it.
type imageFile struct {
	*client.File
	adopting sync.Mutex
	adopted  bool
}

var (
	_ block.Image   = image{}
	_ block.Guarded = (*imageFile)(nil)
)

// Inherit implements block.OpenFile.
func (f *imageFile) Inherit(old block.OpenFile) {
	if o, ok := old.(*imageFile); ok {
		f.File.Inherit(o.File)
	}
}

// Taken implements block.Guarded.
func (f *imageFile) Taken(lost []block.OpenFile) bool {
	var all []*client.File
	for _, old := range lost {
		if o, ok := old.(*imageFile); ok {
			all = append(all, o.File)
		}
	}
	return f.File.Taken(all)
}

// Fsync implements block.File.
func (f *imageFile) Fsync(ctx context.Context, dataOnly bool) error {
	if err := f.adopt(ctx); err != nil {
		return err
	}
	return f.File.Fsync(ctx, dataOnly)
}

// adopt has the first flush cover all of the image.
func (f *imageFile) adopt(ctx context.Context) error {
	f.adopting.Lock()
	defer f.adopting.Unlock()
	if f.adopted {
		return nil
	}
	err := f.Adopt(ctx)
	f.adopted = err == nil
	return err
}

// imagePath is the path of an image as it is said everywhere.
func imagePath(arg string) (string, error) {
	p := strings.TrimPrefix(path.Clean("/"+arg), "/")
	if p == "" {
		return "", usagef("image %q: want the path of a file from the cluster's root, such as images/vm.img", arg)
	}
	return p, nil
}

// find returns the image's inode and size.
func (m image) find(ctx context.Context) (id.Ino, int64, error) {
	ino := id.Ino(1)
	var a *msg.Attr
	for name := range strings.SplitSeq(m.path, "/") {
		var err error
		if a, err = m.c.Lookup(ctx, imageCred, ino, []byte(name)); err != nil {
			return 0, 0, fmt.Errorf("/%s, at %q: %w", m.path, name, err)
		}
		ino = id.Ino(a.Ino)
	}
	switch a.Type {
	case msg.FileType_REGULAR:
		return ino, int64(a.Size), nil
	case msg.FileType_DIRECTORY:
		return 0, 0, fmt.Errorf("/%s: %w", m.path, fserr.IsDir)
	}
	return 0, 0, fmt.Errorf("/%s is no regular file; name the file itself: %w", m.path, fserr.Invalid)
}

// Size implements block.Image.
func (m image) Size(ctx context.Context) (int64, error) {
	_, size, err := m.find(ctx)
	return size, err
}

// Open implements block.Image.
func (m image) Open(ctx context.Context, readOnly bool) (block.OpenFile, int64, error) {
	ino, _, err := m.find(ctx)
	if err != nil {
		return nil, 0, err
	}
	f, err := m.c.Open(ctx, imageCred, ino, !readOnly, false)
	if err != nil {
		return nil, 0, fmt.Errorf("/%s: %w", m.path, err)
	}
	a, err := m.c.GetAttr(ctx, ino) // what it is once nobody else changes it
	if err != nil {
		_ = f.Release(ctx)
		return nil, 0, fmt.Errorf("/%s: %w", m.path, err)
	}
	return &imageFile{File: f, adopted: readOnly}, int64(a.Size), nil
}

// hostOf returns the client as one that threads can sit with, nil if it is none.
func hostOf(c any) hot.Host {
	h, _ := c.(hot.Host)
	return h
}
