package discover

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Source says where else metadata servers may be, for who runs for long and reaches none of those that it knows. The zero value is not
// usable; Options without a List and Name make one that never knows any.
type Source struct {
	o     Options
	log   *slog.Logger
	every time.Duration

	mu      sync.Mutex
	running bool
	last    time.Time
	network []string // what DNS and multicast found last
	wg      sync.WaitGroup
	ctx     context.Context
	cancel  context.CancelFunc
}

// searchEvery is how often the network is searched at most.
const searchEvery = 15 * time.Second

// NewSource returns one that looks as o says, but for Check and Failed: its user asks those it finds. Close it.
func NewSource(o Options, log *slog.Logger) *Source {
	o.Check, o.Failed, o.All = nil, nil, false
	if log == nil {
		log = slog.Default()
	}
	s := &Source{o: o, log: log, every: searchEvery}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Close ends what is under way, and waits for it.
func (s *Source) Close() {
	s.mu.Lock() // no search begins from now on
	s.cancel()
	s.mu.Unlock()
	s.wg.Wait()
}

// More returns addresses to try: what the list has now, so that one who edits it is heard at once, and what a search of the network found. It does not
// wait: the search goes on in the background, and the next call has what it found. Any number of goroutines may call it.
func (s *Source) More() []string {
	var addrs []string
	if s.o.List != "" {
		addrs, _ = ReadList(s.o.List) // it may be being written, or gone
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.network {
		if !slices.Contains(addrs, a) && len(addrs) < MaxServers {
			addrs = append(addrs, a)
		}
	}
	if !s.running && !s.o.atHome() && s.ctx.Err() == nil && (s.o.Name != "" || !s.o.UUID.IsZero()) && (s.last.IsZero() || time.Since(s.last) >= s.every) {
		s.running = true
		s.wg.Add(1)
		go s.search()
	}
	return addrs
}

func (s *Source) search() {
	defer s.wg.Done()
	o := s.o
	o.List = "" // More reads it
	o.head = time.Nanosecond
	r, err := Find(s.ctx, o)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running, s.last = false, time.Now()
	switch {
	case s.ctx.Err() != nil:
	case err != nil:
		s.log.Debug("metadata servers not found on the network", "err", err)
		s.network = nil
	case !slices.Equal(r.Addrs, s.network):
		s.log.Info("metadata servers found on the network", "by", r.Way, "addrs", r.Addrs)
		s.network = r.Addrs
	}
}
