package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"varve/internal/fserr"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// secureTimeout bounds beginning, a change of the leader included.
const secureTimeout = 30 * time.Second

func (a *app) clusterSecureCommand() *cobra.Command {
	var password passwordFlags
	var dir, node string
	var status, finish, abort, force bool
	cmd := &cobra.Command{
		Use: "secure", Short: "Give a running cluster that was made without security certificates", Args: noArgs,
		Long: "Give a running cluster that was made without security (--insecure, or by an older version) an authority and certificates. Nothing is stopped:\n" +
			"1. On the host of a metadata server, with its directory:  varve -c NAME cluster secure -r DIR\n" +
			"   It asks for a password. From then on nodes can join, and who has no certificate is served as before.\n" +
			"2. On each other host:  varve -c NAME auth-node; where a metadata server runs, also:  varve -c NAME auth-node --role admin\n" +
			"   Servers and mounts find the certificates within a second. --status (and list-nodes) shows who is still without.\n" +
			"3. varve -c NAME cluster secure --finish: who has no certificate is refused from then on. A node that was off all the time gets one with auth-node later.\n" +
			"--abort, before that, gives it up: all go on without certificates. Who has no administrator's certificate, since the cluster key was lost before others had\n" +
			"it, does so with the directory of a metadata server: --abort -r DIR.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := a.readCluster()
			if err != nil {
				return err
			}
			n := 0
			for _, b := range []bool{status, finish, abort, dir != "" && !abort} {
				if b {
					n++
				}
			}
			switch {
			case n != 1:
				return usagef("say one of: -r DIR (begin), --status, --finish, --abort [-r DIR]")
			case force && !finish:
				return usagef("--force belongs to --finish")
			case status:
				return a.secureStatus(cmd.Context(), d)
			case finish:
				err := a.changeSecurity(cmd, d, &msg.ChangeSecurity{What: msg.ChangeSecurity_CLOSE, Force: force}, "the cluster is secured: who has no certificate is refused from now on")
				if err == nil && secure.IsOpening(d.path) {
					err = secure.Unmark(d.path)
				}
				return err
			case abort && dir != "":
				return a.secureAbort(cmd.Context(), d, dir)
			case abort:
				return a.changeSecurity(cmd, d, &msg.ChangeSecurity{What: msg.ChangeSecurity_ABORT}, aborted)
			}
			return a.secureBegin(cmd.Context(), d, &password, dir, node)
		},
	}
	f := cmd.Flags()
	password.flags(cmd, "the password by which nodes will join")
	f.StringVarP(&dir, "dir", "r", "", "begin, or --abort: directory of a metadata server on this host")
	f.StringVar(&node, "node", "", "name of this node (default: its hostname)")
	f.BoolVar(&status, "status", false, "show who is still without a certificate")
	f.BoolVar(&finish, "finish", false, "refuse who has no certificate from now on; refused while somebody runs without one")
	f.BoolVar(&force, "force", false, "with --finish: shut out who runs without a certificate")
	f.BoolVar(&abort, "abort", false, "give it up, before --finish")
	return cmd
}

// lockRequest keeps other administrators from leaving another request in the directory.
func lockRequest(dir string) (unlock func(), err error) {
	if unlock, err = pki.LockDir(dir, false); errors.Is(err, unix.EWOULDBLOCK) {
		err = refusedf("somebody else is doing this in %s", dir)
	}
	return unlock, err
}

const aborted = "given up: the cluster goes on without security"

// secureAbort gives it up as who may write into the directory of a metadata server.
func (a *app) secureAbort(ctx context.Context, d *clusterDir, dir string) error {
	server, addr, cluster, err := mds.ServerOf(dir)
	if err != nil {
		return err
	}
	if cluster != d.uuid {
		return refusedf("%s is of cluster %s, and %s of %s", dir, cluster, d.path, d.uuid)
	}
	unlock, err := lockRequest(dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := mds.WriteAbortRequest(dir); err != nil {
		return err
	}
	err = d.ask(ctx, uint32(server), addr, msg.ChangeSecurity_ABORT, "given up securing the cluster")
	if derr := mds.DropOpenRequest(dir); err == nil {
		err = derr
	}
	if err != nil {
		return err
	}
	return a.done(aborted)
}

func (a *app) secureBegin(ctx context.Context, d *clusterDir, password *passwordFlags, dir, node string) error {
	server, addr, cluster, err := mds.ServerOf(dir)
	switch {
	case err != nil:
		return err
	case cluster != d.uuid:
		return refusedf("%s is of cluster %s, and %s of %s", dir, cluster, d.path, d.uuid)
	case pki.Secured(d.path) && !secure.IsOpening(d.path):
		return refusedf("cluster %s has security: %s has an authority; a node gets a certificate with auth-node", d.name, d.path)
	}
	if node == "" {
		if node, err = mds.HostNode(); err != nil {
			return usagef("%w", err)
		}
	}
	p, err := password.read(a, "new password of the cluster "+d.name, true)
	if err != nil {
		return err
	}
	if err := pki.CheckPassword(p); err != nil {
		return usagef("%w", err)
	}
	unlock, err := lockRequest(dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := mds.WriteOpenRequest(dir, p, node); err != nil {
		return err
	}
	err = d.ask(ctx, uint32(server), addr, msg.ChangeSecurity_OPEN, "begun to secure the cluster")
	if derr := mds.DropOpenRequest(dir); err == nil {
		err = derr
	}
	if err != nil {
		return err
	}
	print := ""
	if b, err := os.ReadFile(filepath.Join(d.path, pki.BundleFile)); err == nil {
		if cas, err := pki.ParseBundle(b); err == nil && len(cas) > 0 {
			print = pki.Fingerprint(cas[0])
		}
	}
	if a.json {
		return a.printJSON(struct {
			Node        string `json:"node"`
			Fingerprint string `json:"fingerprint,omitempty"`
		}{node, print})
	}
	if print != "" {
		print = "its authority is " + print + "\n"
	}
	_, err = fmt.Fprintf(a.out, "cluster %s is being secured, and serves who has no certificate as before; node %s has its credentials\n%s"+
		"next, on each other host: varve -c %s auth-node; where a metadata server runs, also: varve -c %s auth-node --role admin\n"+
		"then: varve -c %s cluster secure --status, and --finish\n", d.name, node, print, d.name, d.name, d.name)
	return err
}

// ask has a server do what a file in its directory says. It is made the leader for that.
func (d *clusterDir) ask(ctx context.Context, server uint32, addr string, what msg.ChangeSecurity_What, done string) error {
	ctx, cancel := context.WithTimeout(ctx, secureTimeout)
	defer cancel()
	for {
		detail := new(msg.AdminReply)
		code, err := d.askOnce(ctx, addr, wire.ChangeSecurity, &msg.ChangeSecurity{What: what}, nil, detail)
		switch {
		case err == nil && code == fserr.OK:
			return nil
		case err == nil && code != fserr.NotLeader && code != fserr.Unavailable:
			return fmt.Errorf("%s", cmp.Or(strings.TrimSuffix(detail.Detail, ": "+code.Error()), addr+" refused: "+code.Error()))
		case err == nil:
			err = fmt.Errorf("mds%d does not lead: %w", server, code)
			if terr := d.atLeader(ctx, wire.TransferLeader, &msg.TransferLeader{Server: server}, nil); terr != nil {
				err = terr
			}
		}
		select {
		case <-ctx.Done():
			return unreachablef("mds%d at %s has not %s: %w; it can be repeated", server, addr, done, err)
		case <-time.After(pollPause):
		}
	}
}

// secureJSON is what `cluster secure --status --json` prints.
type secureJSON struct {
	Secured bool               `json:"secured"`
	Opening bool               `json:"opening"` // it is being secured, and serves who has no certificate too
	Members []secureMemberJSON `json:"members"`
}

type secureMemberJSON struct {
	Name  string `json:"name"`
	Host  string `json:"host,omitempty"`
	Addr  string `json:"addr,omitempty"` // or the mount point
	State string `json:"state"`          // certificate, plain, away
	Needs string `json:"needs,omitempty"`
}

func (d *clusterDir) secureState(ctx context.Context) (secureJSON, error) {
	r := new(msg.SecureStatusReply)
	if err := d.atLeader(ctx, wire.SecureStatus, &msg.SecureStatus{}, r); err != nil {
		return secureJSON{}, err
	}
	out := secureJSON{Secured: r.Secured, Opening: r.Opening, Members: []secureMemberJSON{}}
	for _, m := range r.Members {
		one := secureMemberJSON{Name: m.Name, Host: m.Host, Addr: m.Addr, State: "certificate", Needs: m.Need}
		if m.Plain {
			one.State = "plain"
		}
		if m.Away {
			one.State = "away"
		}
		out.Members = append(out.Members, one)
	}
	return out, nil
}

func (a *app) secureStatus(ctx context.Context, d *clusterDir) error {
	s, err := d.secureState(ctx)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(s)
	}
	switch {
	case !s.Secured:
		_, err = fmt.Fprintf(a.out, "cluster %s has no security\n", d.name)
		return err
	case !s.Opening:
		_, err = fmt.Fprintf(a.out, "cluster %s is secured\n", d.name)
		return err
	}
	rows := [][]string{{"NAME", "HOST", "ADDRESS", "SPEAKS WITH", "NEEDS"}}
	plain := 0
	for _, m := range s.Members {
		if m.State == "plain" {
			plain++
		}
		rows = append(rows, []string{m.Name, m.Host, m.Addr, m.State, m.Needs})
	}
	if err := a.table(rows); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.out, "cluster %s is being secured; %d of %d run without a certificate\n", d.name, plain, len(s.Members))
	return err
}

// settleOpening removes the mark of a cluster that is secured by now, from a node on which perhaps nothing runs that would. The connection is one with
// certificates.
func (d *clusterDir) settleOpening(ctx context.Context, m *admin) {
	if _, ok := m.conn.Peer(); !ok || !secure.IsOpening(d.path) {
		return
	}
	reply := new(msg.TrustReply)
	if err := m.ask(ctx, wire.Trust, &msg.Trust{}, reply); err == nil && reply.Version > 0 && !reply.Opening {
		_ = secure.Unmark(d.path) // the next command tries again
	}
}
