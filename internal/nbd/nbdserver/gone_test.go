package nbdserver_test

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"varve/internal/nbd"
	"varve/internal/nbd/nbdserver"
)

// hang has writes at the beginning of the image wait until the result is called; in is told of each.
func (s *server) hang(in chan<- struct{}) (release func()) {
	leave := make(chan struct{})
	s.m.f.Fault(func(what string, off, _ int64) error {
		if what == "write" && off == 0 {
			in <- struct{}{}
			<-leave
		}
		return nil
	})
	return func() { close(leave) }
}

// TestUnread: what a client had sent and was not begun when it went is never done, since it may have sent it again by another connection and then written there
// anew.
func TestUnread(t *testing.T) {
	s := serve(t, config{size: 40 * mib})
	const at, n = 36 * mib, 64 << 10
	var all []*nbd.Conn
	for range 6 { // threads get them in turn
		all = append(all, s.dial("disk"))
	}
	second, first := all[0], all[5]
	in, leave := make(chan struct{}, 8), make(chan struct{})
	s.m.f.Fault(func(_ string, off, _ int64) error {
		if off == 0 {
			in <- struct{}{}
			<-leave
		}
		return nil
	})
	var wg sync.WaitGroup
	for _, c := range []*nbd.Conn{all[1], all[3]} { // which have all the memory of the first's thread
		wg.Go(func() {
			if err := c.Do(nbd.CmdRead, 0, 0, make([]byte, 32*mib), 0); err != nil {
				t.Error(err)
			}
		})
		<-in
	}
	sent := make(chan error)
	go func() { sent <- first.Do(nbd.CmdWrite, 0, at, bytes.Repeat([]byte{1}, n), 0) }()
	time.Sleep(100 * time.Millisecond) // until it has been sent; if it was not, less is shown
	first.Close()
	if err := <-sent; err == nil {
		t.Error("a write that waits for memory was acknowledged")
	}
	if err := second.Do(nbd.CmdWrite, 0, at, bytes.Repeat([]byte{2}, n), 0); err != nil {
		t.Fatal(err)
	}
	close(leave)
	wg.Wait()
	for deadline := time.Now().Add(time.Minute); s.Connections() > 5; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the connection does not end")
		}
	}
	got := make([]byte, n)
	if err := second.Do(nbd.CmdRead, 0, at, got, 0); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{2}, n)) {
		t.Errorf("an older write has taken the place of a newer one: %d, %v", got[0], err)
	}
}

// TestAfter: who comes when all clients have gone, and have left something under way, is let in when that has ended, and so never sees the image change by itself.
func TestAfter(t *testing.T) {
	each(t, config{change: func(o *nbdserver.Options) { o.Negotiation = time.Minute }}, func(t *testing.T, s *server) {
		first := s.dial("disk")
		for range 3 { // of four, one goes to a goroutine
			if err := first.Do(nbd.CmdWrite, 0, 8192, make([]byte, 512), 0); err != nil {
				t.Fatal(err)
			}
		}
		in := make(chan struct{}, 8)
		release := s.hang(in)
		go func() { _ = first.Do(nbd.CmdWrite, 0, 0, bytes.Repeat([]byte{1}, 4096), 0) }()
		<-in
		first.Close()
		type result struct {
			c   *nbd.Conn
			err error
		}
		come := make(chan result, 1)
		go func() {
			c, err := nbd.Dial(t.Context(), nbd.URI{Network: "unix", Address: s.path, Export: "disk"})
			come <- result{c, err}
		}()
		select {
		case r := <-come:
			if r.err == nil {
				r.c.Close()
			}
			t.Errorf("a client is let in while a write of who was there before is under way: %v", r.err)
			release()
			return
		case <-time.After(100 * time.Millisecond):
		}
		release()
		r := <-come
		if r.err != nil {
			t.Fatal(r.err)
		}
		defer r.c.Close()
		got := make([]byte, 4096)
		if err := r.c.Do(nbd.CmdRead, 0, 0, got, 0); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{1}, 4096)) {
			t.Errorf("what was written before is not there: %d, %v", got[0], err)
		}
		if s.m.opened() != 2 || s.m.f.Released() != 1 {
			t.Errorf("%d opens, %d given back", s.m.opened(), s.m.f.Released())
		}
	})
}
