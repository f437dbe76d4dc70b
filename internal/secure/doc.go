// Package secure makes the connections of a secured cluster: each begins with a mutual TLS 1.3 handshake with certificates of the cluster's
// CA (package pki), so that both ends know which node, in which role, is at the other.
//
// New wraps a wire.Network. What its Dial and its listeners return knows who the peer is: wire.PeerOf tells. The protocol that the two agree on (ALPN)
// says how they go on:
//
//	varve-control   heartbeats and metadata: TLS
//	varve-data      everything else: after the handshake plain frames on the same socket, as reactors need it. A secret of the handshake is mixed into
//	                the frames' headers (FrameKeys), so that frames of other connections, and of who only sees addresses and ports, end the connection.
//	varve-data-sealed
//	                everything else, if either end wants it encrypted: after the handshake records (package records) on the same socket, with keys that are
//	                exported from it (sealed.go)
//	varve-data-tls  the same, TLS: with a version that does not know varve-data-sealed, or where either machine has no instructions for AES
//	varve-join      a machine without a certificate, to a listener that has Options.Join; the handler has the connection to itself
//
// There are no session tickets, no early data and no older versions. Who has credentials never falls back to plain connections, but while the cluster is being
// secured (opening.go).
//
// Handshakes of those who connect are done beside one another: their number is bounded, in all and for each source address, as are their time and the bytes
// that they may send. When there are too many, the oldest one of the address that has the most is given up, so that half-open connections of one machine
// do not hold up those of others. Handshakes that come to nothing are bounded in rate too, since each costs a signature. Addresses from which somebody was
// let in, or where a connection of ours ended, have bounds of their own (crowd.go): what strangers do takes nothing from members. Who was refused is logged at a bounded rate.
//
// All methods may be called at once.
package secure
