package ebpf

import (
	"fmt"
	"slices"
	"strings"
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
	if b.MIIMon == 0 && b.ARP == 0 {
		say("miimon is 0: a lost link is not noticed; set miimon=100")
	}
	if b.Mode == LACPMode {
		b.adviseLACP(say)
	}
	b.adviseSpread(say)
	b.adviseSpeed(say)
	return out
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
	if !b.LACP.Fast {
		say("the LACP rate is slow: a dead partner is noticed after 90 s instead of 3; set lacp_rate=fast")
	}
}

// adviseSpread says how connections between two hosts are spread over the slaves.
func (b *Bond) adviseSpread(say func(string, ...any)) {
	switch {
	case b.Mode == RoundRobin:
		say("mode balance-rr sends the packets of one connection over all slaves, out of order; use 802.3ad with layer3+4")
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
}
