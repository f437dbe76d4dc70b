package bond

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"varve/internal/wire"
)

const (
	slowMbps  = 1000 // up to which a link, not the disks, is what bounds a chunk server
	maxMTUs   = 1024 // peers whose segments are remembered
	mtuMargin = 16   // bytes that an option more may take of a segment
	headers   = 40   // IPv4 and TCP; of IPv6 20 more
	headers6  = 60
)

// mtuSeen is what segments to a peer may be.
type mtuSeen struct{ theirs, ours int }

// noteMTU remembers a peer that takes smaller segments than this end would send.
func (b *Bonds) noteMTU(s *wire.Sign) {
	if s.MSS == 0 || s.OwnMSS == 0 {
		return
	}
	peer := s.Remote.Addr().Unmap()
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.MSS+mtuMargin >= s.OwnMSS {
		delete(b.peers, peer)
		return
	}
	more := headers
	if peer.Is6() {
		more = headers6
	}
	if len(b.peers) < maxMTUs {
		b.peers[peer] = mtuSeen{s.MSS + more, s.OwnMSS + more}
	}
}

// Warnings lists what keeps the bonds of this host from carrying what they could, one sentence each.
func (b *Bonds) Warnings() []string {
	var out []string
	for _, s := range b.States() {
		for _, a := range s.Bond.Advice() {
			out = append(out, s.Name+": "+a)
		}
		for _, d := range s.Dead {
			out = append(out, fmt.Sprintf("%s: slave %s is up, and does not lead to a peer: what is sent over it is lost", s.Name, d))
		}
		if s.Uneven {
			out = append(out, fmt.Sprintf("%s: the slaves are loaded unevenly, by other programs or by the switch's own hash", s.Name))
		}
	}
	if b == nil {
		return out
	}
	b.mu.Lock()
	var small []netip.Addr
	for peer := range b.peers {
		small = append(small, peer)
	}
	slices.SortFunc(small, netip.Addr.Compare)
	for _, peer := range small {
		out = append(out, fmt.Sprintf("%v, or the way there, takes packets of %d bytes and this host sends %d: set one MTU everywhere", peer, b.peers[peer].theirs, b.peers[peer].ours))
	}
	b.mu.Unlock()
	return out
}

// Lines says in words what the bonds are doing, a line each.
func (b *Bonds) Lines() []string {
	var out []string
	for _, s := range b.States() {
		bond := s.Bond
		line := fmt.Sprintf("%s: %v", s.Name, bond.Mode)
		if bond.HasPolicy {
			line += fmt.Sprintf(", hash %v", bond.Policy)
		}
		line += fmt.Sprintf(", %d of %d slaves usable", len(bond.Usable()), len(bond.Slaves))
		switch {
		case !bond.HasPolicy || !bond.Policy.UsesPorts():
			line += ", connections to one peer share a slave"
		case !bond.Steered() || b.o.Unsteered:
			line += ", connections are spread by chance"
		default:
			line += ", connections are spread by their ports"
		}
		for _, r := range s.Rates {
			line += fmt.Sprintf("; %s %.1f MB/s out, %.1f in", r.Slave, r.Sent/1e6, r.Received/1e6)
		}
		out = append(out, line)
	}
	return out
}

// InterfaceWarnings says what is wrong with interfaces that carry a cluster's traffic and are no bonds: those that the addresses are of, but not the
// loopback. It reads sysfs, which shows the network namespace that it was mounted in.
func InterfaceWarnings(addrs []netip.Addr) []string {
	var out []string
	all, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for _, i := range all {
		if i.Flags&net.FlagLoopback != 0 || !hasAddr(i, addrs) {
			continue
		}
		if _, err := os.Stat(filepath.Join("/sys/class/net", i.Name, "bonding")); err == nil {
			continue // Warnings has it
		}
		text, err := os.ReadFile(filepath.Join("/sys/class/net", i.Name, "speed"))
		if err != nil {
			continue // a kind of interface that has no speed
		}
		if mbps, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && mbps > 0 && mbps <= slowMbps {
			out = append(out, fmt.Sprintf("%s runs at %d Mbit/s: slower than one disk", i.Name, mbps))
		}
	}
	return out
}

func hasAddr(i net.Interface, addrs []netip.Addr) bool {
	have, err := i.Addrs()
	if err != nil {
		return false
	}
	for _, a := range have {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && slices.Contains(addrs, ip.Unmap()) {
				return true
			}
		}
	}
	return false
}
