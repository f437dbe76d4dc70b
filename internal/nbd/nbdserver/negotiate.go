package nbdserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"varve/internal/fserr"
	"varve/internal/nbd"
	"varve/iouring/reactor"
)

var errLost = errors.New("the session behind the image was lost; the client may come again")

// flags takes the client's handshake flags.
func (d *conn) flags(p []byte) int {
	if len(p) < 4 {
		d.c.Need(4)
		return 0
	}
	f := binary.BigEndian.Uint32(p)
	if f&^(nbd.FixedNewstyle|nbd.NoZeroes) != 0 || f&nbd.FixedNewstyle == 0 {
		d.close(fmt.Errorf("%w: handshake flags %#x of a client, want the fixed newstyle", nbd.ErrProtocol, f))
		return 0
	}
	d.zeroes = f&nbd.NoZeroes == 0
	d.phase = atOptions
	return 4
}

// option takes one option with its data.
func (d *conn) option(p []byte) int {
	if d.skip > 0 {
		n := min(d.skip, int64(len(p)))
		d.skip -= n
		return int(n)
	}
	if len(p) < nbd.OptionSize {
		d.c.Need(nbd.OptionSize)
		return 0
	}
	h, err := nbd.DecodeOption(p)
	if err != nil {
		d.close(err)
		return 0
	}
	if d.options++; d.options > maxOptions {
		d.close(fmt.Errorf("%w: more than %d options", nbd.ErrProtocol, maxOptions))
		return 0
	}
	if h.Length > nbd.MaxOption {
		if h.Option == nbd.OptExportName {
			d.close(fmt.Errorf("%w: the name of an export with %d bytes", nbd.ErrProtocol, h.Length))
			return 0
		}
		d.skip = int64(h.Length)
		d.answer(h.Option, nbd.AnsTooBig, "")
		return nbd.OptionSize
	}
	n := nbd.OptionSize + int(h.Length)
	if len(p) < n {
		d.options--
		d.c.Need(n)
		return 0
	}
	d.choose(h.Option, p[nbd.OptionSize:n])
	return n
}

// answer ends an option; text is for people, with errors only.
func (d *conn) answer(o nbd.Option, a nbd.Answer, text string) {
	d.say(nbd.AppendAnswer(nil, o, a, []byte(text)))
}

// choose carries an option out. data is good until it returns.
func (d *conn) choose(o nbd.Option, data []byte) {
	s := d.l.s
	switch o {
	case nbd.OptExportName:
		if e := s.find(string(data)); e != nil {
			d.enter(o, e, nbd.Wish{})
			return
		}
		d.close(fmt.Errorf("%w: no export %.80q, and no way to say so in reply to this option", nbd.ErrProtocol, data))
	case nbd.OptAbort:
		d.c.Pause()
		if err := d.c.Send(&reactor.Send{Head: nbd.AppendAnswer(nil, o, nbd.AnsAck, nil), Done: func(error) { d.wind() }}); err != nil {
			d.close(err)
		}
	case nbd.OptList:
		if len(data) > 0 {
			d.answer(o, nbd.AnsInvalid, "data with a list of exports")
			return
		}
		var out []byte
		for _, e := range s.exports {
			out = nbd.AppendServer(out, e.name)
		}
		d.say(nbd.AppendAnswer(out, o, nbd.AnsAck, nil))
	case nbd.OptStructuredReply:
		if len(data) > 0 {
			d.answer(o, nbd.AnsInvalid, "data with structured replies")
			return
		}
		d.structured = true
		d.answer(o, nbd.AnsAck, "")
	case nbd.OptInfo, nbd.OptGo:
		w, err := nbd.DecodeWish(data)
		if err != nil {
			d.answer(o, nbd.AnsInvalid, err.Error())
			return
		}
		e := s.find(w.Export)
		switch {
		case e == nil:
			d.answer(o, nbd.AnsUnknown, "no such export")
		case o == nbd.OptInfo:
			d.tell(e, w)
		default:
			d.enter(o, e, w)
		}
	case nbd.OptListMetaContext, nbd.OptSetMetaContext:
		d.contexts(o, data)
	default: // TLS among them
		d.answer(o, nbd.AnsUnsupported, "")
	}
}

// contexts answers which kinds of block status there are, and agrees on those that are wanted.
func (d *conn) contexts(o nbd.Option, data []byte) {
	q, err := nbd.DecodeQuery(data)
	if err != nil {
		d.answer(o, nbd.AnsInvalid, err.Error())
		return
	}
	if o == nbd.OptSetMetaContext {
		d.status = nil
		if !d.structured {
			d.answer(o, nbd.AnsInvalid, "structured replies come first")
			return
		}
	}
	e := d.l.s.find(q.Export)
	if e == nil {
		d.answer(o, nbd.AnsUnknown, "no such export")
		return
	}
	match := o == nbd.OptListMetaContext && len(q.Queries) == 0
	for _, x := range q.Queries {
		match = match || x == nbd.BaseAllocation || x == "base:" && o == nbd.OptListMetaContext
	}
	var out []byte
	if match {
		id := uint32(0) // has no meaning in a list
		if o == nbd.OptSetMetaContext {
			d.status, id = e, statusContext
		}
		out = nbd.AppendContext(out, o, id, nbd.BaseAllocation)
	}
	d.say(nbd.AppendAnswer(out, o, nbd.AnsAck, nil))
}

// wait runs f, which may block, and then, on the thread, what f returned. Nothing is read of the client meanwhile.
func (d *conn) wait(f func(ctx context.Context) func()) {
	s := d.l.s
	d.busy = true
	d.l.StopTimer(&d.late)
	d.c.Pause()
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		ctx, cancel := context.WithTimeout(s.ctx, openTimeout)
		defer cancel()
		then := f(ctx)
		d.l.Do(func() {
			d.busy = false
			then()
			switch {
			case d.ended:
				d.finish()
			case d.phase == winding:
				d.wound()
			default:
				if d.phase != atWork {
					d.l.SetTimer(&d.late, s.o.Negotiation)
				}
				d.c.Resume()
			}
		})
	}()
}

// tell answers OptInfo.
func (d *conn) tell(e *export, w nbd.Wish) {
	d.wait(func(ctx context.Context) func() {
		size, err := e.image.Size(ctx)
		return func() {
			if err != nil {
				d.refuse(nbd.OptInfo, e, err)
				return
			}
			d.say(nbd.AppendAnswer(appendInfos(nil, nbd.OptInfo, e, e.offer(size, d.structured), w), nbd.OptInfo, nbd.AnsAck, nil))
		}
	})
}

// refuse says that an image cannot be had.
func (d *conn) refuse(o nbd.Option, e *export, err error) {
	d.l.s.log.Warn("an image cannot be opened", "export", e.name, "err", err)
	answer := nbd.AnsUnknown
	switch fserr.Of(err) {
	case fserr.NotExist, fserr.Stale:
	case fserr.Access, fserr.Perm, fserr.ReadOnly, fserr.Busy:
		answer = nbd.AnsPolicy
	default:
		answer = nbd.AnsPlatform
	}
	d.answer(o, answer, err.Error())
}

func appendInfos(b []byte, o nbd.Option, e *export, offer *nbd.Export, w nbd.Wish) []byte {
	b = nbd.AppendInfo(b, o, nbd.InfoExport, offer, "")
	b = nbd.AppendInfo(b, o, nbd.InfoBlockSize, offer, "")
	if w.Wants(nbd.InfoName) {
		b = nbd.AppendInfo(b, o, nbd.InfoName, offer, e.name)
	}
	if w.Wants(nbd.InfoDescribe) && e.description != "" {
		b = nbd.AppendInfo(b, o, nbd.InfoDescribe, offer, e.description)
	}
	return b
}

// enter opens the image and begins the transmission.
func (d *conn) enter(o nbd.Option, e *export, w nbd.Wish) {
	d.wait(func(ctx context.Context) func() {
		d.l.s.sweep(e)
		open, err := e.acquire(ctx)
		return func() {
			switch {
			case err != nil && o == nbd.OptExportName:
				d.close(fmt.Errorf("export %q: %w", e.name, err))
			case err != nil:
				d.refuse(o, e, err)
			default:
				d.transmit(o, open, w)
			}
		}
	})
}

// transmit begins the transmission of an open image.
func (d *conn) transmit(o nbd.Option, open *opened, w nbd.Wish) {
	d.open = open // given back with the connection
	if d.ended || d.phase == winding || d.c.Closed() {
		d.leave()
		return
	}
	d.offer = open.e.offer(open.size, d.structured)
	if d.status != open.e {
		d.status = nil
	}
	d.phase = atWork
	if o == nbd.OptExportName {
		d.say(nbd.AppendExport(nil, d.offer, d.zeroes))
		return
	}
	d.say(nbd.AppendAnswer(appendInfos(nil, o, open.e, d.offer, w), o, nbd.AnsAck, nil))
}
