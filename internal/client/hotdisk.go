package client

import (
	"varve/internal/chunk"
	"varve/internal/local"
	"varve/internal/wire"
	"varve/iouring/reactor"
)

// hotDisk is a read of a chunk file of this host, on the loop's ring. It has memory of its own: a disk that does not answer keeps that, and holds up
// nobody. So its bytes are copied once.
type hotDisk struct {
	op    *hotRead // who waits for it; nil: nobody any more
	st    *seat
	l     *bypass
	g     *grant
	read  local.Op
	file  reactor.File
	ring  reactor.Op
	buf   []byte
	next  *hotDisk
	empty reactor.Task // nothing was to be read
}

func (st *seat) takeDisk() *hotDisk {
	d := st.disks
	if d == nil {
		d = &hotDisk{st: st}
		d.ring.Done = d.done
		d.empty.Run = func() { d.done(0, nil) }
		return d
	}
	st.disks, d.next = d.next, nil
	st.spare[2]--
	return d
}

func (d *hotDisk) free() {
	wire.Recycle(d.buf)
	d.buf, d.op, d.l, d.g = nil, nil, nil, nil
	if st := d.st; st.spare[2] < maxSpare {
		d.next, st.disks = st.disks, d
		st.spare[2]++
	}
}

// fromDisk begins to read from a replica's file, if it is on this host. What is missing for that is asked for meanwhile.
func (op *hotRead) fromDisk(srv *server) bool {
	l := srv.bypass.Load()
	if l == nil {
		srv.seek()
		return false
	}
	if l.stuck.Load() > 0 {
		return false
	}
	g := l.find(op.loc.chunk, op.loc.epoch)
	if g == nil {
		return false
	}
	d := op.st.takeDisk()
	d.l, d.g = l, g
	d.buf = wire.Buffer(int(op.whole.Length))
	if err := g.Begin(&d.read, d.buf, op.whole.Offset/chunk.BlockSize); err != nil {
		d.free()
		l.judge(err, op.loc.chunk, g, len(op.p))
		return false
	}
	d.op, op.disk = op, d
	srv.inFlight.Add(1)
	if len(d.read.Dst) == 0 {
		op.st.l.Post(&d.empty)
		return true
	}
	d.file = op.st.l.File(d.read.FD)
	d.file.Read(&d.ring, d.read.Dst, d.read.Offset)
	return true
}

// done is called when the disk has answered.
func (d *hotDisk) done(n int, err error) {
	if d.st.deaf && d.read.Dst != nil {
		d.next, d.st.hang = d.st.hang, d
		return
	}
	err = d.read.Finish(n, err)
	op := d.op
	if op == nil { // it comes too late
		d.l.stuck.Add(-1)
		d.free()
		return
	}
	op.disk = nil
	op.srv.inFlight.Add(-1)
	good := d.l.judge(err, op.loc.chunk, d.g, len(op.p))
	if good {
		op.in.cache(op.loc, op.whole, d.buf, nil)
		copy(op.p, d.buf[op.pc.Offset-op.whole.Offset:])
	}
	d.free()
	if good {
		op.done(len(op.p))
	} else if !op.fromServer() {
		op.leave(nil)
	}
}

// abandon leaves a read to end by itself, as nobody can end it. Until then the bypass is not used.
func (d *hotDisk) abandon() {
	d.l.stuck.Add(1)
	d.op.srv.inFlight.Add(-1)
	d.op = nil
}
