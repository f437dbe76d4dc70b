package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"varve/internal/disk"
	"varve/internal/id"
)

// TestSealedReadsTheSame reads a journal in every way before and after its segments were sealed.
func TestSealedReadsTheSame(t *testing.T) {
	o := testOptions(t.TempDir())
	o.SegmentBytes = 300 << 10 // several blocks in a segment
	j := mustOpen(t, o)
	const last = 6000
	mustAppend(t, j, records(1, 3000))
	ok(t, j.Reset(Position{Index: 3500, Raft: 10500, Chain: [16]byte{7}, Time: 3500_000}))
	mustAppend(t, j, records(3501, last))
	indexes := []id.Index{1, 2, 700, 1500, 2999, 3000, 3001, 3400, 3501, 4000, 5000, last, last + 1}
	see := func(j *Journal) string {
		var b strings.Builder
		for _, from := range indexes {
			r, err := j.Reader(from)
			for n := 0; err == nil && n < 3; n++ {
				var rec Record
				if rec, err = r.Next(); err == nil {
					fmt.Fprintf(&b, "%d: %+v %+v\n", from, rec, r.Position())
				}
			}
			fmt.Fprintf(&b, "%d: %v\n", from, err)
			if r != nil {
				r.Close()
			}
			data, next, err := j.ReadRaw(from, 5000)
			if err == nil {
				err = DecodeRaw(data, func(rec Record) error { fmt.Fprintf(&b, "raw %+v\n", rec); return nil })
			}
			fmt.Fprintln(&b, next, err)
			at, err := j.FindTime(int64(from)*1000 + 500)
			fmt.Fprintln(&b, at, err)
			at, err = j.FindTimeFrom(int64(from)*1000 - 500)
			fmt.Fprintln(&b, at, err)
		}
		return b.String()
	}
	before := see(j)
	size := j.Bytes()
	old, err := j.Reader(10) // has the open form, which goes away
	ok(t, err)
	defer old.Close()
	if n := sealAll(t, j); n < 3 {
		t.Fatalf("want 3 segments or more to seal, got %d", n)
	}
	if got := see(j); got != before {
		t.Fatalf("after sealing: want\n%s\ngot\n%s", before, got)
	}
	if j.Bytes() > size/4 {
		t.Errorf("sealed: %d of %d bytes", j.Bytes(), size)
	}
	for i := id.Index(10); i <= 3000; i++ {
		rec, err := old.Next()
		ok(t, err)
		wantRecord(t, rec, record(i))
	}
	at := j.Last()
	ok(t, j.Close())
	rep, err := Verify(o, nil)
	ok(t, err)
	if rep.Sealed != rep.Segments-1 || rep.Records != 5500 || rep.SealedFrom < 4*rep.SealedBytes || rep.Gaps != 1 {
		t.Errorf("report: got %+v", rep)
	}
	for _, readOnly := range []bool{true, false} {
		o.ReadOnly = readOnly
		j = mustOpen(t, o)
		if got := see(j); got != before || j.Last() != at {
			t.Fatalf("reopened: want %+v\n%s\ngot %+v\n%s", at, before, j.Last(), got)
		}
		ok(t, j.Close())
	}
}

// TestSealedInBackground lets the sealer of Open do it, for a journal that was written without one.
func TestSealedInBackground(t *testing.T) {
	o := testOptions(t.TempDir())
	j := mustOpen(t, o)
	mustAppend(t, j, records(1, 200))
	ok(t, j.Close())
	o.NoSeal = false
	j = mustOpen(t, o)
	mustAppend(t, j, records(201, 400))
	for deadline := time.Now().Add(time.Minute); j.nextToSeal(nil) != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not sealed after a minute")
		}
	}
	wantAll(t, j, 1, 400)
	ok(t, j.Close())
	if rep, err := Verify(o, nil); err != nil || rep.Sealed != rep.Segments-1 || rep.Sealed < 5 {
		t.Fatalf("verify: got %+v, %v", rep, err)
	}
}

// TestReadOnlyWhileSealed reads with a journal that was opened before another process sealed and dropped segments.
func TestReadOnlyWhileSealed(t *testing.T) {
	o := testOptions(t.TempDir())
	j := mustOpen(t, o)
	defer j.Close()
	mustAppend(t, j, records(1, 300))
	ro := o
	ro.ReadOnly = true
	other := mustOpen(t, ro)
	defer other.Close()
	sealAll(t, j)
	wantAll(t, other, 1, 300)
	ok(t, os.Remove(j.segments[0].path))
	if r, err := other.Reader(1); err == nil {
		r.Close()
		t.Fatal("a segment that is gone was opened")
	}
}

// TestSealInterrupted ends sealing at every operation on the disk, by a kill, by loss of power and by a full disk, and checks
// that the journal is whole afterwards and can be sealed.
func TestSealInterrupted(t *testing.T) {
	for _, how := range []string{"kill", "power", "full", "full and killed"} {
		t.Run(how, func(t *testing.T) {
			for n := 0; ; n++ {
				if n > 200 {
					t.Fatal("sealing does not end")
				}
				if sealInterrupted(t, how, n) {
					break // it was done before operation n
				}
			}
		})
	}
}

func sealInterrupted(t *testing.T, how string, n int) (done bool) {
	t.Helper()
	d := new(disk.Faulty)
	rng := rand.New(rand.NewSource(int64(n)))
	o := testOptions("journal")
	o.FS = d
	j := mustOpen(t, o)
	mustAppend(t, j, records(1, 100))
	ok(t, j.Sync())
	want := j.Last()
	ops, hit := 0, false
	full := strings.HasPrefix(how, "full")
	d.Inject(func(op disk.Op) error {
		if full && op.Kind != disk.OpWrite && op.Kind != disk.OpTruncate && op.Kind != disk.OpOpen {
			return nil
		}
		if ops++; ops <= n || full && !strings.HasSuffix(op.Path, tmpSuffix) {
			return nil
		}
		hit = true
		if full {
			return syscall.ENOSPC
		}
		return disk.ErrPowerOff
	})
	err := j.seal(j.nextToSeal(nil), nil)
	d.Inject(nil)
	if hit == (err == nil) {
		t.Fatalf("operation %d: hit %v, got %v", n, hit, err)
	}
	switch how {
	case "full":
		if hit && !errors.Is(err, errNoRoom) {
			t.Fatalf("operation %d: want %v, got %v", n, errNoRoom, err)
		}
		wantAll(t, j, 1, 100)
		sealAll(t, j)
		mustAppend(t, j, records(101, 101))
		mustAppend(t, j, records(102, 102))
		wantAll(t, j, 1, 102)
		ok(t, j.Close())
		_, err := Verify(o, nil)
		ok(t, err)
		return !hit
	case "power":
		d.Crash(rng)
	default:
		d.Kill()
	}
	ro := o
	ro.ReadOnly = true
	j = mustOpen(t, ro)
	wantAll(t, j, 1, 100)
	ok(t, j.Close())
	_, err = Verify(o, nil)
	ok(t, err)
	j = mustOpen(t, o)
	if j.Last() != want {
		t.Fatalf("operation %d: want %+v, got %+v", n, want, j.Last())
	}
	wantAll(t, j, 1, 100)
	l, err := list(&o)
	ok(t, err)
	if len(l.temporary) > 0 || len(l.segments)+len(l.sealed) != len(l.firsts()) {
		t.Fatalf("operation %d: left over after recovery: %+v", n, l)
	}
	sealAll(t, j)
	wantAll(t, j, 1, 100)
	ok(t, j.Close())
	_, err = Verify(o, nil)
	ok(t, err)
	return !hit
}

// TestSealNeedsRoom checks that a nearly full disk is left to what is appended.
func TestSealNeedsRoom(t *testing.T) {
	d := new(disk.Faulty)
	o := testOptions("journal")
	o.FS = d
	j := mustOpen(t, o)
	defer j.Close()
	mustAppend(t, j, records(1, 100))
	d.SetCapacity(d.Used() + 4096)
	if err := j.seal(j.nextToSeal(nil), nil); !errors.Is(err, errNoRoom) {
		t.Fatalf("want %v, got %v", errNoRoom, err)
	}
	d.SetCapacity(0)
	sealAll(t, j)
	wantAll(t, j, 1, 100)
}

// TestBothFiles opens a journal in which both forms of a segment are there, one of them damaged.
func TestBothFiles(t *testing.T) {
	o := testOptions(t.TempDir())
	j := mustOpen(t, o)
	mustAppend(t, j, records(1, 100))
	path := filepath.Join(o.Dir, segmentName(1))
	open, err := os.ReadFile(path)
	ok(t, err)
	sealAll(t, j)
	ok(t, j.Close())
	sealedPath := filepath.Join(o.Dir, sealedName(1))
	sealed, err := os.ReadFile(sealedPath)
	ok(t, err)
	for i := range len(sealed) {
		bad := slices.Clone(sealed)
		bad[i] ^= 4
		ok(t, os.WriteFile(path, open, 0o600))
		ok(t, os.WriteFile(sealedPath, bad, 0o600))
		if _, err := Verify(o, nil); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d: verify: got %v", i, err)
		}
		j := mustOpen(t, o)
		wantAll(t, j, 1, 100)
		ok(t, j.Close())
		if _, err := os.Stat(sealedPath); err == nil {
			t.Fatalf("byte %d: the damaged file is still there", i)
		}
	}
	ok(t, os.WriteFile(sealedPath, sealed, 0o600))
	open[len(open)-1] ^= 1
	ok(t, os.WriteFile(path, open, 0o600))
	if _, err := Verify(o, nil); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("damaged open form: verify: got %v", err)
	}
	j = mustOpen(t, o)
	wantAll(t, j, 1, 100)
	ok(t, j.Close())
	if _, err := os.Stat(path); err == nil {
		t.Fatal("the open form is still there")
	}
}

// TestSealDamaged checks that a damaged segment is not sealed.
func TestSealDamaged(t *testing.T) {
	o := testOptions(t.TempDir())
	j := mustOpen(t, o)
	defer j.Close()
	mustAppend(t, j, records(1, 100))
	path := filepath.Join(o.Dir, segmentName(1))
	whole, err := os.ReadFile(path)
	ok(t, err)
	for i := headerSize; i < len(whole); i += 97 {
		data := slices.Clone(whole)
		data[i] ^= 1
		ok(t, os.WriteFile(path, data, 0o600))
		if err := j.seal(j.nextToSeal(nil), nil); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d: want ErrCorrupt, got %v", i, err)
		}
	}
	ok(t, os.WriteFile(path, whole, 0o600))
	sealAll(t, j)
	wantAll(t, j, 1, 100)
}

// TestSealLarge seals records that are larger than a block, of extreme times and Raft indexes.
func TestSealLarge(t *testing.T) {
	o := testOptions(t.TempDir())
	j := mustOpen(t, o)
	defer j.Close()
	noise := make([]byte, MaxPayload)
	rand.New(rand.NewSource(1)).Read(noise)
	recs := []Record{
		{Index: 1, Time: math.MinInt64, Raft: math.MaxUint64, Payload: noise}, {Index: 2, Time: math.MaxInt64},
		{Index: 3, Time: 0, Raft: 1 << 63, Payload: bytes.Repeat([]byte{1}, MaxPayload)}, {Index: 4, Time: -1, Payload: noise[:blockTarget]},
		{Index: 5, Payload: noise[:5000]},
	}
	mustAppend(t, j, recs)
	if n := sealAll(t, j); n != 4 {
		t.Fatalf("want 4 segments to be sealed, got %d", n)
	}
	r, err := j.Reader(1)
	ok(t, err)
	defer r.Close()
	for _, want := range recs {
		got, err := r.Next()
		ok(t, err)
		wantRecord(t, got, want)
	}
	if _, err := r.Next(); err != io.EOF {
		t.Fatalf("want EOF, got %v", err)
	}
}

// TestLastMustBeOpen removes the last segment behind a sealed one.
func TestLastMustBeOpen(t *testing.T) {
	o := testOptions(t.TempDir())
	j := mustOpen(t, o)
	mustAppend(t, j, records(1, 100))
	sealAll(t, j)
	path := j.active().path
	ok(t, j.Close())
	ok(t, os.Remove(path))
	if _, err := Verify(o, nil); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), filepath.Base(path)) {
		t.Errorf("verify: got %v", err)
	}
	if _, err := Open(o); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), filepath.Base(path)) {
		t.Errorf("open: got %v", err)
	}
}

// TestClockSetBack compares the answers about times with what a walk over all records says.
func TestClockSetBack(t *testing.T) {
	rng := rand.New(rand.NewSource(3))
	for _, seal := range []bool{false, true} {
		o := testOptions(t.TempDir())
		o.SegmentBytes = 300 << 10
		j := mustOpen(t, o)
		var times []int64
		now := int64(1e6)
		for i := id.Index(1); i <= 4000; i++ {
			switch rng.Intn(500) {
			case 0:
				now -= rng.Int63n(200_000)
			case 1:
				now += rng.Int63n(200_000)
			default:
				now += rng.Int63n(200)
			}
			times = append(times, now)
			mustAppend(t, j, []Record{{Index: i, Time: now, Payload: bytes.Repeat([]byte{byte(i)}, 250)}})
		}
		if seal && sealAll(t, j) < 2 {
			t.Fatal("want several segments")
		}
		if !seal { // a segment that nobody has indexed
			ok(t, j.Close())
			j = mustOpen(t, o)
		}
		lo, hi := slices.Min(times), slices.Max(times)
		for q := lo - 100; q < hi+1000; q += (hi - lo) / 300 {
			want, wantFrom := id.Index(0), id.Index(0)
			for i, at := range times {
				if at <= q {
					want = id.Index(i + 1)
				}
				if at >= q && wantFrom == 0 {
					wantFrom = id.Index(i + 1)
				}
			}
			if got, err := j.FindTime(q); got != want || (err != nil) != (want == 0) {
				t.Fatalf("sealed %v: the last at most %d: want %d, got %d, %v", seal, q, want, got, err)
			}
			if got, err := j.FindTimeFrom(q); got != wantFrom || (err != nil) != (wantFrom == 0) {
				t.Fatalf("sealed %v: the first at least %d: want %d, got %d, %v", seal, q, wantFrom, got, err)
			}
		}
		ok(t, j.Close())
	}
}

// TestFewReads counts what it costs to find a record and a time in sealed segments.
func TestFewReads(t *testing.T) {
	d := new(disk.Faulty)
	o := testOptions("journal")
	o.FS, o.SegmentBytes = d, 1<<20
	j := mustOpen(t, o)
	defer j.Close()
	const last = 40_000
	mustAppend(t, j, records(1, last))
	if n := sealAll(t, j); n < 5 {
		t.Fatalf("want 5 segments or more, got %d", n)
	}
	reads := 0
	d.Inject(func(op disk.Op) error {
		if op.Kind == disk.OpRead {
			reads++
		}
		return nil
	})
	for _, at := range []id.Index{1, 777, 20_000, 30_001} {
		reads = 0
		r, err := j.Reader(at)
		ok(t, err)
		ok(t, r.Close())
		if reads > 2 {
			t.Errorf("record %d: %d reads, want 2: table and block", at, reads)
		}
		reads = 0
		if got, err := j.FindTime(int64(at) * 1000); err != nil || got != at || reads > 2 {
			t.Errorf("time of record %d: got %d, %v, %d reads", at, got, err, reads)
		}
		reads = 0
		if got, err := j.FindTimeFrom(int64(at)*1000 - 1); err != nil || got != at || reads > 2 {
			t.Errorf("from the time of record %d: got %d, %v, %d reads", at, got, err, reads)
		}
	}
}
