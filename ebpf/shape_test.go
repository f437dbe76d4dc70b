package ebpf

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

func shape(t *testing.T, s *space, dev string, link uint64, shares []Share) *Shaper {
	t.Helper()
	var q *Shaper
	var err error
	s.do(func() { q, err = Shape(dev, link, shares) })
	if errors.Is(err, ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.do(func() { q.Close() }) })
	return q
}

const mbit = 1_000_000

// TestShape: two classes that both want all of a link get what they are guaranteed, and alone all of it.
func TestShape(t *testing.T) {
	a, b := pair(t)
	q := shape(t, a, "v0", 100*mbit, []Share{{Class: 1, Guarantee: 70 * mbit}, {Class: 2, Guarantee: 20 * mbit, Urgency: 3}})
	attach(t, a, "v0", Options{Ports: map[uint16]Class{2510: 1, 2511: 2}, Priority: q.Priorities()})
	flood := func(addr string, stop <-chan struct{}, wg *sync.WaitGroup) {
		var l net.Listener
		var err error
		b.do(func() { l, err = net.Listen("tcp", addr) })
		if err != nil {
			t.Fatal(err)
		}
		var c net.Conn
		a.do(func() { c, err = net.Dial("tcp", addr) })
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		wg.Go(func() {
			for buf := make([]byte, 1<<16); ; {
				if _, err := s.Read(buf); err != nil {
					s.Close()
					return
				}
			}
		})
		wg.Go(func() {
			for buf := make([]byte, 1<<16); ; {
				select {
				case <-stop:
					c.Close()
					return
				default:
				}
				if _, err := c.Write(buf); err != nil {
					c.Close()
					return
				}
			}
		})
	}
	sent := func() map[Class]uint64 {
		var m map[Class]uint64
		var err error
		a.do(func() { m, _, err = q.Sent() })
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	measure := func() error {
		var wg sync.WaitGroup
		one, two := make(chan struct{}), make(chan struct{})
		flood("10.99.0.2:2510", one, &wg)
		flood("10.99.0.2:2511", two, &wg)
		time.Sleep(300 * time.Millisecond) // until both queues are full
		before := sent()
		time.Sleep(time.Second)
		after := sent()
		first, second := after[1]-before[1], after[2]-before[2]
		close(one)
		time.Sleep(300 * time.Millisecond)
		before = sent()
		start := time.Now()
		time.Sleep(700 * time.Millisecond)
		after = sent()
		alone := float64(after[2]-before[2]) * 8 / time.Since(start).Seconds()
		close(two)
		wg.Wait()
		// What is left over, 10 of 100 Mbit/s, goes to the more urgent one: 80 to 20. What a busy machine delivers late counts for both.
		if r := float64(first) / float64(second); r < 2.5 || r > 6 {
			return fmt.Errorf("both: %d and %d bytes, %.1f to 1, want 4 to 1", first, second, r)
		}
		if alone > 110*mbit || alone < 30*mbit {
			return fmt.Errorf("alone: %.0f Mbit/s of 100", alone/mbit)
		}
		return nil
	}
	var err error
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); { // a machine that is so busy that the queues run empty shares nothing: then it is measured again
		if err = measure(); err == nil {
			return
		}
		t.Log(err)
	}
	t.Error(err)
}

// TestShapeLeavesOthersAlone: queues of an administrator stay; ours, which a crash left, are made anew; after Close there are none.
func TestShapeLeavesOthersAlone(t *testing.T) {
	a, _ := pair(t)
	shares := []Share{{Class: 1, Guarantee: 10 * mbit}}
	a.run(t, "tc qdisc add dev v0 root handle 5: tbf rate 10mbit burst 64k latency 50ms")
	var err error
	a.do(func() { _, err = Shape("v0", 100*mbit, shares) })
	if !errors.Is(err, ErrForeign) {
		t.Fatalf("over queues of an administrator: %v", err)
	}
	a.run(t, "tc qdisc del dev v0 root")
	shape(t, a, "v0", 100*mbit, shares) // and never closed, as by a crash
	q := shape(t, a, "v0", 100*mbit, []Share{{Class: 2, Guarantee: 20 * mbit, Ceiling: 50 * mbit}})
	classes := a.run(t, "tc class show dev v0")
	if !strings.Contains(classes, "htb 7661:3") || strings.Contains(classes, "htb 7661:2 ") || !strings.Contains(classes, "rate 20Mbit ceil 50Mbit") {
		t.Errorf("classes after a second start:\n%s", classes)
	}
	a.do(func() { err = q.Close() })
	if err != nil {
		t.Fatal(err)
	}
	if out := a.run(t, "tc qdisc show dev v0"); strings.Contains(out, "htb") {
		t.Errorf("after Close: %s", out)
	}
	a.do(func() { err = q.Close() })
	if err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestShapeRefuses(t *testing.T) {
	for name, shares := range map[string][]Share{
		"no guarantee":           {{Class: 1}},
		"more than the link":     {{Class: 1, Guarantee: 200 * mbit}},
		"ceiling below":          {{Class: 1, Guarantee: 20 * mbit, Ceiling: 10 * mbit}},
		"all of the link":        {{Class: 1, Guarantee: 50 * mbit}, {Class: 2, Guarantee: 50 * mbit}},
		"class that is none":     {{Class: MaxClasses, Guarantee: mbit}},
		"urgency that HTB lacks": {{Class: 1, Guarantee: mbit, Urgency: 8}},
	} {
		if _, err := Shape("lo", 100*mbit, shares); err == nil || errors.Is(err, ErrNotSupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Shape("varve-none", 100*mbit, nil); err == nil {
		t.Error("an interface that is not there")
	}
}
