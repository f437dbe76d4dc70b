package journal

import (
	"errors"
	"io"
	"sync"
	"testing"

	"varve/internal/id"
)

// TestConcurrent appends, syncs, checkpoints and trims while others read, each from several goroutines.
func TestConcurrent(t *testing.T) {
	o := testOptions(t.TempDir())
	o.SegmentBytes = 64 << 10
	j := mustOpen(t, o)
	const last = 20000
	var wg sync.WaitGroup
	done := make(chan struct{})
	background := func(f func() error) {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := f(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 2 { // readers that follow from the start
		r, err := j.Reader(1)
		ok(t, err)
		wg.Go(func() {
			defer r.Close()
			for want := id.Index(1); want <= last; {
				rec, err := r.Next()
				if err == io.EOF {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if rec.Index != want || string(rec.Payload) != string(record(want).Payload) {
					t.Errorf("want record %d, got %+v", want, rec)
					return
				}
				want++
			}
		})
	}
	for range 2 {
		background(j.Sync)
	}
	background(func() error { return j.WriteCheckpoint(j.Last(), writeState(1000)) })
	background(func() error { // anywhere near the end
		at := j.Last()
		from := max(1, at.Index-min(at.Index, 1000))
		data, _, err := j.ReadRaw(from, 10000)
		if err != nil {
			return err
		}
		if _, err := j.FindTime(at.Time - 500_000); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		return DecodeRaw(data, func(r Record) error { return nil })
	})
	for i := id.Index(1); i <= last; i += 20 {
		mustAppend(t, j, records(i, i+19))
	}
	close(done)
	wg.Wait()
	ok(t, j.Close())
	if rep, err := Verify(o, nil); err != nil || rep.Records != last {
		t.Fatalf("verify: got %+v, %v", rep, err)
	}
}
