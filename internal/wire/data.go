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
//	28     4    Settled: entries at the end; else how far seq is above the lowest of the session that is under way on the chunk
//	32     16   forward list: up to four server ids, zero = unused
//	48     8    seq of an ordered change, counted by the session; 0: none
//	56     8    the lowest seq of the session that is under way, at most its own; 0 without one
//	64     4*n  Write: the checksum of each part of the data that falls into one block (chunk.AppendSums)
//	       24*m Settled: entries, of session (8), seq (8), from (4), to (4)
//
// A Write's data is the bytes. Punch makes [offset, offset+length) read as zeros. Flush uses the chunk only.
// A Read wants offset and length in whole blocks; its answer's body is the block checksums, 4 bytes each (chunk.Hole for a
// block that reads as zeros), its data the blocks. Writes and punches are answered without body, except ReplicaFailed:
// 4 bytes server id, 2 bytes its outcome, 2 bytes zero.
const dataHeaderSize = 64

// DataFlags modify a data request.
type DataFlags uint32

const (
	// Ordered: the receiver is the first replica and forwards to the list while it holds the blocks. A Read: under a shared-write lease, by the
	// first replica, which may have to make the blocks equal on the list before it answers.
	Ordered DataFlags = 1 << iota
	// Forwarded: sent on by the first replica.
	Forwarded
	// Settled: with Forwarded; the blocks as the first replica has them, and which ordered changes are in them.
	Settled
	// Durable: a Write of a client, answered when it is on stable media, and with it all that was written to the chunk before. Only for servers that
	// take it (HelloReply.takes).
	Durable
	dataFlagsEnd
)

// Takes are the flags that a server of this version takes beyond those that all do, for HelloReply.
const Takes = uint32(Durable)

// MaxForward is the length of the forward list: replicas minus one.
const MaxForward = 4

// MaxDone bounds the entries of a Settled request.
const MaxDone = 1024

const doneSize = 24

// Done is an ordered change that a replica has: the bytes [From, To) of the chunk are as the change left them, or newer.
type Done struct {
	Session  id.SessionID
	Seq      uint64
	From, To uint32
}

// DataRequest is a decoded body of Read, Write, Punch or Flush.
type DataRequest struct {
	Chunk   id.ChunkID
	Session id.SessionID
	Offset  uint32 // bytes
	Length  uint32 // bytes
	Flags   DataFlags
	Forward [MaxForward]id.ServerID
	Seq     uint64   // names an ordered change of the session; 0: it has none
	Low     uint64   // the lowest Seq of the session that is under way: lower ones never come again
	Recent  uint32   // Seq minus the lowest that is under way on this chunk
	Sums    []uint32 // Write: one per block touched
	Done    []Done   // Settled
}

// Append encodes r at the end of b.
func (r *DataRequest) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, uint64(r.Chunk))
	b = le.AppendUint64(b, uint64(r.Session))
	b = le.AppendUint32(b, r.Offset)
	b = le.AppendUint32(b, r.Length)
	b = le.AppendUint32(b, uint32(r.Flags))
	if r.Flags&Settled != 0 {
		b = le.AppendUint32(b, uint32(len(r.Done)))
	} else {
		b = le.AppendUint32(b, r.Recent)
	}
	for _, s := range r.Forward {
		b = le.AppendUint32(b, uint32(s))
	}
	b = le.AppendUint64(b, r.Seq)
	b = le.AppendUint64(b, r.Low)
	b = AppendSums(b, r.Sums)
	return AppendDone(b, r.Done)
}

// AppendDone encodes entries.
func AppendDone(b []byte, done []Done) []byte {
	le := binary.LittleEndian
	for _, d := range done {
		b = le.AppendUint64(b, uint64(d.Session))
		b = le.AppendUint64(b, d.Seq)
		b = le.AppendUint32(b, d.From)
		b = le.AppendUint32(b, d.To)
	}
	return b
}

// DecodeDone appends the entries in b to dst. Errors wrap fserr.Protocol.
func DecodeDone(dst []Done, b []byte) ([]Done, error) {
	if len(b)%doneSize != 0 {
		return nil, fmt.Errorf("%d bytes of ordered changes: %w", len(b), fserr.Protocol)
	}
	le := binary.LittleEndian
	for ; len(b) > 0; b = b[doneSize:] {
		d := Done{Session: id.SessionID(le.Uint64(b)), Seq: le.Uint64(b[8:]), From: le.Uint32(b[16:]), To: le.Uint32(b[20:])}
		if d.Session == 0 || d.Seq == 0 || d.From >= d.To || d.To > chunk.Size {
			return nil, fmt.Errorf("ordered change %+v: %w", d, fserr.Protocol)
		}
		dst = append(dst, d)
	}
	return dst, nil
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
	r.Seq, r.Low, r.Recent, r.Done = le.Uint64(b[48:]), le.Uint64(b[56:]), le.Uint32(b[28:]), r.Done[:0]
	switch {
	case r.Flags >= dataFlagsEnd:
		return fmt.Errorf("data request with reserved bits set: %w", fserr.Protocol)
	case r.Low > r.Seq || uint64(r.Recent) > r.Seq && r.Flags&Settled == 0 || r.Seq != 0 && r.Flags&Settled != 0:
		return fmt.Errorf("data request with seq %d, low %d, recent %d: %w", r.Seq, r.Low, r.Recent, fserr.Protocol)
	}
	if uint64(r.Offset)+uint64(r.Length) > chunk.Size {
		return fmt.Errorf("data request for [%d, +%d) of a chunk of %d bytes: %w", r.Offset, r.Length, chunk.Size, fserr.Protocol)
	}
	rest := b[dataHeaderSize:]
	if r.Flags&Settled != 0 {
		n := uint64(r.Recent) * doneSize
		if r.Recent > MaxDone || n > uint64(len(rest)) {
			return fmt.Errorf("data request with %d ordered changes in %d bytes: %w", r.Recent, len(rest), fserr.Protocol)
		}
		var err error
		if r.Done, err = DecodeDone(r.Done, rest[len(rest)-int(n):]); err != nil {
			return err
		}
		rest, r.Recent = rest[:len(rest)-int(n)], 0
	}
	r.Sums = DecodeSums(r.Sums[:0], rest)
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
