package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/internal/disk"
	"varve/internal/id"
)

// memFS is a directory in memory that is only read.
type memFS struct {
	disk.FS // what is not here is not called
	files   map[string][]byte
}

type memFile struct {
	disk.File
	data []byte
}

func (f memFile) Size() (int64, error) { return int64(len(f.data)), nil }
func (f memFile) Close() error         { return nil }
func (f memFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m memFS) Open(path string, _ disk.Flag) (disk.File, error) {
	data, ok := m.files[filepath.Base(path)]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return memFile{data: data}, nil
}

type memInfo struct {
	name string
	size int
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return int64(i.size) }
func (i memInfo) Mode() fs.FileMode  { return 0 }
func (i memInfo) ModTime() time.Time { return time.Time{} }
func (i memInfo) IsDir() bool        { return false }
func (i memInfo) Sys() any           { return nil }

func (m memFS) Stat(path string) (fs.FileInfo, error) {
	data, ok := m.files[filepath.Base(path)]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return memInfo{filepath.Base(path), len(data)}, nil
}

func (m memFS) ReadDir(string) ([]fs.DirEntry, error) {
	var all []fs.DirEntry
	for _, name := range slices.Sorted(maps.Keys(m.files)) {
		all = append(all, fs.FileInfoToDirEntry(memInfo{name, len(m.files[name])}))
	}
	return all, nil
}

// inMemory returns a closed journal's files, and options that read them.
func inMemory(t testing.TB, o Options) (map[string][]byte, Options) {
	t.Helper()
	m := map[string][]byte{}
	for _, path := range files(t, o.Dir) {
		data, err := os.ReadFile(path)
		ok(t, err)
		m[filepath.Base(path)] = data
	}
	o.FS, o.ReadOnly = memFS{files: m}, true
	return m, o
}

// lastRecord returns where the last record of the last segment begins, in bytes, and that segment's name.
func lastRecord(t testing.TB, m map[string][]byte) (string, int) {
	t.Helper()
	names := slices.Sorted(maps.Keys(m))
	name := names[len(names)-1]
	for at := headerSize; ; {
		n, err := frameSize(name, 0, m[name][at:])
		ok(t, err)
		if at+n == len(m[name]) {
			return name, at
		}
		at += n
	}
}

// reported checks that Verify finds what was done, as damage or, in the last record only, as a torn tail.
func reported(t *testing.T, o Options, inLast bool, format string, args ...any) {
	t.Helper()
	rep, err := Verify(o, nil)
	if errors.Is(err, ErrCorrupt) {
		if text := err.Error(); !strings.Contains(text, "restore the file") && !strings.Contains(text, "remove that file") {
			t.Fatalf("%v: does not say what to do", err)
		}
		return
	}
	if inLast && err == nil && rep.Torn > 0 {
		return
	}
	t.Fatalf("%s: want ErrCorrupt, got %+v, %v", fmt.Sprintf(format, args...), rep, err)
}

// TestEveryBit flips every bit of every file of a journal, one at a time (with the race detector, one bit of every byte).
func TestEveryBit(t *testing.T) {
	m, o := inMemory(t, smallJournal(t))
	whole, err := Verify(o, nil)
	ok(t, err)
	if whole.Torn != 0 || whole.Checkpoints != 2 || whole.Sealed != 2 || whole.Records != 16 {
		t.Fatalf("untouched: got %+v", whole)
	}
	lastName, at := lastRecord(t, m)
	flips := 0
	for name, data := range m {
		for i := range data {
			for bit := i % bitStep; bit < 8; bit += bitStep {
				data[i] ^= 1 << bit
				reported(t, o, name == lastName && i >= at, "%s: byte %d, bit %d", name, i, bit)
				data[i] ^= 1 << bit
				flips++
			}
		}
	}
	t.Logf("%d bits", flips)
}

// TestEveryCut cuts every file at every byte, and puts bytes behind it.
func TestEveryCut(t *testing.T) {
	m, o := inMemory(t, smallJournal(t))
	lastName, at := lastRecord(t, m)
	for name, data := range m {
		for n := range data {
			if name == lastName && n == at {
				continue // nothing is left of the last record
			}
			m[name] = data[:n:n]
			// What was cut off after a record at the end of the journal, nobody knows of.
			if rep, err := Verify(o, nil); name == lastName && n >= headerSize && err == nil && rep.Records < 16 && (rep.Torn > 0 || boundary(t, data, n)) {
				continue
			}
			reported(t, o, false, "%s cut to %d bytes", name, n)
		}
		for _, tail := range [][]byte{{0}, {1, 2, 3}, make([]byte, 4096), data} {
			m[name] = slices.Concat(data, tail)
			if name == lastName {
				rep, err := Verify(o, nil)
				if !errors.Is(err, ErrCorrupt) && (err != nil || rep.Torn != int64(len(tail)) || rep.Records != 16) {
					t.Fatalf("%s: %d bytes behind: got %+v, %v", name, len(tail), rep, err)
				}
				continue
			}
			reported(t, o, false, "%s: %d bytes behind", name, len(tail))
		}
		m[name] = data
	}
}

// boundary reports whether a record ends at byte n of an open segment.
func boundary(t *testing.T, data []byte, n int) bool {
	t.Helper()
	at := headerSize
	for at < n {
		size, err := frameSize("", 0, data[at:])
		ok(t, err)
		at += size
	}
	return at == n
}

// TestFilesMoved removes, exchanges and copies whole files.
func TestFilesMoved(t *testing.T) {
	m, o := inMemory(t, smallJournal(t))
	names := slices.Sorted(maps.Keys(m))
	for i, name := range names {
		data := m[name]
		delete(m, name)
		_, both := m[strings.TrimSuffix(name, segSuffix)+sealSuffix]
		_, open := m[strings.TrimSuffix(name, sealSuffix)+segSuffix]
		switch _, err := Verify(o, nil); {
		case filepath.Ext(name) == ckptSuffix, name == sealedName(1): // may have been dropped
			ok(t, err)
		case both && filepath.Ext(name) == segSuffix, open: // the other form is there
			ok(t, err)
		case i == len(names)-1: // the one before it is not sealed: no trace of it is left
			ok(t, err)
		case !errors.Is(err, ErrCorrupt):
			t.Fatalf("without %s: want ErrCorrupt, got %v", name, err)
		}
		m[name] = data
		for _, other := range names[:i] {
			was := m[other]
			m[name], m[other] = was, data
			reported(t, o, false, "%s and %s exchanged", name, other)
			m[name], m[other] = was, was
			reported(t, o, false, "%s in place of %s", other, name)
			m[name], m[other] = data, was
		}
	}
}

// TestRandomDamage changes several bytes at once, moves parts of files, and makes them zeros.
func TestRandomDamage(t *testing.T) {
	m, o := inMemory(t, smallJournal(t))
	names := slices.Sorted(maps.Keys(m))
	lastName, at := lastRecord(t, m)
	rng := rand.New(rand.NewSource(5))
	for n := range 4000 {
		name := names[rng.Intn(len(names))]
		data := m[name]
		bad := slices.Clone(data)
		from := rng.Intn(len(bad))
		to := from + 1 + rng.Intn(min(200, len(bad)-from))
		switch n % 4 {
		case 0:
			clear(bad[from:to])
		case 1:
			rng.Read(bad[from:to])
		case 2:
			bad = slices.Delete(bad, from, to)
		case 3:
			bad = slices.Insert(bad, rng.Intn(len(bad)), bad[from:to]...)
		}
		if slices.Equal(bad, data) {
			continue
		}
		m[name] = bad
		rep, err := Verify(o, nil)
		if !errors.Is(err, ErrCorrupt) && !(name == lastName && err == nil && (rep.Torn > 0 || len(bad) == at)) {
			t.Fatalf("change %d of %s, bytes %d to %d: want ErrCorrupt, got %+v, %v", n, name, from, to, rep, err)
		}
		m[name] = data
	}
}

// forge changes a sealed segment and makes all its checksums right again.
type forge struct {
	head   header
	foot   footer
	blocks []block
	raw    [][]byte // decoded blocks
}

func takeApart(t *testing.T, o Options, first id.Index) *forge {
	t.Helper()
	s, err := readSealed(&o, first)
	ok(t, err)
	file, err := o.FS.Open(s.path, disk.ReadOnly)
	ok(t, err)
	f := &forge{head: s.header, foot: *s.seal}
	f.blocks, err = readTable(s, file)
	ok(t, err)
	for i := range f.blocks {
		x := &f.blocks[i]
		comp := make([]byte, x.size)
		ok(t, readFull("", file, comp, x.off))
		raw, err := decompress("", x, comp, nil)
		ok(t, err)
		f.raw = append(f.raw, raw)
	}
	return f
}

func (f *forge) build() []byte {
	b := appendHeader(nil, sealMagic, f.head)
	f.foot.headCRC = binary.LittleEndian.Uint32(b[headerSize-4:])
	var table []byte
	for i := range f.blocks {
		x := &f.blocks[i]
		comp := encoder().EncodeAll(f.raw[i], nil)
		x.off, x.size, x.raw = int64(len(b)), len(comp), len(f.raw[i])
		x.crc, x.rawCRC = crc32.Checksum(comp, castagnoli), crc32.Checksum(f.raw[i], castagnoli)
		b = append(b, comp...)
		table = appendBlock(table, x)
	}
	f.foot.table, f.foot.blocks, f.foot.tableCRC = int64(len(b)), len(f.blocks), crc32.Checksum(table, castagnoli)
	return appendFooter(append(b, table...), &f.foot)
}

// split returns the encoded records of a decoded block.
func split(t *testing.T, raw []byte) [][]byte {
	t.Helper()
	var recs [][]byte
	for len(raw) > 0 {
		_, n := decodeSealed(raw, &Position{})
		if n == 0 {
			t.Fatal("no record")
		}
		recs = append(recs, raw[:n:n])
		raw = raw[n:]
	}
	return recs
}

// TestForged does to sealed segments what only the chain of hashes and the positions show, since every checksum is right.
func TestForged(t *testing.T) {
	m, o := inMemory(t, smallJournal(t))
	name := sealedName(1)
	data := m[name]
	if again := takeApart(t, o, 1).build(); !slices.Equal(again, data) {
		t.Fatal("taking apart and building again is not the same")
	}
	check := func(what string, change func(f *forge)) {
		t.Helper()
		f := takeApart(t, o, 1)
		change(f)
		m[name] = f.build()
		reported(t, o, false, "%s", what)
		m[name] = data
	}
	f := takeApart(t, o, 1)
	for b := range f.raw {
		recs := split(t, f.raw[b])
		for i := range recs {
			with := func(what string, change func(r [][]byte) [][]byte) {
				check(fmt.Sprintf("block %d record %d: %s", b, i, what), func(f *forge) {
					f.raw[b] = slices.Concat(change(slices.Clone(recs))...)
				})
			}
			with("removed", func(r [][]byte) [][]byte { return slices.Delete(r, i, i+1) })
			with("repeated", func(r [][]byte) [][]byte { return slices.Insert(r, i, r[i]) })
			with("changed", func(r [][]byte) [][]byte {
				r[i] = slices.Clone(r[i])
				r[i][len(r[i])-1] ^= 1
				return r
			})
			if i > 0 {
				with("swapped", func(r [][]byte) [][]byte { r[i], r[i-1] = r[i-1], r[i]; return r })
			}
		}
		check(fmt.Sprintf("block %d removed", b), func(f *forge) {
			f.raw, f.blocks = slices.Delete(f.raw, b, b+1), slices.Delete(f.blocks, b, b+1)
		})
		check(fmt.Sprintf("block %d repeated", b), func(f *forge) {
			f.raw, f.blocks = slices.Insert(f.raw, b, f.raw[b]), slices.Insert(f.blocks, b, f.blocks[b])
		})
		if b > 0 {
			check(fmt.Sprintf("block %d swapped", b), func(f *forge) { f.raw[b], f.raw[b-1] = f.raw[b-1], f.raw[b] })
		}
		check("times of block", func(f *forge) { f.blocks[b].times.low++ })
		check("chain of block", func(f *forge) { f.blocks[b].at.Chain[3]++ })
		check("time before block", func(f *forge) { f.blocks[b].at.Time++ })
		check("raft index before block", func(f *forge) { f.blocks[b].at.Raft++ })
		check("index before block", func(f *forge) { f.blocks[b].at.Index++ })
	}
	check("times", func(f *forge) { f.foot.times.high++ })
	check("length before", func(f *forge) { f.foot.open++ })
	check("last chain", func(f *forge) { f.foot.last.Chain[0]++ })
	check("last index", func(f *forge) { f.foot.last.Index++ })
	check("last time", func(f *forge) { f.foot.last.Time++ })
	check("last raft index", func(f *forge) { f.foot.last.Raft++ })
	check("first index", func(f *forge) { f.head.at.Index++ })
}
