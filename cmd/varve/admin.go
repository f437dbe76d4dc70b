package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"varve/internal/fserr"
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

func (d *clusterDir) dial(ctx context.Context, addr string) (*admin, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout/2)
	defer cancel()
	hello := &msg.Hello{Cluster: d.uuid[:], Role: msg.Hello_ADMIN, Version: version}
	conn, _, err := wire.Dial(ctx, addr, hello, nil, wire.Options{})
	if errors.Is(err, fserr.WrongCluster) {
		return nil, fmt.Errorf("%s belongs to another cluster than %s says; correct its %s", addr, d.path, bootstrapFile)
	}
	if err != nil {
		return nil, err
	}
	return &admin{dir: d, addr: addr, conn: conn}, nil
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

// dialAny connects to the first metadata server that answers, and refreshes bs.list.
func (d *clusterDir) dialAny(ctx context.Context) (*admin, error) {
	var last error
	for _, addr := range d.mds {
		m, err := d.dial(ctx, addr)
		if err != nil {
			last = err
			continue
		}
		members := new(msg.MembersReply)
		if err := m.ask(ctx, wire.Members, &msg.Members{}, members); err != nil {
			m.close()
			last = err
			continue
		}
		d.refresh(members.Addrs)
		return m, nil
	}
	return nil, unreachablef("cluster %s: none of its %d metadata servers answers (%s); start them, or, if others have taken their place, "+
		"correct %s (copy it from another node): %w", d.name, len(d.mds), strings.Join(d.mds, ", "), d.path+"/"+bootstrapFile, last)
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
	l, err := d.dial(ctx, st.Leader)
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
