package main

import (
	"context"
	"log/slog"
	"strings"

	"varve/internal/client"
	"varve/internal/pki"

	"github.com/spf13/pflag"
)

// imageNot are the options of a mount that mean nothing to a server of block devices, or would break what it promises.
var imageNot = map[string]string{
	"transport": "there is no kernel between",
	"writeback": "a guest that goes on after this server was killed would not learn that writes are gone",
	"bg":        "what starts this server starts it again",
	"guard":     "there is no mount point",
}

// imageFlag is -o of servers of block devices.
func imageFlag(f *pflag.FlagSet, to *[]string) {
	f.StringArrayVarP(to, "options", "o", nil, "as for mount: net=IP|INTERFACE (by which of this host's addresses or interfaces the cluster is reached), data-tls=on|off (on: data is encrypted on the way, whatever the setting net.data.tls says), classify=auto|on|off (instead of the setting net.classify, on this host), local=on|off, relay=auto|on|off, readahead=MB, cache=DIR,cachesize=MB (a read cache on a fast disk of this host, for this server alone), errors=wait[:SECONDS]|fail[:SECONDS] (what requests do when the cluster does not answer: wait, for ever by default, or fail), retry=SECONDS (how long the cluster is looked for; 10), ro")
}

// parseImageOptions reads the arguments of -o of a server of block devices.
func parseImageOptions(args []string) (mountOptions, error) {
	for _, word := range splitOptions(args) {
		name, _, _ := strings.Cut(word, "=")
		why, not := imageNot[name]
		if !not && mountFlags[name] != 0 {
			why, not = "it is for filesystems", true
		}
		if not {
			return mountOptions{}, usagef("option %q is for mounts: %s", word, why)
		}
	}
	return parseMountOptions(args)
}

// imageClient is the session of a server of block devices, and what belongs to it.
type imageClient struct {
	*client.Client
	seat     *seat
	cache    *mountCache
	readOnly bool
}

// dialImages opens a session for serving images; where is said to people who ask who holds them.
func (a *app) dialImages(ctx context.Context, where string, spec mountOptions, log *slog.Logger) (_ *imageClient, err error) {
	slackenGC(heapSlack)
	d, err := a.readCluster()
	if err != nil {
		return nil, err
	}
	creds, err := d.filesCredentials()
	if err != nil {
		return nil, noAccess(err)
	}
	if spec.retry == 0 {
		spec.retry = retryFor
	}
	bonds, tcp := watchBonds(log) // until the process ends
	network, err := dialFrom(spec.net, tcp)
	if err != nil {
		return nil, err
	}
	i := &imageClient{seat: newSeat(spec.classify, log), readOnly: spec.readOnly || creds != nil && creds.Identity().Role == pki.RoleReader}
	i.seat.joinClient(where, spec.net, d.mds)
	i.cache = openCache(&mountSpec{mountOptions: spec}, d.uuid, log)
	defer func() {
		if err != nil {
			i.leave()
		}
	}()
	e := newElsewhere(d.name, d.uuid, d.list(), log)
	i.Client, err = client.Dial(ctx, client.Options{
		Cluster: d.uuid, Name: d.name, Addrs: d.mds, Credentials: creds, ClusterDir: d.path, Mount: where, Network: network, Bonds: bonds, Version: version, Logger: log,
		StartTimeout: spec.retry, Members: e.members, More: e.More, Told: i.seat.told, DataTLS: spec.dataTLS, NoLocal: spec.noLocal, Relay: spec.relay, Estates: estatesDir(),
		ReadAhead: spec.readAhead, Timeout: spec.wait, FailFast: spec.failFast, ReadCache: i.cache.cache(),
	})
	if err != nil {
		return nil, unreached(d, err)
	}
	return i, nil
}

func (i *imageClient) leave() {
	i.cache.close()
	i.seat.leave()
}

// close ends the session.
func (i *imageClient) close() {
	if err := i.Close(); err != nil {
		slog.Warn("session not closed in order; the cluster ends it when its lease is over", "err", err)
	}
	i.leave()
}
