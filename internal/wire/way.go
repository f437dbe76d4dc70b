package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"varve/internal/fserr"
)

// portTries bounds how many source ports that others have are passed over before one is left to the kernel.
const portTries = 16

// SpreadFunc chooses the address and port from which a connection leaves, so that several connections to one peer take different links of a bond. way
// is Options.Way of the connection; local is where it is to leave from, invalid if the kernel may choose. An invalid result leaves the port to the
// kernel. Each call returns another port: the one before may be somebody else's. It must not block.
type SpreadFunc func(class Class, way int, local netip.Addr, remote netip.AddrPort) netip.AddrPort

type wayKey struct{}

// withWay has Network.Dial know which of several connections it makes, through whatever networks are wrapped around the one that binds sockets.
func withWay(ctx context.Context, way int) context.Context {
	if way == 0 {
		return ctx
	}
	return context.WithValue(ctx, wayKey{}, way)
}

// wayOf returns Options.Way, 0 if there is none.
func wayOf(ctx context.Context) int {
	way, _ := ctx.Value(wayKey{}).(int)
	return way
}

// spread gives a socket that is about to connect a source port of Spread's. It returns from itself, and false, if there is none.
func (n TCP) spread(rc syscall.RawConn, class Class, way int, from, to netip.AddrPort, device string) (bool, error) {
	for range portTries {
		at := n.Spread(class, way, from.Addr(), to)
		if !at.IsValid() {
			return false, nil
		}
		// Connections to different peers may have the same port, and one that has just ended does not keep it.
		if err := rc.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }); err != nil {
			return false, err
		}
		err := bindTo(rc, to, at, device)
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return false, nil // the address has left this host, or a port is not for us: as if there were no bond
		}
	}
	return false, nil
}

// dialSpread is Dial with ports of Spread's. That a port has a connection to the same peer already comes out when it connects.
func (n TCP) dialSpread(ctx context.Context, addr string, class Class) (net.Conn, error) {
	for range portTries {
		var bound atomic.Bool
		c, err := n.dial(ctx, addr, class, &bound)
		if err == nil || !bound.Load() || !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.EADDRINUSE) {
			return c, err
		}
	}
	n.Spread = nil
	return n.dial(ctx, addr, class, nil)
}

// connect makes the connection of Dial, without a hello.
func connect(ctx context.Context, network Network, addr string, o Options) (net.Conn, error) {
	nc, err := network.Dial(withWay(ctx, o.Way), addr, o.Class)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", fserr.Unavailable, err)
	}
	if o.Connected != nil {
		if err := o.Connected(); err != nil {
			nc.Close()
			return nil, fmt.Errorf("connected to %s, and not greeted: %w", addr, err)
		}
	}
	return nc, nil
}
