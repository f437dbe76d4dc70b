package capture

import (
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"
)

// recordsBlock is how many bytes of records a block has at most; a torn tail costs no more.
const recordsBlock = 4096 * RecordSize

// Writer writes the file of a capture.
type Writer struct {
	w       io.Writer
	enc     *zstd.Encoder
	records []byte
	files   []byte
	nfiles  int
	out     []byte
	seq     uint32
	count   uint64
	err     error // the first
}

// Header is what the file says of the whole capture at its start.
type Header struct {
	Started time.Time
	Untimed bool // it is not known how long operations took
}

// Stats is what the file says of the whole capture at its end.
type Stats struct {
	Records uint64        `json:"records"`
	Dropped uint64        `json:"dropped"`  // not taken in time, so not in the file
	LeftOut uint64        `json:"left_out"` // on purpose
	Length  time.Duration `json:"length_ns"`
}

// NewWriter begins a file.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	b := make([]byte, headerSize)
	copy(b, fileMagic)
	le.PutUint16(b[8:], fileVersion)
	le.PutUint16(b[10:], RecordSize)
	if h.Untimed {
		le.PutUint32(b[12:], flagUntimed)
	}
	le.PutUint64(b[16:], uint64(h.Started.UnixNano()))
	le.PutUint32(b[60:], sum(b[:60]))
	_, err = w.Write(b)
	return &Writer{w: w, enc: enc}, err
}

// Add appends a record.
func (w *Writer) Add(r *Record) error {
	n := len(w.records)
	w.records = append(w.records, make([]byte, RecordSize)...)
	r.put(w.records[n:])
	w.count++
	if len(w.records) >= recordsBlock {
		w.flushRecords()
	}
	return w.err
}

// AddFile names a file.
func (w *Writer) AddFile(f File) error {
	if len(f.Path) > maxPath || f.Path == "" || f.Size < 0 {
		return fmt.Errorf("inode %d: path of %d bytes, size %d: want a path of 1 to %d bytes", f.Inode, len(f.Path), f.Size, maxPath)
	}
	w.files = le.AppendUint64(w.files, f.Inode)
	w.files = le.AppendUint64(w.files, uint64(f.Size))
	w.files = le.AppendUint16(w.files, uint16(len(f.Path)))
	w.files = append(w.files, f.Path...)
	w.nfiles++
	if len(w.files) >= maxBlock-fileEntry-maxPath {
		w.flushFiles()
	}
	return w.err
}

func (w *Writer) flushRecords() {
	if len(w.records) > 0 {
		w.block(blockRecords, len(w.records)/RecordSize, w.records)
		w.records = w.records[:0]
	}
}

func (w *Writer) flushFiles() {
	if w.nfiles > 0 {
		w.block(blockFiles, w.nfiles, w.files)
		w.files, w.nfiles = w.files[:0], 0
	}
}

// block writes one block with one write.
func (w *Writer) block(kind byte, entries int, p []byte) {
	if w.err != nil {
		return
	}
	w.out = append(w.out[:0], make([]byte, blockSize)...)
	b := w.enc.EncodeAll(p, w.out)
	how := byte(compressed)
	if len(b)-blockSize >= len(p) {
		b, how = append(b[:blockSize], p...), plain
	}
	w.out = b
	le.PutUint32(b, blockMagic)
	b[4], b[5] = kind, how
	le.PutUint32(b[8:], uint32(entries))
	le.PutUint32(b[12:], uint32(len(p)))
	le.PutUint32(b[16:], uint32(len(b)-blockSize))
	le.PutUint32(b[20:], w.seq)
	le.PutUint32(b[24:], sum(b[blockSize:]))
	le.PutUint32(b[28:], sum(b[:28]))
	w.seq++
	_, w.err = w.w.Write(b)
}

// Flush writes what was added so far, so that a reader finds it.
func (w *Writer) Flush() error {
	w.flushFiles()
	w.flushRecords()
	return w.err
}

// Close writes the end; s.Records is filled in. It does not close what it writes to.
func (w *Writer) Close(s Stats) (Stats, error) {
	defer w.enc.Close()
	s.Records = w.count
	_ = w.Flush() // w.err is returned below
	b := le.AppendUint64(nil, s.Records)
	b = le.AppendUint64(b, s.Dropped)
	b = le.AppendUint64(b, s.LeftOut)
	b = le.AppendUint64(b, uint64(s.Length))
	w.block(blockEnd, 1, b)
	return s, w.err
}
