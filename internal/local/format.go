package local

import (
	"encoding/binary"
	"fmt"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// The board is a memfd, sealed against changes of size and against writing by anybody but the server. All words are 64 bits,
// in the order of the host, and are read and written as a whole.
//
//	offset        words            what
//	0             1                magic
//	8             1                version in the low half, number of slots in the high one
//	16            1                until: nothing on the board counts from this time on, ns of the boot-time clock
//	24                             reserved up to 4096
//	4096          Places           a place for each session: the stamp of who holds it, 0 for nobody
//	8192          MaxSlots         slots: the stamp of the grant, 0 if there is none
//	40960         slots x 16384    entries of the slots' blocks
//
// An entry holds the checksum of a block (chunk.Sum, chunk.Hole for a hole) in the low half and a version in the high one. The
// version is odd while the block is being changed, and another one afterwards.
const (
	boardMagic   = 0x3130445242565256 // "VRVBRD01"
	boardVersion = 1

	// Places bounds the sessions that may read at once.
	Places = 512
	// MaxSlots bounds the chunks that can be granted at once.
	MaxSlots = 4096

	wordMagic   = 0
	wordVersion = 1
	wordUntil   = 2

	placesOffset  = 4096
	slotsOffset   = placesOffset + 8*Places
	entriesOffset = slotsOffset + 8*MaxSlots

	odd = 1 << 32
)

// boardSize returns the length of a board in bytes.
func boardSize(slots int) int64 { return entriesOffset + 8*chunk.Blocks*int64(slots) }

// Packets are the messages of a SOCK_SEQPACKET connection, each of packetSize bytes, little-endian.
//
//	offset  bytes  what
//	0       4      kind
//	4       4      outcome (fserr.Code)
//	8       8      chunk
//	16      8      epoch
//	24      8      stamp
//	32      4      place or slot
//	36      4      server
//	40      8      session
//	48      8      time: ns of the sender's boot-time clock (Welcome); offset of the chunk's data in its file (Granted)
//	56      16     cluster
//	72      8      version (Hello, Welcome)
//	80      16     reserved, zero
const (
	packetSize    = 96
	packetVersion = 1
)

// Kind is the kind of a packet.
type Kind uint32

// The kinds of packets. A client says Hello first and is Welcome, or gets the outcome that refuses it. It asks for chunks, one at a time, and each
// Ask is answered by Granted. Revoked comes at any time.
const (
	Hello   Kind = 1 + iota // client: cluster, server, session
	Welcome                 // place and its stamp, the server's time; with the descriptor of the board
	Ask                     // client: chunk, epoch
	Granted                 // the same with slot, stamp and where the data begins; with the descriptor of the chunk file
	Revoked                 // the stamp of a grant that is over: close the descriptor
)

// Packet is a decoded message. What a kind has no use for is zero.
type Packet struct {
	Kind    Kind
	Code    fserr.Code
	Chunk   id.ChunkID
	Epoch   id.Epoch
	Stamp   uint64
	Place   uint32 // Granted: slot
	Server  id.ServerID
	Session id.SessionID
	Time    int64 // Granted: offset of the data
	Cluster id.Cluster
}

func (p *Packet) encode(b *[packetSize]byte) {
	le := binary.LittleEndian
	clear(b[:])
	le.PutUint32(b[0:], uint32(p.Kind))
	le.PutUint32(b[4:], uint32(p.Code))
	le.PutUint64(b[8:], uint64(p.Chunk))
	le.PutUint64(b[16:], uint64(p.Epoch))
	le.PutUint64(b[24:], p.Stamp)
	le.PutUint32(b[32:], p.Place)
	le.PutUint32(b[36:], uint32(p.Server))
	le.PutUint64(b[40:], uint64(p.Session))
	le.PutUint64(b[48:], uint64(p.Time))
	copy(b[56:72], p.Cluster[:])
	le.PutUint64(b[72:], packetVersion)
}

// decode reads what encode made. Its errors wrap fserr.Protocol.
func (p *Packet) decode(b []byte) error {
	if len(b) != packetSize {
		return fmt.Errorf("packet of %d bytes, want %d: %w", len(b), packetSize, fserr.Protocol)
	}
	le := binary.LittleEndian
	*p = Packet{
		Kind: Kind(le.Uint32(b[0:])), Code: fserr.Code(le.Uint32(b[4:])), Chunk: id.ChunkID(le.Uint64(b[8:])), Epoch: id.Epoch(le.Uint64(b[16:])),
		Stamp: le.Uint64(b[24:]), Place: le.Uint32(b[32:]), Server: id.ServerID(le.Uint32(b[36:])), Session: id.SessionID(le.Uint64(b[40:])),
		Time: int64(le.Uint64(b[48:])), Cluster: id.Cluster(b[56:72]),
	}
	switch v := le.Uint64(b[72:]); {
	case v != packetVersion:
		return fmt.Errorf("packet of version %d, want %d: %w", v, packetVersion, fserr.Protocol)
	case p.Kind < Hello || p.Kind > Revoked:
		return fmt.Errorf("packet of kind %d: %w", p.Kind, fserr.Protocol)
	case le.Uint32(b[4:]) > 0xffff || !chunk.IsZero(b[80:]):
		return fmt.Errorf("packet with reserved bits set: %w", fserr.Protocol)
	}
	return nil
}
