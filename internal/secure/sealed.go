package secure

import (
	"crypto/tls"
	"log/slog"
	"net"

	"varve/internal/pki"
	"varve/internal/records"
)

// labelRecords is what the keying material of sealed connections is exported by (RFC 8446, 7.5), for these and nothing else.
const labelRecords = "EXPORTER-varve-records"

// dataProtos returns the protocols for data, the one to be had first. What both ends have is chosen in the handshake, which proves that
// nobody on the way has taken something off the list.
func (n *Network) dataProtos(encrypted bool) (protos []string) {
	if !encrypted {
		protos = append(protos, ProtoData)
	}
	if records.Fast() && !n.o.unsealed {
		protos = append(protos, ProtoSealed)
	}
	return append(protos, ProtoDataTLS)
}

// sealedPair makes what an end of a connection seals and opens with, of its handshake.
func sealedPair(st tls.ConnectionState, client bool) (records.Pair, error) {
	material, err := st.ExportKeyingMaterial(labelRecords, nil, records.MaterialSize)
	if err != nil {
		return records.Pair{}, err
	}
	return records.NewPair(material, client)
}

// sayForged counts and logs a connection that ends since somebody else than the peer has written into it, or changed what it wrote.
func (n *Network) sayForged(nc net.Conn, peer pki.Identity) {
	n.forged.Add(1)
	n.refused.Log(n.o.Logger, slog.LevelWarn, "connection ended: "+records.ErrForged.Error()+"; who is on the way, or the network, changes what is sent", nc.RemoteAddr().String(), "node", peer.Node)
}

// Forged returns how many connections have ended since what came on them was not what the peer had sent.
func (n *Network) Forged() uint64 { return n.forged.Load() }
