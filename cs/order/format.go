package order

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
)

// The file `ordered` of a chunk server: a header of 64 bytes at 0, and slots of 64 bytes from 4096 on. Little-endian. It is in a machine's memory at
// least (a process that dies loses nothing of it), and on stable media after an orderly stop.
//
//	header
//	 0   8   magic "varveord"
//	 8   4   version, 1
//	12   4   1: the server was stopped in order
//	16  32   SHA-256 of the id of the boot of the machine in which it was written; zero: not known
//	48  12   zero
//	60   4   CRC32C of what is before
//
//	slot, all zero if empty
//	 0   8   chunk
//	 8   8   session
//	16   8   seq
//	24   8   epoch
//	32   4   from
//	36   4   to
//	40   4   1: own
//	44  16   zero
//	60   4   CRC32C of what is before
//
// A slot that does not match its checksum is empty: it can only be one that was being written when the machine lost power, after which the
// file does not count. Version 1 is the first.
const (
	SlotSize  = 64
	SlotsFrom = 4096
	magic     = "varveord"
	version   = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func seal(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return b
}

func sealed(b []byte) bool {
	return len(b) == SlotSize && binary.LittleEndian.Uint32(b[60:]) == crc32.Checksum(b[:60], castagnoli)
}

// Header is the header of the file.
type Header struct {
	Clean bool     // the server was stopped in order
	Boot  [32]byte // in which boot of the machine it was written
}

// Encode returns the header as it is in the file.
func (h Header) Encode() []byte {
	b := make([]byte, SlotSize)
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[8:], version)
	if h.Clean {
		b[12] = 1
	}
	copy(b[16:], h.Boot[:])
	return seal(b)
}

// DecodeHeader reads a header. Errors wrap fserr.Protocol.
func DecodeHeader(b []byte) (h Header, err error) {
	switch {
	case !sealed(b) || string(b[:8]) != magic:
		return h, fmt.Errorf("file of ordered changes has no valid header: %w", fserr.Protocol)
	case binary.LittleEndian.Uint32(b[8:]) != version:
		return h, fmt.Errorf("file of ordered changes has version %d, want %d: %w", binary.LittleEndian.Uint32(b[8:]), version, fserr.Protocol)
	}
	h.Clean = b[12] == 1
	copy(h.Boot[:], b[16:])
	return h, nil
}

// Counts reports whether the entries of a file are what the server had: in the boot that is running, or after an orderly stop.
func (h Header) Counts(boot [32]byte) bool {
	return h.Clean || boot != [32]byte{} && h.Boot == boot
}

// EncodeSlot writes a slot to b, which is SlotSize long. nil is an empty one.
func EncodeSlot(b []byte, e *Entry) {
	clear(b)
	if e == nil {
		return
	}
	le := binary.LittleEndian
	le.PutUint64(b, uint64(e.Chunk))
	le.PutUint64(b[8:], uint64(e.Session))
	le.PutUint64(b[16:], e.Seq)
	le.PutUint64(b[24:], uint64(e.Epoch))
	le.PutUint32(b[32:], e.From)
	le.PutUint32(b[36:], e.To)
	if e.Own {
		b[40] = 1
	}
	seal(b)
}

// DecodeSlot reads a slot; nil: it is empty.
func DecodeSlot(b []byte) *Entry {
	if !sealed(b) {
		return nil
	}
	le := binary.LittleEndian
	e := &Entry{Chunk: id.ChunkID(le.Uint64(b)), Session: id.SessionID(le.Uint64(b[8:])), Seq: le.Uint64(b[16:]), Epoch: id.Epoch(le.Uint64(b[24:])),
		From: le.Uint32(b[32:]), To: le.Uint32(b[36:]), Own: b[40] == 1}
	if e.Session == 0 || e.Seq == 0 || e.From >= e.To || e.To > chunk.Size {
		return nil
	}
	return e
}
