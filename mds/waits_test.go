package mds

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/internal/waits"
	"varve/mds/decide"
)

type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestLatchWaitIsLogged: who waits long for a latch says for which.
func TestLatchWaitIsLogged(t *testing.T) {
	log := new(lockedLog)
	table := latchTable{waits: &waits.Table{Log: slog.New(slog.NewTextHandler(log, nil)), First: 10 * time.Millisecond}}
	latch := []decide.Latch{{Kind: decide.LatchInode, A: 77, Exclusive: true}}
	if err := table.acquire(t.Context(), latch); err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		err := table.acquire(t.Context(), latch)
		if err == nil {
			table.release(latch)
		}
		got <- err
	}()
	for end := time.Now().Add(20 * time.Second); !strings.Contains(log.String(), "of=77"); {
		if time.Now().After(end) {
			t.Fatalf("the log says %q", log)
		}
		time.Sleep(5 * time.Millisecond)
	}
	table.release(latch)
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); !strings.Contains(log.String(), "msg=waited"); {
		if time.Now().After(end) {
			t.Fatalf("the log says %q", log)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
