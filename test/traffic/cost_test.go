package traffic

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/ebpf"
	"varve/internal/wire"
	"varve/test/netns"
)

// turn is one turn of TestCost.
type turn struct {
	bytes   float64
	again   float64 // of them, sent once more
	elapsed float64 // s
	cpu     float64 // s of this process, which sends and receives; the kernel's part included
}

// TestCost measures what the classifier costs: the time that the kernel takes for a run of it, and the throughput and CPU of streams through a pair of interfaces with and
// without it, in turns. And what it counts is what was sent, but for headers, on each of two interfaces, as the slaves of a bond are.
func TestCost(t *testing.T) {
	long := soak(t)
	if !begin(t, 10*time.Minute+long) {
		return
	}
	s := netns.New(t, 1)
	slave := s.Join(t, "r", 89)
	rounds, each := 3, 150*time.Millisecond
	if long > 0 {
		rounds, each = 15, time.Second
	}
	attach := func(dev string) *ebpf.Classifier {
		marks := map[uint8]ebpf.Class{wire.ClassGuest.DSCP(): 3}
		c, err := ebpf.Attach(dev, ebpf.Options{Ports: map[uint16]ebpf.Class{2511: 2}, Marks: marks, Priority: map[ebpf.Class]uint32{3: 0x76610004}})
		if errors.Is(err, ebpf.ErrNotSupported) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		return c
	}

	t.Logf("%s", load())
	for _, gso := range []bool{true, false} {
		how := "large frames (as with segmentation by the card)"
		if !gso {
			how = "frames of 1,500 bytes"
			netns.IP(t, "link set h1 gso_max_segs 1")
			s.IP(t, "link set e gso_max_segs 1")
		}
		var with, without turn
		var cost ebpf.Cost
		perRun := time.Hour // the least of the rounds: the machine may stand still in a run
		for range rounds {
			a := stream(t, s, s.Host(), each)
			c := attach("h1")
			b := stream(t, s, s.Host(), each)
			var one ebpf.Cost
			for _, k := range timed(t, func() { stream(t, s, s.Host(), each) }, c) {
				one.Runs, one.Runtime = one.Runs+k.Runs, one.Runtime+k.Runtime
			}
			if one.Runs > 0 {
				perRun = min(perRun, one.Runtime/time.Duration(one.Runs))
			}
			cost.Runs += one.Runs
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			for sum, one := range map[*turn]turn{&without: a, &with: b} {
				sum.bytes, sum.elapsed, sum.cpu = sum.bytes+one.bytes, sum.elapsed+one.elapsed, sum.cpu+one.cpu
			}
		}
		if cost.Runs == 0 {
			t.Fatal("the classifier did not run")
		}
		speed := func(x turn) float64 { return x.bytes / x.elapsed }
		t.Logf("%s: %v a run of %d; throughput with the classifier %.3f of that without (%.0f MB/s), CPU for a byte %.3f", how, perRun, cost.Runs, speed(with)/speed(without),
			speed(without)/1e6, (with.cpu/with.bytes)/(without.cpu/without.bytes))
		if perRun > 20*time.Microsecond {
			t.Errorf("%v for a run: what does it do?", perRun)
		}
	}
	for dev, addr := range map[string]string{"h1": s.Host(), "r1": slave} {
		c := attach(dev)
		x := stream(t, s, addr, each)
		got, err := c.Counters()
		if err != nil {
			t.Fatal(err)
		}
		n := got[ebpf.Key{Class: 3, Direction: ebpf.Egress}]
		without := float64(n.Bytes) - 66*float64(n.Packets) // Ethernet, IP and TCP with time stamps; the connections' first frames have some more
		t.Logf("%s: %.0f bytes were sent, and %.0f of them again, counted %d in %d frames, %.0f without headers", dev, x.bytes, x.again, n.Bytes, n.Packets, without)
		if d := without - x.bytes - x.again; d < -100 || d > 4096+x.bytes/1000 {
			t.Errorf("%s: counted %.0f bytes without headers, sent were %.0f and %.0f again", dev, without, x.bytes, x.again)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// timed returns what a classifier cost while f ran. The kernel takes the time only then, since that costs something itself.
func timed(t *testing.T, f func(), c *ebpf.Classifier) map[ebpf.Direction]ebpf.Cost {
	t.Helper()
	stats, err := ebpf.MeasureCost()
	if errors.Is(err, ebpf.ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	f()
	cost, cerr := c.Cost()
	if err := errors.Join(cerr, stats.Close()); err != nil {
		t.Fatal(err)
	}
	return cost
}

// stream sends as much as goes through to a port in a namespace for a while.
func stream(t *testing.T, s *netns.Space, addr string, limit time.Duration) turn {
	t.Helper()
	var l net.Listener
	var err error
	s.Do(func() { l, err = net.Listen("tcp", addr+":2511") })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, err := net.DialTimeout("tcp", addr+":2511", 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	wire.Mark(out, wire.ClassGuest)
	var wg sync.WaitGroup
	got := int64(0)
	wg.Go(func() { got, _ = io.Copy(io.Discard, struct{ io.Reader }{in}) })
	b := make([]byte, 256<<10)
	before, start := cpu(t), time.Now()
	sent := int64(0)
	for time.Since(start) < limit {
		n, err := out.Write(b)
		sent += int64(n)
		if err != nil {
			t.Fatal(err)
		}
	}
	tcp := out.(*net.TCPConn)
	if err := tcp.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wg.Wait() // all has arrived, and what was sent again is known
	raw, err := tcp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	if cerr := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	_, _ = out.Close(), in.Close()
	if got != sent {
		t.Fatalf("%d bytes came of %d", got, sent)
	}
	return turn{bytes: float64(sent), again: float64(info.Bytes_retrans), elapsed: time.Since(start).Seconds(), cpu: cpu(t) - before}
}

func cpu(t *testing.T) float64 {
	t.Helper()
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		t.Fatal(err)
	}
	return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9
}
