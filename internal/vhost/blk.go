package vhost

import (
	"fmt"

	"varve/internal/block"
	"varve/internal/fserr"
)

// Types of requests of a virtio block device, and what they end with.
const (
	blkIn          = 0
	blkOut         = 1
	blkFlush       = 4
	blkGetID       = 8
	blkDiscard     = 11
	blkWriteZeroes = 13

	statusOK          = 0
	statusIOErr       = 1
	statusUnsupported = 2

	blkHead = 16 // 0 4 type  4 4 -  8 8 sector
	blkID   = 20
	unmap   = 1 // flag of a range of write zeroes
)

// req is a request of a queue, one for each head.
type req struct {
	q     *queue
	head  uint16
	busy  bool
	chain chain
	t     *table
	// data is what of the chain is neither head nor status.
	data   [][]byte
	status []byte
	n      int    // bytes of data
	buf    []byte // copy of it; nil: none
	op     block.Op
}

func newReq(q *queue, head uint16) *req {
	r := &req{q: q, head: head}
	r.op.Done = r.done
	return r
}

// begin finds out what the guest wants, and has it done. An error says that not even a status can be given.
func (r *req) begin() error {
	c := &r.chain
	if c.nOut < blkHead || c.nIn < 1 {
		return fmt.Errorf("%w: a request with %d bytes to read and %d to fill", ErrProtocol, c.nOut, c.nIn)
	}
	last := len(c.in) - 1
	k := len(c.in[last]) - 1
	r.status, c.in[last] = c.in[last][k:], c.in[last][:k]
	in := c.in
	if k == 0 {
		in = in[:last]
	}
	var head [blkHead]byte
	out := cut(c.out, blkHead, head[:])
	nIn, nOut := c.nIn-1, c.nOut-blkHead
	kind, at := le.Uint32(head[:]), le.Uint64(head[8:])
	d := r.q.d
	r.data, r.n = nil, 0
	r.op.FUA, r.op.NoHole = false, false
	switch {
	case kind == blkIn:
		r.data, r.n, r.op.Kind = in, nIn, block.Read
	case kind == blkOut:
		r.data, r.n, r.op.Kind = out, nOut, block.Write
		r.op.FUA = d.features.Load()&featFlush == 0 // the guest has no way to flush
	case kind == blkFlush:
		if d.s.lost.CompareAndSwap(true, false) {
			r.end(statusIOErr, 0)
			return nil
		}
		r.op.Kind = block.Flush
		d.disk.Start(r.q.l.Loop, &r.op)
		return nil
	case kind == blkGetID:
		id := make([]byte, blkID)
		copy(id, d.s.o.Serial)
		n := min(blkID, nIn)
		scatter(in, id[:n])
		r.end(statusOK, n)
		return nil
	case kind == blkDiscard || kind == blkWriteZeroes:
		r.space(kind, out, nOut)
		return nil
	default:
		r.end(statusUnsupported, 0)
		return nil
	}
	switch capacity := uint64(d.size / sector); {
	case r.n%sector != 0 || r.n > maxRequest || at > capacity || uint64(r.n/sector) > capacity-at:
		r.end(statusIOErr, 0)
	case kind == blkOut && d.readOnly:
		r.end(statusIOErr, 0)
	case r.n == 0:
		r.end(statusOK, 0)
	default:
		r.op.Off = int64(at) * sector
		r.transfer()
	}
	return nil
}

// space begins a discard or write zeroes, of one range.
func (r *req) space(kind uint32, out [][]byte, n int) {
	d := r.q.d
	var p [16]byte // 0 8 sector  8 4 sectors  12 4 flags
	if n != len(p) || d.readOnly {
		r.end(statusUnsupported, 0)
		return
	}
	cut(out, n, p[:])
	at, count, flags := le.Uint64(p[:]), uint64(le.Uint32(p[8:])), le.Uint32(p[12:])
	limit, known := uint64(maxDiscard), uint32(0)
	r.op.Kind = block.Trim
	if kind == blkWriteZeroes {
		limit, known = maxZero, unmap
		r.op.Kind, r.op.NoHole = block.Zero, flags&unmap == 0
	}
	capacity := uint64(d.size / sector)
	switch {
	case flags&^known != 0:
		r.end(statusUnsupported, 0)
	case at > capacity || count > capacity-at || count > limit/sector:
		r.end(statusIOErr, 0)
	case count == 0:
		r.end(statusOK, 0)
	default:
		r.op.Off, r.op.N, r.op.FUA = int64(at)*sector, int64(count)*sector, d.features.Load()&featFlush == 0
		d.disk.Start(r.q.l.Loop, &r.op)
	}
}

// transfer begins a read or write, when there is memory for it.
func (r *req) transfer() {
	if r.op.Kind == block.Read && len(r.data) == 1 {
		r.op.P = r.data[0]
	} else if r.buf = r.q.l.Get(r.n); r.buf == nil {
		r.q.waiting = r
		r.q.l.waiting = append(r.q.l.waiting, r.q)
		return
	} else {
		r.op.P = r.buf
		if r.op.Kind == block.Write {
			gather(r.buf, r.data)
		}
	}
	r.q.d.disk.Start(r.q.l.Loop, &r.op)
}

// done is told the outcome.
func (r *req) done(err error) {
	status, n := uint8(statusOK), 0
	switch {
	case err != nil && fserr.Of(err) != fserr.Stale && r.q.log.p != nil && r.q.d.s.gaveUp.Load():
		r.wrote()
		r.forget() // it stays marked
		return
	case err == nil && r.op.Kind == block.Read:
		n = r.n
		if r.buf != nil {
			scatter(r.data, r.buf)
		}
	case err != nil && fserr.Of(err) == fserr.NotSupported:
		status = statusUnsupported
		r.q.d.failed(r, err)
	case err != nil:
		status = statusIOErr
		r.q.d.failed(r, err)
	}
	r.end(status, n)
}

// end tells the guest, with n bytes of data filled.
func (r *req) end(status uint8, n int) {
	r.status[0] = status
	r.wrote()
	r.q.end(r.head, uint32(n)+1)
	r.forget()
}

// forget ends a request.
func (r *req) forget() {
	q := r.q
	if r.buf != nil {
		q.l.Put(r.buf)
		r.buf = nil
	}
	r.data, r.status, r.op.P = nil, nil, nil
	r.chain.reset()
	r.busy = false
	q.underWay--
	t := r.t
	r.t = nil
	q.d.letGo(t)
	q.settled()
	q.l.feed()
}
