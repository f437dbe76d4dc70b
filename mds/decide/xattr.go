package decide

import (
	"encoding/binary"
	"strings"

	"varve/internal/fserr"
	"varve/internal/wire/msg"
	"varve/mds/event"
	"varve/mds/state"
)

// Limits of extended attributes, in bytes, as Linux has them but for the last.
const (
	maxXattrName  = 255
	maxXattrValue = 64 << 10
	maxXattrTotal = 256 << 10 // names and values of one inode
)

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// checkXattr checks name and right, to write or to read (fs/xattr.c, xattr_permission).
func (d *decider) checkXattr(n *state.Inode, name string, write bool) fserr.Code {
	refused, mask := fserr.NoAttr, uint32(MayRead)
	if write {
		refused, mask = fserr.Perm, MayWrite
	}
	switch {
	case name == "":
		return fserr.Invalid
	case len(name) > maxXattrName:
		return fserr.Range
	case strings.HasPrefix(name, "user.") && len(name) > len("user."):
		switch {
		case !n.IsRegular() && !n.IsDir():
			return refused
		case write && n.IsDir() && n.Perm()&sticky != 0 && !d.owner(n):
			return fserr.Perm
		case !d.may(n, mask):
			return fserr.Access
		}
	case strings.HasPrefix(name, "trusted.") && len(name) > len("trusted."):
		if d.cred.GetUid() != 0 {
			return refused
		}
	case strings.HasPrefix(name, "security.") && len(name) > len("security."):
		if write && !d.free() {
			return fserr.Perm
		}
	case name == aclAccess || name == aclDefault:
		switch {
		case n.Type() == msg.FileType_SYMLINK:
			return fserr.NotSupported
		case write && name == aclDefault && !n.IsDir():
			return fserr.Access
		case write && !d.owner(n):
			return fserr.Perm
		}
	default:
		return fserr.NotSupported
	}
	return fserr.OK
}

func (d *decider) getXattr(op *msg.GetXattr) Outcome {
	n, code := d.inode(op.Ino)
	if code == fserr.OK {
		code = d.checkXattr(n, string(op.Name), false)
	}
	if code != fserr.OK {
		return fail(code, "")
	}
	v, ok := n.Xattr(string(op.Name))
	if !ok {
		return fail(fserr.NoAttr, "")
	}
	return d.answer(n, &msg.MetaReply{Result: &msg.MetaReply_Data{Data: []byte(v)}})
}

func (d *decider) setXattr(op *msg.SetXattr) Outcome {
	n, code := d.inode(op.Ino)
	if code == fserr.OK {
		code = d.checkXattr(n, string(op.Name), true)
	}
	if code != fserr.OK {
		return fail(code, "")
	}
	old, ok := n.Xattr(string(op.Name))
	total := len(op.Name) + len(op.Value)
	for _, x := range n.Xattrs() {
		if x.Name != string(op.Name) {
			total += len(x.Name) + len(x.Value)
		}
	}
	switch {
	case op.Create && op.Replace:
		return fail(fserr.Invalid, "")
	case len(op.Value) > maxXattrValue:
		return fail(fserr.TooLong, "")
	case ok && op.Create:
		return fail(fserr.Exist, "")
	case !ok && op.Replace:
		return fail(fserr.NoAttr, "")
	case total > maxXattrTotal:
		return fail(fserr.NoSpace, "")
	}
	ev := &event.SetXattr{Ino: op.Ino, Name: op.Name, Value: op.Value}
	if name := string(op.Name); name == aclAccess || name == aclDefault {
		bits, valid := aclPerm(op.Value)
		if !valid {
			return fail(fserr.Invalid, "")
		}
		if perm := n.Perm()&^0o777 | bits; name == aclAccess && perm != n.Perm() {
			ev.Perm = &perm
		}
	}
	if ok && old == string(op.Value) && ev.Perm == nil {
		return d.nothing(n.Ino)
	}
	return d.changes(&event.Event{Body: &event.Event_SetXattr{SetXattr: ev}})
}

// Tags of ACL entries (include/uapi/linux/posix_acl.h).
const (
	aclVersion  = 2
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// aclPerm returns the permission bits that an ACL stands for: a 4-byte version, then entries of tag (2), permission
// (2) and id (4). Owner, group and other must be there once, the mask if there are named entries; it is the group's bits then.
func aclPerm(v []byte) (uint32, bool) {
	if len(v) < 4 || (len(v)-4)%8 != 0 || binary.LittleEndian.Uint32(v) != aclVersion {
		return 0, false
	}
	var perm [aclOther + 1]uint32
	seen, named := 0, false
	for v = v[4:]; len(v) > 0; v = v[8:] {
		tag, p := int(binary.LittleEndian.Uint16(v)), uint32(binary.LittleEndian.Uint16(v[2:]))
		switch tag {
		case aclUser, aclGroup:
			named = true
		case aclUserObj, aclGroupObj, aclMask, aclOther:
			if seen&tag != 0 {
				return 0, false
			}
			perm[tag] = p
		default:
			return 0, false
		}
		if p > 7 {
			return 0, false
		}
		seen |= tag
	}
	const need = aclUserObj | aclGroupObj | aclOther
	if seen&need != need || named && seen&aclMask == 0 {
		return 0, false
	}
	group := perm[aclGroupObj]
	if seen&aclMask != 0 {
		group = perm[aclMask]
	}
	return perm[aclUserObj]<<6 | group<<3 | perm[aclOther], true
}

func (d *decider) listXattr(op *msg.ListXattr) Outcome {
	n, code := d.inode(op.Ino)
	if code != fserr.OK {
		return fail(code, "")
	}
	r := &msg.NameList{}
	for _, x := range n.Xattrs() {
		if !strings.HasPrefix(x.Name, "trusted.") || d.cred.GetUid() == 0 {
			r.Names = append(r.Names, []byte(x.Name))
		}
	}
	return d.answer(n, &msg.MetaReply{Result: &msg.MetaReply_Names{Names: r}})
}

func (d *decider) removeXattr(op *msg.RemoveXattr) Outcome {
	n, code := d.inode(op.Ino)
	if code == fserr.OK {
		code = d.checkXattr(n, string(op.Name), true)
	}
	if code != fserr.OK {
		return fail(code, "")
	}
	if _, ok := n.Xattr(string(op.Name)); !ok {
		return fail(fserr.NoAttr, "")
	}
	return d.changes(&event.Event{Body: &event.Event_RemoveXattr{RemoveXattr: &event.RemoveXattr{Ino: op.Ino, Name: op.Name}}})
}

func policyReply(s *state.State, n *state.Inode) *msg.PolicyReply {
	e, o := s.Policy(n.Ino), n.OwnPolicy()
	return &msg.PolicyReply{Effective: policyMessage(e), Own: policyMessage(o)}
}

func policyMessage(p state.Policy) *msg.Policy {
	return &msg.Policy{Norm: p.Norm, Min: p.Min, Tier: uint32(p.Tier), Domain: uint32(p.Domain), Prefer: p.Prefer}
}

// Which parts of a policy a SetPolicy sets.
const (
	setReplicas = 1 << iota
	setTier
	setDomain
	setPrefer
)

// withPolicy returns p with the parts that op sets, false if one of them cannot be.
func withPolicy(p state.Policy, op *msg.SetPolicy) (state.Policy, bool) {
	given, fields := op.GetPolicy(), op.Fields
	if fields == 0 {
		fields = setReplicas
	}
	if fields&setReplicas != 0 {
		p.Norm, p.Min = given.GetNorm(), given.GetMin()
	}
	if fields&setTier != 0 {
		p.Tier = uint8(min(given.GetTier(), state.AnyTier+1))
	}
	if fields&setDomain != 0 {
		p.Domain = state.Domain(min(given.GetDomain(), uint32(state.Room)+1))
	}
	if fields&setPrefer != 0 {
		p.Prefer = given.GetPrefer()
	}
	return p, p.Valid()
}

func (d *decider) getPolicy(op *msg.GetPolicy) Outcome {
	n, code := d.inode(op.Ino)
	if code != fserr.OK {
		return fail(code, "")
	}
	r := policyReply(d.s, n)
	r.Chunks = Layout(d.s, d.env, n.Ino, 0, maxLayout).Chunks
	return d.answer(n, &msg.MetaReply{Result: &msg.MetaReply_Policy{Policy: r}})
}

func (d *decider) setPolicy(op *msg.SetPolicy) Outcome {
	n, code := d.inode(op.Ino)
	if code != fserr.OK {
		return fail(code, "")
	}
	if !d.owner(n) {
		return fail(fserr.Perm, "")
	}
	p, ok := withPolicy(n.OwnPolicy(), op)
	if !ok || !n.IsDir() && !n.IsRegular() {
		return fail(fserr.Invalid, "want 1 <= min <= norm <= 5, a tier from 0 to 3 and at most 16 preferred hosts, on a file or directory")
	}
	if p == n.OwnPolicy() {
		return d.nothing(n.Ino)
	}
	return d.changes(&event.Event{Body: &event.Event_PolicySet{PolicySet: &event.PolicySet{
		Ino: op.Ino, Norm: p.Norm, Min: p.Min, Tier: uint32(p.Tier), Domain: uint32(p.Domain), Prefer: p.Prefer}}})
}
