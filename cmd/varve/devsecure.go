package main

import (
	"crypto/rand"
	"encoding/hex"
	"time"
)

// devValidFor is how long the certificates of a dev cluster are valid: it may rest for long, and then there would be nobody who could renew them.
const devValidFor = 10 * 365 * 24 * time.Hour

// devNode is the node that all servers and mounts of a dev cluster run on.
const devNode = "dev"

// found makes the first metadata server of a dev cluster, and its cluster directory. The cluster is secured, unless --insecure was given: with a password that nobody
// knows, since nothing joins it but from here. An administrator may set another (the cluster directory has a certificate of one).
func (c *devConfig) found() (*clusterDir, error) {
	in := initSpec{path: c.clusterDir(), name: devName, dir: c.path("mds1"), addr: c.MDS[0], replicas: c.Replicas, node: devNode, validFor: devValidFor}
	if !c.insecure {
		secret := make([]byte, 16)
		rand.Read(secret) // never fails
		in.password = []byte(hex.EncodeToString(secret))
	}
	return initCluster(in)
}
