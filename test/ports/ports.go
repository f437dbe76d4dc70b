// Package ports gives tests addresses on which servers listen, end, and listen again, without anybody else taking them meanwhile.
//
// A port that was only found to be free is another's as soon as that one asks for it: another test's, in this process or in one that runs at the same
// time, or an outgoing connection's. A held port has a socket bound to it that does not listen: the kernel then gives it to nobody who asks for any
// port, while whoever names it, with SO_REUSEADDR as package net does, may listen on it, and who connects when nobody listens is refused.
package ports

import (
	"net"
	"net/netip"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// Hold returns an address of 127.0.0.1 that is the test's until it ends.
func Hold(t testing.TB) string { return HoldAt(t, "127.0.0.1") }

// HoldAt is Hold for an IPv4 address of this host, in the network namespace of the calling thread.
func HoldAt(t testing.TB, host string) string {
	t.Helper()
	addr, err := netip.ParseAddr(host)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("hold a port: %v", err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: addr.As4()})
	}
	var at unix.Sockaddr
	if err == nil {
		at, err = unix.Getsockname(fd)
	}
	in, ok := at.(*unix.SockaddrInet4)
	if err != nil || !ok {
		t.Fatalf("hold a port of %s: %v, %v", host, at, err)
	}
	return net.JoinHostPort(host, strconv.Itoa(in.Port))
}
