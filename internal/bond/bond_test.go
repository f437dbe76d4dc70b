package bond

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
)

func recorded(t *testing.T, name string) *Bond {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Parse(name, string(text))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParse(t *testing.T) {
	want := &Bond{
		Name: "lacp", Mode: LACP, Policy: Layer34, Up: true, MIIMonMS: 100, UpDelayMS: 200, DownDelayMS: 200, LACPFast: true,
		PartnerMAC: "c2:d6:82:00:00:12", Aggregator: 1, Slaves: []Slave{
			{Name: "enp65s0f0", Up: true, SpeedMbps: 25000, FullDuplex: true, MAC: "40:a6:b7:00:00:e0", Aggregator: 1},
			{Name: "enp65s0f1", Up: true, SpeedMbps: 25000, FullDuplex: true, MAC: "40:a6:b7:00:00:e1", Aggregator: 1, Failures: 3},
		},
	}
	if b := recorded(t, "lacp"); !reflect.DeepEqual(b, want) {
		t.Errorf("%+v", b)
	}
	if b := recorded(t, "backup"); b.Mode != ActiveBackup || b.ActiveSlave != "eno1" || b.Slaves[1].Up || b.Slaves[1].SpeedMbps != 0 {
		t.Errorf("%+v", b)
	}
	for text, what := range map[string]string{
		"":                                      "empty",
		"eth0: something else\n":                "another file",
		"Ethernet Channel Bonding Driver: v1\n": "no mode",
		"Ethernet Channel Bonding Driver: v1\nBonding Mode: magic\n":                                                        "mode",
		"Ethernet Channel Bonding Driver: v1\nBonding Mode: load balancing (xor)\nTransmit Hash Policy: layer9 (9)\n":       "policy",
		"Ethernet Channel Bonding Driver: v1\nBonding Mode: load balancing (xor)\nMII Polling Interval (ms): soon\n":        "number",
		"Ethernet Channel Bonding Driver: v1\nBonding Mode: load balancing (xor)\nMII Polling Interval (ms): 99999999999\n": "large number",
		"Ethernet Channel Bonding Driver: v1\nBonding Mode: load balancing (xor)\n" + strings.Repeat("x", maxFile):          "long",
	} {
		if _, err := Parse("b", text); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestRead(t *testing.T) {
	text, err := os.ReadFile("testdata/backup")
	if err != nil {
		t.Fatal(err)
	}
	root := fstest.MapFS{
		"proc/net/bonding/bond0":                  {Data: text},
		"sys/class/net/bond0/mtu":                 {Data: []byte("9000\n")},
		"sys/class/net/bond0/statistics/tx_bytes": {Data: []byte("12345678901\n")},
		"sys/class/net/eno1/mtu":                  {Data: []byte("9000\n")},
		"sys/class/net/eno2/mtu":                  {Data: []byte("1500\n")},
		"sys/class/net/eno2/speed":                {Data: []byte("-1\n")},
		"sys/class/net/eno1/statistics/rx_bytes":  {Data: []byte("7\n")},
	}
	names, err := Names(root)
	if err != nil || len(names) != 1 || names[0] != "bond0" {
		t.Fatal(names, err)
	}
	b, err := Read(root, "bond0")
	if err != nil {
		t.Fatal(err)
	}
	if b.MTU != 9000 || b.TxBytes != 12345678901 || b.Slaves[0].RxBytes != 7 || b.Slaves[1].MTU != 1500 || b.Slaves[1].SpeedMbps != 0 {
		t.Errorf("%+v", b)
	}
	if names, err := Names(fstest.MapFS{}); err != nil || names != nil {
		t.Errorf("without the driver: %v, %v", names, err)
	}
	if _, err := Read(root, "bond1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a bond that is not there: %v", err)
	}
	if _, err := Read(root, "../x"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("a path: %v", err)
	}
}

func TestWarnings(t *testing.T) {
	for name, want := range map[string][]string{
		"lacp":   nil,
		"backup": {"active-backup", "every 1 ms", "without eno2", "1000 Mbit/s"},
		"alone":  {"hashes by layer2", "miimon=0", "half duplex", "another aggregator", "no LACP partner", "1000 Mbit/s", "different speeds"},
	} {
		got := recorded(t, name).Warnings()
		if len(got) != len(want) {
			t.Errorf("%s: %q", name, got)
			continue
		}
		for i, part := range want {
			if !strings.Contains(got[i], part) {
				t.Errorf("%s: %q, want %q in it", name, got[i], part)
			}
		}
	}
	b := recorded(t, "lacp")
	b.Slaves[0].MTU, b.Slaves[1].MTU = 9000, 1500
	if w := b.Warnings(); len(w) != 1 || !strings.Contains(w[0], "enp65s0f1: 1500 bytes; enp65s0f0: 9000 bytes") {
		t.Errorf("%q", w)
	}
	for m, part := range map[Mode]string{BalanceRR: "overtake", Broadcast: "every link", BalanceTLB: "beforehand", BalanceALB: "beforehand"} {
		b := recorded(t, "lacp")
		b.Mode = m
		if w := b.Warnings(); len(w) != 1 || !strings.Contains(w[0], part) {
			t.Errorf("%v: %q", m, w)
		}
	}
}

// TestHash has the numbers that are in the change to the driver which took the discarded bit away from layer2+3 (netdev, 2022).
func TestHash(t *testing.T) {
	f := &Flow{Src: netip.MustParseAddrPort("192.168.122.30:0"), Dst: netip.MustParseAddrPort("192.168.122.1:0"), SrcMAC: [6]byte{5: 0xe3}}
	for last, want := range map[byte]uint32{0xa0: 522133332, 0xa1: 522133333} {
		f.DstMAC[5] = last
		if got := f.Hash(Layer23); got != want {
			t.Errorf("layer2+3 to ..%x: %d, want %d", last, got, want)
		}
		if got := f.Hash(Layer2); got != uint32(last)^0xe3^0x08 {
			t.Errorf("layer2: %#x", got)
		}
	}
	// By hand: ports 0x1234 and 0x09ce (2510) stand in the packet as 12 34 09 ce, read as 0xce093412; addresses 0x0100000a ^ 0x0200000a = 0x03000000;
	// 0xcd093412, with its upper half 0xcd09f91b, with its upper bytes 0xcdc4f0e2, without the lowest bit 0x66e27871.
	g := &Flow{Src: netip.MustParseAddrPort("10.0.0.1:4660"), Dst: netip.MustParseAddrPort("10.0.0.2:2510")}
	if got := g.Hash(Layer34); got != 0x66e27871 {
		t.Errorf("layer3+4: %#x", got)
	}
	if g.Hash(Encap34) != g.Hash(Layer34) || f.Hash(Encap23) != f.Hash(Layer23) {
		t.Error("a flow that is not encapsulated hashes otherwise")
	}
	v := &Flow{SrcMAC: [6]byte{0, 0x11, 0x22, 0x33, 0x44, 0x55}, VLAN: 7}
	if got := v.Hash(VlanSrcMAC); got != 0x001122^0x334455^7 {
		t.Errorf("vlan+srcmac: %#x", got)
	}
	mapped := &Flow{Src: netip.MustParseAddrPort("[::ffff:10.0.0.1]:4660"), Dst: netip.MustParseAddrPort("[::ffff:10.0.0.2]:2510")}
	if mapped.Hash(Layer34) != g.Hash(Layer34) {
		t.Error("an IPv4 address in the form of IPv6 hashes otherwise")
	}
	// Both ends choose links of one number, whatever the addresses.
	for i := range 1000 {
		for _, hosts := range [][2]string{{"10.1.2.3", "10.9.8.7"}, {"fd00::1:2", "fd00:5::9:7"}} {
			f := &Flow{Src: netip.AddrPortFrom(netip.MustParseAddr(hosts[0]), uint16(1024+37*i)), Dst: netip.AddrPortFrom(netip.MustParseAddr(hosts[1]), 2510)}
			for links := uint32(1); links <= 4; links *= 2 {
				if a, b := f.Hash(Layer34)%links, f.Reverse().Hash(Layer34)%links; a != b {
					t.Fatalf("%v: link %d there, %d back, of %d", f, a, b, links)
				}
			}
		}
	}
}

func TestLink(t *testing.T) {
	b := recorded(t, "lacp")
	f := &Flow{Src: netip.MustParseAddrPort("10.0.0.1:4660"), Dst: netip.MustParseAddrPort("10.0.0.2:2510")}
	if l, ok := b.Link(f); !ok || l != "enp65s0f1" { // 0x66e27871 is odd
		t.Error(l, ok)
	}
	b.Slaves[1].Up = false
	if l, ok := b.Link(f); !ok || l != "enp65s0f0" {
		t.Error(l, ok)
	}
	b.Slaves[0].Aggregator = 9
	if l, ok := b.Link(f); ok {
		t.Error(l)
	}
	if l, ok := recorded(t, "backup").Link(f); !ok || l != "eno1" {
		t.Error(l, ok)
	}
	b = recorded(t, "lacp")
	b.Mode = BalanceRR
	if l, ok := b.Link(f); ok {
		t.Error(l)
	}
}

func TestPorts(t *testing.T) {
	src, dst := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddrPort("10.0.0.2:2510")
	for links := 1; links <= 5; links++ {
		taken := map[uint16]bool{20001: true}
		got := Ports(Layer34, src, dst, links, 10, 20000, 32768, func(p uint16) bool { return taken[p] })
		if len(got) != 10 {
			t.Fatalf("%d links: %d ports", links, len(got))
		}
		for i, p := range got {
			f := &Flow{Src: netip.AddrPortFrom(src, p), Dst: dst}
			if int(f.Hash(Layer34)%uint32(links)) != i%links || taken[p] || p < 20000 || p >= 32768 {
				t.Errorf("%d links: port %d of connection %d", links, p, i)
			}
			taken[p] = true
		}
	}
	if got := Ports(Layer34, src, dst, 2, 10, 20000, 20004, nil); len(got) > 4 {
		t.Errorf("%v from four ports", got)
	}
	if got := Ports(Layer2, src, dst, 2, 2, 20000, 30000, nil); got != nil {
		t.Errorf("layer2: %v", got)
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"lacp", "backup", "alone"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Fuzz(func(t *testing.T, text string) {
		b, err := Parse("b", text)
		if err != nil {
			if !errors.Is(err, ErrFormat) && b != nil {
				t.Errorf("%v with a bond", err)
			}
			return
		}
		b.Warnings()
		b.Link(&Flow{Src: netip.MustParseAddrPort("10.0.0.1:1"), Dst: netip.MustParseAddrPort("10.0.0.2:2")})
	})
}
