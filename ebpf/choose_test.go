package ebpf

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

// TestPair: the fast way to a hash is the hash, both ways.
func TestPair(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		f := Flow{Src: randomEnd(rng, false), Dst: randomEnd(rng, false)}
		if rng.IntN(2) == 0 {
			f = Flow{Src: randomEnd(rng, true), Dst: randomEnd(rng, true)}
		}
		p := f.Pair()
		if got, want := p.Out(f.Src.Port()), f.Hash(Layer34); got != want {
			t.Fatalf("%v: out %#x, want %#x", f, got, want)
		}
		if got, want := p.Back(f.Src.Port()), (Flow{Src: f.Dst, Dst: f.Src}).Hash(Layer34); got != want {
			t.Fatalf("%v: back %#x, want %#x", f, got, want)
		}
	}
}

func randomEnd(rng *rand.Rand, six bool) netip.AddrPort {
	var a [16]byte
	for i := range a {
		a[i] = byte(rng.Uint32())
	}
	addr := netip.AddrFrom4([4]byte(a[:4]))
	if six {
		a[0] = 0xfd
		addr = netip.AddrFrom16(a)
	}
	return netip.AddrPortFrom(addr, uint16(rng.Uint32()))
}

// TestChooseForLess: ports are right for the slaves that are there, both ways, and for as many others as can be: with up to four, for all numbers of them.
func TestChooseForLess(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for all := 1; all <= 8; all++ {
		for range 8 {
			p := Flow{Src: randomEnd(rng, false), Dst: randomEnd(rng, false)}.Pair()
			for n := 1; n <= all; n++ {
				for way := range 2 * all {
					port, ok := p.Choose(way%n, n, way, all, upwards(32768))
					if !ok {
						t.Fatalf("way %d over %d of %d: no port", way, n, all)
					}
					if !p.On(port, way%n, n) {
						t.Fatalf("way %d over %d of %d: port %d takes slaves %d and %d", way, n, all, port, p.Out(port)%uint32(n), p.Back(port)%uint32(n))
					}
					for m := 2; m <= all && all <= 4; m++ {
						if !p.On(port, way%m, m) {
							t.Errorf("way %d over %d of %d: port %d is wrong for %d", way, n, all, port, m)
						}
					}
				}
			}
		}
	}
	if _, ok := (Pair{}).Choose(0, 2, 0, 2, upwards(1<<16)); ok {
		t.Error("a port out of none")
	}
}

func BenchmarkChoose(b *testing.B) {
	p := flow("10.0.0.1:0", "10.0.0.2:2510").Pair()
	b.ReportAllocs()
	for b.Loop() {
		p.Choose(1, 4, 1, 8, upwards(32768))
	}
}
