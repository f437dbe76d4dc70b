package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"varve/internal/fserr"
	"varve/internal/id"
)

// Frame format, version 1. Little-endian. A frame is a header, a body and data, back to back.
//
//	offset size
//	 0     4    magic "VRV1"
//	 4     2    type (Type)
//	 6     1    class of traffic (Class)
//	 7     1    flags: bit 0 = answer, the others zero
//	 8     8    request id: chosen by the asker, repeated in the answer
//	16     8    epoch of the chunk (data messages), else zero
//	24     2    outcome (fserr.Code), zero in requests
//	26     2    reserved, zero
//	28     4    length of the body, at most MaxBody
//	32     4    length of the data, at most MaxData
//	36     4    CRC32C of the body
//	40     4    reserved, zero
//	44     4    CRC32C of bytes 0 to 43, XOR the secret of this direction of the connection, if it has one (Keys)
//
// The data is covered by the block checksums in the body (data.go). A header with a wrong checksum, a reserved
// bit set, an unknown flag or a length over its limit ends the connection: where the next frame starts is not known.
// Versions: 1, first.
const (
	headerSize = 48
	magic      = uint32('V') | uint32('R')<<8 | uint32('V')<<16 | uint32('1')<<24

	flagAnswer = 1

	// MaxBody bounds a frame's body in bytes.
	MaxBody = 4 << 20
	// MaxData bounds a frame's data in bytes: one FUSE request, or one step of a rebuild, with room to align.
	MaxData = 2 << 20
	// maxHello bounds the body of the first frame, before the peer is known.
	maxHello = 4 << 10
)

// Type says what a frame asks for. Numbers are part of the format and never reused.
type Type uint16

// Frame types. Unless it says otherwise a body is the message of package msg with the same name, and the
// answer's body the message with Reply added.
const (
	Hello Type = 1

	// To the metadata server.
	Meta           Type = 10 // MetaRequest, MetaReply
	OpenSession    Type = 11
	RenewSession   Type = 12
	CloseSession   Type = 13 // Empty
	RegisterServer Type = 20
	ChunkReport    Type = 21
	Heartbeat      Type = 22
	Status         Type = 30
	StateDigest    Type = 31
	JoinMeta       Type = 32
	JournalRead    Type = 33 // records or a piece of the checkpoint as data
	Members        Type = 34
	RemoveMeta     Type = 35
	TransferLeader Type = 36
	SetConfig      Type = 37
	GetConfig      Type = 38
	FenceSession   Type = 39
	LeaseShow      Type = 41 // 40 is Callback
	LeaseTake      Type = 42
	SetServerMode  Type = 43
	RemoveServer   Type = 44
	SetTier        Type = 45
	WhatIf         Type = 48

	// To the metadata server, about who may speak.
	Trust            Type = 80
	Revoke           Type = 81
	ListCertificates Type = 82
	ChangeSecurity   Type = 83 // Empty
	SecureStatus     Type = 84

	// From the metadata server to a client.
	Callback Type = 40

	// From the metadata server to a chunk server.
	ChunkCreate  Type = 50 // answered with Empty, like those without a Reply below
	ChunkDelete  Type = 51
	ChunkAdopt   Type = 52
	ChunkAccept  Type = 53
	ChunkJoin    Type = 54
	ChunkRebuild Type = 55
	ChunkPromote Type = 56
	ChunkPunch   Type = 57
	Fence        Type = 58

	// To a chunk server: fixed bodies, see data.go.
	Read  Type = 60
	Write Type = 61
	Punch Type = 62
	Flush Type = 63

	// To a chunk server, of a session.
	ShowCapability Type = 64 // answered with Empty

	// To a chunk server: protobuf. ChunkSeek carries the chunk's epoch in the frame header.
	ChunkTable  Type = 70
	ChunkSeek   Type = 71
	ChunkList   Type = 72
	ChunkVerify Type = 73
	StoreStat   Type = 74
	Scrub       Type = 75 // answered with ScrubStat

	// To any member: how the network between them is (package netcheck).
	NetInfo  Type = 90
	NetEcho  Type = 91 // with data either way
	NetProbe Type = 92
	NetTest  Type = 93
	NetRelay Type = 94 // to the leader
)

// Class is the kind of traffic, most urgent first.
type Class uint8

// Classes of traffic.
const (
	ClassHeartbeat   Class = 0
	ClassMeta        Class = 1
	ClassGuest       Class = 2
	ClassReplication Class = 3
	ClassRepair      Class = 4
	ClassRebalance   Class = 5
	ClassScrub       Class = 6
	classEnd         Class = 7
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is the decoded fixed part of a frame.
type header struct {
	typ     Type
	class   Class
	answer  bool
	id      uint64
	epoch   id.Epoch
	code    fserr.Code
	bodyLen uint32
	dataLen uint32
	bodyCRC uint32
	key     uint32 // mixed into the checksum
}

func (h *header) encode(b []byte) {
	_ = b[headerSize-1]
	le := binary.LittleEndian
	le.PutUint32(b[0:], magic)
	le.PutUint16(b[4:], uint16(h.typ))
	b[6] = byte(h.class)
	b[7] = 0
	if h.answer {
		b[7] = flagAnswer
	}
	le.PutUint64(b[8:], h.id)
	le.PutUint64(b[16:], uint64(h.epoch))
	le.PutUint16(b[24:], uint16(h.code))
	le.PutUint16(b[26:], 0)
	le.PutUint32(b[28:], h.bodyLen)
	le.PutUint32(b[32:], h.dataLen)
	le.PutUint32(b[36:], h.bodyCRC)
	le.PutUint32(b[40:], 0)
	le.PutUint32(b[44:], crc32.Checksum(b[:44], castagnoli)^h.key)
}

// decode makes h the header that b begins with, by the key that h has.
func (h *header) decode(b []byte) error {
	_ = b[headerSize-1]
	le := binary.LittleEndian
	if got := le.Uint32(b[0:]); got != magic {
		return fmt.Errorf("frame magic %08x, want %08x: %w", got, magic, fserr.Protocol)
	}
	if got, want := le.Uint32(b[44:])^h.key, crc32.Checksum(b[:44], castagnoli); got != want {
		return fmt.Errorf("frame header checksum %08x, want %08x: %w", got, want, fserr.Protocol)
	}
	*h = header{
		typ:     Type(le.Uint16(b[4:])),
		class:   Class(b[6]),
		answer:  b[7]&flagAnswer != 0,
		id:      le.Uint64(b[8:]),
		epoch:   id.Epoch(le.Uint64(b[16:])),
		code:    fserr.Code(le.Uint16(b[24:])),
		bodyLen: le.Uint32(b[28:]),
		dataLen: le.Uint32(b[32:]),
		bodyCRC: le.Uint32(b[36:]),
		key:     h.key,
	}
	switch {
	case b[7]&^flagAnswer != 0 || le.Uint16(b[26:]) != 0 || le.Uint32(b[40:]) != 0 || h.class >= classEnd:
		return fmt.Errorf("frame type %d has reserved bits set: %w", h.typ, fserr.Protocol)
	case h.bodyLen > MaxBody:
		return fmt.Errorf("frame type %d: body of %d bytes, limit %d: %w", h.typ, h.bodyLen, MaxBody, fserr.Protocol)
	case h.dataLen > MaxData:
		return fmt.Errorf("frame type %d: data of %d bytes, limit %d: %w", h.typ, h.dataLen, MaxData, fserr.Protocol)
	}
	return nil
}
