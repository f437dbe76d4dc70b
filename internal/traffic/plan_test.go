package traffic

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"varve/ebpf"
	"varve/internal/planes"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

func testView(now time.Time) hostView {
	at := func(all ...string) (out []netip.Addr) {
		for _, a := range all {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	return hostView{
		interfaces: []planes.Interface{{Name: "lo", Addrs: at("127.0.0.1")}, {Name: "eth0", Addrs: at("10.0.0.5")}, {Name: "bond0", Addrs: at("10.1.0.5", "10.2.0.5")}},
		now:        now,
		speed:      func(name string) uint64 { return map[string]uint64{"eth0": 1e9, "s1": 10e9, "s2": 10e9}[name] },
		slaves: func(name string) []string {
			if name == "bond0" {
				return []string{"s1", "s2"}
			}
			return nil
		},
	}
}

func testNeed(now time.Time, set map[string]string, addrs ...string) Need {
	n := Need{Who: "cs1", Listen: []uint16{2511}}
	for _, a := range addrs {
		n.Addrs = append(n.Addrs, netip.MustParseAddr(a))
	}
	r := &msg.MembersReply{Servers: []string{"10.0.0.5:2511 replication=10.1.0.5:2600", "10.0.0.6:2512", "host:1"}}
	for k, v := range set {
		r.Settings = append(r.Settings, &msg.Setting{Key: k, Value: v})
	}
	n.take(r, now)
	return n
}

// TestPlan: what is set, and what the host is like, make what is done.
func TestPlan(t *testing.T) {
	now := time.Now()
	h := testView(now)
	p := makePlan([]Need{testNeed(now, nil, "10.0.0.5", "10.1.0.5", "10.2.0.5")}, h)
	if len(p.interfaces) != 3 || !p.interfaces["eth0"].classify || !p.interfaces["s1"].classify || !p.interfaces["s2"].classify || !p.watch {
		t.Errorf("interfaces %+v: want eth0 and the bond's slaves", p.interfaces)
	}
	if len(p.ports) != 3 || p.ports[2600] != classOf(unmarked) {
		t.Errorf("ports %v", p.ports)
	}
	if !strings.Contains(p.shapeOff, "net.shape is off") || !strings.Contains(p.guardOff, "net.guard is off") {
		t.Errorf("shape %q, guard %q", p.shapeOff, p.guardOff)
	}
	if p = makePlan([]Need{testNeed(now, nil, "127.0.0.1")}, h); len(p.interfaces) != 0 || !strings.Contains(p.classifyOff, "loopback") || p.watch {
		t.Errorf("loopback: %+v, %q", p.interfaces, p.classifyOff)
	}
	if p = makePlan([]Need{testNeed(now, map[string]string{"net.classify": "on"}, "127.0.0.1")}, h); !p.interfaces["lo"].classify {
		t.Errorf("loopback, on: %+v, %q", p.interfaces, p.classifyOff)
	}
	off := testNeed(now, map[string]string{"net.classify": "on", "net.shape": "on"}, "10.0.0.5")
	off.Classify = "off"
	if p = makePlan([]Need{off}, h); len(p.interfaces) != 0 || p.classifyOff != "net.classify is off" || !strings.Contains(p.shapeOff, "not told apart") {
		t.Errorf("off: %+v, %q, %q", p.interfaces, p.classifyOff, p.shapeOff)
	}
	if p = makePlan(nil, h); p.classifyOff == "" || p.shapeOff == "" || p.guardOff == "" {
		t.Errorf("nobody: %+v", p)
	}
	if p = makePlan([]Need{{Who: "m", Addrs: []netip.Addr{netip.MustParseAddr("10.9.9.9")}}}, h); !strings.Contains(p.classifyOff, "other members") {
		t.Errorf("untold: %q", p.classifyOff)
	}
}

func TestPlanShape(t *testing.T) {
	now := time.Now()
	h := testView(now)
	p := makePlan([]Need{testNeed(now, map[string]string{"net.shape": "on", "net.shape.repair": "min 2% max 50%"}, "10.0.0.5", "10.1.0.5")}, h)
	e, s := p.interfaces["eth0"], p.interfaces["s1"]
	if p.shapeOff != "" || e.link != 1e9 || s.link != 10e9 || len(e.shares) != 6 {
		t.Fatalf("%q, %+v, %+v", p.shapeOff, e, s)
	}
	if got, want := e.shares[4], (ebpf.Share{Class: classOf(wire.ClassRepair), Guarantee: 2e7, Ceiling: 5e8, Urgency: 3}); got != want {
		t.Errorf("repair has %+v, want %+v", got, want)
	}
	p = makePlan([]Need{testNeed(now, map[string]string{"net.shape": "on", "net.shape.link": "100M"}, "10.0.0.5")}, h)
	if p.interfaces["eth0"].link != 1e8 {
		t.Errorf("a link that was set: %+v", p.interfaces["eth0"])
	}
	p = makePlan([]Need{testNeed(now, map[string]string{"net.shape": "on", "net.shape.guest": "min 90%"}, "10.0.0.5")}, h)
	if !strings.Contains(p.shapeOff, "guaranteed") || p.interfaces["eth0"].link != 0 {
		t.Errorf("more than there is: %q", p.shapeOff)
	}
	h.speed = func(string) uint64 { return 0 }
	if p = makePlan([]Need{testNeed(now, map[string]string{"net.shape": "on"}, "10.0.0.5")}, h); !strings.Contains(p.shapeOff, "net.shape.link") {
		t.Errorf("a link of unknown speed: %q", p.shapeOff)
	}
}

// TestPlanGuard: only own ports are guarded, members and the host itself pass, and nothing is guarded where that could keep out who belongs there.
func TestPlanGuard(t *testing.T) {
	now := time.Now()
	h := testView(now)
	on := map[string]string{"net.guard": "on", "net.guard.allow": "192.168.0.0/16,10.7.0.9"}
	p := makePlan([]Need{testNeed(now, on, "10.0.0.5", "10.1.0.5"), testNeed(now, on, "127.0.0.1")}, h)
	for _, dev := range []string{"eth0", "bond0"} {
		f := p.interfaces[dev]
		if len(f.guarded) != 1 || f.guarded[0] != 2511 {
			t.Errorf("%s: guarded ports %v, want the own one", dev, f.guarded)
		}
		for _, who := range []string{"192.168.0.0/16", "10.7.0.9/32", "10.0.0.6/32", "10.1.0.5/32", "10.2.0.5/32"} {
			found := false
			for _, a := range f.allowed {
				found = found || a == netip.MustParsePrefix(who)
			}
			if !found {
				t.Errorf("%s: %s does not pass: %v", dev, who, f.allowed)
			}
		}
	}
	if len(p.interfaces["lo"].guarded) != 0 {
		t.Error("loopback is guarded")
	}
	late := testNeed(now.Add(-2*guardFor), on, "10.0.0.5")
	early := testNeed(now.Add(time.Hour), on, "10.0.0.5")
	nobody := testNeed(now, map[string]string{"net.guard": "on"}, "10.0.0.5")
	client := testNeed(now, on, "10.0.0.5")
	client.Listen = nil
	for name, c := range map[string]struct {
		need Need
		why  string
	}{"members of two minutes ago": {late, "120 s ago"}, "a clock that was set back": {early, "-3600 s ago"}, "nobody allowed": {nobody, "names no network"}, "a mount": {client, "net.guard is off"}} {
		if p := makePlan([]Need{c.need}, h); !strings.Contains(p.guardOff, c.why) || len(p.interfaces["eth0"].guarded) != 0 {
			t.Errorf("%s: %q, %+v", name, p.guardOff, p.interfaces)
		}
	}
}
