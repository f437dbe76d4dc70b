package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"varve/internal/fserr"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/mds"

	"github.com/spf13/cobra"
)

// authTimeout bounds joining, pauses after wrong passwords included.
const authTimeout = 2 * time.Minute

// authJSON is what `auth-node --json` prints.
type authJSON struct {
	Cluster string    `json:"cluster"`
	UUID    string    `json:"uuid"`
	Node    string    `json:"node"`
	Role    string    `json:"role"`
	Serial  string    `json:"serial"`
	Until   time.Time `json:"until"`
	New     bool      `json:"new"` // false: there were valid ones
}

func (a *app) authNodeCommand() *cobra.Command {
	var password passwordFlags
	var role, node, fingerprint string
	var metas []string
	var force bool
	cmd := &cobra.Command{
		Use: "auth-node", Short: "Give this node its credentials for a cluster", Args: noArgs,
		Long: "Give this node its credentials for a cluster: it proves to a metadata server that it knows the cluster's password, and gets a certificate, which\n" +
			"its daemons renew. The password is not sent. Credentials that are valid stay; --force gets new ones. With --fingerprint the server has to show the\n" +
			"authority that make-mds -I printed, before anything is made of the password.\n" +
			"Roles: node runs servers and mounts, admin may change the cluster, reader may look at it.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := pki.ParseRole(role)
			if err != nil {
				return usagef("--role: %w", err)
			}
			return a.authNode(cmd.Context(), &password, pki.JoinRequest{Role: r, Node: node, Fingerprint: fingerprint}, metas, force)
		},
	}
	f := cmd.Flags()
	password.flags(cmd, "the cluster's password")
	f.StringVar(&role, "role", "node", "node, admin or reader")
	f.StringVar(&node, "node", "", "name of this node (default: its hostname)")
	f.StringVar(&fingerprint, "fingerprint", "", "SHA256:... of the cluster's authority")
	f.StringSliceVar(&metas, "mds", nil, "IP[:PORT] of metadata servers, if this node has no directory of the cluster yet (default, with --fingerprint: those that DNS and multicast name; see varve discover)")
	f.BoolVar(&force, "force", false, "get new credentials though there are valid ones")
	return cmd
}

func (a *app) authNode(ctx context.Context, password *passwordFlags, r pki.JoinRequest, metas []string, force bool) error {
	path, err := clusterPath(a.cluster)
	if err != nil {
		return err
	}
	if r.Node == "" {
		if r.Node, err = mds.HostNode(); err != nil {
			return usagef("%w", err)
		}
	}
	if err := pki.ValidNode(r.Node); err != nil {
		return usagef("--node: %w", err)
	}
	d, err := readClusterDir(path)
	fresh := errors.Is(err, fs.ErrNotExist) || err != nil && len(metas) > 0
	if fresh && len(metas) == 0 {
		found, ferr := discoverByName(ctx, path, r.Fingerprint != "")
		if ferr != nil {
			return ferr
		}
		metas = found
	}
	switch {
	case err == nil:
		r.Cluster = d.uuid
	case fresh && len(metas) > 0:
		d = &clusterDir{path: path, name: filepath.Base(path)}
	default:
		return err
	}
	if len(metas) > 0 {
		d.mds = nil
	}
	for _, addr := range metas {
		if addr, err = hostPort(addr); err != nil {
			return usagef("--mds: %w", err)
		}
		d.mds = append(d.mds, addr)
	}
	if who, ok := d.valid(ctx, r.Role); ok && !force {
		return a.printAuth(d, who, false)
	}
	if r.Password, err = password.read(a, "password of the cluster "+d.name, false); err != nil {
		return err
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("make the cluster directory: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, authTimeout)
	defer cancel()
	r.Addrs = d.mds
	r.Waiting = func(why string, wait time.Duration) {
		fmt.Fprintf(a.err, "varve: %s; trying again in %v\n", why, wait.Round(time.Second))
	}
	j, err := pki.Join(ctx, r)
	switch {
	case errors.Is(err, pki.ErrUntrusted):
		return &exitError{exitRefused, err}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, pki.ErrSilent):
		return unreachablef("cluster %s: %w; is it running, and one with security (varve -c %s stat)?", d.name, err, d.name)
	case err != nil:
		return err
	}
	unlock, err := pki.LockDir(path, true)
	if err != nil {
		return err
	}
	defer unlock()
	if fresh { // the credentials last: with them, all is there
		d.name, d.uuid = j.Name, j.Identity.Cluster
		if err := d.write(); err != nil {
			return err
		}
	}
	if j.Opening {
		err = secure.MarkOpening(path) // before the credentials, which would be all that counts without
	}
	if err == nil {
		err = j.Write(path)
	}
	if err == nil && !j.Opening {
		err = secure.Unmark(path)
	}
	if err != nil {
		return err
	}
	return a.printAuth(d, j.Identity, true)
}

// valid returns who the node is by credentials that it has and that the cluster takes. A cluster that does not answer does not refuse.
func (d *clusterDir) valid(ctx context.Context, role pki.Role) (pki.Identity, bool) {
	creds, err := pki.LoadCredentials(d.path, role)
	if err != nil {
		return pki.Identity{}, false
	}
	who := creds.Identity()
	if !time.Now().Before(who.NotAfter) || !d.uuid.IsZero() && who.Cluster != d.uuid {
		return who, false
	}
	for _, addr := range d.mds {
		m, err := d.dialAs(ctx, addr, creds)
		if err == nil {
			m.close()
			return who, true
		}
		if errors.Is(err, fserr.WrongCluster) || errors.Is(err, fserr.Denied) || errors.Is(err, pki.ErrUntrusted) { // the last: of a security that was given up
			return who, false
		}
	}
	return who, true
}

func (a *app) printAuth(d *clusterDir, who pki.Identity, fresh bool) error {
	if a.json {
		return a.printJSON(authJSON{d.name, who.Cluster.String(), who.Node, who.Role.String(), who.Serial, who.NotAfter, fresh})
	}
	what := "has"
	if !fresh {
		what = "already has"
	}
	_, err := fmt.Fprintf(a.out, "node %s %s credentials of role %s for cluster %s, valid until %s (%s)\n", who.Node, what, who.Role, d.name,
		who.NotAfter.Local().Format("2006-01-02 15:04"), d.path)
	return err
}
