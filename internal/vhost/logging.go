package vhost

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// A front end that moves its guest to another host copies the guest's memory while that runs, and wants to know which pages are written: it names a log, then
// asks for it by the feature featLogAll. Log and feature change on the threads of the queues, one after the other: what a queue writes after the answer is in the
// new log, and nothing is written to the one before. Where queues begin while a guest is being moved, the front end tells of the log last; until then they take
// nothing.

// setFeatures takes what the guest has agreed to, and whether writes to its memory are to be logged.
func (d *device) setFeatures(f uint64) error {
	if f&^d.offered != 0 {
		return fmt.Errorf("%w: features %#x, of which %#x were not offered", ErrProtocol, f, f&^d.offered)
	}
	if f&featLogAll != 0 && d.features.Load()&featLogAll == 0 {
		busy := false
		d.each(func(q *queue) { busy = busy || q.busy() })
		if d.log == nil && busy {
			return fmt.Errorf("%w: writes are to be logged while queues run, and there is no log", ErrProtocol)
		}
		if err := d.fits(d.log, d.table); err != nil {
			return err
		}
	}
	d.features.Store(f)
	if f&featLogAll == 0 {
		return d.dropLog()
	}
	d.each((*queue).relog)
	return nil
}

// fits refuses a log that has no bit for some of the guest's memory. Either may be nil.
func (d *device) fits(l *dirtyLog, t *table) error {
	if l != nil && t != nil && !l.covers(t) {
		return fmt.Errorf("%w: a log of %d pages is too small for the guest's memory", ErrProtocol, l.pages())
	}
	return nil
}

// logging says whether writes to the guest's memory are to be logged.
func (d *device) logging() bool { return d.features.Load()&featLogAll != 0 }

// setLog takes the log of written pages.
func (d *device) setLog(m *message) error {
	if len(m.body) != 16 {
		return fmt.Errorf("%w: a log of written pages told of in %d bytes, want 16", ErrProtocol, len(m.body))
	}
	fd, err := m.take()
	if err != nil {
		return err
	}
	if fd < 0 {
		return fmt.Errorf("%w: a log of written pages without a descriptor", ErrProtocol)
	}
	defer unix.Close(fd)
	l, err := mapLog(fd, le.Uint64(m.body), le.Uint64(m.body[8:]))
	if err != nil {
		return err
	}
	if err := d.fits(l, d.table); err != nil {
		_ = l.unmap()
		return err
	}
	old := d.log
	d.each(func(q *queue) {
		d.log = l
		q.relog()
	})
	if old != nil {
		return old.unmap()
	}
	return nil
}

// dropLog gives the log up: when none is wanted any more, and when the last queue has ended, since the front end then lets go of it.
func (d *device) dropLog() error {
	old := d.log
	d.each(func(q *queue) {
		d.log = nil
		q.relog()
	})
	if old == nil {
		return nil
	}
	return old.unmap()
}

// relog has a queue log from now on where the device says.
func (q *queue) relog() {
	q.dirty, q.unlogged = nil, false
	if q.d.logging() {
		q.dirty, q.unlogged = q.d.log, q.d.log == nil
	}
	if q.dirty != nil && q.t != nil && q.forgotten {
		q.forgotten = false
		q.t.markAll(q.dirty)
		q.d.s.log.Info("the guest is being moved to another host: all of its memory counts as written", "queue", q.index)
	}
	q.serve()
	q.settled()
}

// wroteUsed logs n bytes that were written into the used ring at off.
func (q *queue) wroteUsed(off, n int) {
	if q.dirty == nil {
		return
	}
	q.t.mark(q.dirty, q.used[off:][:n])
	if q.addr.logged {
		q.dirty.mark(q.addr.log+uint64(off), uint64(n))
	}
}

// wrote logs what a request may have written.
func (r *req) wrote() {
	l := r.q.dirty
	if l == nil {
		return
	}
	for _, p := range r.chain.in {
		r.t.mark(l, p)
	}
	r.t.mark(l, r.status)
}
