// Package fserr is the closed set of outcomes that an operation can have. The server that decides
// an operation picks the Code, it crosses the wire as a number, and only package fuse turns it into
// a syscall.Errno. Numbers are part of the wire format: they are never changed or reused.
package fserr

import (
	"errors"
	"fmt"
)

// Code is one outcome. The zero value is success. A Code other than OK is an error.
type Code uint16

// Outcomes that an application may see.
const (
	OK           Code = 0
	NotExist     Code = 1  // ENOENT
	Exist        Code = 2  // EEXIST
	NotDir       Code = 3  // ENOTDIR
	IsDir        Code = 4  // EISDIR
	NotEmpty     Code = 5  // ENOTEMPTY
	Access       Code = 6  // EACCES: the mode bits forbid it
	Perm         Code = 7  // EPERM: only the owner or root may
	NameTooLong  Code = 8  // ENAMETOOLONG
	TooManyLinks Code = 9  // EMLINK
	Invalid      Code = 10 // EINVAL
	NoSpace      Code = 11 // ENOSPC
	ReadOnly     Code = 12 // EROFS
	Loop         Code = 13 // ELOOP
	CrossDevice  Code = 14 // EXDEV
	NoAttr       Code = 15 // ENODATA: no such extended attribute
	Range        Code = 16 // ERANGE: the buffer is too small
	FileTooBig   Code = 17 // EFBIG
	Again        Code = 18 // EAGAIN: would block
	Deadlock     Code = 19 // EDEADLK
	Stale        Code = 20 // ESTALE: the handle's session was fenced or its inode is gone
	IO           Code = 21 // EIO
	NotSupported Code = 22 // EOPNOTSUPP
	BadHandle    Code = 23 // EBADF
	Busy         Code = 24 // EBUSY
	Interrupted  Code = 25 // EINTR
	TooLong      Code = 26 // E2BIG: an attribute value over the limit
	NoDevice     Code = 27 // ENXIO: SEEK_DATA or SEEK_HOLE at or past the end
)

// Outcomes between varve's own parts; each is handled before an application sees it.
const (
	NotLeader     Code = 100 // ask the metadata server named in the reply
	StaleEpoch    Code = 101 // the chunk has a higher epoch: fetch the layout again
	NoChunk       Code = 102 // the chunk server does not hold the chunk
	Fenced        Code = 103 // the session was fenced
	NoSession     Code = 104 // the session is unknown or has expired: open a new one
	NotReady      Code = 105 // the replica is joining, unclean or starting: read elsewhere, write later
	BadChecksum   Code = 106 // the payload does not match its checksum
	TooFew        Code = 107 // dropping the replica would leave fewer than the minimum
	Unavailable   Code = 108 // no leader, no chunk server, or it is shutting down
	Timeout       Code = 109 // no answer in time; the operation may or may not have happened
	WrongCluster  Code = 110 // the peer belongs to another cluster
	Protocol      Code = 111 // malformed or oversized message
	ReplicaFailed Code = 112 // the ordering replica could not forward to the replica named in the reply
	Retired       Code = 113 // the server's id was removed from the cluster for good
	Denied        Code = 114 // the role of the peer's certificate does not allow that
	Foreign       Code = 115 // the session or server that the peer names belongs to another node
	NoCapability  Code = 116 // the session has shown no capability for that, or its time is over: get a new one
)

var names = map[Code]string{
	OK: "ok", NotExist: "no such file or directory", Exist: "file exists", NotDir: "not a directory",
	IsDir: "is a directory", NotEmpty: "directory not empty", Access: "permission denied",
	Perm: "operation not permitted", NameTooLong: "name too long", TooManyLinks: "too many links",
	Invalid: "invalid argument", NoSpace: "no space left", ReadOnly: "read-only", Loop: "too many symbolic links",
	CrossDevice: "crosses devices", NoAttr: "no such attribute", Range: "result too large for the buffer",
	FileTooBig: "file too large", Again: "would block", Deadlock: "would deadlock", Stale: "stale handle",
	IO: "input/output error", NotSupported: "not supported", BadHandle: "bad handle", Busy: "busy",
	Interrupted: "interrupted", TooLong: "value too long", NoDevice: "no data or hole there",
	NotLeader: "not the leader", StaleEpoch: "stale epoch",
	NoChunk: "no such chunk", Fenced: "session fenced", NoSession: "no such session", NotReady: "replica not ready",
	BadChecksum: "checksum mismatch", TooFew: "too few replicas would remain", Unavailable: "unavailable",
	Timeout: "timed out", WrongCluster: "wrong cluster", Protocol: "protocol error",
	ReplicaFailed: "replica failed", Retired: "server id retired",
	Denied:  "the role of this node's certificate does not allow that; what changes the cluster needs one of an administrator: varve auth-node --role admin",
	Foreign: "the session or server belongs to another node", NoCapability: "no capability, or its time is over",
}

// Error returns the outcome in words.
func (c Code) Error() string {
	if n, ok := names[c]; ok {
		return n
	}
	return fmt.Sprintf("outcome %d", uint16(c))
}

// Err returns nil for OK and c otherwise.
func (c Code) Err() error {
	if c == OK {
		return nil
	}
	return c
}

// Of returns the Code that err wraps: OK for nil, IO for an error that wraps none.
func Of(err error) Code {
	if err == nil {
		return OK
	}
	var c Code
	if errors.As(err, &c) {
		return c
	}
	return IO
}
