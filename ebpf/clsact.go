package ebpf

import (
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// filterPriority and filterHandle are where our filters are in an interface's clsact queue: a fixed place, so that a new one takes that of one
// that a crashed process left.
const (
	filterPriority = 0x7661
	filterHandle   = 1
)

// attachFilter hooks a program into the clsact queue of an interface, which is made if there is none, and stays.
func attachFilter(ifindex int, program *ebpf.Program, ingress bool) (io.Closer, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE) // it stays in this thread's namespace, wherever Close is called
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	queue := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := h.QdiscAdd(queue); err != nil && !errors.Is(err, unix.EEXIST) {
		h.Close()
		return nil, fmt.Errorf("clsact queue: %w", err)
	}
	f := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex, Parent: netlink.HANDLE_MIN_EGRESS, Handle: filterHandle, Protocol: unix.ETH_P_ALL, Priority: filterPriority,
		},
		Fd: program.FD(), Name: "varve", DirectAction: true,
	}
	if ingress {
		f.Parent = netlink.HANDLE_MIN_INGRESS
	}
	if err := h.FilterReplace(f); err != nil {
		h.Close()
		return nil, fmt.Errorf("clsact filter: %w", err)
	}
	return &filter{h, f}, nil
}

// filter is one that is hooked in.
type filter struct {
	h *netlink.Handle
	f *netlink.BpfFilter
}

// Close takes the filter off. The interface may be gone, and the filter with it.
func (f *filter) Close() error {
	defer f.h.Close()
	err := f.h.FilterDel(f.f)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
