package pki

import "time"

// The name in a certificate is one URI in its subject alternative names:
//
//	varve://CLUSTER/ROLE/NODE
//
// CLUSTER is the cluster's UUID in its canonical form, ROLE one of node, admin, reader, NODE 1 to 64 of A-Z a-z 0-9 . _ -
// that begin with a letter or digit. Nothing is escaped, and there is nothing else in it.
//
// A capability is 184 bytes, little-endian, without padding:
//
//	offset  size  field
//	  0      4    magic "VCAP"
//	  4      2    version, 1
//	  6      2    rights: 1 read, 2 write; other bits zero
//	  8      4    generation of the key that signed it, not zero
//	 12      4    zero
//	 16     16    cluster
//	 32      8    session, not zero
//	 40      8    valid from, seconds since 1970
//	 48      8    valid until, seconds since 1970
//	 56     64    node, padded with zeros
//	120     64    Ed25519 signature of bytes 0 to 119
//
// History: version 1, the first.
const (
	capMagic   = "VCAP"
	capVersion = 1
	capBody    = 120
	// CapabilitySize is the length of a signed capability in bytes.
	CapabilitySize = capBody + 64
)

const (
	scheme      = "varve"
	maxNodeName = 64
)

const (
	// Skew is how much clocks of members may differ: a certificate or capability is valid from this long before it is made.
	Skew = time.Hour
	// ValidFor is how long a node's certificate is valid, if the caller does not say.
	ValidFor = 30 * 24 * time.Hour
	// authorityValidFor is how long an authority is; it is exchanged by rotation long before.
	authorityValidFor = 20 * 365 * 24 * time.Hour
	// maxGenerations of an authority are kept: the current one and those that certificates still come from.
	maxGenerations = 8
)

// Protocols that are negotiated inside the TLS handshake (ALPN).
const (
	ALPN     = "varve"      // members and clients, who both show certificates
	ALPNJoin = "varve-join" // a node that has no certificate yet, and proves that it knows the password
)

// Files of a cluster directory.
const (
	BundleFile = "ca.crt"
	// Of a role there are ROLE.crt and ROLE.key.
	certSuffix = ".crt"
	keySuffix  = ".key"
)

const maxFile = 256 << 10 // bytes of any file of credentials
