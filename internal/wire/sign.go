package wire

import (
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Sign is what the kernel and the connection know of how it is doing.
type Sign struct {
	Local, Remote netip.AddrPort
	Waiting       int           // calls under way
	Unacked       bool          // something was sent that the peer's kernel has not acknowledged
	SinceData     time.Duration // since something was received last
	SinceAck      time.Duration // since the peer's kernel was heard of last
	MSS           int           // the largest segment that goes to the peer, in bytes, without options
	OwnMSS        int           // the largest that the interface here would take
}

const (
	timestamps    = 12 // what the option takes of each segment that has it
	optTimestamps = 1  // TCPI_OPT_TIMESTAMPS of linux/tcp.h
)

// Silent reports whether the peer is owed an answer, of its kernel or itself, and has sent nothing for d.
func (s *Sign) Silent(d time.Duration) bool {
	return s.SinceData >= d && s.SinceAck >= d && (s.Unacked || s.Waiting > 0)
}

// Sign returns the connection's. It reports false if the connection has no socket that it could be asked of.
func (c *Conn) Sign() (Sign, bool) {
	sc, ok := socketOf(c.nc)
	if !ok {
		return Sign{}, false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return Sign{}, false
	}
	var s Sign
	ok = false
	if rc.Control(func(fd uintptr) { s, ok = SignOf(int(fd)) }) != nil || !ok {
		return Sign{}, false
	}
	s.Local, _ = netip.ParseAddrPort(c.local)
	s.Remote, _ = netip.ParseAddrPort(c.remote)
	s.Waiting = c.Waiting()
	return s, true
}

// SignOf returns the sign of a TCP socket, without its addresses and calls.
func SignOf(fd int) (Sign, bool) {
	i, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return Sign{}, false
	}
	s := Sign{
		Unacked: i.Unacked > 0, SinceData: time.Duration(i.Last_data_recv) * time.Millisecond, SinceAck: time.Duration(i.Last_ack_recv) * time.Millisecond,
		MSS: int(i.Snd_mss), OwnMSS: int(i.Advmss),
	}
	if i.Options&optTimestamps != 0 {
		s.MSS += timestamps
	}
	return s, true
}

// socketOf returns the socket under a connection.
func socketOf(nc net.Conn) (syscall.Conn, bool) {
	for {
		if sc, ok := nc.(syscall.Conn); ok {
			return sc, true
		}
		over, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			return nil, false
		}
		nc = over.NetConn()
	}
}

// Waiting returns how many calls are under way.
func (c *Conn) Waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.pending)
}
