package journal

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"varve/internal/disk"
	"varve/internal/id"
)

// progressStep is how many bytes Verify and Dump read, about, between two calls of progress.
const progressStep = 4 << 20

// Report is what Verify found.
type Report struct {
	Records     uint64
	First, Last id.Index // zero if there are no records
	Segments    int
	Sealed      int // of them
	Checkpoints int
	Bytes       int64 // of segments
	SealedBytes int64 // of those that are sealed
	SealedFrom  int64 // what those were before
	Gaps        int   // holes that Reset left
	Torn        int64 // bytes at the end of the last segment that recovery would cut off
}

// Verify reads all segments and checkpoints of a journal that is not open for writing, and changes
// nothing. It checks every CRC, the chain of hashes, that indexes follow one another, that block tables and footers
// say what the blocks hold, and that checkpoints stand where the journal was. Every byte is under a checksum, so damage
// of any byte is found, but for the last records where nothing says that they were on stable media (Torn). Nothing can find
// that whole segments are missing at the start, which may have been dropped, or records at the end that no checkpoint and
// no sealed segment stands behind. Progress, if not nil, is called now and then with the bytes read and to be read. With an error,
// which says what may be done about it, the report says how far it came.
func Verify(o Options, progress func(done, total int64)) (Report, error) {
	var rep Report
	o.ReadOnly = true
	o, err := o.withDefaults()
	if err != nil {
		return rep, err
	}
	l, err := list(&o)
	if err != nil {
		return rep, err
	}
	if len(l.segments) == 0 && len(l.sealed) == 0 {
		return rep, fmt.Errorf("%s: no segments: %w", o.Dir, ErrNotFound)
	}
	v := &verifier{o: &o, rep: &rep, chain: newChainer(), meter: meter{progress: progress}}
	if err := v.meter.measure(&o, l); err != nil {
		return rep, err
	}
	for _, index := range l.checkpoints {
		at, err := v.readCheckpoint(index)
		if err != nil {
			return rep, hint(err, "remove that file: an older checkpoint, or the first record, and the records from there on do as well; "+
				"if there are none, copy it from another server")
		}
		v.checkpoints = append(v.checkpoints, at)
		rep.Checkpoints++
	}
	const fromOthers = "the other servers have the same records: restore the file from a copy, " +
		"or stop this server, move its directory away and join it again"
	for _, first := range l.firsts() {
		if err := v.segment(l, first); err != nil {
			return rep, hint(err, fromOthers)
		}
	}
	if err := v.checkEnd(l); err != nil {
		return rep, hint(err, fromOthers)
	}
	v.meter.finish()
	return rep, nil
}

// hint adds what may be done to an error about damage.
func hint(err error, what string) error {
	if errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("%w; %s", err, what)
	}
	return err
}

// meter tells progress in bytes.
type meter struct {
	done, told, total int64
	progress          func(done, total int64)
}

// measure adds up the files of l.
func (m *meter) measure(o *Options, l listing) error {
	if m.progress == nil {
		return nil
	}
	for _, kind := range []struct {
		all  []id.Index
		name func(id.Index) string
	}{{l.segments, segmentName}, {l.sealed, sealedName}, {l.checkpoints, checkpointName}} {
		for _, index := range kind.all {
			info, err := o.FS.Stat(filepath.Join(o.Dir, kind.name(index)))
			if err != nil {
				return err
			}
			m.total += info.Size()
		}
	}
	m.progress(0, m.total)
	return nil
}

// add counts n bytes.
func (m *meter) add(n int64) {
	m.done += n
	if m.progress != nil && m.done-m.told >= progressStep {
		m.told = m.done
		m.progress(min(m.done, m.total), m.total)
	}
}

func (m *meter) finish() {
	if m.progress != nil {
		m.progress(m.total, m.total)
	}
}

type verifier struct {
	o           *Options
	rep         *Report
	chain       *chainer
	at          Position
	checkpoints []Position // ascending
	meter       meter
	scanner     scanner
	buf         []byte
	quiet       bool // neither count records nor compare checkpoints
}

// segment verifies one segment, which begins after v.at.
func (v *verifier) segment(l listing, first id.Index) error {
	_, sealed := slices.BinarySearch(l.sealed, first)
	_, open := slices.BinarySearch(l.segments, first)
	var s *segment
	var err error
	if sealed {
		s, err = readSealed(v.o, first)
	} else {
		s, err = readSegment(v.o, first)
	}
	if err != nil {
		return err
	}
	at := s.header.at
	switch {
	case v.rep.Segments == 0: // what was before it is gone
	case s.gap() && at.Index > v.at.Index:
		v.rep.Gaps++
	case at != v.at:
		return fmt.Errorf("%s: offset 32: position of the record before: want %+v, got %+v: %w", s.path, v.at, at, ErrCorrupt)
	}
	if v.rep.Segments == 0 && s.gap() && at.Index > 0 {
		v.rep.Gaps++
	}
	v.rep.Segments++
	v.rep.Bytes += s.size
	v.at = at
	if err := v.checkpoint(s.path); err != nil {
		return err
	}
	if !sealed {
		return v.open(s, first == last(l.segments) && first > last(l.sealed))
	}
	v.rep.Sealed++
	v.rep.SealedBytes += s.size
	v.rep.SealedFrom += s.seal.open
	if err := v.sealed(s); err != nil || !open {
		return err
	}
	return v.leftOver(s)
}

// last returns the last of all, 0 if there is none.
func last(all []id.Index) id.Index {
	if len(all) == 0 {
		return 0
	}
	return all[len(all)-1]
}

// leftOver verifies the open form of s, which was being removed when the process ended.
func (v *verifier) leftOver(s *segment) error {
	o, err := readSegment(v.o, s.first())
	if err != nil {
		return err
	}
	if o.header != s.header {
		return fmt.Errorf("%s: header: want %+v as in the sealed segment, got %+v: %w", o.path, s.header, o.header, ErrCorrupt)
	}
	w := &verifier{o: v.o, chain: v.chain, at: s.header.at, quiet: true, rep: new(Report), meter: v.meter}
	err = w.open(o, false)
	v.meter = w.meter
	if err == nil && w.at != v.at {
		err = fmt.Errorf("%s: ends at %+v, the sealed segment at %+v: %w", o.path, w.at, v.at, ErrCorrupt)
	}
	return err
}

// open verifies a segment that is not sealed. If it is the last one its tail may be torn.
func (v *verifier) open(s *segment, isLast bool) error {
	f, err := v.o.FS.Open(s.path, disk.ReadOnly)
	if err != nil {
		return err
	}
	defer f.Close()
	end := s.size
	if isLast {
		var torn error
		if _, end, torn, err = scanLast(s, f, nil); err != nil {
			return err
		}
		if torn != nil {
			v.rep.Torn = s.size - end
		}
	}
	v.scanner.reset(s.path, f, headerSize, end)
	v.meter.add(headerSize)
	for {
		off := v.scanner.off
		raw, err := v.scanner.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if v.at, err = v.chain.follow(s.path, off, v.at, raw); err != nil {
			return err
		}
		if err := v.record(s.path); err != nil {
			return err
		}
		v.meter.add(int64(len(raw)))
	}
}

// record counts the record at v.at.
func (v *verifier) record(name string) error {
	if v.quiet {
		return nil
	}
	if v.rep.Records == 0 {
		v.rep.First = v.at.Index
	}
	v.rep.Records++
	v.rep.Last = v.at.Index
	return v.checkpoint(name)
}

// sealed verifies a sealed segment.
func (v *verifier) sealed(s *segment) error {
	f, err := v.o.FS.Open(s.path, disk.ReadOnly)
	if err != nil {
		return err
	}
	defer f.Close()
	table, err := readTable(s, f)
	if err != nil {
		return err
	}
	b := blocks{table: table, chain: v.chain}
	if err := b.reset(s.path, f, s.seal, s.first()); err != nil {
		return err
	}
	v.meter.add(headerSize + footerSize + int64(len(table))*blockEntry)
	var times, all span
	open, count := int64(headerSize), 0
	for {
		rec, err := b.record()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		v.at = b.position()
		times.add(rec.Time, count == 0)
		all.add(rec.Time, open == headerSize)
		open += recordSize(&rec)
		count++
		if err := v.record(s.path); err != nil {
			return err
		}
		if b.pos < len(b.raw) {
			continue
		}
		x, end := &table[b.next-1], &s.seal.last
		if b.next < len(table) {
			end = &table[b.next].at
		}
		if v.at != *end || times != x.times {
			return fmt.Errorf("%s: offset %d: block: the table says that it ends at %+v, times %+v; it does at %+v, times %+v: %w",
				s.path, x.off, *end, x.times, v.at, times, ErrCorrupt)
		}
		v.meter.add(int64(x.size))
		count = 0
	}
	if all != s.seal.times || open != s.seal.open {
		return fmt.Errorf("%s: footer: want times %+v and %d bytes before sealing, got %+v and %d: %w", s.path, all, open, s.seal.times, s.seal.open, ErrCorrupt)
	}
	return nil
}

// verifySealed verifies one sealed segment by itself.
func verifySealed(s *segment, o *Options) error {
	v := &verifier{o: o, chain: newChainer(), rep: new(Report), quiet: true}
	return v.sealed(s)
}

// checkpoint compares the checkpoint at v.at, if there is one, with it.
func (v *verifier) checkpoint(name string) error {
	i, ok := slices.BinarySearchFunc(v.checkpoints, v.at.Index, func(p Position, x id.Index) int {
		return int(min(max(int64(p.Index)-int64(x), -1), 1))
	})
	if ok && v.checkpoints[i] != v.at {
		return fmt.Errorf("%s: position of %s: want %+v, got %+v: %w", name, checkpointName(v.at.Index), v.at, v.checkpoints[i], ErrCorrupt)
	}
	return nil
}

// checkEnd finds records that are missing at the end.
func (v *verifier) checkEnd(l listing) error {
	if len(l.sealed) > 0 && last(l.sealed) >= last(l.segments) {
		return fmt.Errorf("%s: the last segment is sealed: want %s behind it: %w", sealedName(last(l.sealed)), segmentName(v.at.Index+1), ErrCorrupt)
	}
	n := len(v.checkpoints)
	if n == 0 || v.checkpoints[n-1].Index <= v.at.Index {
		return nil
	}
	h, err := readCheckpointHeader(v.o, v.checkpoints[n-1].Index)
	if err != nil {
		return err
	}
	if h.flags&flagForeign == 0 {
		return fmt.Errorf("%s: journal ends early: want record %d, got %d as the last: %w",
			checkpointName(h.at.Index), h.at.Index, v.at.Index, ErrCorrupt)
	}
	return nil
}

func (v *verifier) readCheckpoint(index id.Index) (Position, error) {
	at, r, err := openCheckpoint(v.o, index)
	if err != nil {
		return at, err
	}
	defer r.Close()
	if v.buf == nil {
		v.buf = make([]byte, 32<<10)
	}
	for {
		n, err := r.Read(v.buf)
		v.meter.add(int64(n))
		if err == io.EOF {
			return at, nil
		}
		if err != nil {
			return at, err
		}
	}
}
