package bond

import (
	"fmt"
	"iter"
	"os"
	"strconv"
	"strings"
)

// ports are the local ports that connections may leave from: those that the kernel takes itself for connections, where nobody expects a service. What it
// was told to keep for services it keeps from us too.
type ports struct {
	low, high uint16
	reserved  [1 << 16 / 64]uint64
}

// readPorts reads them for the network namespace of the calling thread.
func readPorts() ports {
	p := ports{low: 32768, high: 60999} // the kernel's default
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		var low, high uint16
		if n, err := fmt.Sscan(string(text), &low, &high); err == nil && n == 2 && low <= high {
			p.low, p.high = max(low, 1), high
		}
	}
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_reserved_ports"); err == nil {
		p.reserve(string(text))
	}
	return p
}

// reserve takes a list as "8080,9148-9200". What is none is passed over.
func (p *ports) reserve(list string) {
	for _, part := range strings.Split(strings.TrimSpace(list), ",") {
		from, to, isRange := strings.Cut(part, "-")
		first, err := strconv.ParseUint(from, 10, 16)
		if err != nil {
			continue
		}
		last := first
		if isRange {
			if last, err = strconv.ParseUint(to, 10, 16); err != nil {
				continue
			}
		}
		for i := first; i <= last; i++ {
			p.reserved[i/64] |= 1 << (i % 64)
		}
	}
}

// from yields each port once, beginning anywhere.
func (p *ports) from(start uint32) iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		n := uint32(p.high-p.low) + 1
		for i := range n {
			port := p.low + uint16((start+i)%n)
			if p.reserved[port/64]>>(port%64)&1 == 0 && !yield(port) {
				return
			}
		}
	}
}

// after is where to begin so that the port comes last.
func (p *ports) after(port uint16) uint32 { return uint32(port-p.low) + 1 }
