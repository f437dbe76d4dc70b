package wire

import (
	"encoding/binary"
	"fmt"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// Body of Read, Write, Punch and Flush requests. Little-endian. The chunk's epoch is in the frame header.
//
//	offset size
//	 0     8    chunk
//	 8     8    session (0: a server)
//	16     4    offset in the chunk, bytes
//	20     4    length, bytes
//	24     4    flags (DataFlags)
//	28     4    reserved, zero
//	32     16   forward list: up to four server ids, zero = unused
//	48     16   reserved, zero
//	64     4*n  Write: the checksum of each part of the data that falls into one block (chunk.AppendSums)
//
// A Write's data is the bytes. Punch makes [offset, offset+length) read as zeros. Flush uses the chunk only.
// A Read wants offset and length in whole blocks; its answer's body is the block checksums, 4 bytes each (chunk.Hole for a
// block that reads as zeros), its data the blocks. Writes and punches are answered without body, except ReplicaFailed:
// 4 bytes server id, 2 bytes its outcome, 2 bytes zero.
const dataHeaderSize = 64

// DataFlags modify a data request.
type DataFlags uint32

const (
	// Ordered: the receiver is the first replica and forwards to the list while it holds the blocks.
	Ordered DataFlags = 1 << iota
	// Forwarded: sent on by the first replica.
	Forwarded
	dataFlagsEnd
)

// MaxForward is the length of the forward list: replicas minus one.
const MaxForward = 4

// DataRequest is a decoded body of Read, Write, Punch or Flush.
type DataRequest struct {
	Chunk   id.ChunkID
	Session id.SessionID
	Offset  uint32 // bytes
	Length  uint32 // bytes
	Flags   DataFlags
	Forward [MaxForward]id.ServerID
	Sums    []uint32 // Write: one per block touched
}

// Append encodes r at the end of b.
func (r *DataRequest) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, uint64(r.Chunk))
	b = le.AppendUint64(b, uint64(r.Session))
	b = le.AppendUint32(b, r.Offset)
	b = le.AppendUint32(b, r.Length)
	b = le.AppendUint32(b, uint32(r.Flags))
	b = le.AppendUint32(b, 0)
	for _, s := range r.Forward {
		b = le.AppendUint32(b, uint32(s))
	}
	b = append(b, make([]byte, 16)...)
	return AppendSums(b, r.Sums)
}

// Decode reads what Append made. It reuses r.Sums. Errors wrap fserr.Protocol and leave r undefined.
func (r *DataRequest) Decode(b []byte) error {
	if len(b) < dataHeaderSize || (len(b)-dataHeaderSize)%4 != 0 {
		return fmt.Errorf("data request of %d bytes: %w", len(b), fserr.Protocol)
	}
	le := binary.LittleEndian
	r.Chunk = id.ChunkID(le.Uint64(b[0:]))
	r.Session = id.SessionID(le.Uint64(b[8:]))
	r.Offset = le.Uint32(b[16:])
	r.Length = le.Uint32(b[20:])
	r.Flags = DataFlags(le.Uint32(b[24:]))
	for i := range r.Forward {
		r.Forward[i] = id.ServerID(le.Uint32(b[32+4*i:]))
	}
	if r.Flags >= dataFlagsEnd || le.Uint32(b[28:]) != 0 || le.Uint64(b[48:]) != 0 || le.Uint64(b[56:]) != 0 {
		return fmt.Errorf("data request with reserved bits set: %w", fserr.Protocol)
	}
	if uint64(r.Offset)+uint64(r.Length) > chunk.Size {
		return fmt.Errorf("data request for [%d, +%d) of a chunk of %d bytes: %w", r.Offset, r.Length, chunk.Size, fserr.Protocol)
	}
	r.Sums = DecodeSums(r.Sums[:0], b[dataHeaderSize:])
	return nil
}

// AppendSums encodes checksums, 4 bytes each.
func AppendSums(b []byte, sums []uint32) []byte {
	for _, s := range sums {
		b = binary.LittleEndian.AppendUint32(b, s)
	}
	return b
}

// DecodeSums appends the checksums in b to dst.
func DecodeSums(dst []uint32, b []byte) []uint32 {
	for ; len(b) >= 4; b = b[4:] {
		dst = append(dst, binary.LittleEndian.Uint32(b))
	}
	return dst
}

// AppendReplicaFailed encodes the body that goes with the outcome ReplicaFailed.
func AppendReplicaFailed(b []byte, server id.ServerID, code fserr.Code) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(server))
	b = binary.LittleEndian.AppendUint16(b, uint16(code))
	return append(b, 0, 0)
}

// DecodeReplicaFailed reads what AppendReplicaFailed made.
func DecodeReplicaFailed(b []byte) (id.ServerID, fserr.Code, error) {
	if len(b) != 8 {
		return 0, 0, fmt.Errorf("replica-failed body of %d bytes: %w", len(b), fserr.Protocol)
	}
	return id.ServerID(binary.LittleEndian.Uint32(b)), fserr.Code(binary.LittleEndian.Uint16(b[4:])), nil
}

// DataLength returns the length in the body of a data request that is not decoded yet, 0 if there is none.
func DataLength(body []byte) uint32 {
	if len(body) < dataHeaderSize {
		return 0
	}
	return binary.LittleEndian.Uint32(body[20:])
}
