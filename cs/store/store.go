// Package store keeps the chunks of one chunk server on disk.
package store

import (
	"io"

	"varve/cs/repl"
	"varve/internal/fserr"
	"varve/internal/id"
)

// Store is the chunks under one directory. Its methods may be called at once from any goroutines.
type Store struct{}

// Info is what List tells of a chunk.
type Info struct {
	ID    id.ChunkID
	Epoch id.Epoch
	State repl.State
}

// Open takes the directory's lock. It refuses another cluster's directory with WrongCluster.
func Open(o Options) (*Store, error) { return nil, fserr.NotSupported }

// Close waits for operations under way, flushes and settles everything.
func (s *Store) Close() error { return fserr.NotSupported }

// Create makes an empty chunk, durably. Exist if it is there with another epoch.
func (s *Store) Create(c id.ChunkID, e id.Epoch) error { return fserr.NotSupported }

// Delete removes a chunk, durably. It is not an error if it is not there.
func (s *Store) Delete(c id.ChunkID) error { return fserr.NotSupported }

// Write writes p at off. sums is as chunk.AppendSums makes it; it is verified first (BadChecksum).
func (s *Store) Write(c id.ChunkID, e id.Epoch, off uint32, p []byte, sums []uint32) error {
	return fserr.NotSupported
}

// WriteThen is Write; then is called after the write while its blocks are still locked.
func (s *Store) WriteThen(c id.ChunkID, e id.Epoch, off uint32, p []byte, sums []uint32, then func() error) error {
	return fserr.NotSupported
}

// Read fills dst (n bytes) and sums (n/4096) from off; both are multiples of 4096.
func (s *Store) Read(c id.ChunkID, e id.Epoch, off, n uint32, dst []byte, sums []uint32) error {
	return fserr.NotSupported
}

// Punch makes the bytes [from, to) zero; whole blocks become holes.
func (s *Store) Punch(c id.ChunkID, e id.Epoch, from, to uint32) error { return fserr.NotSupported }

// PunchThen is Punch; then is called while the blocks are still locked.
func (s *Store) PunchThen(c id.ChunkID, e id.Epoch, from, to uint32, then func() error) error {
	return fserr.NotSupported
}

// Flush puts all writes to the chunk that have returned on stable media.
func (s *Store) Flush(c id.ChunkID, e id.Epoch) error { return fserr.NotSupported }

// Table returns a copy of the checksums of all blocks.
func (s *Store) Table(c id.ChunkID) (sums []uint32, e id.Epoch, st repl.State, err error) {
	return nil, 0, 0, fserr.NotSupported
}

// Seek returns the first offset at or after off that is in a hole (or not in one), false if there is none.
func (s *Store) Seek(c id.ChunkID, e id.Epoch, off uint32, hole bool) (uint32, bool, error) {
	return 0, false, fserr.NotSupported
}

// Adopt raises the epoch of a serving replica, durably.
func (s *Store) Adopt(c id.ChunkID, e id.Epoch) error { return fserr.NotSupported }

// Join makes the replica joining at epoch e, durably; it makes the chunk if it is not there.
func (s *Store) Join(c id.ChunkID, e id.Epoch) error { return fserr.NotSupported }

// Promote makes a joining replica of epoch e serve.
func (s *Store) Promote(c id.ChunkID, e id.Epoch) error { return fserr.NotSupported }

// Accept makes an unclean replica serve with what is on its disk.
func (s *Store) Accept(c id.ChunkID) error { return fserr.NotSupported }

// RepairWrite writes whole blocks from the source of a rebuild, leaving out what is fresh. A block
// whose sum is chunk.Hole is punched. data may be nil if all are.
func (s *Store) RepairWrite(c id.ChunkID, e id.Epoch, block uint32, data []byte, sums []uint32) (written int, err error) {
	return 0, fserr.NotSupported
}

// List returns up to max chunks with ids above after, in order.
func (s *Store) List(after id.ChunkID, max int) (infos []Info, more bool) { return nil, false }

// Verify reads every block of a chunk and returns how many there are (holes left out), how many do
// not match their checksum, and a digest that is equal for chunks of equal contents.
func (s *Store) Verify(c id.ChunkID) (blocks, bad int, digest [32]byte, err error) {
	return 0, 0, digest, fserr.NotSupported
}

// Space returns the room on the filesystem in bytes.
func (s *Store) Space() (total, free uint64, err error) { return 0, 0, fserr.NotSupported }

// Count returns the number of chunks.
func (s *Store) Count() int { return 0 }

// Settle flushes and unmarks up to max chunks with extents that are quiet, and returns how many.
func (s *Store) Settle(max int) (int, error) { return 0, fserr.NotSupported }

// Report is what Check found.
type Report struct {
	Chunks, Blocks int
	Faults         []string // one sentence each, at most MaxFaults
}

// Check reads every chunk of a store that is not open and reports what is wrong.
func Check(o Options) (Report, error) { return Report{}, fserr.NotSupported }

// Dump writes a chunk file or an activity log in a form for people.
func Dump(w io.Writer, path string) error { return fserr.NotSupported }
