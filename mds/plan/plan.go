package plan

import "varve/internal/id"

// ServerView is what the leader knows about a chunk server.
type ServerView struct {
	ID    id.ServerID
	Host  string
	Rack  string // RACK, ROW/RACK or ROOM/ROW/RACK
	Tier  uint32
	Free  uint64 // bytes
	Total uint64 // bytes
	Live  bool   // registered and heard from
	Lost  bool   // not live for longer than the grace period
	Load  int    // rebuilds under way from or to it

	Slow     bool // it answers late: others are taken in its place where there are others
	Standby  bool // it gets no new replicas, and keeps those it has
	Draining bool // it gets no new replicas, and is to lose those it has

	Coming uint64 // bytes that rebuilds under way will still write there
	Going  uint64 // bytes there of chunks that are to be deleted

	// Stale reports whether the server said that it has an old copy of the chunk; nil: none.
	Stale func(id.ChunkID) bool
}

// Kind is what an Action does.
type Kind uint8

const (
	Join   Kind = iota + 1 // make Target a joining replica (event ReplicaJoin, epoch+1) and rebuild it from Source
	Drop                   // remove the joining replica on Target, which is lost, to make room for another (event ReplicaDrop)
	Remove                 // remove the in-sync replica on Target, since enough others are (event ReplicaDrop)
)

// Action is one step of repair.
type Action struct {
	Chunk  id.ChunkID
	Kind   Kind
	Target id.ServerID
	Source id.ServerID // Join: an in-sync live replica

	Class  Class
	Reason Reason
	From   id.ServerID // Join that moves a replica: whose place Target is to take; 0: none
	Bytes  uint64      // that a Join copies at most, or that a Drop or Remove frees at most
}

// Class is how pressing an action is.
type Class uint8

const (
	Urgent   Class = iota + 1 // one in-sync replica is left, or fewer than the file's minimum: writes wait, or one more loss loses data
	Restore                   // fewer in-sync replicas than there should be
	Tidy                      // replicas that are in the way: nothing is copied
	Evacuate                  // a server is being emptied
	Correct                   // against an attribute: wrong tier, one failure domain twice, not where it is preferred
	Improve                   // right, but would be better elsewhere: fill levels, locality
)

// Reason is why an action is planned.
type Reason uint8

const (
	LastReplica   Reason = iota + 1 // one in-sync replica is left of several
	BelowMin                        // fewer in-sync replicas than the file's minimum
	BelowNorm                       // fewer than it should have
	NotRebuilt                      // joining, and nobody rebuilds it
	JoiningLost                     // joining on a lost server
	Surplus                         // more in-sync replicas than it should have, or a move that is done
	ServerDrained                   // its server is being emptied
	SharedDomain                    // another replica is in the same failure domain
	WrongTier                       // it is not on the tier of its attribute, which has room
	NotPreferred                    // a server that its attribute prefers has none
	UnevenFill                      // its server is fuller than others
	NotLocal                        // the host that writes the file has none
)

var classWords = [...]string{"none", "urgent", "restore", "tidy", "evacuate", "correct", "improve"}

// String returns the class in one word.
func (c Class) String() string {
	if int(c) < len(classWords) {
		return classWords[c]
	}
	return "unknown"
}

var reasonWords = [...]string{
	0:             "no reason",
	LastReplica:   "one replica left",
	BelowMin:      "fewer replicas than it must have",
	BelowNorm:     "fewer replicas than it should have",
	NotRebuilt:    "joining, and not being rebuilt",
	JoiningLost:   "joining on a lost server",
	Surplus:       "more replicas than it should have",
	ServerDrained: "its server is drained",
	SharedDomain:  "two replicas in one failure domain",
	WrongTier:     "not on its tier",
	NotPreferred:  "not where it is preferred",
	UnevenFill:    "its server is fuller than others",
	NotLocal:      "not on the host that writes it",
}

// String returns the reason in words.
func (r Reason) String() string {
	if int(r) < len(reasonWords) {
		return reasonWords[r]
	}
	return "unknown reason"
}
