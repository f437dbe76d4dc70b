// Package plan says where chunks go and what must be done so that each has enough replicas: pure
// functions of the state and of what the leader knows about the servers.
//
// Place chooses servers for new chunks, Repair lists the next steps for degraded ones. Both are
// deterministic. Limits bound how much is under way at once.
//
// An in-sync replica on a dead server is not the planner's business: after the grace period the leader gives the
// server up with the event ServerLost, and then its chunks are degraded.
package plan

import (
	"varve/internal/chunk"
	"varve/internal/id"
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
	Actions   int    // steps returned; default 16
	PerServer int    // rebuilds from or to one server, those under way (Load) included; default 2
	Reserve   uint64 // bytes that a server keeps free; default one chunk
	Scan      int    // degraded chunks looked at; default 4096
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

func (l Limits) orDefault() Limits {
	if l.Actions == 0 {
		l.Actions = 16
	}
	if l.PerServer == 0 {
		l.PerServer = 2
	}
	if l.Reserve == 0 {
		l.Reserve = chunk.Size
	}
	if l.Scan == 0 {
		l.Scan = 4096
	}
	return l
}
