package ebpf

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

func TestWatch(t *testing.T) {
	a, b := pair(t)
	w, err := Watch("", []uint16{2510})
	if errors.Is(err, ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for range 3 {
		send(t, a, b, "10.99.0.2:2510", 1<<20)
	}
	send(t, a, b, "[fd99::2]:2510", 1<<20)
	send(t, a, b, "10.99.0.2:2600", 1<<20)
	peers, err := w.Peers()
	if err != nil {
		t.Fatal(err)
	}
	// Both ends are processes of this host, so either is the other's peer.
	for addr, want := range map[string]uint64{"10.99.0.2": 3, "10.99.0.1": 3, "fd99::1": 1, "fd99::2": 1} {
		h := peers[netip.MustParseAddr(addr)]
		if h.Connections != want {
			t.Errorf("%s: %+v, want %d connections", addr, h, want)
		}
		if h.Samples > 0 && (h.Min <= 0 || h.Min > h.Mean || h.Last <= 0 || h.Mean > 10*time.Second) {
			t.Errorf("%s: %+v", addr, h)
		}
	}
	if h := peers[netip.MustParseAddr("10.99.0.2")]; h.Samples == 0 {
		t.Errorf("no round-trip times: %+v", h)
	}
	before := peers[netip.MustParseAddr("10.99.0.2")].Retransmits
	// The other side vanishes in the middle: what is sent is sent again.
	b.run(t, "ip link set v1 down")
	reaches(t, a, b, "10.99.0.2:2510", 700*time.Millisecond)
	b.run(t, "ip link set v1 up")
	if peers, err = w.Peers(); err != nil || peers[netip.MustParseAddr("10.99.0.2")].Retransmits < before {
		t.Errorf("%+v, %v", peers, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Peers(); err == nil {
		t.Error("a closed watch answers")
	}
}
