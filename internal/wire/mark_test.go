package wire

import (
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMark: each end sends with the code point of the class it was told.
func TestMark(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	seen := map[uint8]bool{}
	for class := ClassHeartbeat; class < classEnd; class++ {
		Mark(c, class)
		rc, err := c.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var tos int
		if cerr := rc.Control(func(fd uintptr) { tos, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS) }); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
		if uint8(tos>>2) != class.DSCP() || tos&3 != 0 {
			t.Errorf("class %d: type of service %#x, want DSCP %d", class, tos, class.DSCP())
		}
		if class < ClassScrub && seen[class.DSCP()] {
			t.Errorf("class %d has the code point of another", class)
		}
		seen[class.DSCP()] = true
	}
	Mark(struct{ net.Conn }{c}, ClassGuest) // has no descriptor: nothing happens
}
