package capture

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Reader reads the file of a capture. What it met on the way is in its fields once Next has returned io.EOF.
type Reader struct {
	Header
	Stats   Stats  // of the end, if Ended
	Ended   bool   // false: the capture was cut off
	Torn    int64  // bytes at the end of the file that are no whole block
	Damaged int    // blocks that do not hold what was written to them
	Version uint16 // of the format

	r       io.Reader
	dec     *zstd.Decoder
	record  int // size
	seq     uint32
	files   []File
	entries []byte // records that were not returned yet
	stored  []byte
	raw     []byte
}

// NewReader reads the header. ErrNotCapture if it is of something else.
func NewReader(r io.Reader) (*Reader, error) {
	b := make([]byte, headerSize)
	n, err := io.ReadFull(r, b)
	if n >= len(fileMagic) && string(b[:len(fileMagic)]) != fileMagic || n < len(fileMagic) {
		return nil, ErrNotCapture
	}
	if err != nil {
		return nil, fmt.Errorf("header of %d bytes, want %d: %w", n, headerSize, ErrCorrupt)
	}
	if got, want := sum(b[:60]), le.Uint32(b[60:]); got != want {
		return nil, fmt.Errorf("header: checksum %08x, want %08x: %w", got, want, ErrCorrupt)
	}
	c := &Reader{r: r, Version: le.Uint16(b[8:]), record: int(le.Uint16(b[10:]))}
	if c.Version == 0 || c.record < RecordSize || c.record > maxRecord {
		return nil, fmt.Errorf("header: version %d with records of %d bytes: %w", c.Version, c.record, ErrCorrupt)
	}
	c.Started = time.Unix(0, int64(le.Uint64(b[16:])))
	c.Untimed = le.Uint32(b[12:])&flagUntimed != 0
	if c.dec, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxBlock)); err != nil {
		return nil, err
	}
	return c, nil
}

// Files returns the files that were named so far.
func (c *Reader) Files() []File { return c.files }

// Close gives memory back. It does not close what it reads from.
func (c *Reader) Close() { c.dec.Close() }

// Next returns the next record, io.EOF after the last. Any other error is one of the file that it reads.
func (c *Reader) Next() (Record, error) {
	for len(c.entries) < c.record {
		if err := c.block(); err != nil {
			return Record{}, err
		}
	}
	r, err := decodeRecord(c.entries)
	c.entries = c.entries[c.record:]
	if err != nil {
		c.Damaged++ // whole: its checksum was right, so a writer made it
		return c.Next()
	}
	return r, nil
}

// block reads the next block, io.EOF if there is none that is sound.
func (c *Reader) block() error {
	if c.Ended {
		return io.EOF
	}
	var h [blockSize]byte
	n, err := io.ReadFull(c.r, h[:])
	if err == io.EOF {
		return io.EOF
	}
	length, stored := le.Uint32(h[12:]), le.Uint32(h[16:])
	switch {
	case err == io.ErrUnexpectedEOF:
		return c.tail(n)
	case err != nil:
		return err
	case le.Uint32(h[:]) != blockMagic || sum(h[:28]) != le.Uint32(h[28:]) || le.Uint32(h[20:]) != c.seq || length > maxBlock || stored > length:
		return c.tail(n)
	}
	c.seq++
	c.stored = grow(c.stored, int(stored))
	if m, err := io.ReadFull(c.r, c.stored); errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return c.tail(n + m)
	} else if err != nil {
		return err
	}
	if sum(c.stored) != le.Uint32(h[24:]) {
		c.Damaged++
		return nil
	}
	p := c.stored
	if h[5] == compressed {
		if c.raw, err = c.dec.DecodeAll(p, c.raw[:0]); err != nil {
			c.Damaged++
			return nil
		}
		p = c.raw
	}
	if len(p) != int(length) || h[5] > compressed || !c.contents(h[4], int(le.Uint32(h[8:])), p) {
		c.Damaged++
	}
	return nil
}

// tail counts what is left, from a block of which n bytes were read.
func (c *Reader) tail(n int) error {
	rest, err := io.Copy(io.Discard, c.r)
	if err != nil {
		return err
	}
	c.Torn = int64(n) + rest
	return io.EOF
}

// contents takes what a block holds, false if it is not what its header says.
func (c *Reader) contents(kind byte, entries int, p []byte) bool {
	switch kind {
	case blockRecords:
		if len(p) != entries*c.record {
			return false
		}
		c.entries = p
	case blockFiles:
		for range entries {
			if len(p) < fileEntry {
				return false
			}
			n := int(le.Uint16(p[16:]))
			f := File{Inode: le.Uint64(p), Size: int64(le.Uint64(p[8:]))}
			if n == 0 || n > maxPath || len(p) < fileEntry+n || f.Size < 0 {
				return false
			}
			f.Path = string(p[fileEntry : fileEntry+n])
			c.files = append(c.files, f)
			p = p[fileEntry+n:]
		}
		return len(p) == 0
	case blockEnd:
		if len(p) < endSize {
			return false
		}
		c.Stats = Stats{Records: le.Uint64(p), Dropped: le.Uint64(p[8:]), LeftOut: le.Uint64(p[16:]), Length: time.Duration(le.Uint64(p[24:]))}
		c.Ended = true
	}
	return true
}

func grow(b []byte, n int) []byte {
	if cap(b) < n {
		b = make([]byte, n)
	}
	return b[:n]
}
