package reactor

import (
	"math/bits"
	"time"
)

// Timer calls Fire once, on the loop's thread, when its time has come. The owner sets Fire once, embeds the timer where it
// belongs, and may set and stop it as often as it likes: nothing is allocated. The zero value with Fire is a timer that is not set.
type Timer struct {
	Fire func()

	when       uint64 // tick
	prev, next *Timer
	slot       *timerList // nil: not set
}

// Set says whether the timer is running.
func (t *Timer) Set() bool { return t.slot != nil }

const (
	tick       = time.Millisecond
	wheelBits  = 6
	wheelSlots = 1 << wheelBits
	wheelLevel = 5 // 2^30 ms are twelve days; what is later goes round again
)

// timerList is a ring of timers, with itself as the first.
type timerList struct {
	first *Timer
	level *wheelRing
	index uint8
}

type wheelRing struct {
	used  uint64 // a bit for each slot that is not empty
	slots [wheelSlots]timerList
}

// wheel is a hierarchical timing wheel (Varghese and Lauck, SOSP 1987): a slot of level n spans 64^n ticks. Setting and
// stopping cost the same however many timers there are. A timer lies on the level of the highest digit, in base 64, in which
// its time differs from the wheel's.
type wheel struct {
	now   uint64 // tick up to which all timers have fired
	count int
	rings [wheelLevel]wheelRing
	due   timerList
}

func (w *wheel) init() {
	for l := range w.rings {
		for i := range w.rings[l].slots {
			w.rings[l].slots[i] = timerList{level: &w.rings[l], index: uint8(i)}
		}
	}
}

// set has t fire at the tick when; if that is over, at the next advance.
func (w *wheel) set(t *Timer, when uint64) {
	w.stop(t)
	t.when = when
	w.count++
	w.insert(t)
}

func (w *wheel) insert(t *Timer) {
	if t.when <= w.now {
		w.due.push(t)
		return
	}
	differ := t.when ^ w.now
	level := (bits.Len64(differ) - 1) / wheelBits
	index := t.when >> (level * wheelBits)
	if level >= wheelLevel { // the top level goes round; what is later than one turn waits there for the next
		level = wheelLevel - 1
		index = min(t.when>>(level*wheelBits), w.now>>(level*wheelBits)+wheelSlots-1)
	}
	r := &w.rings[level]
	i := index % wheelSlots
	r.slots[i].push(t)
	r.used |= 1 << i
}

// stop takes t off the wheel, if it is on it.
func (w *wheel) stop(t *Timer) {
	if t.slot == nil {
		return
	}
	t.slot.remove(t)
	w.count--
}

// next returns the tick at which advance has something to do.
func (w *wheel) next() (uint64, bool) {
	if w.due.first != nil {
		return w.now, true
	}
	for l := range w.rings {
		used := w.rings[l].used
		if used == 0 {
			continue
		}
		shift := l * wheelBits
		at := w.now >> shift
		// Slots from the present one on, in the order in which they come.
		ahead := bits.TrailingZeros64(bits.RotateLeft64(used, -int(at%wheelSlots)))
		return (at + uint64(ahead)) << shift, true
	}
	return 0, false
}

// advance moves the wheel to the tick now and fires what is due, in order of time but for ties.
func (w *wheel) advance(now uint64) {
	for {
		if t := w.due.first; t != nil {
			w.stop(t)
			t.Fire()
			continue
		}
		next, any := w.next()
		if !any || next > now {
			w.now = max(w.now, now)
			return
		}
		w.now = max(w.now, next)
		for l := range w.rings {
			r := &w.rings[l]
			if i := w.now >> (l * wheelBits) % wheelSlots; r.used&(1<<i) != 0 {
				w.spread(&r.slots[i])
			}
		}
	}
}

// spread moves the timers of a slot that has begun to where they belong now.
func (w *wheel) spread(s *timerList) {
	t := s.first
	s.first = nil
	s.level.used &^= 1 << s.index
	for t != nil {
		next := t.next
		t.slot, t.prev, t.next = nil, nil, nil
		w.insert(t)
		t = next
	}
}

func (s *timerList) push(t *Timer) {
	t.slot, t.prev, t.next = s, nil, s.first
	if s.first != nil {
		s.first.prev = t
	}
	s.first = t
}

func (s *timerList) remove(t *Timer) {
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		s.first = t.next
	}
	if t.next != nil {
		t.next.prev = t.prev
	}
	t.slot, t.prev, t.next = nil, nil, nil
	if s.first == nil && s.level != nil {
		s.level.used &^= 1 << s.index
	}
}
