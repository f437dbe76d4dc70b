package cs

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"varve/internal/disk"
	"varve/internal/wire"
	"varve/internal/wire/msg"
)

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), s)
}

// TestWaitsAreLogged: a server whose disk hangs says that nothing ends, and what a new connection and a fence wait for.
func TestWaitsAreLogged(t *testing.T) {
	t.Parallel() // it waits more than it works
	f := newFakeLeader(t)
	log := new(lockedBuffer)
	d := new(disk.Faulty)
	s := &testServer{o: testOptions(f), disk: d, hang: &hangFS{FS: d}}
	s.o.FS, s.o.Logger = s.hang, slog.New(slog.NewTextHandler(log, nil))
	mustInit(t, s.o)
	s.start(t)
	s.waitServing(t)
	t.Cleanup(func() { s.Kill(); s.disk.Kill() })
	f.create(7, 1, s)
	c := dial(t, s, 5)
	g := s.hang.hang()
	var under sync.WaitGroup
	under.Go(func() { c.write(7, 1, 0, pattern(1, block)) })
	<-g.arrived
	under.Go(func() { f.ask(s.ID(), wire.Fence, &msg.Fence{Sessions: []uint64{5}}, nil) })
	for _, what := range []string{"any request under way to end", "requests of a session that is fenced to end"} {
		wait(t, "a line that names "+what, func() bool { return log.has(what) })
	}
	s.hang.release()
	under.Wait()
	wait(t, "the end of the wait", func() bool { return log.has("msg=waited cs=cs1 for=\"any request under way") })
}
