package perf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"varve/internal/client"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// core is the file of one job, and the core client by which it is reached: what a mount does, without FUSE and its kernel.
type core struct {
	client *client.Client
	file   *client.File
}

// openCore connects to the cluster that where names, UUID@ADDR[,ADDR...], and opens or makes the file in a directory of it.
func openCore(ctx context.Context, where, path, name string) (*core, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	uuid, addrs, ok := strings.Cut(where, "@")
	cluster, err := id.ParseCluster(uuid)
	if err != nil || !ok || addrs == "" {
		return nil, fmt.Errorf("cluster %q: want UUID@ADDR[,ADDR...]: %w", where, errors.Join(err, fserr.Invalid))
	}
	host, _ := os.Hostname()
	c, err := client.Dial(ctx, client.Options{
		Cluster: cluster, Addrs: strings.Split(addrs, ","), Host: host, Mount: "varve perf", Logger: slog.New(slog.DiscardHandler),
		StartTimeout: callTimeout, Timeout: settleTime,
	})
	if err != nil {
		return nil, err
	}
	f, err := makeFile(ctx, c, path, name)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &core{c, f}, nil
}

func makeFile(ctx context.Context, c *client.Client, path, name string) (*client.File, error) {
	cred, dir := new(msg.Cred), id.Root
	for part := range strings.SplitSeq(path, "/") {
		if part == "" {
			continue
		}
		a, err := c.Lookup(ctx, cred, dir, []byte(part))
		if err == nil && a.Type != msg.FileType_DIRECTORY {
			err = fserr.NotDir
		}
		if err != nil {
			return nil, fmt.Errorf("/%s: %s: %w", strings.Trim(path, "/"), part, err)
		}
		dir = id.Ino(a.Ino)
	}
	_, f, err := c.Create(ctx, cred, &msg.Create{Parent: uint64(dir), Name: []byte(name), Type: msg.FileType_REGULAR, Perm: 0o600, Open: true})
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
