package vhost

import (
	"context"
	"errors"
	"fmt"

	"varve/internal/block"
	"varve/internal/fserr"
)

// The image is held while a queue runs, from the first one's begin to the last one's end: so a server to which a guest is being moved has not opened it before the
// guest runs there, and the one that the guest leaves has flushed it and given it back before the front end hears that the last queue has ended.

// attach opens the image, if it is not.
func (d *device) attach() error {
	if d.disk != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(d.s.ctx, openTimeout)
	defer cancel()
	file, size, err := d.s.open(ctx, d.readOnly)
	if err != nil {
		return fmt.Errorf("open the image: %w", err)
	}
	if size < d.size {
		d.s.log.Warn("the image is shorter than what the guest was told; its end reads as zeros", "size", size, "told", d.size)
	}
	d.file, d.disk = file, block.NewDisk(file)
	d.s.using(d.disk)
	return nil
}

// detach flushes the image and gives it back, if it is open. Preconditions: nothing of any queue is under way.
func (d *device) detach() error {
	if d.disk == nil {
		return nil
	}
	d.s.using(nil)
	file, disk := d.file, d.disk
	d.file, d.disk = nil, nil
	disk.Close()
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	var err error
	if disk.Wrote() {
		if err = file.Fsync(ctx, false); err != nil && fserr.Of(err) == fserr.IO {
			d.s.lost.Store(true) // the guest has not asked yet
		}
	}
	err = errors.Join(err, file.Release(ctx))
	d.s.closed(file)
	return err
}

// startQueue begins a queue whose kicks come by fd, with the image open.
func (d *device) startQueue(q *queue, fd int) error {
	if err := d.attach(); err != nil {
		setFD(&fd, -1)
		return err
	}
	var err error
	q.l.do(func() { err = q.setDescriptor(setVringKick, fd) })
	if err != nil && d.idle() {
		err = errors.Join(err, d.detach())
	}
	return err
}

// idle says that no queue runs, and nothing is under way.
func (d *device) idle() bool {
	idle := true
	d.each(func(q *queue) { idle = idle && !q.busy() })
	return idle
}

var errGaveUp = errors.New("this server is being stopped, and has given up what was under way")

// stopQueue ends a queue, when what is under way of it has ended, and answers how far it was read.
func (d *device) stopQueue(m *message) error {
	i, _, err := decodeState(m.body)
	if err != nil {
		return err
	}
	q, err := d.queue(i)
	if err != nil {
		return err
	}
	d.quiet(q)
	if d.s.gaveUp.Load() {
		return errGaveUp // what is marked would be missing where the guest goes on
	}
	var at uint16
	q.l.do(func() {
		at = q.lastAvail
		q.base = at
		setFD(&q.kick, -1)
		q.unmap()
	})
	if d.idle() {
		if err := d.dropLog(); err != nil {
			return err
		}
		if err := d.detach(); err != nil {
			return fmt.Errorf("flush the image and give it back: %w", err)
		}
	}
	return d.h.reply(m.request, le.AppendUint32(le.AppendUint32(nil, i), uint32(at)), -1)
}

// quiet stops a queue and waits until nothing of it is under way.
func (d *device) quiet(q *queue) {
	done := make(chan struct{})
	q.l.do(func() { q.stop(func() { close(done) }) })
	<-done
}
