package admit

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

const mib = 1 << 20

func testOptions() Options { return Options{Ops: 64, Bytes: 64 * mib, Largest: 2 * mib} }

func mustNew(t testing.TB, o Options) *Queue {
	t.Helper()
	q, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// check holds the counters against the heaps, and the budget against its limits.
func (q *Queue) check(t *testing.T, flows ...Flow) {
	t.Helper()
	var sum use
	waits := 0
	for k := range q.classes {
		c := &q.classes[k]
		for i, l := range c.due {
			if l.place != i || l.head == nil {
				t.Fatalf("class %d: lane at %d says %d, with a request %t", k, i, l.place, l.head != nil)
			}
			if i > 0 && c.due[(i-1)/2].start > l.start {
				t.Fatalf("class %d is no heap at %d", k, i)
			}
			for r := l.head; r != nil; r = r.next {
				waits++
				if r.next == nil && l.tail != r {
					t.Fatalf("class %d: tail of a lane is not its last", k)
				}
			}
		}
		sum = sum.plus(c.used)
	}
	for i := range flows {
		parkedLanes := 0
		for k := range flows[i].lanes {
			l := &flows[i].lanes[k]
			if l.head == nil || l.place != parked {
				continue
			}
			parkedLanes++
			for r := l.head; r != nil; r = r.next {
				waits++
			}
		}
		if parkedLanes != flows[i].parked || !flows[i].used.within(q.perFlow) {
			t.Fatalf("client %d: %d lanes parked, %d counted; uses %+v of %+v", i, parkedLanes, flows[i].parked, flows[i].used, q.perFlow)
		}
	}
	if flows != nil && waits != q.waiting {
		t.Fatalf("%d requests wait, %d counted", waits, q.waiting)
	}
	if !sum.within(use{q.o.Ops, q.o.Bytes}) {
		t.Fatalf("%+v are under way, limit %d and %d", sum, q.o.Ops, q.o.Bytes)
	}
	// What a class borrows never touches another one's reserve.
	if b := q.borrowed(Heartbeat); !b.within(q.shared) {
		t.Fatalf("%+v are borrowed, shared are %+v", b, q.shared)
	}
}

// TestModel asks, ends and cancels at random: the budget holds, requests of a client and class keep their order, and all come through.
func TestModel(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 7))
		q := mustNew(t, Options{Ops: 8 + rng.IntN(60), Bytes: int64(8+rng.IntN(60)) * mib, Largest: 2 * mib, Waiting: 200})
		flows := make([]Flow, 1+rng.IntN(20))
		type key struct {
			f *Flow
			k Class
		}
		order := map[key][]*Request{}
		var under []*Request
		now := time.Duration(0)
		asked, done, canceled, refused := 0, 0, 0, 0
		run := func() {
			for r := q.Next(now); r != nil; r = q.Next(now) {
				kk := key{r.Owner.(*Flow), r.Class}
				if order[kk][0] != r || !r.UnderWay() {
					t.Fatalf("seed %d: a request of class %d overtakes one of its client", seed, r.Class)
				}
				order[kk] = order[kk][1:]
				under = append(under, r)
				q.check(t, flows...)
			}
		}
		end := func(i int) {
			q.Done(under[i], now)
			under = slices.Delete(under, i, i+1)
			done++
			run()
		}
		for range 3000 {
			now += time.Duration(rng.IntN(200)) * time.Microsecond
			switch x := rng.IntN(10); {
			case x < 5:
				f := &flows[rng.IntN(len(flows))]
				r := &Request{Class: Class(rng.IntN(Classes)), Bytes: int64(rng.IntN(2*mib + 1)), Owner: f}
				if q.Ask(r, f) {
					kk := key{f, r.Class}
					order[kk] = append(order[kk], r)
					asked++
				} else {
					refused++
				}
				run()
			case x < 9 && len(under) > 0:
				end(rng.IntN(len(under)))
			case x == 9:
				for kk, list := range order {
					if len(list) == 0 {
						continue
					}
					i := rng.IntN(len(list))
					if !q.Cancel(list[i]) || q.Cancel(list[i]) {
						t.Fatalf("seed %d: a request that waits cannot be cancelled, or twice", seed)
					}
					order[kk] = slices.Delete(list, i, i+1)
					canceled++
					break
				}
				run()
			}
			q.check(t, flows...)
		}
		for step := 0; done+canceled < asked; step++ {
			if step > 10*asked {
				t.Fatalf("seed %d: %d of %d requests never go on", seed, asked-done-canceled, asked)
			}
			now += 10 * time.Millisecond
			run()
			if len(under) > 0 {
				end(rng.IntN(len(under)))
			}
		}
		for i := range flows {
			if flows[i].used != (use{}) || flows[i].parked != 0 {
				t.Errorf("seed %d: client %d uses %+v at the end", seed, i, flows[i].used)
			}
		}
		if q.Waiting() != 0 || q.borrowed(Heartbeat) != (use{}) {
			t.Errorf("seed %d: %d wait, %+v borrowed at the end", seed, q.Waiting(), q.borrowed(Heartbeat))
		}
		if refused == 0 && seed == 0 {
			t.Log("the bound of waiting requests was not met")
		}
	}
}

// client is a client of the simulation: it keeps depth requests, asked for or under way.
type client struct {
	class Class
	bytes int64
	depth int
	pause time.Duration // before it asks again
	until time.Duration // it stops asking then; 0: never

	flow   Flow
	served int64         // requests
	worst  time.Duration // from asking until it could go on
}

type pending struct {
	Request
	c     *client
	asked time.Duration
}

// event is an ask or an end to come.
type event struct {
	at  time.Duration
	n   int
	p   *pending
	end bool
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].n < e[j].n
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

// simulate runs clients against a disk that does one request after the other, in the order in which they were let go on: rate bytes a
// second and perOp for each.
func simulate(t *testing.T, q *Queue, rate int64, perOp, length time.Duration, clients ...*client) {
	var ev events
	n := 0
	at := func(when time.Duration, p *pending, end bool) {
		n++
		heap.Push(&ev, event{when, n, p, end})
	}
	for _, c := range clients {
		for range c.depth {
			at(0, &pending{c: c}, false)
		}
	}
	var now, wake, free time.Duration // free: when the disk is
	for len(ev) > 0 && now < length {
		e := heap.Pop(&ev).(event)
		now = e.at
		switch p := e.p; {
		case p == nil: // a wake-up
		case e.end:
			q.Done(&p.Request, now)
			p.c.served++
			if p.c.until == 0 || now < p.c.until {
				at(now+p.c.pause, p, false)
			}
		default:
			p.Request = Request{Class: p.c.class, Bytes: p.c.bytes, Owner: p}
			p.asked = now
			if !q.Ask(&p.Request, &p.c.flow) {
				t.Fatal("too many requests wait")
			}
		}
		for r := q.Next(now); r != nil; r = q.Next(now) {
			p := r.Owner.(*pending)
			p.c.worst = max(p.c.worst, now-p.asked)
			free = max(free, now) + perOp + time.Duration(p.c.bytes*int64(time.Second)/rate)
			at(free, p, true)
		}
		if w := q.Wake(); w < length && w > now && (wake <= now || w < wake) {
			wake = w
			at(w, nil, false)
		}
	}
}

// TestGreedyClient has a client with 256 requests under way beside one with a single one.
func TestGreedyClient(t *testing.T) {
	for _, bytes := range []int64{4096, mib} {
		greedy := &client{class: Guest, bytes: bytes, depth: 256}
		small := &client{class: Guest, bytes: 4096, depth: 1}
		o := Options{Ops: 32, Bytes: 32 * mib, Largest: 2 * mib}
		q := mustNew(t, o)
		simulate(t, q, 1<<30, 5*time.Microsecond, 2*time.Second, greedy, small)
		// It waits for one request of the other to end at most, and then behind what was let go on before.
		one := 5*time.Microsecond + time.Duration(bytes)*time.Second>>30
		if small.worst > 2*one {
			t.Errorf("%d bytes: the client with one request waits up to %v to go on, a request takes %v", bytes, small.worst, one)
		}
		if small.served == 0 || greedy.served == 0 {
			t.Errorf("%d bytes: %d and %d requests served", bytes, small.served, greedy.served)
		}
		t.Logf("%d bytes: greedy %d, small %d, worst wait %v", bytes, greedy.served, small.served, small.worst)
	}
}

// TestClientsShare has clients of different depths and sizes get the same, by cost.
func TestClientsShare(t *testing.T) {
	var clients []*client
	for i := range 6 {
		clients = append(clients, &client{class: Guest, bytes: 4096 << (2 * (i % 3)), depth: 16 << (i / 2)})
	}
	q := mustNew(t, Options{Ops: 16, Bytes: 64 * mib, Largest: 2 * mib})
	simulate(t, q, 1<<30, time.Microsecond, 3*time.Second, clients...)
	var costs []int64
	for _, c := range clients {
		costs = append(costs, c.served*(c.bytes+OpCost))
	}
	if lo, hi := slices.Min(costs), slices.Max(costs); hi-lo > hi/50 {
		t.Errorf("clients that always wait are served for %v", costs)
	}
}

// TestRepairBesideGuests has repair stay below its share beside guests, get at least its rate, and take all when they are idle.
func TestRepairBesideGuests(t *testing.T) {
	const rate = 1 << 30
	for _, depth := range []int{1, 8, 128} {
		guest := &client{class: Guest, bytes: 64 << 10, depth: depth}
		repair := &client{class: Repair, bytes: mib, depth: 32}
		q := mustNew(t, testOptions())
		simulate(t, q, rate, 2*time.Microsecond, 2*time.Second, guest, repair)
		g, r := guest.served*(guest.bytes+OpCost), repair.served*(repair.bytes+OpCost)
		share := float64(r) / float64(g+r)
		t.Logf("depth %d: guests %d MiB, repair %d MiB, share %.3f, worst wait of a guest %v, of repair %v",
			depth, g/mib, r/mib, share, guest.worst, repair.worst)
		if limit := 8.0/72 + 0.02; share > limit {
			t.Errorf("depth %d: repair gets %.3f beside guests, its share is %.3f", depth, share, limit)
		}
		if least := q.classes[Repair].Rate * 2 * 9 / 10; r < least {
			t.Errorf("depth %d: repair gets %d bytes in 2 s, its rate gives %d", depth, r, least)
		}
	}
	guest := &client{class: Guest, bytes: 64 << 10, depth: 32, until: time.Second}
	repair := &client{class: Repair, bytes: mib, depth: 32}
	q := mustNew(t, testOptions())
	simulate(t, q, rate, 0, time.Second, guest, repair)
	before := repair.served
	q = mustNew(t, testOptions())
	*repair, *guest = client{class: Repair, bytes: mib, depth: 32}, client{class: Guest, bytes: 64 << 10, depth: 32, until: time.Second}
	simulate(t, q, rate, 0, 3*time.Second, guest, repair)
	after := repair.served - before
	if want := int64(2 * rate / mib * 9 / 10); after < want {
		t.Errorf("repair moves %d MiB in the 2 s in which guests are idle, the disk %d", after, want)
	}
	// Guests that come back find what is under way, not what waits.
	guest = &client{class: Guest, bytes: 4096, depth: 1, pause: 300 * time.Millisecond}
	*repair = client{class: Repair, bytes: mib, depth: 200}
	simulate(t, mustNew(t, testOptions()), rate, 0, 3*time.Second, guest, repair)
	if guest.worst > 0 {
		t.Errorf("a guest that comes back waits %v to go on, beside a reserve", guest.worst)
	}
}

// TestReplicationBesideGuests has guests that never end leave replication its reserve: they may be waiting for it elsewhere.
func TestReplicationBesideGuests(t *testing.T) {
	o := testOptions()
	o.PerFlow = 100
	q := mustNew(t, o)
	var f [3]Flow
	var held []*Request
	for {
		r := &Request{Class: Guest, Bytes: 2 * mib}
		q.Ask(r, &f[0])
		if q.Next(0) == nil {
			break
		}
		held = append(held, r)
	}
	repair := &Request{Class: Repair, Bytes: mib}
	q.Ask(repair, &f[2])
	for i := range 8 {
		r := &Request{Class: Replication, Bytes: 2 * mib}
		q.Ask(r, &f[1])
		if q.Next(0) != r {
			t.Fatalf("replication %d does not go on beside %d guests that hold all they can", i, len(held))
		}
	}
	q.check(t)
	beat := &Request{Class: Heartbeat}
	q.Ask(beat, &f[1])
	if q.Next(0) != beat {
		t.Error("a heartbeat waits")
	}
	q.Done(beat, 0)
	if q.Next(0) != nil || repair.UnderWay() {
		t.Error("something goes on over the budget")
	}
}

// TestStuckClient has a client whose requests never end, since it does not read its answers, leave the others half of the budget, and
// get its own requests through when it comes back.
func TestStuckClient(t *testing.T) {
	q := mustNew(t, testOptions())
	var stuck, other Flow
	var all []*Request
	for i := range 100 {
		r := &Request{Class: Guest + Class(i%2), Bytes: mib}
		q.Ask(r, &stuck)
		all = append(all, r)
		for q.Next(0) != nil {
		}
	}
	if stuck.used.ops != 32 {
		t.Errorf("a client has %d requests under way, limit 32", stuck.used.ops)
	}
	for range 10 {
		r := &Request{Class: Guest, Bytes: mib}
		q.Ask(r, &other)
		if q.Next(0) != r {
			t.Fatal("a client waits for one that is stuck")
		}
		q.Done(r, 0)
	}
	q.check(t, stuck, other)
	if !q.Cancel(all[99]) {
		t.Fatal("cannot cancel")
	}
	ended := 0
	for i := 0; i < len(all); i++ {
		if all[i].UnderWay() {
			q.Done(all[i], 0)
			ended++
			for q.Next(0) != nil {
			}
			i = -1
		}
	}
	if ended != 99 || q.Waiting() != 0 {
		t.Errorf("%d of 99 requests came through, %d wait", ended, q.Waiting())
	}
	q.check(t, stuck, other)
}

// TestLargeAmongSmall has a large request come through beside small ones that never stop.
func TestLargeAmongSmall(t *testing.T) {
	q := mustNew(t, Options{Ops: 1000, Bytes: 4 * mib, Largest: 2 * mib})
	small := &client{class: Guest, bytes: 4096, depth: 900}
	other := &client{class: Replication, bytes: 4096, depth: 900}
	large := &client{class: Guest, bytes: 2 * mib, depth: 1}
	simulate(t, q, 1<<30, 0, time.Second, small, other, large)
	if large.served < 50 {
		t.Errorf("a client with large requests is served %d times beside %d and %d small ones", large.served, small.served, other.served)
	}
}

func TestOptions(t *testing.T) {
	bad := DefaultShares
	bad[Repair].Weight = 0
	for _, o := range []Options{
		{}, {Ops: 10, Bytes: mib, Largest: mib}, {Ops: 0, Bytes: 64 * mib, Largest: mib}, {Ops: 64, Bytes: 64 * mib, Largest: mib, Shares: bad}, {Ops: 1, Bytes: -1}, {Ops: 64, Bytes: mib, BusyFor: -1},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
}

func TestAllocs(t *testing.T) {
	q := mustNew(t, testOptions())
	var f Flow
	r := Request{Class: Guest, Bytes: 4096}
	n := testing.AllocsPerRun(1000, func() {
		q.Ask(&r, &f)
		if q.Next(1) != &r {
			t.Fatal("does not go on")
		}
		q.Done(&r, 2)
		q.Next(2)
	})
	if n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}

func BenchmarkRequest(b *testing.B) {
	for _, others := range []int{0, 1000} {
		b.Run(fmt.Sprintf("waiting=%d", others), func(b *testing.B) {
			q := mustNew(b, testOptions())
			flows := make([]Flow, others+1)
			reqs := make([]Request, others+1)
			for i := range reqs {
				reqs[i] = Request{Class: Guest, Bytes: 4096, Owner: &flows[i]}
				q.Ask(&reqs[i], &flows[i])
			}
			now := time.Duration(0)
			var under []*Request
			for r := q.Next(now); r != nil; r = q.Next(now) {
				under = append(under, r)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				now++
				r := under[i%len(under)]
				q.Done(r, now)
				q.Ask(r, r.Owner.(*Flow))
				if under[i%len(under)] = q.Next(now); under[i%len(under)] == nil {
					b.Fatal("nothing goes on")
				}
			}
		})
	}
}
