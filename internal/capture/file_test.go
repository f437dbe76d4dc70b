package capture

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"syscall"
	"testing"
	"time"
)

var rewrite = flag.Bool("rewrite", false, "write the golden file of this version")

func someRecords(n int) []Record {
	rng := rand.New(rand.NewPCG(1, 2))
	out := make([]Record, n)
	for i := range out {
		out[i] = Record{
			Kind: Kind(rng.IntN(int(kinds))), Errno: syscall.Errno(rng.IntN(100)), PID: rng.Uint32(), Begin: time.Duration(i) * time.Millisecond,
			Took: time.Duration(rng.IntN(1e9)), Inode: rng.Uint64(), Handle: rng.Uint64(), Offset: rng.Int64() >> 10, Size: rng.Int64N(1 << 20),
			Done: rng.Uint32(), Arg: rng.Uint32(),
		}
	}
	return out
}

var someFiles = []File{{Inode: 7, Size: 1 << 30, Path: "vm/one.img"}, {Inode: 1 << 60, Path: "x"}}

func encoded(t testing.TB, records []Record, files []File, closed bool) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, Header{Started: time.Unix(0, 12345)})
	if err != nil {
		t.Fatal(err)
	}
	for i := range records {
		if err := w.Add(&records[i]); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range files {
		if err := w.AddFile(f); err != nil {
			t.Fatal(err)
		}
	}
	if !closed {
		err = w.Flush()
	} else {
		_, err = w.Close(Stats{Dropped: 3, LeftOut: 4, Length: time.Minute})
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func decoded(b []byte) (*Reader, []Record, error) {
	r, err := NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	var out []Record
	for {
		x, err := r.Next()
		if err == io.EOF {
			return r, out, nil
		}
		if err != nil {
			return nil, nil, err
		}
		out = append(out, x)
	}
}

func TestRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 4096, 10000} {
		want := someRecords(n)
		r, got, err := decoded(encoded(t, want, someFiles, true))
		if err != nil || len(got) != n || n > 0 && !reflect.DeepEqual(got, want) {
			t.Fatalf("%d records: %v, read %d", n, err, len(got))
		}
		stats := Stats{Records: uint64(n), Dropped: 3, LeftOut: 4, Length: time.Minute}
		if !reflect.DeepEqual(r.Files(), someFiles) || !r.Ended || r.Stats != stats || r.Torn != 0 || r.Damaged != 0 || r.Started.UnixNano() != 12345 {
			t.Errorf("%d records: %+v", n, r)
		}
	}
}

// TestTorn: of a file that is cut off anywhere, whole blocks are read, and the rest is said to be torn.
func TestTorn(t *testing.T) {
	want := someRecords(9000)
	whole := encoded(t, want, someFiles, true)
	counts := map[int]bool{}
	for n := headerSize; n < len(whole); n += 1 + len(whole)/24 {
		r, got, err := decoded(whole[:n])
		if err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
		if r.Ended || r.Damaged != 0 || !reflect.DeepEqual(got, append([]Record{}, want[:len(got)]...)) && len(got) > 0 {
			t.Fatalf("cut at %d: ended %v, damaged %d, %d records", n, r.Ended, r.Damaged, len(got))
		}
		counts[len(got)] = true
	}
	if !counts[0] || !counts[4096] || !counts[8192] {
		t.Errorf("cut files have %v records, want those of whole blocks", counts)
	}
	for n := range headerSize {
		if _, _, err := decoded(whole[:n]); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotCapture) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
}

// TestDamage: a changed byte is never read as something else.
func TestDamage(t *testing.T) {
	want := someRecords(5000)
	whole := encoded(t, want, someFiles, true)
	for at := 0; at < len(whole); at += 1 + len(whole)/24 {
		bad := bytes.Clone(whole)
		bad[at] ^= 0x40
		r, got, err := decoded(bad)
		if err != nil {
			if at >= headerSize {
				t.Fatalf("byte %d: %v", at, err)
			}
			continue
		}
		if r.Damaged == 0 && r.Torn == 0 {
			t.Fatalf("byte %d: not noticed", at)
		}
		for i, x := range got {
			if x != want[i] && x != want[min(i+4096, len(want)-1)] { // the first block may be missing
				t.Fatalf("byte %d: record %d is %+v", at, i, x)
			}
		}
	}
}

// TestVersion1 reads the file that version 1 wrote: later versions must, too.
func TestVersion1(t *testing.T) {
	path := filepath.Join("testdata", "v1.capture")
	want := someRecords(40)
	if *rewrite {
		if err := os.WriteFile(path, encoded(t, want, someFiles, true), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, got, err := decoded(b)
	if err != nil || !reflect.DeepEqual(got, want) || !reflect.DeepEqual(r.Files(), someFiles) || !r.Ended || r.Version != 1 {
		t.Errorf("%v, %d records, %+v", err, len(got), r)
	}
}

// TestLater: a reader of this version reads longer records and passes over blocks that it does not know.
func TestLater(t *testing.T) {
	var b bytes.Buffer
	w, err := NewWriter(&b, Header{})
	if err != nil {
		t.Fatal(err)
	}
	want := someRecords(3)
	long := make([]byte, 3*80)
	for i := range want {
		want[i].put(long[80*i:])
	}
	w.block(77, 5, []byte("of the future"))
	w.block(blockRecords, 3, long)
	if _, err := w.Close(Stats{}); err != nil {
		t.Fatal(err)
	}
	later := b.Bytes()
	le.PutUint16(later[8:], 2)
	le.PutUint16(later[10:], 80)
	le.PutUint32(later[60:], sum(later[:60]))
	r, got, err := decoded(later)
	if err != nil || !reflect.DeepEqual(got, want) || !r.Ended || r.Damaged != 0 {
		t.Errorf("%v, %+v, %+v", err, got, r)
	}
}

func FuzzReader(f *testing.F) {
	f.Add(encoded(f, someRecords(3), someFiles, true))
	f.Add(encoded(f, someRecords(300), nil, false))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, got, err := decoded(b)
		if err != nil {
			return
		}
		if r.Damaged > 0 || r.Torn > 0 || r.record != RecordSize {
			return
		}
		again := encoded(t, got, r.Files(), true) // what was read can be written and read
		_, twice, err := decoded(again)
		if err != nil || len(twice) != len(got) || len(got) > 0 && !reflect.DeepEqual(got, twice) {
			t.Errorf("%v: %d records, then %d", err, len(got), len(twice))
		}
	})
}
