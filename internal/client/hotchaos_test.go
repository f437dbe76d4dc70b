package client

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/wire"
	"varve/internal/wire/msg"
	"varve/iouring/reactor"
)

// TestHotUnderFaults has workers write and read blocks of their own on two reactors, or as goroutines where that cannot begin, while servers are killed
// and come back, connections break, answers are late and damaged, and another mount takes the lease away. Every read must have what was written
// last, and in the end all replicas.
func TestHotUnderFaults(t *testing.T) {
	const (
		workers = 8
		region  = 48 << 10
		faults  = 24
		between = 25 // operations begun on reactors between two faults, if they come in time
	)
	w := newWorld(t, 1, 3, 3, 2)
	c := w.dial(t, func(o *Options) {
		o.ReadTimeout, o.WriteTimeout, o.Lanes = 100*time.Millisecond, 150*time.Millisecond, 1
	})
	f := create(t, c, "a")
	model := fill(workers*region, 1)
	write(t, f, model, 0)
	seats := []*hotTest{sit(t, c, reactor.Auto), sit(t, c, reactor.Poll)}
	for _, h := range seats {
		h.warm(f)
	}
	var begun, refused atomic.Int64
	var over atomic.Bool
	do := func(h *hotTest, wr bool, p []byte, off int64) (int, error) {
		o := &hotOp{h: h, ended: make(chan hotEnd, 2)}
		ok := make(chan bool, 1)
		h.l.Do(func() {
			if wr {
				o.begun = f.BeginWrite(h.s, p, off, o)
			} else {
				o.begun = f.BeginRead(h.s, p, off, o)
			}
			ok <- o.begun
		})
		if <-ok {
			begun.Add(1)
			e := <-o.ended
			return e.n, e.err
		}
		refused.Add(1)
		if wr {
			n, _, err := f.WriteAt(context.Background(), p, off, false)
			return n, err
		}
		return f.ReadAt(context.Background(), p, off)
	}
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(i)))
			mine := model[i*region:][:region]
			for n := 0; !over.Load(); n++ {
				at := rnd.IntN(region - 1)
				size := 1 + rnd.IntN(min(12<<10, region-at))
				if n%3 == 0 { // whole blocks
					at, size = at&^4095, 4096
				}
				h := seats[rnd.IntN(len(seats))]
				if rnd.IntN(2) == 0 {
					p := make([]byte, size)
					for k := range p {
						p[k] = byte(rnd.Uint32())
					}
					if got, err := do(h, true, p, int64(i*region+at)); err != nil || got != size {
						t.Errorf("write of %d at %d: %d, %v", size, i*region+at, got, err)
						return
					}
					copy(mine[at:], p)
					continue
				}
				p := make([]byte, size)
				if got, err := do(h, false, p, int64(i*region+at)); err != nil || got != size || !bytes.Equal(p, mine[at:][:size]) {
					t.Errorf("read of %d at %d: %d, %v, right: %t", size, i*region+at, got, err, bytes.Equal(p, mine[at:][:size]))
					return
				}
			}
		})
	}
	rnd := rand.New(rand.NewPCG(2, 3))
	tried := func() bool { // each kind of end; on a busy machine it takes more faults until a write on a reactor meets one
		st := c.HotStats()
		return st.Reads > 0 && st.Writes > 0 && st.WritesLeft > 0
	}
	for n := 0; n < faults || n < 10*faults && !tried(); n++ {
		for from, end := begun.Load(), time.Now().Add(200*time.Millisecond); begun.Load() < from+between && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		s := w.cs[id.ServerID(1+rnd.IntN(3))]
		switch n % 6 {
		case 0: // its connections break
			s.mu.Lock()
			for _, conn := range s.conns {
				conn.Close()
			}
			s.mu.Unlock()
		case 1: // it is away for a moment
			s.stop()
			time.Sleep(time.Duration(rnd.IntN(30)) * time.Millisecond)
			s.start()
		case 2: // it is slow, up to beyond the time-outs
			var once atomic.Int32
			once.Store(int32(1 + rnd.IntN(4)))
			d := time.Duration(50+rnd.IntN(200)) * time.Millisecond
			s.set(func() {
				s.before = func(wire.Type, *wire.DataRequest) fserr.Code {
					if once.Add(-1) >= 0 {
						time.Sleep(d)
					}
					return fserr.OK
				}
			})
		case 3: // it refuses
			code := []fserr.Code{fserr.StaleEpoch, fserr.NotReady, fserr.NoChunk}[rnd.IntN(3)]
			var once atomic.Int32
			once.Store(2)
			s.set(func() {
				s.before = func(wire.Type, *wire.DataRequest) fserr.Code {
					if once.Add(-1) >= 0 {
						return code
					}
					return fserr.OK
				}
			})
		case 4: // another mount has the file open for a moment
			other := w.dial(t, nil)
			open(t, other, f, true)
			if err := other.Close(); err != nil {
				t.Error(err)
			}
			f.in.mu.Lock()
			lease := f.in.lease
			f.in.mu.Unlock()
			w.call(uint64(c.Session()), &msg.Callback{Kind: msg.Callback_UPGRADE, Ino: uint64(f.Ino()), Lease: lease, Mode: msg.Mode_EXCLUSIVE_WRITE})
		case 5: // it damages what it is asked for
			s.set(func() { s.damage = true })
			time.Sleep(5 * time.Millisecond)
			s.set(func() { s.damage = false })
		}
	}
	over.Store(true)
	wg.Wait()
	for _, s := range w.cs {
		s.set(func() { s.before = nil })
	}
	if got := read(t, f, 0, len(model)); !bytes.Equal(got, model) {
		t.Error("other bytes in the end")
	}
	if bad := w.unequal(f, model, w.replicas(f.Ino(), 0)...); bad != nil {
		t.Errorf("%v of %v differ", bad, w.replicas(f.Ino(), 0))
	}
	if n := f.in.s.changing.Load(); n != 0 {
		t.Errorf("%d changes are under way", n)
	}
	t.Logf("%d begun on reactors, %d not; %+v; %d replicas dropped", begun.Load(), refused.Load(), c.HotStats(), w.count("drop"))
	if !tried() {
		t.Error("nothing was tried")
	}
}
