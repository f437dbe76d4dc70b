package journal

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand"
	"path/filepath"
	"testing"
	"time"

	"varve/internal/disk"
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

// events makes n records whose payloads are like what a metadata server writes, in the encoding of package event: files that are made,
// chunks, sizes and times, leases and removals, of 16 sessions.
func events(n int) []Record {
	rng := rand.New(rand.NewSource(1))
	num := func(b []byte, field int, v uint64) []byte {
		return binary.AppendUvarint(binary.AppendUvarint(b, uint64(field)<<3), v)
	}
	text := func(b []byte, field int, v []byte) []byte {
		b = binary.AppendUvarint(b, uint64(field)<<3|2)
		return append(binary.AppendUvarint(b, uint64(len(v))), v...)
	}
	pick := func(s ...string) string { return s[rng.Intn(len(s))] }
	recs := make([]Record, n)
	now, entry, ino, chunk := int64(1_790_000_000_000_000_000), uint64(1000), uint64(1000), uint64(500)
	seqs := make([]uint64, 16)
	for i := range recs {
		now += rng.Int63n(100_000)
		if rng.Intn(8) == 0 {
			entry++
		}
		session := rng.Intn(len(seqs))
		seqs[session]++
		seq := seqs[session]
		cause := num(num(num(num(nil, 1, uint64(100+session*37)), 2, seq), 3, seq-uint64(rng.Int63n(int64(min(seq, 3))))), 4, 1000)
		var body []byte
		kind := 0
		switch r := rng.Intn(100); {
		case r < 35:
			kind, ino = 20, ino+1
			name := fmt.Sprintf("%s-%06d.%s", pick("disk", "vm", "snap", "img", "report"), rng.Intn(1e6), pick("qcow2", "img", "raw", "log", "tmp"))
			body = num(num(text(num(nil, 1, uint64(1+rng.Intn(50))), 2, []byte(name)), 3, ino), 4, 1)
			body = num(num(num(num(body, 5, 0o644), 6, 1000), 7, 1000), 10, 2)
		case r < 50:
			kind, chunk = 40, chunk+1
			entry := num(num(num(nil, 1, uint64(rng.Intn(20))), 2, chunk), 3, 1)
			entry = text(entry, 4, []byte{byte(1 + rng.Intn(10)), byte(1 + rng.Intn(10)), byte(1 + rng.Intn(10))})
			body = num(text(num(nil, 1, ino-uint64(rng.Intn(100))), 2, entry), 3, 3)
		case r < 75:
			kind = 24
			body = num(num(num(nil, 1, ino-uint64(rng.Intn(500))), 5, uint64(rng.Intn(1<<20))*4096), 7, uint64(now-rng.Int63n(1e6)))
		case r < 90:
			kind = 27
			body = text(nil, 1, num(num(num(nil, 1, uint64(100+session*37)), 2, ino-uint64(rng.Intn(500))), 3, uint64(rng.Intn(3))))
		default:
			kind = 22
			name := fmt.Sprintf("%s-%06d.tmp", pick("disk", "vm"), rng.Intn(1e6))
			body = num(text(num(nil, 1, uint64(1+rng.Intn(50))), 2, []byte(name)), 3, ino-uint64(rng.Intn(500)))
		}
		payload := text(text(num(num(nil, 1, uint64(i+1)), 2, uint64(now)), 3, cause), kind, body)
		recs[i] = Record{Index: id.Index(i + 1), Time: now, Raft: entry, Payload: payload}
	}
	return recs
}

// benchJournal returns a closed journal of n events in segments of 16 MiB, of which all that are full are sealed if so asked. Next to them is
// a segment without records, so that every record is in the same form.
func benchJournal(b *testing.B, n int, sealed bool, blockBytes int) Options {
	b.Helper()
	o := Options{Dir: b.TempDir(), Cluster: testCluster, SegmentBytes: 16 << 20, NoSeal: true, blockBytes: blockBytes}
	j := mustOpen(b, o)
	mustAppend(b, j, events(n))
	ok(b, j.begin(j.last, false))
	if sealed {
		sealAll(b, j)
	}
	ok(b, j.Close())
	return o
}

func forms(b *testing.B, run func(b *testing.B, sealed bool)) {
	for _, sealed := range []bool{false, true} {
		b.Run(fmt.Sprintf("sealed=%t", sealed), func(b *testing.B) { run(b, sealed) })
	}
}

// BenchmarkNext reads records one after the other. With chain=true the chain hash of each is computed or taken as well.
func BenchmarkNext(b *testing.B) {
	forms(b, func(b *testing.B, sealed bool) {
		for _, chain := range []bool{false, true} {
			b.Run(fmt.Sprintf("chain=%t", chain), func(b *testing.B) {
				o := benchJournal(b, 400_000, sealed, 0)
				o.ReadOnly = true
				j := mustOpen(b, o)
				defer j.Close()
				r, err := j.Reader(1)
				ok(b, err)
				b.ReportAllocs()
				for b.Loop() {
					_, err := r.Next()
					if err == io.EOF {
						ok(b, r.Close())
						if r, err = j.Reader(1); err == nil {
							_, err = r.Next()
						}
					}
					if err != nil {
						b.Fatal(err)
					}
					if chain {
						r.Position()
					}
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
				ok(b, r.Close())
			})
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	forms(b, func(b *testing.B, sealed bool) {
		const n = 400_000
		o := benchJournal(b, n, sealed, 0)
		for b.Loop() {
			if rep, err := Verify(o, nil); err != nil || rep.Records != n {
				b.Fatal(rep, err)
			}
		}
		b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "records/s")
	})
}

// BenchmarkReader goes to any record.
func BenchmarkReader(b *testing.B) {
	forms(b, func(b *testing.B, sealed bool) {
		const n = 400_000
		j := mustOpen(b, benchJournal(b, n, sealed, 0))
		defer j.Close()
		at := id.Index(0)
		b.ReportAllocs()
		for b.Loop() {
			at = (at+7919)%n + 1
			r, err := j.Reader(at)
			ok(b, err)
			ok(b, r.Close())
		}
	})
}

func BenchmarkFindTime(b *testing.B) {
	forms(b, func(b *testing.B, sealed bool) {
		const n = 400_000
		recs := events(n)
		j := mustOpen(b, benchJournal(b, n, sealed, 0))
		defer j.Close()
		at := 0
		b.ReportAllocs()
		for b.Loop() {
			at = (at + 7919) % n
			if got, err := j.FindTime(recs[at].Time); err != nil || got < recs[at].Index {
				b.Fatal(got, err)
			}
		}
	})
}

// BenchmarkSeal seals a segment of 16 MiB with blocks of several sizes. The ratio is of the bytes before to those after. What a larger block
// gains there it costs a reader who wants one record: see ns/read.
func BenchmarkSeal(b *testing.B) {
	for _, size := range []int{32 << 10, 64 << 10, blockTarget, 256 << 10, 512 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("block=%dK", size>>10), func(b *testing.B) {
			o := benchJournal(b, 150_000, false, size)
			j := mustOpen(b, o)
			defer j.Close()
			s := j.segments[0]
			b.SetBytes(s.size)
			out := filepath.Join(o.Dir, "sealed"+tmpSuffix)
			var sealed *segment
			for b.Loop() {
				var err error
				sealed, err = j.writeSealed(s, out, nil)
				ok(b, err)
			}
			b.ReportMetric(float64(s.size)/float64(sealed.size), "ratio")
			f, err := j.o.FS.Open(out, disk.ReadOnly)
			ok(b, err)
			defer f.Close()
			x := blocks{}
			x.table, err = readTable(sealed, f)
			ok(b, err)
			start, n := time.Now(), 0
			for ; n < 500; n++ {
				at := s.first() + id.Index(n*7919)%(sealed.seal.last.Index-s.first())
				ok(b, x.reset("", f, sealed.seal, at))
				for {
					r, err := x.record()
					ok(b, err)
					if r.Index == at {
						break
					}
				}
			}
			b.ReportMetric(float64(time.Since(start).Nanoseconds())/float64(n), "ns/read")
		})
	}
}

func TestAllocs(t *testing.T) {
	o := testOptions(t.TempDir())
	o.SegmentBytes = 0
	j := mustOpen(t, o)
	defer j.Close()
	recs := records(1, 3000)
	mustAppend(t, j, recs)
	next := func(what string) {
		r, err := j.Reader(1)
		ok(t, err)
		defer r.Close()
		if n := testing.AllocsPerRun(1000, func() {
			if _, err := r.Next(); err != nil {
				t.Fatal(err)
			}
		}); n > 0 {
			t.Errorf("Next, %s: want no allocation, got %v", what, n)
		}
	}
	next("open")
	ok(t, j.begin(j.last, false))
	sealAll(t, j)
	next("sealed")
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
