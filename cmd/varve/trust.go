package main

import (
	"errors"
	"fmt"
	"strings"

	"varve/internal/pki"
	"varve/internal/secure"
	"varve/internal/wire"
)

// filesRoles are the roles of certificates with which there are sessions, for mounts and images, in the order in which they are taken.
var filesRoles = []pki.Role{pki.RoleNode, pki.RoleReader}

// credentials returns those of the first of roles that the cluster directory has, nil if the cluster is insecure. It is read once.
func (d *clusterDir) credentials(roles ...pki.Role) (*pki.Credentials, error) {
	return secure.Load(d.path, false, roles...)
}

// filesCredentials are credentials for sessions, nil if package client is to find those that there are: of a cluster without security, or one that is being
// secured.
func (d *clusterDir) filesCredentials() (*pki.Credentials, error) {
	if secure.IsOpening(d.path) {
		return nil, nil
	}
	return d.credentials(filesRoles...)
}

// network returns what an administrator's connections are made with. Preconditions: one goroutine at a time.
func (d *clusterDir) network() (wire.Network, error) {
	if d.net == nil {
		network, err := secure.FromDir(d.path)
		if err != nil {
			return nil, noAccess(err)
		}
		d.net = network
	}
	return d.net, nil
}

// noAccess makes the want of credentials a refusal.
func noAccess(err error) error {
	if errors.Is(err, pki.ErrNoCredentials) {
		return refusedf("%w", err)
	}
	return err
}

// auth says in a word whether the cluster knows who speaks.
func (d *clusterDir) auth() string {
	switch {
	case secure.IsOpening(d.path):
		return "opening"
	case pki.Secured(d.path):
		return "tls"
	}
	return "none"
}

// where tells other parts of this program, on any host, how to reach the cluster (perf.Options).
func (d *clusterDir) where() string {
	s := fmt.Sprintf("%s@%s", d.uuid, strings.Join(d.mds, ","))
	if pki.Secured(d.path) {
		s += "#" + d.path
	}
	return s
}
