package iouring

import (
	"time"

	"golang.org/x/sys/unix"
)

// TimeoutKind says how a time-out behaves.
type TimeoutKind uint32

// Kinds of time-out, to be combined. The zero value fires once, on a clock that stands still while the machine is suspended, and ends
// with ETIME.
const (
	Success  TimeoutKind = timeoutETimeSuccess // links go on after it (kernel 5.16; before, it breaks them)
	Boottime TimeoutKind = timeoutBoottime     // the clock goes on while the machine is suspended
	Repeat   TimeoutKind = timeoutMultishot    // fires again and again, until a completion without More: then queue it again
)

// minRepeat is the shortest period: one that is over before the kernel can look for it cannot be cancelled.
const minRepeat = 100 * time.Microsecond

// Timeout queues a time-out; with Repeat, d is the period, 100 µs at least. When it fires its completion has the error ETIME; when it was removed or cancelled, ECANCELED. Without
// MultishotTimeout, Repeat fires once.
func (r *Ring) Timeout(d time.Duration, kind TimeoutKind, data uint64) (Op, error) {
	if d < 0 || kind&^(Success|Boottime|Repeat) != 0 || kind&Repeat != 0 && d < minRepeat {
		return 0, unix.EINVAL
	}
	if !r.has.Has(MultishotTimeout) {
		kind &^= Repeat
	}
	if !r.has.Has(CQESkip) {
		kind &^= Success // 5.17 stands for 5.16 here
	}
	e, s, err := r.take(OpTimeout, -1, data)
	if err != nil {
		return 0, err
	}
	e.Addr, e.Len, e.OpFlags = s.timespec(d), 1, uint32(kind)
	return Op(e.UserData), nil
}

// TimeoutUpdate queues a new duration, from now on, for a time-out under way. ENOENT means that it has fired.
func (r *Ring) TimeoutUpdate(o Op, d time.Duration, data uint64) (Op, error) {
	if d < 0 {
		return 0, unix.EINVAL
	}
	e, s, err := r.take(OpTimeoutRemove, -1, data)
	if err != nil {
		return 0, err
	}
	e.Addr, e.Off, e.OpFlags = uint64(o), s.timespec(d), timeoutUpdate
	return Op(e.UserData), nil
}

// TimeoutRemove queues the removal of a time-out. ENOENT means that it has fired. One with Repeat, which may be between two of its periods, goes on
// then if its completions have More: remove it again.
func (r *Ring) TimeoutRemove(o Op, data uint64) (Op, error) {
	e, _, err := r.take(OpTimeoutRemove, -1, data)
	if err != nil {
		return 0, err
	}
	e.Addr = uint64(o)
	return Op(e.UserData), nil
}

// LinkTimeout queues a limit for the operation queued last, which must have been marked with Link. If the time is over first, that operation
// is cancelled and the limit ends with ETIME; else the limit ends with ECANCELED.
func (r *Ring) LinkTimeout(d time.Duration, data uint64) (Op, error) {
	if d < 0 || !r.linked() {
		return 0, unix.EINVAL
	}
	e, s, err := r.take(OpLinkTimeout, -1, data)
	if err != nil {
		return 0, err
	}
	e.Addr, e.Len = s.timespec(d), 1
	return Op(e.UserData), nil
}
