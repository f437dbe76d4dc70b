package state

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"syscall"
	"testing"
	"time"

	"varve/internal/wire/msg"
	"varve/mds/event"
)

// history of a busy cluster: files are made with a lease, get a chunk and a size, are released, some renamed, and removed again
// when there are enough of them. Every event has a session's cause, as those of clients have.
type mixer struct {
	rnd         *rand.Rand
	live        []mixed // files
	garbage     map[uint32][]uint64
	keep        int
	next, chunk uint64
	seq         [32]uint64
	pending     []*event.Event
}

type mixed struct {
	ino, parent uint64
	name        string
	chunk       uint64
	on          map[uint32]bool
}

const (
	mixDirs = 256
	inUse   = 4096 // files
)

func newMixer(keep int) *mixer {
	return &mixer{rnd: rand.New(rand.NewPCG(1, 2)), keep: keep, garbage: map[uint32][]uint64{}}
}

func (m *mixer) start() []*event.Event {
	evs := []*event.Event{evInit(), evServer(1), evServer(2), evServer(3), evServer(4), evServer(5)}
	for i := range m.seq {
		evs = append(evs, evSession(uint64(i)+1))
	}
	for i := range uint64(mixDirs) {
		evs = append(evs, evCreate(1, 2+i, fmt.Sprint("project-", i), msg.FileType_DIRECTORY))
	}
	m.next, m.chunk = 2+mixDirs, 0
	return evs
}

func (m *mixer) caused(ev *event.Event, session int) *event.Event {
	m.seq[session]++
	acked := uint64(0)
	if m.seq[session] > 8 {
		acked = m.seq[session] - 8
	}
	ev.Time = int64(1_700_000_000_000_000_000 + m.next*1_000_003)
	return cause(ev, uint64(session)+1, m.seq[session], acked)
}

// recent returns one of the files in use; the others lie there until they are removed.
func (m *mixer) recent() *mixed {
	return &m.live[len(m.live)-1-m.rnd.IntN(min(len(m.live), inUse))]
}

// one returns the next event.
func (m *mixer) one() *event.Event {
	if len(m.pending) > 0 {
		ev := m.pending[0]
		m.pending = m.pending[1:]
		return ev
	}
	x := m.rnd.IntN(len(m.seq))
	session := uint64(x) + 1
	switch what := m.rnd.IntN(10); {
	case len(m.live) >= m.keep && what < 4:
		i := m.rnd.IntN(len(m.live))
		if m.rnd.IntN(4) > 0 { // most that go have not been there for long
			i = len(m.live) - 1 - m.rnd.IntN(min(len(m.live), inUse))
		}
		f := m.live[i]
		m.live[i] = m.live[len(m.live)-1]
		m.live = m.live[:len(m.live)-1]
		for k := range f.on {
			m.garbage[k] = append(m.garbage[k], f.chunk)
			if len(m.garbage[k]) >= 100 {
				m.pending = append(m.pending, &event.Event{Body: &event.Event_Purged{Purged: &event.Purged{Server: k, Chunks: m.garbage[k]}}})
				m.garbage[k] = nil
			}
		}
		return m.caused(evRemove(f.parent, f.ino, f.name), x)
	case len(m.live) > 0 && what < 6:
		f := m.recent()
		ev := m.caused(evSize(f.ino, 20<<20+m.next), x)
		mtime := ev.Time
		ev.GetSetAttr().Mtime = &mtime
		return ev
	case len(m.live) > 0 && what < 7:
		f := m.recent()
		to := fmt.Sprintf("moved-%08d.qcow2", m.rnd.Uint32())
		ev := &event.Event{Body: &event.Event_Rename{Rename: &event.Rename{
			Parent: f.parent, Name: []byte(f.name), Ino: f.ino, NewParent: f.parent, NewName: []byte(to)}}}
		f.name = to
		return m.caused(ev, x)
	}
	m.next++
	m.chunk++
	f := mixed{m.next, 2 + uint64(m.rnd.IntN(mixDirs)), fmt.Sprintf("vm-%08d-disk0.qcow2", m.next), m.chunk, nil}
	ev := evCreate(f.parent, f.ino, f.name, msg.FileType_REGULAR)
	ev.GetCreate().Want = uint32(msg.Want_WANT_WRITE)
	ev = m.caused(ev, x)
	a := 1 + uint32(m.rnd.IntN(5))
	f.on = map[uint32]bool{a: true, a%5 + 1: true, (a+1)%5 + 1: true}
	m.pending = append(m.pending, m.caused(evAlloc(f.ino, 0, m.chunk, a, a%5+1, (a+1)%5+1), x), m.caused(evSize(f.ino, 20<<20), x),
		m.caused(evLease(session, f.ino, msg.Want_WANT_NONE), x))
	m.live = append(m.live, f)
	return ev
}

// threadTime returns the CPU time that the calling thread has used.
func threadTime(t testing.TB) time.Duration {
	var ru syscall.Rusage
	const thread = 1 // RUSAGE_THREAD
	if err := syscall.Getrusage(thread, &ru); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// BenchmarkApplyMix reports events a second of what clients cause: a third of them make a file, give it a chunk, a size and release it.
// decode is from the bytes of a Raft entry of 256 events. A second is one of CPU time of the thread that applies, since the machine may be
// busy with other things; what the collector does beside it is not in it.
func BenchmarkApplyMix(b *testing.B) {
	for _, keep := range []int{10_000, 200_000} {
		b.Run(fmt.Sprintf("files=%d", keep), func(b *testing.B) {
			m, s := newMixer(keep), New()
			for _, ev := range m.start() {
				s.Apply(ev)
			}
			for len(m.live) < keep {
				s.Apply(m.one())
			}
			const entry = 256
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var decode, apply time.Duration
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				const many = 64
				raw := make([][]byte, many)
				for i := range raw {
					var batch event.Batch
					for range entry {
						batch.Events = append(batch.Events, m.one())
					}
					raw[i], _ = batch.MarshalVT()
				}
				for _, r := range raw {
					t0 := threadTime(b)
					var batch event.Batch
					if err := batch.UnmarshalVT(r); err != nil {
						b.Fatal(err)
					}
					t1 := threadTime(b)
					for _, ev := range batch.Events {
						s.Apply(ev)
					}
					apply += threadTime(b) - t1
					decode += t1 - t0
				}
				n += many * entry
			}
			b.ReportMetric(float64(n)/apply.Seconds(), "applied/s")
			b.ReportMetric(float64(n)/decode.Seconds(), "decoded/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}
