package chunk

import (
	"fmt"
	"testing"
)

func TestIsZero(t *testing.T) {
	for _, n := range []int{0, 1, 7, 512, BlockSize - 1, BlockSize, BlockSize + 1, 3*BlockSize + 5} {
		b := make([]byte, n)
		if !IsZero(b) {
			t.Errorf("%d zeros are not", n)
		}
		for _, i := range []int{0, n / 2, n - 1, n - BlockSize - 1} {
			if i < 0 || i >= n {
				continue
			}
			b[i] = 0x80
			if IsZero(b) {
				t.Errorf("%d bytes, of which number %d is not zero", n, i)
			}
			b[i] = 0
		}
	}
}

func BenchmarkIsZero(b *testing.B) {
	p := make([]byte, BlockSize)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		IsZero(p)
	}
}

func BenchmarkSums(b *testing.B) {
	for _, size := range []int{BlockSize, 1 << 20} {
		p := make([]byte, size)
		for i := range p {
			p[i] = byte(i * 7)
		}
		sums := AppendSums(nil, 0, p)
		b.Run(fmt.Sprintf("op=make/size=%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				sums = AppendSums(sums[:0], 0, p)
			}
		})
		b.Run(fmt.Sprintf("op=verify/size=%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				if i := VerifySums(sums, 0, p); i >= 0 {
					b.Fatal(i)
				}
			}
		})
	}
}
