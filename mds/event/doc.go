// Package event is the closed set of facts that the metadata log consists of, as protobuf messages:
// see event.proto, which says of each what it means.
//
// The leader builds events (package decide and the planners), Raft orders them in batches, package
// state applies them, and the journal keeps them for ever. An event is not changed after it was
// proposed; only Apply sets its Index.
//
// Kind names the body of an event for logs and people.
package event

// Kind returns the name of the event's body as in event.proto, such as "create", or "none".
func Kind(e *Event) string {
	switch e.GetBody().(type) {
	case *Event_ClusterInit:
		return "cluster-init"
	case *Event_SessionOpen:
		return "session-open"
	case *Event_SessionClose:
		return "session-close"
	case *Event_SessionForgotten:
		return "session-forgotten"
	case *Event_Create:
		return "create"
	case *Event_Link:
		return "link"
	case *Event_Remove:
		return "remove"
	case *Event_Rename:
		return "rename"
	case *Event_SetAttr:
		return "setattr"
	case *Event_SetXattr:
		return "setxattr"
	case *Event_RemoveXattr:
		return "removexattr"
	case *Event_LeaseSet:
		return "lease-set"
	case *Event_LockSet:
		return "lock-set"
	case *Event_PolicySet:
		return "policy-set"
	case *Event_ChunkAlloc:
		return "chunk-alloc"
	case *Event_ReplicaDrop:
		return "replica-drop"
	case *Event_ReplicaJoin:
		return "replica-join"
	case *Event_ReplicaSync:
		return "replica-sync"
	case *Event_ServerLost:
		return "server-lost"
	case *Event_Purged:
		return "purged"
	case *Event_PunchDone:
		return "punch-done"
	case *Event_Settled:
		return "settled"
	case *Event_ReplicaAccept:
		return "replica-accept"
	case *Event_BadBlocks:
		return "bad-blocks"
	case *Event_ServerAdd:
		return "server-add"
	case *Event_ServerUpdate:
		return "server-update"
	case *Event_ServerRetire:
		return "server-retire"
	case *Event_ServerMode:
		return "server-mode"
	case *Event_MetaAdd:
		return "meta-add"
	case *Event_MetaUpdate:
		return "meta-update"
	case *Event_MetaRemove:
		return "meta-remove"
	case *Event_ConfigSet:
		return "config-set"
	case *Event_SecuritySet:
		return "security-set"
	case *Event_CertIssue:
		return "cert-issue"
	case *Event_CertRevoke:
		return "cert-revoke"
	case *Event_Digest:
		return "digest"
	}
	return "none"
}
