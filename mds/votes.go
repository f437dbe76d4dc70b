package mds

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/hashicorp/raft"

	"varve/internal/disk"
	"varve/internal/id"
)

// File "votes", version 1. Little-endian. What Raft must remember besides its log: the term, and whom the server voted for.
//
// Two slots of 4096 bytes; the valid one with the higher sequence number holds. A change is written over the other one and synced.
//
//	offset size
//	 0     4    magic "VRVV"
//	 4     4    version
//	 8     16   cluster
//	24     8    sequence number of the change, from 1
//	32     8    current term
//	40     8    term of the last vote, 0: none
//	48     4    length of the candidate, at most 512
//	52     -    the candidate, as Raft names it; zeros up to offset 1020
//	1020   4    CRC32C of what is before
//	1024   -    zeros
//
// A torn write leaves the other slot, and was never answered. Both slots are written in full when the file is made, so that a change needs no
// room: a server whose disk is full can vote. The term and the candidate of a vote are one change: with one written and not the other, a
// candidate of an earlier term could be taken for the one that was voted for. Versions: 1, first.
const (
	votesFile    = "votes"
	votesMagic   = "VRVV"
	votesVersion = 1
	votesSlot    = 4096
	votesSummed  = 1020
	maxCandidate = 512
)

var (
	votesTable   = crc32.MakeTable(crc32.Castagnoli)
	keyTerm      = "CurrentTerm"
	keyVoteTerm  = "LastVoteTerm"
	keyVoteCand  = "LastVoteCand"
	errKeyAbsent = errors.New("not found") // Raft compares the text
	errVotesDead = errors.New("the votes of this server could not be written")
)

type votes struct {
	seq, term, voteTerm uint64
	candidate           []byte
}

// voteStore is a raft.StableStore for the few keys that Raft has.
type voteStore struct {
	path    string
	file    disk.File
	cluster id.Cluster
	failed  func(error) // told once that the file could not be written

	mu      sync.Mutex
	now     votes
	pending uint64 // term of the vote whose candidate comes next
	dead    error
}

var _ raft.StableStore = (*voteStore)(nil)

// openVotes opens the file, or makes it with first.
func openVotes(fsys disk.FS, path string, cluster id.Cluster, first votes, failed func(error)) (*voteStore, error) {
	v := &voteStore{path: path, cluster: cluster, failed: failed}
	_, err := fsys.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := v.create(fsys, first); err != nil {
			return nil, fmt.Errorf("make %s: %w", path, err)
		}
	case err != nil:
		return nil, err
	}
	if v.file, err = fsys.Open(path, disk.ReadWrite); err != nil {
		return nil, err
	}
	if err := v.load(); err != nil {
		return nil, errors.Join(err, v.file.Close())
	}
	return v, nil
}

func (v *voteStore) create(fsys disk.FS, first votes) error {
	first.seq = 1
	b := append(v.encode(first), v.encode(first)...)
	if err := writeFile(fsys, v.path+".new", b); err != nil {
		return err
	}
	if err := fsys.Rename(v.path+".new", v.path); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(v.path))
}

func (v *voteStore) encode(x votes) []byte {
	le := binary.LittleEndian
	b := make([]byte, votesSlot)
	copy(b, votesMagic)
	le.PutUint32(b[4:], votesVersion)
	copy(b[8:], v.cluster[:])
	le.PutUint64(b[24:], x.seq)
	le.PutUint64(b[32:], x.term)
	le.PutUint64(b[40:], x.voteTerm)
	le.PutUint32(b[48:], uint32(len(x.candidate)))
	copy(b[52:], x.candidate)
	le.PutUint32(b[votesSummed:], crc32.Checksum(b[:votesSummed], votesTable))
	return b
}

func (v *voteStore) decode(b []byte) (votes, bool) {
	le := binary.LittleEndian
	n := le.Uint32(b[48:])
	if string(b[:4]) != votesMagic || le.Uint32(b[4:]) != votesVersion || id.Cluster(b[8:24]) != v.cluster || n > maxCandidate ||
		le.Uint32(b[votesSummed:]) != crc32.Checksum(b[:votesSummed], votesTable) {
		return votes{}, false
	}
	x := votes{seq: le.Uint64(b[24:]), term: le.Uint64(b[32:]), voteTerm: le.Uint64(b[40:])}
	if n > 0 {
		x.candidate = append([]byte(nil), b[52:52+n]...)
	}
	return x, x.seq > 0
}

func (v *voteStore) load() error {
	b := make([]byte, 2*votesSlot)
	if n, err := v.file.ReadAt(b, 0); err != nil && !(errors.Is(err, io.EOF) && n == len(b)) {
		return fmt.Errorf("%s: %w", v.path, err)
	}
	found := false
	for i := range 2 {
		if x, ok := v.decode(b[i*votesSlot : (i+1)*votesSlot]); ok && (!found || x.seq > v.now.seq) {
			v.now, found = x, true
		}
	}
	if !found {
		return fmt.Errorf("%s: neither of its two slots holds this server's votes, so it could vote twice; make the server anew with make-mds --rebuild", v.path)
	}
	return nil
}

// write makes x what holds. The caller holds mu.
func (v *voteStore) write(x votes) error {
	if v.dead != nil {
		return v.dead
	}
	x.seq = v.now.seq + 1
	_, err := v.file.WriteAt(v.encode(x), int64(x.seq%2)*votesSlot)
	if err == nil {
		err = v.file.Sync()
	}
	if err != nil {
		v.dead = fmt.Errorf("%w: %s: %w", errVotesDead, v.path, err)
		v.failed(v.dead)
		return v.dead
	}
	v.now = x
	return nil
}

// alive returns why nothing may be promised any more, or nil.
func (v *voteStore) alive() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.dead
}

// SetUint64 implements raft.StableStore. Raft takes an error for the term as the end of the process, which may be no server alone. So there is
// none, but the store is dead: no vote and no entry is promised after that, and the server stops.
func (v *voteStore) SetUint64(key []byte, n uint64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch string(key) {
	case keyTerm:
		if n != v.now.term {
			x := v.now
			x.term = n
			_ = v.write(x)
		}
		return nil
	case keyVoteTerm:
		v.pending = n
		return v.dead
	}
	return fmt.Errorf("votes: unknown key %q", key)
}

// GetUint64 implements raft.StableStore.
func (v *voteStore) GetUint64(key []byte) (uint64, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := uint64(0)
	switch string(key) {
	case keyTerm:
		n = v.now.term
	case keyVoteTerm:
		n = v.now.voteTerm
	}
	if n == 0 {
		return 0, errKeyAbsent
	}
	return n, nil
}

// Set implements raft.StableStore: the candidate of the vote whose term came before.
func (v *voteStore) Set(key, value []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if string(key) != keyVoteCand || len(value) > maxCandidate {
		return fmt.Errorf("votes: unknown key %q, or value of %d bytes", key, len(value))
	}
	x := v.now
	x.candidate = append([]byte(nil), value...)
	if v.pending != 0 {
		x.voteTerm = v.pending
	}
	v.pending = 0
	return v.write(x)
}

// Get implements raft.StableStore.
func (v *voteStore) Get(key []byte) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if string(key) != keyVoteCand || v.now.candidate == nil {
		return nil, errKeyAbsent
	}
	return append([]byte(nil), v.now.candidate...), nil
}

// close ends the store: a heartbeat that comes while Raft stops changes nothing any more.
func (v *voteStore) close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.dead == nil {
		v.dead = errVotesDead
	}
	return v.file.Close()
}
