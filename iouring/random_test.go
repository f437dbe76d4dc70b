package iouring_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/iouring"
)

// model is what a random test knows of the operations that it queued.
type model struct {
	*tester
	rnd    *rand.Rand
	ops    map[uint64]iouring.Op // under way, by data
	fds    map[uint64]iouring.FD
	groups []*iouring.BufferGroup
	slots  map[int]uint64
	next   uint64
	ended  int
}

// TestRandom queues operations of all kinds, submits, waits, reaps and cancels in random order. Each must end exactly once, and none
// that was cancelled may stay. VARVE_RING_SEED is another order,
// VARVE_RING_STEPS makes it longer.
func TestRandom(t *testing.T) {
	seed := uint64(1)
	if n, err := strconv.ParseUint(os.Getenv("VARVE_RING_SEED"), 10, 64); err == nil {
		seed = n
	}
	steps := 5000
	if n, err := strconv.Atoi(os.Getenv("VARVE_RING_STEPS")); err == nil && n > 0 {
		steps = n
	}
	inModes(t, func(t *testing.T, without iouring.Feature) {
		t.Logf("VARVE_RING_SEED=%d go test ./iouring -run '%s'", seed, t.Name())
		rnd := rand.New(rand.NewPCG(seed, uint64(without)))
		r := newRing(t, iouring.Options{Entries: 8, Completions: 8 << rnd.IntN(3), InFlight: 100, Files: 4, HandOver: uint32(rnd.IntN(4)), Without: without})
		m := &model{tester: r, rnd: rnd, ops: map[uint64]iouring.Op{}, fds: map[uint64]iouring.FD{}, slots: map[int]uint64{}}
		for id := range 2 {
			g, err := r.NewBufferGroup(uint16(id), 4, 100)
			if err != nil {
				t.Fatal(err)
			}
			m.groups = append(m.groups, g)
		}
		var socks []int
		for range 3 {
			a, b := pair(t, unix.AF_UNIX)
			socks = append(socks, a, b)
		}
		if err := r.SetFiles(0, []int32{int32(socks[0]), int32(socks[2])}); err != nil {
			t.Fatal(err)
		}
		f := file(t)
		if _, err := f.Write(noise(1 << 16)); err != nil {
			t.Fatal(err)
		}
		for range steps {
			m.step(socks, iouring.FD(f.Fd()))
		}
		for end := time.Now().Add(patience); len(m.ops) > 0; {
			if time.Now().After(end) {
				t.Fatalf("%d operations would not end: %v", len(m.ops), m.ops)
			}
			if _, err := r.CancelAll(1 << 40); err != nil && !errors.Is(err, iouring.ErrFull) {
				t.Fatal(err)
			}
			if err := r.SubmitWait(1, 10*time.Millisecond); err != nil {
				t.Fatal(err)
			}
			m.reap(1000)
		}
		t.Logf("%d operations of %d ended", m.ended, m.next)
	})
}

// queued notes an operation that was queued.
func (m *model) queued(fd iouring.FD, o iouring.Op, err error) {
	m.t.Helper()
	if errors.Is(err, iouring.ErrFull) {
		return
	}
	if err != nil {
		m.t.Fatal(err)
	}
	if other, ok := m.slots[o.Slot()]; ok {
		m.t.Fatalf("operations %d and %d have slot %d", other, m.next, o.Slot())
	}
	m.ops[m.next], m.slots[o.Slot()], m.fds[m.next] = o, m.next, fd
	m.next++
}

func (m *model) step(socks []int, f iouring.FD) {
	sock := iouring.FD(socks[m.rnd.IntN(len(socks))])
	if m.rnd.IntN(4) == 0 {
		sock = iouring.Fixed(m.rnd.IntN(2))
	}
	g := m.groups[m.rnd.IntN(len(m.groups))]
	buf := make([]byte, 1+m.rnd.IntN(200))
	d := time.Duration(m.rnd.IntN(2000)) * time.Microsecond
	var o iouring.Op
	var err error
	fd := sock
	switch m.rnd.IntN(20) {
	case 0:
		o, err = m.Nop(m.next)
	case 1:
		o, err = m.Recv(fd, buf, 0, m.next)
	case 2:
		o, err = m.RecvV(fd, [][]byte{buf, buf}, 0, m.next)
	case 3, 4:
		o, err = m.RecvMulti(fd, g, m.next)
	case 5, 6:
		o, err = m.Send(fd, buf, unix.MSG_DONTWAIT, m.next)
	case 7:
		o, err = m.Poll(fd, unix.POLLIN, m.next)
	case 8:
		o, err = m.PollMulti(fd, unix.POLLIN, m.next)
	case 9:
		o, err = m.Timeout(d, 0, m.next)
	case 10:
		o, err = m.Timeout(d+time.Millisecond, iouring.Repeat, m.next)
	case 11:
		fd = f
		o, err = m.Read(fd, buf, m.rnd.Int64N(1<<16), m.next)
	case 12:
		fd = f
		if o, err = m.Write(fd, buf, m.rnd.Int64N(1<<16), m.next); err == nil && m.rnd.IntN(2) == 0 && m.Reserve(1) == nil {
			m.Link()
		}
	case 13, 14:
		fd = -1
		o, err = m.Cancel(m.anyOp(), m.next)
	case 15:
		o, err = m.CancelFD(fd, m.next)
	case 16:
		o, err = m.TimeoutUpdate(m.anyOp(), d, m.next)
	case 17, 18:
		if err := m.SubmitWait(m.rnd.IntN(3), time.Duration(m.rnd.IntN(300))*time.Microsecond); err != nil {
			m.t.Fatal(err)
		}
		return
	default:
		m.reap(1 + m.rnd.IntN(20))
		return
	}
	m.queued(fd, o, err)
}

// anyOp is an operation under way, or none.
func (m *model) anyOp() iouring.Op {
	for _, o := range m.ops {
		return o
	}
	return 0
}

func (m *model) reap(n int) {
	for _, c := range m.Reap(nil, n) {
		if c.Flags&iouring.HasBuffer != 0 {
			for _, g := range m.groups {
				if func() (ok bool) {
					defer func() { ok = recover() == nil }()
					g.Recycle(c.Buffer)
					return
				}() {
					break
				}
			}
		}
		if c.Data == 1<<40 {
			continue
		}
		o, ok := m.ops[c.Data]
		if !ok || o != c.Op {
			m.t.Fatalf("completion %+v of an operation that is not under way", c)
		}
		if !c.More() {
			delete(m.ops, c.Data)
			delete(m.slots, o.Slot())
			delete(m.fds, c.Data)
			m.ended++
		}
	}
}
