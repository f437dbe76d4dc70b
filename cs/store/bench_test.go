package store

import (
	"fmt"
	"testing"

	"varve/internal/chunk"
	"varve/internal/disk"
)

func benchStore(b *testing.B) *Store {
	s := mustOpen(b, Options{Dir: b.TempDir(), Cluster: testCluster})
	b.Cleanup(func() { s.Close() })
	must(b, s.Create(1, 1))
	p := disk.AlignedBuffer(1 << 20)
	for i := range p {
		p[i] = byte(i)
	}
	for off := uint32(0); off < chunk.Size; off += 1 << 20 {
		must(b, write(s, 1, 1, off, p))
	}
	must(b, s.Flush(1, 1))
	return s
}

func BenchmarkWrite(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20} {
		for _, flush := range []bool{false, true} {
			b.Run(fmt.Sprintf("size=%d/flush=%t", size, flush), func(b *testing.B) {
				s := benchStore(b)
				p := disk.AlignedBuffer(size)
				p[0] = 1
				sums := chunk.AppendSums(nil, 0, p)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for off := uint32(0); b.Loop(); off = (off + uint32(size)*37) % chunk.Size {
					must(b, s.Write(1, 1, off, p, sums))
					if flush {
						must(b, s.Flush(1, 1))
					}
				}
			})
		}
	}
}

func BenchmarkRead(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			s := benchStore(b)
			p, sums := disk.AlignedBuffer(size), make([]uint32, size/chunk.BlockSize)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for off := uint32(0); b.Loop(); off = (off + uint32(size)*37) % chunk.Size {
				must(b, s.Read(1, 1, off, uint32(size), p, sums))
			}
		})
	}
}

// BenchmarkStream fills chunks from the start, so that it pays for creation and marks.
func BenchmarkStream(b *testing.B) {
	s := mustOpen(b, Options{Dir: b.TempDir(), Cluster: testCluster})
	defer s.Close()
	p := disk.AlignedBuffer(1 << 20)
	p[0] = 1
	sums := chunk.AppendSums(nil, 0, p)
	b.SetBytes(chunk.Size)
	b.ReportAllocs()
	for b.Loop() {
		must(b, s.Create(1, 1))
		for off := uint32(0); off < chunk.Size; off += 1 << 20 {
			must(b, s.Write(1, 1, off, p, sums))
		}
		must(b, s.Delete(1))
	}
}
