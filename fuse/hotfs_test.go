package fuse

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/fserr"
	"varve/internal/hot"
	"varve/internal/id"
	"varve/internal/wire/msg"
	"varve/iouring/reactor"
)

// hotFS is a memFS whose files can be read and written on a reactor's thread. The operations end in turn at once, by a timer, and by another
// goroutine; some are not begun.
type hotFS struct {
	*memFS
	mu    sync.Mutex
	seats []*hotSeat
	left  int

	turn                  atomic.Int64
	reads, writes, refuse atomic.Int64
}

type hotSeat struct {
	l     *reactor.Loop
	under sync.WaitGroup
}

// hotOp is one operation under way.
type hotOp struct {
	seat  *hotSeat
	e     hot.Ender
	n     int
	err   error
	task  reactor.Task
	timer reactor.Timer
}

var (
	_ hot.Host = (*hotFS)(nil)
	_ hot.File = (*hotHandle)(nil)
)

func newHotFS() *hotFS { return &hotFS{memFS: newMemFS()} }

func (h *hotFS) Sit(l *reactor.Loop) (hot.Seat, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seats = append(h.seats, &hotSeat{l: l})
	return hot.Seat(len(h.seats) - 1), nil
}

func (h *hotFS) Leave(s hot.Seat) {
	h.seats[s].under.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.left++
}

type hotHandle struct {
	*memHandle
	h *hotFS
}

func (h *hotFS) wrap(m Handle, err error) (Handle, error) {
	if m == nil {
		return nil, err
	}
	return &hotHandle{m.(*memHandle), h}, err
}

func (h *hotFS) Create(ctx context.Context, cred *msg.Cred, req *msg.Create) (*msg.Attr, Handle, error) {
	a, m, err := h.memFS.Create(ctx, cred, req)
	m, err = h.wrap(m, err)
	return a, m, err
}

func (h *hotFS) Open(ctx context.Context, cred *msg.Cred, ino id.Ino, write, trunc bool) (Handle, error) {
	return h.wrap(h.memFS.Open(ctx, cred, ino, write, trunc))
}

func (h *hotHandle) BeginRead(s hot.Seat, p []byte, off int64, e hot.Ender) bool {
	h.h.reads.Add(1)
	return h.begin(s, e, func(ctx context.Context) (int, error) { return h.ReadAt(ctx, p, off) })
}

func (h *hotHandle) BeginWrite(s hot.Seat, p []byte, off int64, e hot.Ender) bool {
	h.h.writes.Add(1)
	return h.begin(s, e, func(ctx context.Context) (int, error) {
		n, _, err := h.WriteAt(ctx, p, off, false)
		return n, err
	})
}

func (h *hotHandle) begin(s hot.Seat, e hot.Ender, do func(context.Context) (int, error)) bool {
	turn := h.h.turn.Add(1)
	if turn%5 == 4 && !h.n.stalled {
		h.h.refuse.Add(1)
		return false
	}
	o := &hotOp{seat: h.h.seats[s], e: e}
	o.seat.under.Add(1)
	end := func() {
		o.e.Ended(o.n, o.err)
		o.seat.under.Done()
	}
	o.task.Run, o.timer.Fire = end, end
	switch {
	case h.n.stalled: // waits for the context
		go func() {
			o.n, o.err = do(e.(hot.Waiter).Context())
			o.seat.l.Post(&o.task)
		}()
	case turn%5 == 0:
		go func() {
			if o.n, o.err = do(context.Background()); turn%25 == 0 {
				time.Sleep(time.Millisecond)
			}
			o.seat.l.Post(&o.task)
		}()
	case turn%5 == 1:
		o.n, o.err = do(context.Background())
		o.seat.l.SetTimer(&o.timer, time.Millisecond)
	default:
		o.n, o.err = do(context.Background())
		o.seat.l.Post(&o.task)
	}
	return true
}

// hotZero is a zeroFS that ends what is begun at once, and allocates nothing.
type hotZero struct {
	zeroFS
	seats []*zeroSeat
}

// zeroSeat ends operations in the turn after the one in which they were begun.
type zeroSeat struct {
	l       *reactor.Loop
	task    reactor.Task
	posted  bool
	waiting []zeroOp
	ending  []zeroOp
}

type zeroOp struct {
	e hot.Ender
	n int
}

type hotZeroHandle struct {
	zeroHandle
	h *hotZero
}

var _ hot.Host = (*hotZero)(nil)

func (h *hotZero) Sit(l *reactor.Loop) (hot.Seat, error) {
	s := &zeroSeat{l: l}
	s.task.Run = s.end
	h.seats = append(h.seats, s)
	return hot.Seat(len(h.seats) - 1), nil
}

func (*hotZero) Leave(hot.Seat) {}

func (s *zeroSeat) end() {
	s.posted = false
	s.waiting, s.ending = s.ending[:0], s.waiting
	for _, o := range s.ending {
		o.e.Ended(o.n, nil)
	}
}

func (h *hotZero) Open(context.Context, *msg.Cred, id.Ino, bool, bool) (Handle, error) {
	return &hotZeroHandle{h: h}, nil
}

func (h *hotZeroHandle) BeginRead(s hot.Seat, p []byte, _ int64, e hot.Ender) bool {
	return h.begin(s, len(p), e)
}

func (h *hotZeroHandle) BeginWrite(s hot.Seat, p []byte, _ int64, e hot.Ender) bool {
	return h.begin(s, len(p), e)
}

func (h *hotZeroHandle) begin(i hot.Seat, n int, e hot.Ender) bool {
	s := h.h.seats[i]
	s.waiting = append(s.waiting, zeroOp{e, n})
	if !s.posted {
		s.posted = true
		s.l.Post(&s.task)
	}
	return true
}

// failSit is a backend that no loop can sit with.
type failSit struct{ *hotFS }

func (failSit) Sit(*reactor.Loop) (hot.Seat, error) { return 0, fserr.Unavailable }
