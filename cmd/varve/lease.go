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
	"varve/internal/ledger"
	"varve/internal/wire"
	"varve/internal/wire/msg"

	"github.com/spf13/cobra"
)

const (
	// statPatience is how long a path may take to answer before its mount is taken for dead.
	statPatience = 3 * time.Second
	// maxTakeWait is how long holders may be given to answer.
	maxTakeWait = time.Minute
)

// leaseJSON is one holder of one file, as `lease show --json` prints it.
type leaseJSON struct {
	Ino       uint64 `json:"ino"`
	Path      string `json:"path,omitempty"` // from the cluster's root; none if the file has been removed
	Session   uint64 `json:"session"`
	Host      string `json:"host"`
	Mount     string `json:"mount"`
	Want      string `json:"want"` // read or write
	Mode      string `json:"mode"` // shared-read, exclusive-write or shared-write
	Lease     uint64 `json:"lease"`
	RenewedMS int64  `json:"renewed_ms"` // -1: not since the leader began
	Connected bool   `json:"connected"`
}

// takeJSON is what `lease take --json` prints.
type takeJSON struct {
	Ino      uint64      `json:"ino"`
	Released []uint64    `json:"released"` // sessions that gave it up
	Fenced   []uint64    `json:"fenced"`
	Refused  []leaseJSON `json:"refused"` // who has it open, or does not answer
}

func (a *app) leaseCommand() *cobra.Command {
	return groupCommand("lease", "See who holds which file, and take files from their holders", a.leaseShowCommand(), a.leaseTakeCommand())
}

const leasePath = `PATH is a path on a varve mount; with -c NAME also a path from the cluster's root, or an inode number.`

func (a *app) leaseShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show [PATH]", Short: "List who holds which file for reading or writing",
		Long: "Lists the sessions that hold PATH, or all that hold anything. A session may hold a file that is not open any more\nuntil somebody else wants it.\n\n" + leasePath,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return exactArgs("PATH")(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var d *clusterDir
			var ino id.Ino
			var err error
			if len(args) > 0 {
				d, ino, err = a.findFile(cmd.Context(), args[0])
			} else {
				d, err = a.readCluster()
			}
			if err != nil {
				return err
			}
			reply, err := d.leases(cmd.Context(), ino)
			if err != nil {
				return err
			}
			return a.printLeases(reply, ino)
		},
	}
}

func (d *clusterDir) leases(ctx context.Context, ino id.Ino) (*msg.LeaseShowReply, error) {
	reply := new(msg.LeaseShowReply)
	err := d.askLeader(ctx, 3*adminTimeout, wire.LeaseShow, &msg.LeaseShow{Ino: uint64(ino)}, reply)
	if errors.Is(err, fserr.NotExist) {
		return nil, fmt.Errorf("cluster %s has no inode %d: %w", d.name, ino, err)
	}
	return reply, err
}

func newLeaseJSON(h *msg.LeaseHolder) leaseJSON {
	return leaseJSON{
		Ino: h.Ino, Path: string(h.Path), Session: h.Session, Host: h.Host, Mount: h.Mount, Want: wantText(h.Want), Mode: modeText(h.Mode),
		Lease: h.Lease, RenewedMS: h.RenewedMs, Connected: h.Connected,
	}
}

func wantText(w msg.Want) string { return strings.ToLower(strings.TrimPrefix(w.String(), "WANT_")) }

func modeText(m msg.Mode) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(m.String(), "MODE_")), "_", "-")
}

func (a *app) printLeases(reply *msg.LeaseShowReply, ino id.Ino) error {
	list := make([]leaseJSON, 0, len(reply.Holders))
	for _, h := range reply.Holders {
		list = append(list, newLeaseJSON(h))
	}
	if a.json {
		return a.printJSON(map[string]any{"holders": list, "more": reply.More})
	}
	if len(list) == 0 {
		if ino != 0 {
			fmt.Fprintf(a.out, "nobody holds inode %d\n", ino)
		} else {
			fmt.Fprintln(a.out, "nobody holds a file")
		}
		return nil
	}
	rows := [][]string{{"INODE", "PATH", "SESSION", "FOR", "MODE", "RENEWED", "CONNECTED", "HOST", "MOUNT"}}
	for _, h := range list {
		path, renewed, connected := h.Path, "not yet", "no"
		if !printable([]byte(path)) {
			path = strconv.Quote(path)
		}
		if path == "" {
			path = "-"
		}
		if h.RenewedMS >= 0 {
			renewed = a.age(time.Duration(h.RenewedMS) * time.Millisecond)
		}
		if h.Connected {
			connected = "yes"
		}
		rows = append(rows, []string{strconv.FormatUint(h.Ino, 10), path, strconv.FormatUint(h.Session, 10), h.Want, h.Mode, renewed, connected, h.Host, h.Mount})
	}
	if err := a.table(rows); err != nil {
		return err
	}
	if reply.More {
		fmt.Fprintf(a.out, "and more than these %d; name a PATH\n", len(list))
	}
	return nil
}

func (a *app) leaseTakeCommand() *cobra.Command {
	var force bool
	var reason string
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "take PATH [--force] [--reason TEXT] [--wait 10s]", Short: "Have every holder give a file up",
		Long: `Has every session that holds PATH write back what it has and give the file up, if nothing has it open there. Where it
is open, or the client does not answer, the command is refused (exit code 4) and names host and mount.

With --force such clients are fenced: all their files fail there with an error, what they have not flushed is lost, and no
chunk server takes anything from them any more before anybody else is given the file. Those whose process has died on this
host are, with and without it, and need not be waited for.

` + leasePath + " A path on a mount whose host or process\nstands still does not answer: give one of the other two.",
		Args: exactArgs("PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if wait <= 0 || wait > maxTakeWait {
				return usagef("--wait %v: want more than 0 and at most %v", wait, maxTakeWait)
			}
			d, ino, err := a.findFile(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.takeLease(cmd.Context(), d, args[0], &msg.LeaseTake{
				Ino: uint64(ino), Force: force, WaitMs: uint32(max(wait.Milliseconds(), 1)), Reason: signed(reason)})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&force, "force", false, "fence holders that have it open or do not answer")
	f.StringVar(&reason, "reason", "", "why, for the journal")
	f.DurationVar(&wait, "wait", 10*time.Second, "how long holders may take to answer")
	return cmd
}

func (a *app) takeLease(ctx context.Context, d *clusterDir, path string, req *msg.LeaseTake) error {
	before, err := d.leases(ctx, id.Ino(req.Ino)) // a refusal tells of them
	if err != nil {
		return err
	}
	dead, err := d.endDead(ctx)
	if err != nil {
		fmt.Fprintf(a.err, "varve: sessions of processes that have died on this host may have to be waited for: %v\n", err)
	}
	reply := new(msg.LeaseTakeReply)
	limit := fenceTimeout + time.Duration(req.WaitMs)*time.Millisecond
	err = d.askLeader(ctx, limit, wire.LeaseTake, req, reply)
	switch {
	case errors.Is(err, fserr.Invalid):
		return fmt.Errorf("%s is not a regular file; only files are held: %w", path, err)
	case err != nil:
		return fmt.Errorf("take %s: %w", path, err)
	}
	out := takeJSON{Ino: req.Ino, Released: append([]uint64{}, reply.Released...), Fenced: append([]uint64{}, reply.Fenced...), Refused: []leaseJSON{}}
	for _, h := range before.Holders {
		if slices.Contains(dead, h.Session) && !slices.Contains(out.Fenced, h.Session) {
			out.Fenced = append(out.Fenced, h.Session)
		}
	}
	var who []string
	for _, session := range reply.Refused {
		one := leaseJSON{Ino: req.Ino, Session: session}
		if i := slices.IndexFunc(before.Holders, func(h *msg.LeaseHolder) bool { return h.Session == session }); i >= 0 {
			one = newLeaseJSON(before.Holders[i])
		}
		out.Refused = append(out.Refused, one)
		who = append(who, fmt.Sprintf("host %s, mount %s (session %d, for %s)", one.Host, one.Mount, session, one.Want))
	}
	if a.json {
		if err := a.printJSON(out); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.out, "%s given up, %s fenced\n", count(uint64(len(out.Released)), "lease"), count(uint64(len(out.Fenced)), "session"))
	}
	if len(who) > 0 {
		return refusedf("%s is open, or its client does not answer: %s; close it there, or use --force, which fences that client: "+
			"its files fail and what it has not flushed is lost", path, strings.Join(who, "; "))
	}
	return nil
}

// endDead ends the sessions of processes that have died on this host, and returns them when no chunk server takes anything from them any more.
func (d *clusterDir) endDead(ctx context.Context) (ended []uint64, err error) {
	dead, errs := ledger.Dead(estatesDir(), d.uuid)
	for _, one := range dead {
		reply := new(msg.CloseSessionReply)
		err := d.askLeader(ctx, fenceTimeout, wire.CloseSession, &msg.CloseSession{Secret: one.SecretBytes(), Mounted: one.Mounted}, reply)
		if err != nil {
			one.Release()
			errs = append(errs, fmt.Errorf("process %d, %s: %w", one.PID, one.Mount, err))
			continue
		}
		one.Remove()
		if reply.Session != 0 {
			ended = append(ended, reply.Session)
		}
	}
	return ended, errors.Join(errs...)
}

// findFile finds what the user means: a path on a varve mount or, if -c says which cluster, a path from its root or an inode
// number.
func (a *app) findFile(ctx context.Context, arg string) (*clusterDir, id.Ino, error) {
	if a.cluster == "" {
		at, err := statMounted(arg)
		if err != nil {
			return nil, 0, err
		}
		return at.cluster, at.ino, nil
	}
	d, err := a.readCluster()
	if err != nil {
		return nil, 0, err
	}
	if n, err := strconv.ParseUint(arg, 10, 64); err == nil && n > 0 {
		return d, id.Ino(n), nil
	}
	at, err := statMounted(arg)
	var hangs *hangError
	switch {
	case err == nil && at.cluster.uuid == d.uuid:
		return d, at.ino, nil
	case errors.As(err, &hangs):
		return nil, 0, err
	case !strings.HasPrefix(arg, "/"):
		return nil, 0, usagef("%q is no path on a mount of cluster %s, no path from its root, which begins with /, and no inode number", arg, d.name)
	}
	ino, err := d.walk(ctx, arg)
	return d, ino, err
}

// hangError is a mount that does not answer.
type hangError struct{ path string }

func (e *hangError) Error() string {
	return fmt.Sprintf("%s does not answer within %v, so its mount stands still; give, with -c NAME, the path from the cluster's root or the inode number", e.path, statPatience)
}

// statMounted is findMounted that does not wait for a mount whose process stands still.
func statMounted(path string) (*mounted, error) {
	type result struct {
		at  *mounted
		err error
	}
	ch := make(chan result, 1)
	go func() {
		at, err := findMounted(path)
		ch <- result{at, err}
	}()
	select {
	case r := <-ch:
		return r.at, r.err
	case <-time.After(statPatience):
		return nil, &hangError{path}
	}
}

// walk finds a path from the cluster's root. It does not follow symbolic links.
func (d *clusterDir) walk(ctx context.Context, path string) (id.Ino, error) {
	m, err := d.dialLeader(ctx)
	if err != nil {
		return 0, err
	}
	defer m.close()
	ino := id.Ino(1)
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." {
			continue
		}
		reply, err := m.meta(ctx, &msg.MetaRequest{Cred: &msg.Cred{Checked: true}, Op: &msg.MetaRequest_Lookup{
			Lookup: &msg.Lookup{Parent: uint64(ino), Name: []byte(name)}}})
		if err != nil {
			return 0, fmt.Errorf("%s in cluster %s, at %q: %w", path, d.name, name, err)
		}
		ino = id.Ino(reply.GetAttr().GetIno())
	}
	return ino, nil
}
