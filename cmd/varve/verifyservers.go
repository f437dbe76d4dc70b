package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/journal"
	"varve/mds/state"
)

// serverDigest is what one metadata server says of its own state.
type serverDigest struct {
	addr   string
	index  id.Index
	digest []byte
}

// digests asks every metadata server for its digest. Silent are those that do not answer.
func (o *online) digests(ctx context.Context) (all []serverDigest, silent []string) {
	for _, addr := range o.m.dir.mds {
		d, err := o.m.dir.digestOf(ctx, addr)
		if err != nil {
			silent = append(silent, addr)
			continue
		}
		all = append(all, d)
	}
	return all, silent
}

func (d *clusterDir) digestOf(ctx context.Context, addr string) (serverDigest, error) {
	m, err := d.dial(ctx, addr)
	if err != nil {
		return serverDigest{}, err
	}
	defer m.close()
	r := new(msg.StateDigestReply)
	if err := m.ask(ctx, wire.StateDigest, &msg.StateDigest{Kind: state.DigestSum}, r); err != nil {
		return serverDigest{}, err
	}
	return serverDigest{addr: addr, index: id.Index(r.Index), digest: r.Digest}, nil
}

// reach waits until the server that is read from has the records up to what the others have applied.
func (o *online) reach(ctx context.Context, all []serverDigest) error {
	want := id.Index(0)
	for _, d := range all {
		want = max(want, d.index)
	}
	for end := time.Now().Add(adminTimeout); ; {
		_, last, err := o.Bounds(ctx)
		if err != nil || last >= want {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("the journal of %s ends at index %d, others are at %d; see that it is not cut off, and try again", o.m.addr, last, want)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollPause):
		}
	}
}

// checkServers compares what servers said of their states at the index of s with s, and returns how many there were.
func checkServers(s *state.State, said []serverDigest) (n int, err error) {
	for _, d := range said {
		if d.index != s.Index() {
			continue
		}
		n++
		if got := digestLike(s, d.digest); !bytes.Equal(d.digest, got) {
			return n, fmt.Errorf("metadata server %s: its state at index %d has digest %x, replay gives %x: %w; stop it, and make it anew from another: varve make-mds --rebuild -r DIR",
				d.addr, d.index, d.digest, got, journal.ErrCorrupt)
		}
	}
	return n, nil
}

// rebuildHint adds to err, if it says that files in dir are damaged, what to do about it. Dir is empty for a running cluster.
func rebuildHint(err error, dir string) error {
	if dir == "" || !errors.Is(err, journal.ErrCorrupt) && !errors.Is(err, state.ErrCorrupt) {
		return err
	}
	return fmt.Errorf("%w; if this is a server's own directory, make it anew from another server: varve make-mds --rebuild -r %s", err, shellQuote(dir))
}
