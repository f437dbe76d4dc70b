package journal

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"

	"varve/internal/disk"
	"varve/internal/id"
)

// sealer compresses segments that are full, in a goroutine of its own.
//
// Every step can be the last one: the sealed segment is written under a temporary name, which Open removes; it takes its name
// when it is whole, on stable media and was decoded again, and then Open, finding both, removes the other. Nothing that is
// not on stable media is ever the only copy. A full disk is no failure: the segment stays as it is, until later.
type sealer struct {
	wake chan struct{} // holds one
	stop chan struct{}
	done chan struct{}
}

func newSealer() *sealer {
	return &sealer{wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
}

// nudge says that there may be something to seal. It may be called on nil.
func (w *sealer) nudge() {
	if w == nil {
		return
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// rest waits for d and reports whether the sealer is to go on.
func (w *sealer) rest(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-w.stop:
		return false
	}
}

var (
	errStopped = errors.New("journal: sealing was stopped")
	errNoRoom  = errors.New("no room to seal a segment")
	errWrite   = errors.New("cannot write")
)

// runSealer seals what is full until the journal is closed or has failed.
func (j *Journal) runSealer() {
	w := j.sealer
	defer close(w.done)
	bad := map[id.Index]bool{}
	for {
		s := j.nextToSeal(bad)
		if s == nil {
			select {
			case <-w.wake:
				continue
			case <-w.stop:
				return
			}
		}
		start := time.Now()
		err := j.seal(s, func(worked time.Duration) bool { return j.failed() == nil && w.rest(sealRest*worked) })
		switch {
		case err == nil:
			j.o.Logger.Debug("journal: sealed segment", "file", filepath.Base(s.path), "took", time.Since(start))
		case errors.Is(err, errStopped) || j.failed() != nil:
			return
		case errors.Is(err, errNoRoom):
			j.o.Logger.Warn("journal: segment is not sealed, the disk is full", "file", filepath.Base(s.path), "again_in", sealAgain, "err", err)
			if !w.rest(sealAgain) {
				return
			}
		default: // the segment is damaged: it is no worse if it stays as it is
			bad[s.first()] = true
			j.o.Logger.Error("journal: segment cannot be sealed", "file", filepath.Base(s.path), "err", err)
		}
	}
}

// nextToSeal returns the oldest segment that is full and not sealed, nil if there is none.
func (j *Journal) nextToSeal(bad map[id.Index]bool) *segment {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return nil
	}
	for _, s := range j.segments[:len(j.segments)-1] {
		if s.seal == nil && !s.empty() && !bad[s.first()] {
			return s
		}
	}
	return nil
}

// seal puts a sealed segment in the place of s, which is not the last one. Between two blocks it calls pause with the time that
// the last one took, and ends if pause returns false.
func (j *Journal) seal(s *segment, pause func(worked time.Duration) bool) error {
	space, err := j.o.FS.Space(j.o.Dir)
	if err != nil {
		return err
	}
	// What is appended meanwhile needs its room more.
	if need := uint64(s.size + j.o.SegmentBytes); space.Free < need {
		return fmt.Errorf("%s: %d bytes are free, want %d: %w", s.path, space.Free, need, errNoRoom)
	}
	temporary := filepath.Join(j.o.Dir, sealedName(s.first())+tmpSuffix)
	sealed, err := j.writeSealed(s, temporary, pause)
	if err == nil {
		return j.publish(s, sealed, temporary)
	}
	switch {
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		err = fmt.Errorf("%w: %w", err, errNoRoom)
	case errors.Is(err, errWrite): // the disk is broken
		return j.poison(err)
	case !j.holds(s): // dropped meanwhile
		err = nil
	}
	if rerr := j.o.FS.Remove(temporary); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		j.o.Logger.Warn("journal: unfinished file stays until the next start", "file", temporary, "err", rerr)
	}
	return err
}

// writeSealed makes the sealed form of s, on stable media, under a temporary name.
func (j *Journal) writeSealed(s *segment, temporary string, pause func(time.Duration) bool) (*segment, error) {
	in, err := j.o.FS.Open(s.path, disk.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	out, err := j.o.FS.Open(temporary, disk.ReadWrite|disk.Create)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errWrite, err)
	}
	defer out.Close()
	if err := out.Truncate(0); err != nil {
		return nil, fmt.Errorf("%w: %w", errWrite, err)
	}
	sealed, err := newSealWriter(s, out, j.o.blockBytes).run(in, pause)
	if err != nil {
		return nil, err
	}
	_, next, err := j.extent(s)
	if err != nil {
		return nil, err
	}
	if next == nil || !next.gap() && next.header.at != sealed.seal.last {
		return nil, fmt.Errorf("%s: ends with record %d, the segment after it does not follow that: %w", s.path, sealed.seal.last.Index, ErrCorrupt)
	}
	if err := out.Sync(); err != nil {
		return nil, fmt.Errorf("%s: %w: sync: %w", temporary, errWrite, err)
	}
	sealed.path = filepath.Join(j.o.Dir, sealedName(s.first()))
	return sealed, nil
}

// publish gives the sealed form of s its name and removes s.
func (j *Journal) publish(s, sealed *segment, temporary string) error {
	j.checkpointMu.Lock() // nothing is dropped meanwhile
	defer j.checkpointMu.Unlock()
	if err := j.writable(); err != nil {
		return err
	}
	if !j.holds(s) { // dropped
		return j.o.FS.Remove(temporary)
	}
	err := j.o.FS.Rename(temporary, sealed.path)
	if err == nil {
		err = j.o.FS.SyncDir(j.o.Dir)
	}
	if err != nil {
		return j.poison(fmt.Errorf("%s: seal: %w", sealed.path, err))
	}
	j.replace(s, sealed)
	if err := j.o.FS.Remove(s.path); err != nil {
		return j.poison(fmt.Errorf("%s: remove after sealing: %w", s.path, err))
	}
	return nil
}

// holds reports whether s is one of the segments, and neither dropped nor replaced.
func (j *Journal) holds(s *segment) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Contains(j.segments, s)
}

// instead returns the segment that took the place of s, whose file is gone.
func (j *Journal) instead(s *segment) (*segment, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i, other := range j.segments {
		if other.first() != s.first() {
			continue
		}
		if other != s {
			return other, nil
		}
		if !j.o.ReadOnly {
			return nil, fmt.Errorf("%s: the file is gone: %w", s.path, ErrCorrupt)
		}
		// The server that the directory belongs to has sealed it, or dropped it.
		o := j.o
		sealed, err := readSealed(&o, s.first())
		if err == nil {
			segments := slices.Clone(j.segments)
			segments[i] = sealed
			j.segments = segments
		}
		return sealed, err
	}
	return nil, fmt.Errorf("journal: the segment from %d on was dropped: %w", s.first(), ErrNotFound)
}

// replace puts sealed in the place of s.
func (j *Journal) replace(s, sealed *segment) {
	j.mu.Lock()
	defer j.mu.Unlock()
	segments := slices.Clone(j.segments)
	segments[slices.Index(segments, s)] = sealed
	j.segments = segments
}

// sealWriter writes the sealed form of a segment.
type sealWriter struct {
	s      *segment
	out    disk.File
	target int
	table  []block
	off    int64
	raw    []byte // of the block being made
	comp   []byte
	check  []byte
	at     Position
	begun  Position // where the block begins
	times  span     // of the block
	all    span
	worked time.Time
}

// encoder is shared, as decoder is. A block is compressed by itself, so that it can be read by itself.
var encoder = sync.OnceValue(func() *zstd.Encoder {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(2*blockTarget), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic(err) // the options are constants
	}
	return enc
})

func newSealWriter(s *segment, out disk.File, target int) *sealWriter {
	return &sealWriter{s: s, out: out, target: target, off: headerSize, at: s.header.at, begun: s.header.at, worked: time.Now()}
}

// run reads the open segment from in, checks all of it, and writes the sealed one.
func (w *sealWriter) run(in disk.File, pause func(time.Duration) bool) (*segment, error) {
	head := appendHeader(nil, sealMagic, w.s.header)
	if err := w.write(head, 0); err != nil {
		return nil, err
	}
	var sc scanner
	sc.reset(w.s.path, in, headerSize, w.s.size)
	c := newChainer()
	for {
		off := sc.off
		raw, err := sc.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		prev := w.at
		if w.at, err = c.follow(w.s.path, off, w.at, raw); err != nil {
			return nil, err
		}
		rec := frameRecord(raw)
		w.times.add(rec.Time, len(w.raw) == 0)
		w.all.add(rec.Time, prev == w.s.header.at)
		w.raw = appendSealed(w.raw, &prev, &rec)
		if len(w.raw) >= w.target {
			if err := w.flush(); err != nil {
				return nil, err
			}
			if pause != nil && !pause(time.Since(w.worked)) {
				return nil, errStopped
			}
			w.worked = time.Now()
		}
	}
	if len(w.raw) > 0 {
		if err := w.flush(); err != nil {
			return nil, err
		}
	}
	return w.finish(head)
}

func (w *sealWriter) write(b []byte, off int64) error {
	if _, err := w.out.WriteAt(b, off); err != nil {
		return fmt.Errorf("%w: %w", errWrite, err)
	}
	return nil
}

// flush writes a block, after it has decoded it again.
func (w *sealWriter) flush() error {
	w.comp = encoder().EncodeAll(w.raw, w.comp[:0])
	x := block{
		off: w.off, size: len(w.comp), raw: len(w.raw), at: w.begun, times: w.times,
		crc: crc32.Checksum(w.comp, castagnoli), rawCRC: crc32.Checksum(w.raw, castagnoli),
	}
	var err error
	if w.check, err = decompress(w.s.path, &x, w.comp, w.check); err != nil || !bytes.Equal(w.check, w.raw) {
		return fmt.Errorf("%s: block after record %d does not decode to what was encoded: %w", w.s.path, x.at.Index, errors.Join(err, ErrCorrupt))
	}
	if err := w.write(w.comp, w.off); err != nil {
		return err
	}
	w.table = append(w.table, x)
	w.off += int64(len(w.comp))
	w.raw, w.begun = w.raw[:0], w.at
	return nil
}

// finish writes the block table and the footer.
func (w *sealWriter) finish(head []byte) (*segment, error) {
	if len(w.table) == 0 {
		return nil, fmt.Errorf("%s: no record to seal: %w", w.s.path, ErrCorrupt)
	}
	var b []byte
	for i := range w.table {
		b = appendBlock(b, &w.table[i])
	}
	f := &footer{
		table: w.off, blocks: len(w.table), tableCRC: crc32.Checksum(b, castagnoli), headCRC: crc32.Checksum(head[:headerSize-4], castagnoli),
		last: w.at, times: w.all, open: w.s.size,
	}
	b = appendFooter(b, f)
	if err := w.write(b, w.off); err != nil {
		return nil, err
	}
	return &segment{header: w.s.header, size: w.off + int64(len(b)), seal: f}, nil
}

func sealedName(first id.Index) string { return fmt.Sprintf("%020d%s", uint64(first), sealSuffix) }

// readSealed reads header and footer of a sealed segment.
func readSealed(o *Options, first id.Index) (*segment, error) {
	name := sealedName(first)
	h, size, err := readHeader(o, name, sealMagic)
	if err != nil {
		return nil, err
	}
	if got := h.at.Index + 1; got != first {
		return nil, fmt.Errorf("%s: offset 32: first index: want %d, got %d: %w", name, first, got, ErrCorrupt)
	}
	path := filepath.Join(o.Dir, name)
	f, err := o.FS.Open(path, disk.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b []byte
	if size >= headerSize+footerSize {
		b = make([]byte, footerSize)
		if _, err := f.ReadAt(b, size-footerSize); err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s: read footer: %w", name, err)
		}
	}
	foot, err := decodeFooter(name, b, size, h)
	if err != nil {
		return nil, err
	}
	return &segment{path: path, header: h, size: size, seal: foot}, nil
}

// readTable reads the block table of a sealed segment whose file is f.
func readTable(s *segment, f disk.File) ([]block, error) {
	b := make([]byte, int64(s.seal.blocks)*blockEntry)
	if n, err := f.ReadAt(b, s.seal.table); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s: offset %d: block table: want %d bytes, got %d: %w", s.path, s.seal.table, len(b), n, ErrCorrupt)
		}
		return nil, fmt.Errorf("%s: read block table: %w", s.path, err)
	}
	return decodeTable(s.path, b, s.seal, s.header)
}
