package ssd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"varve/internal/chunk"
	"varve/internal/disk"
	"varve/internal/fserr"
)

func sampleBatch() batch {
	return batch{
		sequence: 7, position: 1000, generation: 3, durable: 6, journal: UUID{1, 2},
		files: []batchFile{{1<<32 | 5, "chunks/01/0000000000000001.chk"}, {9, "active.log"}},
		entries: []entry{{kind: kindData, file: 0, page: 4, sums: []uint32{1, 2, 3}}, {kind: kindHole, file: 1, page: 0, sums: []uint32{4}},
			{kind: kindEnd, file: 1}},
	}
}

func TestBatchRoundTrip(t *testing.T) {
	b := sampleBatch()
	d := make([]byte, batchBlocks*pageSize)
	b.encode(d)
	got, err := decodeBatch(d[:b.head*pageSize])
	must(t, err)
	if !reflect.DeepEqual(got, b) {
		t.Fatalf("got %+v, want %+v", got, b)
	}
	for i := range int(b.head) * pageSize * 8 {
		if i/8 >= 300 && i%97 != 0 { // the padding, here and there
			continue
		}
		bad := bytes.Clone(d[:b.head*pageSize])
		bad[i/8] ^= 1 << (i % 8)
		if _, err := decodeBatch(bad); !errors.Is(err, errInvalid) {
			t.Fatalf("bit %d changed: %v", i, err)
		}
	}
	// The largest descriptor still fits.
	big := batch{}
	for i := range batchPages {
		big.files = append(big.files, batchFile{uint64(i), strings.Repeat("x", maxPath)})
		big.entries = append(big.entries, entry{kind: kindData, file: uint16(i), page: uint32(i), sums: []uint32{1}})
	}
	big.encode(d)
	if _, err := decodeBatch(d[:big.head*pageSize]); err != nil || big.blocks > batchBlocks || uint64(big.blocks) > batchPages*cost(1) {
		t.Fatalf("%d blocks: %v", big.blocks, err)
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	h := header{journal: UUID{1}, server: UUID{2}, cluster: [16]byte{3}, blocks: minRingBlocks, number: 4, generation: 5, first: 6, tail: 7, tailSeq: 8, durable: 9}
	b := make([]byte, pageSize)
	h.encode(b)
	if got, err := decodeHeader(b); err != nil || got != h {
		t.Fatalf("got %+v, %v, want %+v", got, err, h)
	}
	for i := range pageSize * 8 {
		bad := bytes.Clone(b)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := decodeHeader(bad); !errors.Is(err, errInvalid) {
			t.Fatalf("bit %d changed: %v", i, err)
		}
	}
}

// FuzzDecodeBatch feeds the decoder anything, with a right checksum, so that it comes to look at the rest.
func FuzzDecodeBatch(f *testing.F) {
	b := sampleBatch()
	d := make([]byte, batchBlocks*pageSize)
	b.encode(d)
	f.Add(bytes.Clone(d[:b.head*pageSize]))
	f.Add([]byte(batchMagic))
	f.Fuzz(func(t *testing.T, p []byte) {
		blocks := max(1, (len(p)+pageSize-1)/pageSize)
		if blocks > 8 {
			return
		}
		d := make([]byte, blocks*pageSize)
		copy(d, p)
		reseal(d)
		got, err := decodeBatch(d)
		if err != nil {
			if !errors.Is(err, errInvalid) || len(got.entries) != 0 || len(got.files) != 0 {
				t.Fatalf("%v with a partial value", err)
			}
			return
		}
		again := make([]byte, batchBlocks*pageSize)
		got.encode(again)
		if int(got.head) != blocks || !bytes.Equal(again[:len(d)], d) {
			t.Fatalf("%+v is not encoded as it was decoded", got)
		}
	})
}

// TestTorn tears the end of the journal in every block: what was synced is there, what was not is there whole or not at all, and nothing of
// it comes back behind what is written then.
func TestTorn(t *testing.T) {
	for cut := range 6 {
		fast, slow := new(disk.Faulty), new(disk.Faulty)
		b := newBench(t, fast, slow, "/fast", "/slow", minRingBlocks)
		b.still()
		f := b.mustFile("a.chk", 64*pageSize)
		put := func(page int64, v byte) {
			t.Helper()
			p := disk.AlignedBuffer(pageSize)
			for i := range p {
				p[i] = v
			}
			_, err := f.WriteAt(p, page*pageSize)
			must(t, err)
		}
		want := func(page int64, v byte) {
			t.Helper()
			p := disk.AlignedBuffer(pageSize)
			_, err := f.ReadAt(p, page*pageSize)
			must(t, err)
			if p[0] != v || p[pageSize-1] != v {
				t.Fatalf("cut %d: page %d is %d, want %d; %+v", cut, page, p[0], v, b.fs.Stats())
			}
		}
		put(0, 1)
		must(t, f.Sync())
		at := b.fs.ring.next
		put(0, 2)
		put(1, 3)
		put(2, 4)
		// Two blocks a batch: descriptor and page.
		must(t, fast.Flip("/fast/journal", b.fs.ring.place(at+uint64(cut))+100))
		fast.Kill()
		slow.Kill()
		b.open()
		b.still()
		f = b.mustFile("a.chk", 0)
		v := [3]byte{1, 0, 0}
		for i := range cut / 2 {
			v[i] = byte(2 + i)
		}
		for i, v := range v {
			want(int64(i), v)
		}
		put(5, 9) // takes the place of the torn batch
		must(t, f.Sync())
		fast.Crash(rand.New(rand.NewSource(1)))
		slow.Kill()
		b.open()
		f = b.mustFile("a.chk", 0)
		for i, v := range v {
			want(int64(i), v)
		}
		want(5, 9)
		must(t, f.Close())
		must(t, b.fs.Close())
	}
}

// TestDamage changes what was synced: a start refuses it, as far as it reads it; a read and destaging refuse it later.
func TestDamage(t *testing.T) {
	for block := range uint64(4) { // descriptor and page of the first batch and of the second
		fast, slow := new(disk.Faulty), new(disk.Faulty)
		b := newBench(t, fast, slow, "/fast", "/slow", minRingBlocks)
		b.still()
		f := b.mustFile("a.chk", 64*pageSize)
		at := b.fs.ring.next
		p := disk.AlignedBuffer(pageSize)
		for i := range int64(3) {
			_, err := f.WriteAt(p, i*pageSize)
			must(t, err)
			must(t, f.Sync())
		}
		must(t, fast.Flip("/fast/journal", b.fs.ring.place(at+block)+200))
		fast.Kill()
		slow.Kill()
		b.o.Generation = b.gens
		if _, err := Open(b.o); !errors.Is(err, ErrDamaged) {
			t.Fatalf("block %d: got %v, want that the journal is damaged", block, err)
		}
	}
}

// TestRot changes a page in the journal while it is open.
func TestRot(t *testing.T) {
	for _, read := range []bool{true, false} {
		fast, slow := new(disk.Faulty), new(disk.Faulty)
		b := newBench(t, fast, slow, "/fast", "/slow", minRingBlocks)
		b.still()
		f := b.mustFile("a.chk", 64*pageSize)
		at := b.fs.ring.next
		p := disk.AlignedBuffer(pageSize)
		_, err := f.WriteAt(p, 0)
		must(t, err)
		must(t, f.Sync())
		must(t, fast.Flip("/fast/journal", b.fs.ring.place(at+1)+200))
		if read {
			if _, err := f.ReadAt(p, 0); err == nil || !strings.Contains(err.Error(), "checksum") {
				t.Fatalf("read of a rotten page: %v", err)
			}
		} else {
			b.fs.destager.step()
		}
		if err := b.fs.Err(); err == nil || !strings.Contains(err.Error(), "checksum") {
			t.Fatalf("a journal with a rotten page goes on: %v", err)
		}
		if _, err := f.WriteAt(p, 0); err == nil {
			t.Fatal("a write to a journal that is out of service")
		}
	}
}

// TestFullDisk fills the slow disk: what is in the journal stays there and can be read, writes that have no room are refused as on a full
// disk, and all goes on when there is room.
func TestFullDisk(t *testing.T) {
	fast, slow := new(disk.Faulty), new(disk.Faulty)
	b := newBench(t, fast, slow, "/fast", "/slow", minRingBlocks)
	f := b.mustFile("a.chk", 4096*pageSize)
	sp, err := b.fs.Space("/slow")
	must(t, err)
	slow.SetCapacity(slow.Used() + 100*pageSize)
	p := disk.AlignedBuffer(pageSize)
	written := int64(0)
	for ; written < 4096; written++ {
		p[0], p[1] = byte(written), byte(written>>8)
		if _, err = f.WriteAt(p, written*pageSize); err != nil {
			break
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("%d pages written, then %v", written, err)
	}
	must(t, f.Sync())
	if st := b.fs.Stats(); !st.Full {
		t.Errorf("the statistics do not say that the disk is full: %+v", st)
	}
	if now, err := b.fs.Space("/slow"); err != nil || now.Free > sp.Free || now.Free != 0 {
		t.Errorf("%d bytes are free, %v", now.Free, err)
	}
	check := func() {
		t.Helper()
		for i := range written {
			_, err := f.ReadAt(p, i*pageSize)
			must(t, err)
			if p[0] != byte(i) || p[1] != byte(i>>8) {
				t.Fatalf("page %d has other bytes", i)
			}
		}
	}
	check()
	slow.SetCapacity(0)
	b.empty()
	check()
	must(t, f.Close())
	must(t, b.fs.Close())
}

// TestGenerations refuses an old copy of the journal, and a journal that goes with a newer copy of the server's directory.
func TestGenerations(t *testing.T) {
	fast, slow := new(disk.Faulty), new(disk.Faulty)
	b := newBench(t, fast, slow, "/fast", "/slow", minRingBlocks)
	for range 3 {
		must(t, b.fs.Close())
		b.open()
	}
	must(t, b.fs.Close())
	for _, g := range []uint64{b.gens - 2, b.gens + 1} {
		o := b.o
		o.Generation = g
		if _, err := Open(o); !errors.Is(err, ErrLost) {
			t.Errorf("generation %d, the journal has %d: %v", g, b.gens, err)
		}
	}
	// The server's side may be one behind: it died in between.
	b.gens--
	b.open()
	if b.gens != 5 {
		t.Errorf("generation %d, want 5", b.gens)
	}
	must(t, b.fs.Close())
	o := b.o
	o.Generation, o.Journal = b.gens, UUID{9}
	if _, err := Open(o); !errors.Is(err, ErrLost) {
		t.Errorf("another journal: %v", err)
	}
	must(t, Create(b.o)) // it is there
	if err := Create(o); !errors.Is(err, fserr.Exist) {
		t.Errorf("a second journal in one directory: %v", err)
	}
}

// TestDump reads a journal for people.
func TestDump(t *testing.T) {
	fast, slow := new(disk.Faulty), new(disk.Faulty)
	b := newBench(t, fast, slow, "/fast", "/slow", minRingBlocks)
	b.still()
	f := b.mustFile("a.chk", 64*pageSize)
	_, err := f.WriteAt(disk.AlignedBuffer(2*pageSize), 8*pageSize)
	must(t, err)
	must(t, f.PunchHole(9*pageSize, pageSize))
	must(t, f.Sync())
	var out strings.Builder
	must(t, Dump(&out, fast, "/fast"))
	for _, want := range []string{"generation 1", "data a.chk (100000001) offset 32768 length 8192", "hole a.chk (100000001) offset 36864 length 4096", "before batch 3"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in:\n%s", want, out.String())
		}
	}
}

// reseal writes the checksum of a descriptor.
func reseal(d []byte) { binary.LittleEndian.PutUint32(d[8:], chunk.Sum(d[12:])) }
