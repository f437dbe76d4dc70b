package mds

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/hashicorp/raft"

	"varve/internal/fserr"
)

// Append stream, version 1: how a leader sends its log to a follower. The connection begins with appendMagic and the cluster's
// UUID; then the leader sends requests and the follower answers each, in order. Little-endian. Each message is a length (4), the CRC32C
// of the body (4) and the body.
//
//	offset size  body of a request: raft.AppendEntriesRequest
//	 0     8     term
//	 8     8     index of the entry before
//	16     8     its term
//	24     8     index up to which the leader has committed
//	32     2     version of Raft's protocol
//	34     2     length of the leader's id
//	36     2     length of the leader's address
//	38     2     reserved, zero
//	40     4     number of entries
//	44     -     id, address, entries
//
//	offset size  entry
//	 0     8     index
//	 8     8     term
//	16     8     when the leader appended it, in nanoseconds since 1970, or zero
//	24     1     raft.LogType
//	25     3     reserved, zero
//	28     4     length of the extensions
//	32     4     length of the data
//	36     -     extensions, data
//
//	offset size  body of an answer: raft.AppendEntriesResponse
//	 0     8     term
//	 8     8     index of the last entry
//	16     1     flags: 1 = success, 2 = no backoff, 4 = an error: neither of the others, and its text follows
//	17     -     text
//
// A message that is over its limit, whose checksum is wrong or that does not decode ends the connection.
const (
	appendMagic  = "VRFA"
	appendHeader = 44
	entryHeader  = 36
	answerHeader = 17

	maxAppend = 256 << 20 // raftMaxEntries entries of maxBatchBytes, and room for a few that are larger
	maxAnswer = 4 << 10

	answerSuccess = 1
	answerNoRetry = 2
	answerError   = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errStream = errors.New("damaged message of an append stream")

// begin reserves what comes before a body.
func beginMessage(b []byte) []byte { return append(b[:0], 0, 0, 0, 0, 0, 0, 0, 0) }

// endMessage fills it in.
func endMessage(b []byte) []byte {
	binary.LittleEndian.PutUint32(b, uint32(len(b)-8))
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[8:], castagnoli))
	return b
}

// readMessage returns the body of the next message, in memory of its own.
func readMessage(r *bufio.Reader, limit uint32) ([]byte, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > limit {
		return nil, fmt.Errorf("%d bytes, want at most %d: %w", n, limit, errStream)
	}
	b, err := readBody(r, int(n))
	if err != nil {
		return nil, err
	}
	if want, got := binary.LittleEndian.Uint32(head[4:]), crc32.Checksum(b, castagnoli); want != got {
		return nil, fmt.Errorf("checksum %08x, want %08x: %w", got, want, errStream)
	}
	return b, nil
}

// readBody reads n bytes, and allocates no more than twice what has come.
func readBody(r *bufio.Reader, n int) ([]byte, error) {
	const step = 1 << 20
	b := make([]byte, min(n, step))
	for done := 0; ; {
		if _, err := io.ReadFull(r, b[done:]); err != nil {
			return nil, err
		}
		if done = len(b); done == n {
			return b, nil
		}
		b = append(b, make([]byte, min(n-done, done))...)
	}
}

func appendRequest(b []byte, a *raft.AppendEntriesRequest) []byte {
	le := binary.LittleEndian
	b = beginMessage(b)
	b = le.AppendUint64(b, a.Term)
	b = le.AppendUint64(b, a.PrevLogEntry)
	b = le.AppendUint64(b, a.PrevLogTerm)
	b = le.AppendUint64(b, a.LeaderCommitIndex)
	b = le.AppendUint16(b, uint16(a.ProtocolVersion))
	b = le.AppendUint16(b, uint16(len(a.ID)))
	b = le.AppendUint16(b, uint16(len(a.Addr)))
	b = append(b, 0, 0)
	b = le.AppendUint32(b, uint32(len(a.Entries)))
	b = append(b, a.ID...)
	b = append(b, a.Addr...)
	for _, e := range a.Entries {
		var at int64
		if !e.AppendedAt.IsZero() {
			at = e.AppendedAt.UnixNano()
		}
		b = le.AppendUint64(b, e.Index)
		b = le.AppendUint64(b, e.Term)
		b = le.AppendUint64(b, uint64(at))
		b = append(b, byte(e.Type), 0, 0, 0)
		b = le.AppendUint32(b, uint32(len(e.Extensions)))
		b = le.AppendUint32(b, uint32(len(e.Data)))
		b = append(b, e.Extensions...)
		b = append(b, e.Data...)
	}
	return endMessage(b)
}

// decodeRequest decodes a body, of which the entries keep parts.
func decodeRequest(b []byte) (*raft.AppendEntriesRequest, error) {
	le := binary.LittleEndian
	if len(b) < appendHeader || b[38] != 0 || b[39] != 0 {
		return nil, fmt.Errorf("request of %d bytes: %w", len(b), errStream)
	}
	a := &raft.AppendEntriesRequest{
		Term: le.Uint64(b), PrevLogEntry: le.Uint64(b[8:]), PrevLogTerm: le.Uint64(b[16:]), LeaderCommitIndex: le.Uint64(b[24:]),
	}
	a.ProtocolVersion = raft.ProtocolVersion(le.Uint16(b[32:]))
	idLen, addrLen, count := int(le.Uint16(b[34:])), int(le.Uint16(b[36:])), int(le.Uint32(b[40:]))
	b = b[appendHeader:]
	if idLen+addrLen+count*entryHeader > len(b) {
		return nil, fmt.Errorf("request with %d entries in %d bytes: %w", count, len(b), errStream)
	}
	a.ID, b = b[:idLen:idLen], b[idLen:]
	a.Addr, b = b[:addrLen:addrLen], b[addrLen:]
	if count > 0 {
		a.Entries = make([]*raft.Log, count)
	}
	entries := make([]raft.Log, count)
	for i := range entries {
		if len(b) < entryHeader {
			return nil, fmt.Errorf("entry %d of %d: %d bytes left: %w", i, count, len(b), errStream)
		}
		e := &entries[i]
		e.Index, e.Term, e.Type = le.Uint64(b), le.Uint64(b[8:]), raft.LogType(b[24])
		if at := int64(le.Uint64(b[16:])); at != 0 {
			e.AppendedAt = time.Unix(0, at)
		}
		ext, data := uint64(le.Uint32(b[28:])), uint64(le.Uint32(b[32:]))
		if b[25]|b[26]|b[27] != 0 || e.Type > raft.LogConfiguration || ext+data > uint64(len(b)-entryHeader) {
			return nil, fmt.Errorf("entry %d of %d, type %d, %d and %d bytes: %w", i, count, e.Type, ext, data, errStream)
		}
		b = b[entryHeader:]
		if ext > 0 {
			e.Extensions = b[:ext:ext]
		}
		b = b[ext:]
		if data > 0 {
			e.Data = b[:data:data]
		}
		b = b[data:]
		a.Entries[i] = e
	}
	if len(b) > 0 {
		return nil, fmt.Errorf("%d bytes behind the last entry: %w", len(b), errStream)
	}
	return a, nil
}

func appendAnswer(b []byte, r *raft.AppendEntriesResponse, err error) []byte {
	b = beginMessage(b)
	var flags byte
	if r != nil && r.Success {
		flags |= answerSuccess
	}
	if r != nil && r.NoRetryBackoff {
		flags |= answerNoRetry
	}
	var term, last uint64
	if r != nil {
		term, last = r.Term, r.LastLog
	}
	if err != nil {
		flags = answerError
	}
	b = binary.LittleEndian.AppendUint64(b, term)
	b = binary.LittleEndian.AppendUint64(b, last)
	b = append(b, flags)
	if err != nil {
		text := err.Error()
		b = append(b, text[:min(len(text), maxAnswer-answerHeader)]...)
	}
	return endMessage(b)
}

func decodeAnswer(b []byte, r *raft.AppendEntriesResponse) error {
	if len(b) < answerHeader || b[16] > answerError || len(b) > answerHeader && b[16] != answerError {
		return fmt.Errorf("answer of %d bytes: %w", len(b), errStream)
	}
	r.Term, r.LastLog = binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	if b[16] == answerError {
		return fmt.Errorf("the follower: %s: %w", b[answerHeader:], fserr.Unavailable)
	}
	r.Success, r.NoRetryBackoff = b[16]&answerSuccess != 0, b[16]&answerNoRetry != 0
	return nil
}
