package perf

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/dustin/go-humanize"
)

// series keeps the latencies of a run, in all and of each second. Workers merge what they did in a second when they end the next
// operation, or end themselves.
type series struct {
	mu    sync.Mutex
	total [opKinds]*hdrhistogram.Histogram // nil without operations
	at    []moment                         // by the second
}

// moment is the latencies of one second: open while it is recent, packed when it is over, since a histogram takes 37 KiB and packed
// a few hundred bytes.
type moment struct {
	open   [opKinds]*hdrhistogram.Histogram
	packed [opKinds][]byte
}

// openMoments is how many seconds stay open.
const openMoments = 4

// add merges what one worker measured in one second.
func (s *series) add(second int, kind opKind, h *hdrhistogram.Histogram) {
	s.mu.Lock()
	defer s.mu.Unlock()
	merge(&s.total[kind], h)
	for len(s.at) <= second {
		s.at = append(s.at, moment{})
		if old := len(s.at) - 1 - openMoments; old >= 0 {
			s.at[old].pack()
		}
	}
	m := &s.at[second]
	if m.open[kind] == nil {
		m.open[kind] = m.unpacked(kind)
	}
	merge(&m.open[kind], h)
	if second < len(s.at)-openMoments {
		m.pack()
	}
}

func (m *moment) pack() {
	for k, h := range m.open {
		if h == nil {
			continue
		}
		b, err := h.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
		if err != nil {
			continue // it stays open
		}
		m.packed[k], m.open[k] = b, nil
	}
}

// unpacked returns a histogram that the caller may keep and change, nil if there are no operations.
func (m *moment) unpacked(kind opKind) *hdrhistogram.Histogram {
	if h := m.open[kind]; h != nil {
		return h.Clone()
	}
	if m.packed[kind] == nil {
		return nil
	}
	h, err := hdrhistogram.Decode(m.packed[kind])
	if err != nil {
		return nil // not of bytes that pack made
	}
	return h
}

// second returns the latencies of one kind in one second, nil if there are none.
func (s *series) second(i int, kind opKind) *hdrhistogram.Histogram {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i >= len(s.at) {
		return nil
	}
	return s.at[i].unpacked(kind)
}

// work returns the latencies of all but fsyncs in one second, nil if there are none.
func (s *series) work(i int) (h *hdrhistogram.Histogram) {
	for k := range opKinds {
		if k.counts() {
			merge(&h, s.second(i, k))
		}
	}
	return h
}

// Progress is what happened in one second of a run that goes on.
type Progress struct {
	Elapsed time.Duration // since the start of the load, whole seconds
	IOPS    int64         // operations, fsyncs left out, that ended in the last second
	Bytes   int64
	P50     time.Duration
	P99     time.Duration
	Errors  int64 // since the start
}

// errEnough ends a run whose load has done what it was for.
var errEnough = errors.New("enough")

// report tells what happened every second, and looks whether that was enough, until done is closed.
func (l *load) report(workers []worker, s, before *series, done <-chan struct{}, steady *steadyWatch, h Hooks) {
	const delay = 100 * time.Millisecond // by when what the workers did has been merged, if they do anything
	for n := 1; ; n++ {
		timer := time.NewTimer(time.Duration(n)*time.Second + delay - l.now())
		select {
		case <-done:
			timer.Stop()
			return
		case <-h.Enough:
			timer.Stop()
			l.stop(errEnough)
			return
		case <-timer.C:
		}
		x := l.sample(workers, s, before, n-1)
		if h.Second != nil {
			h.Second(x)
		}
		if steady.add(time.Duration(n)*time.Second, x.Work()) {
			l.stop(errEnough)
		}
	}
}

// sample returns what the workers did in a second that is over.
func (l *load) sample(workers []worker, s, before *series, second int) *Sample {
	var sum, sumBefore recorder
	add := func(to, from *recorder) {
		if second < len(from.seconds) {
			to.second(second).add(&from.seconds[second])
		}
	}
	for _, w := range workers {
		w.r.mu.Lock()
		add(&sum, w.r)
		if w.r.before != nil {
			add(&sumBefore, w.r.before)
		}
		for k, f := range w.r.errors {
			sum.failures(k, *f)
		}
		w.r.mu.Unlock()
	}
	x := &Sample{Second: second, Failures: errorCounts(&sum), Ramp: part(second, before, &sumBefore)}
	if p := part(second, s, &sum); p != nil {
		x.Measured = *p
	}
	return x
}

// String is a line for people.
func (p Progress) String() string {
	errors := ""
	if p.Errors > 0 {
		errors = fmt.Sprintf(", %s errors so far", humanize.Comma(p.Errors))
	}
	if p.IOPS == 0 {
		return "nothing ended in the last second" + errors
	}
	return fmt.Sprintf("%s IOPS, %s MiB/s, p50 %s, p99 %s%s", humanize.Comma(p.IOPS), humanize.FtoaWithDigits(float64(p.Bytes)/(1<<20), 1),
		ShortDuration(p.P50), ShortDuration(p.P99), errors)
}

// all returns the latencies of all operations but fsyncs, nil without any.
func (s *series) all() (h *hdrhistogram.Histogram) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, of := range s.total {
		if opKind(k).counts() {
			merge(&h, of)
		}
	}
	return h
}
