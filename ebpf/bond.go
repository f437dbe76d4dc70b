package ebpf

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// Bounds of what ParseBond reads.
const (
	maxBondLine   = 4096
	maxBondSlaves = 256
)

// ErrNotBond means that the text is not what the bonding driver writes.
var ErrNotBond = errors.New("not the text of a bond")

// Bond is what /proc/net/bonding/NAME says. Fields that the kernel does not print for a mode are zero.
type Bond struct {
	Driver string // version of the driver, from the first line
	Mode   Mode
	Policy Policy // meaningful if HasPolicy: the kernel prints it in the modes balance-xor and 802.3ad
	// HasPolicy says that the bond chooses the slave by hash.
	HasPolicy bool

	Up        bool // the bond itself has a carrier
	MIIMon    time.Duration
	UpDelay   time.Duration
	DownDelay time.Duration
	ARP       time.Duration // interval of ARP monitoring, which takes the place of MIIMon

	Primary string // of active-backup and the adaptive modes; empty for none
	Active  string // the slave in use in those modes; empty for none

	LACP   LACP // of 802.3ad
	Slaves []Slave
}

// LACP is the state of 802.3ad.
type LACP struct {
	Active     bool
	Fast       bool // LACP rate: fast
	MinLinks   int
	Select     string // ad_select
	Aggregator int    // the active one; 0 for none
	Ports      int    // in the active aggregator
	PartnerMAC string // the switch; zeros if it does not speak LACP
}

// Slave is one interface of a bond.
type Slave struct {
	Name       string
	Status     string // up, down, going down, going back
	SpeedMbps  int    // 0 if unknown
	Duplex     string // full, half, unknown
	Failures   int    // times that the link was lost
	MAC        string // the permanent one
	Aggregator int    // of 802.3ad; 0 for none
	Churned    bool   // of 802.3ad: the actor's or the partner's port does not come into step
	PartnerMAC string // of 802.3ad: the system that answers on this port; zeros if none does
	MTU        int    // bytes; 0 if unknown: the text does not have it
}

// Up reports whether the slave carries traffic.
func (s Slave) Up() bool { return s.Status == "up" }

// Usable returns the slaves that the driver chooses among, in its order: slave number hash % len of them carries a frame. In 802.3ad they are those
// that are up and in the active aggregator (bond_update_slave_arr of bond_main.c).
func (b *Bond) Usable() []Slave {
	var out []Slave
	for _, s := range b.Slaves {
		if s.Up() && (b.Mode != LACPMode || s.Aggregator == b.LACP.Aggregator && s.Aggregator != 0) {
			out = append(out, s)
		}
	}
	return out
}

// Steered reports whether the source port of a connection decides about its slave.
func (b *Bond) Steered() bool { return b.HasPolicy && b.Policy == Layer34 }

// Mode is how a bond uses its slaves; the numbers are the kernel's (include/uapi/linux/if_bonding.h).
type Mode uint8

// Modes.
const (
	RoundRobin Mode = iota
	ActiveBackup
	BalanceXOR
	Broadcast
	LACPMode
	BalanceTLB
	BalanceALB
)

// modeTexts are what bond_mode_name of bond_main.c prints, without additions in brackets at the end.
var modeTexts = [...]string{
	RoundRobin:   "load balancing (round-robin)",
	ActiveBackup: "fault-tolerance (active-backup)",
	BalanceXOR:   "load balancing (xor)",
	Broadcast:    "fault-tolerance (broadcast)",
	LACPMode:     "IEEE 802.3ad Dynamic link aggregation",
	BalanceTLB:   "transmit load balancing",
	BalanceALB:   "adaptive load balancing",
}

var modeNames = [...]string{"balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb"}

func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// ParseBond reads the text of /proc/net/bonding/NAME. Lines that it does not know are skipped: newer kernels print more.
// A text without a mode, or with a value that makes no sense, is an error that wraps ErrNotBond.
//
// Source: bond_info_show_master and bond_info_show_slave of the kernel's drivers/net/bonding/bond_procfs.c, as of Linux 6.12.
func ParseBond(r io.Reader) (*Bond, error) {
	p := bondParser{bond: &Bond{}}
	in := bufio.NewScanner(r)
	in.Buffer(nil, maxBondLine)
	for in.Scan() {
		p.line++
		key, value, ok := strings.Cut(strings.TrimSpace(in.Text()), ":")
		if !ok {
			continue
		}
		if err := p.field(key, strings.TrimSpace(value)); err != nil {
			return nil, fmt.Errorf("line %d: %s: %w: %w", p.line, key, err, ErrNotBond)
		}
	}
	if err := in.Err(); err != nil {
		return nil, fmt.Errorf("read bond: %w", err)
	}
	if !p.hasMode {
		return nil, fmt.Errorf("no bonding mode: %w", ErrNotBond)
	}
	return p.bond, nil
}

type bondParser struct {
	bond    *Bond
	slave   *Slave // the one that the lines are about; nil before the first
	partner bool   // they are about who it is connected to
	line    int
	hasMode bool
}

func (p *bondParser) field(key, value string) error {
	if key == "Slave Interface" {
		if len(p.bond.Slaves) == maxBondSlaves {
			return fmt.Errorf("more than %d slaves", maxBondSlaves)
		}
		p.bond.Slaves = append(p.bond.Slaves, Slave{Name: value})
		p.slave = &p.bond.Slaves[len(p.bond.Slaves)-1]
		p.partner = false
		return nil
	}
	if p.slave != nil {
		switch key {
		case "details actor lacp pdu", "details partner lacp pdu":
			p.partner = key == "details partner lacp pdu"
		case "system mac address":
			if p.partner {
				p.slave.PartnerMAC = value
			}
		}
		return p.slave.field(key, value)
	}
	return p.master(key, value)
}

func (p *bondParser) master(key, value string) (err error) {
	b := p.bond
	switch key {
	case "Ethernet Channel Bonding Driver":
		b.Driver = value
	case "Bonding Mode":
		b.Mode, err = parseMode(value)
		p.hasMode = err == nil
	case "Transmit Hash Policy":
		name, _, _ := strings.Cut(value, " ")
		b.Policy, err = ParsePolicy(name)
		b.HasPolicy = err == nil
	case "Primary Slave":
		b.Primary = nameOrNone(value)
	case "Currently Active Slave":
		b.Active = nameOrNone(value)
	case "MII Status":
		b.Up = value == "up"
	case "MII Polling Interval (ms)":
		b.MIIMon, err = parseMillis(value)
	case "Up Delay (ms)":
		b.UpDelay, err = parseMillis(value)
	case "Down Delay (ms)":
		b.DownDelay, err = parseMillis(value)
	case "ARP Polling Interval (ms)":
		b.ARP, err = parseMillis(value)
	case "LACP active":
		b.LACP.Active = value == "on"
	case "LACP rate":
		b.LACP.Fast = value == "fast"
	case "Min links":
		b.LACP.MinLinks, err = strconv.Atoi(value)
	case "Aggregator selection policy (ad_select)":
		b.LACP.Select = value
	case "Aggregator ID":
		b.LACP.Aggregator, err = strconv.Atoi(value)
	case "Number of ports":
		b.LACP.Ports, err = strconv.Atoi(value)
	case "Partner Mac Address":
		b.LACP.PartnerMAC = value
	}
	return err
}

func (s *Slave) field(key, value string) (err error) {
	switch key {
	case "MII Status":
		s.Status = value
	case "Speed":
		if n, known := strings.CutSuffix(value, " Mbps"); known {
			s.SpeedMbps, err = strconv.Atoi(n)
		}
	case "Duplex":
		s.Duplex = strings.ToLower(value)
	case "Link Failure Count":
		s.Failures, err = strconv.Atoi(value)
	case "Permanent HW addr":
		s.MAC = value
	case "Aggregator ID":
		if value != "N/A" {
			s.Aggregator, err = strconv.Atoi(value)
		}
	case "Actor Churn State", "Partner Churn State":
		s.Churned = s.Churned || value == "churned"
	}
	return err
}

func parseMode(text string) (Mode, error) {
	for m, t := range modeTexts {
		if text == t || strings.HasPrefix(text, t+" (") { // as in "(fail_over_mac active)"
			return Mode(m), nil
		}
	}
	return 0, fmt.Errorf("mode %q", text)
}

func parseMillis(value string) (time.Duration, error) {
	n, err := strconv.ParseUint(value, 10, 31)
	return time.Duration(n) * time.Millisecond, err
}

// nameOrNone returns the interface of "eth0 (primary_reselect always)", and nothing for "None".
func nameOrNone(value string) string {
	name, _, _ := strings.Cut(value, " ")
	if name == "None" {
		return ""
	}
	return name
}
