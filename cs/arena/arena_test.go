package arena

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
)

func mustNew(t testing.TB, o Options) *Arena {
	t.Helper()
	if o.Size == 0 {
		o.Size = MinSize(1) + 4*SlabSize
	}
	o.Trace = o.Trace || t.Name() == "TestModel"
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func mustClose(t testing.TB, a *Arena) {
	t.Helper()
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

// check holds the bookkeeping against the slabs themselves.
func (a *Arena) check(t *testing.T) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	var slabs, used [Classes]int
	free := 0
	for i := range a.slabs {
		s := &a.slabs[i]
		if s.class == none {
			free++
			continue
		}
		slabs[s.class]++
		used[s.class] += int(s.used)
		if s.used == 0 {
			t.Fatalf("slab %d of class %d is empty and not given back", i, s.class)
		}
	}
	owed := 0
	for k, c := range a.classes {
		if c.slabs != slabs[k] || c.used != used[k] {
			t.Fatalf("class %d: %d slabs and %d buffers counted, has %d and %d", k, c.slabs, c.used, slabs[k], used[k])
		}
		owed += max(0, a.keep-c.slabs)
	}
	if free != a.free || owed != a.owed || free < owed {
		t.Fatalf("%d slabs free, %d owed; counted %d and %d", free, owed, a.free, a.owed)
	}
}

// TestModel takes and gives back at random and verifies that no two buffers share a byte.
func TestModel(t *testing.T) {
	a := mustNew(t, Options{Guarantee: 2, Size: MinSize(2) + 3*SlabSize})
	rng := rand.New(rand.NewPCG(1, 2))
	type buffer struct {
		b   []byte
		tag uint64
	}
	var out []buffer
	stamp := func(b []byte, tag uint64) {
		for i := 0; i+8 <= cap(b); i += 4096 {
			binary.LittleEndian.PutUint64(b[:cap(b)][i:], tag)
			binary.LittleEndian.PutUint64(b[:cap(b)][min(i+4096, cap(b))-8:], tag)
		}
	}
	refused := 0
	for step := range uint64(20_000) {
		if rng.IntN(100) < 55 || len(out) == 0 {
			n := 1 + rng.IntN(MinBuffer<<rng.IntN(Classes))
			b := a.Get(n)
			if b == nil {
				refused++
				continue
			}
			if len(b) != n || cap(b) != Rounded(n) || a.Offset(b)%4096 != 0 {
				t.Fatalf("Get(%d): %d bytes, %d with what is behind, at %d", n, len(b), cap(b), a.Offset(b))
			}
			stamp(b, step)
			out = append(out, buffer{b, step})
		} else {
			i := rng.IntN(len(out))
			b := out[i]
			for j := 0; j+8 <= cap(b.b); j += 4096 {
				if binary.LittleEndian.Uint64(b.b[:cap(b.b)][j:]) != b.tag {
					t.Fatalf("step %d: another buffer wrote to this one", step)
				}
			}
			a.Put(b.b)
			out[i] = out[len(out)-1]
			out = out[:len(out)-1]
		}
		if step%97 == 0 {
			a.check(t)
		}
	}
	if refused == 0 {
		t.Error("the arena was never full")
	}
	if err := a.Close(); err == nil || !strings.Contains(err.Error(), "TestModel") {
		t.Errorf("Close with buffers out: %v, want who got them", err)
	}
	for _, b := range out {
		a.Put(b.b)
	}
	a.check(t)
	if a.Used() != 0 || a.free != len(a.slabs) {
		t.Errorf("%d bytes out, %d of %d slabs free after all was put back", a.Used(), a.free, len(a.slabs))
	}
	mustClose(t, a)
}

// TestNobodyStarves takes all that one class can get: every other class still has its guarantee.
func TestNobodyStarves(t *testing.T) {
	for greedy := range Classes {
		a := mustNew(t, Options{})
		var out [][]byte
		for b := a.Get(MinBuffer << greedy); b != nil; b = a.Get(MinBuffer << greedy) {
			out = append(out, b)
		}
		if want := 5 * SlabSize / (MinBuffer << greedy); len(out) != want {
			t.Errorf("class %d alone gets %d buffers, want %d", greedy, len(out), want)
		}
		for k := range Classes {
			if k == greedy {
				continue
			}
			n := 0
			for b := a.Get(MinBuffer << k); b != nil; b = a.Get(MinBuffer << k) {
				out = append(out, b)
				n++
			}
			if n != SlabSize/(MinBuffer<<k) {
				t.Errorf("class %d gets %d buffers beside a greedy class %d", k, n, greedy)
			}
		}
		a.check(t)
		for _, b := range out {
			a.Put(b)
		}
		mustClose(t, a)
	}
}

func TestWaitAndFreed(t *testing.T) {
	told := make(chan struct{}, 100)
	a := mustNew(t, Options{Freed: func() { told <- struct{}{} }})
	var out [][]byte
	for b := a.Get(MaxBuffer); b != nil; b = a.Get(MaxBuffer) {
		out = append(out, b)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			b, err := a.Wait(t.Context(), MaxBuffer)
			if err != nil {
				t.Error(err)
				return
			}
			time.Sleep(time.Millisecond)
			a.Put(b)
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if b, err := a.Wait(ctx, MaxBuffer); err == nil {
		t.Errorf("%d bytes of a full arena", len(b))
	}
	for _, b := range out {
		a.Put(b)
	}
	wg.Wait()
	select {
	case <-told:
	default:
		t.Error("nobody was told that memory is free again")
	}
	for len(told) > 0 {
		<-told
	}
	a.Put(a.Get(1))
	if len(told) != 0 {
		t.Error("told of free memory that nobody had asked for")
	}
	mustClose(t, a)
}

func TestMisuse(t *testing.T) {
	a := mustNew(t, Options{Populate: true})
	defer mustClose(t, a)
	b := a.Get(100)
	c := a.Get(100)
	for name, f := range map[string]func(){
		"a foreign buffer": func() { a.Put(make([]byte, 4096)) },
		"a part":           func() { a.Put(c[1:]) },
		"too large":        func() { a.Get(MaxBuffer + 1) },
		"nothing":          func() { a.Get(0) },
		"twice":            func() { a.Put(b); a.Put(b) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s is not noticed", name)
				}
				if !a.mu.TryLock() {
					t.Logf("%s: found with the lock held", name)
				}
				a.mu.Unlock()
			}()
			f()
		}()
	}
	a.Put(c)
	if _, err := New(Options{Size: MinSize(1) - 1}); err == nil {
		t.Error("an arena without room for the guarantees is made")
	}
}

func TestParallel(t *testing.T) {
	a := mustNew(t, Options{})
	var wg sync.WaitGroup
	for w := range uint64(4) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(w, 1))
			for range 2000 {
				b := a.Get(1 + rng.IntN(MinBuffer<<rng.IntN(Classes)))
				if b != nil {
					b[0], b[len(b)-1] = byte(w), byte(w)
					a.Put(b)
				}
			}
		})
	}
	wg.Wait()
	a.check(t)
	mustClose(t, a)
}

func TestAllocs(t *testing.T) {
	a := mustNew(t, Options{})
	if n := testing.AllocsPerRun(1000, func() { a.Put(a.Get(4096)) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	mustClose(t, a)
}

func BenchmarkGetPut(b *testing.B) {
	a := mustNew(b, Options{})
	hold := a.Get(1) // so that the slab stays
	for b.Loop() {
		a.Put(a.Get(4096))
	}
	a.Put(hold)
	mustClose(b, a)
}
