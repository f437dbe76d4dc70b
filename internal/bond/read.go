package bond

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// ErrFormat means that a file does not look as the bonding driver writes it.
var ErrFormat = errors.New("not as the bonding driver writes it")

// maxFile bounds a file of the driver, in bytes.
const maxFile = 1 << 20

// Host returns the root of the file systems that the kernel shows itself by, for Names and Read.
func Host() fs.FS { return os.DirFS("/") }

// Names returns the bonds of a host, sorted; none where the driver is not loaded.
func Names(root fs.FS) ([]string, error) {
	entries, err := fs.ReadDir(root, "proc/net/bonding")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("bonds: %w", err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names, nil
}

// Read returns a bond with what sysfs knows besides: MTU, counters, speeds.
func Read(root fs.FS, name string) (*Bond, error) {
	if strings.ContainsAny(name, "/\x00") || name == "" {
		return nil, fmt.Errorf("bond %q: %w", name, fs.ErrInvalid)
	}
	text, err := fs.ReadFile(root, path.Join("proc/net/bonding", name))
	if err != nil {
		return nil, fmt.Errorf("bond %s: %w", name, err)
	}
	b, err := Parse(name, string(text))
	if err != nil {
		return nil, err
	}
	b.MTU = int(number(root, name, "mtu"))
	b.TxBytes, b.RxBytes = number(root, name, "statistics/tx_bytes"), number(root, name, "statistics/rx_bytes")
	for i := range b.Slaves {
		s := &b.Slaves[i]
		s.MTU = int(number(root, s.Name, "mtu"))
		s.TxBytes, s.RxBytes = number(root, s.Name, "statistics/tx_bytes"), number(root, s.Name, "statistics/rx_bytes")
		if s.SpeedMbps == 0 {
			s.SpeedMbps = int(max(0, number(root, s.Name, "speed"))) // -1: unknown
		}
	}
	return b, nil
}

// number reads a number of an interface in sysfs, 0 if there is none.
func number(root fs.FS, device, file string) int64 {
	text, err := fs.ReadFile(root, path.Join("sys/class/net", device, file))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// Parse reads what /proc/net/bonding/NAME has. What it does not know is passed over, since kernels add to it.
func Parse(name, text string) (*Bond, error) {
	if len(text) > maxFile || !strings.HasPrefix(text, "Ethernet Channel Bonding Driver:") {
		return nil, fmt.Errorf("bond %s: %w", name, ErrFormat)
	}
	b := &Bond{Name: name}
	p := parser{b: b}
	scan := bufio.NewScanner(strings.NewReader(text))
	scan.Buffer(nil, maxFile)
	for scan.Scan() {
		key, value, ok := strings.Cut(strings.TrimSpace(scan.Text()), ":")
		if !ok {
			continue
		}
		if err := p.line(key, strings.TrimSpace(value), scan.Text()); err != nil {
			return nil, fmt.Errorf("bond %s: %q: %w", name, scan.Text(), err)
		}
	}
	if err := scan.Err(); err != nil {
		return nil, fmt.Errorf("bond %s: %w", name, err)
	}
	if !p.mode {
		return nil, fmt.Errorf("bond %s: no mode: %w", name, ErrFormat)
	}
	return b, nil
}

type parser struct {
	b    *Bond
	mode bool
}

// modeWords are what the file says of modes, in their order.
var modeWords = []string{
	"load balancing (round-robin)", "fault-tolerance (active-backup)", "load balancing (xor)", "fault-tolerance (broadcast)",
	"IEEE 802.3ad Dynamic link aggregation", "transmit load balancing", "adaptive load balancing",
}

// line takes one line. Lines of links come after "Slave Interface"; the details of LACP's packets are indented there by spaces, and not looked at.
func (p *parser) line(key, value, raw string) error {
	b := p.b
	var s *Slave
	if len(b.Slaves) > 0 {
		s = &b.Slaves[len(b.Slaves)-1]
	}
	if s != nil && strings.HasPrefix(raw, " ") {
		return nil
	}
	var err error
	whole := func(to *int) {
		var n uint64
		if n, err = strconv.ParseUint(value, 10, 31); err == nil {
			*to = int(n)
		}
	}
	switch key {
	case "Bonding Mode":
		for i, words := range modeWords {
			if strings.HasPrefix(value, words) {
				b.Mode, p.mode = Mode(i), true
			}
		}
		if !p.mode {
			return fmt.Errorf("unknown mode: %w", ErrFormat)
		}
	case "Transmit Hash Policy":
		word, _, _ := strings.Cut(value, " ")
		at := slices.Index(policies, word)
		if at < 0 {
			return fmt.Errorf("unknown policy: %w", ErrFormat)
		}
		b.Policy = Policy(at)
	case "Currently Active Slave":
		b.ActiveSlave = value
	case "MII Polling Interval (ms)":
		whole(&b.MIIMonMS)
	case "ARP Polling Interval (ms)":
		whole(&b.ARPIntervalMS)
	case "Up Delay (ms)":
		whole(&b.UpDelayMS)
	case "Down Delay (ms)":
		whole(&b.DownDelayMS)
	case "LACP rate":
		b.LACPFast = value == "fast"
	case "Partner Mac Address":
		b.PartnerMAC = value
	case "Slave Interface":
		b.Slaves = append(b.Slaves, Slave{Name: value})
	case "MII Status":
		if s != nil {
			s.Up = value == "up"
		} else {
			b.Up = value == "up"
		}
	case "Aggregator ID":
		if s == nil {
			whole(&b.Aggregator)
		} else if value != "N/A" {
			whole(&s.Aggregator)
		}
	case "Speed":
		if mbps, ok := strings.CutSuffix(value, " Mbps"); ok && s != nil {
			value = mbps
			whole(&s.SpeedMbps)
		}
	case "Duplex":
		if s != nil {
			s.FullDuplex = value == "full"
		}
	case "Link Failure Count":
		if s != nil {
			whole(&s.Failures)
		}
	case "Permanent HW addr":
		if s != nil {
			s.MAC = value
		}
	}
	if err != nil {
		return errors.Join(ErrFormat, err)
	}
	return nil
}
