package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mrand "math/rand"
	"path/filepath"
	"testing"
	"time"

	"varve/cs"
	"varve/cs/store"
	core "varve/internal/client"
	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/mds"
	"varve/test/ports"
)

// powered is a cluster in this process: a metadata server, and chunk servers on disks that can lose power.
type powered struct {
	t       *testing.T
	addr    string
	meta    *mds.Server
	cluster id.Cluster
	disks   []*disk.Faulty
	servers []*cs.Server
	boot    int
}

func newPowered(t *testing.T) *powered {
	t.Helper()
	p := &powered{t: t, addr: ports.Hold(t)}
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	o := mds.Options{Dir: filepath.Join(t.TempDir(), "mds"), Addr: p.addr, Name: "power", Logger: quiet, UncleanWait: time.Hour}
	var err error
	if p.cluster, err = mds.Init(o); err != nil {
		t.Fatal(err)
	}
	o.Addr, o.Name = "", ""
	if p.meta, err = mds.Open(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for i, s := range p.servers {
			s.Kill()
			p.disks[i].Kill()
		}
		p.meta.Kill()
		if err := p.meta.Run(); err != nil {
			t.Errorf("metadata server: %v", err)
		}
	})
	for i := range 3 {
		p.disks = append(p.disks, new(disk.Faulty))
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		_, err := cs.Init(ctx, p.options(i))
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		p.servers = append(p.servers, nil)
		p.start(i)
	}
	return p
}

func (p *powered) options(i int) cs.Options {
	return cs.Options{
		FS: p.disks[i], Dir: "/cs", Metas: []string{p.addr}, Addr: "127.0.0.1:0", Host: fmt.Sprint("h", i), Memory: cs.MinMemory,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Store:  store.Options{Boot: fmt.Sprint("boot", p.boot), SettleAfter: time.Hour, CountAfter: -1, ScrubRate: -1},
	}
}

func (p *powered) start(i int) {
	p.t.Helper()
	s, err := cs.Open(p.options(i))
	if err != nil {
		p.t.Fatal(err)
	}
	p.servers[i] = s
	go func() { _ = s.Run(context.Background()) }() // ends with Kill
}

// fall ends all chunk servers at once, by a loss of power or by the death of their processes, and starts them again.
func (p *powered) fall(power bool, rng *mrand.Rand) {
	p.t.Helper()
	for _, d := range p.disks {
		if power {
			d.PowerOff()
		} else {
			d.Kill() // handles of the dead process do nothing any more
		}
	}
	for i, s := range p.servers {
		s.Kill()
		if power {
			p.disks[i].Crash(rng)
		} else {
			p.disks[i].Kill()
		}
	}
	if power {
		p.boot++
	}
	for i := range p.servers {
		p.start(i)
	}
}

// whole waits until every replica is in sync and says what each chunk holds, which must be the same everywhere.
func (p *powered) whole() {
	p.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := p.compare()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("replicas are not equal: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func ask(addr string, hello *msg.Hello, t wire.Type, req, reply wire.Message) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, _, err := wire.Dial(ctx, addr, hello, nil, wire.Options{})
	if err != nil {
		return err
	}
	defer conn.Close()
	code, err := conn.CallMessage(ctx, t, wire.ClassMeta, req, reply)
	if err == nil {
		err = code.Err()
	}
	return err
}

func (p *powered) compare() error {
	st := new(msg.StatusReply)
	if err := ask(p.addr, &msg.Hello{Role: msg.Hello_ADMIN}, wire.Status, &msg.Status{}, st); err != nil {
		return err
	}
	if st.Degraded > 0 || st.Joining > 0 {
		return fmt.Errorf("%d chunks are degraded, %d replicas joining", st.Degraded, st.Joining)
	}
	var first []byte
	for _, s := range p.servers {
		hello := &msg.Hello{Cluster: p.cluster[:], Role: msg.Hello_ADMIN}
		list := new(msg.ChunkListReply)
		if err := ask(s.Addr(), hello, wire.ChunkList, &msg.ChunkList{}, list); err != nil {
			return err
		}
		if len(list.Chunks) != 1 || list.Chunks[0].Unclean || list.Chunks[0].Joining {
			return fmt.Errorf("%v has %v", s.ID(), list.Chunks)
		}
		v := new(msg.ChunkVerifyReply)
		if err := ask(s.Addr(), hello, wire.ChunkVerify, &msg.ChunkVerify{Chunk: list.Chunks[0].Id}, v); err != nil {
			return err
		}
		if v.Bad > 0 || first != nil && !bytes.Equal(first, v.Digest) {
			return fmt.Errorf("%v differs, %d bad blocks", s.ID(), v.Bad)
		}
		first = v.Digest
	}
	return nil
}

// TestPowerLossEverywhere: all chunk servers lose power at once while a client writes and lives on. What was flushed is there, replicas are equal,
// a block that was read stays what it is, and an fsync of what was lost fails, once. If only the processes die, nothing is lost.
func TestPowerLossEverywhere(t *testing.T) {
	needProcesses(t) // it starts none, but takes as long as those that do
	p := newPowered(t)
	rng := mrand.New(mrand.NewSource(time.Now().UnixNano()))
	c, err := core.Dial(t.Context(), core.Options{Cluster: p.cluster, Addrs: []string{p.addr}, NoLocal: true,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	attr, f, err := c.Create(t.Context(), &msg.Cred{}, &msg.Create{Parent: uint64(id.Root), Name: []byte("vm"), Type: msg.FileType_REGULAR, Perm: 0o600, Open: true})
	if err != nil {
		t.Fatal(err)
	}
	const blocks, size = 64, 4096
	content := func(round byte) []byte { return bytes.Repeat([]byte{round}, size) }
	write := func(block int, round byte) {
		t.Helper()
		if _, _, err := f.WriteAt(t.Context(), content(round), int64(block)*size, false); err != nil {
			t.Fatal(err)
		}
	}
	read := func() []byte {
		t.Helper()
		b := make([]byte, blocks*size)
		if _, err := f.ReadAt(t.Context(), b, 0); err != nil {
			t.Fatalf("inode %d: %v", attr.Ino, err)
		}
		return b
	}
	for b := range blocks {
		write(b, 1)
	}
	if err := f.Fsync(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	round := byte(1)
	for _, power := range []bool{false, true, true} {
		round++
		flushed := map[int]bool{}
		for b := 0; b < blocks; b += 2 {
			write(b, round)
			flushed[b] = true
		}
		if err := f.Fsync(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		before := read()
		round++
		for b := 1; b < blocks; b += 4 {
			write(b, round) // not flushed
		}
		p.fall(power, rng)
		err := f.Fsync(t.Context(), true)
		if lost := errors.Is(err, fserr.IO); lost != power || !lost && err != nil {
			t.Fatalf("power lost %t: fsync of what was not flushed: %v", power, err)
		}
		if err := f.Fsync(t.Context(), true); err != nil {
			t.Fatalf("a second fsync: %v", err)
		}
		p.whole()
		got := read()
		for b := range blocks {
			at := got[b*size : (b+1)*size]
			old, young := bytes.Equal(at, before[b*size:(b+1)*size]), bytes.Equal(at, content(round))
			switch {
			case flushed[b] && !old:
				t.Fatalf("power lost %t: flushed block %d is gone", power, b)
			case !power && b%4 == 1 && !young:
				t.Fatalf("block %d, which was answered, is gone though no power was lost", b)
			case !old && !young && (!power || b%4 != 1): // a block that was being written may be torn
				t.Fatalf("power lost %t: block %d holds neither what it held nor what was written", power, b)
			}
		}
		for range 3 { // reads go to one replica or another
			if again := read(); !bytes.Equal(got, again) {
				t.Fatal("a block read twice is not the same")
			}
		}
	}
	if err := f.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
}
