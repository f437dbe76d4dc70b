package journal

import (
	"errors"
	"testing"

	"varve/internal/id"
)

func TestReadRaw(t *testing.T) {
	j := mustOpen(t, testOptions(t.TempDir()))
	defer j.Close()
	const last = 300
	mustAppend(t, j, records(1, last))
	for _, maxBytes := range []int{0, 1, 1000, 10_000, 1 << 20} {
		next := id.Index(1)
		for next <= last {
			data, after, err := j.ReadRaw(next, maxBytes)
			ok(t, err)
			if after == next {
				t.Fatalf("maximum %d: no progress at %d", maxBytes, next)
			}
			if after > next+1 && len(data) > maxBytes {
				t.Fatalf("want at most %d bytes, got %d", maxBytes, len(data))
			}
			ok(t, DecodeRaw(data, func(r Record) error {
				wantRecord(t, r, record(next))
				next++
				return nil
			}))
			if next != after {
				t.Fatalf("next: want %d, got %d", next, after)
			}
		}
		if data, after, err := j.ReadRaw(next, maxBytes); err != nil || len(data) != 0 || after != next {
			t.Fatalf("at the end: got %d bytes, next %d, %v", len(data), after, err)
		}
	}
	if _, _, err := j.ReadRaw(last+2, 1); !errors.Is(err, ErrNotFound) {
		t.Fatalf("behind the end: want ErrNotFound, got %v", err)
	}
}

func TestDecodeRawDamaged(t *testing.T) {
	j := mustOpen(t, testOptions(t.TempDir()))
	defer j.Close()
	mustAppend(t, j, records(1, 4))
	data, _, err := j.ReadRaw(1, 1<<20)
	ok(t, err)
	none := func(Record) error { return nil }
	whole := map[int]bool{0: true}
	for off := 0; off < len(data); {
		n, err := frameSize("", 0, data[off:])
		ok(t, err)
		off += n
		whole[off] = true
	}
	for i := range data {
		data[i] ^= 0x10
		if err := DecodeRaw(data, none); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d changed: want ErrCorrupt, got %v", i, err)
		}
		data[i] ^= 0x10
		if err := DecodeRaw(data[:i], none); whole[i] != (err == nil) {
			t.Fatalf("cut to %d bytes: got %v", i, err)
		}
	}
	stop := errors.New("stop")
	if err := DecodeRaw(data, func(Record) error { return stop }); err != stop {
		t.Fatalf("want %v, got %v", stop, err)
	}
}
