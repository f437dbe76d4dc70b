package store

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"testing"
	"time"

	"varve/cs/repl"
	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/id"
)

// slotOf returns b as one slot, sealed, so that what is behind the checksum is reached.
func slotOf(b []byte) []byte {
	s := append(bytes.Clone(b), make([]byte, slotSize)...)[:slotSize]
	seal(s)
	return s
}

// mayFail fails the test for an error that a decoder must not give.
func mayFail(t *testing.T, err error) bool {
	t.Helper()
	if err != nil && !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	return err != nil
}

func FuzzLabel(f *testing.F) {
	b := make([]byte, slotSize)
	(&label{cluster: testCluster, server: [16]byte{9}, at: disk.Identity{UUID: [16]byte{1}, Inode: 7, Mount: true, Type: "xfs"}}).encode(b)
	f.Add(b[:96])
	f.Fuzz(func(t *testing.T, b []byte) {
		raw := append(bytes.Clone(b), make([]byte, slotSize)...)[:slotSize]
		_, err := decodeLabel(raw)
		mayFail(t, err)
		s := slotOf(b)
		l, err := decodeLabel(s)
		if mayFail(t, err) {
			if l != (label{}) {
				t.Fatal("a partial value came with an error")
			}
			return
		}
		again := make([]byte, slotSize)
		if l.encode(again); !bytes.Equal(again, s) {
			t.Fatalf("%+v does not encode to what it was decoded from", l)
		}
	})
}

func FuzzRetirement(f *testing.F) {
	b := make([]byte, slotSize)
	(&Retirement{Cause: "sync: chunk 7: input/output error", Time: time.Unix(5, 6)}).encode(b)
	f.Add(b[:96])
	f.Fuzz(func(t *testing.T, b []byte) {
		raw := append(bytes.Clone(b), make([]byte, slotSize)...)[:slotSize]
		if r := decodeRetirement(raw); (r == nil) != chunk.IsZero(raw) {
			t.Fatal("only a slot of zeros is in service")
		}
		s := slotOf(b)
		r := decodeRetirement(s)
		if r == nil || r.refusal("/d") == nil {
			t.Fatal("a slot that is not zeros is in service")
		}
		if r.Time.IsZero() {
			return // damaged
		}
		again := make([]byte, slotSize)
		if r.encode(again); !bytes.Equal(again, s) {
			t.Fatalf("%+v does not encode to what it was decoded from", r)
		}
	})
}

func FuzzScrubState(f *testing.F) {
	b := make([]byte, slotSize)
	(&scrubState{sequence: 3, running: true, rateSet: true, chunk: 7, block: 256, rate: 1 << 20, passes: 2, passed: 5, took: 6, begun: 7}).encode(b, testCluster)
	f.Add(b[:128])
	f.Fuzz(func(t *testing.T, b []byte) {
		s := slotOf(b)
		st, cluster, err := decodeScrub(s)
		if mayFail(t, err) {
			if st != (scrubState{}) {
				t.Fatal("a partial value came with an error")
			}
			return
		}
		again := make([]byte, slotSize)
		if st.encode(again, cluster); !bytes.Equal(again, s) {
			t.Fatalf("%+v does not encode to what it was decoded from", st)
		}
	})
}

// FuzzQuarantine takes the start of a header and the entries apart, so that the fuzzer need not find 4096 zeros in between.
func FuzzQuarantine(f *testing.F) {
	b := make([]byte, badRegionSize)
	encodeBad(b, testCluster, 3, []BadBlock{{Chunk: 5, Block: 7, Cause: Rotten, Since: time.Unix(1, 2)}, {Chunk: 5, Block: 8, Cause: Unreadable, Since: time.Unix(3, 4)}})
	f.Add(bytes.Clone(b[:64]), bytes.Clone(b[slotSize:slotSize+3*badSize]), true)
	f.Add(bytes.Clone(b[:64]), bytes.Clone(b[slotSize:slotSize+2*badSize]), false)
	f.Fuzz(func(t *testing.T, head, entries []byte, fix bool) {
		b := make([]byte, badRegionSize)
		copy(b, head[:min(len(head), slotSize-4)])
		copy(b[slotSize:], entries[:min(len(entries), badRegionSize-slotSize)])
		if n := int(b[12]) | int(b[13])<<8; fix && n <= MaxBad {
			sum := chunk.Sum(b[slotSize:][:n*badSize])
			b[40], b[41], b[42], b[43] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
		}
		seal(b)
		cluster, generation, list, err := decodeBad(b)
		if mayFail(t, err) {
			if list != nil || generation != 0 {
				t.Fatal("a partial value came with an error")
			}
			return
		}
		again := make([]byte, badRegionSize)
		if encodeBad(again, cluster, generation, list); !bytes.Equal(again, b) {
			t.Fatalf("%v does not encode to what it was decoded from", list)
		}
	})
}

func FuzzIndex(f *testing.F) {
	b := encodeIndex(testCluster, 3, []indexed{{1, repl.Record{Epoch: 4, State: repl.Serving}}, {9, repl.Record{Epoch: 5, State: repl.Tracking}}})
	f.Add(bytes.Clone(b[:64]), bytes.Clone(b[slotSize:]), true)
	f.Add(bytes.Clone(b[:64]), bytes.Clone(b[slotSize:]), false)
	f.Fuzz(func(t *testing.T, head, entries []byte, fix bool) {
		b := make([]byte, slotSize, slotSize+len(entries))
		copy(b, head[:min(len(head), slotSize-4)])
		b = append(b, entries...)
		if fix {
			sum := chunk.Sum(entries)
			b[40], b[41], b[42], b[43] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
		}
		seal(b)
		cluster, generation, list, err := decodeIndex(b)
		if mayFail(t, err) {
			if list != nil || generation != 0 {
				t.Fatal("a partial value came with an error")
			}
			return
		}
		if again := encodeIndex(cluster, generation, list); !bytes.Equal(again, b) {
			t.Fatalf("%v does not encode to what it was decoded from", list)
		}
	})
}

// FuzzRegion decodes a region of the activity log, and the log of the index, from records that a fuzzer makes.
func FuzzRegion(f *testing.F) {
	var recs []byte
	for i, r := range []record{{kindMark, 10, 77}, {kindUnmark, 2, 77}, {kindMark, 1, 78}} {
		recs = r.append(recs, uint64(i), 4)
	}
	f.Add(uint64(4), uint16(0), recs)
	f.Add(uint64(4), uint16(900), recs)
	b, again := make([]byte, regionSize), make([]byte, 0, regionSize)
	f.Fuzz(func(t *testing.T, generation uint64, at uint16, recs []byte) {
		clear(b)
		encodeRegionHeader(b, testCluster, generation)
		n := copy(b[slotSize+int(at)%regionRecords*recordSize:], recs)
		g, err := decodeRegion(b)
		if mayFail(t, err) {
			t.Fatal("a sound header was refused")
		}
		if g.records == 0 && !g.gap && g.damage == nil && len(g.active) > 0 {
			t.Fatalf("%v is active without a record", g.active)
		}
		for c, x := range g.active {
			if x == 0 {
				t.Fatalf("chunk %v is active without an extent", c)
			}
		}
		if g.damage == nil && !g.gap {
			// What was decoded can be written down again and means the same.
			again = append(again[:0], b[:slotSize]...)
			i := uint64(0)
			for c, x := range g.active {
				again = record{kindMark, x, c}.append(again, i, generation)
				i++
			}
			again = append(again, make([]byte, regionSize-len(again))...)
			if h, err := decodeRegion(again); err != nil || h.damage != nil || !maps.Equal(h.active, g.active) {
				t.Fatalf("%v was written again and is %v, %v", g.active, h.active, err)
			}
		}
		if g2, err := decodeRegionHeader(b); err == nil {
			g2.successor(b)
		}
		touched, records, err := decodeIndexLog(b[slotSize:], generation)
		if !mayFail(t, err) && len(touched) > records {
			t.Fatalf("%d chunks in %d records", len(touched), records)
		}
		_ = n
	})
}

// FuzzChunkFile loads, dumps and scrubs a chunk whose header, table or data a fuzzer has changed. Whatever is in it, nothing is served
// that does not match its checksum, and a join makes the chunk good again.
func FuzzChunkFile(f *testing.F) {
	f.Add(uint32(0), []byte{1}, true)
	f.Add(uint32(tableOffset), []byte{1, 2, 3, 4}, false)
	f.Add(uint32(12), []byte{4}, true)
	f.Add(uint32(dataOffset+5), []byte{99}, false)
	f.Add(uint32(slotSize+40), []byte{7, 0, 0, 0, 0, 0, 0, 0}, true)
	d := new(disk.Faulty)
	o := testOptions(d, "/d")
	s := mustOpen(f, o)
	f.Cleanup(func() { s.Close() })
	five := bytes.Repeat([]byte{5}, 4*chunk.BlockSize)
	c := id.ChunkID(0)
	f.Fuzz(func(t *testing.T, at uint32, change []byte, fix bool) {
		if len(change) > 8192 {
			return
		}
		c++
		must(t, s.Create(c, 3))
		must(t, write(s, c, 3, 100, bytes.Repeat([]byte{7}, 9000)))
		_, err := s.settlePass(s.now(), 10)
		must(t, err)
		e := s.find(c)
		e.gate.Lock() // as if the store had just been opened
		s.forget(e)
		s.closeImage(e)
		e.known, e.indexed = false, false
		e.gate.Unlock()
		file, err := d.Open(s.pathOf(c), disk.ReadWrite)
		must(t, err)
		_, err = file.WriteAt(change, int64(at)%(dataOffset+16<<10))
		must(t, err)
		if fix { // so that the change is behind the header's checksum
			b := make([]byte, 2*slotSize)
			_, err = file.ReadAt(b, 0)
			must(t, err)
			seal(b)
			seal(b[slotSize:])
			_, err = file.WriteAt(b, 0)
			must(t, err)
		}
		// A header may say that the chunk is another one's; nothing of it may panic.
		_, _ = DumpChunk(io.Discard, o, c, DumpOptions{Table: true, From: 50, To: 5000})
		var cold coldChunk
		s.scrubPiece(&cold, c, 0, newStage())
		cold.close()
		infos, _ := s.List(c-1, 1)
		if len(infos) != 1 || infos[0].ID != c {
			t.Fatal(infos)
		}
		epoch := infos[0].Epoch
		if infos[0].State == repl.Unclean {
			must(t, s.Accept(c))
		}
		_, _ = read(s, c, epoch, 0, 4*chunk.BlockSize) // verifies what it gets
		if epoch < 1<<63 {
			must(t, s.Join(c, epoch+1))
			_, err := s.RepairWrite(c, epoch+1, 0, five, chunk.AppendSums(nil, 0, five))
			must(t, err)
			must(t, s.Promote(c, epoch+1))
			got, err := read(s, c, epoch+1, 0, 4*chunk.BlockSize)
			if err != nil || !bytes.Equal(got, five) {
				t.Fatalf("after the rebuild: %v", err)
			}
		}
		must(t, s.Delete(c))
		if n, _ := s.BadBlocks(0); n != 0 || len(s.BadChunks(9)) != 0 {
			t.Fatalf("%d bad blocks are left of chunks that are gone", n)
		}
	})
}

// A chunk id as the name of a file is what it was made from.
func FuzzChunkName(f *testing.F) {
	f.Add("0000000000000001.chk")
	f.Add("0000000000000001.chk.new")
	f.Fuzz(func(t *testing.T, name string) {
		if len(name) > 200 || bytes.ContainsAny([]byte(name), "/\x00") || name == "" || name == "." || name == ".." {
			return
		}
		d := new(disk.Faulty)
		must(t, d.MkdirAll("/d/chunks/01"))
		file, err := d.Open("/d/chunks/01/"+name, disk.ReadWrite|disk.Create)
		must(t, err)
		must(t, file.Close())
		ids, strays, err := listDir(d, "/d/chunks/01", 1)
		must(t, err)
		if len(ids)+len(strays) != 1 {
			t.Fatalf("%q: %v %v", name, ids, strays)
		}
		if len(ids) == 1 && id.ChunkID(ids[0]).String()+".chk" != name {
			t.Fatalf("%q is taken for chunk %v", name, ids[0])
		}
	})
}
