package sim

import (
	"context"
	"encoding/binary"
	"log/slog"
	"maps"
	"sync"

	"varve/internal/fserr"
	"varve/internal/wire"
)

// cover counts the conditions that a run came to: changes of state, which servers and clients log, refusals, by what was asked and the outcome, and
// kinds of faults. How many different ones there are tells whether runs that are made cheaper still come to as much.
type cover struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *cover) count(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = make(map[string]int)
	}
	c.n[what]++
}

func (c *cover) all() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.n)
}

// answered counts a frame if it is a refusal.
func (c *cover) answered(b []byte) {
	if len(b) < wire.HeaderSize || binary.LittleEndian.Uint32(b) != frameMagic || b[7] == 0 {
		return
	}
	if code := fserr.Code(binary.LittleEndian.Uint16(b[24:])); code != fserr.OK {
		c.count("refused: " + names[wire.Type(binary.LittleEndian.Uint16(b[4:]))] + ": " + code.Error())
	}
}

// counted counts what is logged, and hands it on if somebody listens.
type counted struct {
	slog.Handler
	c *cover
}

var _ slog.Handler = counted{}

// Enabled implements slog.Handler.
func (h counted) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

// Handle implements slog.Handler.
func (h counted) Handle(ctx context.Context, r slog.Record) error {
	h.c.count("log: " + r.Message)
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h counted) WithAttrs(as []slog.Attr) slog.Handler {
	return counted{h.Handler.WithAttrs(as), h.c}
}

// WithGroup implements slog.Handler.
func (h counted) WithGroup(name string) slog.Handler {
	return counted{h.Handler.WithGroup(name), h.c}
}
