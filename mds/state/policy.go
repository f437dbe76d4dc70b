package state

import (
	"strconv"
	"strings"

	"varve/internal/id"
)

// defaultPolicy holds where nothing was set.
var defaultPolicy = Policy{Norm: 3, Min: 2}

// ConfigReplicas is the setting with the default policy, as NORM:MIN.
const ConfigReplicas = "replicas"

// maxDepth bounds the walk from a file to the root.
const maxDepth = 1 << 16

// Valid reports whether p can be asked for: zero fields inherit, else 1 <= min <= norm <= MaxReplicas.
func (p Policy) Valid() bool {
	return p.Norm <= MaxReplicas && p.Min <= MaxReplicas && (p.Norm == 0 || p.Min <= p.Norm)
}

// ParsePolicy reads NORM:MIN.
func ParsePolicy(v string) (Policy, bool) {
	n, m, ok := strings.Cut(v, ":")
	if !ok {
		return Policy{}, false
	}
	norm, err1 := strconv.ParseUint(n, 10, 32)
	least, err2 := strconv.ParseUint(m, 10, 32)
	p := Policy{Norm: uint32(norm), Min: uint32(least)}
	if err1 != nil || err2 != nil || p.Norm == 0 || p.Min == 0 || !p.Valid() {
		return Policy{}, false
	}
	return p, true
}

// Policy returns the effective policy of the inode: its own, else that of the nearest directory above
// which has one, for each field, else the default. Both fields are set, and Min <= Norm.
func (s *State) Policy(ino id.Ino) Policy {
	var p Policy
	for range maxDepth {
		n, ok := s.Inode(ino)
		if !ok {
			break
		}
		p = p.or(n.OwnPolicy())
		if ino == id.Root || p.Norm != 0 && p.Min != 0 {
			break
		}
		ino = n.Parent
	}
	p = p.or(s.policy)
	p.Min = min(p.Min, p.Norm)
	return p
}

func (p Policy) or(up Policy) Policy {
	if p.Norm == 0 {
		p.Norm = up.Norm
	}
	if p.Min == 0 {
		p.Min = up.Min
	}
	return p
}
