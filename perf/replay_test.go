package perf

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/internal/capture"
	"varve/perf/trace"

	"golang.org/x/sys/unix"
)

// someTrace is a trace of n operations on some handles, many under way at once.
func someTrace(n int, seed uint64) *trace.Trace {
	rng := rand.New(rand.NewPCG(seed, 1))
	t := &trace.Trace{Format: trace.Capture, Timed: true, Ended: true, Files: []capture.File{{Inode: 1, Size: 1 << 20, Path: "vm/a.img"}, {Inode: 2, Size: 1 << 20, Path: "vm/b.img"}}}
	now := time.Second
	for range n {
		x := capture.Record{
			Kind: []capture.Kind{capture.Read, capture.Write, capture.Write, capture.Fsync}[rng.IntN(4)], Begin: now, Inode: 1 + rng.Uint64N(2),
			Took: time.Duration(rng.IntN(4)) * 100 * time.Microsecond, // often none, and ends at the moment where others begin
		}
		x.Handle = 10*x.Inode + rng.Uint64N(2)
		if x.Kind != capture.Fsync {
			x.Size, x.Offset = 4096, rng.Int64N(256)*4096
			x.Done = 4096
		}
		t.Ops = append(t.Ops, x)
		now += time.Duration(rng.IntN(3)) * 100 * time.Microsecond
	}
	slices.SortStableFunc(t.Ops, func(a, b capture.Record) int {
		if a.Begin != b.Begin {
			return int(a.Begin - b.Begin)
		}
		return int(a.Took - b.Took)
	})
	return t
}

// watched is a target that notes in which order operations begin and end. It tells steps apart by their offset and kind, or not at all.
type watched struct {
	mu    sync.Mutex
	clock int
	spans map[int64][2]int // of each offset: when its operation began and ended
	fail  error            // what writes get
	hang  chan struct{}    // reads wait for it, unless it is nil
	began func()           // called when a read or write begins
}

func (w *watched) make(context.Context, int, *replayFile) error { return nil }
func (w *watched) truncate(int, *replayFile, int64) error       { return nil }
func (w *watched) close() error                                 { return nil }
func (w *watched) open(int, *replayFile, bool, int) (replayHandle, error) {
	return &watchedHandle{w}, nil
}

type watchedHandle struct{ w *watched }

func (h *watchedHandle) note(off int64, i int) {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.w.clock++
	s := h.w.spans[off]
	s[i] = h.w.clock
	h.w.spans[off] = s
}

func (h *watchedHandle) read(p []byte, off int64) (int, error) {
	h.note(off, 0)
	if h.w.began != nil {
		h.w.began()
	}
	if h.w.hang != nil {
		<-h.w.hang
	}
	if off%3 == 0 {
		time.Sleep(100 * time.Microsecond)
	}
	h.note(off, 1)
	return len(p), nil
}
func (h *watchedHandle) write(p []byte, off int64) error {
	_, err := h.read(p, off)
	return errors.Join(err, h.w.fail)
}
func (h *watchedHandle) sync(bool) error                     { return nil }
func (h *watchedHandle) allocate(uint32, int64, int64) error { return nil }
func (h *watchedHandle) truncate(int64) error                { return nil }
func (h *watchedHandle) close() error                        { return nil }

// replayOn replays on a target of the test's own.
func replayOn(t *testing.T, ctx context.Context, tr *trace.Trace, target replayTarget, speed float64, grace time.Duration) (*ReplayResult, bool) {
	t.Helper()
	rename, err := renamer(nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPlan(tr, true, rename)
	if err != nil {
		t.Fatal(err)
	}
	r := &replay{o: &ReplayOptions{Target: "null", Speed: speed}, p: p, run: newPool(1), room: make(chan struct{}, 16), record: &recorder{series: new(series)}, target: target, grace: grace}
	if err := r.prepare(ctx); err != nil {
		t.Fatal(err)
	}
	return r.measure(ctx, tr, nil)
}

// TestReplayOrder: whatever had ended on a handle when an operation began has ended when it is replayed, at any speed.
func TestReplayOrder(t *testing.T) {
	for seed := range uint64(2) {
		tr := someTrace(1500, seed)
		for i := range tr.Ops { // each has an offset of its own, by which it is known
			tr.Ops[i].Offset = int64(i)
			if tr.Ops[i].Kind == capture.Fsync {
				tr.Ops[i].Kind, tr.Ops[i].Size, tr.Ops[i].Done = capture.Read, 1, 1
			}
		}
		w := &watched{spans: map[int64][2]int{}}
		res, stuck := replayOn(t, t.Context(), tr, w, []float64{0, 50}[seed%2], graceTime)
		if stuck || !res.OK() || res.Done != int64(len(tr.Ops)) || len(w.spans) != len(tr.Ops) {
			t.Fatalf("seed %d: stuck %v, %d of %d done: %+v", seed, stuck, res.Done, len(tr.Ops), res.Replayed)
		}
		waits := 0
		for i := range tr.Ops {
			b := &tr.Ops[i]
			for j := range i {
				if a := &tr.Ops[j]; a.Handle == b.Handle && a.End() <= b.Begin {
					waits++
					if w.spans[int64(j)][1] > w.spans[int64(i)][0] {
						t.Fatalf("seed %d: operation %d began before %d had ended", seed, i, j)
					}
				}
			}
		}
		if waits < 1000 {
			t.Errorf("seed %d: only %d pairs had an order", seed, waits)
		}
	}
}

// TestReplayTimes: operations begin when they are due, never earlier, and all is told apart.
func TestReplayTimes(t *testing.T) {
	tr := someTrace(3000, 7)
	length := tr.Length()
	for _, speed := range []float64{1, 4, 0} {
		res, err := Replay(t.Context(), ReplayOptions{Target: "null", Source: "x/y.capture", Speed: speed}, tr, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !res.OK() || res.Done != 3000 || res.Length != length || res.Recorded == nil {
			t.Fatalf("speed %v: %+v", speed, res)
		}
		last := tr.Ops[len(tr.Ops)-1].Begin - tr.Ops[0].Begin
		if speed > 0 && (res.Elapsed < time.Duration(float64(last)/speed) || res.Wanted != time.Duration(float64(length)/speed) || res.Slip == nil) {
			t.Errorf("speed %v: %v instead of %v, slip %v", speed, res.Elapsed, res.Wanted, res.Slip)
		}
		r, p := res.Recorded, res.Replayed
		if r.Read.Count != p.Read.Count || r.Write.Bytes != p.Write.Bytes || r.Fsync.Count != p.Fsync.Count || r.Write.Latency.Max < 250*time.Microsecond {
			t.Errorf("speed %v: recorded %+v, replayed %+v", speed, r, p)
		}
		dir := t.TempDir()
		if err := res.WriteDir(dir); err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{"recorded", "replayed"} {
			if _, err := ReadDir(filepath.Join(dir, part)); err != nil {
				t.Error(err)
			}
		}
		var text bytes.Buffer
		if err := res.WriteText(&text); err != nil || !strings.Contains(text.String(), "y.capture") || !strings.Contains(text.String(), "write  replayed") {
			t.Errorf("%v\n%s", err, &text)
		}
		if b, err := json.Marshal(res); err != nil || !bytes.Contains(b, []byte(`"length_ns"`)) {
			t.Errorf("%v: %s", err, b)
		}
	}
}

// TestReplayFiles: files are made as large as they were, what is read has contents with Fill, and nothing leaves the target.
func TestReplayFiles(t *testing.T) {
	const mib = 1 << 20
	op := func(at int, k capture.Kind, ino, h uint64, off, size int64, arg uint32) capture.Record {
		return capture.Record{Kind: k, Begin: time.Duration(at) * time.Millisecond, Took: time.Microsecond, Inode: ino, Handle: h, Offset: off, Size: size, Done: uint32(size), Arg: arg}
	}
	tr := &trace.Trace{Format: trace.Capture, Timed: true, Ended: true,
		Files: []capture.File{{Inode: 7, Size: 8 * mib, Path: "vm/a.img"}, {Inode: 8, Size: 3, Path: "vm/new"}, {Inode: 9, Size: 5 * mib, Path: "kept.img"}},
		Ops: []capture.Record{
			op(1, capture.Lookup, 1, 0, 0, 0, 0),
			op(1, capture.Read, 7, 1, 2*mib+4096, 4096, 0),
			op(2, capture.Create, 8, 2, 0, 0, unix.O_RDWR|unix.O_EXCL),
			op(3, capture.Write, 8, 2, 0, 10000, 0),
			op(4, capture.Fsync, 8, 2, 0, 0, 1),
			op(5, capture.Fallocate, 8, 2, 0, 4096, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE),
			op(6, capture.Truncate, 8, 2, 9000, 0, 0),
			op(7, capture.Release, 8, 2, 0, 0, 0),
			op(8, capture.Open, 9, 3, 0, 0, unix.O_RDONLY),
			op(9, capture.Read, 9, 3, 5*mib-100, 200, 0),
			op(10, capture.Truncate, 7, 0, 9*mib, 0, 0),
			op(11, capture.Read, 0x99, 4, 0, 512, 0), // a file without a name
		},
	}
	tr.Ops[9].Done = 100 // the end of the file
	dir := t.TempDir()
	kept := filepath.Join(dir, "mine", "kept.img")
	if err := os.MkdirAll(filepath.Dir(kept), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kept, bytes.Repeat([]byte("k"), 6*mib), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, direct := range []bool{false, true} {
		res, err := Replay(t.Context(), ReplayOptions{Target: "mount:" + dir, Fill: true, Speed: 10, Map: []string{"kept.img=mine/kept.img"}, Direct: direct}, tr, nil)
		if direct && errors.Is(err, unix.EINVAL) {
			t.Log("this filesystem has no O_DIRECT")
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if !res.OK() || res.Done != 11 || res.Short != 0 || len(res.LeftOut) != 1 || res.LeftOut[0].Op != "lookup" {
			t.Errorf("direct %v: %+v, %+v", direct, res, res.Replayed.Errors)
		}
	}
	size := func(name string) int64 {
		t.Helper()
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	if a, n, k, x := size("varve-replay/vm/a.img"), size("varve-replay/vm/new"), size("mine/kept.img"), size("varve-replay/inode-153"); a != 9*mib || n != 9000 || k != 6*mib || x != 512 {
		t.Errorf("sizes %d, %d, %d, %d", a, n, k, x)
	}
	a, err := os.ReadFile(filepath.Join(dir, "varve-replay/vm/a.img"))
	if err != nil {
		t.Fatal(err)
	}
	if zero := make([]byte, mib); bytes.Equal(a[2*mib:3*mib], zero) || !bytes.Equal(a[:mib], zero) || !bytes.Equal(a[3*mib:4*mib], zero) {
		t.Error("not what is read, and no more, was filled")
	}
	n, err := os.ReadFile(filepath.Join(dir, "varve-replay/vm/new"))
	if err != nil || !bytes.Equal(n[:4096], make([]byte, 4096)) || bytes.Equal(n[4096:8192], make([]byte, 4096)) {
		t.Errorf("the punched file: %v", err)
	}

	one := filepath.Join(dir, "disk")
	res, err := Replay(t.Context(), ReplayOptions{Target: "file:" + one}, tr, nil)
	if err != nil || !res.OK() || res.Done != 5 { // what means nothing to a disk is left out
		t.Errorf("%v, %+v", err, res)
	}
	for _, bad := range []string{"../out", "/../../out", "vm/../../out"} {
		tr.Files[0].Path = bad
		if _, err := Replay(t.Context(), ReplayOptions{Target: "mount:" + dir}, tr, nil); err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(dir), "out")); err == nil {
			t.Errorf("%s was made", bad)
		}
	}
	tr.Files[0].Path = "vm/a.img"
	if _, err := Replay(t.Context(), ReplayOptions{Target: "mount:" + dir, Map: []string{"vm=../up"}}, tr, nil); err == nil {
		t.Error("--map leads out of the target")
	}
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := Replay(t.Context(), ReplayOptions{Target: "mount:" + dir, Map: []string{"vm=link"}}, tr, nil); err == nil {
		t.Error("a link leads out of the target")
	}
}

// TestReplayTrouble: a full disk, a cancelled run, one that hangs, a trace without times, and what makes no sense.
func TestReplayTrouble(t *testing.T) {
	tr := someTrace(300, 3)
	res, stuck := replayOn(t, t.Context(), tr, &watched{spans: map[int64][2]int{}, fail: unix.ENOSPC}, 0, graceTime)
	if stuck || res.OK() || !strings.Contains(res.Replayed.Stopped, "disk full") {
		t.Errorf("a full disk: %+v", res.Replayed)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	res, stuck = replayOn(t, ctx, tr, &watched{spans: map[int64][2]int{}, began: cancel}, 0.001, graceTime)
	if stuck || !res.OK() || res.Replayed.Stopped != cancelled || res.Done >= 300 {
		t.Errorf("cancelled: %+v", res.Replayed)
	}
	for _, o := range []ReplayOptions{{}, {Target: "cs:1.2.3.4"}, {Target: "null", Speed: -1}, {Target: "null", Depth: -1}, {Target: "null", Map: []string{"x"}}, {Target: "what"}} {
		if _, err := Replay(t.Context(), o, tr, nil); err == nil || o.Validate() == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
	untimed := someTrace(300, 4)
	untimed.Timed = false
	for i := range untimed.Ops {
		untimed.Ops[i].Took = 0
	}
	if res, err := Replay(t.Context(), ReplayOptions{Target: "null"}, untimed, nil); err != nil || !res.OK() || res.Done != 300 || res.Recorded != nil {
		t.Errorf("without times: %v, %+v", err, res)
	}
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	w := &watched{spans: map[int64][2]int{}, hang: make(chan struct{}), began: cancel}
	res, stuck = replayOn(t, ctx, tr, w, 0, 50*time.Millisecond)
	if !stuck || res.Replayed.Stuck == 0 {
		t.Errorf("a target that hangs: %+v", res.Replayed)
	}
	close(w.hang)
}

func BenchmarkReplay(b *testing.B) {
	tr := someTrace(100_000, 1)
	for b.Loop() {
		res, err := Replay(b.Context(), ReplayOptions{Target: "null"}, tr, nil)
		if err != nil || !res.OK() {
			b.Fatal(err, res)
		}
		b.ReportMetric(float64(res.Done)/res.Elapsed.Seconds(), "ops/s")
	}
}

// TestReplayOfHandles: an open, or a close after which its number is another handle's, that is recorded to have ended after the next operation on the handle
// had begun, comes before that all the same.
func TestReplayOfHandles(t *testing.T) {
	us := func(n int) time.Duration { return time.Duration(n) * time.Microsecond }
	tr := &trace.Trace{Timed: true, Files: []capture.File{{Inode: 7, Path: "f", Size: 1 << 20}}}
	add := func(kind capture.Kind, begin, took int) {
		x := capture.Record{Kind: kind, Inode: 7, Handle: 5, Begin: us(begin), Took: us(took), Offset: int64(len(tr.Ops)) * 4096}
		if kind == capture.Read {
			x.Size, x.Done = 4096, 4096
		}
		tr.Ops = append(tr.Ops, x)
	}
	add(capture.Release, 0, 300)
	add(capture.Open, 100, 300)
	for n := range 20 {
		add(capture.Read, 200+n, 10)
	}
	add(capture.Release, 1000, 300)
	rename, err := renamer(nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPlan(tr, true, rename)
	if err != nil {
		t.Fatal(err)
	}
	if close, open := &p.steps[0], &p.steps[1]; close.rank != 0 || open.rank != 1 || open.needs != 1 {
		t.Errorf("close %+v, open %+v", close, open)
	}
	for i := 2; i < len(p.steps); i++ {
		if s := &p.steps[i]; s.needs < 2 {
			t.Errorf("step %d needs %d others, want the close and the open at least", i, s.needs)
		}
	}
	for range 20 {
		w := &watched{spans: map[int64][2]int{}}
		if res, stuck := replayOn(t, t.Context(), tr, w, 0, graceTime); stuck || !res.OK() || res.Done != int64(len(tr.Ops)) {
			t.Fatalf("stuck %v, %d done: %+v", stuck, res.Done, res.Replayed)
		}
	}
}
