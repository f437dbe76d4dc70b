package readcache

import (
	"container/list"
	"math/rand"
	"sync/atomic"
	"testing"
)

// policies run over numbers of slots.
type policy interface{ hit(n uint64) bool }

type s3 struct{ s shard }

func newS3(n int) *s3 {
	p := new(s3)
	p.s.init(0, n, make([]atomic.Uint64, n*shards))
	return p
}

func (p *s3) hit(n uint64) bool {
	k := key{chunk: n + 1}
	h := k.hash()
	if i := p.s.find(k, h); i != none {
		p.s.slots[i].freq = min(p.s.slots[i].freq+1, maxFreq)
		return true
	}
	p.s.add(k, h)
	return false
}

// plain is LRU, or FIFO.
type plain struct {
	cap   int
	lru   bool
	order *list.List
	at    map[uint64]*list.Element
}

func newPlain(n int, lru bool) *plain {
	return &plain{n, lru, list.New(), map[uint64]*list.Element{}}
}

func (p *plain) hit(n uint64) bool {
	if e := p.at[n]; e != nil {
		if p.lru {
			p.order.MoveToFront(e)
		}
		return true
	}
	if p.order.Len() == p.cap {
		e := p.order.Back()
		delete(p.at, e.Value.(uint64))
		p.order.Remove(e)
	}
	p.at[n] = p.order.PushFront(n)
	return false
}

// ratio is the share of hits of random reads by Zipf, with a scan of everything after each tenth.
func ratio(p policy, slots int, scan bool) float64 {
	rng := rand.New(rand.NewSource(1))
	all := 10 * slots
	z := rand.NewZipf(rng, 1.07, 8, uint64(all-1))
	perm := rng.Perm(all)
	hits, reads := 0, 0
	for round := range 10 {
		for range all {
			got := p.hit(uint64(perm[z.Uint64()]))
			if round >= 2 {
				reads++
				if got {
					hits++
				}
			}
		}
		if scan {
			for n := range all {
				p.hit(uint64(n))
			}
		}
	}
	return 100 * float64(hits) / float64(reads)
}

func TestPolicy(t *testing.T) {
	const slots = 512
	for _, scan := range []bool{false, true} {
		ours := ratio(newS3(slots), slots, scan)
		lru, fifo := ratio(newPlain(slots, true), slots, scan), ratio(newPlain(slots, false), slots, scan)
		t.Logf("scan %v: hits of S3-FIFO %.1f %%, LRU %.1f %%, FIFO %.1f %%", scan, ours, lru, fifo)
		if ours < lru || ours < fifo {
			t.Errorf("scan %v: S3-FIFO %.1f %%, LRU %.1f %%, FIFO %.1f %%", scan, ours, lru, fifo)
		}
	}
}

// TestShard: a shard finds what it has and nothing else, whatever comes and goes.
func TestShard(t *testing.T) {
	const slots = 100
	rng := rand.New(rand.NewSource(2))
	var s shard
	s.init(3, slots, make([]atomic.Uint64, 4*slots*shards))
	size := slots
	for n := range 30_000 {
		k := key{chunk: uint64(rng.Intn(300)) + 1, gen: 1, place: uint32(rng.Intn(2))}
		h := k.hash()
		switch i := s.find(k, h); {
		case i == none:
			if i, _ = s.add(k, h); i == none {
				t.Fatal("no slot")
			}
			s.slots[i].valid = 1
		case rng.Intn(4) == 0:
			s.drop(i)
		default:
			s.slots[i].freq = min(s.slots[i].freq+1, maxFreq)
		}
		if n%5000 == 0 {
			if size = slots + rng.Intn(slots); size < len(s.slots) {
				s.shrink(size)
			} else {
				s.grow(size)
			}
		}
		if n%97 == 0 {
			checkShard(t, &s)
		}
	}
}

func checkShard(t *testing.T, s *shard) {
	t.Helper()
	used, free := 0, 0
	for i := range s.slots {
		if x := &s.slots[i]; x.queue != inNone {
			used++
			if s.find(x.key, x.key.hash()) != uint32(i) {
				t.Fatalf("slot %d is not found by its key", i)
			}
		}
	}
	for i := s.free; i != none; i = s.slots[i].next {
		free++
	}
	queued := 0
	for _, q := range []*queue{&s.small, &s.main} {
		n := 0
		for i, prev := q.head, none; i != none; prev, i = i, s.slots[i].next {
			if s.slots[i].prev != prev {
				t.Fatal("queue is torn")
			}
			n++
		}
		if n != q.n {
			t.Fatalf("queue of %d has %d", q.n, n)
		}
		queued += n
	}
	if used != queued || used+free != len(s.slots) {
		t.Fatalf("%d used, %d queued, %d free of %d", used, queued, free, len(s.slots))
	}
}
