package bondsim

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	bonding "varve/ebpf"
)

// frame returns the headers of a TCP segment.
func frame(f bonding.Flow) []byte {
	six := f.Dst.Addr().Is6()
	b := append([]byte(nil), f.DstMAC[:]...)
	b = append(b, f.SrcMAC[:]...)
	if six {
		b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, unix.IPPROTO_TCP, 64)
	} else {
		b = append(b, 0x08, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0)
	}
	b = append(b, f.Src.Addr().AsSlice()...)
	b = append(b, f.Dst.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, f.Src.Port())
	b = binary.BigEndian.AppendUint16(b, f.Dst.Port())
	return append(b, make([]byte, 16)...)
}

// TestHash: the program, written after the driver's source, and package ebpf find the same hash for every policy; and the ports that ChoosePorts
// chooses take the slaves that it says by the program's hash as well, both ways.
func TestHash(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: no programs in the kernel")
	}
	b := &Bond{}
	if err := loadBondObjects(&b.objs, nil); err != nil {
		if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EPERM) {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	defer b.objs.Close()
	rng := rand.New(rand.NewPCG(5, 6))
	end := func(six bool) netip.AddrPort {
		var a [16]byte
		for i := range a {
			a[i] = byte(rng.Uint32())
		}
		addr := netip.AddrFrom4([4]byte(a[:4]))
		if six {
			a[0] = 0xfd
			addr = netip.AddrFrom16(a)
		}
		return netip.AddrPortFrom(addr, uint16(1+rng.IntN(65535)))
	}
	flow := func(i int) bonding.Flow {
		f := bonding.Flow{Src: end(i%2 == 1), Dst: end(i%2 == 1)}
		for i := range f.SrcMAC {
			f.SrcMAC[i], f.DstMAC[i] = byte(rng.Uint32()), byte(rng.Uint32())
		}
		return f
	}
	for i := range 300 {
		f := flow(i)
		for p := bonding.Layer2; p <= bonding.VLANSrcMAC; p++ {
			got, err := b.hash(p, frame(f))
			if err != nil {
				t.Fatal(err)
			}
			if want := f.Hash(p); got != want {
				t.Fatalf("%v, %+v: the program says %#x, the package %#x", p, f, got, want)
			}
		}
	}
	for i := range 10 {
		f := flow(i)
		f.Src = netip.AddrPortFrom(f.Src.Addr(), 0)
		for _, slaves := range []int{2, 3, 4, 8} {
			ports, err := bonding.ChoosePorts(f, slaves, 2*slaves)
			if err != nil {
				t.Fatal(err)
			}
			for way, port := range ports {
				g := f
				g.Src = netip.AddrPortFrom(f.Src.Addr(), port)
				out, err := b.hash(bonding.Layer34, frame(g))
				if err != nil {
					t.Fatal(err)
				}
				g.Src, g.Dst = g.Dst, g.Src
				back, err := b.hash(bonding.Layer34, frame(g))
				if err != nil {
					t.Fatal(err)
				}
				if int(out)%slaves != way%slaves || int(back)%slaves != way%slaves {
					t.Errorf("%v over %d slaves, connection %d from port %d: slave %d out, %d back", f, slaves, way, port, int(out)%slaves, int(back)%slaves)
				}
			}
		}
	}
}
