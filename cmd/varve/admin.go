package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"varve/internal/fserr"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// adminTimeout bounds one question to the cluster, dialing included.
const adminTimeout = 10 * time.Second

// admin is a connection to one metadata server for questions of administration.
type admin struct {
	dir  *clusterDir
	addr string
	conn *wire.Conn
}

// dial connects to any server.
func (d *clusterDir) dial(ctx context.Context, addr string) (*admin, error) {
	network, err := d.network()
	if err != nil {
		return nil, err
	}
	return d.dialOn(ctx, addr, network, nil)
}

// dialMeta connects to a metadata server, which shows that it is one if d.prove was called.
func (d *clusterDir) dialMeta(ctx context.Context, addr string) (*admin, error) {
	network, err := d.network()
	if err != nil {
		return nil, err
	}
	return d.dialOn(ctx, addr, network, d.meta)
}

// prove has metadata servers show from now on that they are such, if the cluster is secured: they are to be told what is not for every node. In a cluster that is
// being secured strict has nobody be spoken to but by certificates.
func (d *clusterDir) prove(strict bool) error {
	network, err := d.network()
	if err != nil {
		return err
	}
	n, ok := network.(*secure.Network)
	if !ok || d.meta != nil || n.Credentials() == nil || n.Opening() != nil && !strict {
		return nil
	}
	if n.Opening() != nil {
		d.net = secure.New(secure.Options{Credentials: n.Credentials()})
	}
	d.meta, err = pki.OpenTrust(n.Credentials().Apart())
	return err
}

// dialAs connects with other credentials than an administrator's.
func (d *clusterDir) dialAs(ctx context.Context, addr string, creds *pki.Credentials) (*admin, error) {
	return d.dialOn(ctx, addr, secure.Of(secure.Options{Credentials: creds}), nil)
}

func (d *clusterDir) dialOn(ctx context.Context, addr string, network wire.Network, meta *pki.Trust) (*admin, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout/2)
	defer cancel()
	hello := &msg.Hello{Cluster: d.uuid[:], Role: msg.Hello_ADMIN, Version: version}
	conn, _, err := wire.DialMeta(ctx, addr, hello, nil, meta, wire.Options{Class: wire.ClassMeta, Network: network})
	if errors.Is(err, fserr.WrongCluster) && !pki.Secured(d.path) { // else it says what it is that was refused
		return nil, fmt.Errorf("%s belongs to another cluster than %s says; correct its %s", addr, d.path, bootstrapFile)
	}
	if err != nil {
		return nil, err
	}
	m := &admin{dir: d, addr: addr, conn: conn}
	d.settleOpening(ctx, m)
	return m, nil
}

func (m *admin) close() { _ = m.conn.Close() }

// ask asks once. An outcome other than OK is an error.
func (m *admin) ask(ctx context.Context, t wire.Type, req, reply wire.Message) error {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	code, err := m.conn.CallMessage(ctx, t, wire.ClassMeta, req, reply)
	if err == nil {
		err = code.Err()
	}
	if err != nil {
		return fmt.Errorf("ask %s: %w", m.addr, err)
	}
	return nil
}

// dialAny connects to the first metadata server that answers, and refreshes bs.list. If none does that is known, the cluster is looked for.
func (d *clusterDir) dialAny(ctx context.Context) (*admin, error) {
	if _, err := d.network(); err != nil {
		return nil, err
	}
	failed := map[string]error{}
	if m := d.dialKnown(ctx, failed); m != nil {
		return m, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	known := d.mds
	if err := d.find(ctx, failed); err != nil {
		return nil, fmt.Errorf("cluster %s: none of its %d metadata servers answers (%s): %w", d.name, len(known), strings.Join(known, ", "), err)
	}
	if m := d.dialKnown(ctx, failed); m != nil {
		return m, nil
	}
	return nil, unreachablef("cluster %s: %s answered a moment ago and does not now; see varve -c %s discover", d.name, strings.Join(d.mds, ", "), d.name)
}

// dialKnown connects to the first of those that are known. It notes why the others do not count.
func (d *clusterDir) dialKnown(ctx context.Context, failed map[string]error) *admin {
	for _, addr := range d.mds {
		m, err := d.dialMeta(ctx, addr)
		if err != nil {
			failed[addr] = err
			continue
		}
		members := new(msg.MembersReply)
		if err := m.ask(ctx, wire.Members, &msg.Members{}, members); err != nil {
			m.close()
			failed[addr] = err
			continue
		}
		if members.Leader != "" { // one that knows of no leader may be one that was removed
			d.refresh(members.Addrs)
		}
		return m
	}
	return nil
}

// status asks for the cluster's status: the leader if there is one, else whoever answers.
func (d *clusterDir) status(ctx context.Context) (*msg.StatusReply, error) {
	m, err := d.dialAny(ctx)
	if err != nil {
		return nil, err
	}
	defer m.close()
	st := new(msg.StatusReply)
	if err := m.ask(ctx, wire.Status, &msg.Status{}, st); err != nil {
		return nil, err
	}
	if st.Leader == "" || st.Leader == m.addr {
		return st, nil
	}
	l, err := d.dialMeta(ctx, st.Leader)
	if err != nil {
		return st, nil // what the follower knows is better than nothing
	}
	defer l.close()
	better := new(msg.StatusReply)
	if err := l.ask(ctx, wire.Status, &msg.Status{}, better); err != nil {
		return st, nil
	}
	return better, nil
}

// leaderPatience is how long a question waits for an election to end.
const leaderPatience = 3 * time.Second

// leaderStatus is status from a leader, if there is one within a short time; else what others know.
func (d *clusterDir) leaderStatus(ctx context.Context) (*msg.StatusReply, error) {
	for end := time.Now().Add(leaderPatience); ; {
		st, err := d.status(ctx)
		if err != nil || serves(st) || time.Now().After(end) || ctx.Err() != nil {
			return st, err
		}
		time.Sleep(pollPause)
	}
}

// serves reports whether the leader itself has answered.
func serves(st *msg.StatusReply) bool {
	for _, m := range st.Metas {
		if m.Server == st.Answering {
			return m.State == "leader"
		}
	}
	return false
}
