package ebpf

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// slowMbps is a link's speed up to which the network, not the disks, bounds a chunk server.
const slowMbps = 1000

// Advice lists what keeps the bond from carrying storage traffic well, worst first, one sentence each; nothing if all
// is well.
func (b *Bond) Advice() []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }

	if !b.Up {
		say("the bond is down")
	}
	if len(b.Slaves) == 0 {
		say("the bond has no slaves")
	} else if len(b.Slaves) == 1 {
		say("the bond has one slave only: losing %s loses the network", b.Slaves[0].Name)
	}
	for _, s := range b.Slaves {
		if !s.Up() {
			say("slave %s is %s", s.Name, s.Status)
		}
	}
	b.adviseMonitor(say)
	if b.Mode == LACPMode {
		b.adviseLACP(say)
	}
	b.adviseSpread(say)
	b.adviseSpeed(say)
	return out
}

// Bounds of miimon: below, the driver does little else than looking at its slaves; above, a lost link is a lost second.
const (
	minMIIMon = 10 * time.Millisecond
	maxMIIMon = time.Second
)

// adviseMonitor says how a lost link is noticed.
func (b *Bond) adviseMonitor(say func(string, ...any)) {
	mon := b.MIIMon
	switch {
	case mon == 0 && b.ARP == 0:
		say("miimon is 0: a lost link is not noticed; set miimon=100")
	case mon == 0:
	case mon < minMIIMon:
		say("miimon is %d ms: the driver does little else, and takes a short flicker for a lost link; set miimon=100", mon.Milliseconds())
	case mon > maxMIIMon:
		say("miimon is %d ms: a lost link is noticed after so long; set miimon=100", mon.Milliseconds())
	}
	if mon > 0 && (b.UpDelay%mon != 0 || b.DownDelay%mon != 0) {
		say("updelay %d and downdelay %d are no multiples of miimon %d: the driver rounds them down", b.UpDelay.Milliseconds(), b.DownDelay.Milliseconds(), mon.Milliseconds())
	}
}

func (b *Bond) adviseLACP(say func(string, ...any)) {
	switch {
	case b.LACP.Aggregator == 0:
		say("no aggregator is active: the switch does not speak LACP with this host")
	case strings.Trim(b.LACP.PartnerMAC, "0:") == "":
		say("the switch does not answer LACP: its ports are not configured as a LAG")
	}
	for _, s := range b.Slaves {
		switch {
		case !s.Up():
		case b.LACP.Aggregator != 0 && s.Aggregator != b.LACP.Aggregator:
			say("slave %s is not in the active aggregator and carries nothing", s.Name)
		case s.Churned:
			say("slave %s does not come into step with the switch (churned)", s.Name)
		}
	}
	b.advisePartners(say)
	if !b.LACP.Fast {
		say("the LACP rate is slow: a dead partner is noticed after 90 s instead of 3; set lacp_rate=fast")
	}
}

// advisePartners says which slaves are connected to another switch than the first: the driver uses those of one only.
func (b *Bond) advisePartners(say func(string, ...any)) {
	first := -1
	for i, s := range b.Slaves {
		switch {
		case !s.Up() || strings.Trim(s.PartnerMAC, "0:") == "":
		case first < 0:
			first = i
		case s.PartnerMAC != b.Slaves[first].PartnerMAC:
			say("slave %s is connected to %s and %s to %s: a bond uses the ports of one switch, or of several that are one to LACP (MLAG)",
				b.Slaves[first].Name, b.Slaves[first].PartnerMAC, s.Name, s.PartnerMAC)
		}
	}
}

// adviseSpread says how connections between two hosts are spread over the slaves.
func (b *Bond) adviseSpread(say func(string, ...any)) {
	switch {
	case b.Mode == RoundRobin:
		say("mode balance-rr sends the packets of one connection over all slaves, out of order; use 802.3ad with layer3+4")
	case b.Mode == ActiveBackup:
		say("mode active-backup has one slave carry everything; use 802.3ad with layer3+4 if the switch can")
	case b.Mode == Broadcast:
		say("mode broadcast sends every packet over every slave")
	case b.HasPolicy && !b.Policy.UsesPorts():
		say("hash policy %s sends all traffic between two hosts over one slave; set xmit_hash_policy=layer3+4", b.Policy)
	case b.HasPolicy && b.Policy == Encap34:
		say("hash policy encap3+4 spreads by a random number of each socket, so that connections cannot be placed evenly; set xmit_hash_policy=layer3+4")
	}
}

func (b *Bond) adviseSpeed(say func(string, ...any)) {
	var speeds []int
	for _, s := range b.Slaves {
		if !s.Up() {
			continue
		}
		if s.Duplex == "half" {
			say("slave %s runs at half duplex", s.Name)
		}
		if s.SpeedMbps > 0 {
			speeds = append(speeds, s.SpeedMbps)
			if s.SpeedMbps <= slowMbps {
				say("slave %s runs at %d Mbit/s: slower than one disk", s.Name, s.SpeedMbps)
			}
		}
	}
	if len(speeds) > 0 && slices.Min(speeds) != slices.Max(speeds) {
		say("the slaves run at different speeds, %d to %d Mbit/s", slices.Min(speeds), slices.Max(speeds))
	}
	var mtus []int
	for _, s := range b.Slaves {
		if s.MTU > 0 {
			mtus = append(mtus, s.MTU)
		}
	}
	if len(mtus) > 0 && slices.Min(mtus) != slices.Max(mtus) {
		say("the slaves have different MTUs, %d to %d bytes: some connections hang, and others do not", slices.Min(mtus), slices.Max(mtus))
	}
}
