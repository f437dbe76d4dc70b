package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"varve/internal/disk"
)

// The seeds are in testdata/fuzz. VARVE_REWRITE=1 go test ./journal -run TestSeeds makes them again.

// bounded runs fn and checks that what it allocates is bounded by constants and by the size of its input, whatever that says.
func bounded(t *testing.T, input int, fn func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	if got, limit := after.TotalAlloc-before.TotalAlloc, uint64(8*maxBlockRaw+64*input); got > limit {
		t.Fatalf("allocated %d bytes for %d of input, want at most %d", got, input, limit)
	}
}

// FuzzDecode checks that no input makes the decoders of records and headers panic, and that what they accept is what the encoders make.
func FuzzDecode(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, magic := range []string{segMagic, sealMagic, ckptMagic} {
			if h, err := decodeHeader("fuzz", data, magic); err == nil {
				if again := appendHeader(nil, magic, h); !bytes.Equal(again, data[:headerSize]) {
					t.Fatalf("header: want %x, got %x", data[:headerSize], again)
				}
			}
		}
		var recs []Record
		if err := DecodeRaw(data, func(r Record) error { recs = append(recs, r); return nil }); err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("want ErrCorrupt, got %v", err)
			}
			return
		}
		var again []byte
		for i := range recs {
			start := len(again)
			raw := data[start : start+int(recordSize(&recs[i]))]
			again = appendTrailer(appendBody(again, &recs[i]), start, uint32(frameStable(raw)), frameChain(raw))
		}
		if !bytes.Equal(again, data) {
			t.Fatalf("records: want %x, got %x", data, again)
		}
	})
}

// FuzzSegment opens a journal whose only segment is the input, reads it in every way, and verifies it.
func FuzzSegment(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		bounded(t, len(data), func() {
			o := Options{Dir: "journal", ReadOnly: true, FS: memFS{files: map[string][]byte{segmentName(1): data}}}
			rep, verr := Verify(o, nil)
			j, err := Open(o)
			if (err == nil) != (verr == nil) {
				t.Fatalf("open: %v, verify: %v", err, verr)
			}
			if err != nil {
				return
			}
			defer j.Close()
			r, err := j.Reader(j.First())
			ok(t, err)
			defer r.Close()
			n := uint64(0)
			for ; ; n++ {
				rec, err := r.Next()
				if err == io.EOF {
					break
				}
				ok(t, err)
				if at, err := j.FindTime(rec.Time); err != nil || at < rec.Index {
					t.Fatalf("time of record %d: got %d, %v", rec.Index, at, err)
				}
			}
			if n != rep.Records {
				t.Fatalf("want %d records, got %d", rep.Records, n)
			}
		})
	})
}

// FuzzSealed decodes the input as a sealed segment, as it is and with its checksums made right.
func FuzzSealed(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		bounded(t, 2*len(data), func() {
			trySealed(t, data)
			trySealed(t, rightChecksums(bytes.Clone(data)))
		})
	})
}

func trySealed(t *testing.T, data []byte) {
	t.Helper()
	o := Options{Dir: "journal", ReadOnly: true, FS: memFS{files: map[string][]byte{sealedName(1): data}}, Cluster: testCluster}
	s, err := readSealed(&o, 1)
	if err != nil {
		return
	}
	file, err := o.FS.Open(s.path, disk.ReadOnly)
	ok(t, err)
	table, err := readTable(s, file)
	if err != nil {
		if !errors.Is(err, ErrCorrupt) {
			t.Fatalf("table: want ErrCorrupt, got %v", err)
		}
		return
	}
	b := blocks{table: table}
	err = b.reset(s.path, file, s.seal, s.first())
	want := s.first()
	for err == nil {
		var rec Record
		if rec, err = b.record(); err == nil && rec.Index != want {
			t.Fatalf("want record %d, got %d", want, rec.Index)
		}
		want++
	}
	if err != io.EOF && !errors.Is(err, ErrCorrupt) {
		t.Fatalf("want ErrCorrupt, got %v", err)
	}
	if verr := verifySealed(s, &o); verr == nil && err != io.EOF {
		t.Fatalf("verify is content, reading says %v", err)
	}
}

// rightChecksums makes the CRCs of a sealed segment right, as far as offsets and lengths can be followed.
func rightChecksums(b []byte) []byte {
	le := binary.LittleEndian
	if len(b) < headerSize+footerSize {
		return b
	}
	le.PutUint32(b[headerSize-4:], crc32.Checksum(b[:headerSize-4], castagnoli))
	foot := b[len(b)-footerSize:]
	if at := le.Uint64(foot[8:]); at <= uint64(len(b)-footerSize) {
		table := b[at : len(b)-footerSize]
		for e := table; len(e) >= blockEntry; e = e[blockEntry:] {
			off, size := le.Uint64(e), uint64(le.Uint32(e[8:]))
			if off > uint64(len(b)) || size > uint64(len(b))-off || le.Uint32(e[12:]) > maxBlockRaw {
				continue
			}
			comp := b[off : off+size]
			le.PutUint32(e[16:], crc32.Checksum(comp, castagnoli))
			if raw, err := decoder().DecodeAll(comp, make([]byte, 0, le.Uint32(e[12:]))); err == nil {
				le.PutUint32(e[20:], crc32.Checksum(raw, castagnoli))
			}
		}
		le.PutUint32(foot[20:], crc32.Checksum(table, castagnoli))
	}
	copy(foot[24:28], b[headerSize-4:headerSize])
	le.PutUint32(foot[footerSize-4:], crc32.Checksum(foot[:footerSize-4], castagnoli))
	return b
}

// FuzzBlock decodes the input as the records of a block; what it accepts it encodes again.
func FuzzBlock(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		at := Position{Index: 41, Raft: 7, Time: 1e18}
		for rest := data; len(rest) > 0; {
			r, n := decodeSealed(rest, &at)
			if n == 0 {
				return
			}
			if n > len(rest) || len(r.Payload) > n || r.Index != at.Index+1 {
				t.Fatalf("record %+v of %d bytes", r, n)
			}
			again, m := decodeSealed(appendSealed(nil, &at, &r), &at)
			if m == 0 || again.Time != r.Time || again.Raft != r.Raft || !bytes.Equal(again.Payload, r.Payload) {
				t.Fatalf("want %+v, got %+v", r, again)
			}
			at = Position{Index: r.Index, Raft: r.Raft, Time: r.Time}
			rest = rest[n:]
		}
	})
}

// FuzzCheckpoint reads the input as a checkpoint.
func FuzzCheckpoint(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		bounded(t, len(data), func() {
			o := Options{Dir: "journal", ReadOnly: true, FS: memFS{files: map[string][]byte{checkpointName(1): data}}, Cluster: testCluster}
			_, r, err := openCheckpoint(&o, 1)
			if err != nil {
				return
			}
			defer r.Close()
			got, err := io.ReadAll(r)
			if err == nil && !bytes.Equal(got, data[headerSize:len(data)-ckptTrailer]) {
				t.Fatalf("want the payload, got %x", got)
			}
			if err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatalf("want ErrCorrupt, got %v", err)
			}
		})
	})
}

// TestSeeds makes the seeds and the golden sealed segment if it is told to, and checks that they are there.
func TestSeeds(t *testing.T) {
	o := testOptions(t.TempDir())
	o.blockBytes = 150
	j := mustOpen(t, o)
	mustAppend(t, j, records(1, 5))
	mustAppend(t, j, []Record{{Index: 6}, {Index: 7, Time: -1, Raft: 1 << 63, Payload: []byte("varve")}})
	raw, _, err := j.ReadRaw(1, 1<<20)
	ok(t, err)
	ok(t, j.WriteCheckpoint(j.Last(), writeState(64)))
	ok(t, j.begin(j.last, false))
	segment, err := os.ReadFile(j.segments[0].path)
	ok(t, err)
	sealAll(t, j)
	sealed, err := os.ReadFile(j.segments[0].path)
	ok(t, err)
	checkpoint, err := os.ReadFile(filepath.Join(o.Dir, checkpointName(7)))
	ok(t, err)
	ok(t, j.Close())
	binary.LittleEndian.PutUint64(checkpoint[32:], 1) // the fuzz test names it so
	binary.LittleEndian.PutUint32(checkpoint[92:], crc32.Checksum(checkpoint[:92], castagnoli))
	var block []byte
	at := Position{Index: 41, Raft: 7, Time: 1e18}
	for _, r := range records(42, 44) {
		block = appendSealed(block, &at, &r)
		at = Position{Index: r.Index, Raft: r.Raft, Time: r.Time}
	}
	bomb := bytes.Clone(sealed) // says that its blocks are large
	table := binary.LittleEndian.Uint64(bomb[len(bomb)-footerSize+8:])
	binary.LittleEndian.PutUint32(bomb[table+12:], maxBlockRaw)
	torn := bytes.Clone(segment)
	clear(torn[len(torn)-20:])
	for target, seeds := range map[string][][]byte{
		"FuzzDecode": {
			raw, raw[:len(raw)-1], {}, {0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}, make([]byte, recOverhead),
			appendHeader(nil, segMagic, header{flags: flagGap, cluster: testCluster, at: Position{Index: 7, Raft: 8, Time: 9}}),
			appendHeader(nil, ckptMagic, header{cluster: testCluster}), sealed[:headerSize],
		},
		"FuzzSegment":    {segment, segment[:headerSize], torn, segment[:len(segment)-1], append(bytes.Clone(segment), segment[headerSize:]...)},
		"FuzzSealed":     {sealed, rightChecksums(bomb), sealed[:headerSize+footerSize], sealed[:len(sealed)-1]},
		"FuzzBlock":      {block, {0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0}, {0, 0, 0}, {}},
		"FuzzCheckpoint": {checkpoint, checkpoint[:len(checkpoint)-1], checkpoint[:headerSize+ckptTrailer]},
	} {
		dir := filepath.Join("testdata", "fuzz", target)
		for i, seed := range seeds {
			path := filepath.Join(dir, fmt.Sprintf("seed-%d", i))
			if os.Getenv("VARVE_REWRITE") != "" {
				ok(t, os.MkdirAll(dir, 0o755))
				ok(t, os.WriteFile(path, fmt.Appendf(nil, "go test fuzz v1\n[]byte(%q)\n", seed), 0o644))
			}
			if _, err := os.Stat(path); err != nil {
				t.Error(err)
			}
		}
	}
	golden := filepath.Join("testdata", "v1-"+sealedName(1))
	if os.Getenv("VARVE_REWRITE") != "" {
		ok(t, os.WriteFile(golden, sealed, 0o644))
	}
	// A zstd encoder may do better one day; what it made must be read for ever.
	was, err := os.ReadFile(golden)
	ok(t, err)
	o.FS, o.ReadOnly = memFS{files: map[string][]byte{sealedName(1): was}}, true
	s, err := readSealed(&o, 1)
	ok(t, err)
	ok(t, verifySealed(s, &o))
	file, err := o.FS.Open(s.path, disk.ReadOnly)
	ok(t, err)
	b := blocks{}
	b.table, err = readTable(s, file)
	ok(t, err)
	ok(t, b.reset(s.path, file, s.seal, 1))
	var again []byte
	for {
		r, err := b.record()
		if err == io.EOF {
			break
		}
		ok(t, err)
		again = append(again, b.encoded(&r)...)
	}
	var want []byte // which in the open segment said what was stable
	for off := 0; off < len(raw); {
		n, err := frameSize("", 0, raw[off:])
		ok(t, err)
		rec, start := frameRecord(raw[off:off+n]), len(want)
		want = appendTrailer(appendBody(want, &rec), start, 0, frameChain(raw[off:off+n]))
		off += n
	}
	if !bytes.Equal(again, want) {
		t.Fatalf("golden: want\n%x\ngot\n%x", want, again)
	}
}
