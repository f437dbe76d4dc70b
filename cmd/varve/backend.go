package main

import (
	"context"

	"varve/fuse"
	"varve/internal/client"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// backend is a client as the filesystem that a FUSE session serves: the same methods, with a fuse.Handle for a *File.
type backend struct{ *client.Client }

var (
	_ fuse.Backend        = backend{}
	_ fuse.NotifierSetter = backend{}
	_ fuse.Handle         = (*client.File)(nil)
)

func (b backend) SetNotifier(n fuse.Notifier) { b.Client.SetNotifier(n) }

func (b backend) Create(ctx context.Context, cred *msg.Cred, req *msg.Create) (*msg.Attr, fuse.Handle, error) {
	attr, f, err := b.Client.Create(ctx, cred, req)
	if f == nil {
		return attr, nil, err
	}
	return attr, f, err
}

func (b backend) Open(ctx context.Context, cred *msg.Cred, ino id.Ino, write, trunc bool) (fuse.Handle, error) {
	f, err := b.Client.Open(ctx, cred, ino, write, trunc)
	if f == nil {
		return nil, err
	}
	return f, err
}
