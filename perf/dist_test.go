package perf

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func mustDist(t *testing.T, d Dist, blocks int64) placer {
	t.Helper()
	p, err := d.parse(blocks, 1)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestScatter: every place once, for sizes around powers of four too.
func TestScatter(t *testing.T) {
	for _, n := range []int64{1, 2, 3, 4, 5, 15, 16, 17, 1000, 4096, 70000} {
		s := newScatter(n, 7)
		seen := make([]bool, n)
		for i := range n {
			at := s.at(i)
			if at < 0 || at >= n || seen[at] {
				t.Fatalf("of %d: %d goes to %d, outside or taken", n, i, at)
			}
			seen[at] = true
		}
	}
}

// TestZipf: the most popular blocks are chosen as often as the formula says.
func TestZipf(t *testing.T) {
	const n, draws, theta = 10_000, 2_000_000, 0.99
	z := newZipf(n, theta, 1)
	exact := 0.0
	for k := 1; k <= n; k++ {
		exact += math.Pow(float64(k), -theta)
	}
	if math.Abs(z.zeta-exact) > 1e-9*exact {
		t.Errorf("zeta %v, want %v", z.zeta, exact)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	hits := make([]int, n)
	for range draws {
		hits[z.rank(rng)]++
	}
	// The method is exact for the first two ranks, and near for sums of ranks.
	for _, r := range [][2]int{{0, 1}, {1, 2}, {0, 10}, {0, 100}, {0, 1000}, {5000, 10000}} {
		want, got := 0.0, 0
		for k := r[0]; k < r[1]; k++ {
			want += math.Pow(float64(k+1), -theta) / exact
			got += hits[k]
		}
		if share := float64(got) / draws; math.Abs(share-want) > 0.08*want {
			t.Errorf("ranks %d to %d: %.4f of the draws, want %.4f", r[0], r[1], share, want)
		}
	}
}

// TestZeta: the quick sum is the slow one.
func TestZeta(t *testing.T) {
	for _, theta := range []float64{0.2, 0.5, 0.99} {
		const n = 1 << 18
		exact := 0.0
		for k := n; k > 0; k-- {
			exact += math.Pow(float64(k), -theta)
		}
		if got := zeta(n, theta); math.Abs(got-exact) > 1e-10*exact {
			t.Errorf("theta %v: %v, want %v", theta, got, exact)
		}
	}
}

// TestHotCold: the shares are as asked for, and hot blocks lie all over.
func TestHotCold(t *testing.T) {
	const n, draws = 1000, 1_000_000
	p := mustDist(t, "hot:10:90", n)
	rng := rand.New(rand.NewPCG(1, 2))
	hits := make([]int, n)
	for range draws {
		hits[p.place(rng)]++
	}
	var hot []int
	sum := 0
	for b, h := range hits {
		if h == 0 {
			t.Fatalf("block %d was never chosen", b)
		}
		if h > draws/n*3 {
			hot, sum = append(hot, b), sum+h
		}
	}
	if len(hot) != n/10 || math.Abs(float64(sum)/draws-0.9) > 0.01 {
		t.Errorf("%d hot blocks with %d of %d draws", len(hot), sum, draws)
	}
	if slices.Min(hot) > n/4 || slices.Max(hot) < n*3/4 {
		t.Errorf("hot blocks from %d to %d of %d", slices.Min(hot), slices.Max(hot), n)
	}
}

func TestDistParse(t *testing.T) {
	for _, d := range []Dist{"", "uniform", "zipf:0.5", "zipf:0.99", "hot:1:50", "hot:0.1:99.9"} {
		for _, n := range []int64{1, 2, 3, 100} {
			p := mustDist(t, d, n)
			rng := rand.New(rand.NewPCG(3, 4))
			for range 1000 {
				if b := p.place(rng); b < 0 || b >= n {
					t.Fatalf("%s: block %d of %d", d, b, n)
				}
			}
		}
	}
	for _, d := range []Dist{"zipf", "zipf:1", "zipf:0", "zipf:x", "hot:10", "hot:0:10", "hot:10:100", "uniform:3", "pareto"} {
		if _, err := d.parse(10, 1); err == nil {
			t.Errorf("%q was taken", d)
		}
	}
}
