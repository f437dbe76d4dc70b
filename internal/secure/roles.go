package secure

import (
	"varve/internal/pki"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// Roles is a set of roles.
type Roles uint8

func of(roles ...pki.Role) (s Roles) {
	for _, r := range roles {
		s |= 1 << r
	}
	return s
}

var (
	nodes   = of(pki.RoleNode)
	admins  = of(pki.RoleAdmin)
	members = of(pki.RoleNode, pki.RoleAdmin)
	files   = of(pki.RoleNode, pki.RoleReader) // sessions
	anybody = of(pki.RoleNode, pki.RoleAdmin, pki.RoleReader)
)

// requests says which roles may ask for what. What is not here nobody may ask for. A reader sees what the journal holds, names of files
// included, as it does when it mounts.
var requests = map[wire.Type]Roles{
	wire.Hello: anybody, // hellos has more

	// Sessions. What may be asked by Meta, operations has.
	wire.Meta:         anybody,
	wire.OpenSession:  files,
	wire.RenewSession: files,
	wire.CloseSession: anybody, // of others: MayEnd
	wire.Callback:     nodes,

	// Servers.
	wire.RegisterServer: nodes,
	wire.ChunkReport:    nodes,
	wire.Heartbeat:      nodes,
	wire.JoinMeta:       members,
	wire.Trust:          anybody,

	// What looks at the cluster.
	wire.Status:           anybody,
	wire.StateDigest:      anybody,
	wire.Members:          anybody,
	wire.JournalRead:      anybody,
	wire.GetConfig:        anybody,
	wire.WhatIf:           anybody,
	wire.LeaseShow:        anybody,
	wire.ListCertificates: anybody,
	wire.SecureStatus:     anybody,
	wire.StoreStat:        anybody,
	wire.NetInfo:          anybody,

	// What costs servers time and network.
	wire.NetEcho:     members,
	wire.NetProbe:    members,
	wire.NetTest:     members,
	wire.NetRelay:    admins,
	wire.ChunkVerify: members,
	wire.ChunkList:   members,
	wire.ChunkTable:  members,
	wire.ChunkSeek:   anybody,

	// What changes the cluster.
	wire.RemoveMeta:     admins,
	wire.TransferLeader: admins,
	wire.SetConfig:      admins,
	wire.FenceSession:   admins,
	wire.LeaseTake:      admins,
	wire.SetServerMode:  admins,
	wire.RemoveServer:   admins,
	wire.SetTier:        admins,
	wire.Revoke:         admins,
	wire.ChangeSecurity: admins,
	wire.Scrub:          members, // to begin one: the chunk server asks for an administrator

	// Chunks: administrators make and fill those that belong to no file; the leader asks on the connection that the chunk server made.
	wire.ChunkCreate:  admins,
	wire.ChunkDelete:  admins,
	wire.ChunkAdopt:   nodes,
	wire.ChunkAccept:  nodes,
	wire.ChunkJoin:    nodes,
	wire.ChunkRebuild: nodes,
	wire.ChunkPromote: nodes,
	wire.ChunkPunch:   nodes,
	wire.Fence:        nodes,

	// Data. What a session may, its capability says.
	wire.Read:           anybody,
	wire.Write:          members,
	wire.Punch:          members,
	wire.Flush:          members,
	wire.ShowCapability: files,
}

// hellos says which roles may introduce themselves as what.
var hellos = map[msg.Hello_Role]Roles{
	msg.Hello_CLIENT:          files,
	msg.Hello_CHUNK_SERVER:    nodes,
	msg.Hello_METADATA_SERVER: nodes,
	msg.Hello_ADMIN:           anybody,
}

// May reports whether a role may ask for something.
func May(t wire.Type, r pki.Role) bool { return requests[t]&of(r) != 0 }

// MayGreet reports whether a role may introduce itself as something.
func MayGreet(h msg.Hello_Role, r pki.Role) bool { return hellos[h]&of(r) != 0 }

// MayDo reports whether a role may do an operation on files. Without a session, as administrators do them, nodes and readers may only look.
func MayDo(req *msg.MetaRequest, r pki.Role) bool {
	switch r {
	case pki.RoleAdmin:
		return req.Session == 0
	case pki.RoleNode:
		return req.Session != 0 || looks(req)
	case pki.RoleReader:
		return looks(req)
	}
	return false
}

// looks reports whether an operation changes nothing that others see.
func looks(req *msg.MetaRequest) bool {
	switch op := req.Op.(type) {
	case *msg.MetaRequest_Lookup, *msg.MetaRequest_GetAttr, *msg.MetaRequest_ReadDir, *msg.MetaRequest_ReadLink, *msg.MetaRequest_GetXattr,
		*msg.MetaRequest_ListXattr, *msg.MetaRequest_Access, *msg.MetaRequest_StatFs, *msg.MetaRequest_Release, *msg.MetaRequest_GetLayout,
		*msg.MetaRequest_GetPolicy:
		return true
	case *msg.MetaRequest_Open:
		return op.Open.Want != msg.Want_WANT_WRITE && !op.Open.Trunc && op.Open.Mask&mayWrite == 0
	}
	return false
}

// mayWrite is MAY_WRITE of access masks.
const mayWrite = 2

// Rights returns what the sessions of a role may do with chunks.
func Rights(r pki.Role) pki.Rights {
	switch r {
	case pki.RoleNode:
		return pki.Read | pki.Write
	case pki.RoleReader:
		return pki.Read
	}
	return 0
}
