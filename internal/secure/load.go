package secure

import (
	"fmt"
	"log/slog"

	"varve/internal/id"
	"varve/internal/pki"
	"varve/internal/wire"
)

// Load returns the credentials of the first of roles that a cluster directory has (default: node), or nil if the cluster has no authority: it was made with
// --insecure, or by an older version. Where must is set, since the caller has had credentials before, that is an error: nobody gets out of security by
// removing a file.
func Load(dir string, must bool, roles ...pki.Role) (*pki.Credentials, error) {
	if dir == "" && !must {
		return nil, nil
	}
	if dir == "" {
		return nil, fmt.Errorf("the cluster is secured, and nothing says where this node's cluster directory is; name it with -c: %w", pki.ErrNoCredentials)
	}
	if !pki.Secured(dir) {
		if must {
			return nil, fmt.Errorf("the cluster is secured, and %s has no %s; get it, and this node's certificate, with: varve -c %s auth-node: %w",
				dir, pki.BundleFile, dir, pki.ErrNoCredentials)
		}
		return nil, nil
	}
	return pki.LoadCredentials(dir, roles...)
}

// Of returns the network of who has credentials: o.Under itself without them, and if it is a Network already.
func Of(o Options) wire.Network {
	if o.Under == nil {
		o.Under = wire.TCP{}
	}
	if _, is := o.Under.(*Network); is || o.Credentials == nil && o.Opening == nil {
		return o.Under
	}
	return New(o)
}

// CheckCluster refuses credentials of another cluster.
func CheckCluster(c *pki.Credentials, cluster id.Cluster) error {
	if c == nil {
		return nil
	}
	if got := c.Identity().Cluster; got != cluster {
		return fmt.Errorf("the certificate of this node (%s) is of cluster %s, want %s", c.Dir(), got, cluster)
	}
	return nil
}

// FromDir returns the network of who may do most with what a cluster directory has.
func FromDir(dir string) (wire.Network, error) {
	roles := []pki.Role{pki.RoleAdmin, pki.RoleNode, pki.RoleReader}
	if IsOpening(dir) {
		o := NewOpening(dir, id.Cluster{}, slog.New(slog.DiscardHandler), roles...)
		o.Look()
		return New(Options{Opening: o}), nil
	}
	creds, err := Load(dir, false, roles...)
	return Of(Options{Credentials: creds}), err
}
