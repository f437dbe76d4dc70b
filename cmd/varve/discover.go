package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"

	"varve/internal/discover"
	"varve/internal/id"

	"github.com/spf13/cobra"
)

// find looks for the metadata servers by all ways (package discover). failed are those that did not answer a moment ago.
func (d *clusterDir) find(ctx context.Context, failed map[string]error) error {
	if _, err := d.network(); err != nil { // read once, before several ask at once
		return err
	}
	r, err := discover.Find(ctx, d.search(failed))
	if err != nil {
		return unreachablef("%w; start a metadata server, or write host:port of one into %s (copy it from another node)", err, d.list())
	}
	d.mds = r.Addrs
	return nil
}

// discoverByName looks for the metadata servers of a cluster of which nothing but the name is known, the last part of its directory's path. Nobody has shown
// that he is of it, and whoever is given a proof that this node knows the password can try passwords against it. So what the network says is good
// only where the authority's fingerprint is known too, which is compared before.
func discoverByName(ctx context.Context, path string, fingerprint bool) ([]string, error) {
	name := filepath.Base(path)
	if !clusterName.MatchString(name) {
		return nil, usagef("cluster name %q: want 1 to 64 of the characters A-Z a-z 0-9 _ -", name)
	}
	r, err := discover.Find(ctx, discover.Options{Name: name, List: filepath.Join(path, bootstrapFile)})
	if err != nil {
		return nil, unreachablef("%w; give a metadata server's address with --mds IP[:PORT]", err)
	}
	if r.Way != discover.ByList && !fingerprint {
		return nil, refusedf("found %s by %s, and nothing shows that this is the cluster %s: who answers there could try passwords against what this node would send; "+
			"give --fingerprint SHA256:..., which make-mds -I has printed, or --mds %s if you know that address", strings.Join(r.Addrs, ", "), r.Way, name, r.Addrs[0])
	}
	return r.Addrs, nil
}

// search is what the cluster is looked for with: who counts is who says in the handshake that he is of it.
func (d *clusterDir) search(failed map[string]error) discover.Options {
	return discover.Options{
		Name: d.name, UUID: d.uuid, List: d.list(), Failed: failed,
		Check: func(ctx context.Context, addr string) error {
			m, err := d.dial(ctx, addr)
			if err != nil {
				return err
			}
			m.close()
			return nil
		},
	}
}

// discoverJSON is what `discover --json` prints.
type discoverJSON struct {
	Cluster string            `json:"cluster"`
	UUID    string            `json:"uuid,omitempty"`
	Found   []string          `json:"found"` // in order of preference
	By      string            `json:"by,omitempty"`
	Ways    []discoverWayJSON `json:"ways"`
}

type discoverWayJSON struct {
	Way     string             `json:"way"`
	TookMS  int64              `json:"took_ms"`
	Servers []discoverAddrJSON `json:"servers"`
	Notes   []string           `json:"notes,omitempty"`
	Error   string             `json:"error,omitempty"`
}

type discoverAddrJSON struct {
	Addr  string `json:"addr"`
	From  string `json:"from"`
	Error string `json:"error,omitempty"`
}

func (a *app) discoverCommand() *cobra.Command {
	return &cobra.Command{
		Use: "discover", Short: "Look for the metadata servers by every way, and say what came of each", Args: noArgs,
		Long: "Look for the metadata servers by every way, in order of preference, and say what came of each:\n" +
			"  bs.list  host:port a line, in the cluster's directory; commands, servers and mounts keep it current\n" +
			"  dns      SRV records of _varve._tcp.NAME, with the search list of the host; or of _varve._tcp in a domain of it, with\n" +
			"           a TXT record cluster=NAME beside them\n" +
			"  mdns     multicast on the links of the host; servers answer if the setting net.mdns is on, and nothing needs it\n" +
			"What is found counts if it says in the handshake that it is of the cluster. A command looks further only where nobody on bs.list answers.\n" +
			"Where there is no directory of the cluster yet, -c NAME is looked for by DNS and multicast, and nobody is asked.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := a.searchOptions()
			if err != nil {
				return err
			}
			o.All = true
			r, err := discover.Find(cmd.Context(), o)
			var none *discover.Error
			if err != nil && !errors.As(err, &none) {
				return err
			}
			if perr := a.printDiscovered(o, r); perr != nil || err == nil {
				return perr
			}
			return &exitError{exitUnreachable, err}
		},
	}
}

// searchOptions are those of the cluster that -c means, which may have no directory here yet.
func (a *app) searchOptions() (discover.Options, error) {
	path, err := clusterPath(a.cluster)
	if err != nil {
		return discover.Options{}, err
	}
	d, err := readClusterName(path)
	switch {
	case err == nil:
		_, err = d.network()
		return d.search(nil), err
	case clusterName.MatchString(a.cluster):
		return discover.Options{Name: a.cluster, List: filepath.Join(path, bootstrapFile)}, nil
	}
	return discover.Options{}, err
}

func (a *app) printDiscovered(o discover.Options, r *discover.Result) error {
	out := discoverJSON{Cluster: o.Name, Found: append([]string{}, r.Addrs...), By: r.Way}
	if !o.UUID.IsZero() {
		out.UUID = o.UUID.String()
	}
	rows := [][]string{{"WAY", "SERVER", "OUTCOME", "FROM"}}
	for i := range r.Tried {
		t := &r.Tried[i]
		w := discoverWayJSON{Way: t.Way, TookMS: t.Took.Milliseconds(), Servers: []discoverAddrJSON{}, Notes: t.Notes}
		if t.Err != nil {
			w.Error = oneLine(t.Err)
			rows = append(rows, []string{t.Way, "-", w.Error, ""})
		}
		for _, f := range t.Found {
			one, outcome := discoverAddrJSON{Addr: f.Addr, From: f.From}, "found"
			if o.Check != nil {
				outcome = "answers"
			}
			if f.Err != nil {
				one.Error = oneLine(f.Err)
				outcome = one.Error
			}
			w.Servers = append(w.Servers, one)
			rows = append(rows, []string{t.Way, f.Addr, outcome, f.From})
		}
		for _, n := range t.Notes {
			rows = append(rows, []string{t.Way, "-", n, ""})
		}
		out.Ways = append(out.Ways, w)
	}
	if a.json {
		return a.printJSON(out)
	}
	return a.table(rows)
}

// elsewhere is what a server or mount that runs has of its cluster's directory: whom to try when nobody that it knows answers, and the list that it
// keeps current.
type elsewhere struct {
	*discover.Source
	list, name string
	log        *slog.Logger
}

// newElsewhere returns that of a cluster whose list is in a file; "": there is none on this host. Close it.
func newElsewhere(name string, uuid id.Cluster, list string, log *slog.Logger) *elsewhere {
	return &elsewhere{discover.NewSource(discover.Options{Name: name, UUID: uuid, List: list}, log), list, name, log}
}

// members takes over where the metadata servers are.
func (e *elsewhere) members(addrs []string) {
	if e.list == "" || len(addrs) == 0 || len(addrs) > discover.MaxServers {
		return
	}
	if changed, err := discover.UpdateList(e.list, e.name, addrs); err != nil {
		e.log.Debug("list of metadata servers not written", "path", e.list, "err", err)
	} else if changed {
		e.log.Info("list of metadata servers written", "path", e.list, "addrs", addrs)
	}
}

// elsewhereOf returns that of the server in a directory, whose identity is in a file there. The cluster's directory is the one that it has noted, else
// that of -c, else the one of its name; each only if it is of this cluster.
func (a *app) elsewhereOf(dir, file string, log *slog.Logger) *elsewhere {
	var who struct {
		Cluster string `json:"cluster"`
		Name    string `json:"name"`
		Dir     string `json:"cluster_dir"`
	}
	b, err := readSmall(filepath.Join(dir, file))
	if err == nil {
		err = json.Unmarshal(b, &who)
	}
	uuid, perr := id.ParseCluster(who.Cluster)
	if err != nil || perr != nil {
		return newElsewhere("", id.Cluster{}, "", log) // the server itself says what is wrong
	}
	for _, arg := range []string{who.Dir, a.cluster, who.Name} {
		path, err := clusterPath(arg)
		if err != nil {
			continue
		}
		if d, err := readClusterName(path); err == nil && d.uuid == uuid {
			return newElsewhere(d.name, uuid, d.list(), log)
		}
	}
	return newElsewhere(who.Name, uuid, "", log)
}
