package ebpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Policy is the transmit hash of a bond; the numbers are the kernel's (include/uapi/linux/if_bonding.h).
type Policy uint8

// Policies.
const (
	Layer2 Policy = iota
	Layer34
	Layer23
	Encap23
	Encap34
	VLANSrcMAC
)

var policyNames = [...]string{"layer2", "layer3+4", "layer2+3", "encap2+3", "encap3+4", "vlan+srcmac"}

func (p Policy) String() string {
	if int(p) < len(policyNames) {
		return policyNames[p]
	}
	return fmt.Sprintf("policy %d", uint8(p))
}

// ParsePolicy returns the policy of that name.
func ParsePolicy(name string) (Policy, error) {
	for p, n := range policyNames {
		if n == name {
			return Policy(p), nil
		}
	}
	return 0, fmt.Errorf("hash policy %q", name)
}

// UsesPorts reports whether connections between the same two hosts can take different slaves.
func (p Policy) UsesPorts() bool { return p == Layer34 || p == Encap34 }

// EtherTypes.
const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
)

// Flow is a TCP or UDP connection as the sending bond sees it: not fragmented, not encapsulated. The addresses are both
// IPv4 or both IPv6. The MACs are those of the frame, so DstMAC is the router's if one is between; VLAN is the tag
// of the frame or 0. Policies that do not look at a field do not need it.
type Flow struct {
	SrcMAC, DstMAC [6]byte
	VLAN           uint16
	Src, Dst       netip.AddrPort
}

// Hash is the bonding driver's transmit hash of f. A frame leaves through slave number Hash % n of the n usable slaves.
//
// For Encap34 the driver takes the socket's own random hash where there is one, as for every local TCP connection, so what
// Hash returns for it holds for forwarded traffic only.
//
// Source: bond_xmit_hash, bond_eth_hash, bond_ip_hash, bond_vlan_srcmac_hash and bond_flow_dissect in the kernel's
// drivers/net/bonding/bond_main.c, as it is since Linux 5.17, where the policies without ports stopped discarding the lowest
// bit. The driver folds the bytes of the headers as they lie in memory, so the byte order is the machine's.
func (f Flow) Hash(p Policy) uint32 {
	switch p {
	case Layer2:
		return f.ethHash()
	case VLANSrcMAC:
		m := f.SrcMAC
		vendor := uint32(m[0])<<16 | uint32(m[1])<<8 | uint32(m[2])
		device := uint32(m[3])<<16 | uint32(m[4])<<8 | uint32(m[5])
		return uint32(f.VLAN) ^ vendor ^ device
	case Layer23, Encap23:
		return fold(f.ethHash() ^ addrHash(f.Dst.Addr()) ^ addrHash(f.Src.Addr()))
	}
	// The kernel discards the lowest bit because many programs use even ports only.
	return fold(f.portHash()^addrHash(f.Dst.Addr())^addrHash(f.Src.Addr())) >> 1
}

// Slave returns which of n usable slaves carries f, from 0. n must be positive.
func (f Flow) Slave(p Policy, n int) int { return int(f.Hash(p) % uint32(n)) }

func (f Flow) ethHash() uint32 {
	ether := uint32(etherIPv4)
	if f.Dst.Addr().Unmap().Is6() {
		ether = etherIPv6
	}
	return uint32(f.DstMAC[5]^f.SrcMAC[5]) ^ ether
}

// portHash is the source and the destination port as they follow one another in the header.
func (f Flow) portHash() uint32 {
	var b [4]byte
	binary.BigEndian.PutUint16(b[:], f.Src.Port())
	binary.BigEndian.PutUint16(b[2:], f.Dst.Port())
	return binary.NativeEndian.Uint32(b[:])
}

// addrHash is an IPv4 address as a word, an IPv6 address as the exclusive or of its four (ipv6_addr_hash).
func addrHash(a netip.Addr) uint32 {
	b := a.Unmap().AsSlice()
	var h uint32
	for ; len(b) >= 4; b = b[4:] {
		h ^= binary.NativeEndian.Uint32(b)
	}
	return h
}

// fold is the end of bond_ip_hash.
func fold(h uint32) uint32 {
	h ^= h >> 16
	h ^= h >> 8
	return h
}
