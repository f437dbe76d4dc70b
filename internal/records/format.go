package records

// Format of a record, version 1. Little-endian.
//
//	offset size
//	 0     1    kind: 1, data. Never 20 to 23, with which TLS records begin.
//	 1     3    length n of the content, 1 to MaxContent
//	 4     n    content, encrypted with AES-128-GCM
//	 4+n   16   tag of GCM over the content and, as additional data, bytes 0 to 3
//
// Nonce: the IV of the direction, its last 8 bytes XOR the record's number in that direction, big-endian, from 0 (as RFC 8446, 5.3).
//
// Keys. Material is 32 bytes for who connected to send with, then 32 for who was connected to: the first secret of each. A secret is used for 2^20 records:
// key and IV are HKDF-Expand (RFC 5869, SHA-256) of it with the info "varve record key", 16 and 12 bytes, and the next secret, which takes its place, with
// "varve record next". So a key encrypts 2^32 blocks at most, and both ends change it at the same record without a word.
//
// Every fault is one error, ErrForged, and the end of the connection. Versions: 1, first. Another one is another protocol of the handshake.
const (
	headerSize = 4
	tagSize    = 16
	overhead   = headerSize + tagSize
	kindData   = 1

	// MaxContent bounds a record's content in bytes.
	MaxContent = 64 << 10
	// MaterialSize is the keying material of a connection in bytes.
	MaterialSize = 2 * secretSize

	secretSize = 32
	keySize    = 16
	ivSize     = 12

	// keyRecords is for how many records a key is used.
	keyRecords = 1 << 20

	infoKey  = "varve record key"
	infoNext = "varve record next"
)

// putHeader writes the header of a record with n bytes of content.
func putHeader(b []byte, n int) {
	_ = b[3]
	b[0], b[1], b[2], b[3] = kindData, byte(n), byte(n>>8), byte(n>>16)
}

// contentOf returns the length of the content that a header announces, 0 if it is none.
func contentOf(b []byte) int {
	_ = b[3]
	n := int(b[1]) | int(b[2])<<8 | int(b[3])<<16
	if b[0] != kindData || n > MaxContent {
		return 0
	}
	return n
}
