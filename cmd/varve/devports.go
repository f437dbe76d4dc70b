package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/sys/unix"
)

// The ports of a dev cluster's servers stay its own while `dev up` runs, also while a server is away: a socket is bound to each that does not listen.
// Whoever asks the kernel for a port does not get it, another dev cluster does not choose it, and the server itself, which names it and says SO_REUSEADDR
// as package net does, may listen. Who connects meanwhile is refused as ever.

// choosePorts gives each server without an address a loopback port that is free now, and holds it.
func (c *devConfig) choosePorts() error {
	for _, addrs := range [][]string{c.MDS, c.CS} {
		for i, a := range addrs {
			if a != "" {
				continue
			}
			addr, fd, err := holdLow()
			if err != nil {
				return fmt.Errorf("choose a port: %w", err)
			}
			addrs[i] = addr
			c.hold(addr, fd)
		}
	}
	return nil
}

func (c *devConfig) hold(addr string, fd int) {
	if c.held == nil {
		c.held = map[string]int{}
	}
	c.held[addr] = fd
}

// holdPorts holds those of all servers. What cannot be held is not: whoever has it is told of when its server cannot listen.
func (c *devConfig) holdPorts() (release func()) {
	for _, addrs := range [][]string{c.MDS, c.CS} {
		for _, a := range addrs {
			if _, ok := c.held[a]; ok {
				continue
			}
			if at, err := netip.ParseAddrPort(a); err == nil && at.Addr().Is4() {
				if fd, err := holdPort(at, true); err == nil {
					c.hold(a, fd)
				}
			}
		}
	}
	return func() {
		for _, fd := range c.held {
			_ = unix.Close(fd)
		}
		c.held = nil
	}
}

// holdLow holds a free loopback port below those that the kernel gives to outgoing connections (32768 and up, by default).
func holdLow() (addr string, fd int, err error) {
	const low, high, tries = 12000, 32000, 100
	for n := range tries + 1 {
		at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(low+rand.IntN(high-low)))
		if n == tries {
			at = netip.AddrPortFrom(at.Addr(), 0)
		}
		if fd, err = holdPort(at, false); err == nil {
			break
		}
	}
	if err != nil {
		return "", -1, err
	}
	sa, err := unix.Getsockname(fd)
	in, ok := sa.(*unix.SockaddrInet4)
	if err != nil || !ok {
		_ = unix.Close(fd)
		return "", -1, fmt.Errorf("socket at %v: %w", sa, err)
	}
	return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port)).String(), fd, nil
}

// holdPort binds a socket to an address. If it is not known to be ours, whatever else is bound there makes that fail; else what our servers left there
// does not.
func holdPort(at netip.AddrPort, ours bool) (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	share := func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }
	if ours {
		err = share()
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()})
	}
	if err == nil && !ours {
		err = share()
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
