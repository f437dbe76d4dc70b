package vhost

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/block"
)

// device is one front end's. Its goroutine reads messages; what concerns a queue is done on that queue's thread. Fields that queues look at change only while
// none of them runs, or on their threads.
type device struct {
	s        *Server
	h        channel
	size     int64 // bytes; whole blocks
	readOnly bool

	disk *block.Disk // nil: not open
	file block.OpenFile

	features   atomic.Uint64 // that the guest has taken
	protocol   uint64
	offered    uint64
	table      *table
	queues     []*queue
	inflight   []byte
	inflightAs inflightDesc
	log        *dirtyLog // nil: none

	logMu  sync.Mutex
	logged time.Time
}

// newDevice makes what a front end sees of the image, without opening it.
func newDevice(ctx context.Context, s *Server, h channel) (*device, error) {
	size, err := s.o.Image.Size(ctx)
	if err != nil {
		return nil, err
	}
	d := &device{s: s, h: h, size: size - size%int64(s.o.BlockSize), readOnly: s.o.ReadOnly}
	if d.size != size {
		s.log.Warn("the image is not of whole blocks; its end is not shown", "size", size, "shown", d.size)
	}
	d.offered = featSizeMax | featSegMax | featBlockSize | featFlush | featTopology | featIndirect | featEventIndex | featProtocol | featVersion1 | featLogAll
	if s.o.Queues > 1 {
		d.offered |= featQueues
	}
	if d.readOnly {
		d.offered |= featReadOnly
	} else {
		d.offered |= featDiscard | featWriteZeroes
	}
	for i := range s.o.Queues {
		d.queues = append(d.queues, newQueue(d, s.loops[i%len(s.loops)], i))
	}
	return d, nil
}

// serve answers messages until the front end goes.
func (d *device) serve() error {
	for {
		m, err := d.h.read()
		if err != nil {
			return err
		}
		err = d.handle(&m)
		m.drop()
		if err != nil {
			return fmt.Errorf("request %d: %w", m.request, err)
		}
	}
}

// handle carries a message out. An error ends the connection.
func (d *device) handle(m *message) error {
	number := func(n uint64) error { return d.h.reply(m.request, le.AppendUint64(nil, n), -1) }
	switch m.request { // those that have an answer of their own
	case getFeatures:
		return number(d.offered)
	case getProtocolFeatures:
		return number(protoOffered)
	case getQueueNum:
		return number(uint64(len(d.queues)))
	case getConfig:
		return d.config(m.body)
	case getVringBase:
		return d.stopQueue(m)
	case getInflightFD:
		want, err := decodeInflight(m.body)
		if err != nil {
			return err
		}
		fd, desc, err := newInflight(want.queues, want.queueSize)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return d.h.reply(m.request, desc.append(nil), fd)
	}
	err := d.change(m)
	if m.flags&flagNeedReply != 0 && d.protocol&protoReplyAck != 0 {
		failed := uint64(0)
		if err != nil {
			failed = 1
			d.s.log.Warn("a request of the front end was refused", "request", m.request, "err", err)
		}
		return number(failed)
	}
	if err == nil && m.request == setLogBase && d.protocol&protoLog != 0 {
		return number(0) // always has an answer
	}
	return err
}

// change carries a message out that has no answer.
func (d *device) change(m *message) (err error) {
	switch m.request {
	case setOwner, resetOwner, setConfig:
		return nil // there is nothing to own, and nothing that can be set
	case setFeatures:
		f, err := decodeU64(m.body)
		if err != nil {
			return err
		}
		return d.setFeatures(f)
	case setProtocolFeatures:
		if d.protocol, err = decodeU64(m.body); err != nil {
			return err
		}
	case setMemTable:
		return d.setMemory(m)
	case setInflightFD:
		return d.setInflight(m)
	case setLogBase:
		return d.setLog(m)
	default:
		return d.changeQueue(m)
	}
	return nil
}

// changeQueue carries a message out about one queue.
func (d *device) changeQueue(m *message) error {
	switch m.request {
	case setVringKick, setVringCall, setVringErr:
		v, err := decodeU64(m.body)
		if err != nil {
			return err
		}
		q, err := d.queue(uint32(v & 0xff))
		if err != nil {
			return err
		}
		fd, err := m.take()
		if err != nil {
			return err
		}
		if fd >= 0 && v&noFD != 0 || fd < 0 && v&noFD == 0 {
			setFD(&fd, -1)
			return fmt.Errorf("%w: the descriptor of queue %d is missing, or not announced", ErrProtocol, q.index)
		}
		if m.request == setVringKick {
			return d.startQueue(q, fd)
		}
		q.l.do(func() { err = q.setDescriptor(m.request, fd) })
		return err
	case setVringAddr:
		i, a, err := decodeAddr(m.body)
		if err != nil {
			return err
		}
		q, err := d.queue(i)
		if err != nil {
			return err
		}
		q.l.do(func() { q.addr = a })
		return nil
	case setVringNum, setVringBase, setVringEnable:
		i, v, err := decodeState(m.body)
		if err != nil {
			return err
		}
		q, err := d.queue(i)
		if err != nil {
			return err
		}
		q.l.do(func() { err = q.set(m.request, v) })
		return err
	}
	return fmt.Errorf("%w: unknown", ErrProtocol)
}

// set changes a number of a queue.
func (q *queue) set(what request, v uint32) error {
	if what == setVringEnable {
		q.disabled = v == 0
		q.serve()
		return nil
	}
	switch {
	case q.busy():
		return fmt.Errorf("%w: queue %d is running", ErrProtocol, q.index)
	case what == setVringBase && v <= 1<<16-1:
		q.base, q.lastAvail = uint16(v), uint16(v) // which is the answer if it is stopped before it has begun
	case what == setVringNum && v >= 2 && v <= maxQueueSize && v&(v-1) == 0:
		q.num = uint16(v)
	default:
		return fmt.Errorf("%w: queue %d: %d, want a power of two up to %d for its size, 16 bits for its base", ErrProtocol, q.index, v, maxQueueSize)
	}
	return nil
}

// setDescriptor takes a descriptor of a queue. That of kicks begins it.
func (q *queue) setDescriptor(what request, fd int) error {
	switch what {
	case setVringCall:
		setFD(&q.call, fd)
		if q.running {
			q.interrupt() // one that the other descriptor got may not have been seen
		}
	case setVringErr:
		setFD(&q.err, fd)
	case setVringKick:
		if q.busy() {
			setFD(&fd, -1)
			return fmt.Errorf("%w: queue %d is running", ErrProtocol, q.index)
		}
		if fd < 0 {
			return fmt.Errorf("%w: queue %d without a descriptor for kicks", ErrProtocol, q.index)
		}
		setFD(&q.kick, fd)
		return q.start()
	}
	return nil
}

func (d *device) queue(i uint32) (*queue, error) {
	if int64(i) >= int64(len(d.queues)) {
		return nil, fmt.Errorf("%w: queue %d of %d", ErrProtocol, i, len(d.queues))
	}
	return d.queues[i], nil
}

// each runs f for every queue, on its thread.
func (d *device) each(f func(q *queue)) {
	for _, q := range d.queues {
		q.l.do(func() { f(q) })
	}
}

// setMemory takes another table of the guest's memory.
func (d *device) setMemory(m *message) error {
	all, err := decodeMemory(m.body)
	if err != nil {
		return err
	}
	t, err := mapTable(all, m.fds)
	if err != nil {
		return err
	}
	if d.logging() {
		if err := d.fits(d.log, t); err != nil {
			d.letGo(t)
			return err
		}
	}
	old := d.table
	d.each(func(q *queue) {
		d.table = t // the first of them; the others find it there
		q.remap(t)
	})
	d.letGo(old)
	return nil
}

// setInflight takes the memory that keeps what is under way.
func (d *device) setInflight(m *message) error {
	desc, err := decodeInflight(m.body)
	if err != nil {
		return err
	}
	fd, err := m.take()
	if err != nil {
		return err
	}
	if fd < 0 {
		return fmt.Errorf("%w: memory for requests under way without a descriptor", ErrProtocol)
	}
	defer unix.Close(fd)
	running := false
	d.each(func(q *queue) { running = running || q.busy() })
	if running {
		return fmt.Errorf("%w: memory for requests under way while queues run", ErrProtocol)
	}
	p, err := mapInflight(fd, desc)
	if err != nil {
		return err
	}
	old := d.inflight
	d.each(func(q *queue) {
		q.log = inflight{}
		d.inflight, d.inflightAs = p, desc
	})
	if old != nil {
		return unix.Munmap(old)
	}
	return nil
}

// inflightOf returns a queue's part of the memory for what is under way; nil if there is none.
func (d *device) inflightOf(i int, num uint16) []byte {
	if d.inflight == nil || i >= int(d.inflightAs.queues) || num > d.inflightAs.queueSize {
		return nil
	}
	n := inflightSize(d.inflightAs.queueSize)
	return d.inflight[i*n:][:n]
}

// config answers a read of the configuration space.
func (d *device) config(p []byte) error {
	if len(p) < 12 {
		return fmt.Errorf("%w: a read of the configuration in %d bytes", ErrProtocol, len(p))
	}
	off, n := le.Uint32(p), le.Uint32(p[4:])
	if n > 256 || off > 256 || len(p) != 12+int(n) {
		return d.h.reply(getConfig, nil, -1) // as the protocol says that it failed
	}
	space := make([]byte, 512)
	copy(space, config{d.size, uint32(d.s.o.BlockSize), uint16(len(d.queues))}.encode())
	return d.h.reply(getConfig, append(append([]byte(nil), p[:12]...), space[off:off+n]...), -1)
}

// letGo releases a table.
func (d *device) letGo(t *table) {
	if t == nil {
		return
	}
	if err := t.release(); err != nil {
		d.s.log.Error("memory of the guest stays mapped", "err", err)
	}
}

// failed logs a request that failed, once a second at most.
func (d *device) failed(r *req, err error) {
	d.logMu.Lock()
	defer d.logMu.Unlock()
	if now := time.Now(); now.Sub(d.logged) >= time.Second {
		d.logged = now
		hint := ""
		if d.disk != nil && d.disk.Dead() {
			hint = "the session of the image was lost: connect again, or start this server again"
		}
		d.s.log.Warn("a request failed", "kind", r.op.Kind, "offset", r.op.Off, "bytes", max(r.n, int(r.op.N)), "err", err, "hint", hint)
	}
}

// close ends the device: what is under way ends first. The image is flushed and given back.
func (d *device) close() error {
	for _, q := range d.queues {
		d.quiet(q)
	}
	d.each(func(q *queue) {
		setFD(&q.kick, -1)
		setFD(&q.call, -1)
		setFD(&q.err, -1)
		q.unmap()
	})
	d.letGo(d.table)
	errs := []error{d.detach(), d.dropLog()}
	if d.inflight != nil {
		errs = append(errs, unix.Munmap(d.inflight))
	}
	return errors.Join(errs...)
}
