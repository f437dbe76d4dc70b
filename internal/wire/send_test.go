package wire

import (
	"errors"
	"net"
	"sync"
	"testing"
	"time"
)

// closedConn is a connection that has been closed.
type closedConn struct{ net.Conn }

func (closedConn) SetWriteDeadline(time.Time) error { return net.ErrClosed }
func (closedConn) Write([]byte) (int, error)        { return 0, net.ErrClosed }

// TestSendAfterClose: senders on a connection that has ended do not share a buffer.
func TestSendAfterClose(t *testing.T) {
	s := sender{nc: closedConn{}, timeout: time.Second, spare: make([]byte, 0, keepWriteBuffer)}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				if err := s.writeNow(&header{typ: Write}, make([]byte, 64), make([]byte, smallData+1)); !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range 50 {
				_ = s.enqueue(&header{typ: Read}, make([]byte, 64), nil)
			}
		})
	}
	wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if q, p := s.queue[:cap(s.queue)], s.spare[:cap(s.spare)]; len(q) > 0 && len(p) > 0 && &q[0] == &p[0] {
		t.Error("the queue and the buffer of the next one are the same memory")
	}
}
