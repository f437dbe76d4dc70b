package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"

	"github.com/spf13/cobra"
)

// leaderTimeout bounds how long a change of the cluster waits for a leader to do it.
const leaderTimeout = 20 * time.Second

// adminReply is an answer that may say in words why it is a refusal.
type adminReply interface {
	wire.Message
	GetDetail() string
	GetLeader() string
}

// atLeader has the leader do something, whoever that is, and asks again when leadership moves meanwhile: what is asked for may be done twice.
// into, if not nil, takes an answer of OK. A refusal for safety (Busy) gets its exit code.
func (d *clusterDir) atLeader(ctx context.Context, t wire.Type, req, into wire.Message) error {
	if err := d.prove(false); err != nil {
		return err
	}
	whole := ctx
	ctx, cancel := context.WithTimeout(ctx, leaderTimeout)
	defer cancel()
	var tried []string
	var last error
	for hint := ""; ; {
		queue := slices.Clone(d.mds)
		if hint != "" {
			queue = slices.Insert(queue, 0, hint)
		}
		hint = ""
		refused := 0
		for _, addr := range queue {
			if !slices.Contains(tried, addr) {
				tried = append(tried, addr)
			}
			detail := new(msg.AdminReply)
			code, err := d.askOnce(ctx, addr, t, req, into, detail)
			switch {
			case err != nil:
				if last = err; errors.Is(err, fserr.WrongCluster) {
					refused++
				}
				continue
			case code == fserr.OK:
				return nil
			case code == fserr.NotLeader || code == fserr.Unavailable:
				last = fmt.Errorf("%s: %s: %w", addr, detail.Detail, code)
				if detail.Leader != "" && detail.Leader != addr {
					hint = detail.Leader
				}
				continue
			}
			text := detail.Detail
			if text = strings.TrimSuffix(text, ": "+code.Error()); text == "" {
				text = addr + " refused: " + code.Error()
			}
			switch code {
			case fserr.Busy:
				return refusedf("%s", text)
			case fserr.Invalid:
				return usagef("%s", text)
			}
			return &exitError{exitFailed, errors.New(text)}
		}
		if refused == len(queue) && refused > 0 { // that does not change by waiting
			return unreachablef("cluster %s: %w; get another certificate with varve -c %s auth-node --force [--role ROLE]", d.name, last, d.name)
		}
		select {
		case <-ctx.Done():
			if whole.Err() != nil {
				return &exitError{exitFailed, fmt.Errorf("interrupted; whether it was done shows varve -c %s stat", d.name)}
			}
			return unreachablef("cluster %s: no leader did it within %v; asked %s; last: %w; see varve -c %s stat",
				d.name, leaderTimeout, strings.Join(tried, ", "), last, d.name)
		case <-time.After(pollPause):
		}
		d.learn(ctx)
	}
}

// learn takes over the members that some server names.
func (d *clusterDir) learn(ctx context.Context) {
	if m, err := d.dialAny(ctx); err == nil {
		m.close()
	}
}

// askOnce asks one server. An outcome other than OK comes with detail.
func (d *clusterDir) askOnce(ctx context.Context, addr string, t wire.Type, req, into wire.Message, detail adminReply) (fserr.Code, error) {
	m, err := d.dialMeta(ctx, addr)
	if err != nil {
		return 0, err
	}
	defer m.close()
	actx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	body, err := req.MarshalVT()
	if err != nil {
		return 0, err
	}
	f, err := m.conn.Call(actx, &wire.Frame{Type: t, Class: wire.ClassMeta, Body: body})
	if err != nil {
		return 0, err
	}
	defer f.Release()
	if f.Code != fserr.OK {
		_ = detail.UnmarshalVT(f.Body) // a refusal without words is one too
		return f.Code, nil
	}
	if into == nil {
		return fserr.OK, nil
	}
	return fserr.OK, into.UnmarshalVT(f.Body)
}

// parseMeta reads the id of a metadata server: 3 or mds3.
func parseMeta(s string) (id.MetaID, error) {
	if m, err := id.ParseMetaID(s); err == nil && m != 0 {
		return m, nil
	}
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil || n == 0 {
		return 0, usagef("%q is no metadata server: want its number, such as 3 or mds3; varve stat lists them", s)
	}
	return id.MetaID(n), nil
}

func (a *app) rmMDSCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm-mds ID", Short: "Remove a metadata server from the cluster; its id is retired for good", Args: exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := parseMeta(args[0])
			if err != nil {
				return err
			}
			d, err := a.readCluster()
			if err != nil {
				return err
			}
			if err := d.atLeader(cmd.Context(), wire.RemoveMeta, &msg.RemoveMeta{Server: uint32(m)}, nil); err != nil {
				return err
			}
			d.learn(cmd.Context())
			if a.json {
				return a.printJSON(struct {
					Removed string   `json:"removed"`
					MDS     []string `json:"mds"`
				}{m.String(), d.mds})
			}
			_, err = fmt.Fprintf(a.out, "%s is no member of cluster %s any more and stops by itself; its directory can be removed\n", m, d.name)
			return err
		},
	}
}
