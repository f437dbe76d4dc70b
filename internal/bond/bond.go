package bond

import (
	"fmt"
	"slices"
	"strings"
)

// Mode is how a bond uses its links.
type Mode uint8

// The modes, with the driver's numbers.
const (
	BalanceRR Mode = iota
	ActiveBackup
	BalanceXOR
	Broadcast
	LACP // 802.3ad
	BalanceTLB
	BalanceALB
)

var modes = []string{"balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb"}

// String returns the driver's name.
func (m Mode) String() string {
	if int(m) < len(modes) {
		return modes[m]
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// hashes reports whether the hash policy decides which link a packet leaves by.
func (m Mode) hashes() bool { return m == BalanceXOR || m == LACP }

// Policy is what of a packet decides on its link.
type Policy uint8

// The policies, with the driver's numbers.
const (
	Layer2 Policy = iota
	Layer34
	Layer23
	Encap23
	Encap34
	VlanSrcMAC
)

var policies = []string{"layer2", "layer3+4", "layer2+3", "encap2+3", "encap3+4", "vlan+srcmac"}

// String returns the driver's name.
func (p Policy) String() string {
	if int(p) < len(policies) {
		return policies[p]
	}
	return fmt.Sprintf("policy %d", uint8(p))
}

// ports reports whether ports count, so that several connections of two hosts can use several links.
func (p Policy) ports() bool { return p == Layer34 || p == Encap34 }

// Bond is a bond as the driver shows it.
type Bond struct {
	Name          string
	Mode          Mode
	Policy        Policy // of modes that have one
	Up            bool
	MIIMonMS      int // how often links are looked at; 0: never
	UpDelayMS     int
	DownDelayMS   int
	LACPFast      bool   // "lacp_rate fast": a packet a second instead of one in 30
	PartnerMAC    string // of the active aggregator; all zeros: the switch does not speak LACP
	Aggregator    int    // the active one, of LACP
	ActiveSlave   string // of active-backup
	Slaves        []Slave
	MTU           int   // 0 where not known
	TxBytes       int64 // counters of the interface; 0 where not known
	RxBytes       int64
	ARPIntervalMS int
}

// Slave is one link of a bond.
type Slave struct {
	Name       string
	Up         bool
	SpeedMbps  int // 0: unknown
	FullDuplex bool
	Failures   int
	MAC        string // permanent
	Aggregator int    // of LACP
	MTU        int    // 0 where not known
	TxBytes    int64
	RxBytes    int64
}

// InUse returns the links that packets leave by, in the order by which the driver numbers them.
func (b *Bond) InUse() []string {
	var names []string
	for _, s := range b.Slaves {
		switch {
		case !s.Up:
		case b.Mode == LACP && s.Aggregator != b.Aggregator:
		case b.Mode == ActiveBackup && s.Name != b.ActiveSlave:
		default:
			names = append(names, s.Name)
		}
	}
	return names
}

// Link returns the slave that a flow leaves by; false if the mode does not decide by flow, or no link is in use.
func (b *Bond) Link(f *Flow) (string, bool) {
	use := b.InUse()
	switch {
	case len(use) == 0, !b.Mode.hashes() && b.Mode != ActiveBackup:
		return "", false
	case b.Mode == ActiveBackup:
		return use[0], true
	}
	return use[f.Hash(b.Policy)%uint32(len(use))], true
}

// slowMbps is the speed up to which a link is too slow for more than a test.
const slowMbps = 1000

// Warnings returns what of a bond an administrator should look at, a sentence each that says what to do.
func (b *Bond) Warnings() []string {
	var w []string
	add := func(format string, args ...any) { w = append(w, fmt.Sprintf(format, args...)) }
	switch b.Mode {
	case ActiveBackup:
		add("%s is active-backup: one link carries everything; 802.3ad with layer3+4 uses all (the switch has to agree)", b.Name)
	case BalanceRR:
		add("%s is balance-rr: packets of one connection overtake one another, which TCP takes for loss; use 802.3ad with layer3+4", b.Name)
	case Broadcast:
		add("%s is broadcast: every packet goes out on every link, so all have the speed of one; use 802.3ad with layer3+4", b.Name)
	case BalanceTLB, BalanceALB:
		add("%s is %v: which link a connection uses is not known beforehand, so varve cannot spread its connections; use 802.3ad with layer3+4", b.Name, b.Mode)
	}
	if b.Mode.hashes() && !b.Policy.ports() {
		add("%s hashes by %v: all connections of two hosts share one link; set xmit_hash_policy=layer3+4", b.Name, b.Policy)
	}
	switch {
	case b.MIIMonMS == 0 && b.ARPIntervalMS == 0:
		add("%s does not monitor its links (miimon=0): a link that fails loses what is sent on it; set miimon=100", b.Name)
	case b.MIIMonMS > 0 && b.MIIMonMS < 10:
		add("%s looks at its links every %d ms, which costs CPU and takes a flicker for a failure; miimon=100 is enough", b.Name, b.MIIMonMS)
	case b.MIIMonMS > 1000:
		add("%s looks at its links every %d ms only: a link that fails loses what is sent on it for so long; set miimon=100", b.Name, b.MIIMonMS)
	}
	if len(b.Slaves) < 2 {
		add("%s has %d link(s): nothing is gained by a bond of fewer than two", b.Name, len(b.Slaves))
	}
	var down, other []string
	speeds, mtus := map[int][]string{}, map[int][]string{}
	for _, s := range b.Slaves {
		if !s.Up {
			down = append(down, s.Name)
			continue
		}
		if b.Mode == LACP && s.Aggregator != b.Aggregator {
			other = append(other, s.Name)
		}
		if s.SpeedMbps > 0 {
			speeds[s.SpeedMbps] = append(speeds[s.SpeedMbps], s.Name)
		}
		if !s.FullDuplex && s.SpeedMbps > 0 {
			add("%s of %s is half duplex: look at the cable and at what both sides negotiate", s.Name, b.Name)
		}
		if s.MTU > 0 {
			mtus[s.MTU] = append(mtus[s.MTU], s.Name)
		}
	}
	if len(down) > 0 {
		add("%s is without %s, down: look at cable, switch port and driver", b.Name, strings.Join(down, ", "))
	}
	if len(other) > 0 {
		add("%s does not use %s, in another aggregator than %d: the ports of the switch are not in one LACP group", b.Name, strings.Join(other, ", "), b.Aggregator)
	}
	if b.Mode == LACP && strings.Trim(b.PartnerMAC, "0:") == "" {
		add("%s hears no LACP partner: the switch ports are not configured for it, and one link carries everything", b.Name)
	}
	for _, speed := range sorted(speeds) {
		if speed <= slowMbps {
			add("%s of %s: %d Mbit/s is enough for a test only; use 10 Gbit/s or more", strings.Join(speeds[speed], ", "), b.Name, speed)
		}
	}
	if len(speeds) > 1 {
		add("%s has links of different speeds (%s): the slowest decides how long all take", b.Name, list(speeds, "Mbit/s"))
	}
	if len(mtus) > 1 {
		add("%s has links of different MTU (%s): large packets get lost on some of them", b.Name, list(mtus, "bytes"))
	}
	return w
}

func sorted(m map[int][]string) []int {
	keys := make([]int, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// list says which value which links have.
func list(m map[int][]string, unit string) string {
	parts := make([]string, 0, len(m))
	for _, k := range sorted(m) {
		parts = append(parts, fmt.Sprintf("%s: %d %s", strings.Join(m[k], ", "), k, unit))
	}
	return strings.Join(parts, "; ")
}
