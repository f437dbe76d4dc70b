// Package id holds the identifiers that every layer of varve shares, each a type of its own so that
// an inode number can never be passed where a chunk is meant.
//
// It is pure: values only, no input or output. All types are plain integers and safe to copy.
package id

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Ino is an inode number. Zero is "none"; Root is the root directory. Numbers are never reused.
type Ino uint64

// Root is the inode number of the root directory of every cluster (FUSE requires 1).
const Root Ino = 1

// ChunkID names a replicated piece of a file. Zero is "none". Numbers are never reused.
type ChunkID uint64

// firstScratch is the first id of chunks that belong to no file. A cluster counts its chunks from 1, so none of a file ever
// gets there.
const firstScratch ChunkID = 1 << 63

// Scratch returns the n-th id, modulo 2^63, of chunks that belong to no file: those that a load generator works on.
func Scratch(n uint64) ChunkID { return firstScratch | ChunkID(n) }

// IsScratch reports whether c belongs to no file. A chunk server makes such a chunk for whoever asks and removes it with the
// connection.
func (c ChunkID) IsScratch() bool { return c >= firstScratch }

// ServerID names a chunk server. Zero is "none". Numbers are never reused, also after removal.
type ServerID uint32

// MetaID names a metadata server. Zero is "none".
type MetaID uint32

// SessionID names one client's connection to the cluster. Zero is "none". Numbers are never reused.
type SessionID uint64

// Epoch numbers the replica set of a chunk. A message of a lower epoch is refused (fenced).
type Epoch uint64

// Index is the position of an event in the journal: the first event has index 1, and zero stands
// for the empty state before it.
type Index uint64

func (i Ino) String() string       { return strconv.FormatUint(uint64(i), 10) }
func (c ChunkID) String() string   { return fmt.Sprintf("%016x", uint64(c)) }
func (s ServerID) String() string  { return "cs" + strconv.FormatUint(uint64(s), 10) }
func (m MetaID) String() string    { return "mds" + strconv.FormatUint(uint64(m), 10) }
func (s SessionID) String() string { return strconv.FormatUint(uint64(s), 10) }
func (e Epoch) String() string     { return strconv.FormatUint(uint64(e), 10) }
func (i Index) String() string     { return strconv.FormatUint(uint64(i), 10) }

// Cluster is the UUID made with the cluster. It is part of every handshake, so that a reused
// cluster name can never join the wrong cluster.
type Cluster [16]byte

// String returns the canonical form, 8-4-4-4-12 lower-case hexadecimal digits.
func (c Cluster) String() string {
	h := hex.EncodeToString(c[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// IsZero reports whether c was never set.
func (c Cluster) IsZero() bool { return c == Cluster{} }

// ParseCluster reads the form that String writes.
func ParseCluster(s string) (Cluster, error) {
	var c Cluster
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(s), "-", ""))
	if err != nil || len(b) != len(c) {
		return Cluster{}, fmt.Errorf("cluster uuid %q: want 32 hexadecimal digits, got %d characters", s, len(s))
	}
	copy(c[:], b)
	return c, nil
}

// ParseServerID reads "cs3" or "3".
func ParseServerID(s string) (ServerID, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "cs"), 10, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("chunk server %q: want a number such as 3 or cs3", s)
	}
	return ServerID(n), nil
}

// ParseMetaID reads "mds2" or "2".
func ParseMetaID(s string) (MetaID, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "mds"), 10, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("metadata server %q: want a number such as 2 or mds2", s)
	}
	return MetaID(n), nil
}
