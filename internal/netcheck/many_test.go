package netcheck

import (
	"encoding/binary"
	"fmt"
	"net"
	"runtime"
	"testing"
	"time"

	"varve/internal/wire"
)

// TestRunMany: 20 members, each at an address of its own as if on a host of its own, of whose 380 pairs 60 are measured: every member is at both ends of some,
// none is ever busy with another test, and the memory does not grow with what is measured.
func TestRunMany(t *testing.T) {
	t.Parallel()
	var list []*server
	for i := range 20 {
		s, err := serveMember(fmt.Sprintf("127.0.0.%d:0", i+2), uint32(i+1), nil)
		if err != nil {
			t.Skipf("no addresses of loopback but one: %v", err)
		}
		t.Cleanup(s.stop)
		list = append(list, s)
	}
	var to []Target
	for _, s := range list {
		to = append(to, Target{Name: fmt.Sprint("cs", s.number), Server: s.number, Addr: s.addr})
	}
	run := func() *Report {
		r, err := Run(t.Context(), RunOptions{Targets: to, Dial: asAdmin, For: 10 * time.Millisecond, Pairs: 60, Rate: 50 << 20})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapInuse
	}
	run() // what is made once is made
	before := heap()
	r := run()
	if len(r.Pairs) != 60 || r.Possible != 380 {
		t.Errorf("%d pairs of %d", len(r.Pairs), r.Possible)
	}
	if after := heap(); after > before+64<<20 {
		t.Errorf("%d bytes of heap in use, %d before", after, before)
	}
	from, at := map[string]bool{}, map[string]bool{}
	for _, p := range r.Pairs {
		if p.Failed != "" {
			t.Errorf("%s: %s", p.name(), p.Failed)
		}
		from[p.From], at[p.To] = true, true
	}
	if len(from) != 20 || len(at) != 20 {
		t.Errorf("%d members send and %d receive", len(from), len(at))
	}
}

// TestLateAnswers: an end that is busy answers late, large datagrams or all of them, and the MTU of the path is what it is.
func TestLateAnswers(t *testing.T) {
	t.Parallel()
	for late, from := range map[time.Duration]int{100 * time.Millisecond: 1400, 150 * time.Millisecond: 0} {
		u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		token := make([]byte, tokenLen)
		go func() {
			b := make([]byte, maxMTU)
			for {
				n, to, err := u.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				wait := time.Duration(0)
				if n > from {
					wait = late
				}
				answer := binary.LittleEndian.AppendUint32(append([]byte(nil), token...), uint32(n))
				time.AfterFunc(wait, func() { _, _ = u.WriteToUDPAddrPort(answer, to) })
			}
		}()
		at := u.LocalAddr().(*net.UDPAddr).AddrPort()
		for try := 1; ; try++ { // a machine that stands still makes them later than that
			p, err := probePath(t.Context(), at.Addr(), at, token, 0)
			if err == nil && p.mtu == p.local {
				break
			}
			if try == 10 {
				t.Errorf("answers to more than %d bytes %v late: %+v, %v", from, late, p, err)
				break
			}
		}
	}
}

// TestIPv6 measures over IPv6, whose headers are longer and whose fragments only the sender makes.
func TestIPv6(t *testing.T) {
	t.Parallel()
	if l, err := net.Listen("tcp", "[::1]:0"); err != nil {
		t.Skip("no IPv6: ", err)
	} else {
		l.Close()
	}
	s, err := serveMember("[::1]:0", 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	network, hello := self()
	r := measure(t.Context(), way{network: network, hello: hello, addr: s.addr, class: wire.ClassRepair, span: 50 * time.Millisecond, mtu: true})
	if r.Failed != "" || r.MtuBy != byProbe || r.PathMtu != min(r.LocalMtu, maxMTU) || r.Bytes == 0 {
		t.Errorf("%+v", r)
	}
}
