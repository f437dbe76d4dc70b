package journal

import (
	"errors"
	"io"
	"sync"
	"testing"

	"varve/internal/disk"
	"varve/internal/id"
)

// loops returns what runs a function again and again beside the test, until it fails or wait is called, which ends all of them.
func loops(t *testing.T) (background func(func() error), wait func()) {
	var wg sync.WaitGroup
	done := make(chan struct{})
	background = func(f func() error) {
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
	return background, func() {
		close(done)
		wg.Wait()
	}
}

// TestConcurrent appends, syncs, seals and checkpoints while others read, each from several goroutines. TestConcurrentRetain drops.
func TestConcurrent(t *testing.T) {
	o := testOptions(t.TempDir())
	o.SegmentBytes = 64 << 10
	o.NoSeal = false
	j := mustOpen(t, o)
	const last = 8000
	background, wait := loops(t)
	var readers sync.WaitGroup
	for range 2 { // readers that follow from the start
		r, err := j.Reader(1)
		ok(t, err)
		readers.Go(func() {
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
	wait()
	readers.Wait()
	ok(t, j.Close())
	if rep, err := Verify(o, nil); err != nil || rep.Records != last {
		t.Fatalf("verify: got %+v, %v", rep, err)
	}
}

// TestConcurrentRetain drops what is old, and cuts segments, while they are appended to, sealed, read and checkpointed.
func TestConcurrentRetain(t *testing.T) {
	o := testOptions("journal")
	o.FS = new(disk.Faulty) // on which a sync costs nothing
	o.SegmentBytes = 16 << 10
	o.NoSeal = false
	j := mustOpen(t, o)
	const last = 6000
	background, wait := loops(t)
	background(func() error {
		_, err := j.Retain(Retention{Raft: uint64(j.Last().Index) * 3, Bytes: 60_000, Every: 500})
		return err
	})
	for range 2 { // from the oldest on, which may go at any time
		background(func() error {
			from := j.First()
			r, err := j.Reader(from)
			if errors.Is(err, ErrNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			defer r.Close()
			for range 500 {
				rec, err := r.Next()
				if err == io.EOF || errors.Is(err, ErrNotFound) {
					return nil
				}
				if err != nil {
					return err
				}
				if rec.Index != from || string(rec.Payload) != string(record(from).Payload) {
					t.Errorf("want record %d, got %+v", from, rec)
				}
				from++
			}
			return nil
		})
	}
	background(func() error {
		if _, err := j.FindTime(j.Last().Time / 2); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		err := j.ReadCheckpoint(j.Last().Index, func(_ Position, r io.Reader) error {
			_, err := io.Copy(io.Discard, r)
			return err
		})
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		return err
	})
	for i := id.Index(1); i <= last; i += 20 {
		mustAppend(t, j, records(i, i+19))
		if i%100 == 1 {
			j.Cut()
			ok(t, j.WriteCheckpoint(j.Last(), writeState(64)))
		}
	}
	wait()
	d, err := j.Retain(Retention{Raft: uint64(j.Last().Index) * 3, Bytes: 60_000})
	ok(t, err)
	if d.Left > 60_000 {
		t.Errorf("left more than the limit: %+v", d)
	}
	first := j.First()
	wantAll(t, j, first, last)
	ok(t, j.Close())
	if rep, err := Verify(o, nil); err != nil || rep.First != first {
		t.Fatalf("verify: first %d, got %+v, %v", first, rep, err)
	}
}
