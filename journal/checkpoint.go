package journal

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path/filepath"
	"slices"

	"varve/internal/disk"
	"varve/internal/id"
)

func checkpointName(index id.Index) string {
	return fmt.Sprintf("%020d%s", uint64(index), ckptSuffix)
}

// WriteCheckpoint stores what write writes as the state at the position at, on stable media, together
// with the records up to it. An at above the last record marks a checkpoint of another server: call
// Reset with the same position next. An error of write is returned and leaves nothing behind; an
// error of the disk ends the journal.
func (j *Journal) WriteCheckpoint(at Position, write func(io.Writer) error) error {
	j.checkpointMu.Lock()
	defer j.checkpointMu.Unlock()
	if err := j.writable(); err != nil {
		return err
	}
	h := header{cluster: j.o.Cluster, at: at}
	if at.Index > j.Last().Index {
		h.flags |= flagForeign
	}
	name := checkpointName(at.Index)
	var refused error
	f, err := createFile(j.o.FS, j.o.Dir, name, func(f disk.File) error {
		w := &checkpointWriter{file: f, hash: sha256.New()}
		b := bufio.NewWriterSize(w, writeBuffer)
		b.Write(appendHeader(nil, ckptMagic, h)) // a bufio.Writer keeps its first error
		if err := write(b); err != nil && w.err == nil {
			refused = err
			return err
		}
		if err := b.Flush(); err != nil {
			return err
		}
		if err := w.finish(); err != nil {
			return err
		}
		return j.Sync() // a checkpoint promises the records up to it
	})
	if refused != nil {
		if err := j.o.FS.Remove(filepath.Join(j.o.Dir, name+tmpSuffix)); err != nil {
			return j.poison(fmt.Errorf("%s: remove unfinished checkpoint: %w", name, err))
		}
		return fmt.Errorf("%s: %w", name, refused)
	}
	if err != nil {
		return j.poison(fmt.Errorf("%s: write checkpoint: %w", name, err))
	}
	return f.Close()
}

// checkpointWriter writes to a file from its start and hashes what it writes.
type checkpointWriter struct {
	file disk.File
	off  int64
	hash hash.Hash
	err  error // of the file
}

func (w *checkpointWriter) Write(p []byte) (int, error) {
	n, err := w.file.WriteAt(p, w.off)
	w.off += int64(n)
	w.hash.Write(p[:n])
	w.err = err
	return n, err
}

func (w *checkpointWriter) finish() error {
	t := binary.LittleEndian.AppendUint64(nil, uint64(w.off-headerSize))
	_, err := w.file.WriteAt(w.hash.Sum(t), w.off)
	return err
}

// Checkpoints returns the positions of all checkpoints, ascending. It reads their headers only, and passes over those that
// are damaged or are dropped meanwhile.
func (j *Journal) Checkpoints() ([]Position, error) {
	if err := j.failed(); err != nil {
		return nil, err
	}
	o := j.o
	o.ReadOnly = true
	l, err := list(&o)
	if err != nil {
		return nil, err
	}
	var all []Position
	for _, index := range l.checkpoints {
		h, err := readCheckpointHeader(&o, index)
		switch {
		case errors.Is(err, ErrCorrupt):
			j.o.Logger.Error("journal: damaged checkpoint is passed over", "file", checkpointName(index), "err", err)
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		default:
			all = append(all, h.at)
		}
	}
	return all, nil
}

// OpenCheckpoint returns the newest checkpoint at or below index whose header is sound, or ErrNotFound. It is verified while it is
// read: until Read has returned io.EOF, what came may be wrong, and ErrCorrupt comes in its place
// if it was. To fall back, ask for the index before the position returned, or use ReadCheckpoint.
func (j *Journal) OpenCheckpoint(index id.Index) (Position, io.ReadCloser, error) {
	if err := j.failed(); err != nil {
		return Position{}, nil, err
	}
	o := j.o
	o.ReadOnly = true
	l, err := list(&o)
	if err != nil {
		return Position{}, nil, err
	}
	for _, at := range slices.Backward(l.checkpoints) {
		if at > index {
			continue
		}
		p, r, err := openCheckpoint(&o, at)
		switch {
		case err == nil:
			return p, r, nil
		case errors.Is(err, ErrCorrupt):
			j.o.Logger.Error("journal: damaged checkpoint is passed over", "file", checkpointName(at), "err", err)
		case !errors.Is(err, fs.ErrNotExist): // else it was dropped meanwhile
			return p, nil, err
		}
	}
	return Position{}, nil, fmt.Errorf("journal: checkpoint at or below %d: %w", index, ErrNotFound)
}

// ReadCheckpoint calls read with the newest checkpoint at or below index. If that turns out to be damaged, it calls read again with
// an older one: what read made of the first is to be forgotten. ErrNotFound: there is none that is sound.
func (j *Journal) ReadCheckpoint(index id.Index, read func(Position, io.Reader) error) error {
	for {
		at, r, err := j.OpenCheckpoint(index)
		if err != nil {
			return err
		}
		refused := read(at, r)
		_, err = io.Copy(io.Discard, r) // what read left, and the checksum
		r.Close()
		if err == nil {
			return refused
		}
		if !errors.Is(err, ErrCorrupt) {
			return err
		}
		j.o.Logger.Error("journal: damaged checkpoint is passed over", "file", checkpointName(at.Index), "err", err)
		if at.Index == 0 {
			return fmt.Errorf("journal: checkpoint at or below %d: %w", index, ErrNotFound)
		}
		index = at.Index - 1
	}
}

func openCheckpoint(o *Options, index id.Index) (Position, io.ReadCloser, error) {
	h, err := readCheckpointHeader(o, index)
	if err != nil {
		return Position{Index: index}, nil, err
	}
	f, err := o.FS.Open(filepath.Join(o.Dir, checkpointName(index)), disk.ReadOnly)
	if err != nil {
		return h.at, nil, err
	}
	size, err := f.Size()
	if err != nil {
		f.Close()
		return h.at, nil, err
	}
	c := &checkpointReader{name: checkpointName(index), file: f, off: headerSize, end: size - ckptTrailer, hash: sha256.New()}
	c.hash.Write(appendHeader(nil, ckptMagic, h))
	c.Reader = bufio.NewReaderSize(verifyingReader{c}, int(min(size, readBuffer)))
	return h.at, c, nil
}

// checkpointReader reads a checkpoint's payload through a buffer.
type checkpointReader struct {
	*bufio.Reader
	name     string
	file     disk.File
	off, end int64 // of the payload that is left
	hash     hash.Hash
}

func (c *checkpointReader) Close() error { return c.file.Close() }

// verifyingReader is what the buffer of a checkpointReader reads from.
type verifyingReader struct{ c *checkpointReader }

func (v verifyingReader) Read(p []byte) (int, error) {
	c := v.c
	if c.off == c.end {
		return 0, c.verify()
	}
	p = p[:min(int64(len(p)), c.end-c.off)]
	n, err := c.file.ReadAt(p, c.off)
	c.hash.Write(p[:n])
	c.off += int64(n)
	switch {
	case n > 0 || len(p) == 0:
		return n, nil
	case err == nil || errors.Is(err, io.EOF):
		return 0, fmt.Errorf("%s: offset %d: file ends: want %d more bytes: %w", c.name, c.off, c.end-c.off, ErrCorrupt)
	}
	return 0, fmt.Errorf("%s: read at offset %d: %w", c.name, c.off, err)
}

// verify compares the trailer with what was read and returns io.EOF if it is right.
func (c *checkpointReader) verify() error {
	t := make([]byte, ckptTrailer)
	if n, err := c.file.ReadAt(t, c.end); n < len(t) {
		return fmt.Errorf("%s: read trailer at offset %d: %w", c.name, c.end, err)
	}
	if want, got := uint64(c.end-headerSize), binary.LittleEndian.Uint64(t); want != got {
		return fmt.Errorf("%s: offset %d: length: want %d, got %d: %w", c.name, c.end, want, got, ErrCorrupt)
	}
	if want, got := c.hash.Sum(nil), t[8:]; string(want) != string(got) {
		return fmt.Errorf("%s: offset %d: sha-256: want %x, got %x: %w", c.name, c.end+8, want, got, ErrCorrupt)
	}
	return io.EOF
}
