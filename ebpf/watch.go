package ebpf

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Health is what was seen of the connections with one peer.
type Health struct {
	Connections uint64        // made since Watch
	Samples     uint64        // of round-trip times
	Last        time.Duration // the kernel's smoothed round-trip time at the latest sample
	Mean        time.Duration // of these, over all samples
	Min         time.Duration
	Retransmits uint64 // segments sent again
}

// Watcher notes round-trip times and retransmissions, until Close. It ends with the process.
type Watcher struct {
	mu     sync.Mutex
	objs   watchObjects
	hook   link.Link
	closed bool
}

// Watch looks at connections from and to the ports that processes of a cgroup (version 2) and those below it make from now on; cgroup "" is the
// root, so all processes of the host. Errors wrap ErrNotSupported where the kernel, the privilege or the cgroup filesystem is missing.
func Watch(cgroup string, ports []uint16) (*Watcher, error) {
	if len(ports) > MaxPorts {
		return nil, fmt.Errorf("watch: %d ports: at most %d", len(ports), MaxPorts)
	}
	if cgroup == "" {
		root, err := cgroupRoot()
		if err != nil {
			return nil, fmt.Errorf("watch: %w", err)
		}
		cgroup = root
	}
	w := &Watcher{}
	if err := w.begin(cgroup, ports); err != nil {
		return nil, errors.Join(fmt.Errorf("watch of %s: %w", cgroup, typed(err)), w.Close())
	}
	return w, nil
}

func (w *Watcher) begin(cgroup string, ports []uint16) error {
	if err := loadWatchObjects(&w.objs, nil); err != nil {
		return err
	}
	for _, p := range ports {
		if err := w.objs.Watched.Put(p, uint32(1)); err != nil {
			return fmt.Errorf("port %d: %w", p, err)
		}
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: ebpf.AttachCGroupSockOps, Program: w.objs.WatchSockets})
	if err != nil {
		return err
	}
	w.hook = l
	return nil
}

// cgroupRoot returns where the filesystem of cgroup version 2 is mounted.
func cgroupRoot() (string, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1], nil
		}
	}
	return "", fmt.Errorf("%w: no cgroup2 filesystem is mounted", ErrNotSupported)
}

// Peers returns what was seen so far, by the other end. Of many thousands of peers only the latest are remembered.
func (w *Watcher) Peers() (map[netip.Addr]Health, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil, fmt.Errorf("peers: %w", net.ErrClosed)
	}
	out := map[netip.Addr]Health{}
	var who watchHost
	var h watchHealth
	each := w.objs.Hosts.Iterate()
	for each.Next(&who, &h) {
		us := func(n uint64) time.Duration { return time.Duration(n) * time.Microsecond }
		out[netip.AddrFrom16(who.Addr).Unmap()] = Health{
			Connections: h.Connections, Samples: h.Samples, Last: us(uint64(h.LastUs)), Mean: us(h.SumUs / max(h.Samples, 1)),
			Min: us(uint64(h.MinUs)), Retransmits: h.Retransmits,
		}
	}
	if err := each.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, fmt.Errorf("peers: %w", err)
	}
	return out, nil
}

// Close ends the watch. The second call does nothing.
func (w *Watcher) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	var err error
	if w.hook != nil {
		err = w.hook.Close()
	}
	return errors.Join(err, w.objs.Close())
}
