package perf

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"varve/internal/client"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire/msg"
)

// clientDir is a job's directory in a cluster, reached by a client of its own without a mount: one session, one connection to the leader. What
// the client guarantees holds here as well: it finds the next leader, and a change that it has to repeat is done once.
type clientDir struct {
	client *client.Client
	parent id.Ino
	path   string // of the directory, without the leading "/"
	name   string
	ino    id.Ino
	cred   *msg.Cred
}

var _ directory = (*clientDir)(nil)

// dialClient connects a job to a cluster. change, if there is one, changes the client's options.
func dialClient(ctx context.Context, w where, cached bool, change ...func(*client.Options)) (*client.Client, error) {
	host, _ := os.Hostname()
	o := client.Options{
		Cluster: w.cluster, Addrs: w.addrs, Host: host, Mount: "varve perf", Logger: slog.New(slog.DiscardHandler),
		StartTimeout: callTimeout, Timeout: settleTime, NoCache: !cached,
	}
	if err := w.secure(&o); err != nil {
		return nil, err
	}
	for _, f := range change {
		f(&o)
	}
	return client.Dial(ctx, o)
}

// dialMDS connects a job to the cluster that metadata servers belong to, one of which must answer, without a cache: each operation is a request to the leader.
// known, unless it is "", says which cluster that is: servers of a secured one do not tell it.
func dialMDS(ctx context.Context, list, known string) (*client.Client, error) {
	var w where
	if known != "" {
		var err error
		if w, err = parseWhere(known); err != nil {
			return nil, err
		}
	}
	w.addrs = strings.Split(list, ",")
	network, err := w.network()
	if err != nil {
		return nil, err
	}
	a, err := client.DialAdmin(ctx, network, w.cluster, w.addrs)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	if _, err := a.Members(ctx); err != nil { // a chunk server refuses
		return nil, fmt.Errorf("%s: %w; is it a metadata server?", a.Addr(), err)
	}
	w.cluster = a.Cluster
	return dialClient(ctx, w, false)
}

// openClientDir opens or makes a directory below another.
func openClientDir(ctx context.Context, c *client.Client, dir, name string) (*clientDir, error) {
	parent, err := walk(ctx, c, dir)
	if err != nil {
		return nil, err
	}
	d := &clientDir{client: c, parent: parent, path: strings.Trim(dir, "/"), name: name, cred: new(msg.Cred)}
	a, _, err := c.Create(ctx, d.cred, &msg.Create{Parent: uint64(parent), Name: []byte(name), Type: msg.FileType_DIRECTORY, Perm: 0o700, Exclusive: true})
	if errors.Is(err, fserr.Exist) {
		a, err = c.Lookup(ctx, d.cred, parent, []byte(name))
	}
	if err == nil && a.Type != msg.FileType_DIRECTORY {
		err = fserr.NotDir
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	d.ino = id.Ino(a.Ino)
	return d, nil
}

// walk returns the directory of a path.
func walk(ctx context.Context, c *client.Client, path string) (id.Ino, error) {
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
			return 0, fmt.Errorf("/%s: %s: %w", strings.Trim(path, "/"), part, err)
		}
		dir = id.Ino(a.Ino)
	}
	return dir, nil
}

func (d *clientDir) create(name string) (uint64, error) {
	a, _, err := d.client.Create(context.Background(), d.cred,
		&msg.Create{Parent: uint64(d.ino), Name: []byte(name), Type: msg.FileType_REGULAR, Perm: 0o600, Exclusive: true})
	return a.GetIno(), err
}

func (d *clientDir) stat(e entry) error {
	_, err := d.client.GetAttr(context.Background(), id.Ino(e.handle))
	return err
}

func (d *clientDir) lookup(name string) error {
	_, err := d.client.Lookup(context.Background(), d.cred, d.ino, []byte(name))
	return err
}

func (d *clientDir) rename(from, to string) error {
	return d.client.Rename(context.Background(), d.cred,
		&msg.Rename{Parent: uint64(d.ino), Name: []byte(from), NewParent: uint64(d.ino), NewName: []byte(to)})
}

func (d *clientDir) remove(name string) error {
	return d.client.Remove(context.Background(), d.cred, d.ino, []byte(name), false)
}

// sync has nothing to do: a change that was answered is on stable media of a majority.
func (d *clientDir) sync() error { return nil }

// listPage is how many entries are asked for at once.
const listPage = 4096

func (d *clientDir) list(each func(name string, handle uint64)) (n int, err error) {
	for cookie := uint64(0); ; {
		r, err := d.client.ReadDir(context.Background(), d.cred, d.ino, cookie, listPage, false)
		if err != nil {
			return n, err
		}
		for _, e := range r.Entries {
			n++
			cookie = e.Cookie
			if each != nil {
				each(string(e.Name), e.Ino)
			}
		}
		if r.End || len(r.Entries) == 0 {
			return n, nil
		}
	}
}

// close leaves a directory that has something in it.
func (d *clientDir) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	_ = d.client.Remove(ctx, d.cred, d.parent, []byte(d.name), true)
	return d.client.Close()
}
