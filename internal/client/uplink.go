package client

import (
	"sync"
	"time"
)

// Whether a large write goes to all replicas at once, or to one that sends it on, is decided by what was measured: the rate at which large
// writes are answered. Relayed writes send each byte over the uplink once instead of once a replica, but travel twice and cost a
// server more. So both ways are tried now and then, for a window of some MiB, and the faster one is kept. What is not bound by the uplink,
// or not large and in sequence, comes out as fast in parallel, and stays there.
const (
	// relayMin is the shortest write that may be relayed: of a shorter one the time counts, not the rate.
	relayMin = 128 << 10
	// A window is measured when it has so many bytes and has lasted so long, counted from when the first of its writes has ended: until
	// then the uplink was busy with those of the window before. One that is not full within windowMax is given up: there is no stream of
	// large writes.
	windowBytes = 16 << 20
	windowMin   = 100 * time.Millisecond
	windowMax   = 10 * time.Second
	// trialTimes is how many times as long as the last normal window a trial may take.
	trialTimes = 3
	// The other way is tried again after probeFirst, and after twice as long each time that it was not better, up to probeMax.
	probeFirst = 10 * time.Second
	probeMax   = 5 * time.Minute
	// relayGain is by how much relaying must be faster to be begun, in percent; keepGain, to be gone on with.
	relayGain = 25
	keepGain  = 10
)

// uplink decides for one client. Times are of one clock that does not go back. Its methods may be called at once.
//
//	phase    way of its writes    ends when a window is full                       or after windowMax
//	normal   the preferred one    a trial is due: trial; else normal again         normal, nothing measured
//	trial    the other one        normal, with the better of the two preferred     normal, as if it had been the worse one
type uplink struct {
	mu      sync.Mutex
	prefer  bool // relayed
	trial   bool // this window goes the other way
	window  uint64
	began   time.Duration // of the window
	first   time.Duration // when its first write ended, 0: none has
	bytes   int64         // of those after it
	rate    int64         // of the last normal window, bytes/s
	next    time.Duration
	pause   time.Duration
	relayed uint64 // writes
}

// ticket is what begin gives out for end.
type ticket struct {
	window  uint64
	relayed bool
}

// begin says how a large write that begins now is to go.
func (u *uplink) begin(now time.Duration) ticket {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.window == 0 || now-u.began > u.limit() {
		u.giveUp(now)
	}
	t := ticket{window: u.window, relayed: u.prefer != u.trial}
	if t.relayed {
		u.relayed++
	}
	return t
}

// end counts a write of n bytes that all replicas have. One that began in an earlier window counts for none.
func (u *uplink) end(now time.Duration, t ticket, n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if t.window != u.window || now-u.began > u.limit() {
		return
	}
	if u.first == 0 {
		u.first = max(now, 1)
		return
	}
	if u.bytes += int64(n); u.bytes < windowBytes || now-u.first < windowMin {
		return
	}
	rate := int64(float64(u.bytes) / (now - u.first).Seconds())
	if !u.trial {
		u.rate = rate
		u.open(now, now >= u.next)
		return
	}
	better := false
	if u.prefer {
		better = u.rate*100 < rate*(100+keepGain) // parallel is as good, or nearly
	} else {
		better = rate*100 > u.rate*(100+relayGain)
	}
	if better {
		u.prefer, u.pause = !u.prefer, 0
	}
	u.rest(now)
	u.open(now, false)
}

// limit is how long the window may take: a trial not much longer than what it is compared with took.
func (u *uplink) limit() time.Duration {
	if !u.trial {
		return windowMax
	}
	return min(windowMax, windowMin+time.Duration(trialTimes*windowBytes/float64(max(u.rate, 1))*float64(time.Second)))
}

// giveUp begins a normal window after one that was not full in time. The caller holds mu.
func (u *uplink) giveUp(now time.Duration) {
	if u.trial {
		u.rest(now)
	}
	u.open(now, false)
}

// rest puts the next trial off. The caller holds mu.
func (u *uplink) rest(now time.Duration) {
	u.pause = min(max(2*u.pause, probeFirst), probeMax)
	u.next = now + u.pause
}

// open begins a window. The caller holds mu.
func (u *uplink) open(now time.Duration, trial bool) {
	u.window++
	u.began, u.first, u.bytes, u.trial = now, 0, 0, trial
}

// forgo takes back that a write which begin was asked about is relayed: it will be asked about again.
func (u *uplink) forgo() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.relayed--
}

// count returns how many writes were relayed, and whether they are now.
func (u *uplink) count() (writes uint64, now bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.relayed, u.prefer
}
