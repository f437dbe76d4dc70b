package history

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"varve/internal/id"
	"varve/journal"
	"varve/mds/event"
	"varve/mds/state"
)

// Count is how often something is in the journal.
type Count struct {
	Name   string `json:"name"`
	Events uint64 `json:"events"`
	Bytes  uint64 `json:"bytes"`
	About  bool   `json:"about,omitempty"` // one of many: counted a little too high at most
}

// Stats is what fills a journal.
type Stats struct {
	First    id.Index `json:"first"`
	Last     id.Index `json:"last"`
	From     int64    `json:"from"` // time of the first event, nanoseconds since 1970
	To       int64    `json:"to"`
	Events   uint64   `json:"events"`
	Bytes    uint64   `json:"bytes"` // of events, not compressed
	Kinds    []Count  `json:"kinds"`
	Clients  []Count  `json:"clients"`
	Dirs     []Count  `json:"dirs"`
	Rate     []uint64 `json:"rate"`        // events in equal spans from From to To
	SpanNano int64    `json:"rate_span"`   // the length of one, nanoseconds
	Gaps     int      `json:"gaps"`        // holes
	Replay   id.Index `json:"replay_from"` // the first index whose state can be had
}

// rateSpans is the number of spans in Stats.Rate.
const rateSpans = 60

// maxTop is how many directories and clients are counted at once.
const maxTop = 4096

// CollectStats counts the events in [from, to] without replaying them. end is the state that names directories and clients; nil: by number.
func CollectStats(ctx context.Context, src Source, from, to id.Index, end *state.State, progress func(id.Index)) (*Stats, error) {
	st := &Stats{First: from, Last: to}
	var err error
	if st.From, err = TimeOf(ctx, src, from); err != nil {
		return nil, err
	}
	if st.To, err = TimeOf(ctx, src, to); err != nil {
		return nil, err
	}
	st.SpanNano = max(1, (st.To-st.From)/rateSpans+1)
	st.Rate = make([]uint64, rateSpans)
	c := &counting{st: st, kinds: newTop[string](256), clients: newTop[id.SessionID](maxTop), dirs: newTop[id.Ino](maxTop), names: map[id.SessionID]string{}}
	for at := from; at <= to; {
		err := src.Records(ctx, at, func(rec journal.Record) error {
			if rec.Index > to {
				return ErrStop
			}
			at = rec.Index + 1
			if progress != nil && rec.Index%progressEvery == 0 {
				progress(rec.Index)
			}
			return c.count(rec)
		})
		var gap *journal.GapError
		if !errors.As(err, &gap) {
			if err != nil {
				return nil, err
			}
			break
		}
		st.Gaps++
		at = gap.Next
	}
	var x Texter
	st.Kinds = c.kinds.list(func(k string) string { return k })
	st.Clients = c.clients.list(func(s id.SessionID) string {
		if n := c.names[s]; n != "" {
			return fmt.Sprintf("%s (session %d)", n, s)
		}
		if s == 0 {
			return "the cluster itself"
		}
		return x.session(end, uint64(s))
	})
	st.Dirs = c.dirs.list(func(ino id.Ino) string { return x.path(end, uint64(ino)) })
	return st, nil
}

type counting struct {
	st      *Stats
	ev      event.Event
	kinds   *top[string]
	clients *top[id.SessionID]
	dirs    *top[id.Ino]
	names   map[id.SessionID]string
}

func (c *counting) count(rec journal.Record) error {
	c.ev.Reset()
	if err := c.ev.UnmarshalVT(rec.Payload); err != nil {
		return fmt.Errorf("record %d is no event: %w", rec.Index, err)
	}
	st, n := c.st, uint64(len(rec.Payload))
	st.Events++
	st.Bytes += n
	if i := (rec.Time - st.From) / st.SpanNano; i >= 0 && i < int64(len(st.Rate)) {
		st.Rate[i]++
	}
	c.kinds.add(event.Kind(&c.ev), n)
	c.clients.add(id.SessionID(c.ev.Cause.GetSession()), n)
	if o := c.ev.GetSessionOpen(); o != nil && len(c.names) < maxTop {
		c.names[id.SessionID(o.Id)] = o.Host + ":" + o.Mount
	}
	var dir uint64
	switch b := c.ev.Body.(type) {
	case *event.Event_Create:
		dir = b.Create.Parent
	case *event.Event_Link:
		dir = b.Link.Parent
	case *event.Event_Remove:
		dir = b.Remove.Parent
	case *event.Event_Rename:
		dir = b.Rename.NewParent
	}
	if dir != 0 {
		c.dirs.add(id.Ino(dir), n)
	}
	return nil
}

// top counts the most frequent keys in bounded memory (space-saving: when it is full, a new key takes the place and the count of the rarest,
// so a count is too high by that at most).
type top[K cmp.Ordered] struct {
	limit int
	m     map[K]*Count
}

func newTop[K cmp.Ordered](limit int) *top[K] { return &top[K]{limit: limit, m: map[K]*Count{}} }

func (t *top[K]) add(k K, bytes uint64) {
	c := t.m[k]
	if c == nil {
		c = new(Count)
		if len(t.m) >= t.limit {
			var rarest K
			least := ^uint64(0)
			for k, v := range t.m {
				if v.Events < least {
					rarest, least = k, v.Events
				}
			}
			*c = *t.m[rarest]
			c.About = true
			delete(t.m, rarest)
		}
		t.m[k] = c
	}
	c.Events++
	c.Bytes += bytes
}

func (t *top[K]) list(name func(K) string) []Count {
	keys := make([]K, 0, len(t.m))
	for k := range t.m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b K) int { return cmp.Or(cmp.Compare(t.m[b].Events, t.m[a].Events), cmp.Compare(a, b)) })
	out := make([]Count, len(keys))
	for i, k := range keys {
		out[i] = *t.m[k]
		out[i].Name = name(k)
	}
	return out
}
