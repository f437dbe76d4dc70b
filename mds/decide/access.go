package decide

import (
	"slices"

	"varve/internal/wire/msg"
	"varve/mds/state"
)

// Bits of an access mask, as access(2) has them.
const (
	MayRead  = 4
	MayWrite = 2
	MayExec  = 1
)

// CheckAccess reports whether the mode bits of n allow cred all of mask. Root may do everything, but for
// executing a regular file that nobody may execute.
func CheckAccess(n *state.Inode, cred *msg.Cred, mask uint32) bool {
	perm := n.Perm()
	if cred.GetUid() == 0 {
		return mask&MayExec == 0 || n.IsDir() || perm&0o111 != 0
	}
	switch {
	case cred.GetUid() == n.UID:
		perm >>= 6
	case inGroup(cred, n.GID):
		perm >>= 3
	}
	return perm&mask == mask&7
}

func inGroup(cred *msg.Cred, gid uint32) bool {
	return cred.GetGid() == gid || slices.Contains(cred.GetGroups(), gid)
}
