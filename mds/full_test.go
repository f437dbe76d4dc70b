package mds

import (
	"context"
	"fmt"
	"math/rand"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"varve/internal/disk"
	"varve/internal/fserr"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

const testReserve = 256 << 10

// faultyDisks gives each server of a cluster a disk of its own, in memory.
type faultyDisks struct {
	mu    sync.Mutex
	disks map[string]*disk.Faulty
}

func (f *faultyDisks) of(dir string) *disk.Faulty {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.disks == nil {
		f.disks = make(map[string]*disk.Faulty)
	}
	d := f.disks[dir]
	if d == nil {
		d = new(disk.Faulty)
		if err := d.MkdirAll(filepath.Dir(dir)); err != nil {
			panic(err)
		}
		f.disks[dir] = d
	}
	return d
}

// fill leaves free bytes on the disk.
func fill(d *disk.Faulty, free int64) { d.SetCapacity(max(d.Used()+free, 1)) }

// newFullCluster is a cluster with a disk for each server, run as Serve does: one that ends for want of room starts again.
func newFullCluster(t *testing.T, n int) (*testCluster, *faultyDisks) {
	t.Helper()
	f := new(faultyDisks)
	c := newCluster(t, n, func(o *Options) {
		o.FS, o.Reserve, o.SessionLease = f.of(o.Dir), testReserve, 20*time.Second
	})
	for i := range n {
		c.kill(i)
		c.serve(i)
	}
	return c, f
}

// serve runs a server until kill, or the end of the test.
func (c *testCluster) serve(i int) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := serve(ctx, c.options(i), 5*time.Second, func(s *Server) { c.set(i, s) }); err != nil {
			c.t.Errorf("server %d ended with %v", i, err)
		}
		c.set(i, nil)
	}()
	c.t.Cleanup(func() { cancel(); <-done })
}

// at returns a server as it is now, nil if it does not run.
func (c *testCluster) at(i int) *Server {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.servers[i]
}

func (c *testCluster) disk(i int) diskState {
	if s := c.at(i); s != nil && s.ctx.Err() == nil {
		return s.room.now()
	}
	return diskFull // it waits for room to start in, also where it was the journal that found none
}

// well reports whether a server runs, has room and has caught up.
func (c *testCluster) well(i int) bool {
	s, l := c.at(i), c.leading()
	return s != nil && l != nil && s.ctx.Err() == nil && s.room.now() == diskOK && s.fsm.index()+100 >= l.fsm.index()
}

func TestFollowerWithFullDiskStaysAndCatchesUp(t *testing.T) {
	t.Parallel()
	c, f := newFullCluster(t, 3)
	k := newClient(c)
	k.create("before", false)
	i := (c.leaderIndex() + 1) % 3
	d := f.of(c.dirs[i])
	fill(d, -testReserve) // even what the reserve gives back is taken
	c.eventually("the disk to be full", func() bool { return c.disk(i) == diskFull })
	for j := range 100 {
		k.create(fmt.Sprint("f", j), false)
	}
	c.eventually("the leader to say so", func() bool {
		for _, m := range c.leader().status().Metas {
			if m.Addr == c.addrs[i] {
				return m.Disk == string(diskFull) && m.State == "follower"
			}
		}
		return false
	})
	if s, lead := c.at(i), c.leader().fsm.index(); s != nil && s.fsm.index() >= lead {
		t.Errorf("the full server is at %d, the leader at %d", s.fsm.index(), lead)
	}
	d.SetCapacity(0)
	c.eventually("the server to catch up", func() bool { return c.well(i) })
	c.sameEverywhere()
}

func TestLeaderWithFullDiskHandsOver(t *testing.T) {
	t.Parallel()
	c, f := newFullCluster(t, 3)
	k := newClient(c)
	k.create("before", false)
	stop := load(k, "f")
	i := c.leaderIndex()
	fill(f.of(c.dirs[i]), testReserve) // less than the margin
	c.eventually("another leader", func() bool { l := c.leading(); return l != nil && l != c.at(i) })
	fill(f.of(c.dirs[i]), 0)
	c.eventually("the disk to be full", func() bool { return c.disk(i) == diskFull })
	time.Sleep(500 * time.Millisecond)
	if c.leader() == c.at(i) {
		t.Error("a server with a full disk leads")
	}
	f.of(c.dirs[i]).SetCapacity(0)
	c.eventually("room", func() bool { return c.well(i) })
	n := stop()
	if st := c.leader().status(); st.Inodes != uint64(n)+2 {
		t.Errorf("%d inodes, %d files were made", st.Inodes, n+1)
	}
	c.sameEverywhere()
}

func TestMajorityWithoutRoomTurnsAway(t *testing.T) {
	t.Parallel()
	c, f := newFullCluster(t, 3)
	k := newClient(c)
	ino := k.create("before", true).Attr.Ino
	lead := c.leaderIndex()
	for i := range c.servers {
		if i != lead {
			fill(f.of(c.dirs[i]), testReserve*3/2) // below the margin, and not full
		}
	}
	refused(c, k)
	k.must(k.read(&msg.Lookup{Parent: 1, Name: []byte("before")}))
	size := uint64(5) // what ends a write is let through
	k.must(k.change(&msg.SetAttr{Ino: ino, Size: &size, Flush: true}))
	for _, dir := range c.dirs {
		f.of(dir).SetCapacity(0)
	}
	c.eventually("changes to be taken again", func() bool {
		_, code := k.do(k.change(&msg.Create{Parent: 1, Name: []byte("yes"), Type: msg.FileType_REGULAR}))
		return code == fserr.OK
	})
	c.sameEverywhere()
}

// refused waits until a new file is refused for want of room, in words.
func refused(c *testCluster, k *testClient) {
	c.t.Helper()
	n := 0
	c.eventually("changes to be refused", func() bool {
		n++
		r, code := k.do(k.change(&msg.Create{Parent: 1, Name: fmt.Append(nil, "no", n), Type: msg.FileType_REGULAR}))
		return code == fserr.NoSpace && strings.Contains(r.Detail, "make room")
	})
}

func TestSingleServerWithFullDisk(t *testing.T) {
	t.Parallel()
	c, f := newFullCluster(t, 1)
	k := newClient(c)
	k.create("before", false)
	d := f.of(c.dirs[0])
	fill(d, 0)
	refused(c, k)
	k.must(k.read(&msg.Lookup{Parent: 1, Name: []byte("before")}))
	c.eventually("its end", func() bool { // one that has ended for want of room may just be starting again
		s := c.at(0)
		if s != nil {
			s.Kill()
		}
		return s == nil
	})
	c.serve(0) // with a full disk
	k.must(k.read(&msg.Lookup{Parent: 1, Name: []byte("before")}))
	if st := c.leader().status(); st.Disk == string(diskOK) {
		t.Errorf("it says that its disk is %q", st.Disk)
	}
	d.SetCapacity(0)
	c.eventually("changes to be taken again", func() bool {
		_, code := k.do(k.change(&msg.Create{Parent: 1, Name: []byte("yes"), Type: msg.FileType_REGULAR}))
		return code == fserr.OK
	})
}

// TestStartsWithoutRoom starts a server on a disk that has no room at all, with room taken by somebody else even for what the reserve gives back.
func TestStartsWithoutRoom(t *testing.T) {
	t.Parallel()
	c, f := newFullCluster(t, 1)
	k := newClient(c)
	k.create("before", false)
	c.at(0).Kill()
	c.eventually("its end", func() bool { return c.at(0) == nil })
	d := f.of(c.dirs[0])
	d.SetCapacity(1)
	d.Inject(func(op disk.Op) error { // no segment, no file can be opened for writing
		if op.Kind == disk.OpOpen && strings.HasSuffix(op.Path, "lock") {
			return syscall.ENOSPC
		}
		return nil
	})
	c.serve(0)
	c.eventually("word that the disk is full", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		conn, _, err := wire.Dial(ctx, c.addrs[0], &msg.Hello{Role: msg.Hello_ADMIN}, nil, wire.Options{})
		if err != nil {
			return false
		}
		defer conn.Close()
		st := new(msg.StatusReply)
		code, err := conn.CallMessage(ctx, wire.Status, wire.ClassMeta, &msg.Status{}, st)
		if err != nil || code != fserr.OK || st.Disk != string(diskFull) {
			return false
		}
		code, err = conn.CallMessage(ctx, wire.RemoveMeta, wire.ClassMeta, &msg.RemoveMeta{Server: 1}, &msg.AdminReply{})
		return err == nil && code == fserr.NotLeader
	})
	d.Inject(nil)
	d.SetCapacity(0)
	k.must(k.read(&msg.Lookup{Parent: 1, Name: []byte("before")}))
	k.create("after", false)
}

// TestDisksFillUpAtRandom fills and empties the disks of a cluster under load, also so far that a server cannot even start. Nothing that was
// acknowledged is lost, nothing is done twice, and all are the same in the end.
func TestDisksFillUpAtRandom(t *testing.T) {
	t.Parallel()
	c, f := newFullCluster(t, 3)
	k := newClient(c)
	loading, endLoad := context.WithCancel(context.Background())
	defer endLoad()
	done := make(chan struct{})
	made := make(map[string]uint64)
	go func() {
		defer close(done)
		for n := 0; loading.Err() == nil; n++ {
			name := fmt.Sprint("f", n)
			req := k.change(&msg.Create{Parent: 1, Name: []byte(name), Type: msg.FileType_REGULAR, Exclusive: true})
			r, code := k.do(req) // repeated until decided; a repeat gets the first answer
			switch code {
			case fserr.OK:
				made[name] = r.Attr.Ino
			case fserr.NoSpace:
			default:
				t.Errorf("create %s: %v %s", name, code, r.Detail)
			}
			time.Sleep(time.Millisecond)
		}
	}()
	rng := rand.New(rand.NewSource(1))
	for range 12 {
		d := f.of(c.dirs[rng.Intn(3)])
		switch rng.Intn(4) {
		case 0:
			d.SetCapacity(0)
		case 1:
			fill(d, int64(rng.Intn(3*testReserve)))
		case 2:
			fill(d, -int64(rng.Intn(2*testReserve)))
		case 3: // writes fail before the next look at the disk
			n := rng.Intn(200)
			d.Inject(func(op disk.Op) error {
				if n--; n < 0 && n > -20 && op.Kind == disk.OpWrite {
					return syscall.ENOSPC
				}
				return nil
			})
		}
		time.Sleep(time.Duration(rng.Intn(700)) * time.Millisecond)
	}
	for _, dir := range c.dirs {
		f.of(dir).SetCapacity(0)
		f.of(dir).Inject(nil)
	}
	c.eventually("all to be well", func() bool { return c.well(0) && c.well(1) && c.well(2) })
	endLoad()
	<-done
	for name, ino := range made {
		if r := k.must(k.read(&msg.Lookup{Parent: 1, Name: []byte(name)})); r.Attr.Ino != ino {
			t.Errorf("%s is inode %d, was acknowledged as %d", name, r.Attr.Ino, ino)
		}
	}
	c.sameEverywhere()
}
