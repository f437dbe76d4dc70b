package journal

import (
	"fmt"
	"io"
	"testing"

	"varve/internal/id"
)

func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{100, 4096} {
		for _, batch := range []int{1, 8, 64} {
			for _, sync := range []bool{false, true} {
				b.Run(fmt.Sprintf("size=%d/batch=%d/sync=%t", size, batch, sync), func(b *testing.B) {
					j := mustOpen(b, Options{Dir: b.TempDir(), Cluster: testCluster})
					defer j.Close()
					recs := make([]Record, batch)
					for i := range recs {
						recs[i].Payload = make([]byte, size)
					}
					b.SetBytes(int64(batch * (size + recOverhead)))
					b.ReportAllocs()
					last := j.Last().Index
					for b.Loop() {
						for i := range recs {
							last++
							recs[i].Index = last
						}
						if err := j.Append(recs); err != nil {
							b.Fatal(err)
						}
						if sync {
							if err := j.Sync(); err != nil {
								b.Fatal(err)
							}
						}
					}
					b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "records/s")
				})
			}
		}
	}
}

// benchJournal returns a closed journal of n records with payloads of size bytes.
func benchJournal(b *testing.B, n, size int) Options {
	b.Helper()
	o := Options{Dir: b.TempDir(), Cluster: testCluster, SegmentBytes: 16 << 20}
	j := mustOpen(b, o)
	recs := make([]Record, 1000)
	for i := 0; i < n; i += len(recs) {
		for k := range recs {
			recs[k] = Record{Index: id.Index(i + k + 1), Time: int64(i + k), Payload: make([]byte, size)}
		}
		mustAppend(b, j, recs)
	}
	ok(b, j.Close())
	return o
}

func BenchmarkNext(b *testing.B) {
	for _, size := range []int{100, 4096} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			o := benchJournal(b, 50_000_000/(size+recOverhead)/1000*1000, size)
			o.ReadOnly = true
			j := mustOpen(b, o)
			defer j.Close()
			r, err := j.Reader(1)
			ok(b, err)
			b.SetBytes(int64(size + recOverhead))
			b.ReportAllocs()
			for b.Loop() {
				_, err := r.Next()
				if err == io.EOF {
					ok(b, r.Close())
					r, err = j.Reader(1)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
			ok(b, r.Close())
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	const n = 200_000
	o := benchJournal(b, n, 100)
	b.SetBytes(n * (100 + recOverhead))
	for b.Loop() {
		if rep, err := Verify(o, nil); err != nil || rep.Records != n {
			b.Fatal(rep, err)
		}
	}
	b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "records/s")
}

func BenchmarkReader(b *testing.B) {
	const n = 200_000
	o := benchJournal(b, n, 100)
	j := mustOpen(b, o)
	defer j.Close()
	at := id.Index(0)
	b.ReportAllocs()
	for b.Loop() {
		at = (at+7919)%n + 1
		r, err := j.Reader(at)
		ok(b, err)
		ok(b, r.Close())
	}
}

func TestAllocs(t *testing.T) {
	o := testOptions(t.TempDir())
	o.SegmentBytes = 0
	j := mustOpen(t, o)
	defer j.Close()
	recs := records(1, 3000)
	mustAppend(t, j, recs)
	r, err := j.Reader(1)
	ok(t, err)
	defer r.Close()
	if n := testing.AllocsPerRun(1000, func() {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("Next: want no allocation, got %v", n)
	}
	one := records(3001, 3001)
	if n := testing.AllocsPerRun(1000, func() {
		if err := j.Append(one); err != nil {
			t.Fatal(err)
		}
		one[0].Index++
	}); n > 0 {
		t.Errorf("Append: want no allocation, got %v", n)
	}
}
