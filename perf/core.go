package perf

import (
	"context"
	"errors"
	"fmt"
	"io"

	"varve/internal/client"
	"varve/internal/wire/msg"
)

// core is the file of one job, and the core client by which it is reached: what a mount does, without FUSE and its kernel.
type core struct {
	client *client.Client
	file   *client.File
}

// openCore connects to the cluster that where names, UUID@ADDR[,ADDR...], and opens or makes the file in a directory of it.
func openCore(ctx context.Context, where, path, name string, change ...func(*client.Options)) (*core, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c, err := dialCluster(ctx, where, change...)
	if err != nil {
		return nil, err
	}
	f, err := makeFile(ctx, c, path, name)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &core{c, f}, nil
}

// dialCluster connects a job to the cluster that where names.
func dialCluster(ctx context.Context, where string, change ...func(*client.Options)) (*client.Client, error) {
	w, err := parseWhere(where)
	if err != nil {
		return nil, err
	}
	return dialClient(ctx, w, true, change...)
}

func makeFile(ctx context.Context, c *client.Client, path, name string) (*client.File, error) {
	dir, err := walk(ctx, c, path)
	if err != nil {
		return nil, err
	}
	_, f, err := c.Create(ctx, new(msg.Cred), &msg.Create{Parent: uint64(dir), Name: []byte(name), Type: msg.FileType_REGULAR, Perm: 0o600, Open: true})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return f, nil
}

func (c *core) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	return errors.Join(c.file.Release(ctx), c.client.Close())
}

func (c *core) transfer(kind opKind, p []byte, off int64) error {
	ctx := context.Background() // the client has a time-out of its own
	if kind == opWrite {
		_, _, err := c.file.WriteAt(ctx, p, off, false)
		return err
	}
	n, err := c.file.ReadAt(ctx, p, off)
	if err == nil && n < len(p) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (c *core) sync() error { return c.file.Fsync(context.Background(), true) }

func (c *core) size() (int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	a, err := c.client.GetAttr(ctx, c.file.Ino())
	return int64(a.GetSize()), err
}
