package client

import (
	"bytes"
	"log/slog"
	"sync"
	"testing"
	"time"

	"varve/internal/fserr"
)

// lines counts what is logged.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }

func (l *lines) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.b.Bytes(), []byte(what))
}

// TestElsewhereIsSaidSeldom: whoever can have reads find wrong checksums does not fill the log by it.
func TestElsewhereIsSaidSeldom(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1)
	var l lines
	c := w.dial(t, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&l, nil)) })
	f := create(t, c, "a")
	write(t, f, fill(4096, 1), 0)
	loc, _ := f.in.lookup(0)
	begun := time.Now()
	for range 10000 {
		f.in.elsewhere(loc, 1, fserr.BadChecksum)
	}
	if n, most := l.count("reading elsewhere"), 1+int(time.Since(begun)/elsewhereEvery); n < 1 || n > most {
		t.Errorf("%d lines for 10,000 reads, want 1 to %d", n, most)
	}
}
