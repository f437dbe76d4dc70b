package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"varve/internal/wire/msg"
	"varve/mds/state"
)

// The attributes, in the order of their bits in msg.SetPolicy.
const (
	attrReplicas = "replicas"
	attrTier     = "tier"
	attrDomain   = "failure-domain"
	attrPrefer   = "prefer"
)

var attrNames = []string{attrReplicas, attrTier, attrDomain, attrPrefer}

// inherit as the value of an attribute takes it back.
const inherit = "inherit"

// attrs is attributes that are to be set.
type attrs struct {
	policy msg.Policy
	fields uint32 // bits of attrNames
}

// attrsOf returns what an inode has set itself.
func attrsOf(own *msg.Policy) *attrs {
	a := &attrs{}
	for i, set := range []bool{own.GetNorm() != 0 || own.GetMin() != 0, own.GetTier() != 0, own.GetDomain() != 0, own.GetPrefer() != ""} {
		if set {
			a.fields |= 1 << i
		}
	}
	return a
}

// names returns the names of the attributes.
func (a *attrs) names() []string {
	out := []string{}
	for i, name := range attrNames {
		if a.fields>>i&1 != 0 {
			out = append(out, name)
		}
	}
	return out
}

func (a *attrs) json(at *mounted, changed int) map[string]any {
	out := map[string]any{"path": at.path, "ino": at.ino, "changed": changed}
	for _, name := range a.names() {
		switch name {
		case attrReplicas:
			out["replicas"] = replicasText(&a.policy)
		case attrTier:
			out["tier"] = tierText(&a.policy)
		case attrDomain:
			out["failure_domain"] = state.Domain(a.policy.Domain).String()
		case attrPrefer:
			out["prefer"] = a.policy.Prefer
		}
	}
	return out
}

// parseAttrs reads what set-attr takes, each NAME=VALUE.
func parseAttrs(list []string) (*attrs, error) {
	a := &attrs{}
	for _, s := range list {
		name, value, ok := strings.Cut(s, "=")
		i := slices.Index(attrNames, name)
		switch {
		case !ok:
			return nil, usagef("%q: want NAME=VALUE, such as replicas=3:2", s)
		case name == "history":
			return nil, usagef("attribute %q comes with a later release; this one knows %s", name, strings.Join(attrNames, ", "))
		case i < 0:
			return nil, usagef("attribute %q is unknown; this release knows %s", name, strings.Join(attrNames, ", "))
		case a.fields>>i&1 != 0:
			return nil, usagef("attribute %q is given twice", name)
		}
		a.fields |= 1 << i
		if value == inherit {
			continue
		}
		if err := a.parse(name, value); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func (a *attrs) parse(name, value string) error {
	switch name {
	case attrReplicas:
		p, err := parseReplicas(value)
		if err != nil {
			return err
		}
		a.policy.Norm, a.policy.Min = p.Norm, p.Min
	case attrTier:
		n, err := strconv.ParseUint(value, 10, 32)
		if value == "any" {
			n, err = state.AnyTier-1, nil
		} else if n > state.MaxTier {
			err = strconv.ErrRange
		}
		if err != nil {
			return usagef("tier %q: want 0 to %d, any or %s", value, state.MaxTier, inherit)
		}
		a.policy.Tier = uint32(n) + 1
	case attrDomain:
		d, ok := state.ParseDomain(value)
		if !ok {
			return usagef("failure-domain %q: want disk, host, rack, row, room or %s", value, inherit)
		}
		a.policy.Domain = uint32(d)
	case attrPrefer:
		if !(state.Policy{Prefer: value}).Valid() || value == "" {
			return usagef("prefer %q: want at most 16 names of hosts, separated by commas, %s or %s", value, state.PreferNone, inherit)
		}
		a.policy.Prefer = value
	}
	return nil
}

func replicasText(p *msg.Policy) string {
	part := func(n uint32) string {
		if n == 0 {
			return "-"
		}
		return strconv.FormatUint(uint64(n), 10)
	}
	return part(p.GetNorm()) + ":" + part(p.GetMin())
}

// policyOf returns a policy as the planners know it.
func policyOf(p *msg.Policy) state.Policy {
	return state.Policy{Norm: p.GetNorm(), Min: p.GetMin(), Tier: uint8(p.GetTier()), Domain: state.Domain(p.GetDomain()), Prefer: p.GetPrefer()}
}

func tierText(p *msg.Policy) string {
	if t, ok := policyOf(p).OnTier(); ok {
		return strconv.FormatUint(uint64(t), 10)
	}
	return "any"
}

func domainText(p *msg.Policy) string { return policyOf(p).Level().String() }

// parseReplicas reads NORM[:MIN]; without MIN it is one less than NORM, at least 1.
func parseReplicas(given string) (*msg.Policy, error) {
	s := given
	if _, _, ok := strings.Cut(s, ":"); !ok {
		if n, err := strconv.ParseUint(s, 10, 8); err == nil && n > 0 {
			s = fmt.Sprintf("%d:%d", n, max(n-1, 1))
		}
	}
	p, ok := state.ParsePolicy(s)
	if !ok {
		return nil, usagef("replicas %q: want NORM[:MIN] with 1 <= MIN <= NORM <= %d, such as 3:2", given, state.MaxReplicas)
	}
	return &msg.Policy{Norm: p.Norm, Min: p.Min}, nil
}
