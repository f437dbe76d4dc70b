package client

import (
	"fmt"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/readcache"
	"varve/internal/wire"
	"varve/iouring/reactor"
)

// hotCached is a read of the read cache on the loop's ring. It has memory of its own, as hotDisk has.
type hotCached struct {
	op   *hotRead // who waits for it; nil: nobody any more
	st   *seat
	f    *readcache.File
	read readcache.Op
	file reactor.File
	ring reactor.Op
	buf  []byte
	next *hotCached
}

func (st *seat) takeCached() *hotCached {
	d := st.cached
	if d == nil {
		d = &hotCached{st: st}
		d.ring.Done = d.done
		return d
	}
	st.cached, d.next = d.next, nil
	st.spare[3]--
	return d
}

func (d *hotCached) free() {
	wire.Recycle(d.buf)
	d.buf, d.op, d.f = nil, nil, nil
	if st := d.st; st.spare[3] < maxSpare {
		d.next, st.cached = st.cached, d
		st.spare[3]++
	}
}

// fromCache begins to read from the read cache, if it has all of it. wait: it has, but in more pieces than one, which a goroutine reads.
func (op *hotRead) fromCache() (begun, wait bool) {
	f := op.in.believed()
	if f == nil {
		return false, false
	}
	first := blocksOf(op.loc, op.whole.Offset)
	if op.whole.Offset/readcache.SlotBytes != (op.whole.Offset+op.whole.Length-1)/readcache.SlotBytes {
		return false, f.Has(first, int(op.whole.Length/chunk.BlockSize))
	}
	d := op.st.takeCached()
	d.buf = wire.Buffer(int(op.whole.Length))
	if !f.Begin(&d.read, first, d.buf) {
		d.free()
		return false, false
	}
	if d.read.FD < 0 {
		d.read.Finish(0, fserr.Unavailable)
		d.free()
		return false, true
	}
	d.op, op.cached, d.f = op, d, f
	d.file = op.st.l.File(d.read.FD)
	d.file.Read(&d.ring, d.read.Dst, d.read.Offset)
	return true, false
}

// done is called when the disk has answered.
func (d *hotCached) done(n int, err error) {
	good := d.read.Finish(n, err)
	op := d.op
	if op == nil { // it comes too late
		d.free()
		return
	}
	op.cached = nil
	if good {
		copy(op.p, d.buf[op.pc.Offset-op.whole.Offset:])
		d.f.Hit(len(op.p))
	}
	d.free()
	if good {
		op.done(len(op.p))
	} else if !op.fromDisk(op.srv) && !op.fromServer() {
		op.leave(nil)
	}
}

// abandon leaves a read to end by itself. The cache is not used any more.
func (d *hotCached) abandon() {
	c := d.op.in.s.c
	d.op = nil
	c.o.ReadCache.GiveUp(fmt.Errorf("a read takes longer than %v: %w", c.o.ReadTimeout, fserr.Timeout))
}
