package cs

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/fserr"
	"varve/internal/id"
	"varve/internal/waits"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

// TestLaneNumbers: lanes without a bond are those that every release knows; with one each slave gets as many, and a chunk keeps its lane.
func TestLaneNumbers(t *testing.T) {
	for _, c := range []struct{ links, replication int }{{1, 2}, {2, 2}, {3, 3}, {4, 4}, {8, 8}} {
		p := newPeers(id.Cluster{1}, 1, &Options{})
		p.widths[7] = c.links
		seen := map[wire.Class]map[uint32]bool{}
		ways := map[wire.Class]map[int]int{} // of the slaves
		for chunk := range id.ChunkID(240) {
			for _, class := range []wire.Class{wire.ClassReplication, wire.ClassRepair, wire.ClassRebalance} {
				lane := p.lane(7, chunk, class)
				if got := laneClass(lane); got != class || lane != p.lane(7, chunk, class) {
					t.Fatalf("lane %d of class %d is of class %d, or another one each time", lane, class, got)
				}
				if seen[class] == nil {
					seen[class], ways[class] = map[uint32]bool{}, map[int]int{}
				}
				seen[class][lane] = true
				ways[class][(laneWay(lane)-1)%c.links]++
			}
		}
		if len(seen[wire.ClassReplication]) != c.replication || len(seen[wire.ClassRepair]) != c.links || len(seen[wire.ClassRebalance]) != c.links {
			t.Errorf("%d links: lanes %v", c.links, seen)
		}
		for class, n := range ways {
			for k := range c.links {
				if n[k] != 240/c.links {
					t.Errorf("%d links, class %d: slave %d has %d of 240 chunks", c.links, class, k, n[k])
				}
			}
		}
		if c.links == 1 && !(seen[wire.ClassReplication][0] && seen[wire.ClassReplication][1] && seen[wire.ClassRepair][2] && seen[wire.ClassRebalance][3]) {
			t.Errorf("without a bond: lanes %v", seen)
		}
	}
}

// echo answers every request.
type echo struct{}

func (echo) Serve(_ context.Context, c *wire.Conn, f *wire.Frame) { _ = c.Reply(f, fserr.OK, nil, nil) }

// TestLinkMoves: a lane to a peer goes to another connection while requests go over it, and none is lost but for those that whoever sends them sends again.
func TestLinkMoves(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	l, err := wire.Listen(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	lanes := &lanes{conns: map[laneKey]*wire.Conn{}, waits: &waits.Table{Log: slog.New(slog.DiscardHandler)}}
	s := &wire.Server{Accept: func(c *wire.Conn, h *msg.Hello) (wire.Handler, *msg.HelloReply, fserr.Code) {
		lanes.take(laneKey{h.Role, uint64(h.Server), h.Lane}, c)
		return echo{}, &msg.HelloReply{Server: 7}, fserr.OK
	}}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() {
		l.Close()
		s.Close()
		<-served
	}()
	p := newPeers(id.Cluster{1}, 1, &Options{Network: wire.TCP{}})
	defer p.close()
	p.learn([]*msg.Peer{{Server: 7, Addr: l.Addr().String()}})
	var done atomic.Bool
	var asked atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for !done.Load() {
				for again := false; ; again = true {
					conn, fresh, err := p.conn(ctx, 7, 1)
					if err != nil {
						t.Errorf("no connection: %v", err)
						return
					}
					reply, err := conn.Call(ctx, &wire.Frame{Type: wire.Flush, Class: wire.ClassReplication})
					if err == nil {
						reply.Release()
						asked.Add(1)
						break
					}
					if fresh && again {
						t.Errorf("a request on a new connection: %v", err)
						return
					}
				}
			}
		})
	}
	key := linkKey{7, 1}
	moved := 0
	for moved < 20 && ctx.Err() == nil {
		p.mu.Lock()
		link := p.links[key]
		p.mu.Unlock()
		if link == nil {
			time.Sleep(time.Millisecond)
			continue
		}
		link.op <- struct{}{}
		old, addr := link.conn, link.addr
		<-link.op
		if old == nil {
			time.Sleep(time.Millisecond)
			continue
		}
		p.move(ctx, key, link, old, addr)
		link.op <- struct{}{}
		if link.conn != old {
			moved++
		}
		<-link.op
	}
	done.Store(true)
	wg.Wait()
	if moved < 20 || asked.Load() == 0 {
		t.Errorf("moved %d times under %d requests", moved, asked.Load())
	}
}
