package mds

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"io"
	"net"

	"varve/internal/fserr"
	"varve/internal/pki"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// A certificate says that somebody is a node of the cluster, not that it is one that runs a metadata server: so who speaks as one, to Raft or to say that it has
// moved, shows that it has the cluster key, which only metadata servers have. Who is spoken to shows it as well: the entries of the log, and that a majority has them, are
// not for a node that has taken a server's address. The proof is HMAC-SHA256 with that key of what it is for and of keying material of the TLS connection
// (RFC 9266), on which alone it proves anything.
const (
	proofSize   = sha256.Size
	proofExport = "EXPORTER-varve-metadata-server"
	proofRaft   = "raft"        // of who connected
	proofServes = "raft serves" // of who answers
	proofMove   = "move"
)

// proof makes it. It is empty where there is no key.
func proof(key *pki.ClusterKey, c net.Conn, of string) ([]byte, error) {
	if key == nil {
		return nil, nil
	}
	material, err := wire.ExportOf(c, proofExport)
	if err != nil {
		return nil, err
	}
	return proofBy(key, material, of), nil
}

func proofBy(key *pki.ClusterKey, material []byte, of string) []byte {
	h := hmac.New(sha256.New, key[:])
	h.Write([]byte(of))
	h.Write([]byte{0})
	h.Write(material)
	return h.Sum(nil)
}

// readProof reads what comes first from the other end of a connection of Raft, and verifies it.
func readProof(key *pki.ClusterKey, c net.Conn, of string) error {
	want, err := proof(key, c, of)
	if err != nil || want == nil {
		return err
	}
	got := make([]byte, proofSize)
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !hmac.Equal(got, want) {
		who, _ := wire.PeerOf(c)
		return fmt.Errorf("%v speaks as a metadata server, and does not have the cluster key: %w", who, fserr.Denied)
	}
	return nil
}

// mayReaddress refuses who says that a metadata server has moved, and is neither that nor an administrator.
func (l *leadership) mayReaddress(c *wire.Conn, req *msg.JoinMeta) error {
	key := l.s.keys.key.Load()
	who, ok := c.Peer()
	if key == nil || req.Server == 0 || ok && who.Role == pki.RoleAdmin {
		return nil
	}
	if version, opening := l.s.tellOpening(c); version == 0 || opening && !ok { // who has no certificate is served as in a cluster without security
		return nil
	}
	material, err := c.Export(proofExport)
	if err != nil {
		return err
	}
	if !hmac.Equal(req.Proof, proofBy(key, material, proofMove)) {
		who, _ := c.Peer()
		l.s.log.Warn("request refused: not of a metadata server", "peer", c.RemoteAddr(), "node", who.Node, "server", req.Server)
		return fmt.Errorf("%v says that mds%d has moved, and does not have the cluster key: %w", who, req.Server, fserr.Denied)
	}
	return nil
}
