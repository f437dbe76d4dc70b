package bond

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"varve/ebpf"
)

const (
	// unevenFactor is how much more than an equal share a slave may carry, and unevenFor for how many looks in a row it may be more.
	unevenFactor = 1.5
	unevenFor    = 5
	// busyBytes a second over all slaves is what evenness is asked of: less is a matter of chance.
	busyBytes = 1 << 20
)

// counters are what an interface has carried since it came up, in bytes.
type counters struct{ sent, received uint64 }

// Rate is what a slave carries, in bytes a second.
type Rate struct {
	Slave          string
	Sent, Received float64
}

// counting compares what the slaves of a bond carry.
type counting struct {
	at       time.Time
	last     map[string]counters
	rates    []Rate // of the usable slaves
	unevenTx int    // looks in a row
	unevenRx int
	said     bool
}

// verify looks at what each slave has carried since the last time: connections that are spread evenly, and that carry enough to tell, load them evenly.
func (b *Bonds) verify(now time.Time) {
	b.mu.Lock()
	var all []string
	for name := range b.bonds {
		all = append(all, name)
	}
	b.mu.Unlock()
	for _, name := range all {
		b.verifyOne(name, now)
	}
}

func (b *Bonds) verifyOne(name string, now time.Time) {
	b.mu.Lock()
	s := b.bonds[name]
	if s == nil {
		b.mu.Unlock()
		return
	}
	bond := s.Bond
	b.mu.Unlock()
	have, mtus := map[string]counters{}, map[string]int{}
	for _, slave := range bond.Slaves {
		if c, mtu, ok := b.count(slave.Name); ok {
			have[slave.Name], mtus[slave.Name] = c, mtu
		}
	}
	b.mu.Lock()
	c := &s.count
	s.mtus = mtus
	if took := now.Sub(c.at).Seconds(); c.last != nil && took > 0 {
		c.rates = c.rates[:0:0]
		for _, slave := range bond.Usable() {
			before, known := c.last[slave.Name]
			after, there := have[slave.Name]
			if known && there && after.sent >= before.sent && after.received >= before.received {
				c.rates = append(c.rates, Rate{slave.Name, float64(after.sent-before.sent) / took, float64(after.received-before.received) / took})
			}
		}
	}
	c.at, c.last = now, have
	var what string
	if s.Steered() {
		what = c.judge()
	}
	b.mu.Unlock()
	if what != "" {
		b.o.Logger.Warn("the links of a bond are loaded unevenly", "bond", name, "load", what)
	}
}

// judge counts how long the load has been uneven, and returns what to say of it, once.
func (c *counting) judge() string {
	step := func(n *int, of func(Rate) float64) {
		if *n++; !uneven(c.rates, of) {
			*n = 0
		}
	}
	step(&c.unevenTx, func(r Rate) float64 { return r.Sent })
	step(&c.unevenRx, func(r Rate) float64 { return r.Received })
	if c.unevenTx < unevenFor && c.unevenRx < unevenFor {
		if c.unevenTx == 0 && c.unevenRx == 0 {
			c.said = false
		}
		return ""
	}
	if c.said {
		return ""
	}
	c.said = true
	return c.String()
}

func (c *counting) String() string {
	var out []string
	for _, r := range c.rates {
		out = append(out, fmt.Sprintf("%s %.1f MB/s out, %.1f in", r.Slave, r.Sent/1e6, r.Received/1e6))
	}
	return strings.Join(out, "; ")
}

// uneven reports whether a slave carries more than its share of a load that is worth it.
func uneven(rates []Rate, of func(Rate) float64) bool {
	if len(rates) < 2 {
		return false
	}
	sum, most := 0.0, 0.0
	for _, r := range rates {
		sum += of(r)
		most = max(most, of(r))
	}
	return sum >= busyBytes && most > unevenFactor*sum/float64(len(rates))
}

// count returns what an interface has carried, and its MTU.
func (b *Bonds) count(name string) (counters, int, bool) {
	if b.nl != nil {
		if l, err := b.nl.LinkByName(name); err == nil && l.Attrs().Statistics != nil {
			a := l.Attrs()
			return counters{a.Statistics.TxBytes, a.Statistics.RxBytes}, a.MTU, true
		}
	}
	number := func(file string) (uint64, bool) {
		text, err := os.ReadFile(filepath.Join("/sys/class/net", name, file))
		if err != nil {
			return 0, false
		}
		n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
		return n, err == nil
	}
	sent, ok1 := number("statistics/tx_bytes")
	received, ok2 := number("statistics/rx_bytes")
	mtu, ok3 := number("mtu")
	return counters{sent, received}, int(mtu), ok1 && ok2 && ok3
}

// State is a bond as it was found last.
type State struct {
	Name   string
	Bond   ebpf.Bond
	Rates  []Rate   // of the usable slaves, over the last second or so; nothing at first
	Uneven bool     // for some seconds now, though connections are spread
	Dead   []string // slaves that are up for the driver, and do not lead to some peer
}

// States returns the bonds by name.
func (b *Bonds) States() []State {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []State
	for name, s := range b.bonds {
		st := State{Name: name, Bond: *s.Bond, Rates: slices.Clone(s.count.rates), Uneven: s.count.unevenTx >= unevenFor || s.count.unevenRx >= unevenFor}
		st.Bond.Slaves = slices.Clone(s.Slaves)
		for i := range st.Bond.Slaves {
			st.Bond.Slaves[i].MTU = s.mtus[st.Bond.Slaves[i].Name]
		}
		usable := s.Usable()
		for key, d := range b.dead {
			if d.dead && key.bond == name && key.slave < len(usable) && !slices.Contains(st.Dead, usable[key.slave].Name) {
				st.Dead = append(st.Dead, usable[key.slave].Name)
			}
		}
		slices.Sort(st.Dead)
		out = append(out, st)
	}
	slices.SortFunc(out, func(x, y State) int { return strings.Compare(x.Name, y.Name) })
	return out
}
