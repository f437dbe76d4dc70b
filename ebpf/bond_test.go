package ebpf

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

func parseFile(t *testing.T, name string) *Bond {
	t.Helper()
	f, err := os.Open("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := ParseBond(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseBond(t *testing.T) {
	const driver = "v6.12.38+deb13-amd64"
	for name, want := range map[string]Bond{
		"8023ad.txt": {
			Driver: driver, Mode: LACPMode, Policy: Layer34, HasPolicy: true,
			Up: true, MIIMon: 100 * time.Millisecond, UpDelay: 200 * time.Millisecond, DownDelay: 200 * time.Millisecond,
			LACP: LACP{Active: true, Fast: true, Select: "stable", Aggregator: 1, Ports: 2, PartnerMAC: "00:1c:73:0a:0b:0c"},
			Slaves: []Slave{
				{Name: "enp65s0f0np0", Status: "up", SpeedMbps: 25000, Duplex: "full", MAC: "0c:42:a1:00:10:00", Aggregator: 1, PartnerMAC: "00:1c:73:0a:0b:0c"},
				{Name: "enp65s0f1np1", Status: "up", SpeedMbps: 25000, Duplex: "full", Failures: 1, MAC: "0c:42:a1:00:10:01", Aggregator: 1, PartnerMAC: "00:1c:73:0a:0b:0c"},
			},
		},
		"8023ad-slave-down.txt": {
			Driver: driver, Mode: LACPMode, Policy: Layer2, HasPolicy: true, Up: true, MIIMon: 100 * time.Millisecond,
			LACP: LACP{Active: true, Select: "stable", Aggregator: 1, Ports: 1, PartnerMAC: "00:1c:73:0a:0b:0c"},
			Slaves: []Slave{
				{Name: "eno1", Status: "up", SpeedMbps: 10000, Duplex: "full", MAC: "0c:42:a1:00:10:01", Aggregator: 1, PartnerMAC: "00:1c:73:0a:0b:0c"},
				{Name: "eno2", Status: "down", Duplex: "unknown", Failures: 3, MAC: "0c:42:a1:00:10:02", Aggregator: 2, Churned: true, PartnerMAC: "00:00:00:00:00:00"},
			},
		},
		"active-backup.txt": {
			Driver: driver, Mode: ActiveBackup, Up: true, ARP: time.Second, Primary: "eth0", Active: "eth0",
			Slaves: []Slave{
				{Name: "eth0", Status: "up", SpeedMbps: 10000, Duplex: "full", MAC: "52:54:00:7c:75:2c"},
				{Name: "eth1", Status: "up", SpeedMbps: 1000, Duplex: "full", MAC: "52:54:00:7c:75:2d"},
			},
		},
		"balance-rr.txt": {Driver: driver, Mode: RoundRobin},
	} {
		if got := parseFile(t, name); !reflect.DeepEqual(*got, want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, *got, want)
		}
	}
}

func TestParseBondRefuses(t *testing.T) {
	for _, text := range []string{
		"",
		"Inter-|   Receive\n",
		"Bonding Mode: quantum\n",
		"Bonding Mode: load balancing (xor)\nTransmit Hash Policy: layer9 (9)\n",
		"Bonding Mode: load balancing (xor)\nMII Polling Interval (ms): -1\n",
		"Bonding Mode: load balancing (xor)\n" + strings.Repeat("\nSlave Interface: a\n", maxBondSlaves+1),
	} {
		if _, err := ParseBond(strings.NewReader(text)); !errors.Is(err, ErrNotBond) {
			t.Errorf("%.60q: %v", text, err)
		}
	}
	if _, err := ParseBond(strings.NewReader(strings.Repeat("x", 2*maxBondLine))); err == nil {
		t.Error("a line without end was read")
	}
}

func TestParseModeWithAddition(t *testing.T) {
	b, err := ParseBond(strings.NewReader("Bonding Mode: fault-tolerance (active-backup) (fail_over_mac active)\n"))
	if err != nil || b.Mode != ActiveBackup {
		t.Fatal(b, err)
	}
}

func TestAdvice(t *testing.T) {
	for name, want := range map[string][]string{
		"8023ad.txt": nil,
		"8023ad-slave-down.txt": {
			"slave eno2 is down",
			"LACP rate is slow",
			"hash policy layer2 sends all traffic between two hosts over one slave",
		},
		"active-backup.txt": {
			"active-backup has one slave carry everything",
			"slave eth1 runs at 1000 Mbit/s",
			"different speeds, 1000 to 10000 Mbit/s",
		},
		"balance-rr.txt": {
			"the bond is down",
			"no slaves",
			"miimon is 0",
			"balance-rr",
		},
	} {
		got := parseFile(t, name).Advice()
		if len(got) != len(want) {
			t.Errorf("%s: got %q, want %q", name, got, want)
			continue
		}
		for i := range want {
			if !strings.Contains(got[i], want[i]) {
				t.Errorf("%s: got %q, want %q", name, got[i], want[i])
			}
		}
	}
}

func TestAdviceOfLACP(t *testing.T) {
	good := func() *Bond { return parseFile(t, "8023ad.txt") }
	for want, change := range map[string]func(*Bond){
		"no aggregator is active":                            func(b *Bond) { b.LACP.Aggregator = 0 },
		"the switch does not answer LACP":                    func(b *Bond) { b.LACP.PartnerMAC = "00:00:00:00:00:00" },
		"slave enp65s0f1np1 is not in the active aggregator": func(b *Bond) { b.Slaves[1].Aggregator = 2 },
		"ports of one switch":                                func(b *Bond) { b.Slaves[1].PartnerMAC = "00:1c:73:0a:0b:0d" },
		"different MTUs, 1500 to 9000":                       func(b *Bond) { b.Slaves[0].MTU, b.Slaves[1].MTU = 9000, 1500 },
		"miimon is 1 ms":                                     func(b *Bond) { b.MIIMon = time.Millisecond },
		"miimon is 2000 ms":                                  func(b *Bond) { b.MIIMon, b.UpDelay, b.DownDelay = 2*time.Second, 0, 0 },
		"no multiples of miimon 100":                         func(b *Bond) { b.UpDelay = 150 * time.Millisecond },
		"miimon is 0":                                        func(b *Bond) { b.MIIMon = 0 },
		"(churned)":                                          func(b *Bond) { b.Slaves[0].Churned = true },
		"random number of each socket":                       func(b *Bond) { b.Policy = Encap34 },
		"one slave only: losing enp65s0f0np0":                func(b *Bond) { b.Slaves = b.Slaves[:1] },
		"slave enp65s0f0np0 runs at half duplex":             func(b *Bond) { b.Slaves[0].Duplex = "half" },
		"hash policy layer2+3 sends all traffic":             func(b *Bond) { b.Policy = Layer23 },
		"mode broadcast sends every packet over ever":        func(b *Bond) { b.Mode, b.HasPolicy = Broadcast, false },
	} {
		b := good()
		change(b)
		if got := b.Advice(); len(got) != 1 || !strings.Contains(got[0], want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func FuzzParseBond(f *testing.F) {
	for _, name := range []string{"8023ad.txt", "8023ad-slave-down.txt", "active-backup.txt", "balance-rr.txt"} {
		text, err := os.ReadFile("testdata/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Fuzz(func(_ *testing.T, text string) {
		if b, err := ParseBond(strings.NewReader(text)); err == nil {
			b.Advice()
		}
	})
}
