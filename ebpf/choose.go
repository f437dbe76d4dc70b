package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
)

// maxSlaves bounds the slaves that ports are chosen for: the hash has few bits that the port changes.
const maxSlaves = 64

// fitting bounds the ports with the right slaves that Choose compares.
const fitting = 4096

// ErrNoPorts means that there are not enough source ports for an even spread.
var ErrNoPorts = errors.New("not enough source ports")

// Pair is two ends of connections that differ in the port of this end only, as two bonds with Layer34 see them.
//
// In the lowest eight bits the hash before its last shift is the exclusive or of all bytes, so that both ends find the same: with 1, 2, 4 … 128
// slaves at both, what one sends over its slave k the other answers over its slave k. With other numbers that holds for some ports only.
type Pair struct {
	addrs  uint32
	remote uint16
}

// Pair returns the ends of f, whose source port does not matter.
func (f Flow) Pair() Pair {
	return Pair{addrs: addrHash(f.Dst.Addr()) ^ addrHash(f.Src.Addr()), remote: f.Dst.Port()}
}

// Out is the Layer34 hash of what leaves this end from a port, and Back of what the other end sends to it.
func (p Pair) Out(port uint16) uint32  { return p.hash(port, p.remote) }
func (p Pair) Back(port uint16) uint32 { return p.hash(p.remote, port) }

func (p Pair) hash(src, dst uint16) uint32 {
	b := [4]byte{byte(src >> 8), byte(src), byte(dst >> 8), byte(dst)}
	return fold(binary.NativeEndian.Uint32(b[:])^p.addrs) >> 1
}

// On reports whether a port takes slave k of n in both directions.
func (p Pair) On(port uint16, k, n int) bool {
	return p.Out(port)%uint32(n) == uint32(k) && p.Back(port)%uint32(n) == uint32(k)
}

// Choose returns the first of the ports that takes slave k of the n that are usable in both directions. Of several the one is preferred that takes slave
// way, modulo their number, for other numbers of usable slaves up to all: so a slave that fails or returns leaves the spread as
// it is, and connections need not be made anew. It reports false if there is none.
func (p Pair) Choose(k, n, way, all int, ports iter.Seq[uint16]) (best uint16, found bool) {
	bestScore, fits := uint64(0), 0
	full := uint64(0)
	for m := 2; m <= min(all, maxSlaves-1); m++ {
		if m != n {
			full |= 1 << m
		}
	}
	for port := range ports {
		if !p.On(port, k, n) {
			continue
		}
		score := uint64(0)
		for m := 2; m <= min(all, maxSlaves-1); m++ {
			if m != n && p.On(port, way%m, m) {
				score |= 1 << m
			}
		}
		if !found || score > bestScore {
			best, bestScore, found = port, score, true
		}
		if fits++; score == full || fits >= fitting {
			break
		}
	}
	return best, found
}

// firstPort is where ChoosePorts begins: above the services, below the ephemeral ports (32768 and up).
const firstPort = 20000

// ChoosePorts returns n different source ports so that n connections along f, hashed with Layer34, are spread evenly
// over the slaves, and what the other end sends too if it has as many: each carries n/slaves of them, some one more, and connection i takes slave
// i % slaves. Ports are tried upwards from f's source port, or from 20000 if that is 0; whoever finds one in use asks again from above the
// highest. f's other ports and addresses must be set. Errors wrap ErrNoPorts, but for arguments out of range.
func ChoosePorts(f Flow, slaves, n int) ([]uint16, error) {
	if slaves < 1 || slaves > maxSlaves || n < 0 || n > 1<<16 {
		return nil, fmt.Errorf("choose ports: %d connections over %d slaves: want up to %d over 1 to %d", n, slaves, 1<<16, maxSlaves)
	}
	first := int(f.Src.Port())
	if first == 0 {
		first = firstPort
	}
	next := make([]int, slaves) // where the search for each slave goes on
	for i := range next {
		next[i] = first
	}
	pair := f.Pair()
	out := make([]uint16, 0, n)
	for len(out) < n {
		slave := len(out) % slaves
		port, ok := pair.Choose(slave, slaves, slave, 0, upwards(next[slave]))
		if !ok {
			return nil, fmt.Errorf("choose ports: %d connections over %d slaves from port %d: slave %d: %w", n, slaves, first, slave, ErrNoPorts)
		}
		next[slave] = int(port) + 1
		out = append(out, port)
	}
	return out, nil
}

// upwards yields the ports from first on.
func upwards(first int) iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		for port := first; port < 1<<16; port++ {
			if !yield(uint16(port)) {
				return
			}
		}
	}
}
