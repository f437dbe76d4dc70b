package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"varve/internal/disk"
	"varve/internal/id"
)

// openTries is how often a journal is listed again that changes while it is opened for reading.
const openTries = 10

// Open recovers the journal in o.Dir, and makes it if there is none and o.ReadOnly is not set. It reads
// the headers of all segments and the whole last one. What Last returns then is on stable media, unless
// o.ReadOnly is set. Errors are ErrCorrupt, ErrNotFound (nothing there and ReadOnly) and those of the disk.
func Open(o Options) (*Journal, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	j := &Journal{o: o, chain: newChainer()}
	err = j.open()
	for n := 0; n < openTries && o.ReadOnly && errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrNotFound); n++ {
		j = &Journal{o: o, chain: newChainer()} // its owner has just sealed or dropped something that was listed
		err = j.open()
	}
	if err != nil {
		if j.file != nil {
			j.file.Close()
		}
		return nil, err
	}
	if !o.ReadOnly && !o.NoSeal {
		j.sealer = newSealer()
		go j.runSealer()
	}
	return j, nil
}

func (j *Journal) open() error {
	l, err := list(&j.o)
	if err != nil {
		return err
	}
	if len(l.segments) == 0 && len(l.sealed) == 0 {
		return j.openEmpty(l)
	}
	if !j.o.ReadOnly {
		for _, name := range l.temporary {
			if err := j.o.FS.Remove(filepath.Join(j.o.Dir, name)); err != nil {
				return fmt.Errorf("%s: remove unfinished file: %w", name, err)
			}
		}
	}
	for _, first := range l.firsts() {
		s, err := j.readEither(l, first)
		if err != nil {
			return err
		}
		j.segments = append(j.segments, s)
	}
	if s := j.segments[len(j.segments)-1]; s.seal != nil {
		return fmt.Errorf("%s: the last segment is sealed: want %s behind it; put it back from a copy, "+
			"or move the directory away and join the server again: %w", s.path, segmentName(s.seal.last.Index+1), ErrCorrupt)
	}
	if err := j.dropEmpty(); err != nil {
		return err
	}
	if err := j.recoverLast(); err != nil {
		return err
	}
	return j.checkNewest(l)
}

// readEither reads the segment from first on. If it was being sealed when the process ended, both files may be there.
func (j *Journal) readEither(l listing, first id.Index) (*segment, error) {
	_, sealed := slices.BinarySearch(l.sealed, first)
	_, open := slices.BinarySearch(l.segments, first)
	if !sealed {
		return readSegment(&j.o, first)
	}
	s, err := readSealed(&j.o, first)
	if !open {
		return s, err
	}
	if err == nil {
		err = verifySealed(s, &j.o)
	}
	keep, drop := sealedName(first), segmentName(first)
	if err != nil {
		if !errors.Is(err, ErrCorrupt) {
			return nil, err
		}
		j.o.Logger.Error("journal: damaged sealed segment, the one it was made of is still there", "file", keep, "err", err)
		keep, drop = drop, keep
		if s, err = readSegment(&j.o, first); err != nil {
			return nil, err
		}
	}
	if j.o.ReadOnly {
		return s, nil
	}
	j.o.Logger.Info("journal: sealing was interrupted", "keep", keep, "remove", drop)
	if err := j.o.FS.SyncDir(j.o.Dir); err != nil { // what is kept may not have its name on stable media
		return nil, err
	}
	if err := j.o.FS.Remove(filepath.Join(j.o.Dir, drop)); err != nil {
		return nil, fmt.Errorf("%s: remove after sealing: %w", drop, err)
	}
	return s, nil
}

// dropEmpty forgets the empty segment that a Reset had no time to remove.
func (j *Journal) dropEmpty() error {
	first := j.segments[0]
	if len(j.segments) == 1 || !first.empty() || !j.segments[1].gap() {
		return nil
	}
	j.segments = j.segments[1:]
	if j.o.ReadOnly {
		return nil
	}
	if err := j.o.FS.Remove(first.path); err != nil {
		return fmt.Errorf("%s: remove empty segment: %w", first.path, err)
	}
	return nil
}

func (j *Journal) openEmpty(l listing) error {
	if len(l.checkpoints) > 0 {
		return fmt.Errorf("%s: checkpoints without segments: %w", j.o.Dir, ErrCorrupt)
	}
	if j.o.ReadOnly {
		return fmt.Errorf("%s: no segments: %w", j.o.Dir, ErrNotFound)
	}
	if err := j.o.FS.SyncDir(filepath.Dir(j.o.Dir)); err != nil { // the directory may just have been made
		return err
	}
	s, f, err := createSegment(&j.o, Position{}, false)
	if err != nil {
		return err
	}
	j.segments, j.file, j.stable = []*segment{s}, f, headerSize
	return nil
}

// recoverLast reads the last segment, cuts off a torn tail, and makes what remains stable.
func (j *Journal) recoverLast() error {
	s := j.segments[len(j.segments)-1]
	flag := disk.ReadWrite
	if j.o.ReadOnly {
		flag = disk.ReadOnly
	}
	f, err := j.o.FS.Open(s.path, flag)
	if err != nil {
		return err
	}
	j.file = f // closed by Open if this fails
	s.indexed = true
	at, end, torn, err := scanLast(s, f, s.note)
	if err != nil {
		return err
	}
	fileSize := s.size
	s.size, j.last, j.stable = end, at, end
	if j.o.ReadOnly {
		j.file = nil
		return f.Close()
	}
	if torn != nil {
		j.o.Logger.Warn("journal: cut torn tail", "file", filepath.Base(s.path), "offset", end,
			"bytes", fileSize-end, "last", at.Index, "cause", torn)
		if err := f.Truncate(end); err != nil {
			return fmt.Errorf("%s: cut at offset %d: %w", s.path, end, err)
		}
	}
	// A process that was killed may have left records and names that are not on stable media.
	if err := f.Sync(); err != nil {
		return fmt.Errorf("%s: sync: %w", s.path, err)
	}
	return j.o.FS.SyncDir(j.o.Dir)
}

// scanLast reads the last segment from f and returns the position after its last whole record, where
// that ends, and, if something follows, what is wrong with it.
func scanLast(s *segment, f disk.File, note func(index id.Index, offset, time int64)) (at Position, end int64, torn, err error) {
	var sc scanner
	sc.reset(s.path, f, headerSize, s.size)
	c := newChainer()
	at = s.header.at
	for {
		off := sc.off
		raw, err := sc.next()
		if err == io.EOF {
			return at, off, nil, nil
		}
		if errors.Is(err, ErrCorrupt) {
			stable, rerr := wasStable(s.path, f, off, s.size, at.Index+1)
			if rerr != nil {
				return at, off, nil, rerr
			}
			if stable {
				return at, off, nil, err
			}
			return at, off, err, nil
		}
		if err != nil {
			return at, off, nil, err
		}
		if at, err = c.follow(s.path, off, at, raw); err != nil {
			return at, off, nil, err
		}
		if note != nil {
			note(at.Index, off, at.Time)
		}
	}
}

// checkNewest compares the newest checkpoint with the last record, and completes a Reset that was
// interrupted after its checkpoint was stored.
func (j *Journal) checkNewest(l listing) error {
	if len(l.checkpoints) == 0 {
		return nil
	}
	newest := l.checkpoints[len(l.checkpoints)-1]
	if newest <= j.last.Index {
		return nil
	}
	h, err := readCheckpointHeader(&j.o, newest)
	if errors.Is(err, ErrCorrupt) {
		j.o.Logger.Error("journal: damaged checkpoint is passed over", "file", checkpointName(newest), "err", err)
		l.checkpoints = l.checkpoints[:len(l.checkpoints)-1]
		return j.checkNewest(l)
	}
	if err != nil {
		return err
	}
	if h.flags&flagForeign == 0 {
		return fmt.Errorf("%s: journal ends early: want record %d, got %d as the last: %w",
			checkpointName(newest), newest, j.last.Index, ErrCorrupt)
	}
	if j.o.ReadOnly {
		return nil
	}
	return j.Reset(h.at)
}

// listing is what is in a directory, each ascending.
type listing struct {
	segments    []id.Index // that are not sealed, by first index
	sealed      []id.Index // by first index
	checkpoints []id.Index
	temporary   []string
}

// firsts returns the first index of each segment, whether it is sealed or not.
func (l *listing) firsts() []id.Index {
	all := slices.Concat(l.segments, l.sealed)
	slices.Sort(all)
	return slices.Compact(all)
}

// list reads the directory, which it makes unless o.ReadOnly is set. Files it does not know are ignored.
func list(o *Options) (listing, error) {
	var l listing
	if !o.ReadOnly {
		if err := o.FS.MkdirAll(o.Dir); err != nil {
			return l, err
		}
	}
	entries, err := o.FS.ReadDir(o.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return l, fmt.Errorf("%w: %w", err, ErrNotFound)
	}
	if err != nil {
		return l, err
	}
	for _, e := range entries { // sorted by name, so by index
		name := e.Name()
		switch {
		case strings.HasSuffix(name, tmpSuffix):
			l.temporary = append(l.temporary, name)
		case strings.HasSuffix(name, segSuffix):
			err = addIndex(&l.segments, name, segSuffix)
		case strings.HasSuffix(name, sealSuffix):
			err = addIndex(&l.sealed, name, sealSuffix)
		case strings.HasSuffix(name, ckptSuffix):
			err = addIndex(&l.checkpoints, name, ckptSuffix)
		}
		if err != nil {
			return l, err
		}
	}
	return l, nil
}

func addIndex(to *[]id.Index, name, suffix string) error {
	digits := strings.TrimSuffix(name, suffix)
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || len(digits) != 20 {
		return fmt.Errorf("%s: file name: want 20 digits and %s: %w", name, suffix, ErrCorrupt)
	}
	*to = append(*to, id.Index(n))
	return nil
}

// readHeader reads and checks the header of a file and returns its size as well.
func readHeader(o *Options, name, magic string) (header, int64, error) {
	f, err := o.FS.Open(filepath.Join(o.Dir, name), disk.ReadOnly)
	if err != nil {
		return header{}, 0, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return header{}, 0, err
	}
	b := make([]byte, headerSize)
	n, err := f.ReadAt(b, 0)
	if n < len(b) && err != nil && !errors.Is(err, io.EOF) {
		return header{}, 0, fmt.Errorf("%s: read header: %w", name, err)
	}
	h, err := decodeHeader(name, b[:n], magic)
	if err != nil {
		return header{}, 0, err
	}
	if o.Cluster.IsZero() {
		o.Cluster = h.cluster
	}
	if h.cluster != o.Cluster {
		return header{}, 0, fmt.Errorf("%s: offset 16: cluster: want %v, got %v", name, o.Cluster, h.cluster)
	}
	return h, size, nil
}

func readSegment(o *Options, first id.Index) (*segment, error) {
	name := segmentName(first)
	h, size, err := readHeader(o, name, segMagic)
	if err != nil {
		return nil, err
	}
	if got := h.at.Index + 1; got != first {
		return nil, fmt.Errorf("%s: offset 32: first index: want %d, got %d: %w", name, first, got, ErrCorrupt)
	}
	return &segment{path: filepath.Join(o.Dir, name), header: h, size: size}, nil
}

func readCheckpointHeader(o *Options, index id.Index) (header, error) {
	name := checkpointName(index)
	h, size, err := readHeader(o, name, ckptMagic)
	if err != nil {
		return header{}, err
	}
	if h.at.Index != index {
		return header{}, fmt.Errorf("%s: offset 32: index: want %d, got %d: %w", name, index, h.at.Index, ErrCorrupt)
	}
	if size < headerSize+ckptTrailer {
		return header{}, fmt.Errorf("%s: size: want at least %d, got %d: %w", name, headerSize+ckptTrailer, size, ErrCorrupt)
	}
	return h, nil
}
