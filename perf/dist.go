package perf

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
)

// Dist says how often each block of a random pattern is chosen: uniform, zipf:THETA or hot:BLOCKS:OPERATIONS.
//
// zipf:THETA, with THETA above 0 and below 1, is the distribution of YCSB, whose THETA is 0.99: the k-th most popular block is chosen in
// proportion to 1/k^THETA. hot:10:90 has 90 % of the operations on 10 % of the blocks, and the others on the rest. The blocks that are
// chosen often lie all over the range, the same ones with the same Options.Seed.
type Dist string

// Uniform chooses every block as often as any other.
const Uniform Dist = "uniform"

// placer chooses blocks.
type placer interface {
	// place returns a block in [0, blocks).
	place(rng *rand.Rand) int64
}

// parse returns what chooses among so many blocks.
func (d Dist) parse(blocks int64, seed uint64) (placer, error) {
	name, args, _ := strings.Cut(string(d), ":")
	switch name {
	case "", "uniform":
		if args == "" {
			return uniform(blocks), nil
		}
	case "zipf":
		theta, err := strconv.ParseFloat(args, 64)
		if err == nil && theta > 0 && theta < 1 {
			return newZipf(blocks, theta, seed), nil
		}
	case "hot":
		some, most, _ := strings.Cut(args, ":")
		b, err1 := strconv.ParseFloat(some, 64)
		o, err2 := strconv.ParseFloat(most, 64)
		if err1 == nil && err2 == nil && b > 0 && b < 100 && o > 0 && o < 100 {
			hot := min(max(int64(float64(blocks)*b/100), 1), max(blocks-1, 1))
			return &hotCold{scatter: newScatter(blocks, seed), hot: hot, share: o / 100}, nil
		}
	}
	return nil, fmt.Errorf("distribution %q: want uniform, zipf:THETA (such as zipf:0.99) or hot:BLOCKS:OPERATIONS in percent (such as hot:10:90)", d)
}

type uniform int64

func (u uniform) place(rng *rand.Rand) int64 { return rng.Int64N(int64(u)) }

// hotCold has share of the operations on the first hot of the scattered blocks.
type hotCold struct {
	scatter scatter
	hot     int64
	share   float64
}

func (h *hotCold) place(rng *rand.Rand) int64 {
	n := h.scatter.n
	switch {
	case n == 1:
		return 0
	case rng.Float64() < h.share:
		return h.scatter.at(rng.Int64N(h.hot))
	}
	return h.scatter.at(h.hot + rng.Int64N(n-h.hot))
}

// zipf draws ranks by the method of Gray et al., "Quickly generating billion-record synthetic databases" (SIGMOD 1994), as YCSB does.
type zipf struct {
	scatter scatter
	zeta    float64 // sum of 1/k^theta
	alpha   float64
	eta     float64
	second  float64 // up to where the second rank is drawn
}

func newZipf(n int64, theta float64, seed uint64) *zipf {
	z := &zipf{scatter: newScatter(n, seed), zeta: zeta(n, theta), alpha: 1 / (1 - theta)}
	z.eta = (1 - math.Pow(2/float64(n), 1-theta)) / (1 - zeta(min(n, 2), theta)/z.zeta)
	z.second = 1 + math.Pow(0.5, theta)
	return z
}

func (z *zipf) place(rng *rand.Rand) int64 { return z.scatter.at(z.rank(rng)) }

// rank returns how popular the chosen block is, from 0.
func (z *zipf) rank(rng *rand.Rand) int64 {
	n, u := z.scatter.n, rng.Float64()
	switch uz := u * z.zeta; {
	case uz < 1 || n == 1:
		return 0
	case uz < z.second || n == 2:
		return 1
	}
	return min(int64(float64(n)*math.Pow(z.eta*u-z.eta+1, z.alpha)), n-1)
}

// zeta returns the sum of 1/k^theta for k from 1 to n: of the first ones exactly, of the rest by the integral with the first two terms of
// Euler and Maclaurin's formula, whose error is far below what doubles can tell.
func zeta(n int64, theta float64) float64 {
	const exact = 1 << 16
	sum := 0.0
	for k := min(n, exact); k > 0; k-- {
		sum += math.Pow(float64(k), -theta)
	}
	if n > exact {
		a, b := float64(exact), float64(n)
		sum += (math.Pow(b, 1-theta)-math.Pow(a, 1-theta))/(1-theta) + (math.Pow(b, -theta)-math.Pow(a, -theta))/2 +
			theta*(math.Pow(a, -theta-1)-math.Pow(b, -theta-1))/12
	}
	return sum
}

// scatter is a permutation of [0, n): a Feistel network over the next power of four, walked until it lands inside.
type scatter struct {
	n    int64
	half uint // bits of each half
	keys [4]uint64
}

func newScatter(n int64, seed uint64) scatter {
	s := scatter{n: n, half: 1}
	for s.half < 31 && int64(1)<<(2*s.half) < n {
		s.half++
	}
	rng := rand.New(rand.NewPCG(seed, 0x5ca77e4))
	for i := range s.keys {
		s.keys[i] = rng.Uint64() | 1
	}
	return s
}

func (s *scatter) at(i int64) int64 {
	mask := uint64(1)<<s.half - 1
	for {
		left, right := uint64(i)>>s.half, uint64(i)&mask
		for _, k := range s.keys {
			x := (right + k) * 0x9e3779b97f4a7c15
			x ^= x >> 29
			x *= k
			left, right = right, left^(x>>32)&mask
		}
		if i = int64(left<<s.half | right); i < s.n {
			return i
		}
	}
}
