package pki

import (
	"net/netip"
	"testing"
	"time"
)

// TestLimiterManySources: machines that have many addresses and prove nothing, or know no password, keep nobody out who comes from an address of which that is
// not known yet, for longer than it takes to find them all out.
func TestLimiterManySources(t *testing.T) {
	const addresses = 100
	for _, wrong := range []bool{false, true} {
		now := time.Unix(1e9, 0)
		l := newLimiter(func() time.Time { return now })
		from := func(n int) netip.Prefix {
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 32)
		}
		cut := make(map[*turn]bool)
		var held []*turn
		admin, in := from(7777), time.Duration(0)
		begin := now
		for ; in == 0 && now.Sub(begin) < 10*time.Minute; now = now.Add(100 * time.Millisecond) {
			for n := range addresses {
				var x *turn
				x, _ = l.begin(from(n), func() { cut[x] = true })
				switch {
				case x == nil:
				case wrong:
					x.failed()
					x.end()
				default:
					held = append(held, x)
				}
			}
			kept := held[:0]
			for _, x := range held {
				if cut[x] || now.Sub(x.since) > proofTimeout {
					x.end()
				} else {
					kept = append(kept, x)
				}
			}
			held = kept
			if n := len(l.shares[0].turns) + len(l.shares[1].turns); n > 2*maxUnderWay {
				t.Fatalf("%d attempts under way", n)
			}
			if now.Sub(begin) < 90*time.Second {
				continue // they come first; then the administrator tries as often as they do
			}
			if x, _ := l.begin(admin, func() { t.Error("the administrator was cut off") }); x != nil {
				x.succeeded()
				x.end()
				in = now.Sub(begin)
			}
		}
		if in == 0 || in > 90*time.Second+5*time.Second {
			t.Errorf("wrong passwords %v: the administrator came in after %v", wrong, in)
		}
	}
}
