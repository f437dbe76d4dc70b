package rwlock

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestExclusion(t *testing.T) {
	var (
		m  Mutex
		wg sync.WaitGroup
		n  int // guarded by m
	)
	for i := range 8 {
		wg.Go(func() {
			for k := range 2000 {
				switch (i + k) % 4 {
				case 0:
					m.Lock()
					n++
					m.Unlock()
				case 1:
					if m.TryLock() {
						n++
						m.Unlock()
					}
				case 2:
					if m.TryRLock() {
						_ = n
						m.RUnlock()
					}
				default:
					m.RLock()
					_ = n
					m.RUnlock()
				}
			}
		})
	}
	wg.Wait()
	if !m.TryLock() {
		t.Error("not free at the end")
	}
	if n < 4000 {
		t.Errorf("%d changes, want at least 4000", n)
	}
}

// TestOrder: a waiting writer keeps later readers out, and they go before the next writer.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			m     Mutex
			order []string // guarded by m, or by the only reader
			wg    sync.WaitGroup
		)
		m.RLock()
		begin := func(what string, lock, unlock func()) {
			wg.Go(func() {
				lock()
				order = append(order, what)
				time.Sleep(time.Second)
				unlock()
			})
			synctest.Wait()
		}
		begin("writer", m.Lock, m.Unlock)
		if m.TryRLock() {
			t.Fatal("a reader got past a waiting writer")
		}
		begin("reader", m.RLock, m.RUnlock)
		begin("second writer", m.Lock, m.Unlock)
		m.RUnlock()
		wg.Wait()
		if len(order) != 3 || order[0] != "writer" || order[1] != "reader" || order[2] != "second writer" {
			t.Errorf("order is %v", order)
		}
	})
}

// TestVirtualTime: who waits for a holder that sleeps does not stop the clock.
func TestVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Mutex
		start := time.Now()
		m.RLock()
		go func() {
			time.Sleep(time.Hour)
			m.RUnlock()
		}()
		m.Lock()
		if took := time.Since(start); took != time.Hour {
			t.Errorf("waited for %v, want an hour", took)
		}
		m.Unlock()
	})
}

func TestMisuse(t *testing.T) {
	for name, f := range map[string]func(*Mutex){"Unlock": (*Mutex).Unlock, "RUnlock": (*Mutex).RUnlock} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("a free lock could be unlocked")
				}
			}()
			f(new(Mutex))
		})
	}
}

func BenchmarkRLock(b *testing.B) {
	n := 0 // guarded by m
	b.Run("lock=rwlock", func(b *testing.B) {
		var m Mutex
		for b.Loop() {
			m.RLock()
			_ = n
			m.RUnlock()
		}
	})
	b.Run("lock=sync", func(b *testing.B) {
		var m sync.RWMutex
		for b.Loop() {
			m.RLock()
			_ = n
			m.RUnlock()
		}
	})
}
