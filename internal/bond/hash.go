package bond

import (
	"encoding/binary"
	"net/netip"
)

// Flow is what of a connection's packets the driver hashes. All of it is as the packet has it, so of packets that go the other way both ends are
// swapped.
type Flow struct {
	Src, Dst       netip.AddrPort
	SrcMAC, DstMAC [6]byte // of layer2, layer2+3 and vlan+srcmac
	VLAN           uint16  // of vlan+srcmac; 0: none
}

// Reverse returns the flow of the answers.
func (f *Flow) Reverse() *Flow {
	return &Flow{Src: f.Dst, Dst: f.Src, SrcMAC: f.DstMAC, DstMAC: f.SrcMAC, VLAN: f.VLAN}
}

// Hash returns the driver's hash of a packet of the flow.
func (f *Flow) Hash(p Policy) uint32 {
	switch p {
	case VlanSrcMAC:
		m := f.SrcMAC
		vendor := uint32(m[0])<<16 | uint32(m[1])<<8 | uint32(m[2])
		device := uint32(m[3])<<16 | uint32(m[4])<<8 | uint32(m[5])
		return uint32(f.VLAN) ^ vendor ^ device
	case Layer23, Encap23:
		return f.fold(f.ethernet())
	case Layer34, Encap34:
		// The ports as they stand in the packet, read as one number by a little-endian machine. The lowest bit is discarded, since many
		// programs use even ports only.
		var ports [4]byte
		binary.BigEndian.PutUint16(ports[:], f.Src.Port())
		binary.BigEndian.PutUint16(ports[2:], f.Dst.Port())
		return f.fold(binary.LittleEndian.Uint32(ports[:])) >> 1
	}
	return f.ethernet()
}

// ethernet is the hash of layer2: the last bytes of both addresses and the type of the packet, as it stands there.
func (f *Flow) ethernet() uint32 {
	proto := uint32(0x0008) // 0x0800 read by a little-endian machine
	if f.Src.Addr().Unmap().Is6() {
		proto = 0xdd86
	}
	return uint32(f.DstMAC[5]) ^ uint32(f.SrcMAC[5]) ^ proto
}

// fold adds the IP addresses to a hash.
func (f *Flow) fold(h uint32) uint32 {
	h ^= word(f.Dst.Addr()) ^ word(f.Src.Addr())
	h ^= h >> 16
	return h ^ h>>8
}

// word is an address as one number: of IPv6, all of its words together.
func word(a netip.Addr) uint32 {
	a = a.Unmap()
	if a.Is4() {
		b := a.As4()
		return binary.LittleEndian.Uint32(b[:])
	}
	b := a.As16()
	x := binary.LittleEndian.Uint64(b[:]) ^ binary.LittleEndian.Uint64(b[8:])
	return uint32(x ^ x>>32)
}

// Ports returns n source ports for connections from src to dst by which they leave evenly over links, the number of links in use: the i-th by link i modulo
// links. It looks for them from first on, below limit, and leaves out those that skip has; fewer than n are returned if there are no more. Policies
// without ports get none.
func Ports(p Policy, src netip.Addr, dst netip.AddrPort, links, n int, first, limit uint16, skip func(uint16) bool) []uint16 {
	if !p.ports() || links < 1 {
		return nil
	}
	chosen := make([]uint16, 0, n)
	used := make(map[uint16]bool, n)
	for i := range n {
		found := false
		for port := int(first); port < int(limit) && !found; port++ {
			q := uint16(port)
			f := Flow{Src: netip.AddrPortFrom(src, q), Dst: dst}
			if f.Hash(p)%uint32(links) != uint32(i%links) || used[q] || skip != nil && skip(q) {
				continue
			}
			chosen, used[q], found = append(chosen, q), true, true
		}
		if !found {
			break
		}
	}
	return chosen
}
