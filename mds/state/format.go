package state

import (
	"crypto/sha256"
	"errors"
	"io"

	"varve/internal/chunk"
)

// maxChunks is the number of chunks of the largest file.
const maxChunks = chunk.MaxFileSize / chunk.Size

// ErrCorrupt is what Read returns for anything that Write did not write.
var ErrCorrupt = errors.New("state: corrupt checkpoint")

// Write writes a checkpoint of the state.
func (s *State) Write(w io.Writer) error { return nil }

// Read reads what Write wrote.
func Read(r io.Reader) (*State, error) { return nil, ErrCorrupt }

// Digest names the state: SHA-256 over the body of a checkpoint, which is canonical.
func (s *State) Digest() [sha256.Size]byte { return [sha256.Size]byte{} }
