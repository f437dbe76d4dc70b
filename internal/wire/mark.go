package wire

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// DSCP returns the differentiated services code point (RFC 2474) that packets of a class carry: the class selectors, most urgent highest. A class is told
// by it on the way, by switches and by what counts and queues packets, and stays told where several kinds of traffic go to one port.
func (c Class) DSCP() uint8 { return dscps[min(c, ClassScrub)] }

// prioInteractive is TC_PRIO_INTERACTIVE of linux/pkt_sched.h, the highest that needs no privilege.
const prioInteractive = 6

var dscps = [classEnd]uint8{
	ClassHeartbeat: 48, ClassMeta: 40, ClassGuest: 32, ClassReplication: 24, ClassRepair: 16, ClassRebalance: 8, ClassScrub: 8,
}

// Mark says which class of traffic this end sends on the connection. Heartbeats, which must come through when a link is full, also go ahead of what
// else the host sends. Where the kernel does not have that, nothing is lost but the precedence.
func (c *Conn) Mark(class Class) { Mark(c.nc, class) }

// Mark is Conn.Mark for a connection that does not speak our frames.
func Mark(c net.Conn, class Class) {
	sc, ok := socketOf(c)
	if !ok {
		return
	}
	if rc, err := sc.SyscallConn(); err == nil {
		mark(rc, class)
	}
}

func mark(rc syscall.RawConn, class Class) {
	tos := int(class.DSCP()) << 2
	_ = rc.Control(func(fd uintptr) {
		// The type of service first: setting it also sets the priority.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, tos)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, tos)
		if class == ClassHeartbeat {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PRIORITY, prioInteractive)
		}
	})
}
