package state

import (
	"slices"
	"strconv"
	"strings"

	"varve/internal/id"
)

// Policy is what a file inherits from its directory; a zero field inherits.
type Policy struct {
	Norm, Min uint32
	Tier      uint8  // 1 to MaxTier+1: tier 0 to MaxTier; AnyTier
	Domain    Domain // replicas do not share one
	Prefer    string // hosts that should have replicas, in order, separated by commas; PreferNone
}

// MaxTier is the highest tier of a chunk server. AnyTier in a policy does not mind.
const (
	MaxTier = 3
	AnyTier = MaxTier + 2
)

// PreferNone in a policy prefers no host, whatever is preferred above.
const PreferNone = "none"

// maxPrefer bounds the hosts that a policy prefers, and maxPreferBytes their names.
const (
	maxPrefer      = 16
	maxPreferBytes = 1024
)

// Domain is a kind of failure domain: what can fail as one.
type Domain uint8

const (
	Disk Domain = iota + 1 // a chunk server
	Host                   // where nothing was set
	Rack
	Row
	Room
)

var domainWords = []string{Disk: "disk", Host: "host", Rack: "rack", Row: "row", Room: "room"}

// String returns the domain in one word.
func (d Domain) String() string {
	if d == 0 || int(d) >= len(domainWords) {
		return "inherited"
	}
	return domainWords[d]
}

// ParseDomain reads what String returns.
func ParseDomain(v string) (Domain, bool) {
	i := slices.Index(domainWords, v)
	return Domain(max(i, 0)), i > 0
}

// defaultPolicy holds where nothing was set. A Domain of 0 means Host then, a Tier of 0 any.
var defaultPolicy = Policy{Norm: 3, Min: 2}

// ConfigReplicas is the setting with the default policy, as NORM:MIN.
const ConfigReplicas = "replicas"

// maxDepth bounds the walk from a file to the root.
const maxDepth = 1 << 16

// Valid reports whether p can be asked for: zero fields inherit, else 1 <= min <= norm <= MaxReplicas, and so on.
func (p Policy) Valid() bool {
	return p.Norm <= MaxReplicas && p.Min <= MaxReplicas && (p.Norm == 0 || p.Min <= p.Norm) && p.Tier <= AnyTier && p.Domain <= Room &&
		(p.Prefer == "" || validPrefer(p.Prefer))
}

func validPrefer(v string) bool {
	if v == PreferNone {
		return true
	}
	if len(v) > maxPreferBytes {
		return false
	}
	list := strings.Split(v, ",")
	for i, h := range list {
		if h == "" || h == PreferNone || strings.ContainsFunc(h, func(r rune) bool { return r <= ' ' || r == 0x7f }) || slices.Contains(list[:i], h) {
			return false
		}
	}
	return len(list) <= maxPrefer
}

// OnTier returns the tier that replicas should be on, false for any.
func (p Policy) OnTier() (uint32, bool) { return uint32(p.Tier) - 1, p.Tier != 0 && p.Tier != AnyTier }

// Level returns what replicas must not share.
func (p Policy) Level() Domain {
	if p.Domain == 0 {
		return Host
	}
	return p.Domain
}

// Prefers returns the hosts that should have replicas, in order.
func (p Policy) Prefers() []string {
	if p.Prefer == "" || p.Prefer == PreferNone {
		return nil
	}
	return strings.Split(p.Prefer, ",")
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
// which has one, for each field, else the default. Norm and Min are set, and Min <= Norm.
func (s *State) Policy(ino id.Ino) Policy {
	var p Policy
	for range maxDepth {
		n, ok := s.Inode(ino)
		if !ok {
			break
		}
		p = p.or(n.OwnPolicy())
		if ino == id.Root || p.Norm != 0 && p.Min != 0 && p.Tier != 0 && p.Domain != 0 && p.Prefer != "" {
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
	if p.Tier == 0 {
		p.Tier = up.Tier
	}
	if p.Domain == 0 {
		p.Domain = up.Domain
	}
	if p.Prefer == "" {
		p.Prefer = up.Prefer
	}
	return p
}

// Where the parts of a policy are in the word that stands for it in checkpoints and digests; norm is in the lowest bits.
const (
	policyTierShift   = 8
	policyDomainShift = 16
	policyPreferBit   = 1 << 24 // there is a list of hosts behind the record
)

// packed returns all of p but Min and the text of Prefer.
func (p Policy) packed() uint64 {
	v := uint64(p.Norm) | uint64(p.Tier)<<policyTierShift | uint64(p.Domain)<<policyDomainShift
	if p.Prefer != "" {
		v |= policyPreferBit
	}
	return v
}

// unpack returns the policy of packed, and whether there is a list of hosts.
func unpack(v uint64) (p Policy, prefer bool) {
	return Policy{Norm: uint32(v & 0xff), Tier: uint8(v >> policyTierShift), Domain: Domain(v >> policyDomainShift)}, v&policyPreferBit != 0
}
