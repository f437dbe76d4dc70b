package traffic

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"varve/ebpf"
	"varve/internal/planes"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds/settings"
)

// Limits of what is taken from others.
const (
	maxNeeds   = 256     // processes' members
	maxNeed    = 1 << 20 // bytes of one process' file
	maxServers = 4096    // addresses of one cluster
	// guardFor is how long after its members were told last a cluster's ports are guarded.
	guardFor = time.Minute
	// clockSlack is how far, in seconds, the time at which they were told may be ahead: the processes of a host have one clock, which counts whole seconds there.
	clockSlack = 2
)

// Need is what one server or mount needs of the host.
type Need struct {
	Who      string            `json:"who"`                // for people
	Addrs    []netip.Addr      `json:"addrs"`              // of this host, by which it talks
	Listen   []uint16          `json:"listen,omitempty"`   // its own ports
	Ports    []uint16          `json:"ports,omitempty"`    // of all servers of its cluster
	Members  []netip.Addr      `json:"members,omitempty"`  // addresses of these
	Set      map[string]string `json:"set,omitempty"`      // what is set of the network
	Known    int64             `json:"known"`              // Unix time, s, when the last three were told; 0: not yet
	Classify string            `json:"classify,omitempty"` // instead of what is set
}

func (n *Need) setting(key string) string {
	if key == settings.NetClassify && n.Classify != "" {
		return n.Classify
	}
	return n.Set[key]
}

// take notes what a metadata server has told.
func (n *Need) take(r *msg.MembersReply, now time.Time) {
	ports, members := map[uint16]bool{}, map[netip.Addr]bool{}
	for i, book := range r.Servers {
		if i == maxServers {
			break
		}
		for _, at := range planes.Book(book).Addrs() {
			if ap, err := netip.ParseAddrPort(at); err == nil {
				ports[ap.Port()], members[ap.Addr().Unmap()] = true, true
			}
		}
	}
	for _, p := range n.Listen {
		ports[p] = true
	}
	n.Ports, n.Members, n.Known = slices.Sorted(maps.Keys(ports)), slices.SortedFunc(maps.Keys(members), netip.Addr.Compare), now.Unix()
	n.Set = map[string]string{}
	for _, s := range r.Settings {
		n.Set[s.Key] = s.Value
	}
}

// Classes of frames: 0 is what is not ours, then as wire has them.
const (
	other     ebpf.Class = 0
	firstOurs ebpf.Class = 1
)

// classOf is the classifier's number of a class on the wire. Rebalancing and scrubbing have one code point, so they are one.
func classOf(c wire.Class) ebpf.Class { return firstOurs + ebpf.Class(min(c, wire.ClassRebalance)) }

// ClassNames are the kinds of traffic by the classifier's number.
var ClassNames = append([]string{"other"}, settings.NetClasses...)

func className(c ebpf.Class) string {
	if int(c) < len(ClassNames) {
		return ClassNames[c]
	}
	return strconv.Itoa(int(c))
}

// unmarked is the class of frames without a mark: connections that are being made, whatever for. They are few, and nothing goes on before they are through.
const unmarked = wire.ClassMeta

// marks gives each code point its class.
func marks() map[uint8]ebpf.Class {
	m := map[uint8]ebpf.Class{}
	for c := wire.ClassHeartbeat; c <= wire.ClassRebalance; c++ {
		m[c.DSCP()] = classOf(c)
	}
	return m
}

// plan is what is to be on a host.
type plan struct {
	ports      map[uint16]ebpf.Class
	interfaces map[string]ifPlan
	watch      bool

	// Why nothing of a kind is planned, "" if it is.
	classifyOff, shapeOff, guardOff string
}

// ifPlan is what is to be on an interface.
type ifPlan struct {
	classify bool
	link     uint64 // bits a second; 0: do not shape
	shares   []ebpf.Share
	guarded  []uint16
	allowed  []netip.Prefix
}

// hostView is what make looks at of the host.
type hostView struct {
	interfaces []planes.Interface
	slaves     func(string) []string // of a bond
	speed      func(string) uint64   // bits a second, 0 if not known
	now        time.Time
}

// makePlan adds up what is needed.
func makePlan(needs []Need, h hostView) plan {
	p := plan{ports: map[uint16]ebpf.Class{}, interfaces: map[string]ifPlan{}}
	loopback, wanted, told := false, false, false
	for _, n := range needs {
		told = told || n.Known != 0
		how := cmp.Or(n.setting(settings.NetClassify), "auto")
		if how == "off" {
			continue
		}
		wanted = true
		for _, port := range n.Ports {
			if len(p.ports) < ebpf.MaxPorts {
				p.ports[port] = classOf(unmarked)
			}
		}
		for _, dev := range devices(n.Addrs, h) {
			if dev == "lo" && how != "on" {
				loopback = true
				continue
			}
			for _, name := range parts(dev, h) {
				f := p.interfaces[name]
				f.classify = true
				p.interfaces[name] = f
			}
		}
	}
	switch {
	case len(p.interfaces) > 0:
		p.watch = true
	case !wanted && len(needs) > 0:
		p.classifyOff = settings.NetClassify + " is off"
	case loopback:
		p.classifyOff = "all is on loopback, which " + settings.NetClassify + "=auto leaves out"
	case !told:
		p.classifyOff = "nothing is known of other members yet"
	default:
		p.classifyOff = "no interface has an address of a server or mount"
	}
	p.planShape(needs, h)
	p.planGuard(needs, h)
	return p
}

func (p *plan) planShape(needs []Need, h hostView) {
	i := slices.IndexFunc(needs, func(n Need) bool { return n.setting(settings.NetShape) == "on" })
	if i < 0 {
		p.shapeOff = settings.NetShape + " is off"
		return
	}
	if p.classifyOff != "" {
		p.shapeOff = "frames are not told apart: " + p.classifyOff
		return
	}
	n := needs[i]
	shares, err := settings.Shares(n.setting)
	if err != nil {
		p.shapeOff = err.Error()
		return
	}
	given, err := settings.BitRate(n.setting(settings.NetShapeLink))
	if err != nil {
		p.shapeOff = err.Error()
		return
	}
	p.shapeOff = "the speed of no interface is known: set " + settings.NetShapeLink
	for name, f := range p.interfaces {
		link := cmp.Or(given, h.speed(name))
		if link == 0 || name == "lo" {
			continue
		}
		f.link, f.shares = link, nil
		for c, s := range shares {
			f.shares = append(f.shares, ebpf.Share{Class: firstOurs + ebpf.Class(c), Guarantee: link * uint64(s.Min) / 100, Ceiling: link * uint64(s.Max) / 100, Urgency: s.Urgency})
		}
		p.interfaces[name] = f
		p.shapeOff = ""
	}
}

func (p *plan) planGuard(needs []Need, h hostView) {
	p.guardOff = settings.NetGuard + " is off"
	for _, n := range needs {
		if n.setting(settings.NetGuard) != "on" || len(n.Listen) == 0 {
			continue
		}
		words, err := settings.Networks(n.setting(settings.NetGuardAllow))
		age := h.now.Unix() - n.Known
		switch {
		case err != nil:
			p.guardOff = err.Error()
			continue
		case len(words) == 0:
			p.guardOff = settings.NetGuardAllow + " names no network, and mounts and new servers would be kept out"
			continue
		case n.Known == 0 || age > int64(guardFor.Seconds()) || age < -clockSlack: // or the clock was set back, and nobody knows how long ago
			p.guardOff = fmt.Sprintf("the members of the cluster were told %d s ago", age)
			if n.Known == 0 {
				p.guardOff = "the members of the cluster were not told yet"
			}
			continue
		}
		allowed := map[netip.Prefix]bool{}
		for _, w := range words {
			if pre, err := netip.ParsePrefix(w); err == nil {
				allowed[pre.Masked()] = true
			} else if a, err := netip.ParseAddr(w); err == nil {
				allowed[host(a)] = true
			}
		}
		for _, m := range n.Members {
			allowed[host(m)] = true
		}
		for _, i := range h.interfaces {
			for _, a := range i.Addrs {
				allowed[host(a)] = true
			}
		}
		for _, dev := range devices(n.Addrs, h) {
			if dev == "lo" {
				continue
			}
			f := p.interfaces[dev]
			f.guarded = union(f.guarded, n.Listen)
			for _, a := range f.allowed {
				allowed[a] = true
			}
			f.allowed = slices.SortedFunc(maps.Keys(allowed), func(a, b netip.Prefix) int {
				return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
			})
			p.interfaces[dev] = f
			p.guardOff = ""
		}
	}
}

func host(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	return netip.PrefixFrom(a, a.BitLen())
}

func union(a, b []uint16) []uint16 {
	m := map[uint16]bool{}
	for _, p := range append(slices.Clone(a), b...) {
		m[p] = true
	}
	return slices.Sorted(maps.Keys(m))
}

// devices returns the interfaces that have the addresses.
func devices(addrs []netip.Addr, h hostView) (out []string) {
	for _, a := range addrs {
		name := ""
		if a.IsLoopback() {
			name = "lo"
		}
		for _, i := range h.interfaces {
			if slices.Contains(i.Addrs, a) {
				name = i.Name
			}
		}
		if name != "" && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// parts is an interface, or what it is made of.
func parts(name string, h hostView) []string {
	if s := h.slaves(name); len(s) > 0 {
		return s
	}
	return []string{name}
}

// LocalAddr returns the address of this host from which a server is reached.
func LocalAddr(server string) (netip.Addr, error) {
	c, err := net.Dial("udp", server) // sends nothing: the kernel only picks a route
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	ap, err := netip.ParseAddrPort(c.LocalAddr().String())
	return ap.Addr().Unmap(), err
}

// decodeNeeds reads one process' file.
func decodeNeeds(b []byte) ([]Need, error) {
	var out []Need
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, err
	}
	return out[:min(len(out), maxNeeds)], nil
}
