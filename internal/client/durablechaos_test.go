package client

import (
	"bytes"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/chunk"
	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/iouring/reactor"
)

// TestDurableUnderFaults has a file written as logs are, and now and then otherwise, while servers break connections, are away, answer late or refuse, restart as a
// version that knows of no durable writes, and another mount takes the lease away. Whenever a flush has ended, whomever it asked, all that was written is on
// stable media of each replica there is.
func TestDurableUnderFaults(t *testing.T) {
	const rounds, region = 160, 8
	w := newWorld(t, 1, 3, 3, 2)
	for _, cs := range w.cs {
		cs.set(func() { cs.takes = wire.Takes })
	}
	c := w.dial(t, func(o *Options) {
		o.FlushEvery, o.ReadTimeout, o.WriteTimeout, o.Lanes, o.Relay = time.Hour, 100*time.Millisecond, 150*time.Millisecond, 1, RelayNever
	})
	f := create(t, c, "a")
	model := fill(region*chunk.BlockSize, 1)
	write(t, f, model, 0)
	h := sit(t, c, reactor.Auto)
	h.warm(f)
	rnd := rand.New(rand.NewPCG(7, 7))
	put := func(slowly bool) {
		t.Helper()
		at := rnd.IntN(region-1)*chunk.BlockSize + rnd.IntN(2)*100
		p := fill(chunk.BlockSize, byte(rnd.Uint32()))
		copy(model[at:], p)
		if !slowly {
			if o := h.begin(f, true, p, int64(at)); o != nil {
				if n, err := o.wait(); err != nil || n != len(p) {
					t.Fatalf("write at %d: %d, %v", at, n, err)
				}
				return
			}
		}
		write(t, f, p, int64(at))
	}
	flush := func() {
		t.Helper()
		var err error
		if o := h.fsync(f); o != nil {
			_, err = o.wait()
		} else {
			err = f.Fsync(t.Context(), true)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	tried := func() bool { // each kind of end; on a busy machine it takes more rounds until a write on the reactor meets a fault
		st := c.HotStats()
		return st.DurableWrites > 0 && st.Flushes > 0 && st.WritesLeft > 0
	}
	for n := 0; n < rounds || n < 10*rounds && !tried(); n++ {
		s := w.cs[id.ServerID(1+rnd.IntN(3))]
		switch {
		case n < 2*habitual || n%4 != 0:
		case n/4%6 == 0:
			s.mu.Lock()
			for _, conn := range s.conns {
				conn.Close()
			}
			s.mu.Unlock()
		case n/4%6 == 1: // another version
			s.stop()
			s.set(func() { s.takes ^= wire.Takes })
			s.start()
		case n/4%6 == 2 || n/4%6 == 3:
			code := []fserr.Code{fserr.OK, fserr.StaleEpoch, fserr.NotReady, fserr.NoChunk, fserr.IO}[rnd.IntN(5)]
			late := rnd.IntN(2) == 0
			var times atomic.Int32
			times.Store(1 + rnd.Int32N(2))
			s.set(func() {
				s.before = func(typ wire.Type, _ *wire.DataRequest) fserr.Code {
					if typ != wire.Write && typ != wire.Flush || times.Add(-1) < 0 {
						return fserr.OK
					}
					if late {
						time.Sleep(200 * time.Millisecond)
					}
					return code
				}
			})
		case n/4%6 == 4:
			other := w.dial(t, nil)
			open(t, other, f, true)
			put(false) // while it is shared
			if err := other.Close(); err != nil {
				t.Error(err)
			}
			lease, cb := uint64(0), msg.Callback{Kind: msg.Callback_UPGRADE, Ino: uint64(f.Ino()), Mode: msg.Mode_EXCLUSIVE_WRITE}
			f.in.mu.Lock()
			lease = f.in.lease
			f.in.mu.Unlock()
			cb.Lease = lease
			w.call(uint64(c.Session()), &cb)
		default:
			put(false) // twice, and no flush in between
		}
		put(n%11 == 10)
		flush()
		for _, k := range w.replicas(f.Ino(), 0) {
			r := w.cs[k]
			w.mu.Lock()
			chunkID := id.ChunkID(w.inodes[uint64(f.Ino())].chunks[0].Id)
			w.mu.Unlock()
			dirty := false
			r.set(func() { dirty = r.chunks[chunkID].dirty })
			if dirty {
				t.Fatalf("round %d: %v has not flushed all", n, k)
			}
			if !bytes.Equal(r.content(f.Ino(), 0, len(model)), model) {
				t.Fatalf("round %d: %v has other bytes", n, k)
			}
		}
	}
	t.Logf("%+v; %d replicas dropped", c.HotStats(), w.count("drop"))
	if !tried() {
		t.Error("nothing was tried")
	}
}
