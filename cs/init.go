package cs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"varve/cs/store"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/planes"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// Init makes a directory into that of a new chunk server and registers it with the leader, which gives it its id. It refuses a
// directory that holds anything else. An Init that failed or was interrupted may be repeated. Errors wrap fserr codes:
// Exist if the directory is that of a server already, WrongCluster, Unavailable if no leader was found before ctx ended.
func Init(ctx context.Context, o Options) (id.ServerID, error) {
	o, err := o.withDefaults()
	if o.Addr == "" {
		err = errors.Join(err, errors.New("chunk server: no address given"))
	}
	if (o.Journal == "") != (o.JournalBytes == 0) || o.LostJournal || o.Journal == NoJournal {
		err = errors.Join(err, errors.New("chunk server: a write journal needs a directory and a size"))
	}
	if _, merr := ownMemory(o.Memory, o.JournalBytes); merr != nil {
		err = errors.Join(err, merr)
	}
	if len(o.Metas) == 0 {
		err = errors.Join(err, errors.New("chunk server: no metadata servers given"))
	}
	if err != nil {
		return 0, err
	}
	if err := o.FS.MkdirAll(o.Dir); err != nil {
		return 0, err
	}
	unlock, err := o.FS.Lock(filepath.Join(o.Dir, "lock"))
	if err != nil {
		return 0, err
	}
	defer unlock()
	// The plane of heartbeats is not used yet: what is known of the metadata servers may be their addresses for clients.
	bound := o
	if _, err := (&identity{Addr: o.Addr}).takeNet(&bound); err != nil {
		return 0, fmt.Errorf("chunk server: %w", err)
	}
	if err := o.load(o.ClusterDir, false, o.Cluster); err != nil {
		return 0, err
	}
	d, err := o.prepare(ctx)
	if err != nil {
		return 0, err
	}
	so := d.storeOptions(o)
	so.Existing = false
	if err := store.Init(so); err != nil {
		return 0, fmt.Errorf("make the store in %s: %w", o.Dir, err)
	}
	if err := d.makeJournal(o); err != nil {
		return 0, err
	}
	total, free, err := space(o)
	if err != nil {
		return 0, err
	}
	if _, err := d.secure(&o); err != nil {
		return 0, err
	}
	f := finder{cluster: d.cluster(), version: o.Version, network: o.Network, logger: o.Logger}
	f.learn(d.Metas)
	at, err := d.planes()
	if err != nil {
		return 0, err
	}
	reg := d.register(string(book(at.Addr(planes.Client), at.Addr(planes.Replication), at.Addr(planes.Repair))))
	reg.Total, reg.Free = total, free
	for b := (backoff{}); ; {
		l, err := f.find(ctx, nil, reg)
		if err == nil {
			f.askMembers(ctx, l.conn)
			l.conn.Close()
			d.Server, d.Metas = id.ServerID(l.reply.Server), f.known()
			return d.Server, d.write(o.FS, o.Dir)
		}
		if errors.Is(err, fserr.Retired) || errors.Is(err, fserr.WrongCluster) || !b.wait(ctx) {
			return 0, fmt.Errorf("register with the metadata servers: %w", err)
		}
	}
}

// prepare returns the identity that an interrupted Init left in the directory, or puts a new one there.
func (o Options) prepare(ctx context.Context) (identity, error) {
	d, err := readIdentity(o.FS, o.Dir)
	switch {
	case err == nil && !o.Cluster.IsZero() && d.cluster() != o.Cluster:
		return d, fmt.Errorf("%s belongs to cluster %s (%s): %w", o.Dir, d.Name, d.Cluster, fserr.WrongCluster)
	case err == nil && d.Server != 0:
		return d, fmt.Errorf("%s is the directory of %v of cluster %s already: %w", o.Dir, d.Server, d.Name, fserr.Exist)
	case err == nil:
		d.Addr, d.Net, d.Host, d.Rack, d.Tier, d.Memory, d.Metas = o.Addr, recorded(o.Net), o.Host, o.Rack, o.Tier, o.Memory, o.Metas
		return d, d.write(o.FS, o.Dir)
	case !errors.Is(err, fs.ErrNotExist):
		return d, err
	}
	if name, err := foreign(o.FS, o.Dir); err != nil {
		return d, err
	} else if name != "" {
		return d, fmt.Errorf("%s holds other data (%s): give an empty directory: %w", o.Dir, name, fserr.NotEmpty)
	}
	cluster, name, err := o.identify(ctx)
	if err != nil {
		return d, err
	}
	uuid := make([]byte, 16)
	rand.Read(uuid)
	d = identity{
		Version: identityVersion, Cluster: cluster.String(), Name: name, UUID: hex.EncodeToString(uuid),
		Addr: o.Addr, Net: recorded(o.Net), Host: o.Host, Rack: o.Rack, Tier: o.Tier, Memory: o.Memory, Metas: o.Metas,
	}
	return d, d.write(o.FS, o.Dir)
}

// identify asks the metadata servers what cluster they are and compares with what is expected.
func (o Options) identify(ctx context.Context) (id.Cluster, string, error) {
	hello := &msg.Hello{Role: msg.Hello_ADMIN, Version: o.Version}
	if creds := o.creds(); creds != nil { // then they answer only who knows them
		cluster := creds.Identity().Cluster
		hello.Cluster = cluster[:]
	}
	var faults []error
	for _, addr := range o.Metas {
		dctx, cancel := context.WithTimeout(ctx, dialTimeout)
		c, reply, err := wire.Dial(dctx, addr, hello, nil, wire.Options{Class: wire.ClassMeta, Network: o.Network})
		cancel()
		if err != nil {
			faults = append(faults, err)
			continue
		}
		c.Close()
		if len(reply.Cluster) != len(id.Cluster{}) {
			faults = append(faults, fmt.Errorf("%s answers with a cluster of %d bytes: %w", addr, len(reply.Cluster), fserr.Protocol))
			continue
		}
		cluster := id.Cluster(reply.Cluster)
		if !o.Cluster.IsZero() && cluster != o.Cluster || o.Name != "" && reply.Name != o.Name {
			return cluster, "", fmt.Errorf("%s is of cluster %s (%v), want %s (%v): %w", addr, reply.Name, cluster, o.Name, o.Cluster, fserr.WrongCluster)
		}
		return cluster, reply.Name, nil
	}
	return id.Cluster{}, "", fmt.Errorf("ask the metadata servers what cluster this is: %w: %w", fserr.Unavailable, errors.Join(faults...))
}

func space(o Options) (total, free uint64, err error) {
	s, err := o.FS.Space(o.Dir)
	return s.Total, s.Free, err
}

// recorded is how an identity has planes that were checked.
func recorded(net string) string {
	spec, _ := planes.Parse(net)
	return spec.String()
}

// book is the addresses of a chunk server as others are told.
func book(client, replication, repair string) planes.Book {
	return planes.NewBook(client, map[planes.Plane]string{planes.Replication: replication, planes.Repair: repair})
}

// register returns the registration of the server at an address.
func (d identity) register(addr string) *msg.RegisterServer {
	return &msg.RegisterServer{
		Server: uint32(d.Server), Addr: addr, Host: d.Host, Tier: d.Tier, Uuid: d.uuid(), Rack: d.Rack,
	}
}

// backoff is the pause between attempts to find the leader: it doubles from minBackoff to maxBackoff.
type backoff struct{ next time.Duration }

const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = time.Second
)

// wait returns false if ctx ended first.
func (b *backoff) wait(ctx context.Context) bool {
	b.next = min(max(2*b.next, minBackoff), maxBackoff)
	t := time.NewTimer(b.next)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
