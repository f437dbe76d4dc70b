package ebpf

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
)

func flow(src, dst string) Flow {
	return Flow{
		SrcMAC: [6]byte{0x0c, 0x42, 0xa1, 0, 0x10, 0xe3}, DstMAC: [6]byte{0x0c, 0x42, 0xa1, 0, 0x20, 0xa0},
		Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst),
	}
}

func littleEndian(t *testing.T) {
	t.Helper()
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the figures are those of a little-endian machine")
	}
}

// TestFold is the example of kernel commit 49aefd131739 ("do not discard lowest hash bit for non layer3+4 hashing"), with the
// figures that it prints: 192.168.122.30 to 192.168.122.1, MACs ending in e3 and a0 or a1, and the EtherType as the
// kernels before 5.15 took it, in network order.
func TestFold(t *testing.T) {
	littleEndian(t)
	addrs := addrHash(netip.MustParseAddr("192.168.122.30")) ^ addrHash(netip.MustParseAddr("192.168.122.1"))
	for mac, want := range map[uint32]uint32{0xa0: 522133332, 0xa1: 522133333} {
		if got := fold(mac ^ 0xe3 ^ 0x8 ^ addrs); got != want {
			t.Errorf("%#x: got %d, want %d", mac, got, want)
		}
	}
}

// TestHash has the words of each hash worked out by hand.
func TestHash(t *testing.T) {
	littleEndian(t)
	v4 := flow("10.0.0.1:40000", "10.0.0.2:2510")
	v6 := flow("[fd00::1]:40000", "[fd00:0:0:1::2]:2510")
	mapped := flow("[::ffff:10.0.0.1]:40000", "[::ffff:10.0.0.2]:2510")
	tagged := v4
	tagged.VLAN = 7
	// Ports 9c40 and 09ce lie in memory as 9c 40 09 ce: the word 0xce09409c.
	for _, c := range []struct {
		name   string
		flow   Flow
		policy Policy
		want   uint32
	}{
		{"layer2, IPv4", v4, Layer2, 0xa0 ^ 0xe3 ^ 0x0800},
		{"layer2, IPv6", v6, Layer2, 0xa0 ^ 0xe3 ^ 0x86dd},
		// 0x843 ^ 0x0200000a ^ 0x0100000a = 0x03000843; ^>>16 = 0x03000b43; ^>>8 = 0x03030b48
		{"layer2+3, IPv4", v4, Layer23, 0x03030b48},
		{"encap2+3, IPv4", v4, Encap23, 0x03030b48},
		// 0xce09409c ^ 0x03000000 = 0xcd09409c; ^>>16 = 0xcd098d95; ^>>8 = 0xcdc48418; >>1 = 0x66e2420c
		{"layer3+4, IPv4", v4, Layer34, 0x66e2420c},
		{"encap3+4, IPv4", v4, Encap34, 0x66e2420c},
		{"layer3+4, IPv4 in IPv6", mapped, Layer34, 0x66e2420c},
		// fd00 cancels; 0x01000000 (of ::1) ^ 0x01000000 (of 0:1) ^ 0x02000000 (of ::2) = 0x02000000.
		// 0xce09409c ^ 0x02000000 = 0xcc09409c; ^>>16 = 0xcc098c95; ^>>8 = 0xccc58519; >>1 = 0x6662c28c
		{"layer3+4, IPv6", v6, Layer34, 0x6662c28c},
		{"vlan+srcmac", tagged, VLANSrcMAC, 0x0c42a1 ^ 0x0010e3 ^ 7},
	} {
		if got := c.flow.Hash(c.policy); got != c.want {
			t.Errorf("%s: got %#x, want %#x", c.name, got, c.want)
		}
	}
}

func TestPolicyNames(t *testing.T) {
	for p := Layer2; p <= VLANSrcMAC; p++ {
		if got, err := ParsePolicy(p.String()); err != nil || got != p {
			t.Errorf("%s: %v, %v", p, got, err)
		}
	}
	if _, err := ParsePolicy("layer5"); err == nil {
		t.Error("layer5 is a policy")
	}
}

func TestChoosePorts(t *testing.T) {
	for _, f := range []Flow{
		flow("10.0.0.1:0", "10.0.0.2:2510"), flow("192.168.7.9:30001", "192.168.7.200:2510"),
		flow("[fd00::1]:0", "[fd00::2]:2511"),
	} {
		for _, c := range []struct{ slaves, n int }{{1, 5}, {2, 8}, {2, 7}, {3, 12}, {4, 4}, {4, 64}, {8, 16}, {2, 0}} {
			ports, err := ChoosePorts(f, c.slaves, c.n)
			if err != nil || len(ports) != c.n {
				t.Fatalf("%d over %d: %v, %v", c.n, c.slaves, ports, err)
			}
			perSlave, seen := make([]int, c.slaves), map[uint16]bool{}
			for _, p := range ports {
				if seen[p] || p < firstPort {
					t.Errorf("%d over %d: port %d twice or too low", c.n, c.slaves, p)
				}
				seen[p] = true
				g := f
				g.Src = netip.AddrPortFrom(f.Src.Addr(), p)
				perSlave[g.Slave(Layer34, c.slaves)]++
				if c.slaves&(c.slaves-1) == 0 {
					back := Flow{Src: g.Dst, Dst: g.Src}
					if back.Slave(Layer34, c.slaves) != g.Slave(Layer34, c.slaves) {
						t.Errorf("port %d over %d slaves: the answers take another slave", p, c.slaves)
					}
				}
			}
			for s, n := range perSlave {
				if n != c.n/c.slaves && n != c.n/c.slaves+1 {
					t.Errorf("%d over %d: slave %d carries %d", c.n, c.slaves, s, n)
				}
			}
		}
	}
}

func TestChoosePortsRefuses(t *testing.T) {
	f := flow("10.0.0.1:65500", "10.0.0.2:2510")
	if _, err := ChoosePorts(f, 2, 100); !errors.Is(err, ErrNoPorts) {
		t.Error(err)
	}
	for _, c := range []struct{ slaves, n int }{{0, 1}, {maxSlaves + 1, 1}, {2, -1}, {2, 1<<16 + 1}} {
		if _, err := ChoosePorts(f, c.slaves, c.n); err == nil || errors.Is(err, ErrNoPorts) {
			t.Errorf("%d over %d: %v", c.n, c.slaves, err)
		}
	}
}
