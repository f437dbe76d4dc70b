// Package plan says where chunks go and what must be done so that each has enough replicas: pure
// functions of the state and of what the leader knows about the servers.
//
// Place chooses servers for new chunks, Repair lists the next steps for degraded ones. Both are
// deterministic. Limits bound how much is under way at once.
package plan

import (
	"varve/internal/id"
	"varve/mds/state"
)

// ServerView is what the leader knows about a chunk server.
type ServerView struct {
	ID    id.ServerID
	Host  string
	Rack  string
	Tier  uint32
	Free  uint64 // bytes
	Total uint64 // bytes
	Live  bool   // registered and heard from
	Lost  bool   // not live for longer than the grace period
	Load  int    // rebuilds under way from or to it
	// Stale reports whether the server said that it has an old copy of the chunk; nil: none.
	Stale func(id.ChunkID) bool
}

// Limits bound what Repair starts.
type Limits struct {
	Actions   int    // steps returned
	PerServer int    // rebuilds from or to one server, those under way (Load) included
	Reserve   uint64 // free bytes that a target keeps
}

// Kind is what an Action does.
type Kind uint8

const (
	Join Kind = iota + 1 // make Target a joining replica (event ReplicaJoin, epoch+1) and rebuild it from Source
	Drop                 // remove the joining replica on Target, which is lost, to make room for another (event ReplicaDrop)
)

// Action is one step of repair.
type Action struct {
	Chunk  id.ChunkID
	Kind   Kind
	Target id.ServerID
	Source id.ServerID // an in-sync live replica
}

// Place chooses up to norm different live servers for a new chunk.
func Place(s *state.State, views []ServerView, seed uint64, norm int, exclude ...id.ServerID) []id.ServerID {
	return nil
}

// Repair returns the next steps for degraded chunks, those with fewest in-sync replicas first. busy reports the
// chunks whose rebuild is under way; they are left alone.
func Repair(s *state.State, views []ServerView, limits Limits, busy func(id.ChunkID) bool) []Action {
	return nil
}
