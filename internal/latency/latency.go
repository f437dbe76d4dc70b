// Package latency counts how long requests take, in buckets that are small enough to be told in a heartbeat and can be added up over
// servers.
//
// Use: a Recorder where requests end, from any goroutine; Take what it has counted since it was asked last; Add up what several have counted;
// Quantile of that. The zero Recorder is ready.
//
// There are four buckets from each power of two to the next, of equal width, the first from 16 µs on; it counts all that are shorter as well, the last one
// all that are longer. So a quantile is at most a quarter above what it would be of the durations themselves.
package latency

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Buckets is how many there are: the last begins at 14 s.
const Buckets = 80

const (
	steps = 4 // buckets between powers of two
	least = 4 // log2 of the first bucket's limit in µs
)

// Recorder counts. Its methods may be called at once.
type Recorder struct{ counts [Buckets]atomic.Uint32 }

// Add counts one request.
func (r *Recorder) Add(d time.Duration) { r.counts[bucket(d)].Add(1) }

// Take returns what was counted since the last call, without buckets at the end that have nothing; nil if there is nothing at all.
func (r *Recorder) Take() []uint32 {
	var out [Buckets]uint32
	n := 0
	for i := range r.counts {
		if r.counts[i].Load() == 0 { // it is not written to, so that the others keep it in their caches
			continue
		}
		out[i] = r.counts[i].Swap(0)
		n = i + 1
	}
	if n == 0 {
		return nil
	}
	return append([]uint32(nil), out[:n]...)
}

// bucket returns which bucket counts d.
func bucket(d time.Duration) int {
	us := uint64(max(d, 0) / time.Microsecond)
	power := bits.Len64(us) - 1
	if power < least {
		return 0
	}
	i := (power-least)*steps + int(us>>(power-2)&(steps-1))
	return min(i, Buckets-1)
}

// limit returns where the bucket ends.
func limit(i int) time.Duration {
	i++
	us := uint64(steps+i%steps) << (i/steps + least - 2)
	return time.Duration(us) * time.Microsecond
}

// Add returns sum with the counts added. More buckets than there are, as a newer version may have, are counted in the last.
func Add(sum, counts []uint32) []uint32 {
	for i, n := range counts {
		i = min(i, Buckets-1)
		for len(sum) <= i {
			sum = append(sum, 0)
		}
		if sum[i] += n; sum[i] < n {
			sum[i] = 1<<32 - 1
		}
	}
	return sum
}

// Count returns how many requests were counted.
func Count(counts []uint32) uint64 {
	var n uint64
	for _, c := range counts {
		n += uint64(c)
	}
	return n
}

// Quantile returns a duration that the share q of the requests did not exceed, 0 < q <= 1; 0 if there are none.
func Quantile(counts []uint32, q float64) time.Duration {
	all := Count(counts)
	if all == 0 {
		return 0
	}
	need := min(max(uint64(q*float64(all)+0.999999), 1), all)
	var n uint64
	for i, c := range counts {
		if n += uint64(c); n >= need {
			return limit(min(i, Buckets-1))
		}
	}
	return limit(Buckets - 1)
}
