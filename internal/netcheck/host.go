package netcheck

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// sysNet is where the kernel shows network interfaces.
const sysNet = "/sys/class/net"

// iface is what is known of a network interface. The zero value is none.
type iface struct {
	name          string
	mtu, speed    uint32 // speed in Mbit/s; 0: not known
	duplex, state string
	loopback      bool
}

// interfaceOf returns the interface that has the address IP[:PORT].
func interfaceOf(addr string) iface {
	ip, ok := ipOf(addr)
	if !ok {
		return iface{}
	}
	all, err := net.Interfaces()
	if err != nil {
		return iface{}
	}
	for _, i := range all {
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.Equal(ip.AsSlice()) {
				out := iface{name: i.Name, mtu: uint32(i.MTU), loopback: i.Flags&net.FlagLoopback != 0}
				if n, err := strconv.ParseUint(sysfs(i.Name, "speed"), 10, 32); err == nil { // -1, or an error, if there is none
					out.speed = uint32(n)
				}
				out.duplex, out.state = sysfs(i.Name, "duplex"), sysfs(i.Name, "operstate")
				return out
			}
		}
	}
	return iface{}
}

func sysfs(name, file string) string {
	b, err := os.ReadFile(filepath.Join(sysNet, name, file))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// ipOf returns the IP address of IP:PORT or IP.
func ipOf(addr string) (netip.Addr, bool) {
	if ap, err := netip.ParseAddrPort(addr); err == nil {
		return ap.Addr().Unmap().WithZone(""), true
	}
	ip, err := netip.ParseAddr(addr)
	return ip.Unmap().WithZone(""), err == nil
}

// tcpInfo is what the kernel knows of a connection.
func tcpInfo(c net.Conn) (*unix.TCPInfo, bool) {
	for range 4 { // what is around it
		if sc, ok := c.(syscall.Conn); ok {
			rc, err := sc.SyscallConn()
			if err != nil {
				return nil, false
			}
			var info *unix.TCPInfo
			if cerr := rc.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); cerr != nil || err != nil {
				return nil, false
			}
			return info, true
		}
		in, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil, false
		}
		c = in.NetConn()
	}
	return nil, false
}
