package vhost

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Everything is little-endian, or as the machine has it. A message of the front end, and a reply:
//
//	0 4 request   4 4 flags   8 4 size of the payload   payload; descriptors come beside the first byte
const (
	headSize = 12
	// maxMessage bounds a payload: a table of eight regions has 264 bytes, a piece of configuration space 268.
	maxMessage = 1024
	// maxFDs bounds the descriptors beside a message.
	maxFDs = 8

	flagVersion   = 1
	flagReply     = 1 << 2
	flagNeedReply = 1 << 3
)

type request uint32

// Requests of a front end.
const (
	getFeatures         request = 1
	setFeatures         request = 2
	setOwner            request = 3
	resetOwner          request = 4
	setMemTable         request = 5
	setLogBase          request = 6
	setVringNum         request = 8
	setVringAddr        request = 9
	setVringBase        request = 10
	getVringBase        request = 11
	setVringKick        request = 12
	setVringCall        request = 13
	setVringErr         request = 14
	getProtocolFeatures request = 15
	setProtocolFeatures request = 16
	getQueueNum         request = 17
	setVringEnable      request = 18
	getConfig           request = 24
	setConfig           request = 25
	getInflightFD       request = 31
	setInflightFD       request = 32
)

// Features of the device and of the ring.
const (
	featSizeMax     = 1 << 1
	featSegMax      = 1 << 2
	featReadOnly    = 1 << 5
	featBlockSize   = 1 << 6
	featFlush       = 1 << 9
	featTopology    = 1 << 10
	featQueues      = 1 << 12
	featDiscard     = 1 << 13
	featWriteZeroes = 1 << 14
	featLogAll      = 1 << 26 // not the guest's: the front end wants to know which of its pages are written
	featIndirect    = 1 << 28
	featEventIndex  = 1 << 29
	featProtocol    = 1 << 30
	featVersion1    = 1 << 32
)

// Features of the protocol.
const (
	protoQueues   = 1 << 0
	protoLog      = 1 << 1 // the log of pages is memory that is shared
	protoReplyAck = 1 << 3
	protoConfig   = 1 << 9
	protoInflight = 1 << 12

	protoOffered = protoQueues | protoLog | protoReplyAck | protoConfig | protoInflight
)

// Limits.
const (
	maxQueues    = 64
	maxQueueSize = 1024
	maxRegions   = 8
	// maxSegments is how many pieces a request may have, beside its head and its status; maxSegment the bytes of each. Together they are below the largest buffer.
	maxSegments = 126
	maxSegment  = 256 << 10
	maxRequest  = 32 << 20
	// maxDiscard is how many bytes one discard may free, and maxZero how many one request may make zeros of.
	maxDiscard = 1 << 30
	maxZero    = 64 << 20

	noFD = 1 << 8 // in a ring's number: no descriptor comes with it

	ringLogged = 1 << 0 // in a ring's flags: what is written into the used ring is to be logged at an address of its own
)

// ErrProtocol is wrapped by errors that say how the front end or the guest broke the protocol.
var ErrProtocol = errors.New("vhost-user protocol")

var le = binary.LittleEndian

// region is one piece of the guest's memory as the front end tells of it.
type region struct {
	guest  uint64 // physical address in the guest
	size   uint64
	user   uint64 // address in the front end
	offset uint64 // in the descriptor
}

// decodeMemory reads the payload of setMemTable.
func decodeMemory(p []byte) ([]region, error) {
	if len(p) < 8 {
		return nil, fmt.Errorf("%w: a memory table of %d bytes", ErrProtocol, len(p))
	}
	n := le.Uint32(p)
	if n == 0 || n > maxRegions || len(p) != 8+32*int(n) {
		return nil, fmt.Errorf("%w: a memory table of %d regions in %d bytes, want 1 to %d of 32 bytes", ErrProtocol, n, len(p), maxRegions)
	}
	all := make([]region, n)
	for i := range all {
		q := p[8+32*i:]
		r := region{le.Uint64(q), le.Uint64(q[8:]), le.Uint64(q[16:]), le.Uint64(q[24:])}
		if r.size == 0 || r.size > 1<<46 || r.offset > 1<<46 || r.guest+r.size < r.guest || r.user+r.size < r.user {
			return nil, fmt.Errorf("%w: region %d of memory: %#x bytes at %#x, offset %#x", ErrProtocol, i, r.size, r.guest, r.offset)
		}
		all[i] = r
	}
	return all, nil
}

// ringAddr is where a ring's parts are, by addresses in the front end.
type ringAddr struct {
	desc, used, avail uint64
	logged            bool
	log               uint64 // if logged: what is written into the used ring is in the log from this address of the guest on
}

// decodeState reads a queue's number and a value.
func decodeState(p []byte) (queue, value uint32, err error) {
	if len(p) != 8 {
		return 0, 0, fmt.Errorf("%w: the state of a queue in %d bytes, want 8", ErrProtocol, len(p))
	}
	return le.Uint32(p), le.Uint32(p[4:]), nil
}

func decodeAddr(p []byte) (queue uint32, a ringAddr, err error) {
	if len(p) != 40 {
		return 0, a, fmt.Errorf("%w: the addresses of a queue in %d bytes, want 40", ErrProtocol, len(p))
	}
	return le.Uint32(p), ringAddr{le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[24:]), le.Uint32(p[4:])&ringLogged != 0, le.Uint64(p[32:])}, nil
}

func decodeU64(p []byte) (uint64, error) {
	if len(p) != 8 {
		return 0, fmt.Errorf("%w: a number in %d bytes, want 8", ErrProtocol, len(p))
	}
	return le.Uint64(p), nil
}

// inflightDesc tells of the memory that keeps which requests are under way.
type inflightDesc struct {
	size, offset      uint64
	queues, queueSize uint16
}

func decodeInflight(p []byte) (d inflightDesc, err error) {
	if len(p) < 20 {
		return d, fmt.Errorf("%w: memory for requests under way told of in %d bytes, want 20", ErrProtocol, len(p))
	}
	return inflightDesc{le.Uint64(p), le.Uint64(p[8:]), le.Uint16(p[16:]), le.Uint16(p[18:])}, nil
}

func (d inflightDesc) append(b []byte) []byte {
	b = le.AppendUint64(le.AppendUint64(b, d.size), d.offset)
	b = le.AppendUint16(le.AppendUint16(b, d.queues), d.queueSize)
	return append(b, 0, 0, 0, 0)
}

const configSize = 60

// config is what the configuration space says.
type config struct {
	bytes     int64
	blockSize uint32
	queues    uint16
}

// encode makes struct virtio_blk_config.
//
//	0 8 capacity in 512 bytes   8 4 size_max   12 4 seg_max   16 4 geometry   20 4 blk_size   24 1 log2 of blocks in a physical one   25 1   26 2 min_io   28 4 opt_io
//	32 1 writeback   33 1   34 2 queues   36 4 max discard in 512 bytes   40 4 its segments   44 4 its alignment   48 4 max write zeroes   52 4 its segments   56 1 it may unmap   57 3
func (c config) encode() []byte {
	p := make([]byte, configSize)
	le.PutUint64(p, uint64(c.bytes/sector))
	le.PutUint32(p[8:], maxSegment)
	le.PutUint32(p[12:], maxSegments)
	le.PutUint32(p[20:], c.blockSize)
	for n := c.blockSize; n < physicalBlock; n *= 2 {
		p[24]++
	}
	le.PutUint16(p[26:], uint16(physicalBlock/c.blockSize))
	p[32] = 1
	le.PutUint16(p[34:], c.queues)
	le.PutUint32(p[36:], maxDiscard/sector)
	le.PutUint32(p[40:], 1)
	le.PutUint32(p[44:], physicalBlock/sector)
	le.PutUint32(p[48:], maxZero/sector)
	le.PutUint32(p[52:], 1)
	p[56] = 1
	return p
}

const (
	sector        = 512
	physicalBlock = 4096
)
