package state

import (
	"fmt"
	"strings"

	"varve/mds/event"
)

// Security is what the cluster knows of who may speak, but for single certificates. It is replaced, never changed.
type Security struct {
	Version   uint64
	Sealed    string // the private halves; package internal/pki opens it with the cluster key
	Bundle    string // PEM
	Authority uint32 // the generation that signs
	Oldest    uint32 // the oldest that is trusted
	Keys      []CapabilityKey
	Changed   uint64 // index of the last event that all members must know of: the newest version, or revocation
}

// CapabilityKey is the public half of a key that signs capabilities.
type CapabilityKey struct {
	Generation uint32
	Public     string
}

// Cert is a certificate that was given to a node. It is replaced, never changed.
type Cert struct {
	Serial      string
	Node        string
	Role        uint32 // pki.Role
	From, Until int64  // ns
	Authority   uint32
	Revoked     int64 // ns; 0: it is not
}

// MaxCerts bounds the certificates that are remembered, and MaxKeys the keys that sign capabilities.
const (
	MaxCerts = 1 << 16
	MaxKeys  = 8
)

// Security returns what SecuritySet has said; nil if the cluster has no security.
func (s *State) Security() *Security { return s.security }

// Cert returns the certificate with the serial number.
func (s *State) Cert(serial string) (*Cert, bool) { return s.certs.Get(&Cert{Serial: serial}) }

// Certs calls fn for each certificate, by serial number, until fn returns false.
func (s *State) Certs(fn func(*Cert) bool) { s.certs.Ascend(fn) }

// CertCount returns how many certificates there are.
func (s *State) CertCount() int { return s.certs.Len() }

func lessCert(a, b *Cert) bool { return a.Serial < b.Serial }

func (s *State) securitySet(b *event.SecuritySet) {
	v := &Security{Version: b.Version, Sealed: string(b.Sealed), Bundle: string(b.Bundle), Authority: b.Authority, Oldest: b.Oldest, Changed: uint64(s.index)}
	for _, k := range b.Keys {
		v.Keys = append(v.Keys, CapabilityKey{k.Generation, string(k.Public)})
	}
	if old := s.security; old != nil && v.Version != old.Version+1 || old == nil && v.Version != 1 || len(v.Keys) > MaxKeys {
		s.misfit("security: version %d with %d keys", v.Version, len(v.Keys))
	}
	s.putSecurity(v)
}

func (s *State) certIssue(b *event.CertIssue) {
	for _, serial := range b.Forgotten {
		s.dropCert(serial)
	}
	old, ok := s.Cert(b.Serial)
	if b.Serial == "" || ok && old.Revoked != 0 || !ok && s.certs.Len() >= MaxCerts {
		s.misfit("certificate %q: there already %v, with %d others", b.Serial, ok, s.certs.Len())
	}
	s.putCert(&Cert{Serial: b.Serial, Node: b.Node, Role: b.Role, From: b.From, Until: b.Until, Authority: b.Authority})
}

func (s *State) certRevoke(b *event.CertRevoke) {
	for _, serial := range b.Serials {
		old, ok := s.Cert(serial)
		if !ok || b.At == 0 {
			s.misfit("revoke certificate %q at %d: there %v", serial, b.At, ok)
		}
		c := *old
		c.Revoked = b.At
		s.putCert(&c)
	}
	if s.security != nil {
		v := *s.security
		v.Changed = uint64(s.index)
		s.putSecurity(&v)
	}
}

func (s *State) putSecurity(v *Security) {
	if s.security != nil && s.counted() {
		s.minus(sumSecurity(s.scratch, s.security))
	}
	s.security = v
	if s.counted() {
		s.plus(sumSecurity(s.scratch, v))
	}
}

func (s *State) putCert(c *Cert) {
	s.dropCert(c.Serial)
	s.certs.ReplaceOrInsert(c)
	if s.counted() {
		s.plus(sumCert(s.scratch, c))
	}
}

func (s *State) dropCert(serial string) {
	if old, ok := s.certs.Delete(&Cert{Serial: serial}); ok && s.counted() {
		s.minus(sumCert(s.scratch, old))
	}
}

// securities calls fn with what there is of Security.
func (s *State) securities(fn func(*Security) bool) {
	if s.security != nil {
		fn(s.security)
	}
}

func sumSecurity(b []byte, v *Security) []byte {
	b = words(b[:0], kindSecurity, v.Version, uint64(v.Authority), uint64(v.Oldest), v.Changed, uint64(len(v.Keys)))
	b = str(str(b, v.Sealed), v.Bundle)
	for _, k := range v.Keys {
		b = str(words(b, uint64(k.Generation)), k.Public)
	}
	return b
}

func sumCert(b []byte, c *Cert) []byte {
	return str(str(words(b[:0], kindCert, uint64(c.Role), uint64(c.From), uint64(c.Until), uint64(c.Authority), uint64(c.Revoked)), c.Serial), c.Node)
}

func (e *encoder) security(v *Security) bool {
	if e.w != nil {
		e.count(sumSecurity(e.rec, v))
	}
	e.kind(kindSecurity)
	e.u(v.Version)
	e.str(v.Sealed)
	e.str(v.Bundle)
	e.u(uint64(v.Authority))
	e.u(uint64(v.Oldest))
	e.u(v.Changed)
	e.u(uint64(len(v.Keys)))
	for _, k := range v.Keys {
		e.u(uint64(k.Generation))
		e.str(k.Public)
	}
	return e.end()
}

func (e *encoder) cert(c *Cert) bool {
	if e.w != nil {
		e.count(sumCert(e.rec, c))
	}
	e.kind(kindCert)
	e.str(c.Serial)
	e.str(c.Node)
	e.u(uint64(c.Role))
	e.i(c.From)
	e.i(c.Until)
	e.u(uint64(c.Authority))
	e.i(c.Revoked)
	return e.end()
}

func (d *decoder) security() {
	v := &Security{Version: d.u64(), Sealed: d.str(), Bundle: d.str(), Authority: d.u32(), Oldest: d.u32(), Changed: d.u64()}
	for range d.u(MaxKeys) {
		v.Keys = append(v.Keys, CapabilityKey{d.u32(), d.str()})
	}
	if d.s.security != nil || v.Version == 0 {
		d.fail("security twice, or of version 0")
	}
	if d.bad == "" {
		d.s.putSecurity(v)
	}
}

func (d *decoder) cert() {
	c := &Cert{Serial: d.str(), Node: d.str(), Role: d.u32(), From: d.i(), Until: d.i(), Authority: d.u32(), Revoked: d.i()}
	if c.Serial == "" {
		d.fail("certificate without a serial number")
	}
	if add(d, d.s.certs, c, &d.runs.certs) {
		d.s.plus(sumCert(d.s.scratch, c))
	}
}

func securityText(v *Security) (string, string) {
	var keys strings.Builder
	for _, k := range v.Keys {
		fmt.Fprintf(&keys, " %d (%x)", k.Generation, k.Public)
	}
	return "who may speak", fmt.Sprintf("version %d, generations %d to %d of the authority, keys%s, %d sealed bytes, last change at %d",
		v.Version, v.Oldest, v.Authority, keys.String(), len(v.Sealed), v.Changed)
}

func certText(c *Cert) (string, string) {
	return c.Serial, fmt.Sprintf("of %s, role %d, from %d until %d, generation %d, revoked %d", c.Node, c.Role, c.From, c.Until, c.Authority, c.Revoked)
}
