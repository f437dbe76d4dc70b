package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"varve/internal/id"
)

var testCluster = id.Cluster{1, 2, 3, 4}

func testOptions(dir string) Options {
	return Options{Dir: dir, Cluster: testCluster, SegmentBytes: minSegmentBytes, NoSeal: true}
}

// record makes the record that every test expects at index i.
func record(i id.Index) Record {
	n := int(i*37) % 200
	payload := bytes.Repeat([]byte{byte(i)}, n+8)
	binary.LittleEndian.PutUint64(payload, uint64(i))
	return Record{Index: i, Time: int64(i) * 1000, Raft: uint64(i) * 3, Payload: payload}
}

func records(from, to id.Index) []Record {
	var recs []Record
	for i := from; i <= to; i++ {
		recs = append(recs, record(i))
	}
	return recs
}

func mustOpen(t testing.TB, o Options) *Journal {
	t.Helper()
	j, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func mustAppend(t testing.TB, j *Journal, recs []Record) {
	t.Helper()
	if err := j.Append(recs); err != nil {
		t.Fatal(err)
	}
}

// sealAll seals what is full and returns how many segments that were.
func sealAll(t testing.TB, j *Journal) (n int) {
	t.Helper()
	for {
		s := j.nextToSeal(nil)
		if s == nil {
			return n
		}
		ok(t, j.seal(s, nil))
		n++
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantRecord(t testing.TB, got, want Record) {
	t.Helper()
	if got.Index != want.Index || got.Time != want.Time || got.Raft != want.Raft || !bytes.Equal(got.Payload, want.Payload) {
		t.Fatalf("record: want %+v, got %+v", want, got)
	}
}

// wantAll reads the records from to last and checks that the journal ends there.
func wantAll(t testing.TB, j *Journal, from, last id.Index) {
	t.Helper()
	r, err := j.Reader(from)
	ok(t, err)
	defer r.Close()
	for i := from; i <= last; i++ {
		got, err := r.Next()
		if err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
		wantRecord(t, got, record(i))
	}
	if rec, err := r.Next(); err != io.EOF {
		t.Fatalf("after record %d: want EOF, got %+v, %v", last, rec, err)
	}
}

func TestRoundTrip(t *testing.T) {
	o := testOptions(t.TempDir())
	j := mustOpen(t, o)
	if j.Last() != (Position{}) || j.First() != 1 {
		t.Fatalf("new journal: last %+v, first %d", j.Last(), j.First())
	}
	wantAll(t, j, 1, 0)
	const last = 500
	for i := id.Index(1); i <= last; i += 10 {
		mustAppend(t, j, records(i, i+9))
		if i%50 == 1 {
			ok(t, j.Sync())
		}
	}
	if len(j.segments) < 5 {
		t.Fatalf("want several segments, got %d", len(j.segments))
	}
	wantAll(t, j, 1, last)
	at := j.Last()
	if at.Index != last || at.Raft != last*3 || at.Time != last*1000 {
		t.Fatalf("last: got %+v", at)
	}
	size := j.Bytes()
	ok(t, j.Close())

	o.ReadOnly = true
	j = mustOpen(t, o)
	for from := id.Index(1); from <= last+1; from++ {
		wantAll(t, j, from, last)
	}
	if j.Last() != at || j.Bytes() != size {
		t.Fatalf("after reopening: want %+v and %d bytes, got %+v and %d", at, size, j.Last(), j.Bytes())
	}
	if err := j.Append(records(last+1, last+1)); !errors.Is(err, errReadOnly) {
		t.Fatalf("append to read-only journal: got %v", err)
	}
	if _, err := j.Reader(last + 2); !errors.Is(err, ErrNotFound) {
		t.Fatalf("reader behind the end: got %v", err)
	}
	if _, err := j.Reader(0); !errors.Is(err, ErrNotFound) {
		t.Fatalf("reader at 0: got %v", err)
	}
	ok(t, j.Close())

	rep, err := Verify(o, func(done, total int64) {})
	ok(t, err)
	if rep.Records != last || rep.First != 1 || rep.Last != last || rep.Bytes != size || rep.Gaps != 0 || rep.Torn != 0 {
		t.Fatalf("report: got %+v", rep)
	}
}

func TestReopenAndAppend(t *testing.T) {
	o := testOptions(t.TempDir())
	for i := id.Index(0); i < 20; i++ {
		j := mustOpen(t, o)
		mustAppend(t, j, records(i*7+1, i*7+7))
		ok(t, j.Close())
	}
	rep, err := Verify(o, nil)
	ok(t, err)
	if rep.Records != 140 {
		t.Fatalf("want 140 records, got %+v", rep)
	}
}

// TestFormat pins the bytes of version 1.
func TestFormat(t *testing.T) {
	o := testOptions(t.TempDir())
	j := mustOpen(t, o)
	mustAppend(t, j, []Record{{Index: 1, Time: 2, Raft: 3, Payload: []byte("varve")}})
	ok(t, j.WriteCheckpoint(j.Last(), func(w io.Writer) error { _, err := w.Write([]byte("state")); return err }))
	ok(t, j.Close())
	for _, name := range []string{segmentName(1), checkpointName(1)} {
		got, err := os.ReadFile(filepath.Join(o.Dir, name))
		ok(t, err)
		golden := filepath.Join("testdata", "v1-"+name)
		if os.Getenv("VARVE_REWRITE") != "" {
			ok(t, os.MkdirAll("testdata", 0o755))
			ok(t, os.WriteFile(golden, got, 0o644))
		}
		want, err := os.ReadFile(golden)
		ok(t, err)
		if !bytes.Equal(want, got) {
			t.Errorf("%s: want\n%x\ngot\n%x", name, want, got)
		}
	}
}

func TestLargeRecords(t *testing.T) {
	o := testOptions(t.TempDir())
	j := mustOpen(t, o)
	defer j.Close()
	big := make([]byte, MaxPayload)
	for i := range big {
		big[i] = byte(i * i)
	}
	recs := []Record{{Index: 1, Payload: big}, {Index: 2}, {Index: 3, Payload: big[:1<<20]}, {Index: 4, Payload: big}}
	mustAppend(t, j, recs)
	r, err := j.Reader(1)
	ok(t, err)
	defer r.Close()
	for _, want := range recs {
		got, err := r.Next()
		ok(t, err)
		wantRecord(t, got, want)
	}
	if err := j.Append([]Record{{Index: 5, Payload: make([]byte, MaxPayload+1)}}); err == nil {
		t.Fatal("a payload over the limit was accepted")
	}
	if err := j.Append([]Record{{Index: 6}}); err == nil {
		t.Fatal("a hole was accepted")
	}
	mustAppend(t, j, []Record{{Index: 5}}) // neither ended the journal
}

func TestReadWhileAppended(t *testing.T) {
	j := mustOpen(t, testOptions(t.TempDir()))
	defer j.Close()
	r, err := j.Reader(1)
	ok(t, err)
	defer r.Close()
	for i := id.Index(1); i < 300; i++ {
		if _, err := r.Next(); err != io.EOF {
			t.Fatalf("want EOF, got %v", err)
		}
		mustAppend(t, j, records(i, i))
		got, err := r.Next()
		ok(t, err)
		wantRecord(t, got, record(i))
		if r.Position() != j.Last() {
			t.Fatalf("position: want %+v, got %+v", j.Last(), r.Position())
		}
	}
}

func TestFindTime(t *testing.T) {
	o := testOptions(t.TempDir())
	o.SegmentBytes = 300 << 10
	j := mustOpen(t, o)
	if _, err := j.FindTime(5); !errors.Is(err, ErrNotFound) {
		t.Fatalf("in an empty journal: got %v", err)
	}
	const last = 5000
	mustAppend(t, j, records(1, last))
	for reopened := range 2 {
		for i := int64(1); i <= last; i += 37 {
			for _, q := range []struct{ t, want int64 }{{i * 1000, i}, {i*1000 + 1, i}, {i*1000 - 1, i - 1}} {
				got, err := j.FindTime(q.t)
				if q.want == 0 {
					if !errors.Is(err, ErrNotFound) {
						t.Fatalf("time %d: want ErrNotFound, got %d, %v", q.t, got, err)
					}
				} else if err != nil || int64(got) != q.want {
					t.Fatalf("reopened %d, time %d: want %d, got %d, %v", reopened, q.t, q.want, got, err)
				}
			}
		}
		ok(t, j.Close())
		j = mustOpen(t, o)
	}
	j.Close()
}

func TestDump(t *testing.T) {
	o := testOptions(t.TempDir())
	j := mustOpen(t, o)
	mustAppend(t, j, records(1, 2))
	ok(t, j.Reset(Position{Index: 10, Raft: 30, Time: 10000}))
	mustAppend(t, j, records(11, 11))
	var b bytes.Buffer
	ok(t, Dump(&b, o, DumpOptions{Format: func(r Record) string { return fmt.Sprintf("%d %d", r.Index, r.Raft) }})) // while open
	ok(t, j.Close())
	if want := "1 3\n2 6\n# records 3 to 10 are not in this journal\n11 33\n"; b.String() != want {
		t.Fatalf("want %q, got %q", want, b.String())
	}
}

func TestDumpRange(t *testing.T) {
	o := testOptions(t.TempDir())
	j := mustOpen(t, o)
	mustAppend(t, j, records(1, 100))
	sealAll(t, j)
	ok(t, j.Reset(Position{Index: 200, Raft: 600, Time: 200_000}))
	mustAppend(t, j, records(201, 210))
	ok(t, j.Close())
	for _, tt := range []struct{ from, to, first, last, lines int }{
		{0, 0, 1, 210, 111}, {40, 50, 40, 50, 11}, {95, 205, 95, 205, 12}, {150, 0, 201, 210, 10}, {210, 999, 210, 210, 1},
	} {
		var told []uint64
		d := DumpOptions{From: id.Index(tt.from), To: id.Index(tt.to), Progress: func(done, total uint64) { told = append(told, done, total) }}
		var b bytes.Buffer
		ok(t, Dump(&b, o, d))
		lines := bytes.Split(bytes.TrimSuffix(b.Bytes(), []byte("\n")), []byte("\n"))
		if first := Line(record(id.Index(tt.first))); string(lines[0]) != first || len(lines) != tt.lines {
			t.Errorf("%+v: want %d lines from %q, got %d from %q", tt, tt.lines, first, len(lines), lines[0])
		}
		if last := Line(record(id.Index(tt.last))); string(lines[len(lines)-1]) != last {
			t.Errorf("%+v: want %q as the last line, got %q", tt, last, lines[len(lines)-1])
		}
		if n := len(told); n < 2 || told[n-2] != told[n-1] {
			t.Errorf("%+v: progress: %v", tt, told)
		}
		d.Raw = true
		b.Reset()
		ok(t, Dump(&b, o, d))
		if tt.from >= 40 && tt.to <= 50 && tt.to > 0 { // without a hole
			next := id.Index(tt.first)
			ok(t, DecodeRaw(b.Bytes(), func(r Record) error { wantRecord(t, r, record(next)); next++; return nil }))
			if next != id.Index(tt.last+1) {
				t.Errorf("%+v: raw: got records up to %d", tt, next-1)
			}
		}
	}
	var told []int64
	_, err := Verify(o, func(done, total int64) { told = append(told, done, total) })
	ok(t, err)
	if n := len(told); n < 4 || told[0] != 0 || told[1] == 0 || told[n-2] != told[n-1] {
		t.Errorf("progress of verify: %v", told)
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{
		{},
		{Dir: "x"},
		{Cluster: testCluster},
		{Dir: "x", Cluster: testCluster, SegmentBytes: 1},
		{Dir: "x", Cluster: testCluster, SegmentBytes: 1 << 40},
	} {
		if _, err := o.withDefaults(); err == nil {
			t.Errorf("%+v: want an error", o)
		}
	}
	dir := t.TempDir()
	if _, err := Open(Options{Dir: filepath.Join(dir, "none"), ReadOnly: true}); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing directory: want ErrNotFound, got %v", err)
	}
	if _, err := Open(Options{Dir: dir, ReadOnly: true}); !errors.Is(err, ErrNotFound) {
		t.Errorf("empty directory: want ErrNotFound, got %v", err)
	}
	ok(t, mustOpen(t, testOptions(dir)).Close())
	o := testOptions(dir)
	o.Cluster[0]++
	if _, err := Open(o); err == nil {
		t.Error("a journal of another cluster was opened")
	}
}
