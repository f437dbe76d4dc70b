package planes

import (
	"context"
	"errors"
	"net"
	"sync"

	"varve/internal/wire"
)

// Listen listens on several addresses as on one. The listener's Addr is the first one's; bound has each as it came to be, where a port was left open.
func Listen(ctx context.Context, network wire.Network, addrs []string) (l net.Listener, bound []string, err error) {
	m := &listeners{conns: make(chan net.Conn), done: make(chan struct{}), failed: make(chan error, len(addrs))}
	for _, a := range addrs {
		one, err := network.Listen(ctx, a)
		if err != nil {
			return nil, nil, errors.Join(err, m.closeAll())
		}
		m.all = append(m.all, one)
		bound = append(bound, one.Addr().String())
	}
	if len(m.all) == 1 {
		return m.all[0], bound, nil
	}
	for _, one := range m.all {
		m.wg.Go(func() { m.accept(one) })
	}
	return m, bound, nil
}

// listeners is several listeners as one.
type listeners struct {
	all    []net.Listener
	conns  chan net.Conn
	failed chan error // an error of each, the last one at most
	done   chan struct{}
	once   sync.Once
	err    error
	wg     sync.WaitGroup
}

func (m *listeners) accept(one net.Listener) {
	for {
		c, err := one.Accept()
		if err != nil {
			select {
			case m.failed <- err:
			case <-m.done:
				return
			}
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // whoever accepts pauses, and says so
		}
		select {
		case m.conns <- c:
		case <-m.done:
			c.Close()
			return
		}
	}
}

// Accept implements net.Listener.
func (m *listeners) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case err := <-m.failed:
		return nil, err
	case <-m.done:
		return nil, net.ErrClosed
	}
}

func (m *listeners) closeAll() error {
	var errs []error
	for _, one := range m.all {
		errs = append(errs, one.Close())
	}
	return errors.Join(errs...)
}

// Close implements net.Listener.
func (m *listeners) Close() error {
	m.once.Do(func() {
		close(m.done)
		m.err = m.closeAll()
		m.wg.Wait()
	})
	return m.err
}

// Addr implements net.Listener.
func (m *listeners) Addr() net.Addr { return m.all[0].Addr() }
