package boottime

import (
	"sync/atomic"
	"time"
)

// reader reads the boot-time clock with few system calls. That clock takes one, which local reads would make three times each; the clock of the day and
// the monotonic one take none. Both of these stand still while the host sleeps. When it wakes up, the kernel puts the clock of the day forward together
// with the boot-time clock, in one step: as long as the distance of the two is what it was, so is that of the boot-time clock to the monotonic one.
type reader struct {
	look func() (day, mono time.Duration)
	call func() time.Duration
	last atomic.Pointer[distance]
}

// distance is what was found at one time. It is never changed.
type distance struct {
	at   time.Duration // on the monotonic clock
	day  time.Duration // of the clock of the day to the monotonic one
	boot time.Duration // of the boot-time clock to the monotonic one
}

const (
	// slack is how far the distance may be from what it was, the two not being read at once. A sleep as short is not seen until the next system call.
	slack = 200 * time.Microsecond
	// fresh is how long it is believed that the clock of the day was not put back by what the host slept, on the monotonic clock.
	fresh = 100 * time.Millisecond
	// exact is how long a system call may take for a distance to be kept, and tries how many of them are made for one that does not.
	exact = 20 * time.Microsecond
	tries = 8
)

func (r *reader) read() time.Duration {
	day, mono := r.look()
	d := r.last.Load()
	if d != nil && mono-d.at < fresh && (day-mono-d.day).Abs() < slack {
		return mono + d.boot
	}
	return r.renew(d)
}

// renew asks the kernel. If the host has not slept since d was found, the time goes on from the same distance: it does not go back, whoever reads it.
func (r *reader) renew(d *distance) time.Duration {
	var boot time.Duration
	for range tries {
		day, before := r.look()
		boot = r.call()
		_, after := r.look()
		if after-before > exact {
			continue // it was interrupted: who knows when
		}
		next := &distance{at: before, day: day - before, boot: boot - after}
		if d != nil && (next.boot-d.boot).Abs() < slack {
			next.boot = d.boot
		}
		if r.last.CompareAndSwap(d, next) || d != nil && next.boot == d.boot {
			return after + next.boot
		}
		if d = r.last.Load(); (next.boot - d.boot).Abs() < slack {
			return after + d.boot
		}
	}
	return boot
}
