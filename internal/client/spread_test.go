package client

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"varve/iouring/reactor"
)

// TestLanesMove moves lanes to new connections again and again while workers write and read blocks of their own, on reactors and in goroutines: every read has
// what was written last, no operation fails, and no replica is dropped.
func TestLanesMove(t *testing.T) {
	const (
		workers = 4
		region  = 16 << 10
		moves   = 20 // of each kind
	)
	w := newWorld(t, 1, 3, 3, 2)
	c := w.dial(t, nil)
	f := create(t, c, "a")
	write(t, f, fill(workers*region, 1), 0)
	h := sit(t, c, reactor.Auto)
	h.warm(f)
	loc, _ := f.in.lookup(0)
	over := make(chan struct{})
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			off := int64(i * region)
			for n := byte(0); ; n++ {
				select {
				case <-over:
					return
				default:
				}
				want, got := fill(region, n), make([]byte, region)
				do := func(wr bool, p []byte) error {
					if i%2 == 0 {
						o := &hotOp{h: h, ended: make(chan hotEnd, 2)}
						begun := make(chan bool, 1)
						h.l.Do(func() {
							if wr {
								o.begun = f.BeginWrite(h.s, p, off, o)
							} else {
								o.begun = f.BeginRead(h.s, p, off, o)
							}
							begun <- o.begun
						})
						if <-begun {
							return (<-o.ended).err
						}
					}
					if wr {
						_, _, err := f.WriteAt(context.Background(), p, off, false)
						return err
					}
					_, err := f.ReadAt(context.Background(), p, off)
					return err
				}
				if err := do(true, want); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				if err := do(false, got); err != nil || !bytes.Equal(got, want) {
					t.Errorf("worker %d: what was written is not there: %v", i, err)
					return
				}
			}
		})
	}
	moved, hotMoved := 0, 0
	for end := time.Now().Add(2 * time.Minute); (moved < moves || hotMoved < moves) && time.Now().Before(end); {
		for i := range loc.replicas {
			srv := f.in.s.servers.server(&loc.replicas[i])
			for n := range srv.lanes {
				l := &srv.lanes[n]
				if old := l.usable(); old != nil && l.ready.CompareAndSwap(true, false) {
					if srv.move(n, old); l.conn.Load() != old {
						moved++
					}
				}
			}
			lane := srv.hotLane(h.seat().n, 0)
			if old := lane.cur.Load(); old != nil && lane.ready.CompareAndSwap(true, false) {
				before := lane.greeted.Load()
				if lane.move(old); lane.greeted.Load() > before {
					hotMoved++
				}
			}
		}
	}
	close(over)
	wg.Wait()
	if moved < moves || hotMoved < moves {
		t.Errorf("%d lanes and %d of the seat were moved", moved, hotMoved)
	}
	if n := len(w.replicas(f.in.ino, 0)); n != 3 {
		t.Errorf("%d replicas left", n)
	}
}

func TestLanesTo(t *testing.T) {
	for _, lanes := range []int{1, 2, 5, 16} {
		o := Options{Lanes: lanes}
		if n, width := o.lanesTo("10.0.0.1:2511"); n != lanes || width != 1 {
			t.Errorf("%d lanes without a bond: %d, %d of a seat", lanes, n, width)
		}
	}
}
