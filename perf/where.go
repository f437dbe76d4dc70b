package perf

import (
	"errors"
	"fmt"
	"strings"

	"varve/internal/client"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/wire"
)

// where is what Options.Cluster says.
type where struct {
	cluster id.Cluster
	addrs   []string
	dir     string // the cluster directory on this host; "": the cluster is insecure
}

func parseWhere(s string) (w where, err error) {
	s, w.dir, _ = strings.Cut(s, "#")
	uuid, addrs, ok := strings.Cut(s, "@")
	if w.cluster, err = id.ParseCluster(uuid); err != nil || !ok || addrs == "" {
		return w, fmt.Errorf("cluster %q: want UUID@ADDR[,ADDR...][#DIR]: %w", s, errors.Join(err, fserr.Invalid))
	}
	w.addrs = strings.Split(addrs, ",")
	return w, nil
}

// secure gives a client the credentials of the cluster directory.
func (w where) secure(o *client.Options) (err error) {
	if secure.IsOpening(w.dir) {
		o.ClusterDir = w.dir
		return nil
	}
	o.Credentials, err = secure.Load(w.dir, false, pki.RoleNode, pki.RoleReader)
	return err
}

// network returns what an administrator's connections are made with.
func (w where) network() (wire.Network, error) {
	return secure.FromDir(w.dir)
}
