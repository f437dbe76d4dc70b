package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// bindTo has a socket that is about to connect to a peer leave from an address and through an interface. Where the kernel does not let us name the
// interface (before 5.7 without CAP_NET_RAW), the address alone decides. The kernel chooses a port when it connects, not here: so one port serves several
// connections to different peers.
func bindTo(rc syscall.RawConn, to, from netip.AddrPort, device string) error {
	local := from.Addr().Unmap()
	if local.IsValid() && local.Is4() != to.Addr().Unmap().Is4() {
		return fmt.Errorf("connect to %v from %v: one is IPv4 and the other IPv6", to, local)
	}
	var err error
	cerr := rc.Control(func(fd uintptr) {
		s := int(fd)
		if device != "" {
			if err = unix.BindToDevice(s, device); err != nil && !errors.Is(err, unix.EPERM) {
				err = fmt.Errorf("connect to %v through %s: %w", to, device, os.NewSyscallError("setsockopt", err))
				return
			}
			err = nil
		}
		if !local.IsValid() && from.Port() == 0 {
			return
		}
		if from.Port() == 0 {
			_ = unix.SetsockoptInt(s, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		}
		var sa unix.Sockaddr
		if to.Addr().Unmap().Is4() {
			a := &unix.SockaddrInet4{Port: int(from.Port())}
			if local.IsValid() {
				a.Addr = local.As4()
			}
			sa = a
		} else {
			a := &unix.SockaddrInet6{Port: int(from.Port())}
			if local.IsValid() {
				a.Addr = local.As16()
			}
			sa = a
		}
		if err = unix.Bind(s, sa); err != nil {
			err = fmt.Errorf("connect to %v from %v: %w", to, from, os.NewSyscallError("bind", err))
		}
	})
	return errors.Join(cerr, err)
}
