package main

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDevPorts: the ports of a dev cluster are nobody else's while it runs, whether its servers listen or are away.
func TestDevPorts(t *testing.T) {
	c := &devConfig{MDS: make([]string, 1), CS: make([]string, 2)}
	if err := c.choosePorts(); err != nil {
		t.Fatal(err)
	}
	release := c.holdPorts()
	defer func() { release() }()
	all := append(c.MDS, c.CS...)
	for range 2 {
		for _, addr := range all {
			at, err := netip.ParseAddrPort(addr)
			if err != nil {
				t.Fatal(err)
			}
			if fd, err := holdPort(at, false); !errors.Is(err, unix.EADDRINUSE) {
				_ = unix.Close(fd)
				t.Errorf("%s: another cluster may choose it: %v", addr, err)
			}
			if _, err := net.Dial("tcp", addr); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s, where nobody listens: %v", addr, err)
			}
			l, err := net.Listen("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			l.Close()
		}
		// As when it is brought up again: the addresses are known, and something of the servers may be left there.
		release()
		release = c.holdPorts()
	}
	if len(c.held) != len(all) {
		t.Errorf("%d ports are held, want %d", len(c.held), len(all))
	}
}
